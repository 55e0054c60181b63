"""``assert_parity`` and ``assert_within_rounding``: what they let pass, and what they say otherwise."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from torch import Tensor

from longformer.errors import DataError
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
    one_row[7, 3] += 1e-5
    with pytest.raises(AssertionError, match=r"Largest at \[7, 3\]"):
        assert_within_rounding(one_row, product, *operands)
    low = operands[0].bfloat16().float(), operands[1].bfloat16().float()
    with pytest.raises(AssertionError, match="times what rounding costs"):
        assert_within_rounding(product(*low), product, *operands)
    with pytest.raises(AssertionError, match="has shape"):
        assert_within_rounding(product(*operands)[:3], product, *operands)
    with pytest.raises(AssertionError, match=r"actual\[0, 0\] is nan, the truth .*; 1200 are not finite"):
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
    with pytest.raises(AssertionError, match=r"is inf, expected .*; 1 are not finite"):
        assert_parity(x.index_fill(0, torch.tensor([2]), torch.inf)[2:3, :1], x[2:3, :1])


@pytest.mark.parametrize("truth", [None, [1.0, 1.0]])
@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([nan, 7.0], [nan, 1.0]),
        ([nan, 1.0], [nan, 1.0]),
        ([5.0, 7.0], [nan, 1.0]),
        ([5.0, 7.0], [inf, 1.0]),
        ([5.0, 1.0], [inf, 1.0]),
        ([inf, 1.0], [-inf, 1.0]),
        ([nan, 1.0], [1.0, 1.0]),
    ],
)
def test_what_is_not_finite_does_not_pass(
    actual: list[float], expected: list[float], truth: list[float] | None
) -> None:
    true = None if truth is None else torch.tensor(truth, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"value\[0\] is .*, expected .*; 1 are not finite"):
        assert_parity(torch.tensor(actual), torch.tensor(expected), true)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_truth_that_is_not_finite_judges_nothing(bad: float) -> None:
    x = torch.tensor([5.0, 1.0])
    with pytest.raises(AssertionError, match=rf"value\[0\] is 5.0, expected 5.0, the truth {bad}; 1 are not finite"):
        assert_parity(x, x, torch.tensor([bad, 1.0], dtype=torch.float64))
    with pytest.raises(AssertionError, match=rf"actual\[0\] is 5.0, the truth {bad}; 1 are not finite"):
        assert_within_rounding(x, lambda y: y.index_fill(0, torch.tensor([0]), bad), x)


def test_infinity_in_all_passes_and_hides_nothing() -> None:
    x = torch.tensor([[-inf, 1.0, 2.0], [3.0, inf, 4.0]])
    assert_parity(x, x.clone())
    assert_parity(x, x.clone(), x.double())
    assert_within_rounding(x.log_softmax(-1)[:1], lambda y: y.log_softmax(-1), x[:1])
    y = x.clone()
    y[1, 2] += 1e-3
    for truth in (None, x.double()):
        with pytest.raises(AssertionError, match=r"value.*\[1, 2\]"):
            assert_parity(y, x, truth)
    with pytest.raises(AssertionError, match=r"Largest at \[1, 2\]"):
        assert_within_rounding(y, torch.clone, x)


def test_a_function_that_a_rounding_makes_infinite_is_no_measure() -> None:
    x = torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64)
    with pytest.raises(AssertionError, match="with rounding, the function is not finite"):
        assert_within_rounding(x, torch.clone, x, runs=16)


def test_a_truth_that_lacks_a_value() -> None:
    x = torch.ones(2)
    with pytest.raises(DataError, match="the truth lacks b, so that nothing can judge it; the truth has a"):
        assert_parity({"a": x, "b": x}, {"a": x, "b": x}, {"a": x.double()})


def test_nothing_passes() -> None:
    x = torch.empty(0, 3)
    assert_parity(x, x)
    assert_parity(x, x, x.double())
    assert_within_rounding(x, torch.clone, x)


def test_keyword_arguments_and_arrays() -> None:
    x = torch.randn(6, 8)
    assert_within_rounding(x.softmax(dim=-1), torch.softmax, x, dim=-1)
    assert_within_rounding(x.softmax(dim=-1).numpy(), torch.softmax, input=x.numpy(), dim=-1)
    assert_parity(x.numpy(), x, x.double().numpy())
    assert_parity({"a": x.numpy()}, {"a": x})
    with pytest.raises(AssertionError, match="times what rounding costs"):
        assert_within_rounding((x * 1.001).softmax(dim=-1).numpy(), torch.softmax, x, dim=-1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_what_is_not_rounded_is_refused(dtype: torch.dtype) -> None:
    x = torch.ones(3).to(dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        TypeError, match=f"actual is {kind}, which is not rounded; compare such values with torch.equal"
    ):
        assert_within_rounding(x, torch.clone, x)
    with pytest.raises(TypeError, match=rf"actual\['a'\] is {kind}, which is not rounded"):
        assert_parity({"a": x}, {"a": x})
    with pytest.raises(TypeError, match="expected is a list; give a tensor or a numpy array"):
        assert_parity(torch.ones(3), [1.0, 1.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function gives a tuple; it must give one tensor"):
        assert_within_rounding(torch.ones(3), lambda x: (x, x), torch.ones(3))


def test_a_truth_in_float32_is_refused() -> None:
    x = torch.ones(3)
    with pytest.raises(TypeError, match="the truth is float32 in value; it must be float64"):
        assert_parity(x, x, x)
