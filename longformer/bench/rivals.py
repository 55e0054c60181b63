"""The attention of other packages, over the inputs of :mod:`longformer.bench.problem`.

Each function takes a problem and its inputs, imports what it needs, and gives an :class:`Attention` or raises
UnavailableError. Its inputs are put into the layout that suits it, in advance if that is possible. Nothing is done in
its time that its own users would not have to do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.bench.problem import Inputs, Problem
from longformer.bench.timing import UnavailableError, one_line
from longformer.kernels import compat

FLEX_GRAPHS = 64  # how often a process may compile it, twice for each problem; torch's own limit of 8 ends in an error


@dataclass
class Attention:
    """forward: returns the output (B, S, H, D). prepare: called before each forward pass, outside its time."""

    forward: Callable[[], Tensor]
    prepare: Callable[[], None] = lambda: None


def replace_global_rows(out: Tensor, rows: Tensor) -> Tensor:
    """(B, S, H, D), the first G rows of which are those of ``rows`` (B, H, G, D)."""
    return out.index_copy(1, torch.arange(rows.shape[2], device=out.device), rows.transpose(1, 2))


def import_transformers() -> Any:
    """The package, told to print no notes about padding. Raises UnavailableError if it is not installed."""
    try:
        import transformers
        from transformers.models.longformer import modeling_longformer  # noqa: F401  (it should fail here, not later)
    except ImportError as error:
        raise UnavailableError(f"transformers is not installed ({one_line(error)}); pip install transformers") from None
    transformers.logging.set_verbosity_error()
    return transformers


class _Given(nn.Module):
    """Takes the place of a projection, and returns what was projected in advance."""

    def __init__(self, projected: Tensor) -> None:
        super().__init__()
        self.projected = projected

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projected


def transformers_attention(problem: Problem, inputs: Inputs) -> Attention:
    """transformers' LongformerSelfAttention, with its six projections replaced by their results."""
    transformers = import_transformers()
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    if problem.window == 0 or problem.seq_len % (2 * problem.window):
        raise UnavailableError(
            f"takes only multiples of the whole window of {2 * problem.window} tokens, and {problem.seq_len} is none"
        )
    config = transformers.LongformerConfig(
        hidden_size=problem.heads * problem.head_dim,
        num_attention_heads=problem.heads,
        num_hidden_layers=1,
        attention_window=[2 * problem.window],
        attention_probs_dropout_prob=0.0,
    )
    with torch.device("meta"):
        module = LongformerSelfAttention(config, layer_id=0)
    projections = dict(zip(("query", "key", "value"), inputs.local, strict=True))
    if inputs.global_ is not None:
        projections.update(zip(("query_global", "key_global", "value_global"), inputs.global_, strict=True))
    # The module works on (S, B, C), the layout of its own projections' results.
    given = {name: x.detach().transpose(0, 1).flatten(2).contiguous() for name, x in projections.items()}
    for name, x in given.items():
        setattr(module, name, _Given(x))
    tokens = (problem.batch, problem.seq_len)
    nothing = torch.zeros(tokens, dtype=torch.bool)
    is_global = problem.tokens(nothing.device).is_global
    is_global = nothing if is_global is None else is_global
    masks = {
        "attention_mask": torch.where(is_global, 10000.0, 0.0).to(problem.torch_dtype),
        "is_index_masked": nothing,
        "is_index_global_attn": is_global,
        "is_global_attn": bool(problem.global_tokens),
    }
    hidden = torch.zeros(*tokens, config.hidden_size, dtype=problem.torch_dtype)  # only its shape counts
    module.train(False)

    def prepare() -> None:
        # Where gradients are wanted, the module gets a view of the leaf. It scales queries in place: they are copied.
        for name, x in projections.items():
            fresh = x.transpose(0, 1).flatten(2) if x.requires_grad else given[name]
            getattr(module, name).projected = fresh.clone() if name.startswith("query") else fresh

    return Attention(lambda: module(hidden, **masks)[0].unflatten(2, (problem.heads, problem.head_dim)), prepare)


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # transformers registers classes with torch's pytrees when it is imported. torch then compiles everything again, so
    # the import comes first.
    with contextlib.suppress(UnavailableError):
        import_transformers()
    compat.room_for_graphs(FLEX_GRAPHS).__enter__()  # as long as the process runs
    return torch.compile(flex_attention, dynamic=False)


def flex_attention(problem: Problem, inputs: Inputs) -> Attention:
    """FlexAttention, compiled for this problem, with the block mask of the band and the global columns."""
    if inputs.grad is not None and inputs.grad.device.type == "cpu":
        raise UnavailableError("FlexAttention has no backward on a CPU")
    from longformer.kernels import flex

    if flex.ABSENT is not None:
        raise UnavailableError(f"torch {torch.__version__} has no FlexAttention ({flex.ABSENT})")
    in_band, count = problem.pattern.mask_mod(), problem.global_tokens

    def in_band_or_global(b: Any, h: Any, row: Tensor, column: Tensor) -> Tensor:
        # A comparison, since the global tokens come first. A mask_mod of Tokens would read them from memory each time.
        return in_band(b, h, row, column) | (column < count)

    sees = in_band_or_global if count else in_band
    query, key, value = (x.transpose(1, 2).contiguous() for x in inputs.local)
    mask = flex.block_mask(sees, query[:1, :1], key[:1, :1])  # one for all examples and heads
    compiled = _compiled_flex()
    return Attention(lambda: _with_global_rows(compiled(query, key, value, block_mask=mask).transpose(1, 2), inputs))


def flash_attention(problem: Problem, inputs: Inputs) -> Attention:
    """The sliding window of flash-attention itself. It has no global columns."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise UnavailableError(f"flash-attn is not installed ({one_line(error)})") from None
    if inputs.global_ is not None:
        raise UnavailableError("has no global columns")
    window = (problem.window, problem.window)
    return Attention(lambda: flash_attn_func(*inputs.local, window_size=window))


def dense_attention(problem: Problem, inputs: Inputs) -> Attention:
    """torch's dense attention with an S × S mask of the band and the global columns."""
    mask = problem.mask()
    query, key, value = (x.transpose(1, 2) if x.requires_grad else x.transpose(1, 2).contiguous() for x in inputs.local)
    return Attention(
        lambda: _with_global_rows(
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), inputs
        )
    )


def _with_global_rows(out: Tensor, inputs: Inputs) -> Tensor:
    """(B, S, H, D), where the rows of the global tokens are replaced by their attention to everything."""
    if inputs.global_ is None:
        return out
    query, key, value = (x.transpose(1, 2) for x in inputs.global_)
    return replace_global_rows(out, F.scaled_dot_product_attention(query, key, value))
