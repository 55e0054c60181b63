"""Attention of all layers and heads, small enough for a page: each row's largest entries, kept by band, in one byte.

The entries of a row are numbered by *slots*, the tokens that the row may attend to. A token that is not global has the
G global tokens first and then the W columns of its band. A global token, and any token of a layer without a window, has
all S tokens.

Each row keeps its entries above a threshold, but at least ``least`` and at most ``most`` of them. The threshold is the
same for all rows, so that the entries that are left out are the smallest ones (apart from the two limits). It is chosen
so that there are as many entries as wanted. Global tokens are few, and their rows are long and even: each of these rows
keeps its largest ``most_global`` entries.

Probabilities are rounded on a logarithmic scale: level n is RATIO**-n, so that each is off by at most 2.3 %. Numbers
are written as bytes, where 255 means "255 more, read on". A layer is written as four streams: how many entries each row
has; the slots between each entry and the one before it; the levels; and for each row one byte, the share of its
attention that is kept, in 255ths. zlib compresses the four together, one block a layer. A browser can undo that by
itself. The tests read the blocks back in Python (``tests/support/explained.py``).

Letters: S sequence, H heads, G global tokens, W width of the band, K entries of a row that may be kept.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
import torch

from longformer.explain.probabilities import Attention

FLOOR = 1e-5  # what is smaller is not kept
RATIO = FLOOR ** (-1 / 254)  # levels 0 to 254
STEP = RATIO**0.5 - 1  # the largest relative error of a probability
ENTRIES = 7_000_000  # over all layers and heads: about 13 MB in the page
MOST = 64  # a row of a long document keeps no more entries than this; in a short one it may keep more
GLOBAL_SHARE = 8  # an eighth of all entries is for the rows of global tokens


class Limits(NamedTuple):
    """How much is kept.

    least, most, most_global: entries that a row keeps, see the head of this file.
    entries: how many are wanted in all rows together.
    """

    least: int
    most: int
    most_global: int
    entries: int

    @classmethod
    def of(cls, seq_len: int, global_tokens: int, heads: int, entries: int = ENTRIES) -> Limits:
        """The limits where the heads of all layers are ``heads`` in number."""
        fair = entries // (seq_len * heads)  # what each row would have if all had as many
        least = max(1, min(8, fair // 2))
        most_global = max(least, fair, entries // GLOBAL_SHARE // (max(1, global_tokens) * heads))
        return cls(least, max(MOST, fair), min(seq_len, most_global), entries)


class Candidates(NamedTuple):
    """The largest entries of some of a head's rows, the largest first.

    row: (rows,) int64, which tokens the rows belong to.
    probability: (rows, K) float32.
    slot: (rows, K) uint16 or uint32, which slots the probabilities are for.
    least: how many entries of each row are kept in any case.
    """

    row: np.ndarray
    probability: np.ndarray
    slot: np.ndarray
    least: int


class PackedLayer(NamedTuple):
    """A layer as the page holds it.

    data: the four streams (counts, gaps, levels, shares) one after another, compressed with zlib.
    lengths: of the four streams, in bytes, before they are compressed.
    entries: how many entries are kept.
    share: for each head, how much of the attention of all its rows the kept entries carry.
    """

    data: bytes
    lengths: tuple[int, int, int, int]
    entries: int
    share: list[float]


def candidates(attention: Attention, limits: Limits) -> list[Candidates]:
    """One head's candidates: those of the tokens that are not global, and those of the global tokens."""
    index = attention.global_index.numpy()
    local = np.setdiff1d(np.arange(len(attention.band)), index)
    rows = attention.rows.numpy()
    if len(attention.row_index) == len(index):
        slots, of_global = np.concatenate([attention.columns.numpy(), attention.band.numpy()], axis=1)[local], rows
    else:
        slots, of_global = rows[local], rows[index]
    return [
        _largest(local, slots, limits.most, limits.least),
        _largest(index, of_global, limits.most_global, limits.most_global),
    ]


def _largest(row: np.ndarray, values: np.ndarray, count: int, least: int) -> Candidates:
    kind = np.uint16 if values.shape[1] <= 2**16 else np.uint32
    found = torch.from_numpy(values).topk(min(count, values.shape[1]), dim=1)
    return Candidates(row, found.values.numpy(), found.indices.numpy().astype(kind), least)


def levels(probability: np.ndarray) -> np.ndarray:
    """Probabilities as levels, uint8: 0 to 254, and 255 for what is below the floor."""
    with np.errstate(divide="ignore"):
        level = np.rint(-np.log(probability.astype(np.float64)) / math.log(RATIO))
    return np.clip(level, 0, 255).astype(np.uint8)


def lowest_level(layers: list[list[list[Candidates]]], limits: Limits) -> int:
    """The threshold: the lowest level that every row keeps, chosen so that about ``limits.entries`` are kept in all."""
    optional, sure = np.zeros(256, dtype=np.int64), 0
    for part in (part for layer in layers for head in layer for part in head):
        level = levels(part.probability)
        sure += int((level[:, : part.least] < 255).sum())
        optional += np.bincount(level[:, part.least :].ravel(), minlength=256)
    fitting = np.flatnonzero(sure + optional[:255].cumsum() <= limits.entries)
    return int(fitting[-1]) if len(fitting) else -1


def pack(layer: list[list[Candidates]], seq_len: int, lowest: int) -> PackedLayer:
    """Write a layer small: of each head, which comes as parts, the candidates down to the level ``lowest``."""
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
    """Numbers of at least 0, most of them small, as bytes: 255 as often as it fits into the number, then the rest."""
    full = numbers // 255
    written = np.full(int(full.sum()) + len(numbers), 255, dtype=np.uint8)
    written[(full + 1).cumsum() - 1] = numbers % 255
    return written.tobytes()
