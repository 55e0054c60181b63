"""Which implementation computes an attention: it is chosen once a call, in :func:`select`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import banded, blocked, chunked, compat, fused, reference
from .arguments import check_tensor
from .masks import Pattern

IMPLEMENTATIONS = ("auto", "reference", "banded", "blocked", "fused", "triton", "flex", "chunked")
MASKED = ("auto", "reference", "flex")  # those that compute any mask, score and union
LONG = 2048  # tokens from which a mask on a CPU is compiled; the dense matrix is small up to here


class Choice(NamedTuple):
    """An implementation and why it was taken."""

    impl: str
    reason: str


def choose(
    query: Tensor,
    *,
    impl: str = "auto",
    dropout_p: float = 0.0,
    backward: bool = False,
    pattern: Pattern | None = None,
) -> Choice:
    """Which implementation serves ``query`` under ``impl``, and why. An explicit choice is never overruled.

    Args:
        query: (B, H, S, D), of which device, dtype and D count.
        impl, dropout_p: as for :func:`sliding_window_attention`.
        backward: whether gradients will be asked for.
        pattern: who attends to whom; None is any window.

    Raises:
        TypeError, ValueError: ``query`` is no such tensor, or ``impl`` none of ``IMPLEMENTATIONS``.
        ValueError: ``impl`` cannot serve ``query`` or the pattern, or cannot do dropout or gradients; says why.
    """
    check_tensor("query", query)
    if pattern is not None and not pattern.is_band:
        return select_for_mask(query, impl, dropout_p, backward)[0]
    return select(query, impl, dropout_p, backward)[0]


class Kernel(NamedTuple):
    """What ``problem.py`` describes.

    backward: None where torch differentiates forward.
    reads_out: whether ``backward`` needs ``out``. Without it ``out`` is not kept for the way back, and is None there.
    gathers: of one that torch differentiates, whether it is given the rows of global tokens alone. Without it the other
        rows are computed too.
    """

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    reads_out: bool = False
    gathers: bool = False


def select(query: Tensor, impl: str, dropout_p: float, backward: bool, gathered: bool = False) -> tuple[Choice, Kernel]:
    """The implementation for ``query``, with why. Raises ValueError where ``impl`` is unknown or cannot serve it."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}; it must be one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl == "auto":
        choice = _fastest(query, dropout_p)
    else:
        choice, refusal = Choice(impl, "asked for"), _refusal(impl, query, dropout_p, backward)
        if refusal is not None:
            raise ValueError(f'impl is "{impl}", and {refusal}; "auto" takes the next that works')
    match choice.impl:
        case "reference":
            return choice, Kernel(reference.forward)
        case "banded":  # it has nothing of its own to say about rows without a band
            return choice, Kernel(reference.forward if gathered else banded.forward)
        case "chunked":  # neither has it
            return choice, Kernel(reference.forward if gathered else chunked.forward, gathers=True)
        case "blocked":
            return choice, Kernel(blocked.forward, blocked.backward)
        case "fused":
            return choice, Kernel(fused.forward, blocked.backward)
        case "flex":
            return choice, Kernel(_load("flex").forward)
        case _:
            triton = _load("triton_launch")
            return choice, Kernel(triton.forward, triton.backward, reads_out=True)


def select_for_mask(query: Tensor, impl: str, dropout_p: float, backward: bool) -> tuple[Choice, Kernel]:
    """As :func:`select`, for a pattern that is no window: any mask, any score, a union."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}; it must be one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl not in MASKED:
        raise ValueError(
            f'impl is "{impl}", which computes windows, and the pattern is a mask, a score or a union; "flex" and '
            '"reference" can, and "auto" takes one of them'
        )
    refusal = None if impl == "reference" else _refusal("flex", query, dropout_p, backward)
    if impl == "auto" and refusal is None and query.device.type == "cpu" and query.shape[2] < LONG:
        refusal = f"on a CPU it is compiled for each length, which is not worth it below {LONG} tokens"
    if impl == "flex" and refusal is not None:
        raise ValueError(f'impl is "flex", and {refusal}; "reference" computes any pattern')
    if impl == "reference" or refusal is not None:
        why = "asked for" if refusal is None else f"computes any pattern, where flex does not serve: {refusal}"
        return Choice("reference", why), Kernel(reference.forward)
    why = "asked for" if impl == "flex" else "computes any pattern, and skips blocks in which nothing is seen"
    return Choice("flex", why), Kernel(_load("flex").forward)


def _refusal(impl: str, query: Tensor, dropout_p: float, backward: bool) -> str | None:
    """Why an implementation cannot serve ``query``; None if it can."""
    match impl:
        case "fused":
            return fused.refusal(query, dropout_p)
        case "triton":
            return triton_refusal(query)
        case "flex" if torch.compiler.is_compiling():
            return "FlexAttention is compiled by itself and cannot stand in another graph"
        case "flex":
            refusal: str | None = _load("flex").refusal(query, dropout_p, backward)
            return refusal
        case _:
            return None


def _fastest(query: Tensor, dropout_p: float) -> Choice:
    """What "auto" is."""
    if query.device.type == "cuda":
        refusal = triton_refusal(query)
        if refusal is None:
            return Choice("triton", "fused kernels on a GPU")
        return Choice("blocked", f'tiles by hand: "triton" does not serve here, {refusal}')
    if not compat.has_matrix_units(query.dtype):
        return Choice("blocked", "the fastest and the most exact on this processor")
    refusal = fused.refusal(query, dropout_p)
    if refusal is not None:
        return Choice("blocked", refusal)
    return Choice("fused", f"the fastest where the processor has matrix instructions for {query.dtype}")


def triton_refusal(query: Tensor) -> str | None:
    """Why the Triton kernels cannot serve ``query``; None if they can. Here they are loaded."""
    try:
        kernels = _load("triton_launch")
    except ImportError as error:
        return f"Triton cannot be loaded ({error}); pip install triton"
    refusal: str | None = kernels.refusal(query)
    return refusal


def _load(name: str) -> Any:
    """A file of this package, imported when it is first needed: what it imports takes long or may be absent."""
    return importlib.import_module(f".{name}", __package__)
