"""The causal encoder of a language model: windows that look back only, relative positions, and a memory of windows.

It is the plain model of :mod:`longformer.models.layers` with another self-attention in each layer. A row attends to the
tokens of its window before it and to itself (Longformer, arXiv 2004.05150, §4). Positions are relative, with sinusoids
as in Transformer-XL (arXiv 1901.02860, §3.3), or learned and absolute as in the encoder. No token is global: a global
token would see what comes after it.

The score of row i of a head for the token j before it, with relative positions, is

    ((q_i + u) · k_j + (q_i + v) · r_(i-j)) / √D,    r_d = the head's part of W · sinusoids(d),

where the vectors u and v of each head and the matrix W of each layer are learned.

Letters: B batch, S sequence (or new tokens behind a memory), M remembered tokens, H heads, D head dimension, C hidden
size, W = left + 1 width of the window, n rows of a block, L = left + n columns that a block of rows can see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.errors import ConfigError, LongformerError
from longformer.kernels import AttentionPattern, Tokens, attend
from longformer.kernels.masks import Pattern
from longformer.models.attention import AttentionProbabilities
from longformer.models.encoder import LongformerModel
from longformer.models.layers import LongformerLayer, init_weights

LEAST_BLOCK = 32  # rows; smaller blocks are more products than work


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

    It does not grow beyond the windows, however much is read; only a layer that sees everything keeps everything.

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
        layer: number of the layer, which decides its window and its heads' dilation.
        impl: implementation of the kernels for absolute positions, see :func:`longformer.kernels.choose`. Relative
            positions are computed by blocks in plain torch.
    """

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str = "auto") -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.pattern = looking_back(config.pattern(layer), layer)
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
            out, tokens.memory.layers[tokens.layer] = self.extend(hidden, tokens.memory.layers.get(tokens.layer))
            return out
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        if not self.is_relative and probabilities is None:
            dropout_p = self.dropout_p if self.training else 0.0
            out = attend(query, key, value, self.pattern, tokens, dropout_p=dropout_p, impl=self.impl)
        else:
            query, key, value = (tokens.without_padding(x) for x in (query, key, value))
            out = self._attend(query, key, value, keep=tokens.keep, probabilities=probabilities)
        return out.transpose(1, 2).flatten(2)

    def extend(self, hidden: Tensor, before: Remembered | None) -> tuple[Tensor, Remembered]:
        """Attention of new tokens (B, S, C) to what is remembered and to themselves, and what to remember now."""
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        places: dict[int, Tensor] = {}
        if before is not None:
            key, value = torch.cat([before.key, key], 2), torch.cat([before.value, value], 2)
            places = before.places
        out = self._attend(query, key, value, places=places)
        first = max(0, key.shape[2] - self._reach(key.shape[2]))
        # Copies, since a view would keep all that has been read.
        now = Remembered(key[:, :, first:].clone(), value[:, :, first:].clone(), places)
        return out.transpose(1, 2).flatten(2), now

    def _reach(self, tokens: int) -> int:
        """How far back the layer's widest head sees, of so many tokens."""
        if self.pattern.window is None:
            return tokens
        return self.pattern.window[0] * max(self.pattern.gaps(self.num_heads))

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
    ) -> Tensor:
        """(B, H, S, D) and twice (B, H, M + S, D), the first M of them remembered, to (B, H, S, D)."""
        scale = self.head_dim**-0.5
        query = query * scale
        parts, bands = [], []
        left = key.shape[2] - 1 if self.pattern.window is None else self.pattern.window[0]
        for heads, gap in self.pattern.head_runs(self.num_heads):
            # Before the first token there is nothing, so a window that reaches beyond it may be cut.
            sees = left if probabilities is not None else min(left, (key.shape[2] - 1) // gap)
            content, scores = query[:, heads], None
            if self.is_relative:
                at = self._places(sees, gap, places)[heads]
                scores = (content + scale * self.position_bias[heads, None]) @ at.mT
                content = content + scale * self.content_bias[heads, None]
            found = dilated_attention(
                content,
                key[:, heads],
                value[:, heads],
                scores,
                left=sees,
                gap=gap,
                keep=keep,
                dropout_p=self.dropout_p if self.training else 0.0,
            )
            parts.append(found.out)
            if probabilities is not None:
                bands.append(found.band())
        if probabilities is not None:
            probabilities.append(AttentionProbabilities(torch.cat(bands, 1), None, None))
        return torch.cat(parts, 1)

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


class Attended(NamedTuple):
    """out: (B, H, S, D). band: makes (B, H, S, W), the probabilities before dropout; 0 where there is no token."""

    out: Tensor
    band: Callable[[], Tensor]


def looking_back(pattern: Pattern, layer: int) -> AttentionPattern:
    """A layer's pattern with the part of its window that looks back, and no other.

    Raises:
        ConfigError: the pattern is no window, or has global tokens.
    """
    if not isinstance(pattern, AttentionPattern) or pattern.global_tokens is not None:
        raise ConfigError(
            f"the pattern of layer {layer} is a union or has global tokens; a causal language model attends to a "
            "window, or to everything before: give attention_pattern window=N or full"
        )
    window = None if pattern.window is None else (pattern.window[0], 0)
    return dataclasses.replace(pattern, window=window, causal=True)


def sinusoids(distances: Tensor, size: int) -> Tensor:
    """Sines of the distances, then cosines, with wavelengths from 2π to 10,000·2π: (W,) to (W, size) in float64."""
    half = (size + 1) // 2
    numbers = torch.arange(half, device=distances.device, dtype=torch.float64)
    frequencies = torch.exp(numbers * (-math.log(10_000.0) / half))
    angles = distances[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :size]


def dilated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_scores: Tensor | None,
    *,
    left: int,
    gap: int,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Attended:
    """Attention of every row to itself and to ``left`` tokens before it, each ``gap`` before the next.

    Tokens whose numbers differ by a multiple of the gap are sequences of their own, and have windows without a gap.

    Args:
        query: (B, H, S, D), scaled, of the last S tokens.
        key, value: (B, H, M + S, D).
        position_scores: (B, H, S, W), added to the scores; None adds nothing.
        left: tokens that a row sees before itself.
        gap: from one to the next.
        keep: (B, M + S) bool, False at padding; None if there is none.
        dropout_p: of the probabilities.
    """
    if gap == 1:
        return window_attention(query, key, value, position_scores, left=left, keep=keep, dropout_p=dropout_p)
    batch, rows = query.shape[0], query.shape[2]
    front, back = -(key.shape[2] - rows) % gap, -rows % gap

    def apart(x: Tensor, front: int) -> Tensor:
        """(B, H, N, D) to (B·gap, H, N / gap, D), after a filling that makes N a multiple of the gap."""
        x = F.pad(x, (0, 0, front, back)).unflatten(2, (-1, gap))
        return x.movedim(3, 1).flatten(0, 1)

    there = torch.ones(batch, key.shape[2], dtype=torch.bool, device=key.device) if keep is None else keep
    found = window_attention(
        apart(query, 0),
        apart(key, front),
        apart(value, front),
        None if position_scores is None else apart(position_scores, 0),
        left=left,
        keep=apart(there[:, None, :, None], front)[:, 0, :, 0],
        dropout_p=dropout_p,
    )

    def together(x: Tensor) -> Tensor:
        return x.unflatten(0, (batch, gap)).movedim(1, 3).flatten(2, 3)[:, :, :rows]

    return Attended(together(found.out), lambda: together(found.band()))


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_scores: Tensor | None,
    *,
    left: int,
    keep: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Attended:
    """As :func:`dilated_attention` with a gap of 1. Time and memory are linear in the number of rows."""
    rows, old = query.shape[2], key.shape[2] - query.shape[2]
    block = min(rows, max(left, LEAST_BLOCK))
    back = -rows % block
    columns = left + block
    front = left - old  # negative where more is remembered than the window reaches

    def blocks(x: Tensor) -> Tensor:
        """(B, H, M + S, D) to (B, H, blocks, D, L)."""
        return F.pad(x, (0, 0, front, back)).unfold(2, columns, block)

    scores = F.pad(query, (0, 0, 0, back)).unflatten(2, (-1, block)) @ blocks(key)
    wide = torch.promote_types(scores.dtype, torch.float32)
    if position_scores is None:
        position_scores = scores.new_zeros(1, 1, rows, left + 1)
    beside = F.pad(position_scores.to(wide), (0, 0, 0, back)).unflatten(2, (-1, block))
    scores = scores.to(wide) + _to_columns(beside, columns)
    there = torch.ones(1, key.shape[2], dtype=torch.bool, device=key.device) if keep is None else keep
    there = F.pad(there, (front, back)).unfold(1, columns, block)[:, None, :, None]  # (B or 1, 1, blocks, 1, L)
    itself = torch.ones(block, columns, dtype=torch.bool, device=key.device).triu(left).tril(left)
    probs = scores.masked_fill(~(there | itself), float("-inf")).softmax(-1).to(value.dtype)
    out = F.dropout(probs, dropout_p) @ blocks(value).mT
    out = out.flatten(2, 3)[:, :, :rows]
    is_padding = None if keep is None else ~keep[:, None, old:, None]
    if is_padding is not None:
        out = out.masked_fill(is_padding, 0)

    def band() -> Tensor:
        found = _to_band(probs, left + 1).flatten(2, 3)[:, :, :rows]
        return found if is_padding is None else found.masked_fill(is_padding, 0)

    return Attended(out, band)


def _to_columns(band: Tensor, columns: int) -> Tensor:
    """(..., n, W) to (..., n, L): column c of row i becomes column i + c, and -inf stands beside the window."""
    block = band.shape[-2]
    filled = F.pad(band, (0, block), value=float("-inf"))  # L + 1 columns, so that each row begins one later
    return filled.flatten(-2)[..., : block * columns].unflatten(-1, (block, columns))


def _to_band(dense: Tensor, width: int) -> Tensor:
    """(..., n, L) to (..., n, W), the inverse of :func:`_to_columns`."""
    block, columns = dense.shape[-2:]
    return F.pad(dense.flatten(-2), (0, block)).unflatten(-1, (block, columns + 1))[..., :width]


class NoPositions(nn.Module):
    """Stands for the position embeddings where positions are relative: adds nothing."""

    def forward(self, position_ids: Tensor) -> float:
        return 0.0


class LongformerCausalModel(LongformerModel):
    """The encoder whose every layer looks back only: token ids in, a vector a token out.

    Args:
        config: its architecture. With ``position_embedding_type`` "relative" any length can be read.
        impl: implementation of the attention kernels, see :class:`CausalSelfAttention`.
    """

    has_relative_positions = True

    def __init__(self, config: LongformerConfig, *, impl: str = "auto") -> None:
        super().__init__(config, add_pooling_layer=False, impl=impl)
        self.is_relative = config.position_embedding_type == "relative"
        if self.is_relative:
            self.embeddings.position_embeddings = NoPositions()  # type: ignore[assignment]
        for number, layer in enumerate(self._layers()):
            layer.attention.self = CausalSelfAttention(config, number, impl=impl)  # type: ignore[assignment]
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
