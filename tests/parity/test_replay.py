"""Modules one by one: every mistake is found where it was made, small ones too, and nothing clean is called wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from parity_mistakes import Inputs, batch, fresh, layer
from reference import TINY, Pair, build, with_weights
from torch import Tensor, nn

from longformer.parity import Trace, Truth, compare, trace
from longformer.parity.modules import Finding, judge_modules, of_truth
from longformer.parity.replay import Noise, Replay, Step
from longformer.parity.report import as_json, table


@dataclass
class Case:
    pair: Pair
    inputs: Inputs
    truth: Truth
    replay: Replay
    clean: Trace
    noise: Noise


def record(model: nn.Module, inputs: Inputs, scale: float = 1.0) -> Trace:
    with trace(model, gradients=True) as recorded:
        recorded.backward(model(**inputs).loss * scale)
    return recorded


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    pair = build(TINY)
    inputs = {**batch(), "start_positions": torch.tensor([8, 5, 12]), "end_positions": torch.tensor([9, 9, 14])}
    truth = Truth(pair.ours, inputs, loss=lambda output: output.loss)
    replay, clean = of_truth(truth), record(pair.reference, inputs)
    return Case(pair, inputs, truth, replay, clean, replay.noise(clean, torch.float32))


def wrong(case: Case, run: Trace | dict[str, Tensor]) -> list[Step]:
    return [step for step in case.replay.steps(run, case.noise) if step.standing.is_wrong]


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


@pytest.mark.parametrize("which", ["reference", "ours", "banded", "blocked"])
def test_nothing_clean_is_wrong(case: Case, which: str) -> None:
    model = (
        getattr(case.pair, which)
        if which in ("reference", "ours")
        else with_weights(TINY, case.pair.ours.state_dict(), impl=which)
    )
    run = record(model, case.inputs)
    assert wrong(case, run) == []
    assert set(names(case.replay.steps(run, case.noise))) == set(run)  # and everything was judged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_have_noise_of_their_own(case: Case, dtype: torch.dtype) -> None:
    with torch.no_grad(), trace(copy.deepcopy(case.pair.reference).to(dtype)) as run:
        pass_inputs = {name: x for name, x in case.inputs.items() if "positions" not in name}
        model = copy.deepcopy(case.pair.reference).to(dtype)
        del model
    del run, pass_inputs
