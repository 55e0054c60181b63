"""Compile the GPU's kernels, as they would be launched, for a device that is not here.

    compile_for_gpu.py cuda 90 bfloat16-64 float32-128-tf32 ...

Triton's compiler needs no device, only its launcher does. A driver that names the device stands in for it, and each
launch ends after the compiler. A case is a dtype, the dimensions of a head and, if it is not "full", the name of one of
``FORMS``; or "tf32", which is "full" with products in TF32. Prints the kernels that were compiled.
"""

import sys
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction

from longformer.kernels import AttentionPattern, Tokens
from longformer.kernels import triton_launch as launcher
from longformer.kernels.pattern import EVERYTHING
from longformer.kernels.problem import Problem

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
tokens = Tokens.of(keep, torch.arange(TOKENS)[None] % 100 == 3).with_index(counted=True)
of_globals = tokens._replace(keep=None)
FORMS = {
    "full": Problem(AttentionPattern((WINDOW, WINDOW), (1, 2)), tokens, 0.1, 0.1, torch.zeros(1, dtype=torch.int64)),
    "plain": Problem(AttentionPattern((WINDOW, WINDOW)), Tokens(), 0.1),
    "padded": Problem(AttentionPattern((WINDOW, WINDOW)), Tokens(keep), 0.1),
    "causal": Problem(AttentionPattern((WINDOW, 0), causal=True), of_globals, 0.1),
    "narrow": Problem(AttentionPattern((32, 32)), Tokens(), 0.1),
    "global": Problem(EVERYTHING, Tokens(keep), 0.1, gathered=True),
}


def both_ways(dtype: torch.dtype, head_dim: int, problem: Problem) -> None:
    """Forward and backward."""
    key, value = (torch.randn(1, TOKENS, 2, head_dim).to(dtype).transpose(1, 2) for _ in range(2))
    query = key[:, :, :7] if problem.gathered else torch.randn_like(key)
    out, lse = launcher.forward(query, key, value, problem)
    launcher.backward(torch.randn_like(query), query, key, value, out, lse, problem)


for case in cases:
    dtype_name, size, *more = case.split("-")
    torch.set_float32_matmul_precision("high" if more == ["tf32"] else "highest")
    both_ways(getattr(torch, dtype_name), int(size), FORMS["full" if more in ([], ["tf32"]) else more[0]])
