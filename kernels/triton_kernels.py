"""The kernels of :mod:`longformer.kernels.triton_launch`, forward and backward. Letters as in the README beside this.

A program owns a block of rows (or, in the backward pass, of columns), meets block after block of the other side, and
keeps softmax and sums in registers: nothing of size S × W ever exists. With S the scores times log₂ e, L a row's
log-sum-exp in base 2 and δ the row sums of dO ∘ O,

    P = 2^(S - L)    dV = Pᵀ dO    dP = dO Vᵀ    dS = P ∘ (dP - δ)    dQ = dS K · scale    dK = dSᵀ Q · scale

Only blocks that the band's edges cut are masked. A head dilated by d is d sequences, tokens equal modulo d, with an
ordinary window each, read through a stride. Global columns that stand outside a row's band are gathered by their index
into the same softmax. Their own gradients are sums over all rows: parts of them are summed by programs of their own,
and added by the program that owns the column's block. Few rows over many columns, as in global attention, are split
along the columns and merged by log-sum-exp. Nothing is added atomically, so that equal inputs give equal bits.

Dropout is a counter-based generator's (Philox): whether row i drops column j depends on the seed, the head, i and j
alone, and on no block size.
"""

from __future__ import annotations

import triton
import triton.language as tl

PHILOX_ROUNDS = tl.constexpr(7)  # the fewest that pass the statistical tests

# What differs from document to document. Triton would compile anew for a number that is 1, and for one that is
# divisible by 16.
LENGTHS = "rows columns left right width chunk parts batch out_part lse_part grad_part"
COUNTS = (*LENGTHS.split(), "first_head", "draws", "dropped")


# ---- parts of the kernels


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b in float32. Triton's interpreter cannot multiply bfloat16, and is given the same numbers in float32."""
    if PRECISION == "interpreted":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _narrow(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """``x`` rounded to the nearest, as a GPU does it; the interpreter would cut bfloat16 off."""
    if PRECISION == "interpreted":
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def _offsets(tokens, WIDE: tl.constexpr):
    return tokens.to(tl.int64) if WIDE else tokens


@triton.jit
def _head(tensor, strides, b, h):
    """Where head h of example b begins in a (B, H, S, D) tensor."""
    return tensor + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]


@triton.jit
def _load(head, strides, tokens, valid, D: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr):
    """The rows ``tokens`` of a head, 0 where not ``valid`` and beyond D."""
    dims = tl.arange(0, BD)
    at = head + _offsets(tokens, WIDE)[:, None] * strides[2] + dims[None, :] * strides[3]
    mask = valid[:, None] if D == BD else valid[:, None] & (dims < D)[None, :]
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def _store(
    head, strides, tokens, valid, x, D: tl.constexpr, BD: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr
):
    dims = tl.arange(0, BD)
    at = head + _offsets(tokens, WIDE)[:, None] * strides[2] + dims[None, :] * strides[3]
    mask = valid[:, None] if D == BD else valid[:, None] & (dims < D)[None, :]
    if head.dtype.element_ty != tl.float32:
        x = _narrow(x, head.dtype.element_ty, PRECISION)
    tl.store(at, x, mask=mask)


@triton.jit
def _present(key_mask, b, tokens, length, valid):
    """Which of ``tokens`` are ``valid`` and no padding. Others are not loaded: NaN there, times 0, would be NaN."""
    if key_mask is not None:
        valid = valid & (tl.load(key_mask + b.to(tl.int64) * length + tokens, mask=valid, other=0) != 0)
    return valid


@triton.jit
def _block(rows, gap, BLOCK: tl.constexpr):
    """This program's head, its class of tokens modulo ``gap``, and the first of its block's rows in that class."""
    blocks = tl.cdiv(tl.cdiv(rows, gap), BLOCK)
    number = tl.program_id(0) % (blocks * gap)
    return tl.program_id(0) // (blocks * gap), number // blocks, number % blocks * BLOCK


@triton.jit
def _steps(left, right, rows, columns, gap):
    """The window in steps of ``gap``, no more than there are: the two are multiplied in 32 bits."""
    return tl.minimum(left, tl.cdiv(rows, gap)), tl.minimum(right, tl.cdiv(columns, gap))


@triton.jit
def _outside(i, j, left, right, gap, causal):
    """Whether the global column j counts for row i beside its band: not inside it, and not later if ``causal``."""
    distance = j - i
    inside = (distance >= -left * gap) & (distance <= right * gap) & (distance % gap == 0)
    return (inside == 0) & ((distance <= 0) | (causal == 0))


