"""Attention probabilities of a model while it runs, one head at a time: nothing of size layers × heads × S × W exists.

Letters: S sequence, H heads, D head dimension, C hidden size, G global tokens, W = left + 1 + right width of the band.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.kernels import AttentionPattern, sliding_window_probabilities
from longformer.models.attention import LongformerSelfAttention
from longformer.models.heads import LongformerForQuestionAnswering


class Attention(NamedTuple):
    """Attention probabilities of one head, or the mean of several heads, over one sequence. On the CPU, in float32.

    The probabilities of a row sum to 1. Those of a global token are in ``rows``. Those of any other token are in
    ``columns`` and ``band``: a token that is both global and inside the window counts once, in ``columns``.

    global_index: (G,) int64, the positions of the global tokens, in ascending order.
    offsets: (W,) int64, in ascending order. One head has the offsets (c - left)·d, where d is its dilation. A mean has
        the offsets of all its heads.
    band: (S, W): column c of row i is its probability for token i + offsets[c].
    columns: (S, G): probabilities for the global tokens.
    rows: (G, S): probabilities from the global tokens to every token.
    """

    global_index: Tensor
    offsets: Tensor
    band: Tensor
    columns: Tensor
    rows: Tensor


Sink = Callable[[AttentionPattern, Iterator[Attention]], None]


@contextmanager
def observed(model: LongformerForQuestionAnswering, sink: Sink) -> Iterator[None]:
    """While this is open, each layer that computes one sequence without padding hands its heads' attention to ``sink``.

    The banded kernel computes the probabilities from the same states that the layer is given. The model itself goes on
    with the kernel that it uses, and its result does not change.

    ``sink`` is called with the layer's pattern, whose dilation is one number for each head. A dilation of more than S
    is given as S, which means the same.
    """

    thread = threading.get_ident()

    def hook(module: LongformerSelfAttention, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() != thread:  # another thread uses the same model for something else
            return
        (hidden,), tokens, *_ = arguments  # one sequence without padding
        index = torch.zeros(0, dtype=torch.int64, device=hidden.device)
        index = index if tokens.global_index is None else tokens.global_index[0]
        gaps = tuple(min(gap, len(hidden)) for gap in module.pattern.gaps(module.num_heads))
        pattern = replace(module.pattern, dilation=gaps)
        sink(pattern, _heads(module, pattern, hidden, index))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LongformerSelfAttention):
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _heads(
    module: LongformerSelfAttention, pattern: AttentionPattern, hidden: Tensor, index: Tensor
) -> Iterator[Attention]:
    """The attention of each head over the rows of ``hidden`` (S, C), whose global tokens are at ``index`` (G,)."""

    def split(projection: Any, rows: Tensor) -> Tensor:
        projected: Tensor = projection(rows).float()  # the softmax is taken in float32 whatever the projection gives
        return projected.unflatten(-1, (module.num_heads, module.head_dim)).transpose(0, 1)  # (H, S, D)

    assert pattern.window is not None
    left, right = pattern.window
    queries, keys = split(module.query, hidden), split(module.key, hidden)
    global_queries, global_keys = split(module.query_global, hidden[index]), split(module.key_global, hidden)
    is_global = torch.zeros(1, len(hidden), dtype=torch.bool, device=hidden.device)
    is_global[0, index] = True
    for head, gap in enumerate(pattern.gaps(module.num_heads)):
        query, key = queries[head][None, None], keys[head][None, None]
        found = sliding_window_probabilities(
            query, key, (left, right), dilation=gap, causal=pattern.causal, global_mask=is_global
        ).with_global_columns_apart(replace(pattern, dilation=gap))
        band, columns = found.band[0, 0], found.columns[0, 0]
        band[index], columns[index] = 0, 0  # the model replaces these rows
        rows = (global_queries[head] @ global_keys[head].T * module.head_dim**-0.5).softmax(dim=-1)
        offsets = torch.arange(-left, right + 1) * gap
        yield Attention(index.cpu(), offsets, band.cpu(), columns.cpu(), rows.cpu())


def added(total: Attention, part: Attention) -> Attention:
    """The sum of two, token by token: heads of different dilation have different tokens in their bands.

    ``total`` is changed. It is also the result, unless its band lacks a token that ``part`` has.
    """
    total.columns.add_(part.columns)
    total.rows.add_(part.rows)
    if torch.equal(total.offsets, part.offsets):
        total.band.add_(part.band)
        return total
    offsets, band = torch.cat([total.offsets, part.offsets]).unique(), total.band
    if len(offsets) > len(total.offsets):
        band = band.new_zeros(len(band), len(offsets))
        band[:, torch.searchsorted(offsets, total.offsets)] = total.band
    band.index_add_(1, torch.searchsorted(offsets, part.offsets), part.band)
    return total._replace(offsets=offsets, band=band)
