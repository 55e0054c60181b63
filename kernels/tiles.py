"""Which rows meet which columns: an attention problem cut into pieces, blocks and tiles, for ``blocked.py``.

A tile is T rows and the at most T + W - 1 columns of their band. What of that rectangle lies off the band are two
triangles at its ends: these, and nothing else, are masked. A dilated window joins only tokens that are equal modulo its
gap, so that each residue class is a piece of its own, read through a stride. Padding at either end of a sequence is in
no piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of a tile, by bytes a number: its triangles cost T/W of the arithmetic, but small products are slow.
ROWS = {2: 128, 4: 64, 8: 64}
FUSED_ROWS = {2: 256, 4: 64, 8: 64}
DENSE_ROWS = 256  # and in a sequence that lies whole inside everybody's window
BLOCK_ROWS = 512  # of neighbouring tiles that are handled together where they can be
MOST_SCORES = 1 << 20  # the most scores of global rows or columns at a time, so that they stay in the cache


class Block(NamedTuple):
    """``repeats`` tiles of equal shape: ``rows`` that meet ``columns``, and again each a tile's rows further on.

    ceilings: ranges of a tile's columns with the (rows, range) most that a score there may be: -inf where a row does
        not see a column, +inf elsewhere.
    """

    rows: slice
    columns: slice
    repeats: int
    ceilings: list[tuple[slice, Tensor]]

    @property
    def all_rows(self) -> slice:
        """The rows of all tiles."""
        return slice(self.rows.start, self.rows.start + self.repeats * (self.rows.stop - self.rows.start))

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile."""
        for shift in range(0, self.all_rows.stop - self.rows.start, self.rows.stop - self.rows.start):
            yield shifted(self.rows, shift), shifted(self.columns, shift)


class Piece(NamedTuple):
    """One independent attention problem: heads of an example, or one residue class of a dilated window.

    Index of its rows and columns in (B, H, S, D), the blocks over them, a mask of columns that are not padding (None:
    none is), the global columns' positions, for a block's rows the mask of global columns that are not for them, and
    whether the mask of columns is of the rows too.
    """

    batch: int
    heads: slice
    rows: slice
    columns: slice
    blocks: list[Block]
    column_mask: Tensor | None
    global_index: Tensor | None
    global_hidden: Callable[[slice], Tensor | None]
    padded_rows: bool


