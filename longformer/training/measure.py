"""Bits per token of a masked language model, without training. The masks are those of a training run's evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from longformer.answering.scores import bootstrap_ratio_interval
from longformer.distributed import Processes, check_agreement, fail_together, processes
from longformer.errors import LongformerError
from longformer.models.heads import LongformerForMaskedLM
from longformer.models.loading import check_implementation
from longformer.tokenizer import LongformerTokenizer, load_tokenizer
from longformer.training.mlm import HeldOut, Masking, pack_documents, read_documents
from longformer.training.options import MLMOptions


def measure_mlm(
    model: str,
    files: Sequence[str],
    *,
    tokenizer: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    mask_probability: float = MLMOptions.mask_probability,
    seed: int = MLMOptions.seed,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
    impl: str = "auto",
) -> dict[str, Any] | None:
    """Bits per masked token on text files, which are packed and masked as in ``train mlm --evaluate-on``.

    Under torchrun all processes call this, and each computes a share of the rows.

    Args:
        model: a checkpoint with a masked-LM head: a folder, or a name on the hub.
        files: read by :func:`read_documents`.
        tokenizer: folder or name on the hub of another tokenizer; None is the model's own.
        revision, device, impl: as for ``from_pretrained``.
        max_length: tokens of a row; None is 4096, or the number of the model's positions if that is smaller.
        mask_probability, seed: the same values give the same masks, with the same tokenizer, files and ``max_length``.
        dtype: precision of the weights.

    Returns:
        ``bits_per_token``, ``bits_per_token_interval`` (low, high: 95 %, by bootstrap over rows; None if only one row
        has masked tokens), ``tokens`` (the number of masked tokens), ``rows`` and ``max_length``. All processes but the
        first return None.

    Raises:
        LongformerError: files or checkpoint cannot be read, rows are longer than the model reads, or no token is to be
            predicted.
    """
    with processes(device) as group:
        with fail_together(group):
            placed_on = group.device if group.joined else device
            check_implementation(impl, placed_on, dtype)
            loaded = LongformerForMaskedLM.from_pretrained(
                model, revision=revision, dtype=dtype, device=placed_on, impl=impl, new_head=False
            )
            read = load_tokenizer(tokenizer, model, revision=revision)
            read.check_rows(loaded.config.vocab_size)
            length = _length(max_length, loaded.config.max_tokens)
            held_out = _read(files, read, length, Masking(read, probability=mask_probability, seed=seed))
        check_agreement(group, rows=str(len(held_out)), max_length=str(length))
        rows = _bits(loaded, held_out, group)
        return {**summary(rows), "rows": len(held_out), "max_length": length} if group.is_first else None


def _length(max_length: int | None, limit: int) -> int:
    if max_length is not None and max_length > limit:
        raise LongformerError(f"max_length is {max_length}; the model has positions for {limit} tokens")
    return min(limit, MLMOptions.max_length) if max_length is None else max_length


def _read(files: Sequence[str], tokenizer: LongformerTokenizer, length: int, masking: Masking) -> HeldOut:
    documents = [document for file in files for document in read_documents(file)]
    return HeldOut(pack_documents(documents, tokenizer, length), masking, name=", ".join(files))


def _bits(model: LongformerForMaskedLM, held_out: HeldOut, group: Processes) -> list[tuple[float, int]]:
    """Bits and number of masked tokens of every row, in all processes. Each process computes a share."""
    share = group.share(range(len(held_out)))
    results: list[tuple[float, int]] = []
    with fail_together(group):
        results = list(held_out.bits_by_row(model, share))
    by_row: dict[int, tuple[float, int]] = {}
    for shared in group.gather(dict(zip(share, results, strict=True))):
        by_row |= shared
    return [by_row[row] for row in range(len(held_out))]


def summary(rows: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Bits per token, with a 95 % interval over rows. Each row is its bits and its number of masked tokens."""
    bits, tokens = zip(*[row for row in rows if row[1]], strict=True)
    return {
        "bits_per_token": sum(bits) / sum(tokens),
        "bits_per_token_interval": bootstrap_ratio_interval(bits, tokens) if len(bits) > 1 else None,
        "tokens": sum(tokens),
    }


def describe(found: Mapping[str, Any]) -> str:
    """The result of :func:`measure_mlm` as text, one figure a line."""
    interval = "   one row: no interval"
    if found["bits_per_token_interval"] is not None:
        low, high = found["bits_per_token_interval"]
        interval = f"   95% interval over rows {low:.4f} to {high:.4f}"
    return (
        f"bits per token  {found['bits_per_token']:.4f}{interval}\n"
        f"masked tokens   {found['tokens']}, in {found['rows']} rows of {found['max_length']}"
    )
