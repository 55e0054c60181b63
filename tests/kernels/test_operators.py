"""The kernels against their specification: outputs, gradients, awkward shapes, every precision, errors."""

from __future__ import annotations

import itertools
from typing import Any

import kernel_cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import random_qkv, run
from torch import Tensor

from longformer.kernels import (
    attention_pairs,
    banded_product,
    banded_scores,
    global_attention,
    sliding_window_attention,
    sliding_window_probabilities,
)

FAST = ("banded", "blocked", "fused", "chunked")


def assert_equal_to_reference(impl: str, qkv: list[Tensor], window: tuple[int, int], **arguments: Any) -> None:
    grad = torch.randn_like(qkv[0])
    for actual, expected in zip(
        run(impl, qkv, grad, window, **arguments), run("reference", qkv, grad, window, **arguments), strict=True
    ):
        assert torch.isfinite(actual).all()
        assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1)


def by_definition(qkv: list[Tensor], pairs: Tensor) -> Tensor:
    """Attention as three loops over Python numbers, for one (S, D) head; ``pairs`` (S, S)."""
    query, key, value = (x.tolist() for x in qkv)
    size = len(query[0])
    rows = []
    for i, row in enumerate(pairs.tolist()):
        seen = [j for j, see in enumerate(row) if see]
        scores = [sum(a * b for a, b in zip(query[i], key[j], strict=True)) / size**0.5 for j in seen]
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        rows.append([sum(w * value[j][d] for w, j in zip(weights, seen, strict=True)) for d in range(size)])
    return torch.tensor(rows, dtype=torch.float64)


