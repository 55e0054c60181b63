"""Hints: every known slip is named where it is planted, no other with it, and nothing is named where none was made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from parity_mistakes import layer, run
from parity_plants import FAMILIES, PLANTS, Plant, after, model_of
from torch import Tensor, nn

from longformer.parity import Comparison, Trace, Truth, compare
from longformer.parity.hints import SAME, SLIPS, find_hints

CASES = [(slip, plant) for slip, plants in PLANTS.items() for plant in plants]


@cache
def scene_of(family: str) -> tuple[dict[str, Tensor], Truth, Trace]:
    """The input, the truth and a right run of a family."""
    torch.manual_seed(0)
    inputs, model = FAMILIES[family].inputs(), model_of(FAMILIES[family])
    return inputs, Truth(model, inputs), run(model, inputs)


def compared(plant: Callable[[Any], Any], family: str = "plain") -> Comparison:
    inputs, truth, right = scene_of(family)
    model = model_of(FAMILIES[family])
    torch.manual_seed(0)
    with torch.no_grad():
        opened = plant(model)
    with opened or nullcontext():
        spoilt = run(model, inputs)
    return compare(right, spoilt, truth=truth, names=("right", "port"))


def test_there_is_a_plant_for_every_slip() -> None:
    names = [slip.name for slip in SLIPS]
    assert sorted(names) == sorted(PLANTS)
    assert len(names) >= 40


@pytest.mark.parametrize(("slip", "plant"), CASES, ids=[f"{slip} in {plant.first}" for slip, plant in CASES])
def test_a_slip_is_named_and_no_other(slip: str, plant: Plant) -> None:
    found = compared(plant.plant, plant.family)
    assert (found.verdict, found.departed) == ("different", ("port",))
    assert found.first is not None and found.first.name == plant.first
    assert len(found.hints) == 1, found.hints
    assert plant.says in found.hints[0]
    assert found.hints[0].endswith(SAME.format(name=plant.first))
    assert "only the recording" not in found.hints[0]


# ---- mistakes that no slip describes


def rows_of(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    after(module, lambda result, *given: change(result))


def numbers(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    module.weight.data = change(module.weight.data)


def ramp(x: Tensor) -> Tensor:
    """(S, 1), growing from token to token."""
    return torch.linspace(0, 0.01, x.shape[1])[:, None]


UNLISTED: dict[str, Callable[[Any], Any]] = {
    "noise": lambda model: rows_of(layer(model), lambda x: x + 1e-3 * torch.randn_like(x)),
    "a token's noise": lambda model: rows_of(layer(model), lambda x: x + 1e-3 * torch.randn(x.shape[1], 1)),
    "a channel": lambda model: rows_of(layer(model), lambda x: x + 1e-3 * (torch.arange(x.shape[-1]) == 5)),
    "clipped": lambda model: rows_of(layer(model), lambda x: x.clamp(-1, 1)),
    "a residual more": lambda model: after(layer(model).attention, lambda result, x, *rest: result + 0.01 * x),
    "rounded results": lambda model: rows_of(layer(model).output, lambda x: (x * 256).round() / 256),
    "tokens moved": lambda model: rows_of(layer(model).attention.self.query, lambda x: x.roll(1, 1)),
    "tokens swapped": lambda model: rows_of(layer(model).output, lambda x: x[:, [1, 0, *range(2, x.shape[1])]]),
    "a softer query": lambda model: rows_of(layer(model).attention.self.query, torch.tanh),
    "rotated keys": lambda model: rows_of(layer(model).attention.self.key, lambda x: x + ramp(x) * x.roll(1, -1)),
    "a head of attention left out": lambda model: rows_of(
        layer(model).attention.self, lambda x: x * (torch.arange(x.shape[-1]) >= 8)
    ),
    "a head's sign": lambda model: rows_of(
        layer(model).attention.self, lambda x: x * (1 - 2 * (torch.arange(x.shape[-1]) < 8).float())
    ),
    "mean attention": lambda model: rows_of(layer(model).attention.self, lambda x: x - 0.1 * x.mean(1, keepdim=True)),
    "a window three too wide": lambda model: setattr(
        layer(model).attention.self, "pattern", type(layer(model).attention.self.pattern)((7, 7))
    ),
    "another dilation": lambda model: setattr(
        layer(model).attention.self, "pattern", type(layer(model).attention.self.pattern)((4, 4), 3)
    ),
    "a steeper GELU": lambda model: setattr(
        layer(model).intermediate, "activation", lambda x: x * torch.sigmoid(1.5 * x)
    ),
    "a leaky activation": lambda model: setattr(layer(model).intermediate, "activation", nn.LeakyReLU(0.1)),
    "words off by one": lambda model: numbers(model.longformer.embeddings.word_embeddings, lambda w: w.roll(1, 0)),
    "a power in the norm": lambda model: rows_of(layer(model).output.LayerNorm, lambda x: x.sign() * x.abs() ** 1.01),
    "logits at padding's score": lambda model: rows_of(model.qa_outputs, lambda x: torch.where(x > 0.5, -1e4, x)),
    "int4 weights": lambda model: numbers(layer(model).output.dense, lambda w: (w * 7 / w.max()).round() / 7 * w.max()),
    "a sparse weight": lambda model: numbers(layer(model).output.dense, lambda w: w * (w.abs() > 0.1)),
    "queries of late tokens": lambda model: rows_of(layer(model).attention.self.query, lambda x: x * (1 + ramp(x))),
}


@pytest.mark.parametrize("name", UNLISTED)
def test_an_unlisted_mistake_gets_no_hint(name: str) -> None:
    found = compared(UNLISTED[name])
    assert found.verdict == "different" and found.first is not None
    assert found.hints == []
    assert any(f"known slips explains {found.first.name}" in note for note in found.notes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["reference", "banded", "one row"])
def test_a_clean_run_gets_no_hint(family: str, how: str) -> None:
    """Not even if it is asked for one of every value."""
    inputs, truth, right = scene_of(family)
    model = model_of(FAMILIES[family])
    if how == "one row":
        clean, truth = run(model, _first(inputs)), Truth(model, _first(inputs))
    else:
        for part in model.modules():
            if hasattr(part, "impl"):
                part.impl = how
        clean = run(model, inputs)
        assert compare(right, clean, truth=truth).hints == []
    for value in clean:
        assert find_hints(clean, value, truth).hints == []


def _first(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[:1] for name, tensor in inputs.items()}
