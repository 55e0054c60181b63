"""The implementation to run on a CPU: blocks of queries against the keys that they see, in linear memory.

A block of T rows meets the global columns and the at most T + W - 1 columns of its band in two dense products, and
one softmax runs over both. What of that rectangle lies off the band are two triangles at its ends: these, and nothing
else, are masked. All columns of a row stand in one block, so that its softmax is done in one go, and the block's
scores stay in the processor's cache: they are never written to memory as a whole.

The backward pass keeps nothing but the inputs. It computes each block's probabilities P again, bit for bit, and with
dO the gradient of the output,

    dV += Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - δ)      dQ = dS K · scale      dK += dSᵀ Q · scale

where δ are the row sums of P ∘ dP (the softmax's Jacobian, diag(p) - p pᵀ for a row p of P, applied to dP). They equal
the row sums of dO ∘ O, which is how kernels that never hold a whole row get them; summed from P itself they cancel
better. Blocks are visited in one fixed order, so that equal inputs give equal bits. Dropout multiplies P by a mask
drawn block by block from a seed, which is kept; dP is then multiplied by the same mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Rows of a block in a band, by bytes a number: its triangles cost T/W of the arithmetic, but small products are slow.
ROWS = {2: 128, 4: 64, 8: 64}
DENSE_ROWS = 256  # and in a sequence that lies whole inside everybody's window
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
    band, where they count already, or later than a causal row. ``padded_rows``: whether the mask is of the rows too.
    """

    batch: int
    heads: slice
    rows: slice
    columns: slice
    blocks: list[_Block]
    column_mask: Tensor | None
    global_index: Tensor | None
    global_hidden: list[Tensor | None]
    padded_rows: bool


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
        pieces.append(_Piece(b, slice(0, heads), slice(0, rows), span, blocks, mask, None, [None] * len(blocks), False))
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
                blocks = list(_band_blocks(length, window, triangles, query))
                piece_mask = None if mask is None else mask[first - span.start :: gap]
                if piece_mask is not None and bool(piece_mask.all()):
                    piece_mask = None
                # Where everybody's window holds the whole sequence, global columns stand in it already.
                beside = index if gap > 1 or length > min(window) + 1 else None
                unseen: list[Tensor | None] = [None] * len(blocks)
                if beside is not None:
                    unseen = [_global_hidden(beside, first, gap, block.rows, window, causal) for block in blocks]
                pieces.append(_Piece(b, heads, rows, rows, blocks, piece_mask, beside, unseen, True))
    return pieces


def _band_blocks(
    length: int,
    window: tuple[int, int],
    triangles: dict[tuple[int, int, int, bool], Tensor],
    like: Tensor,
) -> Iterator[_Block]:
    left, right = window
    # A short sequence that lies whole inside everybody's window is one dense block, or a few.
    step = ROWS[like.element_size()] if length > min(left, right) + 1 else DENSE_ROWS

    def triangle(rows: int, width: int, diagonal: int, lower: bool) -> Tensor:
        shape = (rows, width, diagonal, lower)
        if shape not in triangles:
            ones = torch.ones(rows, width, dtype=torch.bool, device=like.device)
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

    def columns(self, block: _Block) -> tuple[Tensor, Tensor, int]:
        """Keys and values that a block's rows meet, global ones first, (H, G + columns, D), and G."""
        key, value = self.key[:, block.columns], self.value[:, block.columns]
        if self.global_key is None or self.global_value is None:
            return key, value, 0
        # Copied together: one product over all is faster than two, and than two written side by side.
        key, value = torch.cat([self.global_key, key], dim=1), torch.cat([self.global_value, value], dim=1)
        return key, value, self.global_key.shape[1]


def _views(piece: _Piece, query: Tensor, key: Tensor, value: Tensor) -> _Views:
    b, heads, index = piece.batch, piece.heads, piece.global_index
    return _Views(
        query[b, heads, piece.rows],
        key[b, heads, piece.columns],
        value[b, heads, piece.columns],
        None if index is None else key[b, heads].index_select(1, index),
        None if index is None else value[b, heads].index_select(1, index),
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


def _product(rows: Tensor, columns: Tensor, scratch: _Scratch) -> Tensor:
    """Every row against every column: (H, T, D) and (H, n, D) to (H, T, n) in ``scratch``."""
    out = scratch.take(rows.shape[0], rows.shape[1], columns.shape[1])
    return torch.bmm(rows, columns.transpose(1, 2), out=out)


def _probabilities(piece: _Piece, n: int, queries: Tensor, keys: Tensor, count: int, scratch: _Scratch) -> Tensor:
    """Block n's attention probabilities (H, T, G + columns) of scaled queries (H, T, D); G = ``count`` come first."""
    block, unseen_globals = piece.blocks[n], piece.global_hidden[n]
    scores = _product(queries, keys, scratch)
    band = scores[..., count:]
    for columns, unseen in block.hidden:
        band[..., columns].masked_fill_(unseen, float("-inf"))
    if piece.column_mask is not None:
        band.masked_fill_(~piece.column_mask[block.columns], float("-inf"))
    if unseen_globals is not None:
        scores[..., :count].masked_fill_(unseen_globals, float("-inf"))
    probs = torch.softmax(scores, -1, out=scores)
    if piece.column_mask is not None and piece.padded_rows:
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
                keys, values, count = views.columns(block)
                probs = _probabilities(piece, n, views.query[:, block.rows] * scale, keys, count, scratch)
                if dropout_p:
                    probs.mul_(_dropout_mask(probs, dropout_p, generator))
                torch.bmm(probs, values, out=piece_out[:, block.rows])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        query, key, value, ctx.pieces, ctx.scale, ctx.dropout_p, ctx.seed = inputs
        ctx.save_for_backward(query, key, value)

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
            piece_grad_out = grad_out[b, heads, piece.rows]
            piece_grad_query = grad_query[b, heads, piece.rows]
            grad_keys, grad_values = grad_key[b, heads, piece.columns], grad_value[b, heads, piece.columns]
            global_grads = [
                None if x is None else torch.zeros_like(x, dtype=wide) for x in (views.global_key, views.global_value)
            ]
            for n, block in enumerate(piece.blocks):
                keys, values, count = views.columns(block)
                queries = views.query[:, block.rows] * scale
                probs = _probabilities(piece, n, queries, keys, count, scratch)
                grad = piece_grad_out[:, block.rows]
                grad_probs = _product(grad, values, scratch_grad)
                dropped = probs
                if dropout_p:
                    mask = _dropout_mask(probs, dropout_p, generator)
                    dropped = probs * mask
                    grad_probs.mul_(mask)
                grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
                rows = piece_grad_query[:, block.rows]
                torch.bmm(grad_scores, keys, out=rows)
                rows.mul_(scale)
                for weights, what, total, global_total in (
                    (grad_scores, queries, grad_keys, global_grads[0]),
                    (dropped, grad, grad_values, global_grads[1]),
                ):
                    received = torch.bmm(weights.transpose(1, 2), what)  # (H, G + columns, D)
                    total[:, block.columns].add_(received[:, count:])
                    if global_total is not None:
                        global_total.add_(received[:, :count])
            for grads, global_total in zip((grad_key, grad_value), global_grads, strict=True):
                if global_total is not None and piece.global_index is not None:
                    grads[b, heads].index_add_(1, piece.global_index, global_total)
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
