"""Attention of tokens to what stands before them, in plain torch, with the scores of relative positions.

Windows are computed by blocks of rows, in time and memory linear in the number of rows; any mask, score or union is one
dense matrix.

Letters: B batch, S rows: the last S of M + S tokens, H heads, D head dimension, W width of the window, n rows of a
block, L = left + n columns that a block of rows can see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.kernels import MaskPattern, Tokens
from longformer.kernels.masks import of_pairs
from longformer.kernels.softmax import masked_softmax

LEAST_BLOCK = 32  # rows; smaller blocks are more products than work


class Attended(NamedTuple):
    """out: (B, H, S, D). band: makes (B, H, S, W), the probabilities before dropout; 0 where there is no token."""

    out: Tensor
    band: Callable[[], Tensor]


def sinusoids(distances: Tensor, size: int) -> Tensor:
    """Sines of the distances, then cosines, with wavelengths from 2π to 10,000·2π: (W,) to (W, size) in float64."""
    half = (size + 1) // 2
    numbers = torch.arange(half, device=distances.device, dtype=torch.float64)
    frequencies = torch.exp(numbers * (-math.log(10_000.0) / half))
    angles = distances[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :size]


def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_scores: Tensor | None,
    *,
    left: int,
    gap: int,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Attended:
    """Attention of every row to itself and to ``left`` tokens before it, each ``gap`` before the next.

    Tokens whose numbers differ by a multiple of the gap are sequences of their own, and have windows without a gap.

    Args:
        query: (B, H, S, D), scaled, of the last S tokens.
        key, value: (B, H, M + S, D).
        position_scores: (B, H, S, W), added to the scores; None adds nothing.
        left: tokens that a row sees before itself.
        gap: from one to the next.
        keep: (B, M + S) bool, False at padding; None if there is none.
        dropout_p: of the probabilities.
    """
    if gap == 1:
        return window_attention(query, key, value, position_scores, left=left, keep=keep, dropout_p=dropout_p)
    batch, rows = query.shape[0], query.shape[2]
    front, back = -(key.shape[2] - rows) % gap, -rows % gap

    def apart(x: Tensor, front: int) -> Tensor:
        """(B, H, N, D) to (B·gap, H, N / gap, D), after a filling that makes N a multiple of the gap."""
        x = F.pad(x, (0, 0, front, back)).unflatten(2, (-1, gap))
        return x.movedim(3, 1).flatten(0, 1)

    there = torch.ones(batch, key.shape[2], dtype=torch.bool, device=key.device) if keep is None else keep
    found = window_attention(
        apart(query, 0),
        apart(key, front),
        apart(value, front),
        None if position_scores is None else apart(position_scores, 0),
        left=left,
        keep=apart(there[:, None, :, None], front)[:, 0, :, 0],
        dropout_p=dropout_p,
    )

    def together(x: Tensor) -> Tensor:
        return x.unflatten(0, (batch, gap)).movedim(1, 3).flatten(2, 3)[:, :, :rows]

    return Attended(together(found.out), lambda: together(found.band()))


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_scores: Tensor | None,
    *,
    left: int,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Attended:
    """As :func:`dilated_attention` with a gap of 1. Time and memory are linear in the number of rows."""
    rows, old = query.shape[2], key.shape[2] - query.shape[2]
    block = min(rows, max(left, LEAST_BLOCK))
    back = -rows % block
    columns = left + block
    front = left - old  # negative where more is remembered than the window reaches

    def blocks(x: Tensor) -> Tensor:
        """(B, H, M + S, D) to (B, H, blocks, D, L)."""
        return F.pad(x, (0, 0, front, back)).unfold(2, columns, block)

    scores = F.pad(query, (0, 0, 0, back)).unflatten(2, (-1, block)) @ blocks(key)
    wide = torch.promote_types(scores.dtype, torch.float32)
    if position_scores is None:
        position_scores = scores.new_zeros(1, 1, rows, left + 1)
    beside = F.pad(position_scores.to(wide), (0, 0, 0, back)).unflatten(2, (-1, block))
    scores = scores.to(wide) + _to_columns(beside, columns)
    there = torch.ones(1, key.shape[2], dtype=torch.bool, device=key.device) if keep is None else keep
    there = F.pad(there, (front, back)).unfold(1, columns, block)[:, None, :, None]  # (B or 1, 1, blocks, 1, L)
    itself = torch.ones(block, columns, dtype=torch.bool, device=key.device).triu(left).tril(left)
    probs = scores.masked_fill(~(there | itself), float("-inf")).softmax(-1).to(value.dtype)
    out = F.dropout(probs, dropout_p) @ blocks(value).mT
    out = out.flatten(2, 3)[:, :, :rows]
    is_padding = None if keep is None else ~keep[:, None, old:, None]
    if is_padding is not None:
        out = out.masked_fill(is_padding, 0)

    def band() -> Tensor:
        found = _to_band(probs, left + 1).flatten(2, 3)[:, :, :rows]
        return found if is_padding is None else found.masked_fill(is_padding, 0)

    return Attended(out, band)


def _to_columns(band: Tensor, columns: int) -> Tensor:
    """(..., n, W) to (..., n, L): column c of row i becomes column i + c, and -inf stands beside the window."""
    block = band.shape[-2]
    filled = F.pad(band, (0, block), value=float("-inf"))  # L + 1 columns, so that each row begins one later
    return filled.flatten(-2)[..., : block * columns].unflatten(-1, (block, columns))


def _to_band(dense: Tensor, width: int) -> Tensor:
    """(..., n, L) to (..., n, W), the inverse of :func:`_to_columns`."""
    block, columns = dense.shape[-2:]
    return F.pad(dense.flatten(-2), (0, block)).unflatten(-1, (block, columns + 1))[..., :width]


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_scores: Tensor | None,
    pattern: MaskPattern,
    *,
    first_column: int = 0,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Attended:
    """Attention of every row to the tokens that a mask, a score or a union of windows lets it see: a dense matrix.

    Args:
        query: (B, H, S, D), scaled, of the last S tokens.
        key, value: (B, H, M + S, D).
        position_scores: (B, H, S, M + S), by distance: the last column is the row itself. They are added to the scores
            before the pattern's own function changes these. None adds nothing.
        pattern: causal.
        first_column: place in the text of the first of the M + S tokens, by which the functions are asked.
        keep: (B, M + S) bool, False at padding; None if there is none.
        dropout_p: of the probabilities.
    """
    batch, heads, rows, _ = query.shape
    columns, device = key.shape[2], query.device
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).mT
    place = torch.arange(columns, device=device)
    if position_scores is not None:
        # Column j stands M + i - j before row i; a later one is given any score, since nobody sees it.
        at = (place - torch.arange(rows, device=device)[:, None] + rows - 1).clamp(max=columns - 1)
        scores = scores + position_scores.to(wide).gather(3, at.expand_as(scores))
    first_row = first_column + columns - rows
    scores = pattern.changed_scores(scores, first_row=first_row, first_column=first_column)
    b, h = torch.arange(batch, device=device), torch.arange(heads, device=device)
    row, column = torch.arange(rows, device=device) + first_row, place + first_column
    sees = of_pairs(pattern.mask_mod(Tokens(keep), heads=heads, device=device), pattern.name)
    seen = sees(b[:, None, None, None], h[:, None, None], row[:, None], column)
    probs = masked_softmax(scores, seen).to(value.dtype)
    out = F.dropout(probs, dropout_p) @ value

    return Attended(out, lambda: _to_band(F.pad(probs, (rows - 1, 0)), columns))
