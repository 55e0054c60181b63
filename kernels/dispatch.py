"""The kernels as torch operators, ``torch.ops.longformer.attention``, so that compiled and exported graphs hold them.

To a graph one is a single node whose results are known by shape; what happens inside, the data decide. Global columns
come as a padded tensor of their positions, which is as wide as the sequence unless it is known how many there are, and
dropout's seed as a tensor, so that equal arguments give equal results.

An operator that runs a kernel's forward pass has its backward pass as a second operator. Letters as in ``api.py``;
R rows: S, or G in global attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import banded, blocked, reference
from .pattern import AttentionPattern, Tokens
from .tiles import Piece, band_pieces, global_pieces

TRACED = ("auto", "blocked", "fused", "triton")  # these are operators in a graph; the others are traced through
# They read back from the device, which a CUDA graph cannot record. Before torch had the tag, it had no partial ones.
KEPT_OUT: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


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


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: AttentionPattern,
    tokens: Tokens,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of every token to the band of ``pattern`` and to the global columns: (B, H, S, D).

    For the model: arguments are not checked. It serves eagerly and in a compiled or exported graph, on any device.

    Args:
        query, key, value: (B, H, S, D).
        pattern: window, dilation and causality.
        tokens: padding and global tokens; its ``global_index`` is used where there is one, and else made.
        scale: factor on the scores; 1/sqrt(D) if None.
        dropout_p, impl: as for :func:`longformer.kernels.sliding_window_attention`.
    """
    heads, seq_len, head_dim = query.shape[1:]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    chosen, traced = _implementation(query, key, value, dropout_p, impl)
    if traced or chosen == "triton":
        return attention(
            query,
            key,
            value,
            impl=chosen,
            window=_window(pattern),
            dilation=pattern.gaps(heads),
            causal=pattern.causal,
            key_mask=tokens.keep,
            index=tokens.with_index(counted=not traced).global_index,
            scale=scale,
            dropout_p=dropout_p,
        )
    arguments: dict[str, Any] = {
        "dilation": pattern.gaps(heads),
        "causal": pattern.causal,
        "key_mask": tokens.keep,
        "global_mask": tokens.is_global,
        "scale": scale,
        "dropout_p": dropout_p,
    }
    window = pattern.sides(seq_len)
    match chosen:
        case "reference":
            return reference.sliding_window_attention(query, key, value, window, **arguments)
        case "banded":
            return banded.sliding_window_attention(query, key, value, window, **arguments)
        case _:
            return blocked.sliding_window_attention(query, key, value, window, **arguments, fused=chosen == "fused")


