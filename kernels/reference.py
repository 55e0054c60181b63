"""The specification: Longformer's attention as one dense masked softmax. O(S²) time and memory, any device and dtype.

Every other implementation is held to this one, in outputs and in gradients. Nothing here is clever on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_pairs(
    seq_len: int,
    window: tuple[int, int],
    *,
    dilation: Sequence[int] = (1,),
    causal: bool = False,
    key_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which column each row attends to: (B or 1, H or 1, S, S) bool, True where row i sees column j.

    The union of the dilated band and of the global columns (paper §3.1, figure 2d), less what comes later if
    ``causal``, less padded rows and columns. A pair is in the union once, however many rules put it there.
    """
    i = torch.arange(seq_len, device=device)[:, None]
    j = torch.arange(seq_len, device=device)[None, :]
    gap = torch.tensor(list(dilation), device=device)[:, None, None]  # (H or 1, 1, 1)
    steps = torch.div(j - i, gap, rounding_mode="floor")
    pairs = (steps * gap == j - i) & (steps >= -window[0]) & (steps <= window[1])
    pairs = pairs[None]  # (1, H or 1, S, S)
    if global_mask is not None:
        pairs = pairs | global_mask[:, None, None, :]
    if causal:
        pairs = pairs & (j <= i)
    if key_mask is not None:
        pairs = pairs & key_mask[:, None, None, :] & key_mask[:, None, :, None]
    return pairs


def masked_softmax(scores: Tensor, pairs: Tensor) -> Tensor:
    """Softmax over the last axis among ``pairs`` only, in at least float32; a row without any pair is 0, not NaN."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    empty = ~pairs.any(dim=-1, keepdim=True)
    # An empty row is given every column, so that neither its values nor its gradients are NaN, and is then zeroed.
    scores = scores.masked_fill(~(pairs | empty), float("-inf"))
    return scores.softmax(dim=-1).masked_fill(empty, 0.0)


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
    """Dense form of :func:`longformer.kernels.sliding_window_attention`, arguments already checked there."""
    pairs = attention_pairs(
        query.shape[-2],
        window,
        dilation=dilation,
        causal=causal,
        key_mask=key_mask,
        global_mask=global_mask,
        device=query.device,
    )
    probs = masked_softmax((query * scale) @ key.transpose(-2, -1), pairs)
    return F.dropout(probs.to(query.dtype), dropout_p) @ value


def global_attention(
    query: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None, scale: float, dropout_p: float
) -> Tensor:
    """Dense form of :func:`longformer.kernels.global_attention`, arguments already checked there."""
    scores = (query * scale) @ key.transpose(-2, -1)  # (B, H, G, S)
    pairs = torch.ones(1, 1, 1, key.shape[-2], dtype=torch.bool, device=key.device)
    if key_mask is not None:
        pairs = key_mask[:, None, None, :]
    probs = masked_softmax(scores, pairs.expand(scores.shape))
    return F.dropout(probs.to(query.dtype), dropout_p) @ value
