"""Attention probabilities of a model while it runs, one head at a time: nothing of size layers × heads × S × W exists.

Letters: S sequence, H heads, D head dimension, C hidden size, G global tokens, W = left + 1 + right width of the band,
R rows that are kept whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.kernels import Tokens, banded_scores, sliding_window_probabilities
from longformer.kernels.masks import Pattern
from longformer.models.attention import LongformerSelfAttention
from longformer.models.heads import LongformerForQuestionAnswering


class Attention(NamedTuple):
    """Attention probabilities of one head, or the mean of several heads, over one sequence. On the CPU, in float32.

    The probabilities of a row sum to 1. Those of some rows are in ``rows``: of the global tokens, and in a layer that
    has no window of all tokens. Those of any other token are in ``columns`` and ``band``: a token that is both global
    and inside the window counts once, in ``columns``.

    global_index: (G,) int64, the positions of the global tokens, in ascending order.
    offsets: (W,) int64, in ascending order. One head has the offsets (c - left)·d, where d is its dilation. A mean has
        the offsets of all its heads. Without a window there are none.
    band: (S, W): column c of row i is its probability for token i + offsets[c].
    columns: (S, G): probabilities for the global tokens.
    row_index: (R,) int64, the tokens whose probabilities are in ``rows``, in ascending order.
    rows: (R, S): probabilities from these tokens to every token.
    """

    global_index: Tensor
    offsets: Tensor
    band: Tensor
    columns: Tensor
    row_index: Tensor
    rows: Tensor

    def seen(self) -> int:
        """How many probabilities are not 0."""
        return sum(int(part.count_nonzero()) for part in (self.band, self.columns, self.rows))


@dataclass(frozen=True)
class Layer:
    """What a layer's attention was given over one sequence without padding. Its probabilities are computed from that.

    Args:
        module: the layer's attention.
        pattern: its pattern, any one. If it has a window, its dilation is one number for each head, and at most S.
        hidden: (S, C), what it was given.
        index: (G,) int64, the positions of the global tokens, in ascending order.
    """

    module: LongformerSelfAttention
    pattern: Pattern
    hidden: Tensor
    index: Tensor

    @classmethod
    def of(cls, module: LongformerSelfAttention, hidden: Tensor, tokens: Tokens) -> Layer:
        """From the arguments of ``module``: ``hidden`` is (1, S, C)."""
        (hidden,) = hidden.detach()
        none = torch.zeros(0, dtype=torch.int64, device=hidden.device)
        index = none if tokens.is_global is None else tokens.is_global[0].nonzero().flatten()
        pattern = module.pattern
        if pattern.window is not None:
            gaps = tuple(min(gap, len(hidden)) for gap in pattern.gaps(module.num_heads))
            pattern = replace(pattern, dilation=gaps)
        return cls(module, pattern, hidden, index)

    def heads(self) -> Iterator[Attention]:
        """The attention of each head, from the first to the last."""
        with torch.no_grad():
            queries, keys = self._split(self.module.query), self._split(self.module.key)
            global_queries = self._split(self.module.query_global, self.hidden[self.index])
            global_keys = self._split(self.module.key_global)
            for head in range(self.module.num_heads):
                rows = global_queries[head] @ global_keys[head].T * self.module.head_dim**-0.5
                if self.pattern.causal:
                    later = torch.arange(len(self.hidden), device=rows.device) > self.index[:, None]
                    rows = rows.masked_fill(later, float("-inf"))
                yield self._attention(head, queries[head], keys[head], rows.softmax(dim=-1))

    def products(self, gradients: Sequence[Tensor]) -> Iterator[list[Attention]]:
        """Of each head, for each of several scores: each probability times the score's gradient with respect to it.

        Products below 0 are given as 0. The probabilities of a head are computed once for all scores.

        Args:
            gradients: of each score, (S, C): its gradient with respect to what the layer's attention gives. Of it
                follows that for the probability of row i for token j: the head's part of row i times the value of
                token j.
        """
        with torch.no_grad():
            values, global_values = self._split(self.module.value), self._split(self.module.value_global)
            heads = self.module.num_heads
            parts = [x.float().unflatten(-1, (heads, self.module.head_dim)).transpose(0, 1) for x in gradients]
            for head, attention in enumerate(self.heads()):
                given = head, values[head], global_values[head]
                yield [self._product(attention, slope[head], *given) for slope in parts]

    def _product(
        self, attention: Attention, slope: Tensor, head: int, value: Tensor, global_value: Tensor
    ) -> Attention:
        """A head's probabilities times one score's gradient; ``slope`` and the values are (S, D)."""
        index, row_index = (x.to(slope.device) for x in (attention.global_index, attention.row_index))
        rows = slope[row_index] @ value.T
        rows[torch.isin(row_index, index)] = slope[index] @ global_value.T
        columns = slope @ value[index].T
        band = attention.band
        if self.pattern.window is not None:
            gap = self.pattern.gaps(self.module.num_heads)[head]
            band = banded_scores(slope[None, None], value[None, None], self.pattern.window, gap)[0, 0].cpu()
        return attention._replace(
            band=(attention.band * band).clamp(min=0),
            columns=(attention.columns * columns.cpu()).clamp(min=0),
            rows=(attention.rows * rows.cpu()).clamp(min=0),
        )

    def _split(self, projection: Any, hidden: Tensor | None = None) -> Tensor:
        """(rows, C) to (H, rows, D). The softmax is taken in float32 whatever the projection gives."""
        projected: Tensor = projection(self.hidden if hidden is None else hidden).float()
        return projected.unflatten(-1, (self.module.num_heads, self.module.head_dim)).transpose(0, 1)

    def _attention(self, head: int, query: Tensor, key: Tensor, rows: Tensor) -> Attention:
        """Of one head, whose query and key are (S, D), and whose rows of global tokens are (G, S)."""
        index, seq_len = self.index, len(query)
        is_global = torch.zeros(1, seq_len, dtype=torch.bool, device=query.device)
        is_global[0, index] = True
        pattern = self.pattern.of_head(head, self.module.num_heads)
        found = sliding_window_probabilities(query[None, None], key[None, None], pattern=pattern, global_mask=is_global)
        if pattern.window is None:
            whole = found.dense(pattern)[0, 0]
            whole[index] = rows
            every = torch.arange(seq_len)
            nothing = torch.zeros(seq_len, 0)
            return Attention(index.cpu(), every[:0], nothing, torch.zeros(seq_len, len(index)), every, whole.cpu())
        left, right = pattern.window
        found = found.with_global_columns_apart(pattern)
        band, columns = found.band[0, 0], found.columns[0, 0]
        band[index], columns[index] = 0, 0  # the model replaces these rows
        offsets = torch.arange(-left, right + 1) * pattern.gaps(1)[0]
        return Attention(index.cpu(), offsets, band.cpu(), columns.cpu(), index.cpu(), rows.cpu())


Sink = Callable[[Layer, Tensor], None]


@contextmanager
def observed(model: LongformerForQuestionAnswering, sink: Sink) -> Iterator[None]:
    """While this is open, ``sink`` is given each layer that computes one sequence without padding, and what it gives.

    The layer's probabilities are computed from the same states that it was given. The model itself goes on with the
    kernel that it uses, and its result does not change. What it gives is (1, S, C), as the model goes on with it.
    """
    thread = threading.get_ident()

    def hook(module: LongformerSelfAttention, arguments: tuple[Any, ...], output: Tensor) -> None:
        if threading.get_ident() == thread:  # another thread may use the same model for something else
            hidden, tokens, *_ = arguments
            sink(Layer.of(module, hidden, tokens), output)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LongformerSelfAttention):
                stack.callback(module.register_forward_hook(hook).remove)
        yield


def mean_of_heads(heads: Iterable[Attention]) -> Attention:
    """The mean of a layer's heads, of which there is at least one. They may be changed."""
    (mean,) = means_of_heads([attention] for attention in heads)
    return mean


def means_of_heads(heads: Iterable[list[Attention]]) -> list[Attention]:
    """As :func:`mean_of_heads`, of several attentions at once: each head gives a list of equal length."""
    totals: list[Attention] = []
    count = 0
    for parts in heads:
        totals = [added(total, part) for total, part in zip(totals, parts, strict=True)] if count else parts
        count += 1
    for total in totals:
        for part in (total.band, total.columns, total.rows):
            part /= count
    return totals


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
