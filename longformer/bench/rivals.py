"""The others' attention over the inputs of ``bench attention``. What each needs is imported only when it is built.

Letters as in :mod:`longformer.bench.attention`. Each is given its inputs in the layout that suits it, made in advance
where that is possible, and does nothing that its own users would not have to do.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.bench.timing import UnavailableError, one_line

if TYPE_CHECKING:
    from longformer.bench.attention import Inputs, Shape

FLEX_BLOCK = 128  # FlexAttention's own choice of block
FLEX_GRAPHS = 64  # so many graphs a process may compile of it, two a shape; torch's own limit of 8 ends in an error


@dataclass
class Attention:
    """forward: gives (B, S, H, D). prepare: what has to be done before each call, outside its time."""

    forward: Callable[[], Tensor]
    prepare: Callable[[], None] = lambda: None


def import_transformers() -> Any:
    """The package, or ``UnavailableError``. It is told to keep its notes on padding to itself."""
    try:
        import transformers
        from transformers.models.longformer import modeling_longformer  # noqa: F401  (fails here, not in the middle)
    except ImportError as error:
        raise UnavailableError(f"transformers is not installed ({one_line(error)}); pip install transformers") from None
    transformers.logging.set_verbosity_error()
    return transformers


class _Given(nn.Module):
    """In place of a projection: gives what was projected in advance."""

    def __init__(self, projected: Tensor) -> None:
        super().__init__()
        self.projected = projected

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projected


def transformers_attention(shape: Shape, inputs: Inputs) -> Attention:
    """transformers' LongformerSelfAttention, its six projections replaced by their results."""
    transformers = import_transformers()
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    if shape.window == 0 or shape.seq_len % (2 * shape.window):
        raise UnavailableError(
            f"takes multiples of the whole window only, and {shape.seq_len} tokens are none of {2 * shape.window}"
        )
    config = transformers.LongformerConfig(
        hidden_size=shape.heads * shape.head_dim,
        num_attention_heads=shape.heads,
        num_hidden_layers=1,
        attention_window=[2 * shape.window],
        attention_probs_dropout_prob=0.0,
    )
    with torch.device("meta"):
        module = LongformerSelfAttention(config, layer_id=0)
    projections = dict(zip(("query", "key", "value"), inputs.local, strict=True))
    if inputs.global_ is not None:
        projections.update(zip(("query_global", "key_global", "value_global"), inputs.global_, strict=True))
    # The module works on (S, B, C), the layout in which its own projections would leave their results.
    given = {name: x.detach().transpose(0, 1).flatten(2).contiguous() for name, x in projections.items()}
    for name, x in given.items():
        setattr(module, name, _Given(x))
    tokens = (shape.batch, shape.seq_len)
    is_global = torch.zeros(tokens, dtype=torch.bool)
    is_global[:, : shape.global_tokens] = True
    masks = {
        "attention_mask": torch.where(is_global, 10000.0, 0.0).to(shape.torch_dtype),
        "is_index_masked": torch.zeros(tokens, dtype=torch.bool),
        "is_index_global_attn": is_global,
        "is_global_attn": bool(shape.global_tokens),
    }
    hidden = torch.zeros(*tokens, config.hidden_size, dtype=shape.torch_dtype)  # only its shape and some rows are read
    module.train(False)

    def prepare() -> None:
        # A view of what wants the gradient where there is one. The queries are scaled in place, so they are copied.
        for name, x in projections.items():
            fresh = x.transpose(0, 1).flatten(2) if x.requires_grad else given[name]
            getattr(module, name).projected = fresh.clone() if name.startswith("query") else fresh

    return Attention(lambda: module(hidden, **masks)[0].unflatten(2, (shape.heads, shape.head_dim)), prepare)


@functools.cache
def _compiled_flex() -> Any:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # What is compiled is compiled anew once a package registers with torch's pytrees, as transformers does on import.
    with contextlib.suppress(UnavailableError):
        import_transformers()
    # Its name of today, and the one of early releases.
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, FLEX_GRAPHS)
    return torch.compile(flex_attention, dynamic=False)


