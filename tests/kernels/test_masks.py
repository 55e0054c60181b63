"""Any mask, any score, unions and known patterns: who sees whom, what is added, which kernel computes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import random_qkv
from torch import Tensor

from longformer.kernels import (
    AttentionPattern,
    GlobalTokens,
    MaskPattern,
    Tokens,
    attend,
    choose,
    dispatch,
    flex,
    known,
    sliding_window_attention,
    sliding_window_probabilities,
)
from longformer.kernels.compat import NotCompiledError
from longformer.kernels.masks import of_pairs
from longformer.kernels.problem import Problem

S = 40
ROW, COLUMN = torch.arange(S)[:, None], torch.arange(S)
KEEP = torch.stack([COLUMN < 33, COLUMN % 7 > 0])
IS_GLOBAL = torch.stack([COLUMN == 3, COLUMN % 20 == 8])


def odd(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Depends on all four."""
    return (row + column + h + b) % 3 == 0


def slope(score: Tensor, b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return score * 1.5 - (row - column).abs() * 0.1 * (h + 1) + b


WRITTEN: dict[str, Callable[[int, int], bool]] = {
    "full": lambda i, j: True,
    "causal": lambda i, j: j <= i,
    "sliding window": lambda i, j: abs(i - j) <= 4,
    "causal window": lambda i, j: 0 <= i - j <= 8,
    "dilated window": lambda i, j: (i - j) % 3 == 0 and abs(i - j) <= 9,
    "Longformer": lambda i, j: abs(i - j) <= 4 or j in (0, 1, 2),
    "landmarks": lambda i, j: abs(i - j) <= 3 or j in (0, 12, 24, 36),
    "strided": lambda i, j: 0 <= i - j <= 7 or (i >= j and (i - j) % 7 == 0),
    "fixed": lambda i, j: j <= i and (i // 8 == j // 8 or j % 8 == 7),
    "blocks": lambda i, j: i // 8 == j // 8,
    "prefix": lambda i, j: j <= i or j < 12,
    "attention sinks": lambda i, j: j <= i and (i - j <= 8 or j in (0, 1, 2)),
    "LogSparse": lambda i, j: i - j in (0, 1, 2, 4, 8, 16, 32),
    "ALiBi": lambda i, j: j <= i,
    "relative bias": lambda i, j: True,
}


@pytest.mark.parametrize("name", known.GALLERY)
def test_known_patterns(name: str) -> None:
    pattern = known.GALLERY[name]
    pairs = pattern.pairs(S, heads=1)[0, 0]
    if name in WRITTEN:
        assert pairs.tolist() == [[WRITTEN[name](i, j) for j in range(S)] for i in range(S)]
    assert pattern.cost(S, heads=1).pairs == int(pairs.sum())
    may_see = (COLUMN <= ROW) | (not pattern.causal)
    with_two = pairs | (((COLUMN == 5) | (COLUMN == 30)) & may_see)
    assert pattern.cost(S, (5, 30), 16, heads=3).pairs == 3 * int(with_two.sum())


def test_random_blocks_of_big_bird() -> None:
    blocks = [known.big_bird(4, 50, random_blocks=2, seed=seed).pairs(200)[0, 0] for seed in (0, 1)]
    small = [x.unflatten(1, (50, 4)).unflatten(0, (50, 4)).transpose(1, 2) for x in blocks]
    for each in small:
        assert torch.equal(each.flatten(2).all(2), each.flatten(2).any(2)), "blocks are seen wholly or not"
        near = (torch.arange(50)[:, None] - torch.arange(50)).abs() <= 1
        near[:, 0] = True
        drawn = each[:, :, 0, 0] & ~near
        assert (each[:, :, 0, 0] | ~near).all() and drawn.sum(1).max() == 2 and drawn.sum() > 80
        assert drawn.any(0).sum() > 35, "all over the sequence"
    assert not torch.equal(*blocks)


def test_scores_of_alibi_and_of_t5() -> None:
    zero = torch.zeros(1, 8, S, S)
    slopes = torch.tensor([2.0 ** -(h + 1) for h in range(8)])  # as the paper has them for 8 heads
    torch.testing.assert_close(known.alibi(8).changed_scores(zero)[0], -slopes[:, None, None] * (ROW - COLUMN).abs())
    table = torch.randn(8, 32, requires_grad=True)
    found = known.relative_bias(table, farthest=20).changed_scores(zero)[0]
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="compared with transformers")
    bucket = t5.T5Attention._relative_position_bucket(COLUMN - ROW, num_buckets=32, max_distance=20)
    assert torch.equal(found, table[:, bucket])
    (gradient,) = torch.autograd.grad(found.sum(), table)
    assert torch.equal(gradient[0], torch.bincount(bucket.flatten(), minlength=32).float())


def test_a_union_is_what_either_sees() -> None:
    a, b = AttentionPattern((3, 1)), AttentionPattern((2, 2), (1, 4), global_tokens=GlobalTokens(5))
    tokens = Tokens.of(KEEP, IS_GLOBAL)
    for union in (a | b, MaskPattern((a,)) | b, a | MaskPattern((b,))):
        assert torch.equal(union.pairs(S, tokens, heads=2), a.pairs(S, tokens, heads=2) | b.pairs(S, tokens, heads=2))
        assert union.global_tokens == GlobalTokens(5) and not union.causal
    causal = AttentionPattern((3, 0), causal=True) | AttentionPattern((0, 0), causal=True)
    assert causal.causal and not causal.pairs(S, Tokens.of(None, IS_GLOBAL))[0, 0].triu(1).any()
    mixed = MaskPattern((known.fixed(8), AttentionPattern((0, 2))))
    assert torch.equal(mixed.pairs(S), known.fixed(8).pairs(S) | AttentionPattern((0, 2)).pairs(S))


def test_global_tokens() -> None:
    ids = torch.tensor([[7, 1, 5, 7, 1], [5, 5, 1, 1, 1]])
    chosen = GlobalTokens(1, 5) | GlobalTokens(every=4) | GlobalTokens(predicates=lambda ids: ids == 7)
    assert chosen.mask(ids, ids).tolist() == [[True, True, True, True, True], [True, True, False, False, True]]
    qkv = random_qkv(2, 2, S, 8)
    pattern = AttentionPattern((2, 2), global_tokens=GlobalTokens((3, 90), every=20))
    named = ((COLUMN == 3) | (COLUMN % 20 == 0)).expand(2, S)
    expected = sliding_window_attention(*qkv, (2, 2), key_mask=KEEP, global_mask=named)
    torch.testing.assert_close(sliding_window_attention(*qkv, pattern=pattern, key_mask=KEEP), expected)
    columns = sliding_window_probabilities(*qkv[:2], pattern=pattern, key_mask=KEEP).column_index
    assert columns.tolist() == [[0, 3, 20], [3, 20, -1]]
    only = AttentionPattern((2, 2), global_tokens=GlobalTokens(only_these=True))
    assert torch.equal(only.pairs(S, Tokens.of(None, IS_GLOBAL)), AttentionPattern((2, 2)).pairs(S).expand(2, 1, S, S))
    for wrong, message in (({"positions": -1}, "positions of global tokens is -1"), ({"every": 0}, "every of global")):
        with pytest.raises(ValueError, match=message):
            GlobalTokens(**wrong)
    with pytest.raises(ValueError, match="must be a function of ids"):
        GlobalTokens(predicates=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chosen by ids, and no ids are given"):
        AttentionPattern((2, 2), global_tokens=GlobalTokens(token_ids=5)).pairs(S)
    with pytest.raises(ValueError, match="global_tokens is 3; it must be GlobalTokens, or None"):
        AttentionPattern((2, 2), global_tokens=3)  # type: ignore[arg-type]


PATTERN = MaskPattern((odd, AttentionPattern((2, 2), (1, 3))), slope)


def by_hand(qkv: list[Tensor], tokens: Tokens) -> Tensor:
    """By loops over examples and heads, in float64."""
    query, key, value = (x.double() for x in qkv)
    out = torch.zeros_like(value)
    for b in range(2):
        for h in range(2):
            scores = query[b, h] @ key[b, h].T / query.shape[-1] ** 0.5 * 1.5
            scores = scores - (ROW - COLUMN).abs() * 0.1 * (h + 1) + b
            gap = (1, 3)[h]
            seen = ((ROW + COLUMN + h + b) % 3 == 0) | (((ROW - COLUMN) % gap == 0) & ((ROW - COLUMN).abs() <= 2 * gap))
            assert tokens.is_global is not None and tokens.keep is not None
            seen = (seen | tokens.is_global[b]) & tokens.keep[b] & tokens.keep[b][:, None]
            weights = scores.exp() * seen
            out[b, h] = weights / weights.sum(1, keepdim=True).clamp(min=1e-300) @ value[b, h]
    return out


def test_a_mask_and_a_score_are_computed_as_written() -> None:
    tokens = Tokens.of(KEEP, IS_GLOBAL)
    qkv = [x.requires_grad_() for x in random_qkv(2, 2, S, 8)]
    grad = torch.randn(2, 2, S, 8, dtype=qkv[0].dtype)
    expected = by_hand(qkv, tokens)
    actual = attend(*qkv, PATTERN, tokens)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-6)
    for x, y in zip(*(torch.autograd.grad(o, qkv, grad.to(o.dtype)) for o in (actual, expected)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    probabilities = sliding_window_probabilities(*qkv[:2], pattern=PATTERN, key_mask=KEEP, global_mask=IS_GLOBAL)
    dense = probabilities.dense(PATTERN)
    torch.testing.assert_close(dense @ qkv[2], actual, rtol=0, atol=1e-6)
    apart = probabilities.with_global_columns_apart(PATTERN)
    torch.testing.assert_close(apart.dense(PATTERN), dense)
    assert (apart.columns[0, :, 3, 0] > 0).all() and probabilities.columns.abs().sum() == 0


@pytest.mark.parametrize("pattern", [PATTERN, AttentionPattern((4, 2), (1, 3)), known.alibi(2)])
def test_of_one_head(pattern: Any) -> None:
    tokens = Tokens.of(KEEP, IS_GLOBAL)
    qkv = random_qkv(2, 2, S, 8)
    together = attend(*qkv, pattern, tokens)
    for head in range(2):
        alone = attend(*(x[:, head : head + 1] for x in qkv), pattern.of_head(head, 2), tokens)
        torch.testing.assert_close(alone, together[:, head : head + 1], rtol=0, atol=1e-6)


@pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="FlexAttention on a CPU is compiled by a C++ compiler, and there is none",
)
def test_flex_computes_the_same() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = Tokens(*(None if x is None else x.to(device) for x in Tokens.of(KEEP, IS_GLOBAL)))
    qkv = [x.to(device, torch.float32) for x in random_qkv(2, 2, S, 16)]
    with torch.no_grad():
        expected, found = (attend(*qkv, PATTERN, tokens, impl=impl) for impl in ("reference", "flex"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_flex_on_a_device_has_gradients_of_a_score_too() -> None:
    table = torch.randn(2, 8, device="cuda", requires_grad=True)
    pattern = known.relative_bias(table, farthest=20, within=AttentionPattern((30, 30)))
    results = []
    for impl in ("reference", "auto"):
        leaves = [x.to("cuda", torch.float32).requires_grad_() for x in random_qkv(2, 2, 300, 16)]
        assert impl == "reference" or choose(leaves[0], pattern=pattern, backward=True).impl == "flex"
        torch.manual_seed(0)
        out = attend(*leaves, pattern, Tokens(), impl=impl)
        results.append([out, *torch.autograd.grad(out.square().sum(), [*leaves, table])])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


# ---- which kernel, and what is refused

QUERY = torch.randn(1, 2, 8, 16)


def test_which_kernel_is_chosen() -> None:
    assert choose(QUERY, pattern=AttentionPattern((2, 2))).impl == "blocked"
    short = choose(QUERY, pattern=PATTERN)
    assert short.impl == "reference" and "not worth it below 2048 tokens" in short.reason
    assert "no gradients on a CPU" in choose(QUERY, pattern=PATTERN, backward=True).reason
    for impl in dispatch.IMPLEMENTATIONS:
        if impl not in ("auto", "reference", "flex"):
            with pytest.raises(ValueError, match=f'impl is "{impl}", which computes windows, .* "flex" and'):
                choose(QUERY, impl=impl, pattern=PATTERN)
    with pytest.raises(ValueError, match='impl is "flex", and FlexAttention has no dropout; "reference" computes any'):
        choose(QUERY, impl="flex", dropout_p=0.1, pattern=PATTERN)
    with pytest.raises(ValueError, match="impl is 'fast'; it must be one of"):
        choose(QUERY, impl="fast", pattern=PATTERN)


def test_what_cannot_be_compiled_is_computed_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> Any:
        raise NotCompiledError("no kernel")

    monkeypatch.setattr(dispatch, "LONG", 4)
    monkeypatch.setattr(flex, "forward", forward)
    monkeypatch.setattr(flex, "refusal", lambda *_: None)
    assert choose(QUERY, pattern=PATTERN).impl == "flex"
    with torch.no_grad():
        expected = attend(QUERY, QUERY, QUERY, PATTERN, Tokens(), impl="reference")
        assert torch.equal(attend(QUERY, QUERY, QUERY, PATTERN, Tokens()), expected)
        with pytest.raises(NotCompiledError):
            attend(QUERY, QUERY, QUERY, PATTERN, Tokens(), impl="flex")


def branching(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return column if row > column else row


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: MaskPattern((branching,)).pairs(4),
            "function branching cannot be asked about a pair",
        ),
        (lambda: MaskPattern((lambda b, h, i, j: i - j,)).pairs(4), "returns torch.int64; it must return bool"),
        (lambda: MaskPattern((lambda b, h, i, j: (i == j).expand(2),)).pairs(4), r"shape \(2,\) for a pair"),
        (lambda: MaskPattern(()), "parts is empty"),
        (lambda: MaskPattern((3,)), r"3 is no function of FlexAttention's form mask_mod\(example, head, row"),
        (lambda: MaskPattern((odd,), score=odd), r"is no function of FlexAttention's form score_mod\(score, example"),
        (lambda: MaskPattern((odd,), causal=1), "causal is 1; it must be True or False"),
        (lambda: known.alibi(2) | AttentionPattern((1, 1)), "a part of a union has a score of its own"),
        (lambda: MaskPattern((AttentionPattern((1, 1), (1, 2)),)).gaps(3), r"dilation is \(1, 2\)"),
    ],
)
def test_bad_functions_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mask_is_asked_in_any_order_of_indices() -> None:
    table = torch.rand(2, 3, 6, 6) < 0.5
    mask = of_pairs(lambda b, h, row, column: table[b, h, row, column], "table")
    b, h, place = torch.arange(2)[:, None, None, None], torch.arange(3)[:, None, None], torch.arange(6)
    assert torch.equal(mask(b, h, place[2:4, None], place), table[:, :, 2:4])
