"""The noise of a value: how far rounding moves it, over all, by rows, by channels and by heads.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, R runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longformer.parity.format import FLOATING, Trace, headers_of, metadata_object
from longformer.parity.operations import coarsest
from longformer.parity.table import GRADIENT

# Precisions of a run: one for all of its values, or one for each by name, which counts for what is computed from the
# value before up to it.
Precisions = torch.dtype | Mapping[str, torch.dtype]


@dataclass(frozen=True)
class Noise:
    """Mean squares of how far a value moves, pooled over a part of it.

    rows: of each row, the last axis: shape[:-1]. So (B, S) of a value (B, S, C), and (B, H, S) of (B, H, S, D).
    channels: of each channel, pooled over batch and tokens: (C,) or (H, D); None of a value of fewer than two axes.
    largest: of the row and the run where it moves most, a scalar.
    runs: R, how many runs they come from.
    """

    rows: Tensor
    channels: Tensor | None
    largest: Tensor
    runs: int

    def mean(self) -> Tensor:
        """The mean square over the whole value, a scalar."""
        return self.rows.mean()


class Moved:
    """Adds up how far a value moves, run after run."""

    def __init__(self) -> None:
        self.rows: Tensor | float = 0.0
        self.channels: Tensor | float | None = 0.0
        self.largest = torch.zeros((), dtype=torch.float64)
        self.runs = 0

    def add(self, off: Tensor) -> None:
        """One run's distance from the truth, in the value's shape."""
        rows, channels = row_mean_square(off), channel_mean_square(off)
        self.rows = self.rows + rows
        self.largest = torch.maximum(self.largest, rows.max()) if rows.numel() else self.largest
        self.channels = None if channels is None or self.channels is None else self.channels + channels
        self.runs += 1

    def noise(self) -> Noise:
        assert isinstance(self.rows, Tensor) and not isinstance(self.channels, float)
        channels = None if self.channels is None else self.channels / self.runs
        return Noise(self.rows / self.runs, channels, self.largest, self.runs)


def row_mean_square(x: Tensor) -> Tensor:
    """Mean square over the last axis, in float64."""
    return x.double().square().mean(dim=-1) if x.dim() else x.double().square()


def channel_mean_square(x: Tensor) -> Tensor | None:
    """Mean square over batch and tokens, in float64: (C,), or by heads (H, D); None if there are no such axes."""
    if x.dim() < 2:
        return None
    pooled = [axis for axis in range(x.dim() - 1) if not (x.dim() == 4 and axis == 1)]
    return x.double().square().mean(dim=pooled)


def precisions_of(run: Trace) -> Precisions:
    """The precisions in which a run computed its values: one dtype if that is the same for all.

    A value is not always computed in the dtype in which it is stored. With autocast a LayerNorm's result is float32,
    and what came in was bfloat16; a port in float32 may write float64. :func:`trace` notes where a value came from
    something coarser than itself. Where nothing is noted, a value counts as coarse as the one before it, and as the
    dtype in the file's metadata.
    """
    noted = run.metadata.get("precisions") is not None
    recorded = {name: getattr(torch, dtype) for name, dtype in metadata_object(run.metadata, "precisions").items()}
    stored = {
        name: getattr(torch, header.dtype)
        for name, header in headers_of(run.tensors).items()
        if header.dtype in FLOATING
    }
    declared = run.metadata.get("dtype")
    found: dict[str, torch.dtype] = {}
    before: torch.dtype | None = None
    for name in run:
        if name not in stored:
            continue
        kinds = [stored[name], recorded.get(name, stored[name])]
        if not noted:
            kinds += [] if before is None or name.startswith(GRADIENT) else [before]
        if declared in FLOATING and (not noted or stored[name] == torch.float64):
            kinds.append(getattr(torch, declared))
        found[name], before = coarsest(kinds), stored[name]
    kinds = list(set(found.values()))
    return kinds[0] if len(kinds) == 1 else found


def precision_of(precisions: Precisions, name: str) -> torch.dtype:
    """The precision of one value; of one that is not named, the coarsest that there is."""
    if isinstance(precisions, torch.dtype):
        return precisions
    found = precisions.get(name)
    return coarsest(precisions.values()) if found is None else found
