"""Linear layers in another precision than their input's; and the packed engine's, by the faster of torch's libraries.

``torch.nn.functional.linear`` computes float32 on a CPU with MKL, which on processors of another maker than its own
does not use their widest instructions. torch also carries oneDNN, which does. torch itself uses it for bfloat16 and in
compiled code. Measured: on an AMD EPYC with AVX-512 95 to 105 GFLOP/s a core by MKL, 200 to 220 by oneDNN; on an Intel
Xeon with AVX-512 200 by either, and 100 to 150 by oneDNN with its sums taken in parts, as they are here. So the
processor's maker decides, and equal machines give equal bits. Everything is computed and rounded in float32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.kernels import compat

TERMS = 192  # of a dot product that oneDNN adds up at once
FEWEST_OUTPUTS = 16  # with fewer output channels MKL is as fast as oneDNN, and rounds less


class Linear(nn.Linear):
    """``nn.Linear`` that takes its input in any precision, and computes in that of its weight."""

    @classmethod
    def sharing(cls, layer: nn.Linear) -> Linear:
        """Another layer's weights in this class."""
        with torch.device("meta"):
            shared = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        shared.weight, shared.bias = layer.weight, layer.bias
        return shared

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if not torch.is_autocast_enabled(x.device.type):  # which casts both sides itself
            x = x.to(self.weight.dtype)
        return F.linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``: x (..., I) weightᵀ (I, O) + bias (O,); ordinary tensors of one dtype on a CPU, in eager mode."""
    in_float32 = x.dtype == weight.dtype == torch.float32
    if not in_float32 or len(weight) < FEWEST_OUTPUTS or not (_has_onednn(x) and mkl_is_slow()):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, weight, bias)):
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return _product(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.gelu(linear(x, weight, bias))``; at inference in bfloat16 in one pass, rounded once instead of twice."""
    in_bfloat16 = x.dtype == weight.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    if in_bfloat16 and _has_onednn(x) and compat.has_bf16_mkldnn():
        return _pointwise(x, weight, bias, "gelu")
    return F.gelu(linear(x, weight, bias))


def _has_onednn(x: Tensor) -> bool:
    """Whether oneDNN can compute a product with ``x``, and the user has not switched it off."""
    return bool(
        compat.linear_pointwise is not None
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and x.dim() > 1
        and x.numel() > 0
    )


@cache
def mkl_is_slow() -> bool:
    """Whether the processor is one whose widest instructions MKL leaves alone."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: torch's own choice
        return False


def faster_than_attention(dtype: torch.dtype, tokens: int) -> float:
    """How many times as fast as the products inside attention those of a linear layer are here, roughly.

    Attention's are MKL's, in float32 at least, but where the processor has matrix instructions for ``dtype``. Those of
    more tokens are larger, and faster. Measured by the number of global tokens at which two ways to the same result
    take as long: on an EPYC 10, 12 and 16 in bfloat16 for 170, 512 and 4,096 tokens, and 29 and 37 in float32 for up to
    512 and from 1,024 on. On a Xeon the products are about as fast.
    """
    if compat.has_matrix_units(dtype):
        return 1.0
    if dtype == torch.bfloat16 and compat.has_bf16_products():
        if not mkl_is_slow():
            return 2.1
        return 6.6 if tokens < 512 else 5.6 if tokens < 3072 else 4.2
    if not mkl_is_slow():
        return 1.0
    return 2.4 if tokens < 1024 else 1.9


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias by oneDNN.

    It adds the terms of a dot product up one after another, and its rounding error grows with their number: against
    MKL's 1.5 times at 768 terms, 2.2 times at 3072. Summed in parts of TERMS it is MKL's.
    """
    out: Tensor | None = None
    for part, columns in zip(x.split(TERMS, -1), weight.split(TERMS, -1), strict=True):
        first = bias if out is None else None
        product = _pointwise(part, columns, first, "none")
        out = product if out is None else out.add_(product)
    assert out is not None
    return out


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, function: str) -> Tensor:
    """x weightᵀ + bias by oneDNN, and a pointwise function of each number: "none" or "gelu"."""
    assert compat.linear_pointwise is not None
    return compat.linear_pointwise(_dense(x), _dense(weight), bias, function, [], "none" if function == "gelu" else "")


def _dense(x: Tensor) -> Tensor:
    """``x`` without gaps between its rows or its columns: anything else is far slower there than a copy."""
    return x if x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous()) else x.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, grad_rows = x.flatten(0, -2), grad.flatten(0, -2)
        # A second derivative goes through these products: then they are torch's own, which have one.
        product = F.linear if torch.is_grad_enabled() else _product
        grad_x = product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        grad_weight = product(grad_rows.t(), rows.t(), None) if ctx.needs_input_grad[1] else None
        grad_bias = grad_rows.sum(0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias
