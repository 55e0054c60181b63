"""Attention of all layers and heads, small enough for a page: the largest entries of each row, by band, in one byte.

A row's entries are numbered by *slots*, the tokens that it may attend to: for a token that is not global the G global
tokens and then the W columns of its band, for a global token all S tokens. Of each row the entries from a threshold on
are kept, but never fewer than ``least`` nor more than ``most``; the threshold is the one that makes the wanted number
of entries, so that of all ways to keep so many of them this one loses least attention (but for the two limits). Global
tokens are few, and their rows long and even: of each the largest ``most_global`` are kept.

Probabilities are rounded on a logarithmic scale: level n is RATIO**-n, so that each is off by at most 2.3 %. Numbers
are written as bytes, 255 meaning "255 more, read on": for every row how many entries it has, and for every entry the
slots between it and the one before. Beside them stand the levels, and a byte a row with its kept share in 255ths.
The four go through zlib, a block a layer, which a browser undoes by itself.

Letters: S sequence, H heads, G global tokens, W width of the band, N kept entries of a layer.
"""

from __future__ import annotations

import itertools
import math
import zlib
from typing import NamedTuple

import numpy as np
from torch import Tensor

from longformer.explain.probabilities import Attention, LayerPattern

FLOOR = 1e-5  # what is smaller is not kept
RATIO = FLOOR ** (-1 / 254)  # levels 0 to 254
STEP = RATIO**0.5 - 1  # the largest relative error of a probability
ENTRIES = 7_000_000  # over all layers and heads: about 13 MB in the page
MOST = 64  # entries a row that a long document keeps at most; a short one keeps more
GLOBAL_SHARE = 8  # an eighth of all entries is for the rows of global tokens


