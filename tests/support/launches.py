"""Which kernels documents of many lengths would have compiled, and tuned, on a GPU that is not here.

Prints JSON: how many so far, after each group of documents; the last group has another window. Nothing is compiled: a
driver that names a device stands in for it, and each launch ends before the compiler. Timings are made up.
"""

import json
import random
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction
from triton.runtime.autotuner import Autotuner

from longformer.kernels import AttentionPattern, Tokens
from longformer.kernels import triton_launch as launcher
from longformer.kernels.pattern import EVERYTHING
from longformer.kernels.problem import Problem

target = GPUTarget("cuda", 90, 32)
triton.runtime.driver.set_active(
    SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda *_: 0,
        get_current_target=lambda: target,
        get_benchmarker=lambda: None,
        utils=SimpleNamespace(get_device_properties=lambda _: {"max_shared_mem": 232448}),
    )
)
original = JITFunction.run
compiled: set[Any] = set()
tuned: list[Any] = []


def key_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> Any:
    self._do_compile = lambda key, *_: compiled.add((self.fn.__name__, key))
    return original(self, *arguments, grid=grid, warmup=True, **named)


def timing(self: Any, *_: Any, config: Any, **__: Any) -> list[float]:
    tuned.append(config)
    return [random.random()] * 3


JITFunction.run = key_only  # type: ignore[method-assign]
Autotuner._bench = timing  # type: ignore[method-assign]


def document(length: int, questions: int, window: int) -> None:
    """What a layer launches for it, forward and backward."""
    query, key, value = (torch.empty(length, 2, 64, dtype=torch.bfloat16).transpose(0, 1)[None] for _ in range(3))
    tokens = Tokens.of(None, torch.arange(length)[None] < questions).with_index(counted=True)
    for rows, problem in (
        (query, Problem(AttentionPattern((window, window)), tokens, 0.1)),
        (query[:, :, :questions], Problem(EVERYTHING, Tokens(), 0.1, gathered=True)),
    ):
        out, lse = launcher.forward(rows, key, value, problem)
        launcher.backward(out, rows, key, value, out, lse, problem)


found: dict[str, list[int]] = {"compiled": [], "tuned": []}
# Split or not, in several blocks or one: the first two show every kind of launch.
for lengths, window in (((600, 1500), 256), ((601, 640, 592, 1537), 256), ((300, 257), 256), ((600, 1500), 128)):
    for length in lengths:
        document(length, 5 + length % 13, window)
    found["compiled"].append(len(compiled))
    found["tuned"].append(len(tuned))
print(json.dumps(found))
