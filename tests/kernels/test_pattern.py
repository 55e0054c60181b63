"""Who attends to whom: one statement in several forms, and every kernel held to it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import dense, patterns, problems, random_qkv, setting
from torch import Tensor

from longformer.kernels import AttentionPattern, Tokens, attend, attention_pairs, dispatch
from longformer.kernels.pattern import EVERYTHING, FARTHEST, global_index
from longformer.kernels.problem import Problem

Drawn = tuple[AttentionPattern, Tokens, int, int]


def by_definition(pattern: AttentionPattern, tokens: Tokens, seq_len: int, heads: int) -> Tensor:
    """The rule as it is written down, pair by pair: (2, H, S, S) bool."""
    seen = torch.zeros(2, heads, seq_len, seq_len, dtype=torch.bool)
    gaps = [pattern.dilation] * heads if isinstance(pattern.dilation, int) else pattern.dilation
    for b, h, i, j in itertools.product(range(2), range(heads), range(seq_len), range(seq_len)):
        steps, off = divmod(j - i, gaps[h])
        in_band = pattern.window is None or (off == 0 and -pattern.window[0] <= steps <= pattern.window[1])
        is_global = tokens.is_global is not None and bool(tokens.is_global[b, j])
        kept = tokens.keep is None or bool(tokens.keep[b, i] and tokens.keep[b, j])
        seen[b, h, i, j] = (in_band or is_global) and kept and (j <= i or not pattern.causal)
    return seen


@settings(max_examples=150)
@given(problems(longest=14))
def test_pairs_are_the_rule(drawn: Drawn) -> None:
    pattern, tokens, seq_len, heads = drawn
    pairs = pattern.pairs(seq_len, tokens, heads=heads).expand(2, heads, seq_len, seq_len)
    assert torch.equal(pairs, by_definition(pattern, tokens, seq_len, heads))


@settings(max_examples=150)
@given(problems())
@pytest.mark.slow
def test_mask_mod_says_what_pairs_say(drawn: Drawn) -> None:
    pattern, tokens, seq_len, heads = drawn
    grid = torch.meshgrid(*map(torch.arange, (2, heads, seq_len, seq_len)), indexing="ij")
    pairs = pattern.pairs(seq_len, tokens, heads=heads).expand(2, heads, seq_len, seq_len)
    assert torch.equal(pattern.mask_mod(tokens, heads=heads)(*grid).expand(pairs.shape), pairs)


@settings(max_examples=150)
@given(problems())
def test_a_global_column_counts_in_the_band_or_beside_it_and_not_twice(drawn: Drawn) -> None:
    """What a fast kernel is built on."""
    pattern, tokens, seq_len, heads = drawn
    row = torch.arange(seq_len)
    distance, gaps = row - row[:, None], torch.tensor(pattern.gaps(heads))[:, None, None]
    band = pattern.in_band(distance, gaps).expand(heads, seq_len, seq_len)
    beside = pattern.beside_band(distance, gaps).expand(heads, seq_len, seq_len)
    assert not (band & beside).any()
    assert torch.equal(band, pattern.pairs(seq_len, heads=heads)[0].expand(band.shape))
    if tokens.is_global is not None:
        pairs = pattern.pairs(seq_len, tokens._replace(keep=None), heads=heads)
        assert torch.equal(band | (beside & tokens.is_global[:, None, None]), pairs.expand(2, *band.shape))
    for heads_alike, gap in pattern.head_runs(heads):
        alike = pattern.in_band(distance, gap).expand(band[heads_alike].shape)
        assert torch.equal(alike, band[heads_alike])


@settings(max_examples=150)
@given(problems(), st.integers(0, 40), st.integers(1, 9))
def test_cost_is_the_number_of_pairs(drawn: Drawn, global_tokens: int, head_dim: int) -> None:
    pattern, _, seq_len, heads = drawn
    global_tokens = min(global_tokens, seq_len)
    tokens = Tokens.of(None, (torch.arange(seq_len) < global_tokens)[None])
    pairs = int(pattern.pairs(seq_len, tokens, heads=heads).expand(1, heads, seq_len, seq_len).sum())
    cost = pattern.cost(seq_len, global_tokens, head_dim, heads=heads, itemsize=2)
    assert cost == (pairs, 4 * head_dim * pairs, 4 * seq_len * heads * head_dim * 2)


def test_cost_of_a_long_sequence_needs_no_mask() -> None:
    """One row in the middle sees 513 columns, and 2 · (1 + ... + 256) pairs lie outside the sequence."""
    seq_len = 10**6
    assert AttentionPattern((256, 256)).cost(seq_len).pairs == 513 * seq_len - 256 * 257
    assert EVERYTHING.cost(seq_len, heads=12).pairs == 12 * seq_len**2


@settings(max_examples=100)
@given(st.integers(1, 3).flatmap(patterns), st.data())
def test_attention_pairs_are_the_pattern_s(pattern: AttentionPattern, data: st.DataObject) -> None:
    seq_len = data.draw(st.integers(1, 20))
    masks = [data.draw(st.none() | st.just(torch.rand(2, seq_len) < 0.6)) for _ in range(2)]
    written_out = {
        "dilation": pattern.dilation,
        "causal": pattern.causal,
        "key_mask": masks[0],
        "global_mask": masks[1],
    }
    pairs = pattern.pairs(seq_len, Tokens.of(*masks))
    assert torch.equal(attention_pairs(seq_len, pattern.window, **written_out), pairs)


# ---- every kernel


def results(qkv: list[Tensor], grad: Tensor, drawn: Drawn, impl: str | None) -> list[Tensor]:
    """Output, gradients and log-sum-exp; ``impl`` None is the pattern itself, as a dense mask."""
    pattern, tokens, _, heads = drawn
    inputs = [x.detach().requires_grad_() for x in qkv]
    if impl is None:
        out, lse = dense(inputs, pattern, tokens)
    else:
        out = attend(*inputs, pattern, tokens, impl=impl)
        problem = Problem(pattern, tokens.with_index(counted=True), qkv[0].shape[-1] ** -0.5)
        lse = dispatch.select(qkv[0], impl, 0.0, True)[1].forward(*qkv, problem)[1]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad), lse]


@settings(max_examples=300)
@given(problems(), st.sampled_from(["reference", "banded", "blocked", "fused", "chunked"]), st.booleans())
@pytest.mark.slow
def test_every_kernel_is_the_pattern(drawn: Drawn, impl: str, with_index: bool) -> None:
    """Outputs, gradients and log-sum-exp, to rounding in float64."""
    pattern, tokens, seq_len, heads = drawn
    qkv, grad = random_qkv(2, heads, seq_len, 3), torch.randn(2, heads, seq_len, 3, dtype=torch.float64)
    expected = results(qkv, grad, drawn, None)
    if with_index:
        drawn = (pattern, tokens.with_index(counted=True), seq_len, heads)
    for actual, exact in zip(results(qkv, grad, drawn, impl), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@settings(max_examples=12)
@given(problems(longest=30))
def test_the_gpu_kernels_are_the_pattern(drawn: Drawn) -> None:
    """In float32, by Triton's interpreter, which takes a second for such a case."""
    device, dtype, atol = setting("triton")
    pattern, tokens, seq_len, heads = drawn
    drawn = (pattern, Tokens(*(None if x is None else x.to(device) for x in tokens)), seq_len, heads)
    qkv = [x.to(device) for x in random_qkv(2, heads, seq_len, 3)]
    grad = torch.randn_like(qkv[0])
    expected = results(qkv, grad, drawn, None)
    for actual, exact in zip(
        results([x.to(dtype) for x in qkv], grad.to(dtype), drawn, "triton"), expected, strict=True
    ):
        torch.testing.assert_close(actual.double(), exact, rtol=atol, atol=atol)


