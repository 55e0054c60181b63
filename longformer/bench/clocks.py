"""Two clocks, one for work on the CPU and one for work on a GPU. Whoever times something is given one of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

FILLER_BYTES = 256 * 2**20  # zeroed before each run on a GPU: several times the size of its level 2 cache
FILLS, MOST_FILLS = 16, 256  # how often it is zeroed; once takes about 0.1 ms


class Time(NamedTuple):
    """The seconds of one run, and whether a GPU had to wait for the host in that time."""

    seconds: float
    waited: bool = False


class Clock(Protocol):
    """Times one call of ``run``. ``name`` says what runs, and is the same for each run of the same thing."""

    def __call__(self, run: Callable[[], Any], name: str) -> Time: ...


def cpu_clock(run: Callable[[], Any], name: str) -> Time:
    """Wall-clock time of a run on the CPU."""
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    del result  # freed after the clock has stopped, and before the next run starts
    return Time(elapsed)


class GpuClock:
    """Time of a run on the GPU, between two events that the GPU itself records.

    Other work is queued before the run. It gives the host time to submit the whole run before the GPU reaches it, and
    it removes the run's inputs from the cache. If the host was still submitting when the GPU reached the run, the next
    run of that name waits behind a longer queue, up to a limit. A run that reads a result back always waits.
    """

    def __init__(self) -> None:
        self.filler = torch.empty(FILLER_BYTES, dtype=torch.uint8, device="cuda")
        self.fills: dict[str, int] = {}

    def __call__(self, run: Callable[[], Any], name: str) -> Time:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        fills = self.fills.get(name, FILLS)
        torch.cuda.synchronize()
        for _ in range(fills):
            self.filler.zero_()
        start.record()
        result = run()
        end.record()
        waited = start.query()
        torch.cuda.synchronize()
        del result
        if waited:
            self.fills[name] = min(4 * fills, MOST_FILLS)
        return Time(start.elapsed_time(end) / 1e3, waited)
