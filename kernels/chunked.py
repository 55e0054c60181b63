"""Attention in plain operators, for graphs that leave this package: exported programs and ONNX.

It has no loop over tiles, asks the data nothing but how many tokens are global, and makes no S × S tensor. The rows are
cut into N chunks of T. A chunk meets the columns of its band, T + left + right of them or all S if these are fewer, and
behind them the global columns. What a row does not see among these is masked by the pattern. So memory is S·(W + G).

Chunks are as even as they can be: the last is at most N - 1 rows short. The columns of a chunk that would reach beyond
the sequence are moved back into it. So a short input is one chunk of S rows and S columns, which is dense attention.

A window dilated by d joins tokens whose positions are equal modulo d. These d classes are d sequences side by side.

Letters: B batch, H heads, S sequence, D head dimension, W width of the band, G global tokens, d dilation, M = ceil(S/d)
tokens of a class, N chunks of T rows, K columns that a chunk meets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .pattern import AttentionPattern, Tokens
from .problem import Problem
from .softmax import log_sum_exp

LEAST_ROWS = 64  # of a chunk. More would meet too much outside their band, fewer would copy each column too often.


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention of the S tokens and its log-sum-exp, see ``problem.py``. torch differentiates it."""
    tokens = problem.tokens.with_index(counted=True)
    query, key, value = (tokens.without_padding(x) for x in (query, key, value))
    parts = [
        _of_heads(query[:, heads], key[:, heads], value[:, heads], gap, problem, tokens)
        for heads, gap in problem.pattern.head_runs(query.shape[1])
    ]
    out, lse = parts[0] if len(parts) == 1 else (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return tokens.without_padding(out), lse


def _of_heads(
    query: Tensor, key: Tensor, value: Tensor, gap: int, problem: Problem, tokens: Tokens
) -> tuple[Tensor, Tensor]:
    """The same for heads of one dilation. In a row of padding ``out`` is anything, and not NaN."""
    seq_len, pattern = query.shape[2], problem.pattern
    if not torch.compiler.is_compiling():  # a graph's length is any
        gap = min(gap, seq_len)  # from there on every token is alone in its class
    # Without negative numbers, whose quotients ONNX rounds towards 0.
    rows, columns = _cut((seq_len + gap - 1) // gap, pattern, query.device)
    queries = _taken(_classes(query, gap), rows)  # (B, H, d, N, T, D)
    keys, values = (_taken(_classes(x, gap), columns) for x in (key, value))  # (B, H, d, N, K, D)
    if tokens.global_index is not None:
        keys, values = (
            _with_global(x, of_all, tokens.global_index) for x, of_all in ((keys, key), (values, value))
        )  # K + G columns
    seen = _seen(rows, columns, gap, seq_len, pattern, tokens)
    wide = torch.promote_types(query.dtype, torch.float32)  # in float16 large scores would overflow
    scores = (queries.to(wide) * problem.scale) @ keys.to(wide).transpose(-2, -1)
    probs = scores.masked_fill(~seen, -math.inf).softmax(dim=-1).to(query.dtype)
    out = F.dropout(probs, problem.dropout_p) @ values
    lse = _in_order(log_sum_exp(scores.detach(), seen.expand(scores.shape))[..., None], seq_len)[..., 0]
    if tokens.keep is not None:
        lse = lse.masked_fill(~tokens.keep[:, None], math.inf)
    return _in_order(out, seq_len), lse


def _cut(length: int, pattern: AttentionPattern, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, T) rows and (N, K) columns of each chunk of a sequence; the last chunk's last rows may repeat its end.

    N, T and K are numbers of entries that a mask chooses. In a graph they are then sizes of which nothing is known: a
    graph that computed them would be made for those lengths alone that have more than one chunk, or more than one row.
    """
    left, right = (length, length) if pattern.window is None else pattern.window
    right = 0 if pattern.causal else right
    most = LEAST_ROWS if pattern.window is None else max(LEAST_ROWS, (left + right) // 4)
    chunks = (length + most - 1) // most
    rows = (length + chunks - 1) // chunks
    position = torch.arange(length, device=device)
    first = position * rows
    first = first[first < length][:, None]
    row = (first + position[position < rows]).clamp(max=length - 1)
    step = position[position < rows + left + right]
    column = torch.minimum((first - left).clamp(min=0), length - 1 - step.max()) + step
    return row, column


def _seen(rows: Tensor, columns: Tensor, gap: int, seq_len: int, pattern: AttentionPattern, tokens: Tokens) -> Tensor:
    """What each row sees of its chunk's columns and of the global ones: (B or 1, 1, d, N, T, K + G) bool.

    Rows of padding and rows beyond the sequence see everything: a softmax of nothing is NaN. Every other row sees at
    least itself.
    """
    place = torch.arange(gap, device=rows.device)[:, None, None]
    row, column = ((index * gap + place)[..., None] for index in (rows, columns))  # (d, N, T, 1) and (d, N, K, 1)
    column = column.transpose(-2, -1)
    seen = (pattern.in_band(column - row, gap) & (column < seq_len))[None, None]
    keep, index = tokens.keep, tokens.global_index
    if keep is not None:
        seen = seen & keep[:, column.clamp(max=seq_len - 1)][:, None]
    if index is not None:
        globally = index[:, None, None, None, None]  # (B, 1, 1, 1, 1, G)
        beside = pattern.beside_band(globally - row, gap) & (globally >= 0)
        seen = torch.cat([seen.expand(index.shape[0], -1, -1, -1, -1, -1), beside], dim=-1)
    if gap > 1:
        seen = seen | (row >= seq_len)
    return seen if keep is None else seen | ~keep[:, row.clamp(max=seq_len - 1)][:, None]


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, d, M, D) to (B, H, d, N, K, D), the tokens that ``index`` (N, K) names."""
    return x.index_select(3, index.flatten()).unflatten(3, index.shape)


def _with_global(x: Tensor, of_all: Tensor, index: Tensor) -> Tensor:
    """Columns (B, H, d, N, K, D) and behind them, in every chunk, those at ``index`` (B, G) of (B, H, S, D)."""
    places = index.clamp(min=0)[:, None, :, None].expand(-1, of_all.shape[1], -1, of_all.shape[3])
    columns = of_all.gather(2, places)[:, :, None, None]
    return torch.cat([x, columns.expand(-1, -1, x.shape[2], x.shape[3], -1, -1)], dim=-2)


def _classes(x: Tensor, gap: int) -> Tensor:
    """(B, H, S, D) to (B, H, d, M, D): token m of class c is token m·d + c of the sequence; beyond its end it is 0."""
    if gap == 1:
        return x[:, :, None]
    seq_len = x.shape[2]
    count = (seq_len + gap - 1) // gap
    return F.pad(x, (0, 0, 0, count * gap - seq_len)).unflatten(2, (count, gap)).transpose(2, 3)


def _in_order(x: Tensor, seq_len: int) -> Tensor:
    """(B, H, d, N, T, D) to (B, H, S, D)."""
    x = x.flatten(3, 4)  # at least M rows of each class
    x = x.squeeze(2) if x.shape[2] == 1 else x.transpose(2, 3).flatten(2, 3)
    return x.index_select(2, torch.arange(seq_len, device=x.device))
