"""Attention probabilities of both Longformers in one form: band, global columns, global rows.

band (B, H, S, W): column c of row i is its probability for token i + (c - left)·d, d being the head's dilation; 0
where that token is global, whose probability stands in columns (B, H, S, G), the global tokens in ascending order, the
rest filled up with 0. Rows of global tokens are 0 in both: theirs is global (B, H, G, S). W = left + 1 + right, G the
most global tokens of an input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longformer.errors import LongformerError
from longformer.kernels import sliding_window_attention, sliding_window_probabilities
from longformer.models.attention import LongformerSelfAttention
from longformer.parity.table import PROBABILITIES


def global_places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) bool to (B, G) positions of the global tokens, 0 where an example has fewer, and (B, G) which are real."""
    counts = mask.sum(dim=1)
    most = int(counts.max())
    index = torch.argsort((~mask).byte(), dim=1, stable=True)[:, :most]
    real = torch.arange(most) < counts[:, None]
    return index.masked_fill(~real, 0), real


def global_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """The rows of (B, H, S, D) where ``mask`` (B, S) is True: (B, H, G, D), filled up with 0."""
    index, real = global_places(mask)
    taken = rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    return taken.masked_fill(~real[:, None, :, None], 0)


def of_reference(output: Any, key_mask: Tensor, global_mask: Tensor) -> dict[str, Tensor]:
    """From what transformers' self-attention gives with ``output_attentions=True``."""
    seq_len = key_mask.shape[1]
    local = output[1].detach().cpu()[:, :seq_len].transpose(1, 2)  # (B, H, S, G + W)
    count = int(global_mask.sum(dim=1).max())
    found = {PROBABILITIES[0]: local[..., count:]}
    if count:
        found[PROBABILITIES[1]] = local[..., :count]
        rows = output[2].detach().cpu()[..., :seq_len]  # (B, H, G, S)
        real = global_places(global_mask)[1]
        found[PROBABILITIES[2]] = rows.masked_fill(~real[:, None, :, None], 0)
    return {name: tensor.clone() for name, tensor in found.items()}


@torch.no_grad()
def of_ours(
    attention: LongformerSelfAttention,
    query: Tensor,
    key: Tensor,
    states: Tensor,
    key_mask: Tensor,
    global_mask: Tensor,
) -> dict[str, Tensor]:
    """From our layer's query and key, (B, H, S, D), and the states that it was given, (B, S, C)."""
    left, right = attention.pattern.window or (0, 0)
    gaps = attention.pattern.gaps(attention.num_heads)
    band, columns, _ = sliding_window_probabilities(
        query, key, (left, right), dilation=gaps, key_mask=key_mask, global_mask=global_mask
    )
    band = band.masked_fill(global_mask[:, None, :, None], 0)
    if not bool(global_mask.any()):
        return {PROBABILITIES[0]: band}
    index, real = global_places(global_mask)
    away = index[:, None, None, :] - torch.arange(band.shape[2])[:, None]  # (B, 1, S, G)
    gap = torch.tensor(gaps)[:, None, None]  # (H, 1, 1)
    column = away.div(gap, rounding_mode="floor") + left  # (B, H, S, G): where in a row's band a global token stands
    inside = (away % gap == 0) & (column >= 0) & (column < band.shape[3]) & real[:, None, None, :]
    place = column.clamp(0, band.shape[3] - 1)
    taken = band.gather(3, place).masked_fill(~inside, 0)
    kept = torch.ones_like(band).scatter_reduce(3, place, (~inside).to(band.dtype), "amin")
    columns = (columns + taken).masked_fill(global_mask[:, None, :, None] | ~real[:, None, None, :], 0)
    heads = query.shape[1]
    projected = [
        projection(states).cpu().unflatten(-1, (heads, -1)).transpose(1, 2)
        for projection in (attention.query_global, attention.key_global)
    ]
    scores = (global_rows(projected[0], global_mask) * query.shape[3] ** -0.5) @ projected[1].transpose(2, 3)
    wide = torch.promote_types(scores.dtype, torch.float32)
    rows = scores.to(wide).masked_fill(~key_mask[:, None, None, :], float("-inf")).softmax(-1).to(scores.dtype)
    rows = rows.masked_fill(~real[:, None, :, None], 0)
    return dict(zip(PROBABILITIES, (band * kept, columns, rows), strict=True))


@torch.no_grad()
def check_agreement(
    name: str,
    attention: LongformerSelfAttention,
    impl: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    key_mask: Tensor,
    global_mask: Tensor,
) -> None:
    """Raise LongformerError where ``output`` (B, H, S, D), by the banded kernel, is not what ``impl`` computes.

    Rows of global tokens are left out, being replaced. An output is a mean of values, with weights whose relative
    error is that of a score, so that the allowed difference is 16 units of rounding times the largest value times one
    more than the largest possible score.
    """
    expected = sliding_window_attention(
        query,
        key,
        value,
        attention.pattern.window or (0, 0),
        dilation=attention.pattern.gaps(attention.num_heads),
        key_mask=key_mask,
        global_mask=global_mask,
        impl=impl,
    )
    off = (output - expected).masked_fill(global_mask[:, None, :, None], 0).abs().max()
    score = query.norm(dim=-1).max() * key.norm(dim=-1).max() * query.shape[3] ** -0.5
    allowed = 16 * torch.finfo(query.dtype).eps * (1 + score) * value.abs().max()
    if not bool(off <= allowed):
        raise LongformerError(
            f"{name}: attention with probabilities (impl='banded') is {float(off):.2g} from impl={impl!r}, where "
            f"rounding allows {float(allowed):.2g}: one of the two kernels is wrong"
        )
