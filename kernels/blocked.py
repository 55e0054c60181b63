"""The implementation to run on a CPU: tiles of queries against the keys that they see, in linear memory.

A tile is T rows and the at most T + W - 1 columns of their band. What of that rectangle lies off the band are two
triangles at its ends: these, and nothing else, are masked. The global columns outside the band are a tile of their
own. A tile's scores stay in the processor's cache and are never written to memory as a whole. It gives the attention
within itself and the logarithm of its softmax's denominator, by which two tiles of the same rows are merged:

    L = log Σ exp(s)        L₁₂ = log(exp L₁ + exp L₂)        O₁₂ = exp(L₁ - L₁₂) O₁ + exp(L₂ - L₁₂) O₂

The backward pass keeps inputs, output and L. A tile's probabilities are P = exp(S - L) once more, and with dO the
gradient of the output,

    dV += Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - δ)      dQ += dS K · scale      dK += dSᵀ Q · scale

where δ are the row sums of dO ∘ O, which equal those of P ∘ dP over all tiles of the row (the softmax's Jacobian,
diag(p) - p pᵀ for a row p of P, applied to dP). Tiles are visited in one fixed order, so that equal inputs give equal
bits. Dropout multiplies P by a mask drawn tile by tile from a seed, which is kept; dP is multiplied by the same mask.

Everything here is written out in products, exponentials and sums. ``fused`` leaves a band tile's forward to torch's
own fused attention, which keeps a tile's scores in float32 where the inputs are bfloat16 or float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Rows of a tile, by bytes a number: its triangles cost T/W of the arithmetic, but small products are slow.
ROWS = {2: 128, 4: 64, 8: 64}
FUSED_ROWS = {2: 256, 4: 64, 8: 64}
FUSED_COLUMNS = 1024  # up to which it serves global rows faster
DENSE_ROWS = 256  # and in a sequence that lies whole inside everybody's window
BLOCK_ROWS = 512  # of neighbouring tiles that are handled together where they can be
LOG2_E = math.log2(math.e)
MOST_SCORES = 1 << 20  # the most scores of global rows or columns at a time, so that they stay in the cache


class _Block(NamedTuple):
    """``count`` tiles of equal shape: ``rows`` that meet ``columns``, and again each a tile's rows further on.

    ceilings: ranges of a tile's columns with the (rows, range) most that a score there may be: -inf where a row does
        not see a column, +inf elsewhere.
    global_hidden: (count · rows, G), True where a global column is not for a row: it stands in the row's band, where
        it counts already, or is later than a causal row may see. None if there is no such place.
    """

    rows: slice
    columns: slice
    count: int
    ceilings: list[tuple[slice, Tensor]]
    global_hidden: Tensor | None

    @property
    def all_rows(self) -> slice:
        """The rows of all tiles."""
        return slice(self.rows.start, self.rows.start + self.count * (self.rows.stop - self.rows.start))

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile."""
        for shift in range(0, self.all_rows.stop - self.rows.start, self.rows.stop - self.rows.start):
            yield _shifted(self.rows, shift), _shifted(self.columns, shift)


class _Piece(NamedTuple):
    """One independent attention problem: heads of an example, or one residue class of a dilated window.

    Index of its rows and columns in (B, H, S, D), the blocks over them, a mask of columns that are not padding (None:
    none is), the global columns' positions, and whether the mask is of the rows too.
    """

    batch: int
    heads: slice
    rows: slice
    columns: slice
    blocks: list[_Block]
    column_mask: Tensor | None
    global_index: Tensor | None
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
    fused: bool = False,
) -> Tensor:
    """See :func:`longformer.kernels.sliding_window_attention`, which checks the arguments."""
    if fused:
        query, key, value = (_without_gaps(x) for x in (query, key, value))
    pieces = _band_pieces(query, window, dilation, causal, key_mask, global_mask, fused)
    return _attend(query, key, value, pieces, key_mask is None, scale, dropout_p, fused)


