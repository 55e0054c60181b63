"""LongformerSelfAttention: project, attend locally, attend globally, merge (arXiv 2004.05150, §3.1).

Letters: B batch, S sequence, H heads, D head dimension, C = H·D hidden size, W width of the window, G global tokens of
the example that has most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import (
    AttentionPattern,
    BandProbabilities,
    Tokens,
    attend,
    attend_globally,
    sliding_window_probabilities,
)
from longformer.kernels.masks import Pattern
from longformer.models.batch import make_tokens


class AttentionProbabilities(NamedTuple):
    """A layer's attention probabilities, before dropout.

    band: (B, H, S, W). Column c of row i is its probability for token i + (c - left)·d, where d is the head's dilation.
        If that token is global, the band has 0, and the probability is in ``columns``.
    columns: (B, H, S, G), for the global tokens in ascending order, filled up with 0; None if no token is global. Rows
        of global tokens are 0 here and in the band.
    rows: (B, H, G, S), of the global tokens, filled up with 0; None likewise.
    """

    band: Tensor
    columns: Tensor | None
    rows: Tensor | None


class LongformerSelfAttention(nn.Module):
    """Sliding-window and global attention of one layer, up to the output projection.

    Every token attends to its window and to the global tokens, through ``query``, ``key`` and ``value``. A global token
    attends to every token instead, through projections of its own.

    Args:
        config: the model's configuration.
        layer: number of the layer, which decides its window and its heads' dilation.
        impl: implementation of the kernels, see :func:`longformer.kernels.choose`.

    Attributes:
        pattern: who attends to whom, without global tokens of its own.
        has_own_tokens: whether these have come into the tokens that ``forward`` is given.
    """

    has_own_tokens = False

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str = "auto") -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.pattern: Any  # an AttentionPattern, or a MaskPattern
        self.set_pattern(config.pattern_without_function(layer))
        self.dropout_p = config.attention_probs_dropout_prob
        self.impl = impl
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.query_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.value_global = nn.Linear(config.hidden_size, config.hidden_size)

    def set_pattern(self, pattern: Pattern) -> None:
        """Who attends to whom. Its own global tokens have come into ``tokens`` when the layer is called."""
        self.pattern = replace(pattern, global_tokens=None)
        self.has_own_tokens = pattern.global_tokens is not None

    def forward(
        self, hidden: Tensor, tokens: Tokens, probabilities: list[AttentionProbabilities] | None = None
    ) -> Tensor:
        """(B, S, C) to (B, S, C); the rows of padding are 0. A list is given the layer's ``probabilities``."""
        dropout_p = self.dropout_p if self.training else 0.0
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        global_query = global_key = None
        out = attend(query, key, value, self.pattern, tokens, dropout_p=dropout_p, impl=self.impl)
        if tokens.is_global is not None:
            parts = (self.query_global, self.key_global, self.value_global)
            global_query, global_key, global_value = (self._split(part(hidden)) for part in parts)
            options: dict[str, Any] = {"causal": self.pattern.causal, "dropout_p": dropout_p, "impl": self.impl}
            rows = attend_globally(global_query, global_key, global_value, tokens, **options)
            out = torch.where(tokens.is_global[:, None, :, None], rows, out)
        if probabilities is not None:
            probabilities.append(attention_probabilities(query, key, self.pattern, tokens, global_query, global_key))
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, H, S, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def attention_probabilities(
    query: Tensor,
    key: Tensor,
    pattern: Pattern,
    tokens: Tokens,
    global_query: Tensor | None = None,
    global_key: Tensor | None = None,
) -> AttentionProbabilities:
    """The probabilities of a layer, from its local and, if a token is global, its global projections, (B, H, S, D)."""
    found = sliding_window_probabilities(
        query, key, pattern=pattern, key_mask=tokens.keep, global_mask=tokens.is_global
    )
    if tokens.is_global is None or global_query is None or global_key is None:
        return AttentionProbabilities(found.band, None, None)
    band, columns, index = found.with_global_columns_apart(pattern)
    is_replaced = tokens.is_global[:, None, :, None]
    absent = (index < 0)[:, None, :, None]
    queries = torch.take_along_dim(global_query, index.clamp(min=0)[:, None, :, None], dim=2)
    # Scores of float16 may be larger than its largest number.
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (queries.to(wide) * query.shape[-1] ** -0.5) @ tokens.without_padding(global_key).to(wide).mT
    if tokens.keep is not None:
        scores = scores.masked_fill(~tokens.keep[:, None, None, :], float("-inf"))
    if pattern.causal:
        later = torch.arange(scores.shape[-1], device=index.device) > index[:, None, :, None]
        scores = scores.masked_fill(later, float("-inf"))
    rows = scores.masked_fill(absent, 0).softmax(-1).masked_fill(absent, 0).to(query.dtype)
    return AttentionProbabilities(band.masked_fill(is_replaced, 0), columns.masked_fill(is_replaced, 0), rows)


