"""How far a value is from the truth: as it is, in units in the last place, and as a multiple of the noise.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from longformer.parity.noise import Noise, channel_mean_square, row_mean_square

# How many times the noise a part of a value may be off, root mean square: the whole value, and the worst of its heads,
# channels, rows and numbers. That is of parts of many numbers; of few, chance has more room, and a part of one number
# has the limit of a number. `tests/support/parity_calibration.py` measures what clean runs need.
MULTIPLE = 2.0
LIMITS = {"value": MULTIPLE, "head": 2.5, "channel": 3.0, "row": 4.0, "number": 12.0}
DOUBT = 1.5  # up to so many times its limit a ratio is suspicious and not different
# Of a value that rounding moves by this part of itself, as half precision does. There a softmax may turn by chance from
# one column to another in some rows, and the few runs from which the noise comes say less.
COARSE = 1e-4
COARSE_DOUBT = 4.0
# The least noise (mean square) of a channel and of a head, in that of the whole value. A row has no less than that.
LEAST = {"channel": 1e-3, "head": 0.1}
COARSE_LEAST = {"channel": 0.1, "head": 1.0}


@dataclass(frozen=True)
class Error:
    """How far one run's value is from the truth.

    largest, rms: the largest difference, and the root mean square of all.
    ulp: the largest difference in units in the last place of the run's precision.
    noise: what rounding must cost, root mean square.
    ratios: rms over noise for the whole "value", and for the "head", "channel", "row" and "number" where it is largest.
    limits: how large each of them may be.
    doubt: up to so many times its limit a ratio leaves a doubt.
    """

    largest: float
    rms: float
    ulp: float
    noise: float
    ratios: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    doubt: float = DOUBT

    @property
    def ratio(self) -> float:
        """rms over noise of the whole value."""
        return self.ratios.get("value", math.nan)

    @property
    def worst(self) -> str:
        """The part that is furthest off beside its limit."""
        return max(self.ratios, key=lambda part: self.ratios[part] / self.limits[part], default="value")

    @property
    def excess(self) -> float:
        """How far that part is off, as a multiple of its limit; infinite where nothing can be measured."""
        return self.ratios[self.worst] / self.limits[self.worst] if self.ratios else math.inf

    @property
    def far(self) -> bool:
        """Whether it is more than rounding explains."""
        return self.excess > self.doubt

    @property
    def doubtful(self) -> bool:
        """Whether it is beyond a limit, but by so little that more evidence is needed."""
        return 1 < self.excess <= self.doubt


def measure(x: Tensor, true: Tensor, noise: Noise, dtype: torch.dtype) -> Error:
    """The error of ``x``, computed in ``dtype``; ``noise`` is :meth:`Truth.noise`'s for the value."""
    off = x - true
    ratios, limits = {"value": 0.0}, {"value": MULTIPLE}
    for part, found in part_ratios(off, true, noise).items():
        ratios[part], limits[part] = largest(found), limit(part, off.numel() // found.numel())
    expected = math.sqrt(float(noise.mean())) if off.numel() else 0.0
    ulp = largest(off.abs() / spacing(true, dtype))
    doubt = COARSE_DOUBT if off.numel() and _is_coarse(true, noise) else DOUBT
    return Error(largest(off.abs()), rms_of(off), ulp, expected, ratios, limits, doubt)


def limit(part: str, numbers: int) -> float:
    """How many times its noise a part of so many numbers may be off."""
    return LIMITS[part] + (LIMITS["number"] - LIMITS[part]) / math.sqrt(numbers)


def part_ratios(off: Tensor, true: Tensor, noise: Noise) -> dict[str, Tensor]:
    """The error over the noise, both root mean square, of every part of a value: one for the value, (H,) heads,
    (C,) or (H, D) channels, shape[:-1] rows, and every number."""
    if not off.numel():
        return {}
    squares, mean = off.square(), noise.mean()
    least = COARSE_LEAST if _is_coarse(true, noise) else LEAST
    found = {"value": _over(squares.mean(), mean), "row": _over(row_mean_square(off), _of_rows(true, noise))}
    if off.dim() == 4:
        heads = torch.maximum(noise.rows.mean(dim=(0, 2)), least["head"] * mean)
        found["head"] = _over(squares.mean(dim=(0, 2, 3)), heads)
    channels = channel_mean_square(off)
    if channels is not None and noise.channels is not None:
        found["channel"] = _over(channels, torch.maximum(noise.channels, least["channel"] * mean))
        found["number"] = _over(squares, _of_numbers(true, noise, least["channel"]))
    return found


def row_ratios(off: Tensor, noise: Noise) -> Tensor:
    """Each row's error over the noise of that row, for a picture, both root mean square: (..., width) to (...)."""
    return _over(row_mean_square(off), torch.maximum(noise.rows, LEAST["channel"] * noise.mean()))


def _is_coarse(true: Tensor, noise: Noise) -> bool:
    return float(noise.mean()) > COARSE**2 * float(true.square().mean())


def _of_rows(true: Tensor, noise: Noise) -> Tensor:
    """The noise of each row: no less than the value's, and in a coarse value, so large that no row of the runs from
    which it comes would be beyond the limit."""
    rows = torch.maximum(noise.rows, noise.mean())
    return torch.maximum(rows, noise.largest / LIMITS["row"] ** 2) if _is_coarse(true, noise) else rows


def _of_numbers(true: Tensor, noise: Noise, least: float) -> Tensor:
    """The noise of each number, in the value's shape: as its row and its channel have it together, and no less than its
    part of the row's noise if that is spread as the row's squares are. A probability near 1 has most of its row's.
    """
    assert noise.channels is not None
    rows = _of_rows(true, noise)[..., None]
    channels, mean = noise.channels, noise.mean()
    if channels.dim() == 2:  # by heads: (B, H, S, 1) and (H, 1, D)
        channels, mean = channels[:, None, :], noise.rows.mean(dim=(0, 2))[:, None, None]
    size = row_mean_square(true)[..., None]
    spread = torch.where(size > 0, true.square() / size, 1.0)
    return rows * torch.maximum(spread, torch.where(mean > 0, channels / mean, 1.0).clamp(min=least))


def _over(squares: Tensor, expected: Tensor) -> Tensor:
    """The square root of a quotient, where 0 / 0 is 0."""
    return torch.where(squares > 0, (squares / expected).sqrt(), 0.0)


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of ``dtype`` at each element of ``x``, or at its row's root mean square if larger.

    Near 0 the units shrink without end. It would be of no use to call a sum that cancels wrong by millions of them. In
    a row of zeros the unit is that of the value's root mean square.
    """
    size = torch.maximum(x.abs(), row_mean_square(x).sqrt()[..., None] if x.dim() else x.abs())
    if x.numel():
        size = torch.where(size > 0, size, rms_of(x))
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