def test_reference_is_the_definition() -> None:
    qkv = random_qkv(1, 1, 9, 4)
    globals_ = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 1, 0]]).bool()
    keys = torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1, 0]]).bool()
    pairs = torch.zeros(9, 9, dtype=torch.bool)
    for i, j in itertools.product(range(9), range(9)):
        in_band = i - 2 <= j <= i + 1
        pairs[i, j] = (in_band or bool(globals_[0, j])) and bool(keys[0, i]) and bool(keys[0, j])
    expected = by_definition([x[0, 0] for x in qkv], pairs)
    actual = sliding_window_attention(*qkv, (2, 1), key_mask=keys, global_mask=globals_, impl="reference")
    torch.testing.assert_close(actual[0, 0], expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(attention_pairs(9, (2, 1), key_mask=keys, global_mask=globals_)[0, 0], pairs)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("seq_len", kernel_cases.LENGTHS)
@pytest.mark.parametrize("window", kernel_cases.WINDOWS)
def test_lengths_and_windows(impl: str, seq_len: int, window: tuple[int, int]) -> None:
    assert_equal_to_reference(impl, random_qkv(2, 2, seq_len, 4), window)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dilation", kernel_cases.DILATIONS)
@pytest.mark.parametrize("tokens", kernel_cases.GLOBAL_TOKENS)
def test_global_tokens(impl: str, causal: bool, dilation: int | tuple[int, ...], tokens: str) -> None:
    globals_ = kernel_cases.global_mask(tokens)
    qkv = random_qkv(2, 3, kernel_cases.GLOBAL_LENGTH, 4)
    assert_equal_to_reference(
        impl, qkv, (6, 0 if causal else 6), dilation=dilation, causal=causal, global_mask=globals_
    )


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("padding", kernel_cases.PADDINGS)
def test_padding(impl: str, dilation: int, padding: str) -> None:
    seq_len, keep = kernel_cases.PADDED_LENGTH, kernel_cases.key_mask(padding)
    globals_ = torch.rand(3, seq_len) < 0.1
    qkv = random_qkv(3, 2, seq_len, 4)
    assert_equal_to_reference(impl, qkv, (7, 4), dilation=dilation, key_mask=keep, global_mask=globals_)
    out = sliding_window_attention(*qkv, (7, 4), key_mask=keep, global_mask=globals_, impl=impl)
    assert (out.transpose(1, 2)[~keep] == 0).all()


@settings(max_examples=150)
@given(st.data())
def test_any_arguments(data: st.DataObject) -> None:
    batch, heads, seq_len = (data.draw(st.integers(1, most)) for most in (3, 3, 150))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    def mask(share: float) -> Tensor:
        return torch.rand(batch, seq_len, generator=draw) < share

    causal = data.draw(st.booleans())
    assert_equal_to_reference(
        data.draw(st.sampled_from(FAST)),
        random_qkv(batch, heads, seq_len, data.draw(st.integers(1, 5))),
        (data.draw(st.integers(0, 90)), 0 if causal else data.draw(st.integers(0, 90))),
        dilation=data.draw(st.lists(st.integers(1, 5), min_size=heads, max_size=heads)),
        causal=causal,
        key_mask=data.draw(st.sampled_from([None, 0.1, 0.9]).map(lambda share: share and mask(share))),
        global_mask=data.draw(st.sampled_from([None, 0.0, 0.1, 1.0]).map(lambda s: None if s is None else mask(s))),
        scale=data.draw(st.sampled_from([None, 0.3])),
    )


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("sharpness", "mean"), [(1, 0), (10, 3)])
def test_low_precision_loses_no_more_than_a_plain_softmax(
    impl: str, dtype: torch.dtype, sharpness: float, mean: float
) -> None:
    """Distance from float64, of outputs and gradients, within twice that of the dense formula in the same precision.

    Also where scores are large, and where values have much in common, which must cancel in the gradient.
    """
    seq_len, arguments = 300, {"global_mask": torch.arange(300)[None] < 4}
    query, key, value = random_qkv(1, 4, seq_len, 32)
    qkv = [x.to(dtype) for x in (query * sharpness, key, value + mean)]
    grad = torch.randn_like(qkv[0])
    truth = run("reference", [x.double() for x in qkv], grad.double(), (64, 64), **arguments)
    plain = kernel_cases.run_plain(qkv, grad, (64, 64), **arguments)
    for actual, usual, exact in zip(run(impl, qkv, grad, (64, 64), **arguments), plain, truth, strict=True):
        assert actual.dtype == dtype
        assert (actual - exact).norm() <= 2 * (usual - exact).norm()
        assert (actual - exact).abs().max() <= 2 * (usual - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("global_tokens", [0, 5])
def test_half_precision_by_hand_is_float32_rounded_once(dtype: torch.dtype, global_tokens: int) -> None:
    qkv, grad = [x.to(dtype) for x in random_qkv(2, 3, 300, 16)], random_qkv(2, 3, 300, 16)[0].to(dtype)
    arguments = {"global_mask": (torch.arange(300) % 60 < global_tokens)[None].expand(2, -1), "dilation": (1, 2, 3)}
    arguments["key_mask"] = torch.arange(300)[None] < torch.tensor([[300], [250]])
    wide = run("blocked", [x.float() for x in qkv], grad.float(), (40, 30), **arguments)
    for actual, expected in zip(run("blocked", qkv, grad, (40, 30), **arguments), wide, strict=True):
        assert torch.equal(actual, expected.to(dtype))


@pytest.mark.parametrize("near", [1, 150, 300])
def test_columns_are_copied_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch, near: int) -> None:
    """Over one part and several, with more global columns than a tile has rows."""
    monkeypatch.setattr("longformer.kernels.blocked.NEAR", near)
    monkeypatch.setattr("longformer.kernels.tiles.ROWS", 16)
    monkeypatch.setattr("longformer.kernels.tiles.BLOCK_ROWS", 64)
    qkv, grad = random_qkv(1, 2, 400, 8), random_qkv(1, 2, 400, 8)[0]
    arguments = {"global_mask": (torch.arange(400) % 13 == 0)[None]}
    expected = run("reference", qkv, grad, (20, 30), **arguments)
    for actual, exact in zip(run("blocked", qkv, grad, (20, 30), **arguments), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-12, atol=1e-12)


