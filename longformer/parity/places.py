"""Which batch entry, head and token an index into a value stands for, and what is special about that token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import ConfigError
from longformer.kernels.pattern import global_index
from longformer.parity.format import Trace, metadata_object
from longformer.parity.table import GRADIENT, PARAMETER, split_name

POSITIONS = 8  # how many of the positions that differ most are listed
AT_EDGES = 10.0  # how many times as far off tokens at the ends must be as all others for the window's edge to matter

# The rows of padding do not count: no real token's value depends on them. What attention itself gives is 0 there.
BY_TOKENS = ("embeddings", "attention_output", "intermediate", "feed_forward", "output", "logits")  # (B, S, ...)
BY_HEADS = ("query", "key", "value")  # (B, H, S, D)


def without_padding(name: str, x: Tensor, keep: Tensor | None) -> Tensor:
    """A value with 0 in the rows of padding, where these do not count.

    They count in ``local_output`` and in probabilities alone, in which a trace has 0 there.

    Args:
        name: of the value, or of its gradient.
        x: the value, or its noise, which lacks the last axis.
        keep: (B, S) bool, False at padding; None if that is not known.
    """
    part = split_name(name.removeprefix(GRADIENT))[1]
    axis = 1 if part in BY_TOKENS else 2 if part in BY_HEADS else None
    if keep is None or axis is None or name.startswith(PARAMETER) or bool(keep.all()):
        return x
    if x.dim() <= axis or (x.shape[0], x.shape[axis]) != tuple(keep.shape):
        return x
    padding = ~keep.view(*keep.shape[:1], *(1,) * (axis - 1), keep.shape[1], *(1,) * (x.dim() - axis - 1))
    return x.masked_fill(padding, 0)


@dataclass(frozen=True)
class Position:
    """A place in a value where two runs differ.

    head, token: None where the value has no such axis.
    kinds: of the token: "padding", "global", "window edge" (the document's end cuts its window).
    """

    index: tuple[int, ...]
    difference: float
    batch: int | None = None
    head: int | None = None
    token: int | None = None
    kinds: tuple[str, ...] = ()
    text: str | None = None


class Places:
    """What is known about the positions of an input.

    Args:
        inputs: of the model, (B, S) each.
        config: of the model; None where it is not known.
        tokens: texts of the tokens, (B, S).
    """

    def __init__(
        self, inputs: Mapping[str, Tensor], config: LongformerConfig | None, tokens: list[list[str]] | None
    ) -> None:
        mask, global_mask = inputs.get("attention_mask"), inputs.get("global_attention_mask")
        self.keep = None if mask is None else mask != 0
        self.is_global = None if global_mask is None else global_mask != 0
        self.global_index = None if self.is_global is None else global_index(self.is_global, counted=True)
        self.config, self.tokens = config, tokens

    def describe(self, name: str, shape: tuple[int, ...], index: tuple[int, ...], difference: float) -> Position:
        """The place ``index`` in the value ``name``, which has ``shape``."""
        layer, part = split_name(name.removeprefix(GRADIENT))
        if name.startswith(PARAMETER) or self.keep is None or len(shape) < 3:
            return Position(index, difference)
        batch, head = index[0], index[1] if len(shape) == 4 else None
        if batch >= len(self.keep):  # a value of a table of one's own, with other axes
            return Position(index, difference)
        token = index[-2]
        if part in ("global_rows", "global_probabilities") and self.is_global is not None:
            index_of = self.global_index  # the value has a row for each global token
            token = int(index_of[batch, token]) if index_of is not None and token < index_of.shape[1] else -1
        if not 0 <= token < self.keep.shape[1]:
            return Position(index, difference, batch, head)
        text = self.tokens[batch][token] if self.tokens and token < len(self.tokens[batch]) else None
        return Position(index, difference, batch, head, token, self._kinds(batch, head, token, layer), text)

    def _kinds(self, batch: int, head: int | None, token: int, layer: int | None) -> tuple[str, ...]:
        assert self.keep is not None
        if not self.keep[batch, token]:
            return ("padding",)
        kinds = ["global"] if self.is_global is not None and self.is_global[batch, token] else []
        if self.config is not None and layer is not None and layer < self.config.num_hidden_layers:
            present = self.keep[batch].nonzero().flatten()
            before, behind = token - int(present[0]), int(present[-1]) - token
            gaps = self.config.dilation(layer)
            gap = gaps[head] if head is not None and head < len(gaps) else max(gaps)
            reach = gap * self.config.window(layer)[0]  # the same on both sides
            # In a document that is shorter than the window every token is at an edge, and none is special.
            if min(before, behind) < reach <= (before + behind) / 2:
                kinds.append("window edge")
        return tuple(kinds)


def config_of(trace: Trace) -> LongformerConfig | None:
    """The config in a trace's metadata; None if it is not a Longformer's."""
    try:
        return LongformerConfig.from_dict(metadata_object(trace.metadata, "config"))
    except ConfigError:
        return None


def worst(name: str, difference: Tensor, places: Places) -> tuple[Position, ...]:
    """The rows that differ most, each at its largest difference."""
    rows = difference.amax(dim=-1) if difference.dim() else difference
    flat = rows.flatten()
    found = torch.topk(flat, min(POSITIONS, len(flat)))
    positions = []
    for value, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
        if value == 0:
            break
        row = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), rows.shape)) if rows.dim() else ()
        last = (int(difference[row].argmax()),) if difference.dim() else ()
        positions.append(places.describe(name, tuple(difference.shape), (*row, *last), value))
    return tuple(positions)
