"""Modules one by one: every mistake is found where it was made, small ones too, and nothing clean is called wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from parity_mistakes import Inputs, batch, fresh, layer
from reference import TINY, Pair, build, with_weights
from torch import Tensor, nn

from longformer.parity import Comparison, Trace, Truth, compare, trace
from longformer.parity.modules import Finding, axes_of_longformer, judge_modules, of_truth
from longformer.parity.replay import PARAMETERS, Noise, Replay, Step
from longformer.parity.report import as_json, dumps, table


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


def wrong(case: Case, run: Mapping[str, Tensor]) -> list[Step]:
    return [step for step in case.replay.steps(run, case.noise) if step.standing.is_wrong]


def compared(case: Case, run: Trace) -> Comparison:
    found = compare(case.clean, run, truth=case.truth, names=("original", "port"))
    judge_modules(found, case.clean, run, case.truth)
    return found


def changed(run: Trace, name: str, change: Callable[[Tensor], Tensor]) -> Trace:
    other = Trace()
    other.inputs, other.metadata = run.inputs, run.metadata
    other.tensors = {key: change(value.clone()) if key == name else value for key, value in run.items()}
    return other


@pytest.mark.parametrize("impl", ["auto", "banded", "blocked"])
def test_nothing_clean_is_wrong(case: Case, impl: str) -> None:
    run = record(with_weights(TINY, case.pair.ours.state_dict(), impl=impl), case.inputs)
    steps = list(case.replay.steps(run, case.noise))
    assert [step for step in steps if step.standing.is_wrong] == []
    assert {step.name for step in steps} == set(run)  # everything was judged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precisions_have_more_noise(case: Case, dtype: torch.dtype) -> None:
    run = record(copy.deepcopy(case.pair.reference).to(dtype), case.inputs, scale=512.0)
    scaled = {name: value / 512 if name.startswith("gradient.") else value for name, value in run.items()}
    noise = case.replay.noise(scaled, dtype)
    assert [step for step in case.replay.steps(scaled, noise) if step.standing.is_wrong] == []


def test_gradients_stand_in_the_order_of_the_backward_pass(case: Case) -> None:
    names = [step.name for step in case.replay.steps(case.clean, case.noise)]
    backward = names[names.index("logits") + 1 :]
    expected = [
        "gradient.logits",
        "gradient.parameter.qa_outputs.weight",
        "gradient.layer.2.output",
        "gradient.parameter.longformer.encoder.layer.2.output.dense.weight",
        "gradient.layer.2.intermediate",
        "gradient.layer.2.attention_output",
        "gradient.layer.2.query",
        "gradient.parameter.longformer.encoder.layer.2.attention.self.query.weight",
        "gradient.layer.1.output",
        "gradient.embeddings",
        "gradient.parameter.longformer.embeddings.LayerNorm.weight",
    ]
    places = [backward.index(name) for name in expected]
    assert places == sorted(places)


def small_mistakes(case: Case) -> Trace:
    model = fresh(case.pair)
    with torch.no_grad():
        layer(model, 0).output.dense.bias[7] += 1e-5
        layer(model, 1).attention.self.value.weight[3] *= 1 + 3e-5
        layer(model, 2).intermediate.dense.weight[4, 5] += 1e-3  # far larger, and behind the others
    return record(model, case.inputs)


@pytest.mark.slow
def test_every_wrong_module_is_found(case: Case) -> None:
    found = compared(case, small_mistakes(case))
    forward = [m for m in found.modules if not m.step.name.startswith("gradient.")]
    assert [module.step.name for module in forward] == ["layer.0.output", "layer.1.value", "layer.2.intermediate"]
    assert {module.run for module in found.modules} == {"port"}
    assert "channel 7" in forward[0].sentence and "head 0, channel 3" in forward[1].sentence
    assert "longformer.encoder.layer.1.attention.self.value" in forward[1].sentence
    report = table(found)
    assert all(module.sentence in report for module in forward)
    rows = as_json(found)["modules"]
    assert rows[1]["value"] == "layer.1.value" and rows[1]["ratio"] > rows[1]["limit"]
    assert dumps(rows)


def at(*index: int | slice) -> Callable[[Tensor, Tensor], Tensor]:
    def plant(value: Tensor, size: Tensor) -> Tensor:
        value[index] += 20 * size[index].to(value.dtype)
        return value

    return plant


EVERY = slice(None)


@pytest.mark.parametrize(
    ("name", "index", "where"),
    [
        ("layer.1.query", (1, EVERY, 7), "batch 1, token 7"),
        ("layer.1.query", (EVERY, 2), "head 2"),
        ("layer.1.value", (EVERY, 1, EVERY, 3), "head 1, channel 3"),
        ("layer.1.local_output", (2, 3, 9, 4), "batch 2, head 3, token 9, channel 4"),
        ("layer.1.output", (0, 5), "batch 0, token 5"),
        ("layer.2.intermediate", (EVERY, EVERY, 11), "channel 11"),
        ("layer.0.attention_output", (1, 3, 8), "batch 1, token 3, channel 8"),
        ("embeddings", (0, 1, 2), "batch 0, token 1, channel 2"),
        ("gradient.layer.1.key", (EVERY, 1), "head 1"),
        ("gradient.layer.1.output", (0, 30), "batch 0, token 30"),
        ("gradient.parameter.longformer.encoder.layer.1.output.dense.weight", (3,), "axis 0 index 3"),
    ],
)
def test_one_part_that_is_off_by_20_times_the_noise_is_found(
    case: Case, name: str, index: tuple[int | slice, ...], where: str
) -> None:
    size = case.noise[name].variance(case.clean[name]).sqrt()
    size = size * PARAMETERS if name.startswith("gradient.parameter.") else size
    run = changed(case.clean, name, lambda value: at(*index)(value, size))
    found = next(step for step in wrong(case, run) if step.name == name)
    assert 18 < found.standing.ratio < 22
    shape = tuple(case.clean[name].shape)
    assert where in Finding("port", found, shape, axes_of_longformer(name, len(shape))).sentence


def test_a_small_mistake_makes_the_verdict_different(case: Case) -> None:
    found = compare(case.clean, record(case.pair.ours, case.inputs), truth=case.truth, names=("original", "port"))
    assert found.verdict == "rounding"
    size = case.noise["layer.1.value"].variance(case.clean["layer.1.value"]).sqrt()
    run = changed(case.clean, "layer.1.value", lambda value: at(1, 2, 3, 4)(value, size))
    judge_modules(found, case.clean, run, case.truth)
    assert (found.verdict, found.departed) == ("different", ("port",))
    assert found.first is not None and found.first.name == "layer.1.value"


def test_the_backward_pass_that_is_wrong_is_named(case: Case) -> None:
    run = changed(case.clean, "gradient.layer.2.intermediate", lambda value: value * 1.001)
    found = [m for m in compared(case, run).modules if m.step.name == "gradient.layer.2.intermediate"]
    assert [m.step.operation for m in found] == [("layer.2.feed_forward",)]
    assert "by the backward pass of layer.2.feed_forward" in found[0].sentence
    assert "all of it is 1.001 times what it should be" in found[0].sentence


@pytest.mark.slow
def test_a_factor_on_all(case: Case) -> None:
    found = compared(case, record(fresh(case.pair), case.inputs, scale=1 / 3))
    assert [m.step.name for m in found.modules] == ["gradient.logits"]
    assert any("a factor on all gradients of port: the loss's is 0.333333 (1/3) times" in note for note in found.notes)

    clipped = Trace()
    clipped.inputs, clipped.metadata = case.clean.inputs, case.clean.metadata
    clipped.tensors = {
        name: value * 0.37 if name.startswith("gradient.parameter.") else value for name, value in case.clean.items()
    }
    found = compared(case, clipped)
    assert any("of port's parameters, and on none of its activations: they are 0.37" in note for note in found.notes)
    assert len(table(found).splitlines()) < 60


def test_a_trace_without_gradients_at_padding_is_judged_as_far_as_it_goes(case: Case) -> None:
    keep = case.inputs["attention_mask"].bool()
    run = Trace()
    run.inputs, run.metadata = case.clean.inputs, case.clean.metadata
    run.tensors = {}
    for name, value in case.clean.items():
        if name.startswith("gradient.") and value.shape[:2] == keep.shape:
            value = value.masked_fill(~keep[..., None], 0)
        run.tensors[name] = value
    steps = list(case.replay.steps(run, case.noise))
    assert [step for step in steps if step.standing.is_wrong] == []
    assert not any(step.name.startswith("gradient.parameter.") for step in steps)


@pytest.mark.slow
def test_where_infinity_is_born(case: Case) -> None:
    def overflow(value: Tensor) -> Tensor:
        value[1, 2, 3, 4] = torch.inf
        return value

    found = compared(case, changed(case.clean, "layer.1.local_output", overflow))
    assert found.verdict == "non-finite"
    note = next(note for note in found.notes if "is born" in note)
    assert (
        "in port, NaN or infinity is born in layer.1.local_output, by longformer.encoder.layer.1.attention.self" in note
    )
    assert all(f"layer.1.{part} (at most " in note for part in ("query", "key", "value"))
    assert "which float32 has" in note

    model = fresh(case.pair)
    with torch.no_grad():
        layer(model, 1).intermediate.dense.weight.mul_(1e5)
    truth = Truth(model, case.inputs, loss=lambda output: output.loss)
    a, b = record(model, case.inputs), record(copy.deepcopy(model).half(), case.inputs)
    found = compare(a, b, truth=truth)
    judge_modules(found, a, b, truth)
    note = next(note for note in found.notes if "is born" in note)
    assert "in B, NaN or infinity is born in layer.1.intermediate" in note and "float16 ends at 6.55e+04" in note
