"""The implementation to run on a CPU: tiles of queries against the keys that they see, in linear memory.

A tile is T rows, the columns of their band, at most T + W - 1 (``tiles.py`` says which), and behind these the global
columns. A global column that is in a row's band counts there alone. A tile's scores s stay in the processor's cache and
are never written to memory as a whole. With m the largest score of a row,

    l = Σ exp(s - m)        O = Σ exp(s - m) v / l        L = m + log l

The backward pass keeps the inputs and L. It computes each tile's weights exp(s - L) once more, and divides them by
their sum over the row, so that the row's probabilities P sum to 1 however L was rounded. With dO the gradient of the
output,

    dV += Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - δ)      dQ = dS K · scale      dK += dSᵀ Q · scale

where δ are the row sums of P ∘ dP (the softmax's Jacobian, diag(p) - p pᵀ for a row p of P, applied to dP). They equal
the row sums of dO ∘ O, which is how kernels that never hold a whole row get them; summed from P itself they cancel
better. Tiles are visited in one fixed order, so that equal inputs give equal bits. Dropout multiplies P by a mask drawn
tile by tile from a seed, which is kept; dP is multiplied by the same mask.

Everything here is written out in products, powers of two (of scores times log₂ e) and sums, in at least float32:
bfloat16 and float16 are converted once, and each result is rounded once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import LOG2_E, Problem
from .scratch import Dropout, Scratch
from .tiles import Block, Piece, columns_of, new_result, pieces_of, rows_of, shifted

NEAR = 1024  # columns that are copied at once, where they are


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, see ``problem.py``."""
    to, drop = Scratch(query), _dropout(problem, query.device)
    out = new_result(query, query.dtype, zero=problem.tokens.keep is not None)
    lse = query.new_full((*query.shape[:3], 1), math.inf, dtype=to.dtype)
    for piece in pieces_of(query, key, problem):
        views = _views(piece, query, key, value, to)
        to_out, to_lse = (x[piece.batch, piece.heads, piece.rows] for x in (out, lse))
        for block in piece.blocks(to.dtype, False):
            hidden = piece.global_hidden(block.all_rows)
            views.key.load(block)
            views.value.load(block)
            for rows, columns in block.tiles():
                keys, values = views.key.of(columns), views.value.of(columns)
                queries = views.query[:, rows].to(to.dtype)
                weights = _scores(piece, block, rows, columns, hidden, queries, keys, problem.scale, to)
                # The least number instead of -inf, so that the weights of a row that sees nothing are 0 and not NaN.
                top = weights.amax(-1, keepdim=True).clamp_(min=torch.finfo(to.dtype).min)
                total = weights.sub_(top).exp2_().sum(-1, keepdim=True)
                if drop.dropped:
                    weights.mul_(drop.kept(weights.shape, to))
                torch.div(to.product("out", weights, values, drop.factor), total, out=to_out[:, rows])
                torch.add(top, total.log2_(), out=to_lse[:, rows])
        if piece.column_mask is not None and piece.padded_rows:
            # Padding has perhaps nothing to attend to, and is 0 in any case.
            to_out.masked_fill_(~piece.column_mask[:, None], 0.0)
            to_lse.masked_fill_(~piece.column_mask[:, None], math.inf)
    return out, lse.squeeze(-1)


def backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor | None, lse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, with what :func:`forward` took and gave; ``out`` is not read."""
    to, drop, scale, shift = Scratch(query), _dropout(problem, query.device), problem.scale, lse[..., None]
    grad_query = new_result(query, query.dtype, zero=problem.tokens.keep is not None)
    # A key's gradient is a sum over the tiles that see it, to be rounded once.
    grad_key, grad_value = (new_result(x, to.dtype, zero=True) for x in (key, value))
    for piece in pieces_of(query, key, problem):
        views = _views(piece, query, key, value, to)
        b, heads, index, count = piece.batch, piece.heads, piece.global_index, views.key.count
        piece_grad = rows_of(piece, grad_out)
        piece_shift, to_query = (x[b, heads, piece.rows] for x in (shift, grad_query))
        to_key, to_value = (x[b, heads, piece.columns] for x in (grad_key, grad_value))
        key_globals, value_globals = (x.new_zeros(x.shape[0], count, x.shape[2]) for x in (to_key, to_value))
        for block in piece.blocks(to.dtype, False):
            hidden = piece.global_hidden(block.all_rows)
            views.key.load(block)
            views.value.load(block)
            for rows, columns in block.tiles():
                queries, grad = views.query[:, rows].to(to.dtype), piece_grad[:, rows].to(to.dtype)
                keys, values = views.key.of(columns), views.value.of(columns)
                weights = _scores(piece, block, rows, columns, hidden, queries, keys, scale, to)
                weights.sub_(piece_shift[:, rows]).exp2_()
                grad_probs = to.product("grad", grad, values.transpose(1, 2), drop.factor)
                dropped = weights
                if drop.dropped:
                    kept = drop.kept(weights.shape, to)
                    grad_probs.mul_(kept)
                    dropped = kept.mul_(weights)
                total = weights.sum(-1, keepdim=True)
                total.masked_fill_(total == 0, 1.0)  # padding's
                delta = torch.mul(weights, grad_probs, out=to.take("third", weights.shape)).sum(-1, keepdim=True)
                # P is the weights over their sum. The sum divides the smaller factor of each product instead.
                grad_scores = grad_probs.sub_(delta.div_(total)).mul_(weights)
                to_query[:, rows] = to.product("out", grad_scores, keys, scale).div_(total)
                received = to.product("third", grad_scores.transpose(1, 2), queries / total, scale)
                width = columns.stop - columns.start
                to_key[:, columns].add_(received[:, :width])
                if count:
                    key_globals.add_(received[:, width:])
                received = to.product("third", dropped.transpose(1, 2), grad / total, drop.factor)
                to_value[:, columns].add_(received[:, :width])
                if count:
                    value_globals.add_(received[:, width:])
        if index is not None:
            for all_columns, sums in ((grad_key, key_globals), (grad_value, value_globals)):
                all_columns[b, heads].index_add_(1, index, sums)
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def _dropout(problem: Problem, device: torch.device) -> Dropout:
    return Dropout(problem.dropout_p, 0 if problem.seed is None else int(problem.seed), device)


class _Views(NamedTuple):
    """What a piece reads. query: (H, rows, D)."""

    query: Tensor
    key: _Columns
    value: _Columns


class _Columns:
    """Keys or values of a piece (H, columns, D). A tile takes its band's and behind them ``count`` global ones.

    Where there are global ones, or the precision differs, the columns are copied, a part at a time. In the copy the
    global columns lie over those that follow the tile's, which come back when the next tile is taken.
    """

    def __init__(self, piece: Piece, x: Tensor, name: str, to: Scratch) -> None:
        self.all, self.name, self.to, self.count = columns_of(piece, x), name, to, 0
        if piece.global_index is not None:
            self.count = len(piece.global_index)
            self.globals = x[piece.batch, piece.heads][:, piece.global_index]
        self.copied = bool(self.count) or x.dtype != to.dtype
        self.span = slice(0, 0)

    def load(self, block: Block) -> None:
        """To be called before a block's first tile."""
        wanted = block.all_columns
        if not self.copied or (self.span.start <= wanted.start and wanted.stop <= self.span.stop):
            return
        stop = min(max(wanted.stop, wanted.start + NEAR), self.all.shape[1])
        self.span, self.covered = slice(wanted.start, stop), slice(0, 0)
        width = stop - wanted.start
        self.near = self.to.take(self.name, (self.all.shape[0], width + self.count, self.all.shape[2]))
        self.near[:, :width] = self.all[:, self.span]

    def of(self, columns: slice) -> Tensor:
        """(H, columns + G, D) of a tile. It may be read until the next one is taken."""
        if not self.copied:
            return self.all[:, columns]
        start, stop = columns.start - self.span.start, columns.stop - self.span.start
        if self.count:
            if self.covered.stop > self.covered.start:
                self.near[:, self.covered] = self.all[:, shifted(self.covered, self.span.start)]
            self.near[:, stop : stop + self.count] = self.globals
            self.covered = slice(stop, min(stop + self.count, self.span.stop - self.span.start))
        return self.near[:, start : stop + self.count]


def _views(piece: Piece, query: Tensor, key: Tensor, value: Tensor, to: Scratch) -> _Views:
    return _Views(rows_of(piece, query), _Columns(piece, key, "keys", to), _Columns(piece, value, "values", to))


def _scores(
    piece: Piece,
    block: Block,
    rows: slice,
    columns: slice,
    hidden: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    scale: float,
    to: Scratch,
) -> Tensor:
    """Scores (H, T, columns + G) of a tile, times log₂ e, and -inf where a row does not see a column.

    ``hidden``: (rows of the block, G), True where a global column is not counted beside a row's band; None: nowhere.
    """
    scores = to.product("scores", queries, keys.transpose(1, 2), scale * LOG2_E)
    band = scores[..., : columns.stop - columns.start]
    for span, ceiling in block.ceilings:
        cut_off = band[..., span]
        torch.minimum(cut_off, ceiling, out=cut_off)
    if piece.column_mask is not None:
        band.masked_fill_(~piece.column_mask[columns], -math.inf)
    if hidden is not None:
        scores[..., band.shape[2] :].masked_fill_(hidden[shifted(rows, -block.rows.start)], -math.inf)
    return scores
