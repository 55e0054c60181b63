"""The slips that ports make in attention itself: windows, masks, scales, global columns and global rows.

Letters as in :mod:`longformer.parity.slips`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from longformer.kernels import attention_pairs
from longformer.parity.probabilities import global_places, global_rows
from longformer.parity.slips import Scene, Slip

DENSE = 1500  # tokens up to which attention is tried again, densely


class Local:
    """Local attention by its definition, over a run's own queries, keys and values: (B, H, S, D) each."""

    def __init__(self, scene: Scene) -> None:
        self.query, self.key, self.value = scene.value("query"), scene.value("key"), scene.value("value")
        self.key_mask, self.global_mask = scene.key_mask, scene.global_mask & scene.key_mask
        self.seq_len = self.query.shape[2]
        self.window, self.dilation = scene.config.window(scene.layer), scene.config.dilation(scene.layer)
        self.scale = scene.config.head_dim**-0.5
        bias = scene.weight("attention.self.query.bias")
        self.query_bias = scene.heads(bias.expand(*self.query.shape[:1], self.seq_len, -1))

    def pairs(
        self,
        window: tuple[int, int] | None = None,
        *,
        dilation: tuple[int, ...] | None = None,
        mask_padding: bool = True,
        use_global: bool = True,
    ) -> Tensor:
        """(B, H or 1, S, S) bool: which column a row attends to."""
        return attention_pairs(
            self.seq_len,
            self.window if window is None else window,
            dilation=self.dilation if dilation is None else dilation,
            key_mask=self.key_mask if mask_padding else None,
            global_mask=self.global_mask if use_global else None,
        )

    def attend(
        self,
        allowed: Tensor,
        *,
        query: Tensor | None = None,
        key: Tensor | None = None,
        value: Tensor | None = None,
        scale: float | None = None,
        twice: Tensor | None = None,
        keep_padding: bool = False,
    ) -> Tensor:
        """The local output over the pairs ``allowed``; columns ``twice`` (B, H or 1, S, S) have twice the weight."""
        query, key = self.query if query is None else query, self.key if key is None else key
        scores = (query * (self.scale if scale is None else scale)) @ key.transpose(2, 3)
        empty = ~allowed.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~(allowed | empty), float("-inf"))
        if twice is not None:
            scores = scores + math.log(2) * twice
        rows = scores.softmax(-1).masked_fill(empty, 0) @ (self.value if value is None else value)
        hidden = self.global_mask if keep_padding else self.global_mask | ~self.key_mask
        return rows.masked_fill(hidden[:, None, :, None], 0)


def local_output(scene: Scene) -> Iterator[Slip]:
    """(B, H, S, D): the attention of the tokens that are not global."""
    local = Local(scene)
    if local.seq_len > DENSE:
        return
    yield from _windows(local)
    yield from _global_columns(local)
    yield from _scales(scene, local)
    yield from _padding(local)
    text = "keys and values are swapped"
    yield text, local.attend(local.pairs(), key=local.value, value=local.key)


def _windows(local: Local) -> Iterator[Slip]:
    left, right = local.window
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
            yield f"the window is off: {name}; it should be ({left}, {right})", local.attend(local.pairs(window))
    everything = local.pairs((local.seq_len, local.seq_len), dilation=(1,))
    yield "every token attends to every token: there is no window", local.attend(everything)
    if set(local.dilation) != {1}:
        text = f"the window is not dilated; by head it should be {local.dilation}"
        yield text, local.attend(local.pairs(dilation=(1,)))


def _global_columns(local: Local) -> Iterator[Slip]:
    band = local.pairs(use_global=False)
    columns = local.global_mask[:, None, None, :]
    yield (
        "a global column inside the band is counted twice",
        local.attend(local.pairs(), twice=(band & columns).double()),
    )
    yield "global columns outside the band are missing", local.attend(band)
    yield "global columns are missing, inside the band too", local.attend(band & ~columns)


def _scales(scene: Scene, local: Local) -> Iterator[Slip]:
    bias, pairs = local.query_bias, local.pairs()
    text = "the scale is applied before the query's bias is added (it belongs behind)"
    yield text, local.attend(pairs, query=(local.query - bias) + bias / local.scale)
    yield "the scale 1/sqrt(D) is left out", local.attend(pairs, scale=1.0)
    yield "the scale 1/sqrt(D) is applied twice", local.attend(pairs, scale=local.scale**2)
    yield "the scale is 1/sqrt(C) instead of 1/sqrt(D)", local.attend(pairs, scale=scene.config.hidden_size**-0.5)


def _padding(local: Local) -> Iterator[Slip]:
    unmasked = local.pairs(mask_padding=False)
    yield "padded columns are not masked", local.attend(unmasked)
    text = "padded columns are not masked, and padded rows are not zeroed"
    yield text, local.attend(unmasked, keep_padding=True)
    masked_columns = unmasked & local.key_mask[:, None, None, :]
    yield "padded rows are not zeroed", local.attend(masked_columns, keep_padding=True)


def rows_of_global_tokens(scene: Scene) -> Iterator[Slip]:
    """(B, H, G, D): the attention of the global tokens."""
    x = scene.layer_input()
    key_mask, global_mask = scene.key_mask, scene.global_mask & scene.key_mask
    scale = scene.config.head_dim**-0.5
    real = global_places(global_mask)[1][:, None, :, None]

    def projected(name: str) -> Tensor:
        return scene.heads(scene.linear(x, f"attention.self.{name}"))

    def attend(query: str, key: str, value: str, *, scale: float = scale, mask: Tensor | None = key_mask) -> Tensor:
        rows = global_rows(projected(query), global_mask)
        scores = (rows * scale) @ projected(key).transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return (scores.softmax(-1) @ projected(value)).masked_fill(~real, 0)

    right = ("query_global", "key_global", "value_global")
    yield "the local projections are used for global rows", attend("query", "key", "value")
    for i, name in enumerate(right):
        given = list(right)
        given[i] = name.removesuffix("_global")
        yield f"global rows use {given[i]} instead of {name}", attend(*given)
    yield "global rows use query_global alone, with the local keys and values", attend("query_global", "key", "value")
    yield "query_global and key_global are swapped", attend("key_global", "query_global", "value_global")
    yield "the scale 1/sqrt(D) is left out in global rows", attend(*right, scale=1.0)
    yield "global rows attend to padding", attend(*right, mask=None)
    if x.shape[1] <= DENSE:
        allowed = attention_pairs(
            x.shape[1],
            scene.config.window(scene.layer),
            dilation=scene.config.dilation(scene.layer),
            key_mask=key_mask,
            global_mask=global_mask,
        )
        scores = (scene.value("query") * scale) @ scene.value("key").transpose(2, 3)
        local = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num() @ scene.value("value")
        yield (
            "global rows are left as the local attention has them",
            global_rows(local, global_mask).masked_fill(~real, 0),
        )
    for layer in range(scene.config.num_hidden_layers):
        if layer != scene.layer:
            other = replace(scene, layer=layer)
            query, key, value = (other.heads(other.linear(x, f"attention.self.{name}")) for name in right)
            scores = (global_rows(query, global_mask) * scale) @ key.transpose(2, 3)
            scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
            yield (
                f"the global projections are those of layer {layer}",
                (scores.softmax(-1) @ value).masked_fill(~real, 0),
            )