def attentions_to_dense(
    attention: Tensor,
    global_attention: Tensor | None = None,
    *,
    attention_mask: Tensor | None = None,
    global_attention_mask: Tensor | None = None,
    pattern: Pattern | None = None,
) -> Tensor:
    """One layer's attention probabilities as a matrix, from what ``output_attentions=True`` gives, ours or theirs.

    Args:
        attention: (B, H, S, G + W), an entry of ``attentions``.
        global_attention: (B, H, S, G), the entry of ``global_attentions``, if a token is global.
        attention_mask, global_attention_mask: (B, S), what the model was given, with the tokens that it made global.
        pattern: the layer's, such as ``config.pattern(layer)``. If None, a window of equal sides without dilation.

    Returns:
        (B, H, S, S): row i holds the probabilities of token i for all tokens. Rows of padding are 0.

    Raises:
        LongformerError: the shapes do not belong together.
    """
    if not isinstance(attention, Tensor) or attention.dim() != 4:
        what = (
            f"has shape {tuple(attention.shape)}"
            if isinstance(attention, Tensor)
            else f"is a {type(attention).__name__}"
        )
        raise LongformerError(f"attention {what}; it must be one layer's (B, H, S, G + W), such as attentions[0]")
    batch, _, seq_len, width = attention.shape
    tokens = make_tokens(attention[:, 0, :, 0], attention_mask, global_attention_mask).with_index(counted=True)
    index = tokens.global_index
    count = 0 if index is None else index.shape[1]
    left = max(0, (width - count - 1) // 2)
    pattern = AttentionPattern((left, left)) if pattern is None else pattern
    expected = 2 * seq_len - 1 if pattern.window is None else sum(pattern.window) + 1
    if expected != width - count:
        raise LongformerError(
            f"attention has {width} columns, but {count} global tokens and the window {pattern.window} take "
            f"{count + expected}; give the masks that the model was given, and the layer's pattern"
        )
    if index is None and global_attention is not None and global_attention.shape[-1]:
        raise LongformerError("global_attention is given, but the masks make no token global; give those of the model")
    if index is None:
        nothing = attention.new_zeros(batch, 0, dtype=torch.int64)
        return BandProbabilities(attention, attention[..., :0], nothing).dense(pattern)
    if global_attention is None or global_attention.shape[-1] != count:
        raise LongformerError(
            f"global_attention is {None if global_attention is None else tuple(global_attention.shape)}, but {count} "
            "tokens are global; give the layer's entry of global_attentions"
        )
    dense = BandProbabilities(attention[..., count:], attention[..., :count], index).dense(pattern)
    rows = global_attention[:, :, :seq_len].masked_fill((index < 0)[:, None, None, :], 0).mT
    return dense.scatter_add(2, index.clamp(min=0)[:, None, :, None].expand_as(rows), rows)
