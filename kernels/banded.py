"""The paper's formulation: the band as diagonals, S × W numbers instead of S × S (arXiv 2004.05150, §3.2).

Query and key are cut into blocks of T rows. One dense product multiplies each block of queries with the T + W - 1 keys
that its band touches. The band is then read from the diagonals of this (T, T + W - 1) matrix: if row r moves left by r
places, the diagonals become columns. This move ("skew") only changes the length of the rows; it is not a gather.

This implementation can return attention probabilities. To compute attention, use the blocked one, which is faster.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .masks import Pattern
from .problem import Problem
from .softmax import log_sum_exp, masked_softmax, scaled_scores, seen_pairs

BLOCK = 128  # rows of a block: with fewer the products are too small, with more too much outside the band is computed


class BandProbabilities(NamedTuple):
    """Attention probabilities by diagonals.

    Args:
        band: (B, H, S, W). Column c of row i is the probability of key i + (c - left)·dilation.
        columns: (B, H, S, G). The probability of the global column ``column_index[b, g]``, if it lies outside the row's
            band. Otherwise the probability is in ``band``, and this is 0.
        column_index: (B, G), positions of the global tokens. Examples with fewer global tokens are filled with -1.
    """

    band: Tensor
    columns: Tensor
    column_index: Tensor

    def dense(self, pattern: Pattern) -> Tensor:
        """The same probabilities as a matrix (B, H, S, S), 0 where a row sees nothing.

        Args:
            pattern: the pattern with which they were computed.
        """
        heads, seq_len, width = self.band.shape[1:]
        left = seq_len - 1 if pattern.window is None else pattern.window[0]
        steps = torch.arange(-left, width - left, device=self.band.device)
        gaps = torch.tensor(pattern.gaps(heads), device=self.band.device)[:, None, None]
        column = torch.arange(seq_len, device=self.band.device)[:, None] + steps * gaps  # (H, S, W)
        # Outside the sequence the probability is 0. It may be added to any column.
        places = column.clamp(0, seq_len - 1).expand_as(self.band)
        dense = self.band.new_zeros(*self.band.shape[:3], seq_len).scatter_add(3, places, self.band)
        return dense.scatter_add(3, self.column_index.clamp(min=0)[:, None, None].expand_as(self.columns), self.columns)

    def with_global_columns_apart(self, pattern: Pattern) -> BandProbabilities:
        """The same probabilities. Those of all global columns are in ``columns``, and their places in ``band`` are 0.

        Args:
            pattern: the pattern with which the probabilities were computed.
        """
        heads, seq_len, width = self.band.shape[1:]
        step = self.column_index[:, None, None, :] - torch.arange(seq_len, device=self.band.device)[:, None]
        gap = torch.tensor(pattern.gaps(heads), device=self.band.device)[:, None, None]
        in_band = pattern.in_band(step, gap) & (self.column_index >= 0)[:, None, None, :]  # (B, H, S, G)
        left = seq_len - 1 if pattern.window is None else pattern.window[0]
        # A global column outside the band is sent to an extra column, which is removed again.
        place = torch.where(in_band, step.div(gap, rounding_mode="floor") + left, width)
        band = F.pad(self.band, (0, 1))
        columns = self.columns + band.gather(3, place)
        return BandProbabilities(band.scatter(3, place, 0)[..., :width], columns, self.column_index)


def banded_scores(query: Tensor, key: Tensor, window: tuple[int, int], dilation: int = 1) -> Tensor:
    """Dot products along the band.

    Args:
        query, key: (B, H, S, D).
        window: (left, right).
        dilation: gap between the tokens of the window.

    Returns:
        (B, H, S, W), W = left + 1 + right. Column c of row i is the dot product of query i and key
        i + (c - left)·dilation, or 0 if this key lies outside the sequence. (Writing ``-inf`` is the softmax's task.)
    """
    seq_len, (left, right) = query.shape[-2], window
    width = left + 1 + right
    query, key = _classes(query, dilation), _classes(key, dilation)  # (B, H, d, S/d, D)
    rows = min(query.shape[-2], BLOCK)
    query = _pad_rows(query, 0, -query.shape[-2] % rows)
    blocks = query.unflatten(-2, (-1, rows))  # (B, H, d, blocks, T, D)
    keys = _key_blocks(key, blocks.shape[-3], rows, window)  # (B, H, d, blocks, D, T + W - 1)
    band = _skew(blocks @ keys, width).flatten(-3, -2)
    return _unclasses(band[..., : key.shape[-2], :], seq_len)


def banded_product(probs: Tensor, value: Tensor, window: tuple[int, int], dilation: int = 1) -> Tensor:
    """Sum of values along the band, the partner of :func:`banded_scores`.

    Args:
        probs: (B, H, S, W). An entry whose key lies outside the sequence has no effect.
        value: (B, H, S, D).

    Returns:
        (B, H, S, D): row i is the sum over c of probs[i, c] · value[i + (c - left)·dilation].
    """
    seq_len = value.shape[-2]
    probs, value = _classes(probs, dilation), _classes(value, dilation)
    rows = min(value.shape[-2], BLOCK)
    probs = _pad_rows(probs, 0, -probs.shape[-2] % rows)
    blocks = probs.unflatten(-2, (-1, rows))  # (B, H, d, blocks, T, W)
    values = _key_blocks(value, blocks.shape[-3], rows, window)
    out = (_unskew(blocks) @ values.transpose(-2, -1)).flatten(-3, -2)
    return _unclasses(out[..., : value.shape[-2], :], seq_len)


def probabilities(query: Tensor, key: Tensor, problem: Problem) -> BandProbabilities:
    """Attention probabilities before dropout, see :func:`longformer.kernels.sliding_window_probabilities`."""
    if not problem.pattern.is_band:
        return _of_any_mask(query, key, problem)
    seq_len, window = query.shape[2], problem.pattern.window
    sides = (seq_len - 1, seq_len - 1) if window is None else window
    probs, columns, index, _ = _softmax(query, key, problem, sides)
    return BandProbabilities(probs, columns, index)


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention of the S tokens and its log-sum-exp, see ``problem.py``. torch differentiates it."""
    sides = problem.pattern.sides(query.shape[2])
    band, columns, index, lse = _softmax(query, key, problem, sides)
    band, columns = F.dropout(band, problem.dropout_p), F.dropout(columns, problem.dropout_p)
    value = problem.tokens.without_padding(value)
    runs = problem.pattern.head_runs(query.shape[1])
    out = torch.cat([banded_product(band[:, heads], value[:, heads], sides, gap) for heads, gap in runs], dim=1)
    out = out + columns @ torch.take_along_dim(value, index.clamp(min=0)[:, None, :, None], dim=2)
    # The probabilities of a padding row are 0. Its incoming gradient may be anything; it must not reach the values.
    return problem.tokens.without_padding(out), lse


def _of_any_mask(query: Tensor, key: Tensor, problem: Problem) -> BandProbabilities:
    """By the diagonals of a window that holds everything, S × (2S - 1) numbers, of which global columns are a part."""
    seq_len, tokens = query.shape[2], problem.tokens
    query, key = (tokens.without_padding(x) for x in (query, key))
    pairs = seen_pairs(query, problem)
    scores = scaled_scores(query, key, problem)
    probs = masked_softmax(scores, pairs.expand(scores.shape)).to(query.dtype)
    column = torch.arange(seq_len, device=query.device)[:, None] + torch.arange(1 - seq_len, seq_len, device=key.device)
    outside = (column < 0) | (column >= seq_len)
    band = probs.gather(3, column.clamp(0, seq_len - 1).expand(*probs.shape[:3], -1)).masked_fill(outside, 0)
    index = tokens.with_index(counted=True).global_index
    index = torch.zeros(len(query), 0, dtype=torch.int64, device=query.device) if index is None else index
    return BandProbabilities(band, band.new_zeros(*band.shape[:3], index.shape[1]), index)


def _softmax(
    query: Tensor, key: Tensor, problem: Problem, sides: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities of the band (B, H, S, W) and of the global columns outside it (B, H, S, G), the positions of these
    columns (B, G), and the log-sum-exp (B, H, S). ``sides`` is the number of diagonals on the left and on the right.
    """
    pattern, tokens, dtype = problem.pattern, problem.tokens, query.dtype
    batch, count, seq_len, _ = query.shape
    wide = torch.promote_types(dtype, torch.float32)  # large scores would overflow in float16
    query, key = (tokens.without_padding(x).to(wide) for x in (query, key))
    query = query * problem.scale

    steps = torch.arange(-sides[0], sides[1] + 1, device=query.device)
    row = torch.arange(seq_len, device=query.device)
    gaps = torch.tensor(pattern.gaps(count), device=query.device)[:, None, None]  # (H, 1, 1)
    column = row[:, None] + steps * gaps  # (H, S, W)
    seen = (column >= 0) & (column < seq_len) & pattern.in_band(column - row[:, None], gaps)
    if tokens.keep is not None:
        seen = seen & tokens.keep[:, column.clamp(0, seq_len - 1)]  # (B, H, S, W)
    runs = pattern.head_runs(count)
    band = torch.cat([banded_scores(query[:, heads], key[:, heads], sides, gap) for heads, gap in runs], dim=1)

    index = tokens.with_index(counted=True).global_index
    if index is None:
        index = torch.zeros(batch, 0, dtype=torch.int64, device=query.device)
    places = index.clamp(min=0)  # (B, G)
    columns = query @ torch.take_along_dim(key, places[:, None, :, None], dim=2).transpose(-2, -1)  # (B, H, S, G)
    beside = pattern.beside_band(places[:, None, None, :] - row[:, None], gaps) & (index >= 0)[:, None, None, :]

    scores = torch.cat([columns, band], dim=-1)
    seen = torch.cat([beside.expand(columns.shape), seen.expand(band.shape)], dim=-1)
    if tokens.keep is not None:
        seen = seen & tokens.keep[:, None, :, None]
    probs = masked_softmax(scores, seen).to(dtype)
    columns, band = probs.split([index.shape[1], len(steps)], dim=-1)
    return band, columns, index, log_sum_exp(scores.detach(), seen)


def _skew(dense: Tensor, width: int) -> Tensor:
    """(..., T, T + W - 1) to (..., T, W): row r keeps its columns r to r + W - 1.

    The flat matrix is read again with rows that are one entry longer. So each row starts one column further right than
    the row before it.
    """
    rows = dense.shape[-2]
    return F.pad(dense.flatten(-2), (0, rows)).unflatten(-1, (rows, rows + width))[..., :width]


def _unskew(band: Tensor) -> Tensor:
    """(..., T, W) to (..., T, T + W - 1): the inverse of ``_skew``, with zeros outside the band."""
    rows, width = band.shape[-2:]
    return F.pad(band, (0, rows)).flatten(-2)[..., :-rows].unflatten(-1, (rows, rows + width - 1))


def _key_blocks(key: Tensor, blocks: int, rows: int, window: tuple[int, int]) -> Tensor:
    """(..., S, D) to (..., blocks, D, T + W - 1): the keys that each block of queries meets. They overlap.

    Places outside the sequence are 0.
    """
    left, right = window
    key = _pad_rows(key, left, right + blocks * rows - key.shape[-2])
    return key.unfold(-2, rows + left + right, rows)


def _pad_rows(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, before, after))


def _classes(x: Tensor, dilation: int) -> Tensor:
    """(B, H, S, D) to (B, H, d, ceil(S/d), D): one class for all tokens that a window dilated by d can join."""
    dilation = min(dilation, x.shape[-2])  # from there on every token is alone in its class
    return _pad_rows(x, 0, -x.shape[-2] % dilation).unflatten(-2, (-1, dilation)).transpose(-3, -2)


def _unclasses(x: Tensor, seq_len: int) -> Tensor:
    return x.transpose(-3, -2).flatten(-3, -2)[..., :seq_len, :]
