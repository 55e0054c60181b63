"""Quantised linear layers of others: torchao's weight-only int8, and torch's dynamic quantisation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class, counted_layers, encoder_of, flat, linear_names
from torch import Tensor, nn

import longformer.models.linear
from longformer.models.packed import may_serve


def inferred(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return flat(model(*batch()))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture
def torchao() -> Any:
    return pytest.importorskip("torchao.quantization", reason="torchao: pip install torchao")


@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
@pytest.mark.parametrize("cls", CLASSES)
def test_torchao_int8_weights(torchao: Any, cls: type, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near float32, and with equal numbers what a float32 model computes whose weights were rounded in this way."""
    monkeypatch.setattr(longformer.models.linear, "mkl_is_slow", lambda: library == "oneDNN")
    model = build_class(cls, dtype=torch.float32)
    rounded, expected = copy.deepcopy(model), inferred(model)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    for name in linear_names(rounded):
        weight = model.get_submodule(name).weight
        assert type(weight) not in (Tensor, nn.Parameter)
        assert weight.qdata.dtype == torch.int8
        rounded.get_submodule(name).weight.data = weight.dequantize()
    assert not may_serve(encoder_of(model), batch()[0])
    actual = inferred(model)
    assert 1e-4 < relative_error(actual, expected) < 0.05
    torch.testing.assert_close(actual, inferred(rounded), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cls", CLASSES)
def test_quantize_dynamic(cls: type) -> None:
    if torch.backends.quantized.engine == "none":
        pytest.skip("this build of torch has no engine for quantised products")
    model = build_class(cls, dtype=torch.float32)
    expected = inferred(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: it is to move to torchao
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    plain = [name for name, part in model.named_modules() if type(part) is nn.Linear]
    assert len(plain) == 2 * 9
    for name in plain:
        assert isinstance(quantised.get_submodule(name), torch.ao.nn.quantized.dynamic.Linear)
    with counted_layers() as layers:
        assert may_serve(encoder_of(quantised), batch()[0])  # and calls them, as the modules that they are
        actual = inferred(quantised)
    assert len(layers) == 2
    assert 1e-4 < relative_error(actual, expected) < 0.1