def _blocks(pattern: Callable[..., Tensor], seq_len: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FlexAttention's account of a pattern: number and places of the blocks that are partly, and wholly, seen.

    What ``create_block_mask`` gives, without an S × S matrix of int64, which at 65,536 tokens takes 34 GB.

    Returns:
        (1, 1, N), (1, 1, N, N), and the same again, int32, N blocks in a row or column.
    """
    position = torch.arange(seq_len)
    count = -(-seq_len // FLEX_BLOCK)
    some, every = (torch.zeros(count, count, dtype=torch.bool) for _ in range(2))
    for n, rows in enumerate(position.split(FLEX_BLOCK)):
        seen = F.pad(pattern(None, None, rows[:, None], position), (0, count * FLEX_BLOCK - seq_len))
        blocks = seen.unflatten(1, (count, FLEX_BLOCK)).transpose(1, 2)  # (rows, columns of a block, N)
        some[n] = blocks.flatten(0, 1).any(dim=0)
        every[n] = blocks.flatten(0, 1).all(dim=0) & (len(rows) == FLEX_BLOCK)

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        order = chosen.int().argsort(dim=1, descending=True, stable=True)
        return chosen.sum(dim=1).int()[None, None], order.int()[None, None]

    return *listed(some & ~every), *listed(every)


def flex_attention(shape: Shape, inputs: Inputs) -> Attention:
    """FlexAttention, compiled for this shape, with the block mask of the band and the global columns."""
    if inputs.grad is not None and inputs.grad.device.type == "cpu":
        raise UnavailableError("FlexAttention has no backward on a CPU")
    try:
        from torch.nn.attention.flex_attention import BlockMask
    except ImportError as error:
        raise UnavailableError(f"torch {torch.__version__} has no FlexAttention ({one_line(error)})") from None
    window, count = shape.window, shape.global_tokens

    def band(b: Any, h: Any, row: Tensor, column: Tensor) -> Tensor:
        return (row - column <= window) & (column - row <= window)

    def band_and_globals(b: Any, h: Any, row: Tensor, column: Tensor) -> Tensor:
        return band(b, h, row, column) | (column < count)

    pattern = band_and_globals if count else band
    lengths: dict[str, Any] = {} if shape.seq_len % FLEX_BLOCK == 0 else {"seq_lengths": (shape.seq_len, shape.seq_len)}
    mask = BlockMask.from_kv_blocks(
        *_blocks(pattern, shape.seq_len), BLOCK_SIZE=FLEX_BLOCK, mask_mod=pattern, **lengths
    )
    flex = _compiled_flex()
    query, key, value = (x.transpose(1, 2).contiguous() for x in inputs.local)
    return Attention(lambda: _with_global_rows(flex(query, key, value, block_mask=mask).transpose(1, 2), inputs))


def flash_attention(shape: Shape, inputs: Inputs) -> Attention:
    """flash-attention's own sliding window, which has no global columns."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise UnavailableError(f"flash-attn is not installed ({one_line(error)})") from None
    if inputs.global_ is not None:
        raise UnavailableError("has no global columns")
    window = (shape.window, shape.window)
    return Attention(lambda: flash_attn_func(*inputs.local, window_size=window))


def dense_attention(shape: Shape, inputs: Inputs) -> Attention:
    """torch's dense attention under an S × S mask of the band and the global columns."""
    mask = torch.ones(shape.seq_len, shape.seq_len, dtype=torch.bool).tril_(shape.window).triu_(-shape.window)
    mask[:, : shape.global_tokens] = True
    query, key, value = (x.transpose(1, 2) if x.requires_grad else x.transpose(1, 2).contiguous() for x in inputs.local)
    return Attention(
        lambda: _with_global_rows(
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2), inputs
        )
    )


def _with_global_rows(out: Tensor, inputs: Inputs) -> Tensor:
    """(B, S, H, D) with the global tokens' rows replaced by their own attention."""
    if inputs.global_ is None:
        return out
    query, key, value = (x.transpose(1, 2) for x in inputs.global_)
    rows = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return out.index_copy(1, torch.arange(rows.shape[1]), rows)
