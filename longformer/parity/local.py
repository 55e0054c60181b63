"""Is an error rounding, where every part of a value has a noise of its own? Used where one module is judged alone.

The noise of a number is estimated from few runs, so it is pooled: mean square of its row (the last axis), times that of
its channel, over that of all. Errors are pooled too: over all numbers, each index of each axis (a token, a head, a
channel), each row, and not at all. Each pool has a limit, in multiples of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Limits, in multiples of the noise. The more numbers are pooled, the less a clean pool can stray.
ALL, AXIS, ROW, NUMBER = 5.0, 8.0, 12.0, 14.0
PRIOR = 4.0  # numbers of average noise that are added to each row and channel, of which few runs say little


@dataclass(frozen=True)
class Standing:
    """Where an error stands out most.

    Args:
        ratio: root mean square error over noise, of the pool that is furthest beyond its limit.
        limit: of this pool.
        pool: "all", "row", "number", or "axis i".
        index: of the pool within the value: a whole index for a number, all but the last for a row, one for an axis.
    """

    ratio: float
    limit: float
    pool: str
    index: tuple[int, ...]

    @property
    def is_wrong(self) -> bool:
        """Whether it is more than rounding explains."""
        return not self.ratio <= self.limit


class Spread:
    """How far rounding moves a value: mean squares by row and by channel, from several runs.

    Args:
        shape: of the value.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.runs = shape, 0
        self._rows = self._channels = torch.zeros((), dtype=torch.float64)

    def add(self, moved: Tensor) -> None:
        """Take in how far one run moved the value."""
        square = moved.double().square()
        self.runs += 1
        self._rows = self._rows + square.mean(dim=-1, keepdim=True) if square.dim() else self._rows + square
        self._channels = self._channels + square.mean(dim=_of_channel(square), keepdim=True)

    def variance(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean square of each number's noise, in float64; at least what storing ``value`` in ``dtype`` costs."""
        info = torch.finfo(dtype)
        stored = (value.double().abs() * info.eps).clamp(min=info.tiny * info.eps).square() / 12
        if not self.runs:
            return stored
        rows, channels = self._rows / self.runs, self._channels / self.runs
        average = rows.mean()
        width = self.shape[-1] if self.shape else 1
        tall = max(1, math.prod(self.shape) // max(1, channels.numel()))
        rows = (rows * (self.runs * width) + average * PRIOR) / (self.runs * width + PRIOR)
        channels = (channels * (self.runs * tall) + average * PRIOR) / (self.runs * tall + PRIOR)
        return rows * channels / average + stored if float(average) else stored.expand(self.shape)


def judge(off: Tensor, variance: Tensor) -> Standing:
    """The pool of the errors ``off`` that stands out most, beside its limit. Both are of the value's shape."""
    square, best = off.double().square(), Standing(0.0, ALL, "all", ())
    if not off.numel():
        return best
    for pool, limit, dims in _pools(square):
        ratios = (_mean(square, dims) / _mean(variance, dims)).sqrt()
        place = int(ratios.argmax())
        ratio = float(ratios.flatten()[place])
        if not ratio / limit <= best.ratio / best.limit:
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), ratios.shape)) if ratios.dim() else ()
            kept = [i for i in range(square.dim()) if i not in dims]
            best = Standing(ratio, limit, pool, tuple(index[i] for i in kept))
    return best


def _mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.mean(dim=dims, keepdim=True) if dims else x


def _pools(x: Tensor) -> Iterator[tuple[str, float, tuple[int, ...]]]:
    """Name and limit of each kind of pool, and the axes over which it is a mean."""
    every = tuple(range(x.dim()))
    yield "all", ALL, every
    if x.dim() > 1:
        for axis in every:
            if x.shape[axis] > 1:
                yield f"axis {axis}", AXIS, tuple(i for i in every if i != axis)
        yield "row", ROW, every[-1:]
    if x.dim() == 4 and x.shape[1] > 1:  # one channel of one head
        yield "channel", AXIS, (0, 2)
    yield "number", NUMBER, ()


def _of_channel(x: Tensor) -> tuple[int, ...]:
    """The axes over which a channel extends; (B, H, S, D) has H times D of them."""
    return (0, 2) if x.dim() == 4 else tuple(range(x.dim() - 1))
