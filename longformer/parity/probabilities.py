"""Attention probabilities of both Longformers in one form: band, global columns, global rows.

band (B, H, S, W): column c of row i is its probability for token i + (c - left)·d, where d is the head's dilation. If
that token is global, the band has 0, and the probability is in columns (B, H, S, G): the global tokens in ascending
order, filled up with 0. Rows of global tokens are 0 in both. Theirs are in global (B, H, G, S), filled up with 0.
W = left + 1 + right. G is the number of global tokens in the example that has most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longformer.errors import LongformerError
from longformer.kernels import Tokens, attend
from longformer.models.attention import AttentionProbabilities, LongformerSelfAttention, attention_probabilities
from longformer.parity.table import PROBABILITIES

Of = Callable[..., AttentionProbabilities]


class Projected(NamedTuple):
    """What a layer's local attention is computed from: query, key and value (B, H, S, D), padding and global tokens."""

    query: Tensor
    key: Tensor
    value: Tensor
    tokens: Tokens


def global_rows(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of (B, H, S, D) at the global tokens ``index`` (B, G): (B, H, G, D), 0 where the index is -1."""
    taken = rows.gather(2, index.clamp(min=0)[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    return taken.masked_fill((index < 0)[:, None, :, None], 0)


def of_reference(output: Any, tokens: Tokens) -> dict[str, Tensor]:
    """From what transformers' self-attention gives with ``output_attentions=True``. ``tokens`` have their index."""
    assert tokens.keep is not None
    seq_len = tokens.keep.shape[1]
    local = output[1].detach().cpu()[:, :seq_len].transpose(1, 2)  # (B, H, S, G + W)
    index = tokens.global_index
    if index is None:
        return {PROBABILITIES[0]: local.clone()}
    columns, band = local[..., : index.shape[1]], local[..., index.shape[1] :]
    rows = output[2].detach().cpu()[..., :seq_len].masked_fill((index < 0)[:, None, :, None], 0)
    return {name: tensor.clone() for name, tensor in zip(PROBABILITIES, (band, columns, rows), strict=True)}


@torch.no_grad()
def of_ours(
    attention: LongformerSelfAttention,
    projected: Projected,
    states: Tensor,
    probabilities: Of = attention_probabilities,
) -> dict[str, Tensor]:
    """From what our layer projected, and from the states (B, S, C) that it was given.

    Args:
        probabilities: what computes them, with the arguments of :func:`attention_probabilities`.
    """
    query, key, _, tokens = projected

    def split(projection: nn.Module) -> Tensor:
        x: Tensor = projection(states).cpu()
        return x.unflatten(-1, (query.shape[1], -1)).transpose(1, 2)

    projections = () if tokens.is_global is None else (attention.query_global, attention.key_global)
    found = probabilities(query, key, attention.pattern, tokens, *map(split, projections))
    return {name: tensor for name, tensor in zip(PROBABILITIES, found, strict=True) if tensor is not None}


@torch.no_grad()
def check_agreement(
    name: str, attention: LongformerSelfAttention, impl: str, projected: Projected, output: Tensor
) -> None:
    """Raise LongformerError where ``output`` (B, H, S, D), by the banded kernel, is not what ``impl`` computes.

    Rows of global tokens are left out, since the model replaces them. An output is a mean of values. The relative error
    of its weights is the error of a score. So the allowed difference is 16 units of rounding times the largest value,
    times one more than the largest possible score.
    """
    query, key, value, tokens = projected
    off = output - attend(query, key, value, attention.pattern, tokens, impl=impl)
    if tokens.is_global is not None:
        off = off.masked_fill(tokens.is_global[:, None, :, None], 0)
    difference = off.abs().max()
    score = query.norm(dim=-1).max() * key.norm(dim=-1).max() * query.shape[3] ** -0.5
    allowed = 16 * torch.finfo(query.dtype).eps * (1 + score) * value.abs().max()
    if not bool(difference <= allowed):
        raise LongformerError(
            f"{name}: attention with probabilities (impl='banded') is {float(difference):.2g} from impl={impl!r}, "
            f"where rounding allows {float(allowed):.2g}: one of the two kernels is wrong"
        )
