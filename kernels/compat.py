"""What torch keeps private, or has only in some releases: each name once, with what serves where it is missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.utils import _python_dispatch


def in_transform() -> bool:
    """Whether a transform of ``torch.func``, or forward-mode differentiation, is at work."""
    level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", None)
    forward_level = getattr(torch.autograd.forward_ad, "_current_level", -1)
    return (level is not None and level() is not None) or forward_level >= 0


def is_watched() -> bool:
    """Whether a mode sees every operator (a counter of FLOPs, say), or a hook every module."""
    mode = getattr(_python_dispatch, "_get_current_dispatch_mode", None)
    hooked = getattr(torch_module, "_has_any_global_hook", None)
    return (mode is not None and mode() is not None) or (hooked is not None and bool(hooked()))


def is_jit_tracing() -> bool:
    """Whether ``torch.jit.trace`` is at work."""
    state = getattr(torch._C, "_get_tracing_state", None)
    return state is not None and state() is not None


def assert_in_graph(condition: Tensor, message: str) -> None:
    """In a compiled graph, which cannot look at its data, let the graph stop where ``condition`` is False."""
    assertion: Any = getattr(torch, "_assert_async", None)
    if torch.compiler.is_compiling() and assertion is not None:
        assertion(condition, message)
