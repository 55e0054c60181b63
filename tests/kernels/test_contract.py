"""What every implementation promises: padding reaches nobody, large scores do not overflow, parts can be merged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import setting
from torch import Tensor

from longformer.kernels import (
    AttentionPattern,
    Tokens,
    attend,
    attend_globally,
    attention_pairs,
    dispatch,
    global_attention,
    sliding_window_attention,
    sliding_window_probabilities,
)
from longformer.kernels.pattern import EVERYTHING
from longformer.kernels.problem import Problem

IMPLS = ("reference", "banded", "blocked", "fused", "triton", "chunked")
SEQ_LEN = 60
PLACE = torch.arange(SEQ_LEN)
PADDED = {
    "at the end": PLACE >= 45,
    "at the start": PLACE < 20,
    "in the middle": (PLACE >= 20) & (PLACE < 30),
    "here and there": PLACE % 3 == 1,
}


def case(impl: str) -> tuple[list[Tensor], Tensor, float]:
    """Query, key and value, the output's gradient, and how far results may be from those of the reference."""
    device, dtype, atol = setting(impl)
    *qkv, grad = (torch.randn(1, SEQ_LEN, 2, 8, device=device, dtype=dtype).transpose(1, 2) for _ in range(4))
    return qkv, grad, atol


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("where", PADDED)
@pytest.mark.parametrize("rows", ["local", "global", "of their own"])
def test_nothing_at_padding_reaches_anybody(impl: str, where: str, rows: str) -> None:
    """NaN in query, key, value and the output's gradient: results are those with zeros in its place, bit by bit."""
    qkv, grad, atol = case(impl)
    padded = PADDED[where].to(qkv[0].device)
    tokens = Tokens.of(~padded[None], (PLACE % 7 == 3).to(qkv[0].device)[None])
    pattern = AttentionPattern((6, 4), (1, 2))

    def results(fill: float, kernel: str) -> list[Tensor]:
        inputs = [x.masked_fill(padded[:, None], fill).requires_grad_() for x in qkv]
        grad_out = grad.masked_fill(padded[:, None], fill)
        if rows == "local":
            out = attend(*inputs, pattern, tokens, impl=kernel)
        elif rows == "global":
            out = attend_globally(*inputs, tokens, impl=kernel)
        else:  # which are no padding, whatever the columns of that number are
            inputs[0], grad_out = qkv[0][:, :, :25].detach().requires_grad_(), grad[:, :, :25]
            out = global_attention(*inputs, key_mask=tokens.keep, impl=kernel)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad_out)]

    clean, dirty, expected = results(0.0, impl), results(float("nan"), impl), results(float("nan"), "reference")
    for actual, exact, reference in zip(dirty, clean, expected, strict=True):
        assert torch.equal(actual, exact)
        torch.testing.assert_close(actual, reference, rtol=0, atol=atol)
    of_tokens = dirty if rows != "of their own" else dirty[2:]
    assert all((x[:, :, padded] == 0).all() for x in of_tokens)


def test_nothing_at_padding_reaches_the_probabilities() -> None:
    (query, key, _), _, _ = case("banded")
    padded = PADDED["in the middle"]
    hidden = [x.masked_fill(padded[:, None], float("nan")) for x in (query, key)]
    arguments: dict[str, Any] = {"key_mask": ~padded[None], "global_mask": (PLACE == 2)[None]}
    for actual, expected in zip(
        sliding_window_probabilities(*hidden, (3, 3), **arguments),
        sliding_window_probabilities(query, key, (3, 3), **arguments),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("impl", "dropout_p"), [*((impl, 0.0) for impl in IMPLS), ("blocked", 0.2)])
def test_scores_beyond_float16_do_not_overflow(impl: str, dropout_p: float) -> None:
    """Outputs and gradients are those of float32 from the same numbers.

    All scores of a row have 92,682 in common, where float32 has steps of 0.008.
    """
    qkv, grad, _ = case(impl)
    for x in qkv[:2]:
        x[..., 0] = 512
    half = [x.half() for x in qkv]
    tokens = Tokens.of(None, (PLACE == 30).to(qkv[0].device)[None])
    results = []
    for dtype in (torch.float16, torch.float32):
        inputs = [x.to(dtype).requires_grad_() for x in half]
        torch.manual_seed(0)
        out = attend(*inputs, AttentionPattern((9, 9)), tokens, impl=impl, dropout_p=dropout_p)
        assert out.dtype == dtype
        # Of the common dimension the gradient is 0, but for rounding.
        results.append([x.detach()[..., 1:] for x in (out, *torch.autograd.grad(out, inputs, grad.to(dtype)))])
    scores = half[0].double() @ half[1].double().transpose(-2, -1) / 8**0.5
    assert scores.min() > torch.finfo(torch.float16).max
    for actual, expected in zip(*results, strict=True):
        assert actual.isfinite().all()
        assert (actual - expected).norm() <= 0.03 * expected.norm()


