"""Is an error rounding, where every part of a value has a noise of its own? Used where one module is judged alone.

The noise of a number is estimated from few runs, so it is pooled: mean square of its row (the last axis), times that of
its channel, over that of all; or, if larger, that of the numbers of its size. Errors are pooled too: over all numbers,
each index of each axis (a token, a head, a channel), each row, and not at all. Each pool has a limit, in multiples of
the noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Limits, in multiples of the noise. The fewer numbers are pooled, the further a clean pool can stray.
ALL, AXIS, ROW, NUMBER = 5.0, 8.0, 12.0, 18.0
LEVELS = 256  # sizes of a number, by which its noise may differ: a function of one number is not as exact everywhere
STRONG = 3.0  # times the noise: the numbers by which it is said where an error stands out
IN_LEVEL = 32  # numbers that there must be of a size
PRIOR = 16.0  # numbers of average noise that are added to each row and channel, of which few runs say little


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
    """How far rounding moves a value: mean squares by row, by channel and by the number's size, from several runs.

    Args:
        value: as it was recorded.
    """

    def __init__(self, value: Tensor) -> None:
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // 8192)].float().sort().values
        levels = max(1, min(LEVELS, len(some) // IN_LEVEL))
        self._edges = some[torch.linspace(0, max(0, len(some) - 1), levels + 1).long()[1:-1]] if len(some) else some
        self.runs = 0
        self._rows = self._channels = torch.zeros((), dtype=torch.float64)
        self._levels, self._counts = (torch.zeros(levels, dtype=torch.float64) for _ in range(2))

    def add(self, moved: Tensor, value: Tensor) -> None:
        """Take in how far one run moved the value."""
        square = moved.detach().double().square()
        self.runs += 1
        self._rows = self._rows + (square.mean(dim=-1, keepdim=True) if square.dim() else square)
        self._channels = self._channels + square.mean(dim=_of_channel(square), keepdim=True)
        level = self._level(value).flatten()
        self._levels.index_add_(0, level, square.flatten())
        self._counts += torch.bincount(level, minlength=len(self._counts))

    def _level(self, value: Tensor) -> Tensor:
        return torch.bucketize(value.float().contiguous(), self._edges)

    def variance(self, value: Tensor) -> Tensor:
        """The mean square of each number's noise, in float64; at least what storing ``value`` in its dtype costs."""
        info, shape = torch.finfo(value.dtype), value.shape
        stored = (value.double().abs() * info.eps).clamp(min=info.tiny * info.eps).square() / 12
        if not self.runs or not value.numel():
            return stored
        rows, channels = self._rows / self.runs, self._channels / self.runs
        average = rows.mean()
        used = rows.sum() / (rows > 0).sum().clamp(min=1)  # a row that is masked, or not used, says nothing
        width, tall = shape[-1] if shape else 1, max(1, value.numel() // channels.numel())
        rows = (rows * (self.runs * width) + used * PRIOR) / (self.runs * width + PRIOR)
        channels = (channels * (self.runs * tall) + average * PRIOR) / (self.runs * tall + PRIOR)
        levels = (self._levels / self._counts.clamp(min=1))[self._level(value)]
        return torch.maximum(rows * channels / average, levels) + stored if float(average) else stored


def judge(off: Tensor, variance: Tensor) -> Standing:
    """Where the errors ``off`` stand out. Both are of the value's shape.

    Of the pools that are beyond their limits, the smallest is named that has most of what is beyond the noise: of a
    channel that is off, many numbers are beyond it too.
    """
    square = off.double().square()
    best = Standing(0.0, ALL, "all", ())
    beyond: list[tuple[int, tuple[int, ...], tuple[int, ...], Standing]] = []
    for pool, limit, dims in _pools(square) if off.numel() else ():
        errors = _mean(square, dims)
        ratios = torch.where(errors == 0, 0.0, (errors / _mean(variance, dims)).sqrt())
        count = square.numel() // ratios.numel()
        place = int(ratios.argmax())
        whole = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), ratios.shape)) if ratios.dim() else ()
        index = tuple(i for axis, i in enumerate(whole) if axis not in dims)
        found = Standing(float(ratios.flatten()[place]), max(limit, _limit(count)), pool, index)
        if found.is_wrong:
            beyond.append((count, dims, whole, found))
        if not found.ratio / found.limit <= best.ratio / best.limit:
            best = found
    if beyond:
        strong = torch.where(square > STRONG**2 * variance, square / variance, 0.0).clamp(max=1e200)
        total = float(strong.sum())
        for _, dims, whole, found in sorted(beyond, key=lambda each: each[0]):
            if float((strong.sum(dim=dims, keepdim=True) if dims else strong)[whole]) >= total / 2:
                return found
    return best


def _limit(count: int) -> float:
    """The limit of a pool of so few numbers."""
    return NUMBER if count < 8 else ROW if count < 64 else 0.0


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
    if x.dim() == 4:  # one token of all heads
        yield "token", ROW, (1, 3)
    yield "number", NUMBER, ()


def _of_channel(x: Tensor) -> tuple[int, ...]:
    """The axes over which a channel extends; (B, H, S, D) has H times D of them."""
    return (0, 2) if x.dim() == 4 else tuple(range(x.dim() - 1))