def test_global_columns_cost_the_fused_kernel_no_accuracy() -> None:
    """Weights are rounded to bfloat16 in it, once, those of global columns too, and scores are not."""
    qkv = [x.bfloat16() for x in random_qkv(1, 4, 600, 32)]
    errors = []
    for count in (0, 64):
        arguments = {"global_mask": (torch.arange(600) % 9 == 0)[None] & (torch.arange(600) < 9 * count)[None]}
        exact = sliding_window_attention(*(x.double() for x in qkv), (64, 64), impl="reference", **arguments)
        out = sliding_window_attention(*qkv, (64, 64), impl="fused", **arguments)
        errors.append(float((out - exact).norm() / exact.norm()))
    assert errors[1] <= 1.1 * errors[0] < 2**-8


@pytest.mark.parametrize("impl", FAST)
def test_huge_and_equal_scores(impl: str) -> None:
    query, key, value = random_qkv(1, 1, 40, 4, torch.float32)
    for factor in (0.0, 1e4):
        out = sliding_window_attention(query * factor, key * factor, value, (5, 5), impl=impl)
        expected = sliding_window_attention(query * factor, key * factor, value, (5, 5), impl="reference")
        torch.testing.assert_close(out, expected)


def test_padding_of_very_negative_scores_has_finite_gradients_in_half() -> None:
    """Where a padded row's scores are all below what half can hold, masking by its smallest number gave NaN."""
    query, key, value = random_qkv(1, 1, 20, 4, torch.float16)
    keep = torch.arange(20)[None] < 10
    query[:, :, 10:] *= -200
    query.requires_grad_()
    for impl in ("reference", *FAST):
        out = sliding_window_attention(query, key.abs() * 100, value, (3, 3), key_mask=keep, impl=impl)
        (grad,) = torch.autograd.grad(out.sum(), query)
        assert torch.isfinite(out).all()
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("impl", ["blocked", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_that_was_used_before_is_not_read(impl: str, dtype: torch.dtype) -> None:
    qkv, grad = random_qkv(1, 3, 130, 16, dtype), random_qkv(1, 3, 130, 16, dtype)[0]
    arguments = {"key_mask": torch.arange(130)[None] < 100, "global_mask": torch.arange(130)[None] == 7}
    expected = run(impl, qkv, grad, (20, 20), **arguments)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # torch.empty gives NaN
    try:
        results = run(impl, qkv, grad, (20, 20), **arguments)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before
    for actual, first in zip(results, expected, strict=True):
        assert torch.equal(actual, first)


@pytest.mark.parametrize(("impl", "dropout_p"), [("blocked", 0.2), ("blocked", 0.0), ("fused", 0.0)])
def test_same_bits_again(impl: str, dropout_p: float) -> None:
    qkv = random_qkv(2, 3, 150, 16, torch.float32)
    globals_ = torch.rand(2, 150) < 0.05
    grad = torch.randn_like(qkv[0])

    def results() -> list[Tensor]:
        torch.manual_seed(3)
        return run(impl, qkv, grad, (20, 20), global_mask=globals_, dropout_p=dropout_p)

    for first, again in zip(results(), results(), strict=True):
        assert torch.equal(first, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dropout_in_low_precision_is_that_of_float32(dtype: torch.dtype) -> None:
    """The same draws, forward and backward, so that only rounding is between them."""
    qkv, grad = [x.to(dtype) for x in random_qkv(1, 2, 150, 16)], random_qkv(1, 2, 150, 16)[0].to(dtype)
    arguments: dict[str, Any] = {"global_mask": torch.arange(150)[None] < 3, "dropout_p": 0.3}
    torch.manual_seed(3)
    results = run("blocked", qkv, grad, (20, 20), **arguments)
    torch.manual_seed(3)
    expected = run("blocked", [x.float() for x in qkv], grad.float(), (20, 20), **arguments)
    for actual, exact in zip(results, expected, strict=True):
        assert torch.equal(actual, exact.to(dtype))


def test_half_does_not_overflow_before_it_is_divided() -> None:
    query = torch.zeros(1, 1, 600, 4, dtype=torch.float16)
    value = torch.full_like(query, 200.0)
    for out in (
        sliding_window_attention(query, query, value, (256, 256), impl="blocked"),
        sliding_window_attention(query, query, value, (256, 256), global_mask=torch.arange(600)[None] < 400),
        global_attention(query, query, value, impl="blocked"),
    ):
        torch.testing.assert_close(out, value)
    few = torch.arange(600)[None] < 400
    small = torch.full_like(query, 3e-5)
    grads = run("blocked", [query, query, value], small, (256, 256), global_mask=few)
    expected = run("reference", [query, query, value], small, (256, 256), global_mask=few)
    assert (grads[3] - expected[3]).norm() <= 0.05 * expected[3].norm()  # near the least that half can hold


def test_a_mask_that_changes_afterwards_changes_nothing() -> None:
    qkv = [x.requires_grad_() for x in random_qkv(1, 1, 40, 4)]
    keep = torch.arange(40)[None] % 5 != 3
    grads = []
    for change in (False, True):
        mask = keep.clone()
        out = sliding_window_attention(*qkv, (5, 5), key_mask=mask, impl="blocked")
        if change:
            mask.fill_(False)
        grads.append(torch.autograd.grad(out.sum(), qkv))
    for first, second in zip(*grads, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("impl", ["reference", "banded", "blocked", "chunked"])
def test_dropout_keeps_the_mean_and_drops_its_share(impl: str) -> None:
    seq_len, p = 64, 0.3
    query, key, _ = random_qkv(1, 200, seq_len, 2, torch.float32)
    value = torch.eye(seq_len).expand(1, 200, seq_len, seq_len)
    query = torch.cat([query, query.new_zeros(1, 200, seq_len, seq_len - 2)], dim=-1)
    key = torch.cat([key, key.new_zeros(1, 200, seq_len, seq_len - 2)], dim=-1)
    arguments: dict[str, Any] = {"global_mask": torch.arange(seq_len)[None] < 3, "scale": 0.5, "impl": impl}
    probs = sliding_window_attention(query, key, value, (9, 9), **arguments)  # the values are unit vectors
    dropped = sliding_window_attention(query, key, value, (9, 9), dropout_p=p, **arguments)
    seen = probs > 0
    assert abs((dropped[seen] == 0).float().mean() - p) < 0.01
    torch.testing.assert_close(
        dropped[seen & (dropped > 0)], (probs / (1 - p))[seen & (dropped > 0)], rtol=1e-3, atol=0
    )
    assert abs((dropped / probs)[seen].mean() - 1) < 0.01


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_blocked_gradients_numerically(dropout_p: float) -> None:
    """Against finite differences; the forward pass draws its dropout from a seed, and the backward pass replays it."""
    inputs = [x.requires_grad_() for x in random_qkv(1, 2, 11, 3)]
    globals_ = torch.arange(11)[None] == 8

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(7)
        return sliding_window_attention(
            query, key, value, (2, 3), global_mask=globals_, dilation=(1, 2), dropout_p=dropout_p, impl="blocked"
        )

    assert torch.autograd.gradcheck(function, inputs)


def test_any_strides() -> None:
    contiguous = random_qkv(2, 3, 70, 8)
    expected = sliding_window_attention(*contiguous, (9, 9), impl="reference")
    packed = torch.stack([x.transpose(1, 2) for x in contiguous], dim=2)  # (B, S, 3, H, D), as one product gives them
    views = [x.transpose(1, 2) for x in packed.unbind(dim=2)]
    odd = [x.flip(2).contiguous().flip(2).transpose(2, 3).contiguous().transpose(2, 3) for x in contiguous]
    for impl, qkv in itertools.product(FAST, (views, odd)):
        torch.testing.assert_close(sliding_window_attention(*qkv, (9, 9), impl=impl), expected, rtol=0, atol=1e-12)


def test_the_most_dropout() -> None:
    qkv = random_qkv(1, 1, 30, 4)
    assert torch.isfinite(sliding_window_attention(*qkv, (3, 3), dropout_p=0.999999)).all()


# ---- global attention


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("seq_len", [1, 40, 300])
@pytest.mark.parametrize("padding", [False, True])
def test_global_attention(rows: int, seq_len: int, padding: bool) -> None:
    query = torch.randn(3, 2, rows, 4, dtype=torch.float64)
    _, key, value = random_qkv(3, 2, seq_len, 4)
    keep = None
    if padding:
        keep = torch.rand(3, seq_len) < 0.5
        keep[1] = False
        keep[2, seq_len // 2 :] = False
    grad = torch.randn_like(query)
    results = []
    for impl in ("reference", "blocked", "banded", "fused", "chunked", "auto"):
        inputs = [x.detach().clone().requires_grad_() for x in (query, key, value)]
        out = global_attention(*inputs, key_mask=keep, impl=impl)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in inputs)])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max().clamp(min=1)


def test_global_attention_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longformer.kernels.tiles.MOST_SCORES", 2 * 60 * 7)
    query = torch.randn(1, 2, 20, 4, dtype=torch.float64)
    _, key, value = random_qkv(1, 2, 60, 4)
    out = global_attention(query, key, value, impl="blocked")
    torch.testing.assert_close(out, global_attention(query, key, value, impl="reference"), rtol=0, atol=1e-13)


def test_global_attention_is_a_row_that_sees_everything() -> None:
    query, key, value = random_qkv(1, 2, 30, 4)
    dense = sliding_window_attention(query, key, value, (30, 30), impl="reference")
    torch.testing.assert_close(global_attention(query[:, :, [4, 17]], key, value), dense[:, :, [4, 17]])


# ---- the band by diagonals


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("seq_len", [1, 5, 140, 300])
def test_banded_scores_and_product(seq_len: int, dilation: int) -> None:
    query, key, value = random_qkv(1, 2, seq_len, 3)
    left, right = 4, 2
    scores = banded_scores(query, key, (left, right), dilation)
    assert scores.shape == (1, 2, seq_len, left + 1 + right)
    probs = torch.randn_like(scores)
    expected_scores, expected_out = torch.zeros_like(scores), torch.zeros_like(value)
    for i, c in itertools.product(range(seq_len), range(left + 1 + right)):
        j = i + (c - left) * dilation
        if 0 <= j < seq_len:
            expected_scores[:, :, i, c] = (query[:, :, i] * key[:, :, j]).sum(-1)
            expected_out[:, :, i] += probs[:, :, i, c, None] * value[:, :, j]
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-13)
    torch.testing.assert_close(banded_product(probs, value, (left, right), dilation), expected_out, rtol=0, atol=1e-13)


def test_probabilities_stand_where_they_say() -> None:
    seq_len, left, right, dilation = 40, 3, 2, (1, 2)
    query, key, value = random_qkv(2, 2, seq_len, 4)
    globals_ = torch.zeros(2, seq_len, dtype=torch.bool)
    globals_[0, [0, 20, 39]] = True
    globals_[1, 7] = True
    keep = torch.arange(seq_len) < torch.tensor([[seq_len], [31]])
    band, columns, index = sliding_window_probabilities(
        query, key, (left, right), dilation=dilation, key_mask=keep, global_mask=globals_
    )
    assert index.tolist() == [[0, 20, 39], [7, -1, -1]]
    dense = torch.zeros(2, 2, seq_len, seq_len, dtype=torch.float64)
    for b, h, i in itertools.product(range(2), range(2), range(seq_len)):
        for c in range(left + 1 + right):
            j = i + (c - left) * dilation[h]
            if 0 <= j < seq_len:
                dense[b, h, i, j] += band[b, h, i, c]
            else:
                assert band[b, h, i, c] == 0
        for g, j in enumerate(index[b].tolist()):
            if j >= 0:
                dense[b, h, i, j] += columns[b, h, i, g]
            else:
                assert columns[b, h, i, g] == 0
    torch.testing.assert_close(dense.sum(-1), keep[:, None].expand(2, 2, seq_len).double())
    expected = sliding_window_attention(
        query, key, value, (left, right), dilation=dilation, key_mask=keep, global_mask=globals_, impl="reference"
    )
    torch.testing.assert_close(dense @ value, expected, rtol=0, atol=1e-13)
