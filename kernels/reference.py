"""The specification: Longformer's attention as one dense masked softmax. O(S²) time and memory, any device and dtype.

Every other implementation is held to this one, in outputs and in gradients. Nothing here is clever on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .problem import Problem
from .softmax import log_sum_exp, masked_softmax, scaled_scores, seen_pairs


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, see ``problem.py``. torch differentiates it."""
    tokens, keep = problem.tokens, problem.tokens.keep
    key, value = tokens.without_padding(key), tokens.without_padding(value)
    pairs: Tensor
    if problem.gathered:
        pairs = torch.ones(1, dtype=torch.bool, device=key.device) if keep is None else keep[:, None, None, :]
        if problem.rows is not None:
            pairs = pairs & (torch.arange(key.shape[2], device=key.device) <= problem.rows[:, None, :, None])
    else:
        query = tokens.without_padding(query)
        pairs = seen_pairs(query, problem)
    scores = scaled_scores(query, key, problem)  # (B, H, R, S)
    pairs = pairs.expand(scores.shape)
    probs = masked_softmax(scores, pairs).to(query.dtype)
    out = F.dropout(probs, problem.dropout_p) @ value
    # A padded row's probabilities are 0. Its gradient may still be anything, and must not reach the values.
    out = out if problem.gathered else tokens.without_padding(out)
    return out, log_sum_exp(scores.detach(), pairs)
