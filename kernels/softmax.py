"""The masked softmax that the dense and the banded formulation share, and the dense scores that go into it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .masks import MaskPattern
from .problem import LOG2_E, Problem


def seen_pairs(query: Tensor, problem: Problem) -> Tensor:
    """Which column each row sees: bool that broadcasts to (B, H, S, S). ``query``: (B, H, S, D)."""
    batch, heads, seq_len, _ = query.shape
    if isinstance(problem.pattern, MaskPattern):  # whose functions may ask for the example
        return problem.pattern.pairs(seq_len, problem.tokens, heads=heads, device=query.device, batch=batch)
    return problem.pattern.pairs(seq_len, problem.tokens, heads=heads, device=query.device)


def scaled_scores(query: Tensor, key: Tensor, problem: Problem) -> Tensor:
    """(B, H, R, S) in at least float32: in float16 large scores would overflow. With the pattern's change of them."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) * problem.scale) @ key.to(wide).transpose(-2, -1)
    if isinstance(problem.pattern, MaskPattern) and not problem.gathered:
        return problem.pattern.changed_scores(scores)
    return scores


def masked_softmax(scores: Tensor, pairs: Tensor) -> Tensor:
    """Softmax over the last axis among ``pairs`` only, in at least float32; a row without any pair is 0, not NaN."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    empty = ~pairs.any(dim=-1, keepdim=True)
    # An empty row is given every column, so that neither its values nor its gradients are NaN, and is then zeroed.
    scores = scores.masked_fill(~(pairs | empty), -math.inf)
    return scores.softmax(dim=-1).masked_fill(empty, 0.0)


def log_sum_exp(scores: Tensor, pairs: Tensor) -> Tensor:
    """Of ``scores`` among ``pairs``, in base 2, without the last axis; +inf in a row without any pair."""
    empty = ~pairs.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~pairs, -math.inf)
    # Written out: a graph that has no rows for some data cannot hold torch.logsumexp, which asks whether there are any.
    most = scores.amax(dim=-1, keepdim=True).masked_fill(empty, 0.0)
    lse = ((scores - most).exp().sum(dim=-1, keepdim=True).log() + most) * LOG2_E
    return lse.masked_fill(empty, math.inf).squeeze(-1)
