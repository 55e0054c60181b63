"""The awkward shapes that every implementation of the kernels is held to, and how it is run on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longformer.kernels import IMPLEMENTATIONS, sliding_window_attention

EVERY_DTYPE = tuple(impl for impl in IMPLEMENTATIONS if impl != "triton")  # that one has no float64

LENGTHS = (1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 200)
WINDOWS = ((0, 0), (8, 8), (16, 16), (5, 0), (0, 11), (64, 64), (300, 2))

GLOBAL_LENGTH = 70
GLOBAL_TOKENS = ("none", "one", "edges", "all", "unequal")
DILATIONS = (1, 2, 3, (1, 4, 2), (1, 1, 70))  # of three heads

PADDED_LENGTH = 90
PADDINGS = ("right", "left", "holes", "everything", "one row")


def global_mask(tokens: str) -> Tensor:
    """(2, GLOBAL_LENGTH) bool."""
    mask = torch.zeros(2, GLOBAL_LENGTH, dtype=torch.bool)
    match tokens:
        case "one":
            mask[:, 30] = True
        case "edges":
            mask[:, [0, -1]] = True
        case "all":
            mask[:] = True
        case "unequal":
            mask[0, :5] = True
            mask[1, [3, 40]] = True
    return mask


def key_mask(padding: str) -> Tensor:
    """(3, PADDED_LENGTH) bool, False at padding."""
    keep = torch.ones(3, PADDED_LENGTH, dtype=torch.bool)
    match padding:
        case "right":
            keep = torch.arange(PADDED_LENGTH) < torch.tensor([[90], [41], [1]])
        case "left":
            keep = torch.arange(PADDED_LENGTH) >= torch.tensor([[0], [50], [89]])
        case "holes":
            keep = torch.rand(3, PADDED_LENGTH) < 0.5
        case "everything":
            keep[:] = False
        case "one row":
            keep[1] = False
    return keep


def random_qkv(batch: int, heads: int, seq_len: int, head_dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key, value as a model has them: (B, H, S, D) views of (B, S, H, D)."""
    return [torch.randn(batch, seq_len, heads, head_dim, dtype=dtype).transpose(1, 2) for _ in range(3)]


def run(impl: str, qkv: list[Tensor], grad: Tensor, window: tuple[int, int], **arguments: Any) -> list[Tensor]:
    """Output and the three gradients."""
    inputs = [x.detach().clone().requires_grad_() for x in qkv]
    out = sliding_window_attention(*inputs, window, impl=impl, **arguments)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in inputs)]  # type: ignore[misc]