class Limits(NamedTuple):
    """least, most, most_global: entries that a row keeps, see the head of this file. entries: wanted in all."""

    least: int
    most: int
    most_global: int
    entries: int

    @classmethod
    def of(cls, seq_len: int, global_tokens: int, heads: int, entries: int = ENTRIES) -> Limits:
        """For ``heads`` heads, all layers counted."""
        fair = entries // (seq_len * heads)  # were all rows alike
        least = max(1, min(8, fair // 2))
        most_global = max(least, fair, entries // GLOBAL_SHARE // (max(1, global_tokens) * heads))
        return cls(least, max(MOST, fair), min(seq_len, most_global), entries)


class Candidates(NamedTuple):
    """The largest entries of a head's rows, largest first: (rows, K) probabilities float32 and slots uint16 or uint32.

    row: (rows,) which tokens these are.
    least: how many of a row are kept in any case.
    """

    row: np.ndarray
    probability: np.ndarray
    slot: np.ndarray
    least: int


class PackedLayer(NamedTuple):
    """data: zlib-compressed bytes: counts, gaps, levels, shares one after another. lengths: of these four."""

    data: bytes
    lengths: tuple[int, int, int, int]
    entries: int
    share: list[float]  # by head, of all attention of all its rows


class Rows(NamedTuple):
    """What a packed layer holds.

    first: (H·S + 1,) where each row's entries begin; row h·S + i is token i's in head h.
    slot, probability: (N,). share: (H·S,) of a row's attention that its kept entries carry.
    """

    first: np.ndarray
    slot: np.ndarray
    probability: np.ndarray
    share: np.ndarray


def candidates(pattern: LayerPattern, attention: Attention, limits: Limits) -> list[Candidates]:
    """Of one head the rows of the tokens that are not global, and those of the global ones."""
    seq_len = len(attention.band)
    local = np.setdiff1d(np.arange(seq_len), pattern.global_index.numpy())
    slots = np.concatenate([attention.columns.numpy(), attention.band.numpy()], axis=1)[local]
    return [
        _largest(local, slots, limits.most, limits.least),
        _largest(pattern.global_index.numpy(), attention.rows.numpy(), limits.most_global, limits.most_global),
    ]


def _largest(row: np.ndarray, values: np.ndarray, count: int, least: int) -> Candidates:
    import torch

    kind = np.uint16 if values.shape[1] <= 2**16 else np.uint32
    found = torch.from_numpy(values).topk(min(count, values.shape[1]), dim=1)
    return Candidates(row, found.values.numpy(), found.indices.numpy().astype(kind), least)


def levels(probability: np.ndarray) -> np.ndarray:
    """0 to 254, and 255 for what is below the floor: uint8."""
    with np.errstate(divide="ignore"):
        level = np.rint(-np.log(probability.astype(np.float64)) / math.log(RATIO))
    return np.clip(level, 0, 255).astype(np.uint8)


def lowest_level(layers: list[list[list[Candidates]]], limits: Limits) -> int:
    """The last level that is kept in every row, so that with the ``least`` of each row there are about enough."""
    optional, sure = np.zeros(256, dtype=np.int64), 0
    for part in (part for layer in layers for head in layer for part in head):
        level = levels(part.probability)
        sure += int((level[:, : part.least] < 255).sum())
        optional += np.bincount(level[:, part.least :].ravel(), minlength=256)
    fitting = np.flatnonzero(sure + optional[:255].cumsum() <= limits.entries)
    return int(fitting[-1]) if len(fitting) else -1


def pack(layer: list[list[Candidates]], seq_len: int, lowest: int) -> PackedLayer:
    """A layer's heads, of which each has its candidates in parts: what is kept of them, written small."""
    rows, slots, kept_levels = [], [], []
    share = np.zeros((len(layer), seq_len))
    for head, parts in enumerate(layer):
        for part in parts:
            level = levels(part.probability)
            keep = (level <= lowest) | (np.arange(level.shape[1]) < part.least)
            keep &= level < 255
            share[head, part.row] = (part.probability * keep).sum(axis=1, dtype=np.float64)
            which, rank = keep.nonzero()
            rows.append(head * seq_len + part.row[which])
            slots.append(part.slot[which, rank].astype(np.int64))
            kept_levels.append(level[which, rank])
    row, slot, level = (np.concatenate(parts) for parts in (rows, slots, kept_levels))
    order = np.lexsort((slot, row))
    row, slot, level = row[order], slot[order], level[order]
    before = np.where(np.diff(row, prepend=-1) == 0, np.roll(slot, 1), -1)
    streams = (
        small_numbers(np.bincount(row, minlength=share.size)),
        small_numbers(slot - before - 1),
        level.tobytes(),
        np.rint(share.clip(0, 1) * 255).astype(np.uint8).tobytes(),
    )
    counts, gaps, level_bytes, share_bytes = (len(stream) for stream in streams)
    lengths = (counts, gaps, level_bytes, share_bytes)
    return PackedLayer(zlib.compress(b"".join(streams), 9), lengths, len(row), share.mean(axis=1).tolist())


def small_numbers(numbers: np.ndarray) -> bytes:
    """Whole numbers from 0 on, mostly small, as bytes: 255 as often as it goes in, and the rest."""
    full = numbers // 255
    written = np.full(int(full.sum()) + len(numbers), 255, dtype=np.uint8)
    written[(full + 1).cumsum() - 1] = numbers % 255
    return written.tobytes()


def read_small_numbers(data: bytes) -> np.ndarray:
    """The inverse of :func:`small_numbers`: int64."""
    written = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(written < 255)
    return 255 * (np.diff(ends, prepend=-1) - 1) + written[ends]


def unpack(packed: PackedLayer) -> Rows:
    """What the page's script reads out of a layer's block."""
    data = zlib.decompress(packed.data)
    ends = np.cumsum(packed.lengths)
    counts, gaps = read_small_numbers(data[: ends[0]]), read_small_numbers(data[ends[0] : ends[1]])
    level, share = (np.frombuffer(data[a:b], dtype=np.uint8) for a, b in itertools.pairwise(ends[1:]))
    first = np.concatenate([[0], counts.cumsum()])
    run = (gaps + 1).cumsum()  # over all rows: each begins anew
    base = np.concatenate([[0], run])[first[:-1]]
    slot = run - np.repeat(base, counts) - 1
    return Rows(first, slot, RATIO ** -level.astype(np.float64), share / 255)


def tokens(slot: np.ndarray, token: int, pattern: LayerPattern, head: int) -> np.ndarray:
    """Which tokens the slots of the row of ``token`` are in a head."""
    index: Tensor = pattern.global_index
    if token in index.tolist():
        return slot
    count = len(index)
    columns = index.numpy()[np.minimum(slot, count - 1)] if count else slot
    return np.where(slot < count, columns, token + (slot - count - pattern.window[0]) * pattern.dilation[head])
