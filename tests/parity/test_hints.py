"""Hints: every known slip is named where it is planted, no other with it, and nothing is named where none was made."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_mistakes import LAYER, layer, run
from parity_plants import FAMILIES, PLANTS, Plant, after, before, model_of
from torch import Tensor, nn

from longformer.parity import Comparison, Trace, Truth, compare, trace
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
@pytest.mark.parametrize("how", ["banded", "one row"])
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


# ---- what only the trace has wrong, what lacks, and gradients


def with_value(run: Trace, name: str, value: Tensor) -> Trace:
    """The trace with another tensor in one place: only what was recorded is wrong."""
    changed = Trace()
    changed.tensors, changed.inputs, changed.metadata = {**run.tensors, name: value}, run.inputs, run.metadata
    return changed


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("layer.1.output", "before the norm", "it was recorded before its LayerNorm"),
        ("layer.1.attention_output", "before the norm", "it was recorded before its LayerNorm"),
        ("layer.1.query", "scaled", "it was recorded after the scale (a trace has it before)"),
        ("layer.1.key", "reversed", "the heads are in another order: 3, 2, 1, 0"),
    ],
)
def test_only_the_recording_is_wrong(name: str, how: str, says: str) -> None:
    inputs, truth, right = scene_of("plain")
    match how:
        case "scaled":
            value = right[name] / 8**0.5
        case "reversed":
            value = right[name].flip(1)
        case _:
            model, kept = model_of(FAMILIES["plain"]), []
            part = layer(model).output if name.endswith("1.output") else layer(model).attention.output
            before(part.LayerNorm, lambda x: kept.append(x) or x)  # type: ignore[func-returns-value]
            run(model, inputs)
            value = kept[0]
    found = compare(right, with_value(right, name, value), truth=truth)
    assert found.first is not None and found.first.name == name
    assert len(found.hints) == 1
    assert found.hints[0].startswith(f"only the recording of {name} is wrong, since layer.")
    assert says in found.hints[0]


@pytest.mark.parametrize("rows", ["value", "query"])
def test_local_output_that_is_not_0_at_global_tokens(rows: str) -> None:
    inputs, truth, right = scene_of("scattered")
    is_global, name = inputs["global_attention_mask"].bool(), "layer.1.local_output"
    written = right[name].clone()
    written.transpose(1, 2)[is_global] = right[f"layer.1.{rows}"].transpose(1, 2)[is_global]
    found = compare(right, with_value(right, name, written), truth=truth)
    assert found.hints == [
        f"{name} must be 0 at the global tokens, whose rows are in layer.1.global_rows; elsewhere it is right"
    ]
    written[0, 0, 40] += 1  # a token that is not global
    found = compare(right, with_value(right, name, written), truth=truth)
    assert found.verdict == "different" and found.hints == []


def test_a_trace_that_lacks_what_a_value_is_computed_from() -> None:
    _, truth, right = scene_of("plain")
    lacking = with_value(right, "layer.1.query", right["layer.1.query"] + 1)
    lacking.tensors = {name: value for name, value in lacking.tensors.items() if name != "layer.0.output"}
    found = compare(right, lacking, truth=truth)
    assert found.hints == []
    assert "known slips were not tried on layer.1.query: the trace lacks layer.0.output" in found.notes[0]


def test_long_inputs_are_said_not_to_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longformer.parity.attention_replay.DENSE", 20)
    monkeypatch.setattr("longformer.parity.hints.DENSE", 20)
    found = compared(PLANTS["window off by one"][0].plant)
    assert found.hints == []
    assert found.notes == [
        "slips of attention were not tried on layer.1.local_output: they are replayed up to 20 tokens, and these are "
        "57; compare a shorter input (--max-tokens 20)"
    ]


def test_too_few_tokens_to_see_other_weights() -> None:
    inputs, _, _ = scene_of("plain")
    short = {name: tensor[:1, :20] for name, tensor in inputs.items()} | {
        "global_attention_mask": torch.zeros(1, 20, dtype=torch.long)
    }
    model = model_of(FAMILIES["plain"])
    right, truth = run(model, short), Truth(model, short)
    port = model_of(FAMILIES["plain"])
    layer(port).attention.self.value.weight.data[3] += 0.1
    found = compare(right, run(port, short), truth=truth)
    assert found.hints == []
    assert (
        "whether attention.self.value has other weights shows from 40 distinct tokens on, and these are 20"
        in (found.notes[1])
    )


@pytest.mark.parametrize("count", [1, 3])
def test_wrong_gradients_are_counted(count: int) -> None:
    inputs, _, _ = scene_of("plain")
    answers = torch.tensor([10, 9, 30])
    inputs = {**inputs, "start_positions": answers, "end_positions": answers + 1}

    def gradients(model: Any) -> Trace:
        with trace(model, gradients=True, digests=False) as recorded:
            recorded.backward(model(**inputs).loss)
        return recorded

    truth = Truth(model_of(FAMILIES["plain"]), inputs, loss=lambda output: output.loss)
    model = model_of(FAMILIES["plain"])
    parts = layer(model, 2).output.dense, layer(model, 0).attention.self.key, model.longformer.embeddings.LayerNorm
    for part in parts[:count]:
        part.weight.register_hook(lambda gradient: 1.5 * gradient)
    found = compare(gradients(model_of(FAMILIES["plain"])), gradients(model), truth=truth)
    first = "longformer.encoder.layer.2.output.dense.weight"
    assert found.first is not None and found.first.name == f"gradient.parameter.{first}"
    if count == 1:
        assert found.hints[0].startswith(f"only the gradient by {first} is wrong")
    else:
        assert found.hints == [
            f"the gradients by {count} parameters are wrong, and those by all recorded values are right; the backward "
            f"pass comes to {first} first"
        ]


# ---- padding, and the ends of a document


@pytest.mark.parametrize("fill", [0.0, 1e4, float("nan")])
def test_padding_does_not_count(fill: float) -> None:
    inputs, truth, right = scene_of("plain")
    padding, port = inputs["attention_mask"] == 0, right
    for name in right:
        value = right[name].clone()
        if value.shape[:2] == padding.shape:
            value[padding] = fill
        elif "query" in name or "key" in name or "value" in name:
            value.transpose(1, 2)[padding] = fill
        port = with_value(port, name, value)
    assert compare(right, port, truth=truth).verdict == "identical"
    wrong = right["layer.1.local_output"].clone()
    wrong.transpose(1, 2)[padding] = 1.0
    found = compare(right, with_value(right, "layer.1.local_output", wrong), truth=truth)
    assert found.verdict == "different" and found.first is not None and found.first.name == "layer.1.local_output"


def test_edges_are_named_where_they_matter() -> None:
    at_edges = compared(PLANTS["window shifted at the ends"][0].plant)
    assert at_edges.first is not None
    assert {position.kinds for position in at_edges.first.positions} == {("window edge",)}
    everywhere = compared(PLANTS["window off by one"][0].plant)
    assert everywhere.first is not None
    assert {position.kinds for position in everywhere.first.positions} == {()}


def test_every_slip_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "parity.md").read_text()
    section = page[page.index("## The hint") : page.index("## The JSON")]
    listed = re.split(r", | \|", section)
    assert [slip.name for slip in SLIPS if slip.name not in {entry.strip(" |\n") for entry in listed}] == []


def test_forms_that_cannot_be_told_apart_are_named_together() -> None:
    def plant(model: Any) -> None:
        layer(model).output.LayerNorm.eps = 1e-12

    (hint,) = compared(plant).hints
    assert hint.startswith("LayerNorm's eps is 1e-12 or 1e-08 or 1e-07")
    assert " instead of 1e-05; with this slip" in hint


def test_a_layer_that_has_no_window() -> None:
    """Slips of attention are of windows. In a full layer none is tried, and a note says so."""
    family = FAMILIES["plain"]._replace(config=FAMILIES["plain"].config.replace(attention_pattern="window=4/full"))
    inputs, model, spoilt = family.inputs(), model_of(family), model_of(family)
    assert spoilt.config.pattern(LAYER).window is None
    after(layer(spoilt).attention.self, lambda result, *given: result * 1.01)
    found = compare(run(model, inputs), run(spoilt, inputs), truth=Truth(model, inputs))
    assert found.verdict == "different" and found.first is not None
    assert found.first.name == f"layer.{LAYER}.local_output" and found.hints == []
    assert any("they are of windows, which this layer has not" in note for note in found.notes)
