"""The slips that ports make in attention itself: windows, masks, scales, global columns and global rows.

Letters as in :mod:`longformer.parity.slips`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from longformer.kernels import Tokens
from longformer.kernels.pattern import EVERYTHING
from longformer.kernels.softmax import masked_softmax
from longformer.parity.probabilities import global_rows
from longformer.parity.slips import Scene, Slip

DENSE = 1500  # tokens up to which dense attention is computed again
PROJECTIONS = ("query_global", "key_global", "value_global")


class LocalAttention:
    """The local attention of a layer, computed again from a run's own queries, keys and values: (B, H, S, D) each."""

    def __init__(self, scene: Scene) -> None:
        self.query, self.key, self.value = scene.value("query"), scene.value("key"), scene.value("value")
        self.seq_len, self.tokens = self.query.shape[2], scene.tokens
        self.pattern = scene.config.pattern(scene.layer)
        self.scale = scene.config.head_dim**-0.5
        bias = scene.weight("attention.self.query.bias")
        self.query_bias = scene.heads(bias.expand(*self.query.shape[:1], self.seq_len, -1))

    @property
    def pairs(self) -> Tensor:
        """(B, H, S, S) bool: the pairs of a row and a column that it should attend to."""
        return self.pattern.pairs(self.seq_len, self.tokens)

    def attend(
        self,
        pairs: Tensor,
        *,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        scale: float | None = None,
        twice: Tensor | None = None,
        keep_padding: bool = False,
    ) -> Tensor:
        """The output over ``pairs`` (B, H or 1, S, S); the pairs in ``twice``, of that shape, have twice the weight."""
        query, key = self.query if query is None else query, self.key if key is None else key
        scores = (query * (self.scale if scale is None else scale)) @ key.transpose(2, 3)
        if twice is not None:
            scores = scores + math.log(2) * twice
        rows = masked_softmax(scores, pairs) @ (self.value if value is None else value)
        for hidden in (self.tokens.is_global, None if keep_padding or self.tokens.keep is None else ~self.tokens.keep):
            rows = rows if hidden is None else rows.masked_fill(hidden[:, None, :, None], 0)
        return rows


def local_output(scene: Scene) -> Iterator[Slip]:
    """(B, H, S, D): the attention of the tokens that are not global."""
    local = LocalAttention(scene)
    if local.seq_len > DENSE:
        return
    yield from _windows(local)
    yield from _global_columns(local)
    yield from _scales(scene, local)
    yield from _padding(local)
    text = "keys and values are swapped"
    yield text, local.attend(local.pairs, key=local.value, value=local.key)


