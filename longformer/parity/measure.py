"""How far a value is from the truth: as it is, in units in the last place, and as a multiple of the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longformer.parity.rounding import row_mean_square
from longformer.parity.table import GRADIENT

# How many times the noise a value may be off. Correct implementations were measured, in every precision and size of
# model: they are off by up to 3 times the noise over a value, and 10 in a row. The smallest known slip is off by 6.7.
MULTIPLE = 5.0  # root mean square over the whole value
ROW_MULTIPLE = 16.0  # over one row: the worst of thousands of rows, each of few numbers
GRADIENTS = 4.0  # so much wider for gradients, sums that largely cancel (measured: up to 11 times the noise)


@dataclass(frozen=True)
class Error:
    """How far one run's value is from the truth.

    largest, rms: the largest difference, and the root mean square of all.
    ulp: the largest difference in units in the last place of the run's precision.
    noise: what rounding must cost, root mean square.
    ratio: rms over noise. row_ratio: the same for the row where it is largest.
    far: whether ``ratio`` or ``row_ratio`` is more than rounding explains.
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
    rms, expected = rms_of(off), math.sqrt(float(noise.mean()))
    ratio = ratio_of(rms, expected)
    row_ratio = largest(row_ratios(off, true, noise))
    factor = GRADIENTS if name.startswith(GRADIENT) else 1.0
    far = ratio > factor * MULTIPLE or row_ratio > factor * ROW_MULTIPLE
    ulp = largest(off.abs() / spacing(true, dtype))
    return Error(largest(off.abs()), rms, ulp, expected, ratio, row_ratio, far)


def row_ratios(off: Tensor, true: Tensor, noise: Tensor) -> Tensor:
    """Each row's error over its noise, both root mean square: (..., width) to (...).

    A row's noise comes from few numbers and can by chance be almost nothing. So it is taken to be at least the average
    noise of the whole value, and in a row of large numbers as much larger as these numbers are.
    """
    average, size = float(noise.mean()), row_mean_square(true)
    relative = average / float(size.mean()) if bool(size.any()) else 0.0
    expected = torch.maximum(noise, size * relative).clamp(min=average)
    rows = row_mean_square(off)
    return torch.where(rows > 0, (rows / expected).sqrt(), 0.0)


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of ``dtype`` at each element of ``x``, or at its row's root mean square if larger.

    Near 0 the units shrink without end. It would be of no use to call a sum that cancels wrong by millions of them.
    """
    size = torch.maximum(x.abs(), row_mean_square(x).sqrt()[..., None] if x.dim() else x.abs())
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(size.clamp(min=info.tiny)))) * info.eps


def ratio_of(x: float, y: float) -> float:
    """x / y of two numbers of at least 0, where 0 / 0 is 0."""
    return x / y if y else (0.0 if x == 0 else math.inf)


def largest(x: Tensor) -> float:
    """The largest element; 0 if there is none."""
    return float(x.max()) if x.numel() else 0.0


def rms_of(x: Tensor) -> float:
    """Root mean square; 0 if there is no element."""
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
