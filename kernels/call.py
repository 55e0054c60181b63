"""One call of an implementation, and what stands around it: autograd, and an operator for graphs.

The implementation is chosen in ``dispatch.py``. One without a backward pass of its own is called as it is, and torch
differentiates it. One that has a backward pass is called

- directly, where no gradient is asked for: short inputs notice what autograd costs;
- inside :class:`_Attention`, where one is;
- inside the operator ``torch.ops.longformer.attention``, in a compiled or exported graph. There it is one node, whose
  results are known by shape. What happens inside, the data decide, and the implementation is chosen when tensors
  arrive. The backward pass is a second operator.

Letters as in ``api.py``; R rows: S, or G in global attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from . import compat, reference
from .compat import NotCompiledError
from .dispatch import Kernel, select, select_for_mask
from .masks import MaskPattern, Pattern
from .pattern import EVERYTHING, AttentionPattern, Tokens
from .problem import Problem

CAUSAL = AttentionPattern(None, causal=True)
IN_GRAPHS = ("auto", "blocked", "fused", "triton")  # these are an operator in a graph; the others are traced through


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
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
        pattern: window, dilation and causality; or any mask and score. Its own global tokens are not looked at.
        tokens: padding and global tokens. Its ``global_index`` is used where there is one, and else made if needed.
        scale: factor on the scores; 1/sqrt(D) if None.
        dropout_p, impl: as for :func:`longformer.kernels.sliding_window_attention`.
    """
    problem = Problem(pattern, tokens, scale_of(query, scale), dropout_p)
    if not pattern.is_band:
        return _masked(query, key, value, problem, impl)
    return _attention(query, key, value, problem, impl)


def _masked(query: Tensor, key: Tensor, value: Tensor, problem: Problem, impl: str) -> Tensor:
    """Attention (B, H, S, D) by a mask, a score or a union. A score's function may hold parameters of its own."""
    assert isinstance(problem.pattern, MaskPattern)
    depends = problem.pattern.score is not None or any(x.requires_grad for x in (query, key, value))
    choice, kernel = select_for_mask(query, impl, problem.dropout_p, torch.is_grad_enabled() and depends)
    if impl != "auto" or choice.impl == "reference":
        return kernel.forward(query, key, value, problem)[0]
    try:
        return kernel.forward(query, key, value, problem)[0]
    except NotCompiledError:
        return reference.forward(query, key, value, problem)[0]