def band_pieces(
    query: Tensor,
    window: tuple[int, int],
    dilation: Sequence[int],
    causal: bool,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
    fused: bool,
) -> list[Piece]:
    """Pieces of a sliding window over ``query`` (B, H, S, D); arguments as checked by the operator."""
    batch, _, seq_len, _ = query.shape
    pieces = []
    ceilings: dict[tuple[int, int, int, bool], Tensor] = {}
    for b in range(batch):
        span, mask = _occupied(key_mask, b, seq_len)
        index = None
        if global_mask is not None:
            index = global_mask[b].nonzero().squeeze(1)
            index = index if len(index) else None
        for heads, gap in _head_runs(dilation):
            for first in range(span.start, min(span.start + gap, span.stop)):
                rows = slice(first, span.stop, gap)  # tokens that a window with this gap can join
                length = len(range(first, span.stop, gap))
                piece_mask = None if mask is None else mask[first - span.start :: gap]
                if piece_mask is not None and bool(piece_mask.all()):
                    piece_mask = None
                # Where everybody's window holds the whole sequence, global columns stand in it already.
                beside = index if gap > 1 or length > min(window) + 1 else None
                most = BLOCK_ROWS
                if beside is not None:
                    most = min(most, MOST_SCORES // ((heads.stop - heads.start) * len(beside)))
                blocks = list(_band_blocks(length, window, most, ceilings, query, fused))
                hidden = partial(_global_hidden, beside, first, gap, window, causal)
                pieces.append(Piece(b, heads, rows, rows, blocks, piece_mask, beside, hidden, True))
    return pieces


def global_pieces(query: Tensor, key: Tensor, key_mask: Tensor | None, fused: bool) -> list[Piece]:
    """Pieces of a few rows (B, H, G, D) that see every column of (B, H, S, D) that is no padding."""
    heads, rows = query.shape[1], query.shape[2]
    pieces = []
    for b in range(query.shape[0]):
        span, mask = _occupied(key_mask, b, key.shape[2])
        length = span.stop - span.start
        if length:
            step = rows if fused else max(1, MOST_SCORES // (heads * length))
            blocks = [Block(slice(r, min(r + step, rows)), slice(0, length), 1, []) for r in range(0, rows, step)]
            pieces.append(Piece(b, slice(0, heads), slice(0, rows), span, blocks, mask, None, lambda rows: None, False))
    return pieces


def _band_blocks(
    length: int,
    window: tuple[int, int],
    most: int,
    ceilings: dict[tuple[int, int, int, bool], Tensor],
    like: Tensor,
    fused: bool,
) -> Iterator[Block]:
    """Blocks over a sequence: tiles whose band lies whole inside it together, up to ``most`` rows, the others alone."""
    left, right = window
    step = (FUSED_ROWS if fused else ROWS)[like.element_size()]
    if length <= min(left, right) + 1:  # it lies whole inside everybody's window
        step = length if fused else DENSE_ROWS

    def ceiling(rows: int, width: int, diagonal: int, lower: bool) -> Tensor:
        shape = (rows, width, diagonal, lower)
        if shape not in ceilings:
            ones = torch.ones(rows, width, dtype=torch.bool, device=like.device)
            hidden = ones.tril_(diagonal) if lower else ones.triu_(diagonal)
            ceilings[shape] = like.new_full(hidden.shape, math.inf).masked_fill_(hidden, -math.inf)
        return ceilings[shape]

    top = 0
    while top < length:
        bottom = min(top + step, length)
        first, last = max(0, top - left), min(length, bottom + right)
        found = []
        ahead = bottom - 1 - left - first  # columns too far left for the last row
        if ahead > 0:
            found.append((slice(0, ahead), ceiling(bottom - top, ahead, top - left - first - 1, True)))
        behind = last - (top + right + 1)  # columns too far right for the first row
        if behind > 0:
            width = last - first
            found.append((slice(width - behind, width), ceiling(bottom - top, behind, 0, False)))
        repeats = 1
        if top >= left and top + step + right <= length:
            repeats = max(1, min(most, length - right - top) // step)
        yield Block(slice(top, bottom), slice(first, last), repeats, found)
        top += repeats * step


def _global_hidden(
    index: Tensor | None, first: int, gap: int, window: tuple[int, int], causal: bool, rows: slice
) -> Tensor | None:
    """(rows, G), True where a global column is not for a row; None if there is no such place.

    It may stand in the row's band, where it counts already, or be later than a causal row may see.
    """
    if index is None:
        return None
    row = torch.arange(first + rows.start * gap, first + rows.stop * gap, gap, device=index.device)
    distance = index - row[:, None]
    hidden = (distance >= -window[0] * gap) & (distance <= window[1] * gap)
    if gap > 1:
        hidden &= distance % gap == 0
    if causal:
        hidden |= distance > 0
    return hidden if bool(hidden.any()) else None


def _occupied(key_mask: Tensor | None, b: int, seq_len: int) -> tuple[slice, Tensor | None]:
    """The range from the first to the last token that is no padding, and a mask of that range if it has holes."""
    if key_mask is None:
        return slice(0, seq_len), None
    present = key_mask[b].nonzero().squeeze(1)
    if not len(present):
        return slice(0, 0), None
    first, stop = int(present[0]), int(present[-1]) + 1
    # A copy, since the backward pass reads it again, and the caller's mask may have changed by then.
    return slice(first, stop), None if len(present) == stop - first else key_mask[b, first:stop].clone()


def _head_runs(dilation: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Neighbouring heads of one dilation, as slices."""
    start = 0
    for head in range(1, len(dilation) + 1):
        if head == len(dilation) or dilation[head] != dilation[start]:
            yield slice(start, head), dilation[start]
            start = head


def shifted(span: slice, by: int) -> slice:
    """``span``, ``by`` further on."""
    return slice(span.start + by, span.stop + by)
