"""Linear layers by whichever library: the same numbers, the same gradients, for any shape and stride."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import longformer.models.linear
from longformer.kernels import compat
from longformer.models.linear import Linear, linear, linear_gelu


@pytest.fixture(autouse=True, params=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with either library, whatever processor runs it."""
    monkeypatch.setattr(longformer.models.linear, "mkl_is_slow", lambda: request.param == "oneDNN")


@pytest.mark.parametrize("shape", [(1, 8), (7, 8), (2, 3, 8), (0, 8), (300, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients(shape: tuple[int, ...], bias: bool) -> None:
    x, weight = torch.randn(shape), torch.randn(20, 8)
    offset = torch.randn(20) if bias else None
    grad = torch.randn(*shape[:-1], 20)
    results = []
    for function in (F.linear, linear):
        inputs = [p if p is None else p.clone().requires_grad_() for p in (x, weight, offset)]
        out = function(*inputs)
        out.backward(grad)
        results.append([out.detach(), *(p.grad for p in inputs if p is not None)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_bias_may_be_trained_alone() -> None:
    layer, x = Linear(300, 40), torch.randn(50, 300)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((40,), 50.0))


def test_autocast() -> None:
    layer, x = Linear(300, 40), torch.randn(50, 300)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert linear_gelu(x, layer.weight, layer.bias).dtype == torch.bfloat16
        assert linear(x, layer.weight, layer.bias).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_at_once(dtype: torch.dtype) -> None:
    layer, x = Linear(300, 40).to(dtype), torch.randn(50, 300, dtype=dtype)
    expected = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    with torch.no_grad():
        actual = linear_gelu(x, layer.weight, layer.bias)
    assert actual.dtype == dtype
    assert (actual - expected).abs().max() <= {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}[dtype]  # values up to 2


def test_no_further_from_float64_than_torch_itself() -> None:
    x, weight, bias = torch.randn(200, 768), torch.randn(768, 768), torch.randn(768)
    truth = F.linear(x.double(), weight.double(), bias.double())
    assert (linear(x, weight, bias) - truth).norm() <= 1.5 * (F.linear(x, weight, bias) - truth).norm()


def test_any_strides() -> None:
    x, weight, bias = torch.randn(40, 60).t()[:, 3:19], torch.randn(16, 20).t(), torch.randn(20)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    weight.requires_grad_()
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision_is_that_of_the_weight(dtype: torch.dtype) -> None:
    layer = Linear(8, 5).to(dtype)
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), F.linear(x.to(dtype), layer.weight, layer.bias))


def test_second_derivatives() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)

    def penalty(function) -> torch.Tensor:  # type: ignore[no-untyped-def]
        (grad,) = torch.autograd.grad(function(x, weight, None).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), weight)
        return second

    torch.testing.assert_close(penalty(linear), penalty(F.linear), rtol=1e-4, atol=1e-4)


def test_a_torch_without_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "linear_pointwise", None)
    x, weight, bias = torch.randn(50, 300), torch.randn(40, 300), torch.randn(40)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    with torch.no_grad():
        low = [part.bfloat16() for part in (x, weight, bias)]
        assert torch.equal(linear_gelu(*low), F.gelu(F.linear(*low)))


def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    longformer.models.linear.mkl_is_slow.cache_clear()
    amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    assert longformer.models.linear.mkl_is_slow() == amd


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, of its own flags
def test_it_can_be_switched_off() -> None:
    x, weight, bias = torch.randn(50, 300), torch.randn(40, 300), torch.randn(40)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
