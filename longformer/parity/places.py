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
    kinds: of the token: "padding", "global", "window edge" (the document's end cuts its window, and the runs differ at
        such tokens alone, or far more than elsewhere).
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

    def describe(
        self, name: str, shape: tuple[int, ...], index: tuple[int, ...], difference: float, *, at_edges: bool = False
    ) -> Position:
        """The place ``index`` in the value ``name``, which has ``shape``.

        Args:
            at_edges: whether it matters if the document's end cuts a token's window, see :meth:`at_edges`.
        """
        layer, part = split_name(name.removeprefix(GRADIENT))
        if name.startswith(PARAMETER) or self.keep is None or self.config is None or len(shape) < 3:
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
        kinds = self._kinds(batch, token)
        if at_edges and not kinds and bool(self._edges(layer, heads=head is not None)[batch, head or 0, token]):
            kinds = ("window edge",)
        return Position(index, difference, batch, head, token, kinds, text)

    def _kinds(self, batch: int, token: int) -> tuple[str, ...]:
        assert self.keep is not None
        if not self.keep[batch, token]:
            return ("padding",)
        return ("global",) if self.is_global is not None and bool(self.is_global[batch, token]) else ()

    def at_edges(self, name: str, rows: Tensor) -> bool:
        """Whether two runs differ far more where the document's end cuts a token's window than where it does not.

        Only then is it worth saying. Half of the tokens of a short document are near an end.

        Args:
            name: of the value.
            rows: how far each row differs, (B, S) or (B, H, S).
        """
        layer = split_name(name.removeprefix(GRADIENT))[0]
        if name.startswith(PARAMETER) or self.keep is None or self.config is None or layer is None:
            return False
        if layer >= self.config.num_hidden_layers or rows.dim() not in (2, 3):
            return False
        if (rows.shape[0], rows.shape[-1]) != tuple(self.keep.shape):
            return False
        by_heads = rows[:, None] if rows.dim() == 2 else rows
        local = self.keep if self.is_global is None else self.keep & ~self.is_global
        local = local[:, None].expand_as(by_heads)
        edges = self._edges(layer, heads=rows.dim() == 3).expand_as(by_heads)
        near, far = by_heads[local & edges], by_heads[local & ~edges]
        return bool(len(near)) and bool(len(far)) and float(near.max()) > AT_EDGES * float(far.max())

    def _edges(self, layer: int | None, *, heads: bool) -> Tensor:
        """(B, 1 or H, S) bool: the tokens whose window, in any head or by ``heads``, the document's end cuts."""
        assert self.keep is not None and self.config is not None and layer is not None
        place = torch.arange(self.keep.shape[1])
        first, last = self.keep.int().argmax(dim=1), (self.keep * place).amax(dim=1)
        nearest = torch.minimum(place - first[:, None], last[:, None] - place)[:, None]  # (B, 1, S)
        if self.config.attention_pattern is not None:  # which may be full, or one-sided: nothing is said of edges
            return torch.zeros_like(nearest, dtype=torch.bool)
        gaps, reach = self.config.dilation(layer), self.config.window(layer)[0]  # the same on both sides
        gaps = gaps if heads else (max(gaps),)
        return nearest < torch.tensor(gaps)[None, :, None] * reach


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
    positions, at_edges = [], places.at_edges(name, rows)
    for value, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
        if value == 0:
            break
        row = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), rows.shape)) if rows.dim() else ()
        last = (int(difference[row].argmax()),) if difference.dim() else ()
        positions.append(places.describe(name, tuple(difference.shape), (*row, *last), value, at_edges=at_edges))
    return tuple(positions)
