"""Which rows meet which columns: an attention problem cut into pieces, blocks and tiles, for the CPU.

A tile is T rows and the columns of their band, at most T + W - 1. Two triangles of this rectangle, at its left and its
right end, lie outside the band. They are masked. A window dilated by d joins only tokens whose positions are equal
modulo d. So each of the d classes of tokens is a separate piece, which is read with stride d. No piece contains the
padding at the two ends of a sequence.
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

# Rows T of a tile. A share T/W of a tile's arithmetic falls into the triangles, so large tiles waste work. Small
# products are slow. Torch's fused attention, by the number of bytes of one entry, is slow in small parts too.
ROWS = 64
FUSED_ROWS = {2: 256, 4: 64, 8: 64}
DENSE_ROWS = 256  # if every row's window covers the complete sequence, so that there are no triangles
BLOCK_ROWS = 512  # neighbouring tiles are computed at once up to this number of rows, if they have equal shapes
MOST_SCORES = 1 << 20  # so many scores of global rows at a time fit into the processor's cache


class Block(NamedTuple):
    """A few neighbouring tiles of equal shape.

    rows, columns: of the first tile. Each tile starts where the rows of the one before it end, and its columns move on
        by the same number.
    repeats: number of tiles.
    ceilings: ranges of a tile's columns that need a mask. Each comes with the upper limits (rows, range) of its scores:
        -inf where a row does not see a column, +inf elsewhere.
    """

    rows: slice
    columns: slice
    repeats: int
    ceilings: list[tuple[slice, Tensor]]

    @property
    def all_rows(self) -> slice:
        """The rows of all tiles."""
        return slice(self.rows.start, self.rows.start + self.repeats * (self.rows.stop - self.rows.start))

    @property
    def all_columns(self) -> slice:
        """The columns of all tiles."""
        return slice(self.columns.start, self.columns.stop + self.all_rows.stop - self.rows.stop)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile."""
        for shift in range(0, self.all_rows.stop - self.rows.start, self.rows.stop - self.rows.start):
            yield shifted(self.rows, shift), shifted(self.columns, shift)


class Piece(NamedTuple):
    """One independent attention problem: heads of an example, or one residue class of a dilated window.

    batch, heads, rows, columns: where the piece lies in (B, H, S, D).
    blocks: gives the tiles, several in each block, for the dtype that is computed in, and for torch's fused attention
        (True) or products by hand (False).
    column_mask: (columns,) bool, False at padding; None if there is no padding.
    global_index: (G,) positions of the global columns that lie outside the band of some row; None if there are none.
    global_hidden: a function of a block's rows. It returns a mask (rows, G), True where a global column is not counted
        beside a row's band.
    padded_rows: whether ``column_mask`` applies to the rows as well.
    """

    batch: int
    heads: slice
    rows: slice
    columns: slice
    blocks: Callable[[torch.dtype, bool], Iterator[Block]]
    column_mask: Tensor | None
    global_index: Tensor | None
    global_hidden: Callable[[slice], Tensor | None]
    padded_rows: bool


def pieces_of(query: Tensor, key: Tensor, problem: Problem) -> list[Piece]:
    """The pieces of a problem, which keeps them for its backward pass.

    Query (B, H, R, D) and key (B, H, S, D) only provide shapes and device.
    """
    if problem.cut is None:
        problem.cut = _row_pieces(query, key, problem) if problem.gathered else _band_pieces(query, problem)
    pieces: list[Piece] = problem.cut
    return pieces


def rows_of(piece: Piece, x: Tensor) -> Tensor:
    """A piece's rows of (B, H, R, D), with zeros at padding: NaN there would reach a product's every sum."""
    rows = x[piece.batch, piece.heads, piece.rows]
    mask = piece.column_mask if piece.padded_rows else None
    return rows if mask is None else rows.masked_fill(~mask[:, None], 0.0)


def columns_of(piece: Piece, x: Tensor) -> Tensor:
    """A piece's columns of (B, H, S, D), likewise."""
    columns = x[piece.batch, piece.heads, piece.columns]
    return columns if piece.column_mask is None else columns.masked_fill(~piece.column_mask[:, None], 0.0)


def new_result(x: Tensor, dtype: torch.dtype, *, zero: bool) -> Tensor:
    """A new (B, H, S, D) that lies in memory as (B, S, H, D), the layout in which a model reads it on."""
    batch, heads, seq_len, head_dim = x.shape
    make = x.new_zeros if zero else x.new_empty
    return make(batch, seq_len, heads, head_dim, dtype=dtype).transpose(1, 2)


def _band_pieces(query: Tensor, problem: Problem) -> list[Piece]:
    """Pieces of a sliding window over all tokens."""
    pattern, tokens = problem.pattern, problem.tokens
    batch, count, seq_len, _ = query.shape
    left, right = pattern.sides(seq_len)
    runs = pattern.head_runs(count)
    pieces = []
    ceilings = Ceilings(query.device)
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
                # If every row's band contains all that the row may see, no global column lies outside the band.
                everything = gap == 1 and left >= length - 1 and (pattern.causal or right >= length - 1)
                beside = None if everything else index
                blocks = partial(_band_blocks, length, (left, right), ceilings)
                hidden = GlobalHidden(pattern, beside, first, gap, length)
                pieces.append(Piece(b, heads, rows, rows, blocks, piece_mask, beside, hidden, True))
    return pieces


