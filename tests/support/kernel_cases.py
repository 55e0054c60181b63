"""The awkward shapes that every implementation of the kernels is held to, and how it is run on them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from longformer.kernels import IMPLEMENTATIONS, AttentionPattern, Tokens, attention_pairs, sliding_window_attention
from longformer.kernels.softmax import masked_softmax

EVERY_DTYPE = tuple(impl for impl in IMPLEMENTATIONS if impl not in ("triton", "flex"))  # those have no float64

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


def setting(impl: str) -> tuple[str, torch.dtype, float]:
    """Device and dtype in which tests run an implementation, and how far off rounding may take results of order 1."""
    if impl != "triton":
        return "cpu", torch.float64, 1e-12
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    # Triton's interpreter runs only where there is no GPU.
    return "cuda" if torch.cuda.is_available() else "cpu", torch.float32, 2e-5


def run(impl: str, qkv: list[Tensor], grad: Tensor, window: tuple[int, int], **arguments: Any) -> list[Tensor]:
    """Output and the three gradients."""
    inputs = [x.detach().clone().requires_grad_() for x in qkv]
    out = sliding_window_attention(*inputs, window, impl=impl, **arguments)
    out.backward(grad)
    return [out.detach(), *(x.grad for x in inputs)]  # type: ignore[misc]


def run_plain(qkv: list[Tensor], grad: Tensor, window: tuple[int, int], **arguments: Any) -> list[Tensor]:
    """The same by a plain softmax of the inputs' precision: scores in it, the softmax in float32 or better."""
    query, key, value = inputs = [x.detach().clone().requires_grad_() for x in qkv]
    pairs = attention_pairs(query.shape[2], window, **arguments)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    out = masked_softmax(scores, pairs.expand(scores.shape)).to(query.dtype) @ value
    out.backward(grad)
    return [out.detach(), *(x.grad for x in inputs)]  # type: ignore[misc]


def patterns(heads: int) -> st.SearchStrategy[AttentionPattern]:
    """Any pattern for so many heads: windows short, long, one-sided or none; dilated alike or by head; causal too."""
    side = st.integers(0, 9) | st.sampled_from([30, 2**40])
    gap = st.integers(1, 4) | st.just(50)
    gaps = gap | st.lists(gap, min_size=heads, max_size=heads)
    return (
        st.builds(AttentionPattern, st.tuples(side, side), gaps)
        | st.builds(AttentionPattern, st.tuples(side, st.just(0)), gaps, st.just(True))
        | st.builds(AttentionPattern, st.none(), causal=st.booleans())
    )


def batches(batch: int, seq_len: int) -> st.SearchStrategy[Tokens]:
    """Any padding and any global tokens, or none."""
    rows = st.lists(st.booleans(), min_size=batch * seq_len, max_size=batch * seq_len)
    mask = st.none() | rows.map(lambda row: torch.tensor(row).view(batch, seq_len))
    return st.builds(Tokens.of, mask, mask)


@st.composite
def problems(draw: st.DrawFn, longest: int = 40) -> tuple[AttentionPattern, Tokens, int, int]:
    """A pattern, a batch of two examples, the length and the number of heads."""
    heads, seq_len = draw(st.integers(1, 3)), draw(st.integers(1, longest))
    return draw(patterns(heads)), draw(batches(2, seq_len)), seq_len, heads


def dense(qkv: list[Tensor], pattern: AttentionPattern, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Attention by ``pattern.pairs`` alone, and its log-sum-exp in base 2."""
    query, key, value = qkv
    pairs = pattern.pairs(query.shape[2], tokens, heads=query.shape[1], device=query.device)
    scores = (query @ key.transpose(-2, -1)) / query.shape[-1] ** 0.5
    some = pairs.any(-1, keepdim=True)
    scores = scores.masked_fill(~(pairs | ~some), -torch.inf)  # a row without columns is given all of them, then none
    lse = (scores.logsumexp(-1) / math.log(2)).masked_fill(~some[..., 0], torch.inf)
    return (scores.softmax(-1) * some) @ value, lse.detach()
