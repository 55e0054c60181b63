"""``assert_parity`` and ``assert_within_rounding``: what they let pass, and what they say otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longformer.parity import assert_parity, assert_within_rounding


def product(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y).softmax(dim=-1)


@pytest.fixture
def operands() -> tuple[Tensor, Tensor]:
    return torch.randn(40, 64), torch.randn(64, 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_passes(operands: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    x, y = (operand.to(dtype) for operand in operands)
    assert_within_rounding(product(x, y), product, x, y)


def test_more_than_rounding_does_not(operands: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(AssertionError, match="times what rounding costs"):
        assert_within_rounding(product(*operands) * (1 + 1e-5), product, *operands)
    one_row = product(*operands)
    one_row[7, 3] += 2e-6
    with pytest.raises(AssertionError, match=r"Largest at \[7, 3\]"):
        assert_within_rounding(one_row, product, *operands)
    low = operands[0].bfloat16().float(), operands[1].bfloat16().float()
    with pytest.raises(AssertionError, match="times what rounding costs"):
        assert_within_rounding(product(*low), product, *operands)
    with pytest.raises(AssertionError, match="has shape"):
        assert_within_rounding(product(*operands)[:3], product, *operands)
    with pytest.raises(AssertionError, match=r"actual\[0, 0\] is nan; 1200 are not finite"):
        assert_within_rounding(torch.full((40, 30), torch.nan), product, *operands)


def test_exact_results_pass() -> None:
    x = torch.randn(5, 8)
    assert_within_rounding(x.max(dim=-1).values, lambda x: x.max(dim=-1).values, x)
    assert_within_rounding(torch.zeros(3), torch.zeros_like, torch.zeros(3))


def test_parity_by_a_truth(operands: tuple[Tensor, Tensor]) -> None:
    x, y = operands
    truth = product(x.double(), y.double())
    halves = (x[:, :32] @ y[:32] + x[:, 32:] @ y[32:]).softmax(dim=-1)
    assert_parity(halves, product(x, y), truth)
    assert_parity({"a": halves, "b": halves}, {"a": halves, "b": product(x, y)}, {"a": truth, "b": truth})
    with pytest.raises(AssertionError, match=r"value: actual is .* from the truth, expected .* is allowed"):
        assert_parity(halves.bfloat16().float(), product(x, y), truth)
    one = halves.clone()
    one[3, 4] += 1e-5
    with pytest.raises(AssertionError, match=r"at \[3, 4\]"):
        assert_parity(one, product(x, y), truth)
    with pytest.raises(AssertionError, match=r"b: actual is"):
        assert_parity({"a": halves, "b": halves * 1.001}, {"a": halves, "b": halves}, {"a": truth, "b": truth})


def test_parity_without_a_truth(operands: tuple[Tensor, Tensor]) -> None:
    x = operands[0]
    assert_parity(x.exp(), x.double().exp().float())
    assert_parity(x.bfloat16(), x)
    with pytest.raises(AssertionError, match="units in the last place of float32, where 5 are allowed"):
        assert_parity(x * (1 + 1e-6), x)
    with pytest.raises(AssertionError, match=r"\['b'\] are in one of the two only"):
        assert_parity({"a": x, "b": x}, {"a": x})
    with pytest.raises(AssertionError, match=r"has shape \(40, 64\), and \(64, 40\) was expected"):
        assert_parity(x, x.T)
    with pytest.raises(AssertionError, match="is inf; 1 are not finite"):
        assert_parity(x.index_fill(0, torch.tensor([2]), torch.inf)[2:3, :1], x[2:3, :1])
