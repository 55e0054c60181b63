"""Tools of ``blocked.py`` for one tile: memory that every tile reuses, and dropout's zeros and ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Memory that the tiles use one after another.

    dtype: what is computed in, that of ``like`` or float32 if it has fewer bits.
    """

    def __init__(self, like: Tensor) -> None:
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.like = like
        self.held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uninitialised memory of this shape. It may be used until ``name`` is taken again."""
        size = math.prod(shape)
        if name not in self.held or self.held[name].numel() < size:
            self.held[name] = self.like.new_empty(size, dtype=self.dtype)
        return self.held[name][:size].view(shape)

    def product(self, name: str, a: Tensor, b: Tensor, factor: float = 1.0) -> Tensor:
        """(H, m, k) times (H, k, n), times a factor. The result is contiguous, or torch would loop over the heads."""
        return self.take(name, (a.shape[0], a.shape[1], b.shape[2])).baddbmm_(a, b, beta=0.0, alpha=factor)


class Dropout:
    """Draws which probabilities dropout keeps, tile by tile. Both passes must take the tiles in the same order."""

    def __init__(self, probability: float, seed: int, device: torch.device) -> None:
        # Of 65,536 values, so many are dropped. So 16 bits are enough for an entry, and one draw serves four.
        self.dropped = min(round(probability * 65536), 65535)
        self.factor = 65536 / (65536 - self.dropped)  # scales the probabilities that are kept
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def kept(self, shape: torch.Size, to: Scratch) -> Tensor:
        """For each entry of a tile: 1 if it is kept, 0 if it is dropped."""
        size = math.prod(shape)
        draws = torch.empty((size + 3) // 4, dtype=torch.int64, device=self.generator.device)
        draws.random_(-(2**63), None, generator=self.generator)
        kept = to.take("kept", shape).copy_(draws.view(torch.int16)[:size].view(shape))
        return kept.sub_(self.dropped - 32769).clamp_(0, 1)  # much faster than a comparison
