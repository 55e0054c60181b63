"""The paper's formulation: the band as diagonals, S × W numbers instead of S × S (arXiv 2004.05150, §3.2).

Query and key are cut into blocks of T rows, each block of queries meets the T + W - 1 keys that its band touches in
one dense product, and the band is read off that product's diagonals: if every row of a (T, T + W - 1) matrix is moved
left by its own number, its diagonals become columns. That shift is a change of row length ("skew"), not a gather.

This is the implementation that can return attention probabilities. The blocked one is the one to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .pattern import AttentionPattern

BLOCK = 128  # rows of a block: below it the products are too small, above it too much off the band is computed


class BandProbabilities(NamedTuple):
    """Attention probabilities by diagonals.

    Args:
        band: (B, H, S, W): column c of row i is its probability for key i + (c - left)·dilation.
        columns: (B, H, S, G): its probability for the global column ``column_index[b, g]`` where that lies outside the
            row's band; inside, the probability stands in ``band``, and here is 0.
        column_index: (B, G): positions of the global tokens; -1 fills up where an example has fewer.
    """

    band: Tensor
    columns: Tensor
    column_index: Tensor

    def with_global_columns_apart(self, pattern: AttentionPattern) -> BandProbabilities:
        """The same with every probability of a global column in ``columns``, and 0 in its place in ``band``.

        Args:
            pattern: the one that the probabilities were computed with.
        """
        heads, seq_len, width = self.band.shape[1:]
        step = self.column_index[:, None, None, :] - torch.arange(seq_len, device=self.band.device)[:, None]
        gap = torch.tensor(pattern.gaps(heads), device=self.band.device)[:, None, None]
        in_band = pattern.in_band(step, gap) & (self.column_index >= 0)[:, None, None, :]  # (B, H, S, G)
        left = seq_len - 1 if pattern.window is None else pattern.window[0]
        # What stands outside the band goes to one column more, which is cut off again.
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
        (B, H, S, W), W = left + 1 + right: column c of row i is query i · key i + (c - left)·dilation, and 0 where
        that key lies outside the sequence (``-inf`` belongs into a softmax, not into a product).
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
        probs: (B, H, S, W); an entry whose key lies outside the sequence counts for nothing.
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


def probabilities(
    query: Tensor,
    key: Tensor,
    window: tuple[int, int],
    *,
    dilation: Sequence[int],
    causal: bool,
    key_mask: Tensor | None,
    global_mask: Tensor | None,
    scale: float,
) -> BandProbabilities:
    """See :func:`longformer.kernels.sliding_window_probabilities`, which checks the arguments."""
    batch, heads, seq_len, _ = query.shape
    keep = torch.ones(batch, seq_len, dtype=torch.bool, device=query.device) if key_mask is None else key_mask
    query = query * scale

    offsets = torch.arange(-window[0], window[1] + 1, device=query.device)
    row = torch.arange(seq_len, device=query.device)
    gaps = torch.tensor(list(dilation), device=query.device)
    column = row[:, None] + offsets * gaps[:, None, None]  # (H, S, W)
    inside = (column >= 0) & (column < seq_len)
    seen = inside & keep[:, column.clamp(0, seq_len - 1)]  # (B, H, S, W)
    if causal:
        seen = seen & (offsets <= 0)
    band = torch.cat([banded_scores(query[:, s], key[:, s], window, d) for s, d in _head_runs(dilation)], dim=1)

    index = _padded_index(global_mask, batch, query.device)  # (B, G)
    at = index.clamp(min=0)
    columns = query @ torch.take_along_dim(key, at[:, None, :, None], dim=2).transpose(-2, -1)  # (B, H, S, G)
    step = at[:, None, None, :] - row[:, None]  # (B, 1, S, G)
    gap = gaps[:, None, None]
    in_band = (step % gap == 0) & (step >= -window[0] * gap) & (step <= window[1] * gap)
    column_seen = (index >= 0)[:, None, None, :] & ~in_band
    if causal:
        column_seen = column_seen & (step <= 0)

    scores = torch.cat([columns, band], dim=-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    seen = torch.cat([column_seen, seen], dim=-1) & keep[:, None, :, None]
    empty = ~seen.any(dim=-1, keepdim=True)
    probs = scores.masked_fill(~(seen | empty), float("-inf")).softmax(dim=-1).masked_fill(empty, 0.0)
    columns, band = probs.to(query.dtype).split([index.shape[1], offsets.shape[0]], dim=-1)
    return BandProbabilities(band, columns, index)


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
    band, columns, index = probabilities(
        query,
        key,
        window,
        dilation=dilation,
        causal=causal,
        key_mask=key_mask,
        global_mask=global_mask,
        scale=scale,
    )
    band, columns = F.dropout(band, dropout_p), F.dropout(columns, dropout_p)
    out = torch.cat([banded_product(band[:, s], value[:, s], window, d) for s, d in _head_runs(dilation)], dim=1)
    return out + columns @ torch.take_along_dim(value, index.clamp(min=0)[:, None, :, None], dim=2)


def _skew(dense: Tensor, width: int) -> Tensor:
    """(..., T, T + W - 1) to (..., T, W): row r gives its columns r to r + W - 1.

    Read with rows longer by one, each row of the flat matrix begins one column further right than the last.
    """
    rows = dense.shape[-2]
    return F.pad(dense.flatten(-2), (0, rows)).unflatten(-1, (rows, rows + width))[..., :width]


def _unskew(band: Tensor) -> Tensor:
    """(..., T, W) to (..., T, T + W - 1): the inverse of ``_skew``, zero off the band."""
    rows, width = band.shape[-2:]
    return F.pad(band, (0, rows)).flatten(-2)[..., :-rows].unflatten(-1, (rows, rows + width - 1))


def _key_blocks(key: Tensor, blocks: int, rows: int, window: tuple[int, int]) -> Tensor:
    """(..., S, D) to the overlapping (..., blocks, D, T + W - 1) that each block of queries meets; zero outside."""
    left, right = window
    key = _pad_rows(key, left, right + blocks * rows - key.shape[-2])
    return key.unfold(-2, rows + left + right, rows)


def _pad_rows(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, before, after))


def _classes(x: Tensor, dilation: int) -> Tensor:
    """(B, H, S, D) to (B, H, d, ceil(S/d), D): the tokens that a dilated window can join, one class each."""
    return _pad_rows(x, 0, -x.shape[-2] % dilation).unflatten(-2, (-1, dilation)).transpose(-3, -2)


def _unclasses(x: Tensor, seq_len: int) -> Tensor:
    return x.transpose(-3, -2).flatten(-3, -2)[..., :seq_len, :]


def _head_runs(dilation: Sequence[int]) -> list[tuple[slice, int]]:
    """Neighbouring heads of one dilation, as slices."""
    runs: list[tuple[slice, int]] = []
    for head, gap in enumerate(dilation):
        if runs and runs[-1][1] == gap:
            runs[-1] = (slice(runs[-1][0].start, head + 1), gap)
        else:
            runs.append((slice(head, head + 1), gap))
    return runs


def _padded_index(global_mask: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """(B, S) bool to (B, G) positions, G the largest number in the batch, filled up with -1."""
    if global_mask is None:
        return torch.zeros(batch, 0, dtype=torch.long, device=device)
    count = int(global_mask.sum(dim=1).max())
    order = torch.sort((~global_mask).to(torch.int8), dim=1, stable=True).indices[:, :count]
    return order.masked_fill(~global_mask.gather(1, order), -1)
