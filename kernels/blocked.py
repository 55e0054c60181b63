"""The implementation to run on a CPU: tiles of queries against the keys that they see, in linear memory.

A tile is T rows and the columns of their band, at most T + W - 1 (``tiles.py`` says which). The global columns beside
the band are a tile of their own. A tile's scores stay in the processor's cache and are never written to memory as a
whole. A tile gives, for each of its rows, the largest score m, the sum l of exp(s - m), and O, the sum of the values
weighted by exp(s - m). Two tiles of the same rows become one:

    m = max(m₁, m₂)        l = exp(m₁ - m) l₁ + exp(m₂ - m) l₂        O = exp(m₁ - m) O₁ + exp(m₂ - m) O₂

In the end O is divided by l, and m + log l is the row's log-sum-exp L. The backward pass keeps the inputs and L. It
computes each tile's weights exp(s - L) once more, and divides them by their sum over the row, so that the row's
probabilities P sum to 1 however L was rounded. With dO the gradient of the output,

    dV += Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - δ)      dQ += dS K · scale      dK += dSᵀ Q · scale

where δ are the row sums of P ∘ dP over all tiles of the row (the softmax's Jacobian, diag(p) - p pᵀ for a row p of P,
applied to dP). They equal the row sums of dO ∘ O, which is how kernels that never hold a whole row get them; summed
from P itself they cancel better. Tiles are visited in one fixed order, so that equal inputs give equal bits. Dropout
multiplies P by a mask drawn tile by tile from a seed, which is kept; dP is multiplied by the same mask.

Everything here is written out in products, powers of two (of scores times log₂ e) and sums. ``fused`` leaves a band
tile's forward pass to torch's own fused attention, which gives O / l and L. It keeps a tile's scores in float32 where
the inputs are bfloat16 or float16: that is both faster and more exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import compat
from .problem import LOG2_E, Problem
from .scratch import Dropout, Scratch
from .tiles import Block, Piece, cut, shifted


def forward(
    query: Tensor, key: Tensor, value: Tensor, problem: Problem, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, see ``problem.py``.

    Args:
        fused: leave a tile's attention to torch's own. It has no dropout, see :func:`fused_refusal`.
    """
    if _may_overflow(query, key, problem.scale):
        problem = dataclasses.replace(problem)  # the backward pass shall not find these pieces, cut for float32
        out, lse = forward(query.float(), key.float(), value.float(), problem, fused=fused)
        return out.to(query.dtype), lse
    if fused:
        query, key, value = (_without_gaps(x) for x in (query, key, value))
    pieces = _pieces(query, key, problem, fused)
    out = _new(query, query.dtype, zero=problem.tokens.keep is not None)
    to = Scratch(query)
    drop, drop_global = _dropouts(problem, query.device)
    top = query.new_full((*query.shape[:3], 1), math.inf, dtype=to.dtypes[1])
    total = torch.ones_like(top)
    for piece in pieces:
        views = _views(piece, query, key, value)
        results = [x[piece.batch, piece.heads, piece.rows] for x in (out, top, total)]
        for block in piece.blocks:
            if fused:
                for result, found in zip(results, _fused_forward(piece, block, views, problem.scale), strict=False):
                    result[:, block.all_rows] = found  # with a sum of 1
            else:
                for rows, columns in block.tiles():
                    queries, keys = views.query[:, rows], views.key[:, columns]
                    scores = _band_scores(piece, block, columns, queries, keys, problem.scale, to)
                    part = _tile_forward(scores, views.value[:, columns], drop, to)
                    for result, found in zip(results, part, strict=True):
                        result[:, rows] = found
                    if views.global_key is None and not to.is_narrow:
                        results[0][:, rows].div_(part[2])
            if views.global_key is not None and views.global_value is not None:
                rows = block.all_rows
                scores = _global_scores(piece, rows, views.query[:, rows], views.global_key, problem.scale, to)
                part = _tile_forward(scores, views.global_value, drop_global, to)
                _merge([x[:, rows] for x in results], part, to)
        if piece.column_mask is not None and piece.padded_rows:
            # Padding has perhaps nothing to attend to, and is 0 in any case.
            for result, nothing in zip(results, (0.0, math.inf, 1.0), strict=True):
                result.masked_fill_(~piece.column_mask[:, None], nothing)
    if not fused or any(piece.global_index is not None for piece in pieces):  # otherwise every sum is 1
        top.add_(total.log2_())
    return out, top.squeeze(-1)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor | None,
    lse: Tensor,
    problem: Problem,
    *,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, with what :func:`forward` took and gave; ``out`` is not read."""
    if _may_overflow(query, key, problem.scale):
        wide = [x.float() for x in (grad_out, query, key, value)]
        grads = backward(wide[0], wide[1], wide[2], wide[3], None, lse, dataclasses.replace(problem, cut=None))
        return grads[0].to(query.dtype), grads[1].to(query.dtype), grads[2].to(query.dtype)
    pieces, scale, shift = _pieces(query, key, problem, fused), problem.scale, lse[..., None]
    to, to_global = Scratch(query), Scratch(query)
    drop, drop_global = _dropouts(problem, query.device)
    grad_query = _new(query, query.dtype, zero=problem.tokens.keep is not None)
    # A key's gradient is a sum over the tiles that see it: held in float32 at least, to be rounded once.
    grad_key, grad_value = (_new(x, to.dtypes[1], zero=True) for x in (key, value))
    for piece in pieces:
        views = _views(piece, query, key, value)
        b, heads, index = piece.batch, piece.heads, piece.global_index
        piece_grad = _rows(piece, grad_out)
        piece_shift, to_query = (x[b, heads, piece.rows] for x in (shift, grad_query))
        of_columns = [x[b, heads, piece.columns] for x in (grad_key, grad_value)]
        of_globals = [x.new_zeros(x.shape[0], 0 if index is None else len(index), x.shape[2]) for x in of_columns]
        for block in piece.blocks:
            every, first = block.all_rows, block.rows.start
            totals, deltas = (torch.zeros_like(piece_shift[:, every]) for _ in range(2))
            if views.global_key is not None and views.global_value is not None:
                block_grad, block_queries = piece_grad[:, every], views.query[:, every]
                scores = _global_scores(piece, every, block_queries, views.global_key, scale, to_global)
                beside = _tile_gradient(
                    scores, piece_shift[:, every], block_grad, views.global_value, drop_global, to_global
                )
                beside.add_sums(totals, deltas, to_global)
            for rows, columns in block.tiles():
                queries, keys, grad = views.query[:, rows], views.key[:, columns], piece_grad[:, rows]
                total, delta = (x[:, shifted(rows, -first)] for x in (totals, deltas))
                scores = _band_scores(piece, block, columns, queries, keys, scale, to)
                tile = _tile_gradient(scores, piece_shift[:, rows], grad, views.value[:, columns], drop, to)
                tile.add_sums(total, delta, to)
                delta.div_(total.masked_fill_(total == 0, 1.0))  # padding's
                received = [x[:, columns] for x in of_columns]
                to_query[:, rows] = _tile_backward(tile, total, delta, grad, queries, keys, received, scale, drop, to)
            if views.global_key is not None:
                to_query[:, every] += _tile_backward(
                    beside,
                    totals,
                    deltas,
                    block_grad,
                    block_queries,
                    views.global_key,
                    of_globals,
                    scale,
                    drop_global,
                    to_global,
                )
        if index is not None:
            for to_columns, sums in zip((grad_key, grad_value), of_globals, strict=True):
                to_columns[b, heads].index_add_(1, index, sums)
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def fused_refusal(query: Tensor, dropout_p: float) -> str | None:
    """Why torch's fused attention cannot serve ``query``; None if it can."""
    if query.device.type != "cpu" or compat.flash_attention_for_cpu is None:
        return f"this torch has no fused attention with a log-sum-exp on {query.device.type}"
    return "torch's fused attention has no dropout on a CPU" if dropout_p else None


