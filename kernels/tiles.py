"""Which rows meet which columns: an attention problem cut into pieces, blocks and tiles, for ``blocked.py``.

A tile is T rows and the columns of their band, at most T + W - 1. Two triangles of this rectangle, at its left and its
right end, lie outside the band. They are masked, and nothing else is. A window dilated by d joins only tokens whose
positions are equal modulo d. So each of the d classes of tokens is a piece of its own, which is read through a stride.
Padding at either end of a sequence is in no piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .pattern import AttentionPattern, Tokens
from .problem import Problem

# Rows T of a tile, by the bytes of a number. In large tiles much arithmetic falls into the triangles, a share of T/W.
# Small products are slow.
ROWS = {2: 128, 4: 64, 8: 64}
FUSED_ROWS = {2: 256, 4: 64, 8: 64}
DENSE_ROWS = 256  # where every row's window holds the whole sequence, so that there are no triangles
BLOCK_ROWS = 512  # as many rows of neighbouring tiles are handled in one go, where that is possible
MOST_SCORES = 1 << 20  # of global rows or columns at a time, so that they stay in the processor's cache


class Block(NamedTuple):
    """A few neighbouring tiles of equal shape.

    rows, columns: of the first tile. Each next tile stands further on by the number of a tile's rows.
    repeats: number of tiles.
    ceilings: some ranges of a tile's columns, each with the most (rows, range) that a score there may be: -inf where a
        row does not see a column, +inf elsewhere.
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

    batch, heads, rows, columns: where its rows and columns stand in (B, H, S, D).
    blocks: its tiles, a few at a time.
    column_mask: (columns,) bool, False at padding; None if there is none.
    global_index: (G,) positions of the global columns that stand beside the band of some row; None if none does.
    global_hidden: gives for a block's rows the (rows, G) mask of global columns that do not count beside their bands.
    padded_rows: whether ``column_mask`` holds for the rows too.
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


def cut(query: Tensor, key: Tensor, problem: Problem, fused: bool) -> list[Piece]:
    """The pieces of a problem. Query (B, H, R, D) and key (B, H, S, D) give shapes, dtype and device."""
    return _row_pieces(query, key, problem, fused) if problem.gathered else _band_pieces(query, problem, fused)


def _band_pieces(query: Tensor, problem: Problem, fused: bool) -> list[Piece]:
    """Pieces of a sliding window over all tokens."""
    pattern, tokens = problem.pattern, problem.tokens
    batch, count, seq_len, _ = query.shape
    left, right = pattern.sides(seq_len)
    runs = pattern.head_runs(count)
    pieces = []
    ceilings: dict[tuple[int, int, int, bool], Tensor] = {}
    for b in range(batch):
        span, mask = _occupied(tokens.keep, b, seq_len)
        index = _global_positions(tokens, b)
        for heads, gap in runs:
            for first in range(span.start, min(span.start + gap, span.stop)):
                rows = slice(first, span.stop, gap)  # tokens that a window with this gap can join
                length = len(range(first, span.stop, gap))
                piece_mask = None if mask is None else mask[first - span.start :: gap]
                if piece_mask is not None and bool(piece_mask.all()):
                    piece_mask = None
                # Where every row's band holds all that the row may see, no global column stands beside it.
                everything = gap == 1 and left >= length - 1 and (pattern.causal or right >= length - 1)
                beside = None if everything else index
                most = BLOCK_ROWS
                if beside is not None:
                    most = min(most, MOST_SCORES // ((heads.stop - heads.start) * len(beside)))
                blocks = list(_band_blocks(length, (left, right), most, ceilings, query, fused))
                hidden = partial(_global_hidden, pattern, beside, first, gap)
                pieces.append(Piece(b, heads, rows, rows, blocks, piece_mask, beside, hidden, True))
    return pieces


def _row_pieces(query: Tensor, key: Tensor, problem: Problem, fused: bool) -> list[Piece]:
    """Pieces of a few gathered rows (B, H, G, D), each of which sees every column that is no padding."""
    heads, rows = query.shape[1], query.shape[2]
    pieces = []
    for b in range(query.shape[0]):
        span, mask = _occupied(problem.tokens.keep, b, key.shape[2])
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
    """Blocks over a sequence. Tiles whose whole band lies inside it share a block of up to ``most`` rows."""
    left, right = window
    step = (FUSED_ROWS if fused else ROWS)[like.element_size()]
    if length <= min(left, right) + 1:  # every row's window holds all of it
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


def _global_hidden(pattern: AttentionPattern, index: Tensor | None, first: int, gap: int, rows: slice) -> Tensor | None:
    """(rows, G), True where a global column does not count for a row beside its band; None if there is no such place.

    ``first`` is the piece's first token. The rows are counted within the piece.
    """
    if index is None:
        return None
    row = torch.arange(first + rows.start * gap, first + rows.stop * gap, gap, device=index.device)
    hidden = ~pattern.beside_band(index - row[:, None], gap)
    return hidden if bool(hidden.any()) else None


def _global_positions(tokens: Tokens, b: int) -> Tensor | None:
    """(G,) positions of the global tokens of example b; None if it has none."""
    if tokens.global_index is not None:
        index = tokens.global_index[b]
        index = index[index >= 0]
    elif tokens.is_global is not None:
        index = tokens.is_global[b].nonzero().squeeze(1)
    else:
        return None
    return index if len(index) else None


def _occupied(keep: Tensor | None, b: int, seq_len: int) -> tuple[slice, Tensor | None]:
    """The range from the first to the last token that is no padding, and a mask of that range if it has holes."""
    if keep is None:
        return slice(0, seq_len), None
    present = keep[b].nonzero().squeeze(1)
    if not len(present):
        return slice(0, 0), None
    first, stop = int(present[0]), int(present[-1]) + 1
    # A copy, since the backward pass reads it again, and the caller's mask may have changed by then.
    return slice(first, stop), None if len(present) == stop - first else keep[b, first:stop].clone()


def shifted(span: slice, by: int) -> slice:
    """``span``, ``by`` further on."""
    return slice(span.start + by, span.stop + by)
