"""Where a run departed from the truth: what a slip is replayed from.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.kernels import Tokens
from longformer.parity.layout import tokens_of

Candidate = tuple[str, Tensor]  # what the mistake is, in words, and what the value would be with it


class LackingError(Exception):
    """A run lacks what is needed to replay a slip."""


@dataclass(frozen=True)
class Scene:
    """A value of a run that is not the true one, and what it was computed from.

    Args:
        run: the run's values.
        true: the true ones.
        weights: the true weights, by their names below the base model.
        config: the model's.
        layer: number of the value's layer; 0 for a value outside the layers.
        part: name of the value without its layer.
        inputs: what the model was given, (B, S) each.
        dtype: of the run's value.

    Raises:
        LackingError: a value is asked for that the run lacks, or has in another shape, or a weight that is not there.
    """

    run: Mapping[str, Tensor]
    true: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    config: LongformerConfig
    layer: int
    part: str
    inputs: Mapping[str, Tensor]
    dtype: torch.dtype = torch.float32

    def of(self, part: str) -> Scene:
        """The same, seen from another value of the layer."""
        return replace(self, part=part)

    def value(self, part: str) -> Tensor:
        """A value of this layer, in float64."""
        return self.at(f"layer.{self.layer}.{part}")

    def at(self, name: str) -> Tensor:
        """A value in float64."""
        if name not in self.true or name not in self.run or self.run[name].shape != self.true[name].shape:
            raise LackingError(name)
        return self.run[name].double()

    def layer_input(self, layer: int | None = None) -> Tensor:
        """(B, S, C): the state that a layer was given; this one's by default."""
        layer = self.layer if layer is None else layer
        return self.at("embeddings" if layer == 0 else f"layer.{layer - 1}.output")

    def path(self, name: str, layer: int | None = None) -> str:
        """The full name of a module of this layer, or of another."""
        return f"encoder.layer.{self.layer if layer is None else layer}.{name}"

    def weight(self, path: str) -> Tensor:
        """A weight by its full name, in float64."""
        if path not in self.weights:
            raise LackingError(path)
        return self.weights[path].double()

    def linear(self, x: Tensor, path: str) -> Tensor:
        """The linear layer of this full name applied to ``x``."""
        return F.linear(x, self.weight(f"{path}.weight"), self.weight(f"{path}.bias"))

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, H, S, D)."""
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)

    @property
    def other_layers(self) -> list[int]:
        """The numbers of all layers but this one."""
        return [number for number in range(self.config.num_hidden_layers) if number != self.layer]

    @property
    def tokens(self) -> Tokens:
        """Padding and global tokens, with the index of the global ones."""
        return tokens_of(self.inputs)

    def moved(self, eps: float, seed: int) -> Scene:
        """The same with every number moved by up to ``eps`` times itself: it shows what rounding does to a replay."""
        generator = torch.Generator().manual_seed(seed)
        return replace(self, run=_Moved(self.run, eps, generator), weights=_Moved(self.weights, eps, generator))


class _Moved(Mapping[str, Tensor]):
    """Tensors that are moved when they are asked for, each time alike."""

    def __init__(self, tensors: Mapping[str, Tensor], eps: float, generator: torch.Generator) -> None:
        self.tensors, self.eps, self.generator = tensors, eps, generator
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._kept:
            x = self.tensors[name].double()
            self._kept[name] = x * (1 + self.eps * (2 * torch.rand(x.shape, generator=self.generator) - 1))
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Slip(NamedTuple):
    """A known mistake.

    name: for tests and tables.
    parts: the values in which it shows first, without their layers.
    replay: yields what the value would be with the slip, once for each form that it may take.
    rank: 0 for a slip that says exactly what happened. Higher ones fit numbers to the run, and are named only where no
        slip of a lower rank fits.
    recorded: the slip in words where only the recording is wrong, since everything behind the value is right.
    """

    name: str
    parts: frozenset[str]
    replay: Callable[[Scene], Iterator[Candidate]]
    rank: int = 0
    recorded: str | None = None


Replay = Callable[[Scene], Iterator[Candidate]]


def slips_into(table: list[Slip]) -> Callable[..., Callable[[Replay], Replay]]:
    """A decorator ``slip(name, *parts)`` by which a replay enters ``table``."""

    def slip(name: str, *parts: str, rank: int = 0, recorded: str | None = None) -> Callable[[Replay], Replay]:
        def register(replay: Replay) -> Replay:
            table.append(Slip(name, frozenset(parts), replay, rank, recorded))
            return replay

        return register

    return slip
