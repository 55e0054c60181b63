"""A run in float64 whose operations are rounded by chance, in the precision of each stage of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longformer.models.attention import LongformerSelfAttention
from longformer.parity.noise import Precisions, precision_of
from longformer.parity.operations import Rounding, coarsest, round_by_chance
from longformer.parity.rounding import stochastic_rounding


class Stages(NamedTuple):
    """Precisions of a run: of what its first value is computed in, of what follows each module, and of the rest."""

    first: torch.dtype
    after: dict[str, torch.dtype]
    rest: torch.dtype


@contextmanager
def in_stages(model: nn.Module, stages: Stages, generator: torch.Generator) -> Iterator[Rounding]:
    """While this is open, ``model`` computes in rounded operations, with rounded weights.

    Yields:
        the mode, whose ``dtype`` is to be set to that of the next stage as each begins.
    """
    with (
        rounded_weights(model, stages, generator),
        in_operations(model),
        stochastic_rounding(stages.first, generator) as mode,
    ):
        yield mode


def stages_of(modules: Mapping[str, str], precisions: Precisions) -> Stages:
    """The stages of a run, from the path of the module that gives each value, in the order in which they come."""
    each = {path: precision_of(precisions, name) for name, path in modules.items()}
    paths, rest = list(each), coarsest([precisions] if isinstance(precisions, torch.dtype) else precisions.values())
    following = [*(each[path] for path in paths[1:]), rest]
    return Stages(each[paths[0]] if paths else rest, dict(zip(paths, following, strict=True)), rest)


@contextmanager
def in_operations(model: nn.Module) -> Iterator[None]:
    """While this is open, our attention is computed in operations of torch, each of which can be rounded."""
    parts = [part for part in model.modules() if isinstance(part, LongformerSelfAttention)]
    with ExitStack() as stack:
        for part in parts:
            stack.callback(setattr, part, "impl", part.impl)
            part.impl = "chunked"
        yield


@contextmanager
def rounded_weights(model: nn.Module, stages: Stages, generator: torch.Generator) -> Iterator[None]:
    """While this is open, weights that their precision does not have are rounded by chance to numbers that it has."""
    kept: dict[str, Tensor] = {}
    before = dict(zip(list(stages.after), [stages.first, *stages.after.values()], strict=False))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            dtype = before.get(next((path for path in before if name.startswith(f"{path}.")), ""), stages.rest)
            if not torch.equal(weight.to(dtype).to(weight.dtype), weight):
                kept[name] = weight.clone()
                weight.copy_(round_by_chance(weight, dtype, generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in kept:
                    weight.copy_(kept[name])