def global_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None,
    scale: float,
    dropout_p: float,
    fused: bool = False,
) -> Tensor:
    """See :func:`longformer.kernels.global_attention`, which checks the arguments."""
    heads, rows = query.shape[1], query.shape[2]
    fused &= key.shape[2] <= FUSED_COLUMNS
    if fused:
        query, key, value = (_without_gaps(x) for x in (query, key, value))
    pieces = []
    for b in range(query.shape[0]):
        span, mask = _occupied(key_mask, b, key.shape[2])
        if span.start == span.stop:
            continue
        step = rows if fused else max(1, MOST_SCORES // (heads * (span.stop - span.start)))
        columns = slice(0, span.stop - span.start)
        blocks = [_Block(slice(r, min(r + step, rows)), columns, 1, [], None) for r in range(0, rows, step)]
        pieces.append(_Piece(b, slice(0, heads), slice(0, rows), span, blocks, mask, None, False))
    return _attend(query, key, value, pieces, key_mask is None, scale, dropout_p, fused)


def can_fuse(query: Tensor) -> bool:
    """Whether torch's fused attention, with its log-sum-exp, is to be had for ``query``."""
    return query.device.type == "cpu" and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: list[_Piece],
    whole: bool,
    scale: float,
    dropout_p: float,
    fused: bool,
) -> Tensor:
    seed = int(torch.randint(2**62, ())) if dropout_p else 0
    differentiated = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    # Short inputs notice what autograd's machinery costs.
    run = _Attention.apply if differentiated or _transformed() else _Attention.forward
    out, _ = run(query, key, value, pieces, whole, scale, dropout_p, seed, fused)
    result: Tensor = out
    return result


def _transformed() -> bool:
    """Whether a transform of torch.func is at work, which has to see the autograd function."""
    return torch._C._functorch.maybe_current_level() is not None


def _without_gaps(x: Tensor) -> Tensor:
    """``x`` with a head's numbers side by side, as torch's fused attention wants them."""
    return x if x.stride(-1) == 1 else x.contiguous()


# ---- which rows meet which columns


def _band_pieces(
    query: Tensor,
    window: tuple[int, int],
    dilation: Sequence[int],
    causal: bool,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
    fused: bool,
) -> list[_Piece]:
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
                if beside is not None:
                    blocks = [
                        block._replace(global_hidden=_global_hidden(beside, first, gap, block.all_rows, window, causal))
                        for block in blocks
                    ]
                pieces.append(_Piece(b, heads, rows, rows, blocks, piece_mask, beside, True))
    return pieces


