"""Names of torch that are not public, each with what holds where a torch lacks it.

They are looked up once, when this file is imported. Nothing else in the kernels or in the model uses a private name.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch


def _lookup(root: Any, path: str) -> Any:
    """What stands at a dotted ``path`` under ``root``; None where a part of it is missing."""
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


_transform_level: Callable[[], int | None] | None = _lookup(torch._C, "_functorch.maybe_current_level")

# torch's fused attention that also gives the log-sum-exp, on a CPU.
flash_attention_for_cpu: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = _lookup(
    torch.ops, "aten._scaled_dot_product_flash_attention_for_cpu"
)

# oneDNN's product x Wᵀ + b with a pointwise function, gelu say, of each number of the result.
linear_pointwise: Callable[..., torch.Tensor] | None = _lookup(torch.ops, "mkldnn._linear_pointwise")

# Keeps an operator out of CUDA graphs, which cannot record that it reads back from the device. A torch without the tag
# records no graph around single operators either, and needs none.
OUTSIDE_CUDA_GRAPHS: dict[str, Any] = {}
if _lookup(torch.Tag, "cudagraph_unsafe") is not None:
    OUTSIDE_CUDA_GRAPHS = {"tags": (torch.Tag.cudagraph_unsafe,)}

# What tells whether the processor has AMX, by the dtype of its products.
MATRIX_UNITS = {torch.bfloat16: "_is_amx_tile_supported", torch.float16: "_is_amx_fp16_supported"}


def in_transform() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is at work on this thread.

    True where torch does not tell: what asks does then what is right under a transform, which is right without one too.
    """
    forward_level = _lookup(torch.autograd, "forward_ad._current_level")
    if _transform_level is None or forward_level is None:
        return True
    return _transform_level() is not None or forward_level >= 0


def is_jit_tracing() -> bool:
    """Whether ``torch.jit.trace`` is at work. False where torch does not tell."""
    state = _lookup(torch._C, "_get_tracing_state")
    return state is not None and state() is not None


def is_watched() -> bool:
    """Whether a mode sees every operator (a counter of FLOPs, say), or a global hook every module.

    True where torch does not tell.
    """
    mode = _lookup(torch.utils, "_python_dispatch._get_current_dispatch_mode")
    hooked = _lookup(torch.nn.modules.module, "_has_any_global_hook")
    return mode is None or hooked is None or mode() is not None or bool(hooked())


def assert_in_graph(condition: torch.Tensor, message: str) -> None:
    """In a compiled graph, which cannot look at its data, let the graph stop where ``condition`` is False.

    Elsewhere, and where torch has no such assertion, nothing happens.
    """
    if torch.compiler.is_compiling() and hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)


def has_matrix_units(dtype: torch.dtype) -> bool:
    """Whether this processor has matrix instructions (AMX) for ``dtype``. False where torch does not tell."""
    if dtype not in MATRIX_UNITS:
        return False
    supported = _lookup(torch.cpu, MATRIX_UNITS[dtype])
    return supported is not None and bool(supported())


def has_bf16_products() -> bool:
    """Whether this processor has instructions for sums of products in bfloat16. False where torch does not tell."""
    supported = _lookup(torch.cpu, "_is_avx512_bf16_supported")
    return supported is not None and bool(supported())


def has_bf16_mkldnn() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor. False where torch does not tell."""
    supported = _lookup(torch.ops, "mkldnn._is_mkldnn_bf16_supported")
    return supported is not None and bool(supported())


def room_for_graphs(count: int) -> contextlib.AbstractContextManager[Any]:
    """Lets torch.compile keep ``count`` graphs of one function, in place of 8. No more than a hint."""
    patch = _lookup(torch, "_dynamo.config.patch")
    known = _lookup(torch, "_dynamo.config.cache_size_limit") is not None
    return patch(cache_size_limit=count) if patch is not None and known else contextlib.nullcontext()


def shapes_not_kept() -> contextlib.AbstractContextManager[Any]:
    """Lets torch.export ask an operator for its result's shape each time; with free sizes, looking it up is slower."""
    patch = _lookup(torch, "_dynamo.config.patch")
    known = _lookup(torch, "_dynamo.config.fake_tensor_cache_enabled") is not None
    return patch(fake_tensor_cache_enabled=False) if patch is not None and known else contextlib.nullcontext()


def kept_buffers() -> contextlib.AbstractContextManager[Any]:
    """Lets a compiled backward pass run again on what the forward pass kept, which torch's compiler may have freed."""
    try:
        from torch._functorch import config
    except ImportError:
        return contextlib.nullcontext()
    return config.patch(donated_buffer=False) if hasattr(config, "donated_buffer") else contextlib.nullcontext()


@functools.cache
def _vmap_takes_indices() -> bool:
    """Whether ``x[i]`` works under vmap where i has no dimension: in torch 2.12, and not in 2.10."""
    try:
        torch.vmap(lambda i: torch.zeros(2)[i])(torch.arange(2))
    except RuntimeError:
        return False
    return True


def indexing_under_vmap() -> contextlib.AbstractContextManager[Any]:
    """Lets functions under vmap index a tensor by their arguments, as FlexAttention does for its own."""
    if _vmap_takes_indices():
        return contextlib.nullcontext()
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of torch's fakes, which have a shape and no values."""
    kind = _lookup(torch, "_subclasses.fake_tensor.FakeTensor")
    return kind is not None and isinstance(tensor, kind)


def register_output(kind: type, name: str) -> None:
    """Lets torch see the entries of a subclass of tuple, and an exported program in a file say by ``name`` that it
    gives one. ``kind(entries)`` makes it.

    A torch without this takes it for one object, as it does any class that it does not know.
    """
    register = _lookup(torch.utils, "_pytree.register_pytree_node")
    if register is not None:
        register(
            kind,
            lambda output: (list(output), None),
            lambda entries, _: kind(entries),
            serialized_type_name=name,
        )


class NotCompiledError(ValueError):
    """Torch's compiler could not make a kernel here."""


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch's compiler raised ``error``."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


# A mode that sees every operation of torch, and may change its result.
DispatchMode: Any = _lookup(torch.utils, "_python_dispatch.TorchDispatchMode")


def formulas(operations: list[Any]) -> dict[Any, Callable[..., Any]]:
    """Torch's own formulas for operations, in simpler operations; for those that have one."""
    from torch import _decomp

    return _decomp.get_decompositions(operations)


def compiling_what_can_be() -> contextlib.AbstractContextManager[None]:
    """While this is open, what torch.compile cannot compile runs as it is written."""
    import torch._dynamo

    return torch._dynamo.config.patch(suppress_errors=True)