def attend_globally(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: Tokens,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """At every global token its attention to all tokens that are no padding, 0 at every other: (B, H, S, D).

    Arguments as for :func:`attend`; query, key and value of all S tokens, by the global projections. ``causal``: to no
    later token; every implementation then computes these rows as G × S matrices.
    """
    if tokens.is_global is None:
        return torch.zeros_like(query)
    if causal:
        problem = Problem(CAUSAL, Tokens(tokens.keep), scale_of(query, scale), dropout_p, gathered=True)
        return _of_rows(query, key, value, problem, Kernel(reference.forward), tokens)
    problem = Problem(EVERYTHING, Tokens(tokens.keep), scale_of(query, scale), dropout_p, gathered=True)
    return _attention(query, key, value, problem, impl, only=tokens)


def attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of some rows (B, H, G, D) to all of S tokens that ``keep`` (B, S) says are no padding: (B, H, G, D).

    Other arguments as for :func:`attend`.
    """
    problem = Problem(EVERYTHING, Tokens(keep), scale_of(query, scale), dropout_p, gathered=True)
    return _attention(query, key, value, problem, impl)


class _Call(NamedTuple):
    """What a call is besides query, key and value.

    rows: (B, width) positions of the rows that are computed, -1 behind the last; the others are 0. None is all rows.
    """

    impl: str
    kernel: Kernel
    problem: Problem
    rows: Tensor | None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, problem: Problem, impl: str, only: Tokens | None = None
) -> Tensor:
    """Attention (B, H, R, D). ``only``: the rows of its global tokens alone are computed, and the others are 0."""
    if torch.compiler.is_compiling() and impl in IN_GRAPHS:
        return _in_graph(query, key, value, problem, impl, only)
    differentiated = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    choice, kernel = select(query, impl, problem.dropout_p, differentiated, problem.gathered)
    if kernel.backward is None:
        if only is None:
            return kernel.forward(query, key, value, problem)[0]
        if kernel.gathers:
            return _of_rows(query, key, value, problem, kernel, only)
        assert only.is_global is not None
        others = ~only.is_global[:, None, :, None]
        # Zeros in place of the other rows, so that nothing that stands there reaches the gradients either.
        return kernel.forward(query.masked_fill(others, 0.0), key, value, problem)[0].masked_fill(others, 0.0)
    rows = None
    if only is not None:
        rows = only.with_index(counted=True).global_index
        if rows is None:
            return torch.zeros_like(query)
    if choice.impl == "triton":
        problem.tokens = problem.tokens.with_index(counted=True)
    if problem.dropout_p:
        problem.seed = _new_seed(query)
    call = _Call(choice.impl, kernel, problem, rows)
    if differentiated or compat.in_transform():
        out: Tensor = _Attention.apply(query, key, value, call)[0]
        return out
    return _forward(query, key, value, call)[0]


def _of_rows(query: Tensor, key: Tensor, value: Tensor, problem: Problem, kernel: Kernel, only: Tokens) -> Tensor:
    """Attention (B, H, S, D) of the global tokens of ``only``, in operators that torch differentiates."""
    rows = only.with_index(counted=True).global_index
    if rows is None:
        return torch.zeros_like(query)
    problem.rows = rows if problem.pattern.causal else None
    out = kernel.forward(_take(query, rows), key, value, problem)[0]
    seq_len = query.shape[2]
    place = torch.where(rows < 0, seq_len, rows)  # an extra row takes those of no token
    everywhere = query.new_zeros(*query.shape[:2], seq_len + 1, query.shape[3])
    return everywhere.scatter(2, place[:, None, :, None].expand(out.shape), out)[:, :, :seq_len]


def scale_of(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)


def _new_seed(query: Tensor) -> Tensor:
    return torch.randint(2**62, (1,), device=query.device)


def _forward(query: Tensor, key: Tensor, value: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Attention (B, H, R, D) and its log-sum-exp (B, H, R), which is +inf in rows that are not computed."""
    if call.rows is None:
        return call.kernel.forward(query, key, value, call.problem)
    out = torch.zeros_like(_like(query))
    lse = query.new_full(query.shape[:3], math.inf, dtype=torch.promote_types(query.dtype, torch.float32))
    if call.rows.shape[1]:
        of_rows = call.kernel.forward(_take(query, call.rows), key, value, call.problem)
        for x, to in zip(of_rows, (out, lse), strict=True):
            _put(x, call.rows, to)
    return out, lse


def _backward(tensors: Sequence[Any], call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from grad_out, query, key, value, out (None if it is not read) and lse."""
    assert call.kernel.backward is not None
    if call.rows is None:
        return call.kernel.backward(*tensors, call.problem)
    grad_out, query, key, value, out, lse = tensors
    grad_query = torch.zeros_like(_like(query))
    if not call.rows.shape[1]:
        return grad_query, torch.zeros_like(_like(key)), torch.zeros_like(_like(value))
    grad_out, query, lse = (_take(x, call.rows) for x in (grad_out, query, lse))
    out = None if out is None else _take(out, call.rows)
    of_rows, grad_key, grad_value = call.kernel.backward(grad_out, query, key, value, out, lse, call.problem)
    _put(of_rows, call.rows, grad_query)
    return grad_query, grad_key, grad_value


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """The rows of ``x`` (B, H, S, ...) at positions ``rows`` (B, width): (B, H, width, ...), 0 where there is none."""
    absent = (rows < 0).view(rows.shape[0], 1, -1, *[1] * (x.dim() - 3))
    index = rows.clamp(min=0).view(absent.shape)
    return x.gather(2, index.expand(*x.shape[:2], -1, *x.shape[3:])).masked_fill_(absent, 0)


def _put(x: Tensor, rows: Tensor, to: Tensor) -> None:
    """Write ``x`` (B, H, width, ...) to its positions in ``to`` (B, H, S, ...)."""
    example, number = (rows >= 0).nonzero(as_tuple=True)
    to.transpose(1, 2)[example, rows[example, number]] = x.transpose(1, 2)[example, number]


def _like(x: Tensor) -> Tensor:
    """A (B, H, S, D) that lies in memory as (B, S, H, D), as the kernels give their results."""
    batch, heads, seq_len, head_dim = x.shape
    return x.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)


# ---- autograd

NO_VMAP = "does not work under torch.func.vmap"
NO_FORWARD_MODE = "has no derivative in forward mode"
NO_SECOND_DERIVATIVE = "has no second derivative"


def _refuse(impl: str, why: str) -> NoReturn:
    raise RuntimeError(f'impl="{impl}" {why}; use impl="reference" where that is needed')


class _Attention(torch.autograd.Function):
    """An implementation with a backward pass of its own, in eager mode."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
        return _forward(query, key, value, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, ctx.call = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        # Where the kernel made no copies of the masks, autograd watches that nobody changes them.
        masks = ctx.call.problem.tokens if ctx.call.problem.cut is None else ()
        out = output[0] if ctx.call.kernel.reads_out else None
        ctx.save_for_backward(query, key, value, out, output[1], *masks)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 4
        return *_AttentionBackward.apply(ctx.call, grad_out, *ctx.saved_tensors[:5]), None

    @staticmethod
    def vmap(info: Any, dims: Any, *inputs: Any) -> None:
        _refuse(inputs[3].impl, NO_VMAP)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> None:
        _refuse(ctx.call.impl, NO_FORWARD_MODE)


class _AttentionBackward(torch.autograd.Function):
    """The gradients, as a function of their own, so that a second derivative ends in a clear error."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _backward(tensors, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        _refuse(ctx.call.impl, NO_SECOND_DERIVATIVE)

    @staticmethod
    def vmap(info: Any, dims: Any, *inputs: Any) -> None:
        _refuse(inputs[0].impl, NO_VMAP)

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> None:
        _refuse(ctx.call.impl, NO_FORWARD_MODE)


# ---- the operator of a graph


def _in_graph(query: Tensor, key: Tensor, value: Tensor, problem: Problem, impl: str, only: Tokens | None) -> Tensor:
    pattern, index = problem.pattern, problem.tokens.with_index(counted=False).global_index
    rows = None if only is None else only.with_index(counted=False).global_index
    seed = _new_seed(query) if problem.dropout_p else None
    numbers = (list(pattern.window or ()), list(pattern.gaps(query.shape[1])), pattern.causal, problem.gathered)
    more = (problem.scale, problem.dropout_p, impl)
    out: Tensor = _operator(query, key, value, problem.tokens.keep, index, rows, seed, *numbers, *more)[0]
    return out


@torch.library.custom_op("longformer::attention", mutates_args=(), **compat.OUTSIDE_CUDA_GRAPHS)
def _operator(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
    global_index: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    window: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    gathered: bool,
    scale: float,
    dropout_p: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Attention (B, H, R, D) and its log-sum-exp (B, H, R). An empty window is one that holds everything."""
    tensors = (keep, global_index, rows, seed)
    call = _call(query, tensors, window, dilation, causal, gathered, scale, dropout_p, impl)
    return _forward(query, key, value, call)


@torch.library.custom_op("longformer::attention_backward", mutates_args=(), **compat.OUTSIDE_CUDA_GRAPHS)
def _operator_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    keep: Tensor | None,
    global_index: Tensor | None,
    rows: Tensor | None,
    seed: Tensor | None,
    window: Sequence[int],
    dilation: Sequence[int],
    causal: bool,
    gathered: bool,
    scale: float,
    dropout_p: float,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    tensors = (keep, global_index, rows, seed)
    call = _call(query, tensors, window, dilation, causal, gathered, scale, dropout_p, impl)
    return _backward((grad_out, query, key, value, out, lse), call)


def _call(query: Tensor, tensors: Sequence[Tensor | None], *arguments: Any) -> _Call:
    """The call that an operator's arguments describe."""
    keep, index, rows, seed = tensors
    window, dilation, causal, gathered, scale, dropout_p, impl = arguments
    index, rows = _as_wide_as_needed(index), _as_wide_as_needed(rows)
    pattern = AttentionPattern(tuple(window) or None, tuple(dilation), causal)
    tokens = Tokens(keep, None, index if index is not None and index.shape[1] else None)
    # Whether a graph's results will be differentiated cannot be known here.
    choice, kernel = select(query, impl, dropout_p, True, gathered)
    return _Call(choice.impl, kernel, Problem(pattern, tokens, scale, dropout_p, seed, gathered), rows)


def _as_wide_as_needed(index: Tensor | None) -> Tensor | None:
    """A graph's index, which is as wide as the sequence. How much of it is used has to be read back from the device."""
    return None if index is None else index[:, : int((index >= 0).sum(1).max())]


@_operator.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(query), query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))


@_operator_backward.register_fake
def _(grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query), _like(key), _like(value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *tensors_and_more = inputs
    ctx.arguments = tensors_and_more[4:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, *tensors_and_more[:4])


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_operator_backward(grad_out, *ctx.saved_tensors, *ctx.arguments), *(None,) * 11


def _remember_impl(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.impl = inputs[-1]


_operator.register_autograd(_differentiate, setup_context=_remember)
_operator_backward.register_autograd(
    lambda ctx, *_: _refuse(ctx.impl, NO_SECOND_DERIVATIVE), setup_context=_remember_impl
)
for _each in (_operator, _operator_backward):
    _each.register_vmap(lambda info, dims, *inputs: _refuse(inputs[-1], NO_VMAP))
