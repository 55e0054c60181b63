"""Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, §3), carried as a vector along the band.

Rollout replaces a layer by the matrix ½ A + ½ I. A is the layer's attention, the mean of its heads. I is the residual
connection. The product of these matrices says how much of each input token is in each state of the last layer. We want
only the rows of the answer's tokens. So their mean is carried back, from the last layer to the first. Each layer costs
one product of a vector with a banded matrix, which is S × W numbers. There is never an S × S matrix.

Letters: S sequence, G global tokens, W width of the band, A answers, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longformer.explain.probabilities import Attention


def rollout(layers: Sequence[Attention], targets: Tensor) -> Tensor:
    """How much of each token is in ``targets``, through the last layer alone, through the last two, up to all.

    Args:
        layers: the mean of each layer's heads, from the first layer to the last.
        targets: (A, S), one row for each answer: weights of the states of the last layer. They sum to 1.

    Returns:
        (L, A, S): entry [n - 1] goes through the last n layers. Each row sums to 1.
    """
    steps = []
    weights = targets
    for attention in reversed(layers):
        weights = 0.5 * weights + 0.5 * carried_back(weights, attention)
        steps.append(weights)
    return torch.stack(steps)


def carried_back(weights: Tensor, attention: Attention) -> Tensor:
    """``weights`` (A, S) times the S × S matrix of ``attention``, without making that matrix: (A, S)."""
    offsets, seq_len = attention.offsets, len(attention.band)
    result = torch.zeros_like(weights)
    if len(offsets):
        left, right = max(0, -int(offsets[0])), max(0, int(offsets[-1]))
        # Row i gives column c of its band to token i + offsets[c]. `padded` is longer by left and right, so that it has
        # a place for tokens outside the sequence too, whose probability is 0.
        place = (torch.arange(left, left + seq_len)[:, None] + offsets).flatten()
        for row, out in zip(weights, result, strict=True):
            padded = weights.new_zeros(left + seq_len + right)
            padded.index_add_(0, place, (row[:, None] * attention.band).flatten())
            out.copy_(padded[left : left + seq_len])
    result.index_add_(1, attention.global_index, weights @ attention.columns)
    return result + weights[:, attention.row_index] @ attention.rows