def _row_pieces(query: Tensor, key: Tensor, problem: Problem) -> list[Piece]:
    """Pieces of a few gathered rows (B, H, G, D). Each of these rows sees every column that is not padding."""
    heads, rows = query.shape[1], query.shape[2]
    pieces = []
    for b in range(query.shape[0]):
        span, mask = _occupied(problem.tokens.keep, b, key.shape[2])
        length = span.stop - span.start
        if not length:
            continue
        # A product of few rows is slow, so that heads are parted first.
        step = max(1, min(rows, ROWS, MOST_SCORES // length))
        most = max(1, MOST_SCORES // (step * length))
        blocks = partial(_row_blocks, rows, length, step)
        for first in range(0, heads, most):
            some = slice(first, min(first + most, heads))
            pieces.append(Piece(b, some, slice(0, rows), span, blocks, mask, None, lambda rows: None, False))
    return pieces


class Ceilings:
    """Upper limits of scores in the triangles outside a band, each made once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.made: dict[tuple[int, int, int, bool, torch.dtype], Tensor] = {}

    def get(self, rows: int, width: int, diagonal: int, *, lower: bool, dtype: torch.dtype) -> Tensor:
        """(rows, width), -inf from ``diagonal`` downwards, or from there upwards, and +inf elsewhere."""
        shape = (rows, width, diagonal, lower, dtype)
        if shape not in self.made:
            ones = torch.ones(rows, width, dtype=torch.bool, device=self.device)
            hidden = ones.tril_(diagonal) if lower else ones.triu_(diagonal)
            limits = torch.full(hidden.shape, math.inf, dtype=dtype, device=self.device)
            self.made[shape] = limits.masked_fill_(hidden, -math.inf)
        return self.made[shape]


def _row_blocks(rows: int, length: int, step: int, dtype: torch.dtype, fused: bool) -> Iterator[Block]:
    """Blocks of rows that see every column."""
    step = rows if fused else step
    for first in range(0, rows, step):
        yield Block(slice(first, min(first + step, rows)), slice(0, length), 1, [])


def _band_blocks(
    length: int, window: tuple[int, int], ceilings: Ceilings, dtype: torch.dtype, fused: bool
) -> Iterator[Block]:
    """Blocks over a sequence. Tiles whose bands lie inside the sequence share blocks of at most ``BLOCK_ROWS`` rows."""
    left, right = window
    step = FUSED_ROWS[dtype.itemsize] if fused else ROWS
    if length <= min(left, right) + 1:  # every row's window contains the complete sequence
        step = length if fused else DENSE_ROWS
    top = 0
    while top < length:
        bottom = min(top + step, length)
        first, last = max(0, top - left), min(length, bottom + right)
        found = []
        ahead = bottom - 1 - left - first  # number of columns that are too far left for the last row
        if ahead > 0:
            limits = ceilings.get(bottom - top, ahead, top - left - first - 1, lower=True, dtype=dtype)
            found.append((slice(0, ahead), limits))
        behind = last - (top + right + 1)  # number of columns that are too far right for the first row
        if behind > 0:
            width = last - first
            limits = ceilings.get(bottom - top, behind, 0, lower=False, dtype=dtype)
            found.append((slice(width - behind, width), limits))
        repeats = 1
        if top >= left and top + step + right <= length:
            repeats = max(1, min(BLOCK_ROWS, length - right - top) // step)
        yield Block(slice(top, bottom), slice(first, last), repeats, found)
        top += repeats * step


class GlobalHidden:
    """Of a piece: which global columns are not counted beside a row's band. Of few it is worked out at once.

    ``first``: the position of the piece's first token, of ``length``, each ``gap`` after the one before it.
    """

    def __init__(self, pattern: AttentionPattern, index: Tensor | None, first: int, gap: int, length: int) -> None:
        self.pattern, self.index, self.first, self.gap = pattern, index, first, gap
        self.all_rows = slice(0, length)
        self.whole: Tensor | None = None

    def __call__(self, rows: slice) -> Tensor | None:
        """(rows, G), True where a global column is not counted; None if all of them are. Rows count in the piece."""
        if self.index is None:
            return None
        if self.whole is None and self.all_rows.stop * len(self.index) <= MOST_SCORES:
            self.whole = self._of(self.all_rows)
        hidden = self._of(rows) if self.whole is None else self.whole[rows]
        return hidden if bool(hidden.any()) else None

    def _of(self, rows: slice) -> Tensor:
        assert self.index is not None
        first, stop = (self.first + row * self.gap for row in (rows.start, rows.stop))
        row = torch.arange(first, stop, self.gap, device=self.index.device)
        return ~self.pattern.beside_band(self.index - row[:, None], self.gap)


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
    """The range from the first to the last real token, and a mask of this range if there is padding inside it."""
    if keep is None:
        return slice(0, seq_len), None
    present = keep[b].nonzero().squeeze(1)
    if not len(present):
        return slice(0, 0), None
    first, stop = int(present[0]), int(present[-1]) + 1
    # A copy, because the backward pass reads it too, and the caller may have changed the mask by then.
    return slice(first, stop), None if len(present) == stop - first else keep[b, first:stop].clone()


def shifted(span: slice, by: int) -> slice:
    """``span`` moved on by ``by``."""
    return slice(span.start + by, span.stop + by)
