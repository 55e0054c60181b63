"""Compile the GPU's kernels, as they would be launched, for a device that is not here: ``compile_for_gpu.py cuda 90``.

Triton's compiler needs no device, only its launcher does. A driver that names the device stands in for it, and each
launch ends behind the compiler. Prints the kernels that were compiled.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

from longformer.kernels import ops
from longformer.kernels import triton as launcher

backend, architecture = sys.argv[1], sys.argv[2]
target = GPUTarget(backend, int(architecture), 32) if backend == "cuda" else GPUTarget(backend, architecture, 64)
MOST = {"90": 232448, "80": 166912, "gfx942": 65536}[architecture]  # bytes of shared memory a program may have
triton.runtime.driver.set_active(
    SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda *_: 0,
        get_current_target=lambda: target,
        utils=SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": MOST}),
    )
)
original = JITFunction.run


def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
    assert all(int(size) > 0 for size in grid({**named}))
    compiled = original(self, *arguments, grid=grid, warmup=True, **named)
    assert compiled.metadata.shared <= MOST, (self.fn.__name__, compiled.metadata.shared)
    print(self.fn.__name__)
    return compiled


JITFunction.run = compile_only  # type: ignore[method-assign]


def both_ways(dtype: torch.dtype, head_dim: int, pattern: launcher.Pattern, rows: int, seed: Any, p: float) -> None:
    key, value = (torch.randn(1, 512, 2, head_dim).to(dtype).transpose(1, 2) for _ in range(2))
    query = torch.randn(1, rows, 2, head_dim).to(dtype).transpose(1, 2)
    out, lse = launcher.forward(query, key, value, pattern, 0.1, p, seed)
    launcher.backward(torch.randn_like(query), query, key, value, out, lse, pattern, 0.1, p, seed)


keep = torch.arange(512)[None] < 400
globals_ = ops.global_index(torch.arange(512)[None] % 100 == 3, counted=True)
full = launcher.Pattern((64, 64), (1, 2), False, keep, globals_)
both_ways(torch.bfloat16, 64, full, 512, torch.zeros(1, dtype=torch.int64), 0.1)
both_ways(torch.float16, 80, launcher.Pattern((64, 0), (1, 1), True, None, None), 512, None, 0.0)
both_ways(torch.float32, 16, launcher.Pattern(None, (1, 1), False, keep, None), 7, None, 0.0)