def _may_overflow(query: Tensor, key: Tensor, scale: float) -> bool:
    """Whether a score may be larger than float16 can hold. Then everything is computed in float32."""
    if query.dtype != torch.float16:
        return False
    largest = [float(torch.linalg.vector_norm(x, math.inf, dtype=torch.float32)) for x in (query, key)]
    bound = query.shape[-1] * largest[0] * largest[1] * max(1.0, abs(scale) * LOG2_E)
    return not bound < torch.finfo(torch.float16).max  # true of NaN, which may stand at padding


def _without_gaps(x: Tensor) -> Tensor:
    """``x`` with a head's numbers side by side, as torch's fused attention wants them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _pieces(query: Tensor, key: Tensor, problem: Problem, fused: bool) -> list[Piece]:
    if problem.cut is None:
        problem.cut = cut(query, key, problem, fused)
    pieces: list[Piece] = problem.cut
    return pieces


def _dropouts(problem: Problem, device: torch.device) -> tuple[Dropout, Dropout]:
    """Of the band and of the global columns beside it."""
    seed = 0 if problem.seed is None else int(problem.seed)
    return Dropout(problem.dropout_p, seed, device), Dropout(problem.dropout_p, seed + 1, device)


class _Views(NamedTuple):
    """A piece's rows and columns in the tensors, as (H, T, D) views, and its gathered global columns."""

    query: Tensor
    key: Tensor
    value: Tensor
    global_key: Tensor | None
    global_value: Tensor | None