def _band_blocks(
    length: int,
    window: tuple[int, int],
    most: int,
    ceilings: dict[tuple[int, int, int, bool], Tensor],
    like: Tensor,
    fused: bool,
) -> Iterator[_Block]:
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
        count = 1
        if top >= left and top + step + right <= length:
            count = max(1, min(most, length - right - top) // step)
        yield _Block(slice(top, bottom), slice(first, last), count, found, None)
        top += count * step


def _global_hidden(
    index: Tensor, first: int, gap: int, rows: slice, window: tuple[int, int], causal: bool
) -> Tensor | None:
    """See :class:`_Block`."""
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


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


# ---- what a tile computes


class _Views(NamedTuple):
    """A piece's rows and columns in the tensors, as (H, T, D) views, and its gathered global columns."""

    query: Tensor
    key: Tensor
    value: Tensor
    global_key: Tensor | None
    global_value: Tensor | None

    def columns(self, columns: slice | None) -> tuple[Tensor, Tensor]:
        """Keys and values of a tile's columns; None are the global ones."""
        if columns is not None:
            return self.key[:, columns], self.value[:, columns]
        assert self.global_key is not None and self.global_value is not None
        return self.global_key, self.global_value


def _views(piece: _Piece, query: Tensor, key: Tensor, value: Tensor) -> _Views:
    b, heads, index = piece.batch, piece.heads, piece.global_index
    return _Views(
        query[b, heads, piece.rows],
        key[b, heads, piece.columns],
        value[b, heads, piece.columns],
        None if index is None else key[b, heads][:, index],
        None if index is None else value[b, heads][:, index],
    )


class _Scratch:
    """Memory that one tile after the other uses: the products' results, and float32 beside a lower precision."""

    def __init__(self, like: Tensor) -> None:
        self.dtypes = (like.dtype, torch.promote_types(like.dtype, torch.float32))
        self.like = like
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], *, wide: bool = False) -> Tensor:
        """Uninitialised; valid until ``name`` is taken again."""
        size, name = math.prod(shape), f"{name} wide" if wide else name
        if name not in self.held or self.held[name].numel() < size:
            self.held[name] = self.like.new_empty(size, dtype=self.dtypes[wide])
        return self.held[name][:size].view(shape)

    def product(self, name: str, a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
        """(H, m, k) by (H, k, n), times a factor. The result has no gaps, or torch would compute it head by head."""
        return self.take(name, (a.shape[0], a.shape[1], b.shape[2])).baddbmm_(a, b, beta=0.0, alpha=factor)

    def exp2_of_difference(self, scores: Tensor, shift: Tensor) -> Tensor:
        """2 ** (scores - shift) in at least float32; ``scores`` are overwritten where they have that precision."""
        return self.widen("powers", scores).sub_(shift).exp2_()

    def widen(self, name: str, x: Tensor) -> Tensor:
        """``x`` in at least float32."""
        return x if x.dtype == self.dtypes[1] else self.take(name, x.shape, wide=True).copy_(x)

    def narrow(self, name: str, x: Tensor) -> Tensor:
        """``x`` in the inputs' precision."""
        return x if x.dtype == self.dtypes[0] else self.take(name, x.shape).copy_(x)


class _Dropout:
    """Which probabilities a pass over the tiles keeps, drawn tile by tile in their order."""

    def __init__(self, probability: float, seed: int, device: torch.device) -> None:
        # In steps of 2⁻¹⁶: one draw serves four entries.
        self.dropped = round(probability * 65536)
        self.factor = 65536 / (65536 - self.dropped)  # of those that are kept
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def kept(self, shape: torch.Size, to: _Scratch) -> Tensor:
        """1 and 0, a number for each entry of a tile."""
        size = math.prod(shape)
        draws = torch.empty((size + 3) // 4, dtype=torch.int64, device=self.generator.device)
        draws.random_(-(2**63), None, generator=self.generator)
        kept = to.take("kept", shape, wide=True).copy_(draws.view(torch.int16)[:size].view(shape))
        return kept.sub_(self.dropped - 32769).clamp_(0, 1)  # faster by far than comparing


def _visits(piece: _Piece, block: _Block) -> Iterator[tuple[slice, slice | None]]:
    """Rows and columns of each tile of a block; columns None are the global ones, which all of its rows meet last."""
    yield from block.tiles()
    if piece.global_index is not None:
        yield block.all_rows, None


def _scores(
    piece: _Piece, block: _Block, columns: slice | None, queries: Tensor, keys: Tensor, scale: float, to: _Scratch
) -> Tensor:
    """Scores (H, T, columns) in a tile, times log₂ e, and -inf where a row does not see a column."""
    scores = to.product("scores", queries, keys.transpose(1, 2), scale * LOG2_E)
    if columns is None:
        return scores if block.global_hidden is None else scores.masked_fill_(block.global_hidden, -math.inf)
    for span, ceiling in block.ceilings:
        band = scores[..., span]
        torch.minimum(band, ceiling, out=band)
    if piece.column_mask is not None:
        scores.masked_fill_(~piece.column_mask[columns], -math.inf)
    return scores


def _tile_forward(scores: Tensor, values: Tensor, drop: _Dropout, to: _Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of a tile: (H, T, D) still to be divided by (H, T, 1), and the log-sum-exp (H, T, 1).

    A row that sees nothing has 0, 1 and -inf.
    """
    # The least number instead of -inf, so that exp(-inf - top) is 0 and not NaN.
    top = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min).to(to.dtypes[1])
    weights = to.exp2_of_difference(scores, top)
    total = weights.sum(-1, keepdim=True)
    lse = total.log2().add_(top)
    if drop.dropped:
        weights.mul_(drop.kept(weights.shape, to))
    # The largest weight of a row is 1: a sum below that is the 0 of an empty row.
    return to.product("out", to.narrow("scores", weights), values, drop.factor), total.clamp_(min=1), lse


def _tile_backward(
    probs: Tensor, delta: Tensor, grad: Tensor, values: Tensor, drop: _Dropout, to: _Scratch
) -> tuple[Tensor, Tensor]:
    """Gradient of a tile's scores, and its probabilities after dropout, (H, T, columns) each."""
    grad_probs = to.product("grad", grad, values.transpose(1, 2), drop.factor)
    grad_scores = to.widen("grad", grad_probs)
    dropped = probs
    if drop.dropped:
        kept = drop.kept(probs.shape, to)
        grad_scores.mul_(kept)
        dropped = kept.mul_(probs)
    grad_scores.sub_(delta).mul_(probs)
    return to.narrow("grad", grad_scores), to.narrow("scores", dropped)


def _fused_forward(piece: _Piece, block: _Block, views: _Views, scale: float) -> tuple[Tensor, Tensor]:
    """Attention within the band of all of a block's tiles, in one call: (H, rows, D), and log-sum-exp (H, rows, 1)."""
    step = block.rows.stop - block.rows.start

    def tiles(x: Tensor, first: slice) -> Tensor:
        """(H, length, ...) to (count, H, size, ...): overlapping views, each ``step`` further on."""
        size = first.stop - first.start
        rows = x[:, first.start : first.stop + (block.count - 1) * step]
        return rows.unfold(1, size, step).movedim(-1, 2).transpose(0, 1)

    bias = None
    if block.ceilings or piece.column_mask is not None:
        bias = views.query.new_zeros(1, 1, step, block.columns.stop - block.columns.start)
        for span, ceiling in block.ceilings:
            bias[..., span] = torch.minimum(bias[..., span], ceiling)
        if piece.column_mask is not None:
            bias = bias.masked_fill(~tiles(piece.column_mask[None], block.columns)[:, :, None], -math.inf)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        tiles(views.query, block.rows),
        tiles(views.key, block.columns),
        tiles(views.value, block.columns),
        attn_mask=bias,
        scale=scale,
    )
    return out.transpose(0, 1).flatten(1, 2), lse.transpose(0, 1).flatten(1)[..., None] * LOG2_E


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_total: Tensor, part_lse: Tensor, to: _Scratch) -> None:
    """``out`` and ``lse`` of some rows with another tile's attention to other columns, in place."""
    both = torch.logaddexp2(lse, part_lse)
    sum_ = torch.mul(out, (lse - both).exp2_(), out=to.take("sum", out.shape, wide=True))
    torch.addcmul(sum_, part, (part_lse - both).exp2_().div_(part_total), out=out)
    lse.copy_(both)


def _new(x: Tensor, dtype: torch.dtype, *, zero: bool) -> Tensor:
    """A new (B, H, S, D) that lies in memory as (B, S, H, D), the layout in which a model reads it on."""
    batch, heads, seq_len, head_dim = x.shape
    make = x.new_zeros if zero else x.new_empty
    return make(batch, seq_len, heads, head_dim, dtype=dtype).transpose(1, 2)


class _Attention(torch.autograd.Function):
    """Attention over pieces, and its log-sum-exp (B, H, S, 1); the module's docstring has the mathematics."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        pieces: list[_Piece],
        whole: bool,
        scale: float,
        dropout_p: float,
        seed: int,
        fused: bool,
    ) -> tuple[Tensor, Tensor]:
        out = _new(query, query.dtype, zero=not whole)
        to, drop = _Scratch(query), _Dropout(dropout_p, seed, query.device)
        lse = query.new_full((*query.shape[:3], 1), math.inf, dtype=to.dtypes[1])
        for piece in pieces:
            views = _views(piece, query, key, value)
            piece_out, piece_lse = (x[piece.batch, piece.heads, piece.rows] for x in (out, lse))
            for block in piece.blocks:
                if fused:
                    block_out, block_lse = _fused_forward(piece, block, views, scale)
                    piece_out[:, block.all_rows], piece_lse[:, block.all_rows] = block_out, block_lse
                for rows, columns in _visits(piece, block):
                    if fused and columns is not None:
                        continue
                    keys, values = views.columns(columns)
                    scores = _scores(piece, block, columns, views.query[:, rows], keys, scale, to)
                    part, total, part_lse = _tile_forward(scores, values, drop, to)
                    if columns is None:
                        _merge(piece_out[:, rows], piece_lse[:, rows], part, total, part_lse, to)
                    else:
                        torch.div(part, total, out=piece_out[:, rows])
                        piece_lse[:, rows] = part_lse
            if piece.column_mask is not None and piece.padded_rows:
                # Padding has perhaps nothing to attend to, and is 0 in any case. Its probabilities exp(s - ∞) are 0.
                piece_out.masked_fill_(~piece.column_mask[:, None], 0.0)
                piece_lse.masked_fill_(~piece.column_mask[:, None], math.inf)
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, *ctx.arguments, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(query, key, value, *output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *_AttentionBackward.apply(grad_out, *ctx.saved_tensors, *ctx.arguments), *(None,) * 6

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
        lse: Tensor,
        pieces: list[_Piece],
        whole: bool,
        scale: float,
        dropout_p: float,
        seed: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        to, drop = _Scratch(query), _Dropout(dropout_p, seed, query.device)
        wide = to.dtypes[1]
        grad_query = _new(query, query.dtype, zero=not whole)
        # A key's gradient is a sum over the tiles that see it: held in float32 at least, to be rounded once.
        grad_key, grad_value = _new(key, wide, zero=True), _new(value, wide, zero=True)
        for piece in pieces:
            views = _views(piece, query, key, value)
            b, heads = piece.batch, piece.heads
            of_rows = [x[b, heads, piece.rows] for x in (grad_out, out, lse, grad_query)]
            of_columns = [x[b, heads, piece.columns] for x in (grad_key, grad_value)]
            index = piece.global_index
            global_sums = [x.new_zeros(x.shape[0], 0 if index is None else len(index), x.shape[2]) for x in of_columns]
            for block in piece.blocks:
                for rows, columns in _visits(piece, block):
                    grad, tile_out, tile_lse, to_query = (x[:, rows] for x in of_rows)
                    queries, (keys, values) = views.query[:, rows], views.columns(columns)
                    probs = to.exp2_of_difference(_scores(piece, block, columns, queries, keys, scale, to), tile_lse)
                    delta = (grad.to(wide) * tile_out).sum(-1, keepdim=True)
                    grad_scores, dropped = _tile_backward(probs, delta, grad, values, drop, to)
                    to_key, to_value = global_sums if columns is None else (x[:, columns] for x in of_columns)
                    to_key.add_(to.product("received", grad_scores.transpose(1, 2), queries, scale))
                    to_value.add_(to.product("received", dropped.transpose(1, 2), grad, drop.factor))
                    part = to.product("out", grad_scores, keys, scale)
                    if columns is None:
                        to_query.add_(part)
                    else:
                        to_query.copy_(part)
            if index is not None:
                for grads, sums in zip((grad_key, grad_value), global_sums, strict=True):
                    grads[b, heads].index_add_(1, index, sums)
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