def _windows(local: LocalAttention) -> Iterator[Slip]:
    pattern = local.pattern
    assert pattern.window is not None
    left, right = pattern.window
    for name, window in (
        ("one token too few on each side", (left - 1, right - 1)),
        ("one token too many on each side", (left + 1, right + 1)),
        ("one token too few on the left", (left - 1, right)),
        ("one token too few on the right", (left, right - 1)),
        ("one token too many on the left", (left + 1, right)),
        ("one token too many on the right", (left, right + 1)),
        ("moved left by one", (left + 1, right - 1)),
        ("moved right by one", (left - 1, right + 1)),
        ("twice as wide (one-sided and two-sided windows confused)", (2 * left, 2 * right)),
        ("half as wide (one-sided and two-sided windows confused)", (left // 2, right // 2)),
        ("without its right side (causal)", (left, 0)),
    ):
        if min(window) >= 0:
            pairs = replace(pattern, window=window).pairs(local.seq_len, local.tokens)
            yield f"the window is off: {name}; it should be ({left}, {right})", local.attend(pairs)
    everything = EVERYTHING.pairs(local.seq_len, local.tokens)
    yield "every token attends to every token: there is no window", local.attend(everything)
    gaps = pattern.gaps(local.query.shape[1])
    if set(gaps) != {1}:
        text = f"the window is not dilated; by head it should be {gaps}"
        yield text, local.attend(replace(pattern, dilation=1).pairs(local.seq_len, local.tokens))


def _global_columns(local: LocalAttention) -> Iterator[Slip]:
    if local.tokens.is_global is None:
        return
    band = local.pattern.pairs(local.seq_len, Tokens(local.tokens.keep))
    columns = local.tokens.is_global[:, None, None, :]
    text = "a global column inside the band is counted twice"
    yield text, local.attend(local.pairs, twice=(band & columns).double())
    yield "global columns outside the band are missing", local.attend(band)
    yield "global columns are missing, inside the band too", local.attend(band & ~columns)


def _scales(scene: Scene, local: LocalAttention) -> Iterator[Slip]:
    bias, pairs = local.query_bias, local.pairs
    text = "the scale is applied before the query's bias is added (it belongs behind)"
    yield text, local.attend(pairs, query=(local.query - bias) + bias / local.scale)
    yield "the scale 1/sqrt(D) is left out", local.attend(pairs, scale=1.0)
    yield "the scale 1/sqrt(D) is applied twice", local.attend(pairs, scale=local.scale**2)
    yield "the scale is 1/sqrt(C) instead of 1/sqrt(D)", local.attend(pairs, scale=scene.config.hidden_size**-0.5)


def _padding(local: LocalAttention) -> Iterator[Slip]:
    keep = local.tokens.keep
    if keep is None:
        return
    unmasked = local.pattern.pairs(local.seq_len, local.tokens._replace(keep=None))
    yield "padded columns are not masked", local.attend(unmasked)
    text = "padded columns are not masked, and padded rows are not zeroed"
    yield text, local.attend(unmasked, keep_padding=True)
    masked_columns = unmasked & keep[:, None, None, :]
    yield "padded rows are not zeroed", local.attend(masked_columns, keep_padding=True)


def rows_of_global_tokens(scene: Scene) -> Iterator[Slip]:
    """(B, H, G, D): the attention of the global tokens."""
    if scene.tokens.global_index is None:
        return
    yield from _global_projections(scene)
    if scene.layer_input().shape[1] <= DENSE:
        local = LocalAttention(scene)
        scores = (local.query * local.scale) @ local.key.transpose(2, 3)
        rows = masked_softmax(scores, local.pairs) @ local.value
        text = "global rows are left as the local attention has them"
        yield text, global_rows(rows, scene.tokens.global_index)
    for layer in range(scene.config.num_hidden_layers):
        if layer != scene.layer:
            text = f"the global projections are those of layer {layer}"
            yield text, _attend_globally(scene, *PROJECTIONS, layer=layer)


def _global_projections(scene: Scene) -> Iterator[Slip]:
    text = "the local projections are used for global rows"
    yield text, _attend_globally(scene, "query", "key", "value")
    for i, name in enumerate(PROJECTIONS):
        names = list(PROJECTIONS)
        names[i] = name.removesuffix("_global")
        yield f"global rows use {names[i]} instead of {name}", _attend_globally(scene, *names)
    text = "global rows use query_global alone, with the local keys and values"
    yield text, _attend_globally(scene, "query_global", "key", "value")
    text = "query_global and key_global are swapped"
    yield text, _attend_globally(scene, "key_global", "query_global", "value_global")
    text = "the scale 1/sqrt(D) is left out in global rows"
    yield text, _attend_globally(scene, *PROJECTIONS, scale=1.0)
    yield "global rows attend to padding", _attend_globally(scene, *PROJECTIONS, mask_padding=False)


def _attend_globally(
    scene: Scene,
    query: str,
    key: str,
    value: str,
    *,
    scale: float | None = None,
    mask_padding: bool = True,
    layer: int | None = None,
) -> Tensor:
    """The rows of the global tokens (B, H, G, D), by the projections of these names in the scene's or another layer."""
    x, index, keep = scene.layer_input(), scene.tokens.global_index, scene.tokens.keep
    assert index is not None

    def projected(name: str) -> Tensor:
        return scene.heads(scene.linear(x, f"attention.self.{name}", layer))

    scale = scene.config.head_dim**-0.5 if scale is None else scale
    scores = (global_rows(projected(query), index) * scale) @ projected(key).transpose(2, 3)
    if mask_padding and keep is not None:
        scores = scores.masked_fill(~keep[:, None, None, :], float("-inf"))
    return (scores.softmax(-1) @ projected(value)).masked_fill((index < 0)[:, None, :, None], 0)
