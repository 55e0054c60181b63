"""The two operators and their contract: arguments are checked here, once, and handed to one implementation.

Shapes: B batch, H heads, S sequence, D head dimension, G global tokens, W = left + 1 + right width of the band.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import banded, blocked, dispatch, reference
from .banded import BandProbabilities

IMPLEMENTATIONS = ("auto", "reference", "banded", "blocked", "fused", "triton")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: tuple[int, int],
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    key_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of every token to its neighbours and to the global tokens (Longformer, arXiv 2004.05150, §3.1).

    Row i attends to the columns i - left·d, …, i - d, i, i + d, …, i + right·d that exist, d being its head's
    dilation, and to every global column, all in one softmax; a column that is both counts once. The softmax is
    computed in at least float32. A row with nothing to attend to is 0.

    Args:
        query, key, value: (B, H, S, D), any S >= 1 and D >= 1; float64, float32, bfloat16 or float16, all alike.
        window: (left, right), tokens seen on each side. The hub's ``attention_window=512`` is (256, 256).
        dilation: gap between the tokens of the window, one for all heads or one a head.
        causal: no row sees a later column, global columns included.
        key_mask: (B, S) bool. False is padding: nobody attends to it, and its own row is exactly 0.
        global_mask: (B, S) bool. True is a column that every row sees. Padding wins over global.
        scale: factor on the scores; 1/sqrt(D) if None.
        dropout_p: probability with which an attention probability is set to 0, the others being divided by
            1 - dropout_p. Drawn from torch's default generator.
        impl: "auto" (see :func:`choose`), "reference", "banded", "blocked", "fused" or "triton".

    Returns:
        (B, H, S, D), dtype of ``query``.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
    """
    _check_qkv(query, key, value)
    if key.shape != query.shape:
        raise ValueError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; a sliding window needs them equal"
        )
    batch, heads, seq_len, head_dim = query.shape
    key_mask = _check_mask("key_mask", key_mask, batch, seq_len, query.device)
    global_mask = _check_mask("global_mask", global_mask, batch, seq_len, query.device)
    if global_mask is not None and key_mask is not None:
        global_mask = global_mask & key_mask
    compiling = torch.compiler.is_compiling()
    dropout_p = _check_dropout(dropout_p)
    # In a graph an operator stands for the implementation, which is chosen when tensors arrive.
    traced = compiling and impl in dispatch.TRACED
    backward = _is_differentiated(query, key, value)
    chosen = impl if traced else choose(query, impl=impl, dropout_p=dropout_p, backward=backward).impl
    left, right = _check_window(window, seq_len, clamp=not compiling and chosen != "triton")
    if traced or chosen == "triton":
        return dispatch.attention(
            query,
            key,
            value,
            impl=chosen,
            window=(left, 0 if causal else right),
            dilation=_check_dilation(dilation, heads),
            causal=causal,
            key_mask=key_mask,
            index=None if global_mask is None else dispatch.global_index(global_mask, counted=not traced),
            scale=_check_scale(scale, head_dim),
            dropout_p=dropout_p,
        )
    implementations: dict[str, Callable[..., Tensor]] = {
        "reference": reference.sliding_window_attention,
        "banded": banded.sliding_window_attention,
        "blocked": blocked.sliding_window_attention,
        "fused": partial(blocked.sliding_window_attention, fused=True),
    }
    return implementations[chosen](
        query,
        key,
        value,
        (left, 0 if causal else right),
        dilation=_check_dilation(dilation, heads),
        causal=causal,
        key_mask=key_mask,
        global_mask=global_mask,
        scale=_check_scale(scale, head_dim),
        dropout_p=dropout_p,
    )