@triton.jit
def _kept(seed, rows, first, head, draws, dropped, BN: tl.constexpr, TURNED: tl.constexpr):
    """(BM, BN) bool, (BN, BM) if ``TURNED``: what dropout keeps of columns ``first`` … One draw serves four of them."""
    quads = first // 4 + tl.arange(0, BN // 4)
    column, row = (quads[:, None], rows[None, :]) if TURNED else (quads[None, :], rows[:, None])
    zero = column * 0 + row * 0
    a, b, c, d = tl.philox(seed, zero + column, zero + row, zero + head, zero + draws, PHILOX_ROUNDS)
    words = tl.join(tl.join(a, c), tl.join(b, d))
    if TURNED:
        words = tl.permute(words, (0, 2, 3, 1))
        words = tl.reshape(words, (BN, rows.shape[0]))
    else:
        words = tl.reshape(words, (rows.shape[0], BN))
    return (words >> 1).to(tl.int32) >= dropped


@triton.jit
def _absorb(total, most, out, scores, values, kept, PRECISION: tl.constexpr):
    """Online softmax: take a block of base-2 ``scores`` into the row sums, their maxima and the output."""
    new = tl.maximum(most, tl.max(scores, 1))
    shift = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
    probs = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(most - shift)
    total = total * shrink + tl.sum(probs, 1)
    if kept is not None:
        probs = tl.where(kept, probs, 0.0)
    out = _dot(_narrow(probs, values.dtype, PRECISION), values, out * shrink[:, None], PRECISION)
    return total, new, out


# ---- the kernels


