"""Bits per character: how well a causal language model foretells a text, read in overlapping pieces.

A character near the beginning of a piece has little before it to be foretold from. So each piece but the first begins
within the one before it, and only the characters at its end count (Longformer, arXiv 2004.05150, §4.2). Each character
of the text but the first is counted once.

Letters: N characters of the text, L characters that a piece reads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.answering.scores import bootstrap_ratio_interval
from longformer.errors import DataError, LongformerError
from longformer.generating.characters import read_characters
from longformer.generating.generator import TextGenerator

BATCH = 8192  # characters that are read at once


class Piece(NamedTuple):
    """Of a text, what is read at once: it foretells the characters ``first`` to ``stop``, and reads from ``start``."""

    start: int
    first: int
    stop: int


def pieces(count: int, length: int, step: int) -> list[Piece]:
    """The pieces of a text of ``count`` characters. Each reads ``length`` and counts ``step``; the first counts all.

    Raises:
        DataError: fewer than two characters, so there is nothing to foretell.
        LongformerError: ``step`` is not 1 to ``length``.
    """
    if count < 2:
        raise DataError(f"the text to measure on has {count} characters; give at least two, the second to be foretold")
    if not 1 <= step <= length:
        raise LongformerError(f"step is {step} and length {length}; it must be 1 to the length")
    found = [Piece(0, 1, min(length + 1, count))]
    while found[-1].stop < count:
        first = found[-1].stop
        stop = min(first + step, count)
        found.append(Piece(stop - 1 - length, first, stop))
    return found


def bits_of(model: Any, ids: Tensor, asked: Iterable[Piece]) -> Iterator[float]:
    """The bits that foretelling the characters of each piece takes.

    Args:
        model: a causal language model, in ``eval()`` mode.
        ids: (N,) int64, the text.
        asked: pieces, which read the same number of characters.

    Raises:
        LongformerError: the model's scores are not finite.
    """
    device = next(model.parameters()).device
    asked = list(asked)
    rows = max(1, BATCH // max((piece.stop - 1 - piece.start for piece in asked), default=1))
    for i in range(0, len(asked), rows):
        some = asked[i : i + rows]
        inputs = torch.stack([ids[piece.start : piece.stop - 1] for piece in some]).to(device)
        targets = torch.stack([ids[piece.start + 1 : piece.stop] for piece in some]).to(device)
        with torch.inference_mode():
            logits = model(inputs).logits.float()
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        for piece, row in zip(some, losses, strict=True):
            bits = float(row[piece.first - piece.start - 1 :].double().sum()) / math.log(2)
            if not math.isfinite(bits):
                raise LongformerError("the model's scores are not finite; its weights are damaged")
            yield bits


def bits_per_character(model: Any, ids: Tensor, *, length: int = 512, step: int | None = None) -> float:
    """Bits per character of a text, each character but the first foretold once.

    Args:
        model: a causal language model, in ``eval()`` mode.
        ids: (N,) int64, the text, by :meth:`longformer.generating.Characters.ids`.
        length: characters that a piece reads.
        step: characters of a piece that count; the last ``length`` - ``step`` of the piece before are read again. None
            is half of the length.

    Raises:
        DataError, LongformerError: as for :func:`pieces` and :func:`bits_of`.
    """
    asked = pieces(len(ids), length, max(1, length // 2) if step is None else step)
    return math.fsum(bits_of(model, ids, asked)) / (len(ids) - 1)


def measure_lm(
    model: str, files: Sequence[str], *, length: int = 512, step: int | None = None, **loading: Any
) -> dict[str, Any]:
    """Bits per character of a model on text files, each a text of its own.

    Args:
        model: a checkpoint that `longformer train lm` wrote: a folder, or a name on the hub.
        files: text files.
        length, step: as for :func:`bits_per_character`.
        loading: further arguments of :meth:`TextGenerator.from_pretrained`.

    Returns:
        ``bits_per_character``, ``interval`` (low, high: 95 %, by bootstrap over pieces; None if there is only one),
        ``characters`` (how many were foretold), ``pieces``, ``length`` and ``step``.

    Raises:
        LongformerError: a file or the checkpoint cannot be read, or a character is not in the vocabulary.
    """
    step = max(1, length // 2) if step is None else step
    texts = {file: read_characters(file) for file in files}
    loaded = TextGenerator.from_pretrained(model, **loading)
    longest = loaded.model.config.max_tokens
    if length > longest:
        raise LongformerError(f"length is {length}; the model has positions for {longest} characters")
    bits: list[float] = []
    counts: list[int] = []
    for file, text in texts.items():
        ids = loaded.characters.ids(text, name=file)
        asked = pieces(len(ids), length, step)
        bits += bits_of(loaded.model, ids, asked)
        counts += [piece.stop - piece.first for piece in asked]
    return {
        "bits_per_character": sum(bits) / sum(counts),
        "interval": bootstrap_ratio_interval(bits, counts) if len(bits) > 1 else None,
        "characters": sum(counts),
        "pieces": len(bits),
        "length": length,
        "step": step,
    }


def describe(found: dict[str, Any]) -> str:
    """The result of :func:`measure_lm` as text, one figure a line."""
    interval = "one piece: no interval"
    if found["interval"] is not None:
        interval = "95% interval over pieces {:.4f} to {:.4f}".format(*found["interval"])
    return (
        f"bits per character  {found['bits_per_character']:.4f}   {interval}\n"
        f"characters          {found['characters']}, in {found['pieces']} pieces that read {found['length']}"
    )
