"""Linear layers in another precision than their input's, and through the faster of torch's two float32 libraries.

``torch.nn.functional.linear`` computes float32 on a CPU with MKL, which on processors of another maker than its own
does not use their widest instructions. torch also carries oneDNN, which does, and which it uses itself for bfloat16 and
in compiled code. Measured: on an AMD EPYC with AVX-512 95 to 105 GFLOP/s a core by MKL, 200 to 220 by oneDNN; on an
Intel Xeon with AVX-512 200 by either, and 100 to 150 by oneDNN with its sums taken in parts, as they are here. So the
processor's maker decides, and equal machines give equal bits. Nothing is rounded otherwise than in float32.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.kernels.compat import is_watched

TERMS = 192  # of a dot product that oneDNN adds up at once
FEWEST_OUTPUTS = 16  # of which oneDNN is worth its while: a head's two MKL computes as fast, and rounds less


class Linear(nn.Linear):
    """``nn.Linear`` that takes its input in whatever precision it comes, and computes in that of its weight."""

    @classmethod
    def sharing(cls, layer: nn.Linear) -> Linear:
        """Another layer's weights in this class."""
        with torch.device("meta"):
            shared = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        shared.weight, shared.bias = layer.weight, layer.bias
        return shared

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if torch.is_autocast_enabled(x.device.type):  # which casts both sides itself
            return F.linear(x, self.weight, self.bias)
        return linear(x.to(self.weight.dtype), self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``: x (..., I) weightᵀ (I, O) + bias (O,), all of one dtype."""
    if len(weight) < FEWEST_OUTPUTS or not _served_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, weight, bias)):
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return _product(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.gelu(linear(x, weight, bias))``; at inference in bfloat16 in one pass, rounded once instead of twice."""
    if (
        x.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and _has_onednn(x, weight)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "gelu", [], "none")
        return out
    return F.gelu(linear(x, weight, bias))


def _served_by_onednn(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == torch.float32 and _has_onednn(x, weight) and _mkl_is_slow()


def _has_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN may compute the product. Quantised weights and FLOP counters know ``F.linear`` alone."""
    return bool(
        not torch.compiler.is_compiling()
        and not is_watched()
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch._C._functorch.maybe_current_level() is None
        and torch.autograd.forward_ad._current_level < 0
    )


@cache
def _mkl_is_slow() -> bool:
    """Whether the processor is one whose widest instructions MKL leaves alone."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: torch's own choice
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weightᵀ + bias by oneDNN.

    It adds the terms of a dot product up one after another, and its rounding error grows with their number: against
    MKL's 1.5 times at 768 terms, 2.2 times at 3072. Summed in parts of TERMS it is MKL's.
    """
    out: Tensor | None = None
    for part, columns in zip(x.split(TERMS, -1), weight.split(TERMS, -1), strict=True):
        first = bias if out is None else None
        product = torch.ops.mkldnn._linear_pointwise(_dense(part), _dense(columns), first, "none", [], "")
        out = product if out is None else out.add_(product)
    assert out is not None
    return out


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
