"""The implementation to run on a CPU: blocks of queries against the keys that they see, in linear memory.

A block of T rows meets the global columns and the at most T + W - 1 columns of its band in two dense products, and
one softmax runs over both. What of that rectangle lies off the band are two triangles at its ends: these, and nothing
else, are masked. All columns of a row stand in one block, so that its softmax is done in one go, and the block's
scores stay in the processor's cache: they are never written to memory as a whole.

The backward pass keeps nothing but inputs and output. It computes each block's probabilities P again, bit for bit,
and with dO the gradient of the output O and δ the row sums of dO ∘ O,

    dV += Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - δ)      dQ = dS K · scale      dK += dSᵀ Q · scale

(the softmax's Jacobian, diag(p) - p pᵀ for a row p of P, applied to dP). Blocks are visited in one fixed order, so
that equal inputs give equal bits. Dropout multiplies P by a mask drawn block by block from a seed, which is kept; then
dP is multiplied by it too, and δ, the row sums of P ∘ dP, is still what stands above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 64  # rows of a block in a band: its masked triangles cost T/W of the arithmetic, but small products are slow
MOST_SCORES = 1 << 20  # the most scores a block may hold, so that they stay in the cache


class _Block(NamedTuple):
    """Rows that meet columns; ``hidden`` are ranges of those columns with the (rows, range) mask of what is unseen."""

    rows: slice
    columns: slice
    hidden: list[tuple[slice, Tensor]]


class _Piece(NamedTuple):
    """One independent attention problem: heads of an example, or one residue class of a dilated window.

    Index of its rows and columns in (B, H, S, D), the blocks over them, a mask of columns that are not padding (None:
    none is), and the global columns' positions with the mask, by block, of where they are not to be seen: inside the
    band, where they count already, or later than a causal row.
    """

    batch: int
    heads: slice
    rows: slice
    columns: slice
    blocks: list[_Block]
    column_mask: Tensor | None
    global_index: Tensor | None
    global_hidden: list[Tensor | None]


def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: tuple[int, int],
    *,
    dilation: Sequence[int],
    causal: bool,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`longformer.kernels.sliding_window_attention`, which checks the arguments."""
    pieces = _band_pieces(query, window, dilation, causal, key_mask, global_mask)
    return _attend(query, key, value, pieces, scale, dropout_p)


def global_attention(
    query: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None, scale: float, dropout_p: float
) -> Tensor:
    """See :func:`longformer.kernels.global_attention`, which checks the arguments."""
    heads, rows = query.shape[1], query.shape[2]
    pieces = []
    for b in range(query.shape[0]):
        span, mask = _occupied(key_mask, b, key.shape[2])
        if span.start == span.stop:
            continue
        step = max(1, MOST_SCORES // (heads * (span.stop - span.start)))
        columns = slice(0, span.stop - span.start)
        blocks = [_Block(slice(r, min(r + step, rows)), columns, []) for r in range(0, rows, step)]
        pieces.append(_Piece(b, slice(0, heads), slice(0, rows), span, blocks, mask, None, [None] * len(blocks)))
    return _attend(query, key, value, pieces, scale, dropout_p)


def _attend(query: Tensor, key: Tensor, value: Tensor, pieces: list[_Piece], scale: float, dropout_p: float) -> Tensor:
    seed = int(torch.randint(2**62, ())) if dropout_p else 0
    out: Tensor = _Attention.apply(query, key, value, pieces, scale, dropout_p, seed)
    return out


# ---- which rows meet which columns


def _band_pieces(
    query: Tensor,
    window: tuple[int, int],
    dilation: Sequence[int],
    causal: bool,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
) -> list[_Piece]:
    batch, _, seq_len, _ = query.shape
    pieces = []
    triangles: dict[tuple[int, int, int, bool], Tensor] = {}
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
                blocks = list(_band_blocks(length, window, triangles, query.device))
                piece_mask = None if mask is None else mask[first - span.start :: gap]
                if piece_mask is not None and bool(piece_mask.all()):
                    piece_mask = None
                unseen: list[Tensor | None] = [None] * len(blocks)
                if index is not None:
                    unseen = [_global_hidden(index, first, gap, block.rows, window, causal) for block in blocks]
                pieces.append(_Piece(b, heads, rows, rows, blocks, piece_mask, index, unseen))
    return pieces


def _band_blocks(
    length: int,
    window: tuple[int, int],
    triangles: dict[tuple[int, int, int, bool], Tensor],
    device: torch.device,
) -> Iterator[_Block]:
    left, right = window
    # A short sequence that lies whole inside everybody's window is one dense block, or a few.
    step = ROWS if length > min(left, right) + 1 else 4 * ROWS

    def triangle(rows: int, width: int, diagonal: int, lower: bool) -> Tensor:
        shape = (rows, width, diagonal, lower)
        if shape not in triangles:
            ones = torch.ones(rows, width, dtype=torch.bool, device=device)
            triangles[shape] = ones.tril_(diagonal) if lower else ones.triu_(diagonal)
        return triangles[shape]

    for top in range(0, length, step):
        bottom = min(top + step, length)
        first, last = max(0, top - left), min(length, bottom + right)
        hidden = []
        ahead = bottom - 1 - left - first  # columns too far left for the last row
        if ahead > 0:
            hidden.append((slice(0, ahead), triangle(bottom - top, ahead, top - left - first - 1, True)))
        behind = last - (top + right + 1)  # columns too far right for the first row
        if behind > 0:
            width = last - first
            hidden.append((slice(width - behind, width), triangle(bottom - top, behind, 0, False)))
        yield _Block(slice(top, bottom), slice(first, last), hidden)


def _global_hidden(
    index: Tensor, first: int, gap: int, rows: slice, window: tuple[int, int], causal: bool
) -> Tensor | None:
    """(rows, G) True where a global column is not for a row: it stands in the row's band, or later than it may see."""
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
    return slice(first, stop), None if len(present) == stop - first else key_mask[b, first:stop]


def _head_runs(dilation: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Neighbouring heads of one dilation, as slices."""
    start = 0
    for head in range(1, len(dilation) + 1):
        if head == len(dilation) or dilation[head] != dilation[start]:
            yield slice(start, head), dilation[start]
            start = head


# ---- what a block computes


class _Views(NamedTuple):
    """A piece's rows and columns in the tensors, as (H, T, D) views, and its gathered global columns."""

    query: Tensor
    key: Tensor
    value: Tensor
    global_key: Tensor | None
    global_value: Tensor | None


def _views(piece: _Piece, query: Tensor, key: Tensor, value: Tensor) -> _Views:
    b, heads = piece.batch, piece.heads
    if piece.global_index is None:
        global_key = global_value = None
    else:
        global_key = key[b, heads].index_select(1, piece.global_index)
        global_value = value[b, heads].index_select(1, piece.global_index)
    return _Views(
        query[b, heads, piece.rows],
        key[b, heads, piece.columns],
        value[b, heads, piece.columns],
        global_key,
        global_value,
    )


class _Scratch:
    """Memory for one block's scores at a time, allocated once; views of it are handed out."""

    def __init__(self, like: Tensor) -> None:
        self.flat = like.new_empty(0)

    def take(self, heads: int, rows: int, columns: int) -> Tensor:
        size = heads * rows * columns
        if self.flat.numel() < size:
            self.flat = self.flat.new_empty(size)
        return self.flat[:size].view(heads, rows, columns)


def _products(rows: Tensor, columns: Tensor, globals_: Tensor | None, scale: float, scratch: _Scratch) -> Tensor:
    """Every row against the global columns and the band's, side by side: (H, T, G + columns)."""
    count = 0 if globals_ is None else globals_.shape[1]
    out = scratch.take(rows.shape[0], rows.shape[1], count + columns.shape[1])
    band = out[..., count:]
    torch.baddbmm(band, rows, columns.transpose(1, 2), beta=0, alpha=scale, out=band)
    if globals_ is not None:
        ahead = out[..., :count]
        torch.baddbmm(ahead, rows, globals_.transpose(1, 2), beta=0, alpha=scale, out=ahead)
    return out


def _probabilities(piece: _Piece, n: int, views: _Views, scale: float, scratch: _Scratch) -> Tensor:
    """Block n's attention probabilities, (H, T, G + columns), global columns first."""
    block = piece.blocks[n]
    scores = _products(views.query[:, block.rows], views.key[:, block.columns], views.global_key, scale, scratch)
    count = scores.shape[-1] - (block.columns.stop - block.columns.start)
    band = scores[..., count:]
    for columns, unseen in block.hidden:
        band[..., columns].masked_fill_(unseen, float("-inf"))
    if piece.column_mask is not None:
        band.masked_fill_(~piece.column_mask[block.columns], float("-inf"))
    unseen_globals = piece.global_hidden[n]
    if unseen_globals is not None:
        scores[..., :count].masked_fill_(unseen_globals, float("-inf"))
    probs = torch.softmax(scores, -1, out=scores)
    if piece.column_mask is not None and piece.rows == piece.columns:
        # A row that is padding has perhaps nothing to attend to, and is 0 in any case. No other row can be empty.
        probs.masked_fill_(~piece.column_mask[block.rows, None], 0.0)
    return probs


def _dropout_mask(like: Tensor, dropout_p: float, generator: torch.Generator) -> Tensor:
    """0 with probability ``dropout_p``, else 1 / (1 - dropout_p), in steps of 2⁻¹⁶: one draw serves four entries."""
    dropped = round(dropout_p * 65536)
    draws = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
    draws.random_(-(2**63), None, generator=generator)
    kept = draws.view(torch.int16)[: like.numel()].view(like.shape) >= dropped - 32768
    return kept.to(like.dtype).mul_(65536 / (65536 - dropped))


def _zeros_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A zero (B, H, S, D) that lies in memory as (B, S, H, D), the layout in which a model reads it on."""
    batch, heads, seq_len, head_dim = x.shape
    return x.new_zeros(batch, seq_len, heads, head_dim, dtype=dtype).transpose(1, 2)


class _Attention(torch.autograd.Function):
    """Attention over pieces; the module's docstring has the mathematics."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pieces: list[_Piece],
        scale: float,
        dropout_p: float,
        seed: int,
    ) -> Tensor:
        out = _zeros_like(query, query.dtype)
        generator = torch.Generator(device=query.device).manual_seed(seed)
        scratch = _Scratch(query)
        for piece in pieces:
            views = _views(piece, query, key, value)
            piece_out = out[piece.batch, piece.heads, piece.rows]
            for n, block in enumerate(piece.blocks):
                probs = _probabilities(piece, n, views, scale, scratch)
                if dropout_p:
                    probs.mul_(_dropout_mask(probs, dropout_p, generator))
                values = views.value[:, block.columns]
                count = probs.shape[-1] - values.shape[1]
                block_out = piece_out[:, block.rows]
                torch.bmm(probs[..., count:], values, out=block_out)
                if views.global_value is not None:
                    block_out.baddbmm_(probs[..., :count], views.global_value)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, value, ctx.pieces, ctx.scale, ctx.dropout_p, ctx.seed = inputs
        ctx.save_for_backward(query, key, value, output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grads = _AttentionBackward.apply(grad_out, *ctx.saved_tensors, ctx.pieces, ctx.scale, ctx.dropout_p, ctx.seed)
        return *grads, None, None, None, None

    @staticmethod
    def vmap(*_: Any) -> None:
        raise RuntimeError('impl="blocked" does not work under torch.func.vmap; use impl="reference" there')


class _AttentionBackward(torch.autograd.Function):
    """The gradients, as a function of their own, so that a second derivative ends in a clear error."""

    @staticmethod
    def forward(
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        pieces: list[_Piece],
        scale: float,
        dropout_p: float,
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # A key's gradient is a sum over the blocks that see it: held in float32 at least, to be rounded once.
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_query = _zeros_like(query, query.dtype)
        grad_key, grad_value = _zeros_like(key, wide), _zeros_like(value, wide)
        generator = torch.Generator(device=query.device).manual_seed(seed)
        scratch, scratch_grad = _Scratch(query), _Scratch(query)
        for piece in pieces:
            views = _views(piece, query, key, value)
            b, heads = piece.batch, piece.heads
            piece_grad_out, piece_out = grad_out[b, heads, piece.rows], out[b, heads, piece.rows]
            piece_grad_query = grad_query[b, heads, piece.rows]
            grad_keys, grad_values = grad_key[b, heads, piece.columns], grad_value[b, heads, piece.columns]
            grad_globals = None
            if views.global_key is not None and views.global_value is not None:
                grad_globals = (
                    torch.zeros_like(views.global_key, dtype=wide),
                    torch.zeros_like(views.global_value, dtype=wide),
                )
            for n, block in enumerate(piece.blocks):
                probs = _probabilities(piece, n, views, scale, scratch)
                queries, keys = views.query[:, block.rows], views.key[:, block.columns]
                count = probs.shape[-1] - keys.shape[1]
                grad = piece_grad_out[:, block.rows]
                delta = (grad.to(wide) * piece_out[:, block.rows]).sum(-1, keepdim=True)
                grad_probs = _products(grad, views.value[:, block.columns], views.global_value, 1.0, scratch_grad)
                dropped = probs
                if dropout_p:
                    mask = _dropout_mask(probs, dropout_p, generator)
                    dropped = probs * mask
                    grad_probs.mul_(mask)
                grad_scores = grad_probs.sub_(delta).mul_(probs)
                _add_product(grad_values[:, block.columns], dropped[..., count:], grad, 1.0)
                _add_product(grad_keys[:, block.columns], grad_scores[..., count:], queries, scale)
                rows = piece_grad_query[:, block.rows]
                torch.baddbmm(rows, grad_scores[..., count:], keys, beta=0, alpha=scale, out=rows)
                if grad_globals is not None and views.global_key is not None:
                    rows.baddbmm_(grad_scores[..., :count], views.global_key, alpha=scale)
                    _add_product(grad_globals[0], grad_scores[..., :count], queries, scale)
                    _add_product(grad_globals[1], dropped[..., :count], grad, 1.0)
            if grad_globals is not None and piece.global_index is not None:
                grad_key[b, heads].index_add_(1, piece.global_index, grad_globals[0])
                grad_value[b, heads].index_add_(1, piece.global_index, grad_globals[1])
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError('impl="blocked" has no second derivative; use impl="reference" where one is needed')

    @staticmethod
    def vmap(*_: Any) -> None:
        raise RuntimeError('impl="blocked" does not work under torch.func.vmap; use impl="reference" there')


def _add_product(total: Tensor, weights: Tensor, rows: Tensor, scale: float) -> None:
    """total += weightsᵀ rows · scale, in ``total``'s precision."""
    if total.dtype == rows.dtype:
        total.baddbmm_(weights.transpose(1, 2), rows, alpha=scale)
    else:
        total.add_(torch.bmm(weights.transpose(1, 2), rows), alpha=scale)