@triton.jit(do_not_specialize=COUNTS)
def forward(
    query,
    key,
    value,
    key_mask,  # (B, columns) or None
    index,  # (B, width) global columns, or None
    count,  # (B,) how many there are
    out,
    lse,  # (parts, B, all heads, rows)
    seed,
    query_strides,
    key_strides,
    value_strides,
    out_strides,
    out_part,
    lse_part,
    rows,
    columns,
    heads,
    first_head,
    all_heads,
    width,
    gap,
    left,
    right,
    causal,
    scale,
    keep_scale,
    draws,
    dropped,
    chunk,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Out and log-sum-exp of a block of rows. A window that reaches everywhere makes it dense attention."""
    left, right = _steps(left, right, rows, columns, gap)
    bh, cls, top = _block(rows, gap, BM)
    b, h, part = bh // heads, bh % heads, tl.program_id(1)
    head = b * all_heads + first_head + h
    key_head, value_head = _head(key, key_strides, b, h), _head(value, value_strides, b, h)
    row = top + tl.arange(0, BM)
    i = cls + row * gap
    q = _load(_head(query, query_strides, b, h), query_strides, i, i < rows, D, BD, WIDE)
    draw = 0 if seed is None else tl.load(seed)
    total = tl.zeros([BM], tl.float32)
    most = tl.full([BM], float("-inf"), tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)

    ends = tl.cdiv(columns - cls, gap)
    first = tl.maximum(tl.maximum(top - left, 0) // BN * BN, part * chunk)
    last = tl.minimum(tl.minimum(top + BM + right, ends), (part + 1) * chunk)
    for n in range(first, last, BN):
        column = n + tl.arange(0, BN)
        j = cls + column * gap
        present = _present(key_mask, b, j, columns, column < ends)
        k = _load(key_head, key_strides, j, column < ends, D, BD, WIDE)
        v = _load(value_head, value_strides, j, present, D, BD, WIDE)
        scores = _dot(q, tl.trans(k), None, PRECISION) * scale
        if (n < top + BM - 1 - left) | (n + BN > tl.minimum(top + right + 1, ends)):  # the band's edges
            step = column[None, :] - row[:, None]
            scores = tl.where((step >= -left) & (step <= right) & (column < ends)[None, :], scores, float("-inf"))
        if key_mask is not None:
            scores = tl.where(present[None, :], scores, float("-inf"))
        kept = None if seed is None else _kept(draw, i, n, head, draws, dropped, BN, False)
        total, most, acc = _absorb(total, most, acc, scores, v, kept, PRECISION)

    if index is not None:
        stop = tl.load(count + b)
        for g in range(0, stop, BN):
            slot = g + tl.arange(0, BN)
            j = tl.load(index + b.to(tl.int64) * width + slot, mask=slot < stop, other=0)
            k = _load(key_head, key_strides, j, slot < stop, D, BD, WIDE)
            v = _load(value_head, value_strides, j, slot < stop, D, BD, WIDE)
            scores = _dot(q, tl.trans(k), None, PRECISION) * scale
            beside = _outside(i[:, None], j[None, :], left, right, gap, causal)
            scores = tl.where(beside & (slot < stop)[None, :], scores, float("-inf"))
            kept = None if seed is None else _kept(draw, i, g, head, draws + 1, dropped, BN, False)
            total, most, acc = _absorb(total, most, acc, scores, v, kept, PRECISION)

    empty = total == 0.0
    if PADDED_ROWS:
        empty = empty | (_present(key_mask, b, i, rows, i < rows) == 0)
    acc = tl.where(empty[:, None], 0.0, acc * (keep_scale / tl.where(empty, 1.0, total))[:, None])
    _store(
        _head(out, out_strides, b, h) + part.to(tl.int64) * out_part,
        out_strides,
        i,
        i < rows,
        acc,
        D,
        BD,
        WIDE,
        PRECISION,
    )
    # Of an empty row the backward pass wants 2^(s - L) = 0, and a merge 2^L = 0.
    nothing = float("-inf") if PARTIAL else float("inf")
    total = tl.where(empty, nothing, most + tl.log2(tl.where(empty, 1.0, total)))
    tl.store(lse + part.to(tl.int64) * lse_part + head.to(tl.int64) * rows + i, total, mask=i < rows)


@triton.jit(do_not_specialize=COUNTS)
def backward_query(
    query,
    key,
    value,
    key_mask,
    index,
    count,
    out,
    lse,
    grad_out,
    delta,  # (B, all heads, rows), written here
    grad_query,
    seed,
    query_strides,
    key_strides,
    value_strides,
    out_strides,
    grad_out_strides,
    grad_query_strides,
    grad_part,
    rows,
    columns,
    heads,
    first_head,
    all_heads,
    width,
    gap,
    left,
    right,
    causal,
    scale,
    grad_scale,
    keep_scale,
    draws,
    dropped,
    chunk,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """δ and the query's gradient of a block of rows; the same walk as forward."""
    left, right = _steps(left, right, rows, columns, gap)
    bh, cls, top = _block(rows, gap, BM)
    b, h, part = bh // heads, bh % heads, tl.program_id(1)
    head = b * all_heads + first_head + h
    key_head, value_head = _head(key, key_strides, b, h), _head(value, value_strides, b, h)
    row = top + tl.arange(0, BM)
    i = cls + row * gap
    line = head.to(tl.int64) * rows
    held = _present(key_mask if PADDED_ROWS else None, b, i, rows, i < rows)
    q = _load(_head(query, query_strides, b, h), query_strides, i, held, D, BD, WIDE)
    do = _load(_head(grad_out, grad_out_strides, b, h), grad_out_strides, i, held, D, BD, WIDE)
    o = _load(_head(out, out_strides, b, h), out_strides, i, i < rows, D, BD, WIDE)
    sums = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    if part == 0:
        tl.store(delta + line + i, sums, mask=i < rows)
    shift = tl.load(lse + line + i, mask=i < rows, other=float("inf"))
    draw = 0 if seed is None else tl.load(seed)
    acc = tl.zeros([BM, BD], tl.float32)

    ends = tl.cdiv(columns - cls, gap)
    first = tl.maximum(tl.maximum(top - left, 0) // BN * BN, part * chunk)
    last = tl.minimum(tl.minimum(top + BM + right, ends), (part + 1) * chunk)
    for n in range(first, last, BN):
        column = n + tl.arange(0, BN)
        j = cls + column * gap
        present = _present(key_mask, b, j, columns, column < ends)
        k = _load(key_head, key_strides, j, present, D, BD, WIDE)
        v = _load(value_head, value_strides, j, present, D, BD, WIDE)
        scores = _dot(q, tl.trans(k), None, PRECISION) * scale
        if (n < top + BM - 1 - left) | (n + BN > tl.minimum(top + right + 1, ends)):
            step = column[None, :] - row[:, None]
            scores = tl.where((step >= -left) & (step <= right) & (column < ends)[None, :], scores, float("-inf"))
        if key_mask is not None:
            scores = tl.where(present[None, :], scores, float("-inf"))
        probs = tl.exp2(scores - shift[:, None])
        grad = _dot(do, tl.trans(v), None, PRECISION)
        if seed is not None:
            grad = tl.where(_kept(draw, i, n, head, draws, dropped, BN, False), grad * keep_scale, 0.0)
        acc = _dot(_narrow(probs * (grad - sums[:, None]), k.dtype, PRECISION), k, acc, PRECISION)

    if index is not None:
        stop = tl.load(count + b)
        for g in range(0, stop, BN):
            slot = g + tl.arange(0, BN)
            j = tl.load(index + b.to(tl.int64) * width + slot, mask=slot < stop, other=0)
            k = _load(key_head, key_strides, j, slot < stop, D, BD, WIDE)
            v = _load(value_head, value_strides, j, slot < stop, D, BD, WIDE)
            scores = _dot(q, tl.trans(k), None, PRECISION) * scale
            beside = _outside(i[:, None], j[None, :], left, right, gap, causal)
            probs = tl.exp2(tl.where(beside & (slot < stop)[None, :], scores - shift[:, None], float("-inf")))
            grad = _dot(do, tl.trans(v), None, PRECISION)
            if seed is not None:
                grad = tl.where(_kept(draw, i, g, head, draws + 1, dropped, BN, False), grad * keep_scale, 0.0)
            acc = _dot(_narrow(probs * (grad - sums[:, None]), k.dtype, PRECISION), k, acc, PRECISION)

    to = _head(grad_query, grad_query_strides, b, h) + part.to(tl.int64) * grad_part
    _store(to, grad_query_strides, i, i < rows, acc * grad_scale, D, BD, WIDE, PRECISION)


@triton.jit(do_not_specialize=COUNTS)
def backward_key_value(
    query,
    key,
    value,
    key_mask,
    index,
    count,
    slots,  # (B, columns) each column's place in ``index``, -1 where it is not global
    lse,
    delta,
    grad_out,
    grad_key,
    grad_value,
    beside_key,  # (parts, B, heads, width, D) sums of the global columns over the rows beside whose band they stand
    beside_value,
    seed,
    query_strides,
    key_strides,
    value_strides,
    grad_out_strides,
    grad_key_strides,
    grad_value_strides,
    parts,
    rows,
    columns,
    heads,
    first_head,
    all_heads,
    batch,
    width,
    gap,
    left,
    right,
    causal,
    scale,
    grad_scale,
    keep_scale,
    draws,
    dropped,
    chunk,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BESIDE: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The gradients of a block of columns; scores stand on their side, (columns, rows).

    ``BESIDE`` sums parts of the global columns' gradients, a chunk of all rows each. Without it the block is one of the
    band's columns, and takes those parts in where it holds global columns.
    """
    left, right = _steps(left, right, rows, columns, gap)
    step: tl.constexpr = 1 if BESIDE else 0
    walk = gap * (1 - step) + step  # consecutive rows stand so far apart
    bh, cls, first_column = _block(width if BESIDE else columns, walk, BN)
    b, h, part = bh // heads, bh % heads, tl.program_id(1)
    head = b * all_heads + first_head + h
    column = first_column + tl.arange(0, BN)
    if BESIDE:
        ends = tl.load(count + b)
        j = tl.load(index + b.to(tl.int64) * width + column, mask=column < ends, other=0)
        first, last = part * chunk, tl.minimum((part + 1) * chunk, rows)
        last = tl.where(first_column < ends, last, first)  # nothing to do behind the last global column
    else:
        ends = tl.cdiv(columns - cls, gap)
        j = cls + column * gap
        first = tl.maximum(first_column - right, 0) // BM * BM
        last = tl.minimum(first_column + BN + left, tl.cdiv(rows - cls, gap))
    valid = column < ends
    k = _load(_head(key, key_strides, b, h), key_strides, j, valid, D, BD, WIDE)
    v = _load(_head(value, value_strides, b, h), value_strides, j, valid, D, BD, WIDE)
    query_head, do_head = _head(query, query_strides, b, h), _head(grad_out, grad_out_strides, b, h)
    line = head.to(tl.int64) * rows
    draw = 0 if seed is None else tl.load(seed)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)

    for m in range(first, last, BM):
        row = m + tl.arange(0, BM)
        i = cls + row * walk
        held = _present(key_mask if PADDED_ROWS else None, b, i, rows, i < rows)
        q = _load(query_head, query_strides, i, held, D, BD, WIDE)
        do = _load(do_head, grad_out_strides, i, held, D, BD, WIDE)
        shift = tl.load(lse + line + i, mask=i < rows, other=float("inf"))
        sums = tl.load(delta + line + i, mask=i < rows, other=0.0)
        scores = _dot(k, tl.trans(q), None, PRECISION) * scale - shift[None, :]
        if BESIDE:
            scores = tl.where(_outside(i[None, :], j[:, None], left, right, gap, causal), scores, float("-inf"))
        elif (m < first_column + BN - 1 - right) | (m + BM > first_column + left + 1):
            apart = column[:, None] - row[None, :]
            scores = tl.where((apart >= -left) & (apart <= right), scores, float("-inf"))
        probs = tl.exp2(scores)
        grad = _dot(v, tl.trans(do), None, PRECISION)
        dropped_probs = probs
        if seed is not None:
            kept = _kept(draw, i, first_column, head, draws + step, dropped, BN, True)
            grad = tl.where(kept, grad * keep_scale, 0.0)
            dropped_probs = tl.where(kept, probs * keep_scale, 0.0)
        dv = _dot(_narrow(dropped_probs, do.dtype, PRECISION), do, dv, PRECISION)
        dk = _dot(_narrow(probs * (grad - sums[None, :]), q.dtype, PRECISION), q, dk, PRECISION)

    dk *= grad_scale
    if BESIDE:
        dims = tl.arange(0, BD)
        at = ((part * batch + b) * heads + h).to(tl.int64) * width * D + column[:, None] * D + dims[None, :]
        mask = valid[:, None] & (dims < D)[None, :]
        tl.store(beside_key + at, dk, mask=mask)
        tl.store(beside_value + at, dv, mask=mask)
    else:
        if slots is not None:
            slot = tl.load(slots + b.to(tl.int64) * columns + j, mask=valid, other=-1)
            if tl.max(slot, 0) >= 0:
                dims = tl.arange(0, BD)
                mask = (slot >= 0)[:, None] & (dims < D)[None, :]
                for p in range(0, parts):
                    at = ((p * batch + b) * heads + h).to(tl.int64) * width * D + slot[:, None] * D + dims[None, :]
                    dk += tl.load(beside_key + at, mask=mask, other=0.0)
                    dv += tl.load(beside_value + at, mask=mask, other=0.0)
        if key_mask is not None:
            present = _present(key_mask, b, j, columns, valid)
            dk = tl.where(present[:, None], dk, 0.0)
            dv = tl.where(present[:, None], dv, 0.0)
        _store(_head(grad_key, grad_key_strides, b, h), grad_key_strides, j, valid, dk, D, BD, WIDE, PRECISION)
        _store(_head(grad_value, grad_value_strides, b, h), grad_value_strides, j, valid, dv, D, BD, WIDE, PRECISION)


@triton.jit(do_not_specialize=["parts", "lines", "rows"])
def merge(
    parts_out,  # (parts, lines, D)
    parts_lse,  # (parts, lines)
    out,  # (B, H, rows, D), laid out as (B, rows, H, D)
    lse,  # (lines,), a line being a row of a head
    parts,
    lines,
    rows,
    heads,
    D: tl.constexpr,
    BD: tl.constexpr,
    BM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention over all columns from attention over parts of them, by log-sum-exp, in the order of the parts."""
    line = tl.program_id(0) * BM + tl.arange(0, BM)
    dims = tl.arange(0, BD)
    total = tl.zeros([BM], tl.float32)
    most = tl.full([BM], float("-inf"), tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    at = line.to(tl.int64)
    for _ in range(0, parts):
        part = tl.load(parts_lse + at, mask=line < lines, other=float("-inf"))
        new = tl.maximum(most, part)
        shift = tl.where(new == float("-inf"), 0.0, new)
        shrink, weight = tl.exp2(most - shift), tl.exp2(part - shift)
        x = tl.load(parts_out + at[:, None] * D + dims[None, :], mask=(line < lines)[:, None] & (dims < D)[None, :])
        acc = acc * shrink[:, None] + tl.where(weight[:, None] > 0, x * weight[:, None], 0.0)
        total, most = total * shrink + weight, new
        at += lines
    empty = total == 0.0
    acc = tl.where(empty[:, None], 0.0, acc / tl.where(empty, 1.0, total)[:, None])
    place = (line // (heads * rows) * rows + line % rows).to(tl.int64) * heads + line // rows % heads
    at = place[:, None] * D + dims[None, :]
    if out.dtype.element_ty != tl.float32:
        acc = _narrow(acc, out.dtype.element_ty, PRECISION)
    tl.store(out + at, acc, mask=(line < lines)[:, None] & (dims < D)[None, :])
    tl.store(lse + line, tl.where(empty, float("inf"), most + tl.log2(tl.where(empty, 1.0, total))), mask=line < lines)
