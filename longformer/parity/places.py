"""Which batch entry, head and token an index into a value is, and what is particular about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longformer.parity.format import Trace, metadata_object
from longformer.parity.table import GRADIENT, PARAMETER, split_name

POSITIONS = 8  # that differ most, listed


@dataclass(frozen=True)
class Position:
    """A place in a value where two runs differ: ``head`` and ``token`` are None where the value has no such axis."""

    index: tuple[int, ...]
    difference: float
    batch: int | None = None
    head: int | None = None
    token: int | None = None
    kinds: tuple[str, ...] = ()  # "padding", "global", "window edge": its window is cut by the document's end
    text: str | None = None


class Places:
    """What is known about the positions of an input."""

    def __init__(self, trace: Trace, tokens: list[list[str]] | None) -> None:
        mask = trace.inputs.get("attention_mask")
        global_mask = trace.inputs.get("global_attention_mask")
        self.key_mask = None if mask is None else mask != 0
        self.global_mask = None if global_mask is None else global_mask != 0
        self.tokens = tokens
        config = metadata_object(trace.metadata, "config")
        windows, layers = config.get("attention_window"), config.get("num_hidden_layers") or 0
        self.windows: list[int] = windows if isinstance(windows, list) else [windows or 0] * layers
        gaps = config.get("attention_dilation", 1)
        gaps = gaps if isinstance(gaps, list) else [gaps] * layers
        self.dilations: list[list[int]] = [gap if isinstance(gap, list) else [gap] for gap in gaps]

    def describe(self, name: str, shape: tuple[int, ...], index: tuple[int, ...], difference: float) -> Position:
        """``index`` into a value of ``shape``: which batch entry, head and token it is."""
        layer, part = split_name(name.removeprefix(GRADIENT))
        if name.startswith(PARAMETER) or self.key_mask is None or len(shape) < 3:
            return Position(index, difference)
        batch, head = index[0], index[1] if len(shape) == 4 else None
        if batch >= len(self.key_mask):  # a value of a table of one's own, with other axes
            return Position(index, difference)
        token = index[-2]
        if part in ("global_rows", "global_probabilities") and self.global_mask is not None:
            found = self.global_mask[batch].nonzero().flatten()
            if token >= len(found):
                return Position(index, difference, batch, head)
            token = int(found[token])
        if token >= self.key_mask.shape[1]:
            return Position(index, difference, batch, head)
        text = self.tokens[batch][token] if self.tokens and token < len(self.tokens[batch]) else None
        return Position(index, difference, batch, head, token, self._kinds(batch, head, token, layer), text)

    def _kinds(self, batch: int, head: int | None, token: int, layer: int | None) -> tuple[str, ...]:
        assert self.key_mask is not None
        if not self.key_mask[batch, token]:
            return ("padding",)
        kinds = ["global"] if self.global_mask is not None and self.global_mask[batch, token] else []
        if layer is not None and layer < len(self.windows):
            present = self.key_mask[batch].nonzero().flatten()
            before, behind = token - int(present[0]), int(present[-1]) - token
            gaps = self.dilations[layer] if layer < len(self.dilations) else [1]
            half = self.windows[layer] // 2 * (gaps[head] if head is not None and head < len(gaps) else max(gaps))
            # In a document that is shorter than the window every token is at an edge, and none is particular.
            if min(before, behind) < half <= (before + behind) / 2:
                kinds.append("window edge")
        return tuple(kinds)


def worst(name: str, difference: Tensor, places: Places) -> tuple[Position, ...]:
    """Rows that differ most, the largest difference of each."""
    rows = difference.amax(dim=-1) if difference.dim() else difference
    flat = rows.flatten()
    found = torch.topk(flat, min(POSITIONS, len(flat)))
    worst = []
    for value, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
        if value == 0:
            break
        row = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), rows.shape)) if rows.dim() else ()
        last = (int(difference[row].argmax()),) if difference.dim() else ()
        worst.append(places.describe(name, tuple(difference.shape), (*row, *last), value))
    return tuple(worst)
