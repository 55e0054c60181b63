"""The kernels as torch operators, ``torch.ops.longformer.attention``, so that compiled and exported graphs hold them.

To a graph one is a single node whose results are known by shape; what happens inside, the data decide. Global columns
come as a padded tensor of their positions, which is as wide as the sequence unless it is known how many there are, and
dropout's seed as a tensor, so that equal arguments give equal results.

An operator that runs a kernel's forward pass has its backward pass as a second operator. Letters as in ``api.py``;
R rows: S, or G in global attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import blocked

TRACED = ("auto", "blocked", "triton")  # these are operators in a graph; the others are traced through


def global_index(global_mask: Tensor, *, counted: bool = False) -> Tensor | None:
    """Positions of the global tokens, ascending, -1 behind the last: (B, width) int64 from (B, S) bool.

    The width is S, which asks the data nothing, or if ``counted`` the most that an example has; None is none at all.
    """
    batch, seq_len = global_mask.shape
    width = int(global_mask.sum(1).max()) if counted else seq_len
    if counted and not width:
        return None
    place = torch.where(global_mask, global_mask.cumsum(1) - 1, width)
    positions = torch.arange(seq_len, device=global_mask.device).expand(batch, seq_len)
    index = torch.full((batch, width + 1), -1, device=global_mask.device, dtype=torch.int64)
    return index.scatter(1, place, positions)[:, :width]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    impl: str,
    window: tuple[int, int] | None = None,
    dilation: Sequence[int] | None = None,
    causal: bool = False,
    key_mask: Tensor | None = None,
    index: Tensor | None = None,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention (B, H, R, D) by the operator, arguments already checked.

    Args:
        query: (B, H, R, D). key, value: (B, H, S, D).
        impl: "blocked", "triton" or "auto", which chooses when tensors arrive.
        window: (left, right); None has every row see every column, as in global attention.
        dilation: one a head, None is 1 for all.
        index: (B, width) positions of global columns, see :func:`global_index`. None of them may be padding.
        key_mask, causal, scale, dropout_p: as for :func:`longformer.kernels.sliding_window_attention`.
    """
    seed = torch.randint(2**62, (1,), device=query.device) if dropout_p else None
    gaps = list(dilation or [1] * query.shape[1])
    arguments = (key_mask, index, seed, list(window or ()), gaps, causal, scale, dropout_p, impl)
    out: Tensor = _attention(query, key, value, *arguments)[0]
    return out


@torch.library.custom_op("longformer::attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    global_index: Tensor | None,
    seed: Tensor | None,
    window: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    scale: float,
    dropout_p: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Attention (B, H, R, D) and its log-sum-exp (B, H, R)."""
    pattern: Any = (window or None, dilation, causal, key_mask, global_index)
    if _chosen(query, impl) == "triton":
        from . import triton

        return triton.forward(query, key, value, triton.Pattern(*pattern), scale, dropout_p, seed)
    return _blocked_forward(query, key, value, *pattern, scale, dropout_p, seed, impl)


@torch.library.custom_op("longformer::attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    key_mask: Tensor | None,
    global_index: Tensor | None,
    seed: Tensor | None,
    window: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    scale: float,
    dropout_p: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    pattern: Any = (window or None, dilation, causal, key_mask, global_index)
    if _chosen(query, impl) == "triton":
        from . import triton

        arguments = (grad_out, query, key, value, out, lse)
        return triton.backward(*arguments, triton.Pattern(*pattern), scale, dropout_p, seed)
    return _blocked_backward(grad_out, query, key, value, *pattern, scale, dropout_p, seed, impl)


def _chosen(query: Tensor, impl: str) -> str:
    from .api import choose  # which stands above this file, and is complete by the time that tensors arrive

    return choose(query, impl=impl).impl


# ---- what a graph is told of them


@_attention.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(query.dtype, torch.float32)
    return _like(query), query.new_empty(query.shape[:3], dtype=wide)


@_attention_backward.register_fake
def _(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


def _like(x: Tensor) -> Tensor:
    """A (B, H, S, D) that lies in memory as (B, S, H, D), as both kernels give their results."""
    batch, heads, seq_len, head_dim = x.shape
    return x.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, key_mask, index, seed, *ctx.arguments = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, key_mask, index, seed)


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _attention_backward(grad_out, *ctx.saved_tensors, *ctx.arguments)
    return *grads, *(None,) * 9


def _remember_impl(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.impl = inputs[-1]


def _refuse(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(f'impl="{ctx.impl}" has no second derivative; use impl="reference" where one is needed')


_attention.register_autograd(_differentiate, setup_context=_remember)
_attention_backward.register_autograd(_refuse, setup_context=_remember_impl)


# ---- the blocked kernel, which draws its seed from torch's generator and keeps what it needs itself


def _blocked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Sequence[int] | None,
    dilation: Sequence[int],
    causal: bool,
    key_mask: Tensor | None,
    global_index: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    impl: str,
) -> Tensor:
    global_mask = None
    if global_index is not None:
        global_mask = torch.zeros(key.shape[0], key.shape[2] + 1, dtype=torch.bool, device=key.device)
        global_mask = global_mask.scatter_(1, torch.where(global_index < 0, key.shape[2], global_index), True)[:, :-1]
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(int(seed))
        if window is None:
            return blocked.global_attention(query, key, value, key_mask=key_mask, scale=scale, dropout_p=dropout_p)
        left, right = window
        return blocked.sliding_window_attention(
            query,
            key,
            value,
            (min(left, query.shape[2] - 1), min(right, query.shape[2] - 1)),
            dilation=dilation,
            causal=causal,
            key_mask=key_mask,
            global_mask=global_mask,
            scale=scale,
            dropout_p=dropout_p,
        )


def _blocked_forward(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    out = _blocked(query, *arguments)
    return out, out.new_zeros(out.shape[:3], dtype=torch.promote_types(out.dtype, torch.float32))


def _blocked_backward(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> Any:
    leaves: Any
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (query, key, value)]
        out = _blocked(*leaves, *arguments)
    grads = torch.autograd.grad(out, leaves, grad_out)
    return tuple(_like(x).copy_(grad) for x, grad in zip((query, key, value), grads, strict=True))