@pytest.mark.parametrize("impl", IMPLS)
def test_parts_over_different_columns_are_merged_by_their_log_sum_exp(impl: str) -> None:
    """As ``problem.py`` says. Of the rows of one example all columns are in the first part."""
    qkv, _, atol = case(impl)
    qkv = [torch.cat([x, x.flip(2)]) for x in qkv]
    keep = torch.stack([PLACE >= 0, PLACE < 50]).to(qkv[0].device)
    first = keep & torch.stack([PLACE % 3 > 0, PLACE >= 0]).to(qkv[0].device)
    kernel = dispatch.select(qkv[0], impl, 0.0, False, True)[1]
    (out, lse), (one, lse_one), (other, lse_other) = (
        kernel.forward(*qkv, Problem(EVERYTHING, Tokens(mask), 0.3, gathered=True))
        for mask in (keep, first, keep & ~first)
    )
    assert (lse_other[1] == float("inf")).all() and (other[1] == 0).all()
    parts = torch.stack([lse_one, lse_other.masked_fill(lse_other == float("inf"), -float("inf"))])
    torch.testing.assert_close(parts.exp2().sum(0).log2(), lse, rtol=0, atol=10 * atol)
    merged = ((parts - lse).exp2()[..., None] * torch.stack([one, other])).sum(0)
    torch.testing.assert_close(merged, out, rtol=0, atol=10 * atol)


# ---- the operators take a pattern


@pytest.mark.parametrize("impl", ["auto", "reference", "banded", "blocked", "chunked"])
def test_a_pattern_in_place_of_window_dilation_and_causal(impl: str) -> None:
    (query, key, value), _, _ = case(impl)
    pattern = AttentionPattern((5, 0), (1, 2), True)
    written_out: dict[str, Any] = {"window": (5, 0), "dilation": (1, 2), "causal": True}
    expected = sliding_window_attention(query, key, value, **written_out, impl=impl)
    assert torch.equal(sliding_window_attention(query, key, value, pattern=pattern, impl=impl), expected)
    for one, other in zip(
        sliding_window_probabilities(query, key, pattern=pattern),
        sliding_window_probabilities(query, key, **written_out),
        strict=True,
    ):
        assert torch.equal(one, other)
    everything = sliding_window_attention(query, key, value, None, impl=impl)
    torch.testing.assert_close(everything, global_attention(query, key, value, impl="reference"), rtol=0, atol=1e-12)
    band = sliding_window_probabilities(query, key, None).band
    assert band.shape[-1] == 2 * SEQ_LEN - 1
    torch.testing.assert_close(band.sum(-1), torch.ones_like(band[..., 0]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"window": (2, 2)}, r"pattern is given and so is window=\(2, 2\); give one or the other"),
        ({"dilation": 2}, "pattern is given and so is dilation=2"),
        ({"causal": True}, "pattern is given and so is causal=True"),
    ],
)
def test_a_pattern_and_what_it_replaces_is_an_error(more: dict[str, Any], message: str) -> None:
    (query, key, value), _, _ = case("reference")
    with pytest.raises(ValueError, match=message):
        sliding_window_attention(query, key, value, pattern=AttentionPattern((2, 2)), **more)
    with pytest.raises(ValueError, match=message):
        sliding_window_probabilities(query, key, pattern=AttentionPattern((2, 2)), **more)


@pytest.mark.parametrize("impl", ["banded", "reference", "chunked"])
def test_a_dilation_beyond_every_length_takes_no_memory(impl: str) -> None:
    """Each token then sees itself alone."""
    (query, key, value), _, _ = case("reference")
    out = sliding_window_attention(query, key, value, (3, 3), dilation=10**12, impl=impl)
    torch.testing.assert_close(out, value, rtol=0, atol=1e-12)
    probabilities = sliding_window_probabilities(query, key, (3, 3), dilation=10**12).band
    assert bool((probabilities[..., 3] == 1).all()) and float(probabilities.sum()) == probabilities[..., 3].numel()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"key_mask": torch.ones(1, 5, dtype=torch.long)}, "key_mask is torch.int64; it must be a bool tensor"),
        ({"global_mask": torch.ones(1, 4, dtype=torch.bool)}, r"global_mask has shape \(1, 4\); .* = \(1, 5\)"),
        ({"key_mask": [True] * 5}, "key_mask is list"),
    ],
)
def test_masks_of_attention_pairs_are_checked(masks: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        attention_pairs(5, (1, 1), **masks)


def test_a_forgotten_window_is_not_every_token() -> None:
    (query, key, value), _, _ = case("reference")
    with pytest.raises(TypeError, match=r"give a window, \(left, right\), or None for every token; or a pattern"):
        sliding_window_attention(query, key, value)
    with pytest.raises(TypeError, match="give a window"):
        sliding_window_probabilities(query, key)


def test_a_pattern_of_another_kind_is_refused() -> None:
    (query, key, value), _, _ = case("reference")
    with pytest.raises(TypeError, match="pattern is a tuple, not an AttentionPattern"):
        sliding_window_attention(query, key, value, pattern=(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dilation is \(1, 2, 3\); .* one for each of the 2 heads"):
        sliding_window_attention(query, key, value, pattern=AttentionPattern((2, 2), (1, 2, 3)))
