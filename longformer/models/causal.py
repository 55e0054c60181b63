"""The causal encoder of a language model: windows that look back only, relative positions, and a memory of windows.

It is the plain model of :mod:`longformer.models.layers` with another self-attention in each layer. A row attends to the
tokens of its window before it and to itself (Longformer, arXiv 2004.05150, §4); or to those before it that any mask,
score or union of windows lets it see. Positions are relative, with sinusoids as in Transformer-XL (arXiv 1901.02860,
§3.3), or learned and absolute as in the encoder. No token is global: a global token would see what comes after it.

The score of row i of a head for the token j before it, with relative positions, is

    ((q_i + u) · k_j + (q_i + v) · r_(i-j)) / √D,    r_d = the head's part of W · sinusoids(d),

where the vectors u and v of each head and the matrix W of each layer are learned.

Letters: B batch, S sequence (or new tokens behind a memory), M remembered tokens, H heads, D head dimension, C hidden
size, W = left + 1 width of the window.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.errors import ConfigError, LongformerError
from longformer.kernels import AttentionPattern, MaskPattern, Tokens, attend
from longformer.kernels.masks import Pattern
from longformer.models.attention import AttentionProbabilities
from longformer.models.causal_attention import Attended, dilated_attention, masked_attention, sinusoids
from longformer.models.encoder import LongformerModel
from longformer.models.layers import LongformerLayer, init_weights


class Remembered(NamedTuple):
    """Of one layer.

    key, value: (B, H, M, D) each, of as many of the last tokens as the layer's windows reach.
    places: r of the window's columns by gap, (H, columns, D), which are the same for every token.
    """

    key: Tensor
    value: Tensor
    places: dict[int, Tensor]


class Memory:
    """What a causal model keeps of the tokens that it has read: each layer's window of keys and values.

    It does not grow beyond the windows, however much is read. Only a layer that sees everything keeps
    everything, and one with a mask, of which nobody knows how far back it sees.

    Attributes:
        layers: what each layer remembers; empty before the first token.
        tokens: how many tokens have been read.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Remembered] = {}
        self.tokens = 0


class Behind(NamedTuple):
    """Says to one layer, in place of :class:`Tokens`, that its tokens stand behind those in a memory."""

    memory: Memory
    layer: int


