"""How far a value is from the truth: absolutely, in units in the last place, and as a multiple of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longformer.parity.rounding import row_mean_square
from longformer.parity.table import GRADIENT

# Times the noise that a value may be off. Correct implementations were measured to be off by up to 3 times the noise
# over a value and 10 in a row, in every precision and size of model; the least of the known slips by 6.7.
MULTIPLE = 5.0  # root mean square over the whole value
ROW_MULTIPLE = 16.0  # over any one row: the worst of thousands, of few numbers each
GRADIENTS = 4.0  # times as much again for gradients: sums over all tokens that largely cancel (measured: up to 11)


@dataclass(frozen=True)
class Error:
    """How far one run's value is from the truth.

    largest, rms: absolute. ulp: the largest, in units in the last place of the run's precision. noise: what rounding
    must cost, rms. ratio: rms over noise. row_ratio: the same for the row where it is largest. far: whether that is
    too much.
    """

    largest: float
    rms: float
    ulp: float
    noise: float
    ratio: float
    row_ratio: float
    far: bool


def measure(name: str, x: Tensor, true: Tensor, noise: Tensor, dtype: torch.dtype) -> Error:
    """The error of ``x`` in precision ``dtype``; ``noise`` is :meth:`Truth.noise`'s for the value ``name``."""
    off = x - true
    whole = float(noise.mean())
    rms = rms_of(off)
    ratio = ratio_of(rms, math.sqrt(whole))
    row_ratio = largest(row_ratios(off, true, noise))
    factor = GRADIENTS if name.startswith(GRADIENT) else 1.0
    far = ratio > factor * MULTIPLE or row_ratio > factor * ROW_MULTIPLE
    ulp = largest(off.abs() / spacing(true, dtype))
    return Error(largest(off.abs()), rms, ulp, math.sqrt(whole), ratio, row_ratio, far)


def row_ratios(off: Tensor, true: Tensor, noise: Tensor) -> Tensor:
    """Of an error, shape (..., width), each row's root mean square over its noise: (...).

    A row's noise is known from few numbers, and might by chance be next to nothing. The whole value's is the least that
    is expected of it, and in a row of large numbers as much more as they are larger.
    """
    whole, size = float(noise.mean()), row_mean_square(true)
    relative = whole / float(size.mean()) if bool(size.any()) else 0.0
    expected = torch.maximum(noise, size * relative).clamp(min=whole)
    rows = row_mean_square(off)
    return torch.where(rows > 0, (rows / expected).sqrt(), 0.0)


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A unit in the last place of ``dtype`` at each element of ``x``, or at its row's root mean square if larger.

    Near 0 the units shrink without end, and a sum that cancels is not wrong by millions of them in any useful sense.
    """
    size = torch.maximum(x.abs(), row_mean_square(x).sqrt()[..., None] if x.dim() else x.abs())
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(size.clamp(min=info.tiny)))) * info.eps


def ratio_of(x: float, y: float) -> float:
    """x / y of two numbers that are not negative; 0 / 0 is 0."""
    return x / y if y else (0.0 if x == 0 else math.inf)


def largest(x: Tensor) -> float:
    """The largest element, 0 if there is none."""
    return float(x.max()) if x.numel() else 0.0


def rms_of(x: Tensor) -> float:
    """Root mean square, 0 of nothing."""
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