def _views(piece: Piece, query: Tensor, key: Tensor, value: Tensor) -> _Views:
    b, heads, index = piece.batch, piece.heads, piece.global_index
    return _Views(
        _rows(piece, query),
        _columns(piece, key),
        _columns(piece, value),
        None if index is None else key[b, heads][:, index],
        None if index is None else value[b, heads][:, index],
    )


def _rows(piece: Piece, x: Tensor) -> Tensor:
    """A piece's rows of (B, H, R, D), with zeros at padding: NaN there would reach a product's every sum."""
    rows = x[piece.batch, piece.heads, piece.rows]
    mask = piece.column_mask if piece.padded_rows else None
    return rows if mask is None else rows.masked_fill(~mask[:, None], 0.0)


def _columns(piece: Piece, x: Tensor) -> Tensor:
    """A piece's columns of (B, H, S, D), likewise."""
    columns = x[piece.batch, piece.heads, piece.columns]
    return columns if piece.column_mask is None else columns.masked_fill(~piece.column_mask[:, None], 0.0)


def _band_scores(
    piece: Piece, block: Block, columns: slice, queries: Tensor, keys: Tensor, scale: float, to: Scratch
) -> Tensor:
    """Scores (H, T, columns) of a tile, times log₂ e, and -inf where a row does not see a column."""
    scores = to.product("scores", queries, keys.transpose(1, 2), scale * LOG2_E)
    for span, ceiling in block.ceilings:
        band = scores[..., span]
        torch.minimum(band, ceiling, out=band)
    if piece.column_mask is not None:
        scores.masked_fill_(~piece.column_mask[columns], -math.inf)
    return scores


def _global_scores(piece: Piece, rows: slice, queries: Tensor, keys: Tensor, scale: float, to: Scratch) -> Tensor:
    """Scores (H, rows, G) of all of a block's rows with the global columns, likewise."""
    scores = to.product("scores", queries, keys.transpose(1, 2), scale * LOG2_E)
    hidden = piece.global_hidden(rows)
    return scores if hidden is None else scores.masked_fill_(hidden, -math.inf)


def _tile_forward(scores: Tensor, values: Tensor, drop: Dropout, to: Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of a tile (H, T, D), still to be divided by its sum of weights, and the row's top and sum (H, T, 1)."""
    # The least number instead of -inf, so that the weights of a row that sees nothing are 0 and not NaN.
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min).to(to.dtypes[1])
    weights = to.exp2_of_difference(scores, top)
    total = weights.sum(-1, keepdim=True)
    if to.is_narrow:  # float16 has no room for sums of values that are yet to be divided
        weights.div_(total.clamp(min=1))
        top.add_(total.log2())
        total.fill_(1)
    if drop.dropped:
        weights.mul_(drop.kept(weights.shape, to))
    return to.product("out", to.narrow("scores", weights), values, drop.factor), top, total


class _TileGradient(NamedTuple):
    """What the backward pass knows of a tile before its rows' sums: (H, T, columns) each, in at least float32.

    Weights, the same after dropout, and the gradient of the probabilities.
    """

    weights: Tensor
    dropped: Tensor
    grad_probs: Tensor

    def add_sums(self, total: Tensor, delta: Tensor, to: Scratch) -> None:
        """Adds to (H, T, 1) the row sums of weights and of weights ∘ dP."""
        total.add_(self.weights.sum(-1, keepdim=True))
        products = torch.mul(self.weights, self.grad_probs, out=to.take("products", self.weights.shape, wide=True))
        delta.add_(products.sum(-1, keepdim=True))


def _tile_gradient(
    scores: Tensor, top: Tensor, grad: Tensor, values: Tensor, drop: Dropout, to: Scratch
) -> _TileGradient:
    weights = to.exp2_of_difference(scores, top)
    grad_probs = to.widen("grad", to.product("grad", grad, values.transpose(1, 2), drop.factor))
    dropped = weights
    if drop.dropped:
        kept = drop.kept(weights.shape, to)
        grad_probs.mul_(kept)
        dropped = kept.mul_(weights)
    return _TileGradient(weights, dropped, grad_probs)


def _tile_backward(
    tile: _TileGradient,
    total: Tensor,
    delta: Tensor,
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    grad_columns: Sequence[Tensor],
    scale: float,
    drop: Dropout,
    to: Scratch,
) -> Tensor:
    """Adds to the gradients of a tile's keys and values, and gives that of its queries (H, T, D), in scratch memory."""
    weights, dropped = tile.weights, tile.dropped
    if to.is_narrow:  # P is the weights over their sum
        weights = weights.div_(total)
        dropped = dropped.div_(total) if drop.dropped else weights
    else:  # where there is room, the sum divides the smaller factor of each product instead
        queries, grad = queries / total, grad / total
    grad_scores = to.narrow("grad", tile.grad_probs.sub_(delta).mul_(weights))
    grad_keys, grad_values = grad_columns
    grad_keys.add_(to.product("received", grad_scores.transpose(1, 2), queries, scale))
    grad_values.add_(to.product("received", to.narrow("scores", dropped).transpose(1, 2), grad, drop.factor))
    grad_queries = to.product("out", grad_scores, keys, scale)
    return grad_queries if to.is_narrow else grad_queries.div_(total)


def _fused_forward(piece: Piece, block: Block, views: _Views, scale: float) -> tuple[Tensor, Tensor]:
    """Attention within the band of all of a block's tiles, in one call: (H, rows, D), and log-sum-exp (H, rows, 1)."""
    step = block.rows.stop - block.rows.start

    def tiles(x: Tensor, first: slice) -> Tensor:
        """(H, length, ...) to (repeats, H, size, ...): overlapping views, each ``step`` further on."""
        size = first.stop - first.start
        rows = x[:, first.start : first.stop + (block.repeats - 1) * step]
        return rows.unfold(1, size, step).movedim(-1, 2).transpose(0, 1)

    bias = None
    if block.ceilings or piece.column_mask is not None:
        bias = views.query.new_zeros(1, 1, step, block.columns.stop - block.columns.start)
        for span, ceiling in block.ceilings:
            bias[..., span] = torch.minimum(bias[..., span], ceiling)
        if piece.column_mask is not None:
            bias = bias.masked_fill(~tiles(piece.column_mask[None], block.columns)[:, :, None], -math.inf)
    attention = compat.flash_attention_for_cpu
    assert attention is not None
    out, lse = attention(
        tiles(views.query, block.rows),
        tiles(views.key, block.columns),
        tiles(views.value, block.columns),
        attn_mask=bias,
        scale=scale,
    )
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1)[..., None] * LOG2_E


def _merge(rows: Sequence[Tensor], part: Sequence[Tensor], to: Scratch) -> None:
    """Attention, top and sum of some rows joined by those of another tile of theirs, in place; attention is divided."""
    (out, top, total), (part_out, part_top, part_total) = rows, part
    both = torch.maximum(top, part_top)
    old, new = (top - both).exp2_(), (part_top - both).exp2_()
    total.mul_(old).addcmul_(part_total, new)
    scaled = torch.mul(out, old.div_(total), out=to.take("scaled", out.shape, wide=True))
    torch.addcmul(scaled, part_out, new.div_(total), out=out)
    top.copy_(both)


def _new(x: Tensor, dtype: torch.dtype, *, zero: bool) -> Tensor:
    """A new (B, H, S, D) that lies in memory as (B, S, H, D), the layout in which a model reads it on."""
    batch, heads, seq_len, head_dim = x.shape
    make = x.new_zeros if zero else x.new_empty
    return make(batch, seq_len, heads, head_dim, dtype=dtype).transpose(1, 2)
