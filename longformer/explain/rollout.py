"""Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, §3), carried as a vector along the band.

Rollout takes a layer for the matrix ½ A + ½ I: A is its attention, the mean of its heads, and I the residual
connection. The product of these matrices says how much of each input token is in each state of the last layer. Only
some rows of that product are wanted, those of the answer's tokens. So their mean is carried back, from the last layer
to the first, one product of a vector with a banded matrix a layer: S × W numbers each, and never an S × S matrix.

Letters: S sequence, G global tokens, W width of the band, A answers, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longformer.explain.probabilities import Attention, LayerPattern


def rollout(layers: Sequence[tuple[LayerPattern, Attention]], targets: Tensor) -> Tensor:
    """How much of each token is in ``targets``, through the last layer alone, the last two, and so on to all.

    Args:
        layers: from the first to the last, each with the mean of its heads.
        targets: (A, S), a row an answer: weights of the states of the last layer that sum to 1.

    Returns:
        (L, A, S): in [n - 1] through the last n layers. Each row sums to 1.
    """
    steps = []
    weights = targets
    for pattern, attention in reversed(layers):
        weights = 0.5 * weights + 0.5 * carried_back(weights, pattern, attention)
        steps.append(weights)
    return torch.stack(steps)


def carried_back(weights: Tensor, pattern: LayerPattern, attention: Attention) -> Tensor:
    """``weights`` (A, S) times the S × S matrix of ``attention``, without that matrix: (A, S)."""
    index, offsets, seq_len = pattern.global_index, attention.offsets, len(attention.band)
    left, right = max(0, -int(offsets[0])), max(0, int(offsets[-1]))
    # Row i gives column c of its band to token i + offsets[c], in a row that is longer by left and right.
    place = (torch.arange(left, left + seq_len)[:, None] + offsets).flatten()
    result = torch.empty_like(weights)
    for row, out in zip(weights, result, strict=True):
        padded = weights.new_zeros(left + seq_len + right)
        padded.index_add_(0, place, (row[:, None] * attention.band).flatten())
        out.copy_(padded[left : left + seq_len])
    result.index_add_(1, index, weights @ attention.columns)
    return result + weights[:, index] @ attention.rows
