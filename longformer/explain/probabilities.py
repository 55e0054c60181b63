"""Attention probabilities of a model while it runs, one head at a time: nothing of size layers × heads × S × W exists.

Letters: S sequence, H heads, D head dimension, C hidden size, G global tokens, W = left + 1 + right width of the band.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.kernels import sliding_window_probabilities
from longformer.models.attention import LongformerSelfAttention
from longformer.models.heads import LongformerForQuestionAnswering


class Attention(NamedTuple):
    """Attention probabilities of one head, or a mean of several, over one sequence. float32, on the CPU.

    A row's probabilities sum to 1: those of a global token stand in ``rows``, those of another in ``columns`` and
    ``band``, where a token that is both global and inside the window counts once, in ``columns``.

    offsets: (W,) int64, ascending: a head's are (c - left)·d, d its dilation; a mean has those of all its heads.
    band: (S, W): column c of row i is its probability for token i + offsets[c].
    columns: (S, G): for the global tokens, in ascending order.
    rows: (G, S): from the global tokens, for every token.
    """

    offsets: Tensor
    band: Tensor
    columns: Tensor
    rows: Tensor


class LayerPattern(NamedTuple):
    """Which tokens may attend to which in a layer.

    window: (left, right).
    dilation: gap between the tokens of the window, one a head; S where it is more, which is the same.
    global_index: (G,) int64, positions of the global tokens, ascending.
    """

    window: tuple[int, int]
    dilation: tuple[int, ...]
    global_index: Tensor


Sink = Callable[[LayerPattern, Iterator[Attention]], None]


@contextmanager
def observed(model: LongformerForQuestionAnswering, sink: Sink) -> Iterator[None]:
    """While this is open, each layer that computes one sequence without padding hands its heads' attention to ``sink``.

    The probabilities are computed by the banded kernel from the very states that the layer is given; the model itself
    goes on with whichever kernel it uses, and comes to the same result.
    """

    def hook(module: LongformerSelfAttention, arguments: tuple[Any, ...]) -> None:
        (hidden,), tokens = arguments  # one sequence without padding
        index = torch.zeros(0, dtype=torch.int64, device=hidden.device)
        index = index if tokens.global_index is None else tokens.global_index[0]
        gaps = tuple(min(gap, len(hidden)) for gap in module.pattern.gaps(module.num_heads))
        pattern = LayerPattern(module.pattern.window or (0, 0), gaps, index.cpu())
        sink(pattern, _heads(module, hidden, index, pattern.dilation))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LongformerSelfAttention):
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _heads(
    module: LongformerSelfAttention, hidden: Tensor, index: Tensor, dilation: tuple[int, ...]
) -> Iterator[Attention]:
    """Attention of each head over the rows of ``hidden`` (S, C)."""

    def split(projection: Any, rows: Tensor) -> Tensor:
        projected: Tensor = projection(rows).float()  # the softmax is taken in float32 whatever the projection gives
        return projected.unflatten(-1, (module.num_heads, module.head_dim)).transpose(0, 1)  # (H, S, D)

    window = module.pattern.window or (0, 0)
    queries, keys = split(module.query, hidden), split(module.key, hidden)
    global_queries, global_keys = split(module.query_global, hidden[index]), split(module.key_global, hidden)
    for head in range(module.num_heads):
        gap = dilation[head]
        offsets = torch.arange(-window[0], window[1] + 1) * gap
        band, columns = local_probabilities(queries[head], keys[head], window, gap, index)
        scores = global_queries[head] @ global_keys[head].T * module.head_dim**-0.5
        yield Attention(offsets, band.cpu(), columns.cpu(), scores.softmax(dim=-1).cpu())


def local_probabilities(
    query: Tensor, key: Tensor, window: tuple[int, int], dilation: int, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Band (S, W) and global columns (S, G) of the rows that are not global, from (S, D) query and key.

    Rows of the global tokens ``index`` (G,) are 0 in both.
    """
    seq_len = len(query)
    is_global = torch.zeros(1, seq_len, dtype=torch.bool, device=query.device)
    is_global[0, index] = True
    found = sliding_window_probabilities(
        query[None, None], key[None, None], window, dilation=dilation, global_mask=is_global
    )
    band, columns = found.band[0, 0], found.columns[0, 0]
    # The kernel leaves a global token that is inside the band where it is: it moves to its column.
    step = index - torch.arange(seq_len, device=query.device)[:, None]  # (S, G)
    place = step // dilation + window[0]
    row, which = ((step % dilation == 0) & (place >= 0) & (place < band.shape[1])).nonzero(as_tuple=True)
    columns[row, which] += band[row, place[row, which]]
    band[row, place[row, which]] = 0
    band[index], columns[index] = 0, 0
    return band, columns


def added(total: Attention, part: Attention) -> Attention:
    """The sum of two, token by token: heads of different dilation have different tokens in their bands.

    ``total`` is changed, and is the result unless its band lacks a token of the other.
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
    return Attention(offsets, band, total.columns, total.rows)
