"""The GPU that ``bench gpu`` measures: whether there is one, its speed, and how our kernels multiply on it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from longformer.bench import machine
from longformer.bench.clocks import Clock
from longformer.errors import LongformerError
from longformer.kernels import choose

PRODUCT = 8192  # rows and columns of the matrix product that stands for the fastest that the GPU can do


REHEARSAL = 256  # the same of a rehearsal on a CPU


def require_device(name: str = "cuda") -> torch.device:
    """The GPU. Raises LongformerError if torch sees none, or if the kernels do not run on it.

    ``"cpu"`` rehearses: Triton's interpreter runs the kernels there, slowly, if TRITON_INTERPRET=1 is set.
    """
    if name == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise LongformerError(
                "the GPU's kernels run on a CPU in Triton's interpreter alone; set TRITON_INTERPRET=1"
            )
        return torch.device("cpu")
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


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions."""
    if device.type == "cpu":
        return {"gpu": "none: a rehearsal in Triton's interpreter", "versions": machine.versions()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "versions": machine.versions(),
    }


def peaks(device: torch.device, clock: Clock) -> dict[str, float]:
    """TFLOP/s of a large matrix product, by dtype. In float32 it multiplies as torch has been told to."""
    size = REHEARSAL if device.type == "cpu" else PRODUCT
    return {
        machine.dtype_name(dtype): machine.product_speed(dtype, clock, size=size, device=device, rounds=10) / 1e3
        for dtype in (torch.bfloat16, torch.float32)
    }


def products(x: Tensor) -> str:
    """How our kernels multiply tensors like ``x``: "ieee" or "tf32" in float32, otherwise its dtype."""
    if x.dtype != torch.float32:
        return machine.dtype_name(x.dtype)
    if x.device.type != "cuda":
        return "ieee"
    from longformer.kernels import triton_launch

    return triton_launch.precision(x)


def forget() -> None:
    """Free what the last problem held: memory, and graphs, as torch compiles one function only so many times."""
    torch.compiler.reset()
    torch.cuda.empty_cache()
