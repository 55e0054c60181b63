"""Compile the GPU's kernels, as they would be launched, for a device that is not here.

    compile_for_gpu.py cuda 90 bfloat16-64 float32-128-tf32 ...

Triton's compiler needs no device, only its launcher does. A driver that names the device stands in for it, and each
launch ends behind the compiler. A case is a dtype, a size of head, and what of ``FORMS``, or "tf32", else a window with
everything. Prints the kernels that were compiled.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

from longformer.kernels import dispatch
from longformer.kernels import triton_launch as launcher

backend, architecture, *cases = sys.argv[1:]
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


TOKENS, WINDOW = 1024, 256  # a window so wide that blocks have their whole size
keep = torch.arange(TOKENS)[None] < 900
globals_ = dispatch.global_index(torch.arange(TOKENS)[None] % 100 == 3, counted=True)
Pattern = launcher.Pattern
FORMS = {
    "full": Pattern((WINDOW, WINDOW), (1, 2), False, keep, globals_),
    "plain": Pattern((WINDOW, WINDOW), (1, 1), False, None, None),
    "causal": Pattern((WINDOW, 0), (1, 1), True, None, globals_),
    "narrow": Pattern((32, 32), (1, 1), False, None, None),
    "global": Pattern(None, (1, 1), False, keep, None),
}


def both_ways(dtype: torch.dtype, head_dim: int, form: str) -> None:
    """Forward and backward; dropout in the full form."""
    key, value = (torch.randn(1, TOKENS, 2, head_dim).to(dtype).transpose(1, 2) for _ in range(2))
    query = key[:, :, :7] if form == "global" else torch.randn_like(key)
    seed, p = (torch.zeros(1, dtype=torch.int64), 0.1) if form == "full" else (None, 0.0)
    out, lse = launcher.forward(query, key, value, FORMS[form], 0.1, p, seed)
    launcher.backward(torch.randn_like(query), query, key, value, out, lse, FORMS[form], 0.1, p, seed)


for case in cases:
    dtype_name, size, *more = case.split("-")
    torch.set_float32_matmul_precision("high" if more == ["tf32"] else "highest")
    both_ways(getattr(torch, dtype_name), int(size), "full" if more in ([], ["tf32"]) else more[0])
