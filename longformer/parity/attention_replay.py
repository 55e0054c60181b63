"""Attention computed again in float64 from a run's own recorded values, with whatever mistake is wanted.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from longformer.kernels import AttentionPattern
from longformer.kernels.softmax import masked_softmax
from longformer.parity.probabilities import global_rows
from longformer.parity.scene import LackingError, Scene

OTHER_PATTERN = "a layer with a window"  # what is lacking where a layer attends in another way
DENSE = 1500  # tokens up to which dense attention is replayed: S² numbers a head in float64


def band_of(scene: Scene) -> AttentionPattern:
    """The layer's window, with its dilation.

    Raises:
        LackingError: the layer attends in another way: fully, by a union, a function or global tokens of its own.
    """
    entry = scene.config.attention_pattern
    if entry is not None:
        own = entry[scene.layer]
        if own.function is not None or own.union or own.global_tokens is not None:
            raise LackingError(OTHER_PATTERN)
    pattern = scene.config.pattern(scene.layer)
    if not isinstance(pattern, AttentionPattern) or pattern.window is None:
        raise LackingError(OTHER_PATTERN)
    return pattern


class LocalAttention:
    """The local attention of a layer, from a run's own queries, keys and values: (B, H, S, D) each."""

    def __init__(self, scene: Scene) -> None:
        self.query, self.key, self.value = (scene.value(part) for part in ("query", "key", "value"))
        self.seq_len, self.tokens = self.query.shape[2], scene.tokens
        if self.seq_len > DENSE:
            raise LackingError(f"{self.seq_len} tokens")
        self.pattern = band_of(scene)
        self.scale = scene.config.head_dim**-0.5

    @property
    def pairs(self) -> Tensor:
        """(B or 1, H or 1, S, S) bool: the pairs of a row and a column that it should attend to."""
        return self.pattern.pairs(self.seq_len, self.tokens)

    def within(self, band: Tensor, is_global: Tensor | None = None) -> Tensor:
        """The pairs if ``band`` (S, S) were the window, and ``is_global`` (B, S) the global tokens."""
        keep, is_global = self.tokens.keep, self.tokens.is_global if is_global is None else is_global
        pairs = band[None, None]
        pairs = pairs if is_global is None else pairs | is_global[:, None, None, :]
        return pairs if keep is None else pairs & keep[:, None, None, :] & keep[:, None, :, None]

    def scores(self, *, query: Tensor | None = None, key: Tensor | None = None, scale: float | None = None) -> Tensor:
        """(B, H, S, S)."""
        query, key = self.query if query is None else query, self.key if key is None else key
        return (query * (self.scale if scale is None else scale)) @ key.mT

    def attend(self, pairs: Tensor, scores: Tensor | None = None, *, keep_padding: bool = False) -> Tensor:
        """The output over ``pairs``, of the run's own scores by default."""
        probabilities = masked_softmax(self.scores() if scores is None else scores, pairs)
        return self.output(probabilities, keep_padding=keep_padding)

    def output(self, probabilities: Tensor, value: Tensor | None = None, *, keep_padding: bool = False) -> Tensor:
        """(B, H, S, D) of probabilities (B, H, S, S): 0 at global tokens and, if not ``keep_padding``, at padding."""
        rows = probabilities @ (self.value if value is None else value)
        keep = None if keep_padding else self.tokens.keep
        for hidden in (self.tokens.is_global, None if keep is None else ~keep):
            rows = rows if hidden is None else rows.masked_fill(hidden[:, None, :, None], 0)
        return rows


def attend_globally(
    scene: Scene,
    names: tuple[str, str, str] = ("query_global", "key_global", "value_global"),
    *,
    results: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
    pairs: Tensor | None = None,
    mask_padding: bool = True,
    layer: int | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """The rows of the global tokens: (B, H, G, D).

    Args:
        names: of the projections to query, key and value.
        results: (B, S, C) by the name of a projection, in place of what it gives.
        scale: None is 1/sqrt(D).
        pairs: (B or 1, H or 1, S, S) bool, where rows see less than every token.
        layer: whose projections; None is the scene's.
        index: (B, G) positions of the global tokens, -1 behind the last; None is the right ones.
    """
    x, keep = scene.layer_input(), scene.tokens.keep
    index = scene.tokens.global_index if index is None else index
    if index is None:
        raise LackingError("global tokens")
    results = results or {}

    def projected(name: str) -> Tensor:
        found = results[name] if name in results else scene.linear(x, scene.path(f"attention.self.{name}", layer))
        return scene.heads(found)

    query, key, value = (projected(name) for name in names)
    scores = (global_rows(query, index) * (scene.config.head_dim**-0.5 if scale is None else scale)) @ key.mT
    if mask_padding and keep is not None:
        scores = scores.masked_fill(~keep[:, None, None, :], -math.inf)
    if pairs is not None:
        seen = global_rows(pairs.expand(*query.shape[:2], *pairs.shape[2:]), index)
        scores = scores.masked_fill(~(seen | (index < 0)[:, None, :, None]), -math.inf)
    rows = torch.nan_to_num(scores.softmax(-1)) @ value
    return rows.masked_fill((index < 0)[:, None, :, None], 0)
