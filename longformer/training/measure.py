"""Bits per token of a model for masked language modelling, by itself: with the masks that a training measures on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from longformer.answering.scores import bootstrap_ratio_interval
from longformer.distributed import Processes, check_agreement, fail_together, processes
from longformer.errors import LongformerError
from longformer.models.heads import LongformerForMaskedLM
from longformer.tokenizer import LongformerTokenizer
from longformer.training.mlm import HeldOut, Masking, pack_documents, read_documents
from longformer.training.options import MLMOptions


def measure_mlm(
    model: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    max_length: int | None = None,
    mask_probability: float = MLMOptions.mask_probability,
    seed: int = MLMOptions.seed,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    impl: str = "auto",
) -> dict[str, Any] | None:
    """Bits per masked token on text files, which are packed and masked as ``train mlm --evaluate-on`` does it.

    Under torchrun all processes call this, and share the rows.

    Args:
        model: a checkpoint with a masked-LM head: a folder, or a name on the hub.
        files: read by :func:`read_documents`.
        revision, device, impl: as for ``from_pretrained``.
        max_length: tokens of a row; None is 4096, or as many as the model has positions for where these are fewer.
        mask_probability, seed: the masks are the same for the same ones, ``max_length``, tokenizer and files.
        dtype: precision of the weights.

    Returns:
        ``bits_per_token``, ``bits_per_token_interval`` (low, high; 95 %, by bootstrap over rows; None where one row
        alone has masked tokens), ``tokens`` (masked ones), ``rows``, ``max_length``; None in all processes but the
        first.

    Raises:
        LongformerError: files or checkpoint that cannot be read, rows longer than the model reads, nothing to predict.
    """
    with processes(device) as group:
        with fail_together(group):
            place = group.device if group.joined else device
            loaded = LongformerForMaskedLM.from_pretrained(
                model, revision=revision, dtype=dtype, device=place, impl=impl
            )
            tokenizer = LongformerTokenizer.from_pretrained(model, revision=revision)
            length = _length(max_length, loaded.config.max_tokens)
            held = _read(files, tokenizer, length, Masking(tokenizer, probability=mask_probability, seed=seed))
        check_agreement(group, rows=str(len(held)), max_length=str(length))
        rows = _bits(loaded, held, group)
        return {**summary(rows), "rows": len(held), "max_length": length} if group.is_first else None


def _length(wanted: int | None, most: int) -> int:
    if wanted is not None and wanted > most:
        raise LongformerError(f"max_length is {wanted}; the model has positions for {most} tokens")
    return min(most, MLMOptions.max_length) if wanted is None else wanted


def _read(files: Sequence[str], tokenizer: LongformerTokenizer, length: int, masking: Masking) -> HeldOut:
    documents = [document for file in files for document in read_documents(file)]
    return HeldOut(pack_documents(documents, tokenizer, length), masking, name=", ".join(files))


def _bits(model: LongformerForMaskedLM, held: HeldOut, group: Processes) -> list[tuple[float, int]]:
    """Bits and masked tokens of every row, in all processes, each of which computes its share."""
    mine = group.share(range(len(held)))
    found: list[tuple[float, int]] = []
    with fail_together(group):
        found = list(held.bits_by_row(model, mine))
    everyone: dict[int, tuple[float, int]] = {}
    for theirs in group.gather(dict(zip(mine, found, strict=True))):
        everyone |= theirs
    return [everyone[row] for row in range(len(held))]


def summary(rows: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Bits per token over rows, each its bits and its number of masked tokens, with a 95 % interval over rows."""
    bits, tokens = zip(*[row for row in rows if row[1]], strict=True)
    return {
        "bits_per_token": sum(bits) / sum(tokens),
        "bits_per_token_interval": bootstrap_ratio_interval(bits, tokens) if len(bits) > 1 else None,
        "tokens": sum(tokens),
    }


def describe(found: Mapping[str, Any]) -> str:
    """What :func:`measure_mlm` found for a reader, a line a figure."""
    interval = "   one row: no interval"
    if found["bits_per_token_interval"] is not None:
        low, high = found["bits_per_token_interval"]
        interval = f"   95% interval over rows {low:.4f} to {high:.4f}"
    return (
        f"bits per token  {found['bits_per_token']:.4f}{interval}\n"
        f"masked tokens   {found['tokens']}, in {found['rows']} rows of {found['max_length']}"
    )
