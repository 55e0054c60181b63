"""The GPU that ``bench gpu`` measures on: whether there is one, its clock, its peak, and how it multiplies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from longformer.bench import machine
from longformer.errors import LongformerError
from longformer.kernels import choose

PRODUCT = 8192  # rows and columns of the matrix product that stands for the machine's peak
FILLER_BYTES = 256 * 2**20  # zeroed before each run: several times a GPU's level 2 cache
FILLS, MOST_FILLS = 16, 256  # of it, about 0.1 ms each


def require_device() -> torch.device:
    """The GPU. Raises LongformerError where torch sees none, or where the kernels would not run on it."""
    if not torch.cuda.is_available():
        raise LongformerError(
            f"bench gpu measures on a CUDA or ROCm device, and torch {torch.__version__} sees none here; `longformer "
            "bench attention` measures on a CPU, and TRITON_INTERPRET=1 runs the GPU's kernels there, to test them"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    choice = choose(torch.empty(1, 1, 16, 64, device=device, dtype=torch.bfloat16))
    if choice.impl != "triton":
        raise LongformerError(f"bench gpu measures the Triton kernels, and they do not run here: {choice.reason}")
    return device


class Time(NamedTuple):
    """Milliseconds of one run, and whether the GPU had to wait for the host within them."""

    ms: float
    waited: bool = False


class Clock(Protocol):
    """Times ``run``; ``what`` names it, equally each time."""

    def __call__(self, run: Callable[[], Any], what: str) -> Time: ...


class DeviceClock:
    """Work on the GPU, by its own events.

    A run starts behind a queue of other work, which gives the host time to hand over all of the run before the GPU
    comes to it, and which leaves nothing of its inputs in the cache. Where the host was still at it when the GPU
    arrived, the queue is longer next time, up to a limit: what reads a result back in mid-run waits in any case.
    """

    def __init__(self) -> None:
        self.filler = torch.empty(FILLER_BYTES, dtype=torch.uint8, device="cuda")
        self.fills: dict[str, int] = {}

    def __call__(self, run: Callable[[], Any], what: str) -> Time:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        fills = self.fills.get(what, FILLS)
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
            self.fills[what] = min(4 * fills, MOST_FILLS)
        return Time(float(start.elapsed_time(end)), waited)


def peaks(device: torch.device, clock: Clock) -> dict[str, float]:
    """TFLOP/s of a large matrix product of random numbers, by dtype, float32 as torch has been told."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=dtype) for _ in range(2))
        times = [clock(partial(torch.mm, a, b), f"product in {dtype}").ms for _ in range(12)][2:]
        found[machine.name(dtype)] = 2 * PRODUCT**3 / machine.median(times) / 1e9
    return found


def products(x: Tensor) -> str:
    """How ours multiplies such tensors: "ieee" or "tf32" in float32, otherwise its dtype."""
    if x.dtype != torch.float32:
        return machine.name(x.dtype)
    if x.device.type != "cuda":
        return "ieee"
    from longformer.kernels import triton_launch

    return triton_launch.precision(x)


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "versions": machine.versions(),
    }
