"""The machine: what it is, which versions run on it, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PRODUCT_SIZE = 2048  # large enough that nothing but the product counts, small enough to be repeated in every round
PRODUCT_DTYPES = (torch.float32, torch.bfloat16)
PACKAGES = ("longformer", "torch", "triton", "flash-attn", "transformers", "numpy", "tokenizers")


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))


def product_gflop() -> float:
    """10⁹ floating-point operations of the matrix product by which the machine is measured."""
    return 2 * PRODUCT_SIZE**3 / 1e9


def product(dtype: torch.dtype) -> Callable[[], Sequence[Tensor]]:
    """A square matrix product in ``dtype``, to be run."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: [torch.mm(a, b, out=out)]


def product_speed(dtype: torch.dtype, rounds: int = 7) -> float:
    """GFLOP/s of the square matrix product, median of ``rounds`` after one to warm up."""
    run = product(dtype)
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return product_gflop() / median(seconds)


def describe() -> dict[str, Any]:
    """Hardware, versions, threads and the speed of matrix products, for the report's head."""
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
        "matrix_product_gflops": {name(dtype): product_speed(dtype) for dtype in PRODUCT_DTYPES},
    }


def versions() -> dict[str, str | None]:
    """Python's version and that of each package that matters; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu_model() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that can still be used without swapping; None where the system does not say."""
    return _meminfo("MemAvailable")


def _meminfo(entry: str) -> int | None:
    try:
        found = re.search(rf"^{entry}:\s*(\d+) kB$", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def name(dtype: torch.dtype) -> str:
    """``"float32"``."""
    return str(dtype).removeprefix("torch.")