def attend_globally(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: Tokens,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """At every global token its attention over all tokens that are no padding, 0 at every other: (B, H, S, D).

    Arguments as for :func:`attend`, query, key and value by the global projections, of all S tokens.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    chosen, traced = _implementation(query, key, value, dropout_p, impl)
    if tokens.is_global is None:
        return torch.zeros_like(query)
    if chosen in ("reference", "banded"):
        out = reference.global_attention(query, key, value, key_mask=tokens.keep, scale=scale, dropout_p=dropout_p)
        return torch.where(tokens.is_global[:, None, :, None], out, 0.0)
    index = tokens.with_index(counted=not traced).global_index
    if index is None:
        return torch.zeros_like(query)
    if traced or chosen == "triton":
        more: dict[str, Any] = {"key_mask": tokens.keep, "index": index}
        return attention(query, key, value, impl=chosen, scale=scale, dropout_p=dropout_p, **more)
    places = _Places(index)
    rows = blocked.global_attention(
        places.take(query),
        key,
        value,
        key_mask=tokens.keep,
        scale=scale,
        dropout_p=dropout_p,
        fused=chosen == "fused",
    )
    out = torch.zeros_like(query)
    places.put(out, rows)
    return out


def _window(pattern: AttentionPattern) -> tuple[int, int]:
    """Of the operator, to which no window is global attention: one beyond every length where the pattern has none."""
    left, right = (2**31 - 1,) * 2 if pattern.window is None else pattern.window
    return left, 0 if pattern.causal else right


def _implementation(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, impl: str) -> tuple[str, bool]:
    """Which one serves, and whether it does so by the operator of a graph, which chooses when tensors arrive."""
    if torch.compiler.is_compiling() and impl in TRACED:
        return impl, True
    from .api import choose

    backward = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return choose(query, impl=impl, dropout_p=dropout_p, backward=backward).impl, False


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
        index: (B, width) positions of global tokens, see :func:`global_index`, none of them padding. Under a window
            they are columns that every row sees. Without one they are the rows to compute; the others are 0.
        key_mask, causal, scale, dropout_p: as for :func:`longformer.kernels.sliding_window_attention`.
    """
    seed = torch.randint(2**62, (1,), device=query.device) if dropout_p else None
    gaps = list(dilation or [1] * query.shape[1])
    arguments = (key_mask, index, seed, list(window or ()), gaps, causal, scale, dropout_p, impl)
    out: Tensor = _attention(query, key, value, *arguments)[0]
    return out


@torch.library.custom_op("longformer::attention", mutates_args=(), **KEPT_OUT)
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
    """Attention (B, H, R, D), and (B, H, R) for the backward pass: log-sum-exp, or what ``blocked.py`` calls top."""
    impl = _chosen(query, impl, dropout_p)
    if window or global_index is None:
        pattern: Any = (window or None, dilation, causal, key_mask, global_index)
        return _forward(impl, query, key, value, pattern, scale, dropout_p, seed)
    out, lse = torch.zeros_like(_like(query)), query.new_zeros(query.shape[:3], dtype=_wide(query))
    places = _places(global_index)
    if places is not None:
        pattern = (None, dilation, causal, key_mask, None)
        rows, rows_lse = _forward(impl, places.take(query), key, value, pattern, scale, dropout_p, seed)
        places.put(out, rows)
        places.put(lse, rows_lse)
    return out, lse


@torch.library.custom_op("longformer::attention_backward", mutates_args=(), **KEPT_OUT)
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
    impl = _chosen(query, impl, dropout_p)
    if window or global_index is None:
        pattern: Any = (window or None, dilation, causal, key_mask, global_index)
        return _backward(impl, grad_out, query, key, value, out, lse, pattern, scale, dropout_p, seed)
    places = _places(global_index)
    if places is None:
        return torch.zeros_like(_like(query)), torch.zeros_like(_like(key)), torch.zeros_like(_like(value))
    pattern = (None, dilation, causal, key_mask, None)
    of_rows = (places.take(grad_out), places.take(query), key, value, places.take(out), places.take(lse))
    rows, grad_key, grad_value = _backward(impl, *of_rows, pattern, scale, dropout_p, seed)
    grad_query = torch.zeros_like(_like(query))
    places.put(grad_query, rows)
    return grad_query, grad_key, grad_value


class _Places(NamedTuple):
    """Rows out of (B, H, S, ...), so many of each example as the example with most has: their index, -1 if fewer."""

    positions: Tensor

    def take(self, x: Tensor) -> Tensor:
        """(B, H, width, ...), 0 behind an example's last."""
        present = self.positions >= 0
        flat = (len(present), 1, -1, *[1] * (x.dim() - 3))
        index, present = self.positions.clamp(min=0).view(flat), present.view(flat)
        shape = (*x.shape[:2], index.shape[2], *x.shape[3:])
        return x.gather(2, index.expand(shape)).masked_fill_(~present, 0)

    def put(self, to: Tensor, rows: Tensor) -> None:
        """Write rows (B, H, width, ...) to their places."""
        example, number = (self.positions >= 0).nonzero(as_tuple=True)
        to.transpose(1, 2)[example, self.positions[example, number]] = rows.transpose(1, 2)[example, number]


def _places(index: Tensor) -> _Places | None:
    """None if there is no row. How many there are has to be read back from the device."""
    width = int((index >= 0).sum(1).max())
    return _Places(index[:, :width]) if width else None


def _cut_index(query: Tensor, *pattern: Any) -> tuple[Any, ...]:
    """``pattern`` with no more room for global columns than they take, which decides how their sums are split.

    Only a graph's index is as wide as the sequence; of another the width is known, and the device is not asked.
    """
    *others, index = pattern
    if index is not None and index.shape[1] == query.shape[2]:
        places = _places(index)
        index = None if places is None else places.positions
    return *others, index


def _forward(
    impl: str, query: Tensor, key: Tensor, value: Tensor, pattern: Any, scale: float, dropout_p: float, seed: Any
) -> tuple[Tensor, Tensor]:
    if impl == "triton":
        from . import triton_launch

        pattern = _cut_index(query, *pattern)
        return triton_launch.forward(query, key, value, triton_launch.Pattern(*pattern), scale, dropout_p, seed)
    pieces, whole, drawn = _cut(impl, query, key, pattern, seed)
    out, tops = blocked.attention_and_tops(
        query, key, value, pieces, whole, scale, dropout_p, drawn, fused=impl == "fused"
    )
    return out, tops.squeeze(-1)


def _backward(
    impl: str,
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: Any,
    scale: float,
    dropout_p: float,
    seed: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    if impl == "triton":
        from . import triton_launch

        arguments = (grad_out, query, key, value, out, lse)
        pattern = _cut_index(query, *pattern)
        return triton_launch.backward(*arguments, triton_launch.Pattern(*pattern), scale, dropout_p, seed)
    pieces, whole, drawn = _cut(impl, query, key, pattern, seed)
    return blocked.gradients(grad_out, query, key, value, lse[..., None], pieces, whole, scale, dropout_p, drawn)


def _chosen(query: Tensor, impl: str, dropout_p: float) -> str:
    from .api import choose  # which stands above this file, and is complete by the time that tensors arrive

    # Whether a graph's results will be differentiated cannot be known here.
    return choose(query, impl=impl, dropout_p=dropout_p, backward=True).impl


# ---- what a graph is told of them


@_attention.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(query), query.new_empty(query.shape[:3], dtype=_wide(query))


@_attention_backward.register_fake
def _(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


def _like(x: Tensor) -> Tensor:
    """A (B, H, S, D) that lies in memory as (B, S, H, D), as both kernels give their results."""
    batch, heads, seq_len, head_dim = x.shape
    return x.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


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


# ---- the blocked kernel


def _cut(impl: str, query: Tensor, key: Tensor, pattern: Any, seed: Tensor | None) -> tuple[list[Piece], bool, int]:
    """The pieces that it works on, whether they hold all rows, and its seed."""
    window, dilation, causal, key_mask, global_index = pattern
    whole, drawn, fused = key_mask is None, 0 if seed is None else int(seed), impl == "fused"
    if window is None:
        return global_pieces(query, key, key_mask, fused), whole, drawn
    global_mask, seq_len = None, query.shape[2]
    if global_index is not None:
        global_mask = torch.zeros(query.shape[0], seq_len + 1, dtype=torch.bool, device=query.device)
        global_mask = global_mask.scatter_(1, torch.where(global_index < 0, seq_len, global_index), True)[:, :-1]
    within = (min(window[0], seq_len - 1), min(window[1], seq_len - 1))
    return band_pieces(query, within, dilation, causal, key_mask, global_mask, fused), whole, drawn