def global_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of a few rows, the global tokens, to every token (Longformer, arXiv 2004.05150, §3.1, "Global").

    Args:
        query: (B, H, G, D), projected with the global projections.
        key, value: (B, H, S, D), likewise; dtype of ``query``.
        key_mask: (B, S) bool, False is padding.
        scale, dropout_p, impl: as for :func:`sliding_window_attention`.

    Returns:
        (B, H, G, D), dtype of ``query``. Rows over a fully masked sequence are 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or range; the message names it.
    """
    _check_qkv(query, key, value)
    if key.shape[:2] != query.shape[:2] or key.shape[3] != query.shape[3]:
        raise ValueError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; they must agree in B, H and D"
        )
    batch, _, seq_len, head_dim = key.shape
    key_mask = _check_mask("key_mask", key_mask, batch, seq_len, query.device)
    scale, dropout_p = _check_scale(scale, head_dim), _check_dropout(dropout_p)
    traced = torch.compiler.is_compiling() and impl in dispatch.TRACED
    backward = _is_differentiated(query, key, value)
    chosen = impl if traced else choose(query, impl=impl, dropout_p=dropout_p, backward=backward).impl
    if traced or chosen == "triton":
        return dispatch.attention(query, key, value, impl=chosen, key_mask=key_mask, scale=scale, dropout_p=dropout_p)
    match chosen:
        case "blocked" | "fused":
            wide = head_dim > blocked.WIDE and query.element_size() > 2
            fused = chosen == "fused" and (impl == "fused" or not wide)
            return blocked.global_attention(
                query, key, value, key_mask=key_mask, scale=scale, dropout_p=dropout_p, fused=fused
            )
        case _:  # a few dense rows: the banded formulation has nothing of its own to say about them
            return reference.global_attention(query, key, value, key_mask=key_mask, scale=scale, dropout_p=dropout_p)


def sliding_window_probabilities(
    query: Tensor,
    key: Tensor,
    window: tuple[int, int],
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    key_mask: Tensor | None = None,
    global_mask: Tensor | None = None,
    scale: float | None = None,
) -> BandProbabilities:
    """The attention probabilities of :func:`sliding_window_attention`, by diagonals, before dropout.

    Arguments, and errors for them, as there. Returns ``BandProbabilities``: ``band`` (B, H, S, W), ``columns``
    (B, H, S, G) and ``column_index`` (B, G).
    """
    _check_qkv(query, key, key)
    if key.shape != query.shape:
        raise ValueError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; a sliding window needs them equal"
        )
    batch, heads, seq_len, head_dim = query.shape
    key_mask = _check_mask("key_mask", key_mask, batch, seq_len, query.device)
    global_mask = _check_mask("global_mask", global_mask, batch, seq_len, query.device)
    if global_mask is not None and key_mask is not None:
        global_mask = global_mask & key_mask
    return banded.probabilities(
        query,
        key,
        _check_window(window, seq_len, clamp=False),
        dilation=_check_dilation(dilation, heads),
        causal=causal,
        key_mask=key_mask,
        global_mask=global_mask,
        scale=_check_scale(scale, head_dim),
    )


class Choice(NamedTuple):
    """An implementation and why it was taken."""

    impl: str
    reason: str


def choose(query: Tensor, *, impl: str = "auto", dropout_p: float = 0.0, backward: bool = False) -> Choice:
    """Which implementation serves ``query`` under ``impl``, and why. An explicit choice is never overruled.

    Args:
        query: (B, H, S, D), of which device and dtype count.
        impl, dropout_p: as for :func:`sliding_window_attention`.
        backward: whether gradients will be asked for.

    Raises:
        TypeError, ValueError: ``query`` is no such tensor, or ``impl`` none of ``IMPLEMENTATIONS``.
        ValueError: ``impl`` cannot serve ``query`` or do dropout; says why.
    """
    _check_tensor("query", query)
    unfit = None
    if not blocked.can_fuse(query):
        unfit = f"this torch has no fused attention with a log-sum-exp on {query.device.type}"
    elif dropout_p:
        unfit = "torch's fused attention has no dropout on a CPU"
    match impl:
        case "auto" if query.device.type == "cuda":
            refusal = _refused_by_triton(query)
            if refusal is None:
                return Choice("triton", "fused kernels on a GPU")
            return Choice("blocked", f'tiles by hand: "triton" does not serve here, {refusal}')
        case "auto":
            if unfit is None and query.element_size() == 2:
                return Choice("fused", f"the fastest, and has scores in float32 although query is {query.dtype}")
            if unfit is None and not backward:
                return Choice("fused", "the fastest, and as exact where no gradient is asked for")
            return Choice("blocked", unfit or f"the most exact gradients in {query.dtype}")
        case "triton":
            refusal = _refused_by_triton(query)
            if refusal is not None:
                raise ValueError(f'impl is "triton", and {refusal}; "auto" takes the next that works')
            return Choice(impl, "asked for")
        case "fused":
            if unfit is not None:
                raise ValueError(f'impl is "fused", and {unfit}; use "auto" or "blocked"')
            return Choice(impl, "asked for")
        case "reference" | "banded" | "blocked":
            return Choice(impl, "asked for")
        case _:
            raise ValueError(f"impl is {impl!r}; it must be one of {', '.join(map(repr, IMPLEMENTATIONS))}")


def _is_differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _refused_by_triton(query: Tensor) -> str | None:
    """Why the Triton kernels cannot serve ``query``; None if they can. Here they are loaded."""
    try:
        kernels = importlib.import_module(".triton_launch", __package__)
    except ImportError as error:
        return f"Triton cannot be loaded ({error}); pip install 'longformer[triton]'"
    refusal: str | None = kernels.refusal(query)
    return refusal


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, not a tensor")
    if tensor.dim() != 4 or 0 in tensor.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (B, H, S, D), each at least 1")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}; it must be one of {', '.join(map(str, DTYPES))}")


def _check_qkv(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_tensor(name, tensor)
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device} and query {query.dtype} on {query.device}; "
                "they must be alike"
            )
    if key.shape != value.shape:
        raise ValueError(f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}; they must be equal")


def _check_mask(name: str, mask: Tensor | None, batch: int, seq_len: int, device: torch.device) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} is {what}; it must be a bool tensor (for a 0/1 mask: mask == 1)")
    if mask.shape != (batch, seq_len):
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; it must be (B, S) = ({batch}, {seq_len})")
    if mask.device != device:
        raise ValueError(f"{name} is on {mask.device} and query on {device}; they must be on one device")
    return mask


def _check_window(window: tuple[int, int], seq_len: int, *, clamp: bool = True) -> tuple[int, int]:
    if not isinstance(window, (tuple, list)) or len(window) != 2 or not all(_is_count(w, 0) for w in window):
        raise ValueError(f"window is {window!r}; it must be (left, right), two ints >= 0")
    left, right = window
    # Beyond the sequence a window sees nothing more, and the implementations need not allocate for it.
    return (min(left, seq_len - 1), min(right, seq_len - 1)) if clamp else (left, right)


def _check_dilation(dilation: int | Sequence[int], heads: int) -> tuple[int, ...]:
    each = tuple(dilation) if isinstance(dilation, Sequence) else (dilation,) * heads
    if len(each) != heads or not all(_is_count(d, 1) for d in each):
        raise ValueError(f"dilation is {dilation!r}; it must be an int >= 1, or one for each of the {heads} heads")
    return each


def _check_scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale is {scale!r}; it must be a finite number, or None for 1/sqrt(D)")
    return float(scale)


def _check_dropout(dropout_p: float) -> float:
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {dropout_p!r}; it must be a number in [0, 1)")
    return float(dropout_p)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
