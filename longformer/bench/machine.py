"""The machine: what it is, which versions run on it, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.bench.clocks import Clock, cpu_clock

PRODUCT_SIZE = 2048  # so large that overheads do not count, and so small that every round can repeat the product
PRODUCT_DTYPES = (torch.float32, torch.bfloat16)
PACKAGES = ("longformer", "torch", "triton", "flash-attn", "transformers", "onnxruntime", "numpy", "tokenizers")


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))


def brief() -> dict[str, Any]:
    """What is kept beside results that are no times: processor, threads, versions."""
    return {"cpu": cpu_model(), "threads": torch.get_num_threads(), "versions": versions()}


def product_gflop(size: int | None = None) -> float:
    """10⁹ floating-point operations of a square matrix product, of ``PRODUCT_SIZE`` rows if no ``size`` is given."""
    return 2 * (size or PRODUCT_SIZE) ** 3 / 1e9


def product(
    dtype: torch.dtype, size: int | None = None, device: torch.device | str = "cpu"
) -> Callable[[], Sequence[Tensor]]:
    """That product of random numbers in ``dtype``, to be called."""
    size = size or PRODUCT_SIZE
    generator = torch.Generator(device=device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: [torch.mm(a, b, out=out)]


def product_speed(
    dtype: torch.dtype,
    clock: Clock = cpu_clock,
    *,
    size: int | None = None,
    device: torch.device | str = "cpu",
    rounds: int = 7,
) -> float:
    """GFLOP/s of that product: the median of ``rounds`` runs, after two that warm up."""
    run, title = product(dtype, size, device), f"product in {dtype_name(dtype)}"
    times = [clock(run, title).seconds for _ in range(2 + rounds)][2:]
    return product_gflop(size) / median(times)


def describe() -> dict[str, Any]:
    """Hardware, versions, threads and the speed of matrix products, for the head of a report."""
    return {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _meminfo("MemTotal"),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "matrix_product": f"{PRODUCT_SIZE} x {PRODUCT_SIZE} x {PRODUCT_SIZE}",
        "matrix_product_gflops": {dtype_name(dtype): product_speed(dtype) for dtype in PRODUCT_DTYPES},
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter. None stands for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that can still be used without swapping; None if the system does not say."""
    return _meminfo("MemAvailable")


def _meminfo(entry: str) -> int | None:
    try:
        found = re.search(rf"^{entry}:\s*(\d+) kB$", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")