class CausalSelfAttention(nn.Module):
    """Causal sliding-window attention of one layer, up to the output projection.

    Args:
        config: the model's configuration.
        pattern: what its rows see, as :func:`looking_back` has it.
        impl: implementation of the kernels for absolute positions, see :func:`longformer.kernels.choose`. Relative
            positions are computed in plain torch: windows by blocks, a mask as a dense matrix.
    """

    def __init__(self, config: LongformerConfig, pattern: Pattern, *, impl: str = "auto") -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.pattern: Any = pattern  # an AttentionPattern, or a MaskPattern
        self.dropout_p = config.attention_probs_dropout_prob
        self.impl = impl
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.is_relative = config.position_embedding_type == "relative"
        if self.is_relative:
            self.position = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))  # u
            self.position_bias = nn.Parameter(torch.zeros(self.num_heads, self.head_dim))  # v

    def forward(
        self, hidden: Tensor, tokens: Tokens | Behind, probabilities: list[AttentionProbabilities] | None = None
    ) -> Tensor:
        """(B, S, C) to (B, S, C); the rows of padding are 0. A list is given the layer's ``probabilities``.

        Of ``tokens`` that stand behind a memory, the memory is brought up to date.
        """
        if isinstance(tokens, Behind):
            memory, layer = tokens
            out, memory.layers[layer] = self.extend(hidden, memory.layers.get(layer), read=memory.tokens)
            return out
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        if not self.is_relative and probabilities is None:
            dropout_p = self.dropout_p if self.training else 0.0
            out = attend(query, key, value, self.pattern, tokens, dropout_p=dropout_p, impl=self.impl)
        else:
            query, key, value = (tokens.without_padding(x) for x in (query, key, value))
            out = self._attend(query, key, value, keep=tokens.keep, probabilities=probabilities)
        return out.transpose(1, 2).flatten(2)

    def extend(self, hidden: Tensor, before: Remembered | None, *, read: int) -> tuple[Tensor, Remembered]:
        """Attention of new tokens (B, S, C) to what is remembered and to themselves, and what to remember now.

        ``read``: how many tokens stand before the new ones, those included that are not remembered any more.
        """
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        places: dict[int, Tensor] = {}
        if before is not None:
            key, value = torch.cat([before.key, key], 2), torch.cat([before.value, value], 2)
            places = before.places
        out = self._attend(query, key, value, places=places, first_column=read + query.shape[2] - key.shape[2])
        first = max(0, key.shape[2] - self._reach(key.shape[2]))
        # Copies, since a view would keep all that has been read.
        now = Remembered(key[:, :, first:].clone(), value[:, :, first:].clone(), places)
        return out.transpose(1, 2).flatten(2), now

    def _reach(self, tokens: int) -> int:
        """How far back the layer's widest head sees, of so many tokens."""
        reach = 0
        for part in self.pattern.parts if isinstance(self.pattern, MaskPattern) else (self.pattern,):
            if not isinstance(part, AttentionPattern) or part.window is None:
                return tokens
            reach = max(reach, part.window[0] * max(part.gaps(self.num_heads)))
        return reach

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, H, S, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        keep: Tensor | None = None,
        probabilities: list[AttentionProbabilities] | None = None,
        places: dict[int, Tensor] | None = None,
        first_column: int = 0,
    ) -> Tensor:
        """(B, H, S, D) and twice (B, H, M + S, D), the first M of them remembered, to (B, H, S, D).

        ``first_column``: place in the text of the first token that is remembered.
        """
        query = query * self.head_dim**-0.5
        dropout_p = self.dropout_p if self.training else 0.0
        found: list[Attended] = []
        if isinstance(self.pattern, MaskPattern):
            query, scores = self._with_positions(query, slice(None), key.shape[2] - 1, 1, places)
            found.append(
                masked_attention(
                    query, key, value, scores, self.pattern, first_column=first_column, keep=keep, dropout_p=dropout_p
                )
            )
        else:
            left = key.shape[2] - 1 if self.pattern.window is None else self.pattern.window[0]
            for heads, gap in self.pattern.head_runs(self.num_heads):
                # Before the first token there is nothing, so a window that reaches beyond it may be cut.
                sees = left if probabilities is not None else min(left, (key.shape[2] - 1) // gap)
                content, scores = self._with_positions(query, heads, sees, gap, places)
                of_heads = (content, key[:, heads], value[:, heads], scores)
                found.append(dilated_attention(*of_heads, left=sees, gap=gap, keep=keep, dropout_p=dropout_p))
        if probabilities is not None:
            band = torch.cat([part.band() for part in found], 1)
            if self.pattern.window is None:  # as in the encoder: with places for what is later, which are empty
                band = F.pad(band, (0, 2 * band.shape[2] - 1 - band.shape[3]))
            probabilities.append(AttentionProbabilities(band, None, None))
        return torch.cat([part.out for part in found], 1)

    def _with_positions(
        self, query: Tensor, heads: slice, left: int, gap: int, places: dict[int, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Of some heads the scaled queries of contents, and the scores of a window's places, (B, ..., S, left + 1)."""
        query = query[:, heads]
        if not self.is_relative:
            return query, None
        scale = self.head_dim**-0.5
        at = self._places(left, gap, places)[heads]
        scores = (query + scale * self.position_bias[heads, None]) @ at.mT
        return query + scale * self.content_bias[heads, None], scores

    def _places(self, left: int, gap: int, known: dict[int, Tensor] | None) -> Tensor:
        """r of every column of a window, (H, W, D); the last column is the row itself, at distance 0.

        ``known`` holds what has been computed for other rows, and is given more where it lacks some.
        """
        found = None if known is None else known.get(gap)
        if found is None or found.shape[1] <= left:
            # Of a layer that sees everything, twice as many, so that not every new token has to ask again.
            most = 2 * left if known is not None and self.pattern.window is None else left
            distances = torch.arange(most, -1, -1, device=self.position.weight.device) * gap
            at = self.position(sinusoids(distances, self.position.in_features).to(self.position.weight.dtype))
            found = at.unflatten(-1, (self.num_heads, self.head_dim)).transpose(0, 1)
            if known is not None:
                known[gap] = found
        return found[:, found.shape[1] - left - 1 :]


def looking_back(pattern: Pattern, layer: int) -> Pattern:
    """What a layer's pattern sees that is not later than the row.

    Raises:
        ConfigError: the pattern has global tokens.
    """
    named = pattern.global_tokens
    if named is not None and (named.positions or named.every or named.asks_ids):
        raise ConfigError(
            f"the pattern of layer {layer} has global tokens, which would see what comes after them; a causal language "
            "model has none: leave them out, and let a mask see the columns that all shall see"
        )
    pattern = dataclasses.replace(pattern, global_tokens=None)
    if isinstance(pattern, AttentionPattern):
        return pattern.looking_back()
    parts = (part.looking_back() if isinstance(part, AttentionPattern) else part for part in pattern.parts)
    return dataclasses.replace(pattern, parts=tuple(parts), causal=True)


class NoPositions(nn.Module):
    """Stands for the position embeddings where positions are relative: adds nothing."""

    def forward(self, position_ids: Tensor) -> float:
        return 0.0


class LongformerCausalModel(LongformerModel):
    """The encoder whose every layer looks back only: token ids in, a vector a token out.

    Args:
        config: its architecture. With ``position_embedding_type`` "relative" any length can be read.
        impl: implementation of the attention kernels, see :class:`CausalSelfAttention`.
        attention: who attends to whom, as for :class:`LongformerModel`; what is later is left out.

    Raises:
        LongformerError: ``attention`` does not fit the model.
        ConfigError: a pattern has global tokens.
    """

    has_relative_positions = True

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        super().__init__(config, add_pooling_layer=False, impl=impl, attention=attention)
        patterns = self.patterns or [config.pattern(layer) for layer in range(config.num_hidden_layers)]
        patterns = [looking_back(pattern, layer) for layer, pattern in enumerate(patterns)]
        self.patterns = None if self.patterns is None else patterns
        self.is_relative = config.position_embedding_type == "relative"
        if self.is_relative:
            self.embeddings.position_embeddings = NoPositions()  # type: ignore[assignment]
        for layer, pattern in zip(self._layers(), patterns, strict=True):
            layer.attention.self = CausalSelfAttention(config, pattern, impl=impl)  # type: ignore[assignment]
        init_weights(self, config)

    def extend(self, input_ids: Tensor, memory: Memory) -> Tensor:
        """Read further tokens behind those in ``memory``, which is brought up to date: (B, S) int64 to (B, S, C).

        The result is that of the full sequence at these tokens.

        Raises:
            LongformerError: more tokens than there are position embeddings for.
        """
        first, count = memory.tokens, input_ids.shape[1]
        if first + count > self.config.max_tokens:
            raise LongformerError(
                f"the sequence has {first + count} tokens; the model has positions for {self.config.max_tokens}: "
                "ask for fewer tokens, or train a model with relative positions"
            )
        positions = torch.arange(first, first + count, device=input_ids.device).expand(input_ids.shape)
        positions = positions + self.config.pad_token_id + 1
        hidden: Tensor = self.embeddings(input_ids, positions, torch.zeros_like(input_ids))
        for number, layer in enumerate(self._layers()):  # whole layers, so that hooks see and change what they give
            hidden = layer(hidden, Behind(memory, number))
        memory.tokens = first + count
        return hidden

    def _layers(self) -> list[LongformerLayer]:
        return list(self.encoder.layer)  # type: ignore[arg-type]

    def _check_precision(self, inputs_embeds: Tensor) -> None:
        if not self.is_relative:
            super()._check_precision(inputs_embeds)

    def _other_ids(
        self, input_ids: Tensor | None, like: Tensor, position_ids: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if not self.is_relative:
            return super()._other_ids(input_ids, like, position_ids, token_type_ids)
        if position_ids is not None:
            raise LongformerError("position_ids are given, but this model's positions are relative; leave them out")
        zeros = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
        return super()._other_ids(input_ids, like, zeros, token_type_ids)