# ---- tokens, and what is refused


def test_padding_wins_over_global_and_the_index_is_made_once() -> None:
    keep = torch.tensor([[True, True, True, False], [True, False, True, True]])
    is_global = torch.tensor([[True, False, True, True], [False, True, False, False]])
    tokens = Tokens.of(keep, is_global)
    assert tokens.is_global is not None
    assert tokens.is_global.tolist() == [[True, False, True, False], [False, False, False, False]]
    counted = tokens.with_index(counted=True)
    assert counted.global_index is not None
    assert counted.global_index.tolist() == [[0, 2], [-1, -1]]
    assert counted.with_index(counted=False) is counted
    wide = tokens.with_index(counted=False).global_index
    assert wide is not None and wide.tolist() == [[0, 2, -1, -1], [-1, -1, -1, -1]]
    none = Tokens.of(None, torch.zeros(2, 4, dtype=torch.bool)).with_index(counted=True)
    assert none == Tokens() and global_index(torch.zeros(1, 3, dtype=torch.bool), counted=True) is None


def test_a_pattern_is_a_value() -> None:
    pattern = AttentionPattern([3, 0], [1, 2], True)  # type: ignore[arg-type]
    same = AttentionPattern((3, 0), (1, 2), True)
    assert pattern == same and hash(pattern) == hash(same) and AttentionPattern((3, 2), (1, 2)).looking_back() == same
    assert pattern.sides(3) == (2, 0) and AttentionPattern((3, 2)).sides(10) == (3, 2) and EVERYTHING.sides(7) == (6, 6)
    assert pattern.gaps(2) == (1, 2) and AttentionPattern((1, 1), 3).gaps(2) == (3, 3)
    assert EVERYTHING.gaps(5) == (1,) * 5 and EVERYTHING.looking_back() == AttentionPattern(None, causal=True)
    assert AttentionPattern((1, 1), (1, 1, 4, 1)).head_runs(4) == [(slice(0, 2), 1), (slice(2, 3), 4), (slice(3, 4), 1)]
    assert AttentionPattern((2**70, 1), 2**70) == AttentionPattern((FARTHEST, 1), FARTHEST)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), r"window is 4; it must be \(left, right\), two ints >= 0, or None"),
        (((1, -1),), "two ints >= 0"),
        (((1, 2, 3),), r"window is \(1, 2, 3\)"),
        (((True, 1),), "two ints >= 0"),
        (((1, 1), 0), "dilation is 0; it must be an int >= 1"),
        (((1, 1), ()), r"dilation is \(\)"),
        (((1, 1), (1, 2.0)), "one such int for each head"),
        (((1, 1), 1, 1), "causal is 1; it must be True or False"),
        (
            ((4, 2), 1, True),
            r"window is \(4, 2\) and causal is True, .*; give the window \(4, 0\), or leave",
        ),
        ((None, 2), "dilation is 2 without a window; give a window, or leave dilation out"),
        ((None, (1, 2), True), r"dilation is \(1, 2\) without a window"),
    ],
)
def test_what_is_no_pattern_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionPattern(*arguments)


def test_dilations_of_another_number_of_heads_are_refused() -> None:
    pattern = AttentionPattern((1, 1), (1, 2))
    for ask in (pattern.gaps, lambda heads: pattern.pairs(4, heads=heads), lambda heads: pattern.cost(4, heads=heads)):
        with pytest.raises(ValueError, match=r"dilation is \(1, 2\); .* one for each of the 3 heads"):
            ask(3)


@pytest.mark.parametrize("count", [-1, 5])
def test_cost_of_more_global_tokens_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match=f"global_tokens is {count}; it must be 0 to seq_len, which is 4"):
        EVERYTHING.cost(4, count)
