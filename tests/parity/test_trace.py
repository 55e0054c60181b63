"""Recording: what a trace has, that it is right, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import TINY, build, encode, padded_batch, question_row
from tolerances import FLOAT32
from torch import Tensor, nn

from longformer import LongformerForMaskedLM, LongformerModel
from longformer.errors import LongformerError
from longformer.kernels import AttentionPattern, attention_pairs, choose, dispatch
from longformer.kernels.softmax import masked_softmax
from longformer.parity import Table, Trace, Value, assert_parity, read_trace, trace

PER_LAYER = [
    "query",
    "key",
    "value",
    "local_output",
    "global_rows",
    "attention_output",
    "intermediate",
    "feed_forward",
    "output",
]


def inputs(*, holes: bool = False) -> dict[str, Tensor]:
    batch = padded_batch(TINY, [question_row(TINY, 6, 40), question_row(TINY, 3, 23)])
    if holes:
        batch["attention_mask"][0, 15:18] = 0
    return batch


def run(model: nn.Module, batch: dict[str, Tensor], **settings: Any) -> Trace:
    with torch.no_grad(), trace(model, **settings) as recorded:
        model(**batch)
    return recorded


def state_of(model: nn.Module) -> list[Any]:
    """All that a recording could leave behind."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return [
        (name, sorted(vars(part)), [len(getattr(part, kind)) for kind in hooks], getattr(part, "impl", None))
        for name, part in model.named_modules()
    ]


@pytest.mark.parametrize("which", ["ours", "reference"])
def test_values_in_order_and_shape(which: str) -> None:
    batch = inputs()
    recorded = run(getattr(build(TINY), which), batch)
    names = ["embeddings", *(f"layer.{n}.{part}" for n in range(3) for part in PER_LAYER), "logits"]
    assert list(recorded) == names
    assert recorded["embeddings"].shape == (2, 40, 32)
    assert recorded["layer.1.query"].shape == (2, 4, 40, 8)
    assert recorded["layer.1.local_output"].shape == (2, 4, 40, 8)
    assert recorded["layer.1.global_rows"].shape == (2, 4, 7, 8)
    assert recorded["layer.1.feed_forward"].shape == (2, 40, 48)
    assert recorded["logits"].shape == (2, 40, 2)
    assert set(recorded.inputs) == {"input_ids", "attention_mask", "global_attention_mask"}
    assert recorded.inputs["global_attention_mask"].sum().item() == 7 + 4  # what the head set by itself
    assert recorded.metadata["implementation"] == ("longformer" if which == "ours" else "transformers")


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("which", ["ours", "reference"])
def test_states_are_what_the_model_computes(which: str, holes: bool) -> None:
    pair, batch = build(TINY), inputs(holes=holes)
    model = getattr(pair, which)
    recorded, expected = run(model, batch), encode(model, batch)
    for n, state in enumerate(expected.states):
        torch.testing.assert_close(recorded["embeddings" if n == 0 else f"layer.{n - 1}.output"], state)
    torch.testing.assert_close(recorded["logits"], torch.stack(expected.results, dim=-1))


@pytest.mark.parametrize("holes", [False, True])
def test_both_models_have_the_same_values(holes: bool) -> None:
    pair, batch = build(TINY), inputs(holes=holes)
    ours, reference = run(pair.ours, batch), run(pair.reference, batch)
    assert list(ours) == list(reference)
    for name, value in ours.items():
        torch.testing.assert_close(value, reference[name], msg=lambda text, name=name: f"{name}: {text}")


def test_values_are_before_what_is_done_to_them_in_place() -> None:
    # The reference scales its queries in place, in the very tensor that the projection gave.
    pair, batch = build(TINY), inputs()
    attention = pair.reference.longformer.encoder.layer[0].attention.self
    recorded = run(pair.reference, batch)
    query = attention.query(recorded["embeddings"]).unflatten(-1, (4, 8)).transpose(1, 2)
    torch.testing.assert_close(recorded["layer.0.query"], query)


def test_rows_behind_the_tokens_in_training_are_not_recorded() -> None:
    model = build(dataclasses.replace(TINY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).ours.bfloat16()
    batch = padded_batch(TINY, [question_row(TINY, 6, 40), question_row(TINY, 3, 40)])
    evaluated = run(model.eval(), batch)
    for name, value in run(model.train(), batch).items():
        torch.testing.assert_close(value, evaluated[name], rtol=0.05, atol=0.05)


def test_probabilities() -> None:
    pair, batch = build(TINY), inputs(holes=True)
    ours, reference = (run(model, batch, probabilities=True) for model in (pair.ours, pair.reference))
    assert list(ours) == list(reference)
    for n in range(3):
        band, columns, rows = (ours[f"layer.{n}.{kind}_probabilities"] for kind in ("band", "column", "global"))
        assert (band.shape, columns.shape, rows.shape) == ((2, 4, 40, 9), (2, 4, 40, 7), (2, 4, 7, 40))
        present = (batch["attention_mask"] != 0) & (ours.inputs["global_attention_mask"] == 0)
        total = (band.sum(dim=-1) + columns.sum(dim=-1)).movedim(1, -1)
        torch.testing.assert_close(total[present], torch.ones_like(total[present]))
        assert float(total[~present].abs().max()) == 0
        for kind in ("band", "column", "global"):
            name = f"layer.{n}.{kind}_probabilities"
            torch.testing.assert_close(ours[name], reference[name], atol=1e-6, rtol=1e-4)
    fast = choose(torch.empty(1, 1, 1, 8)).impl
    assert ours.metadata["kernel"] == f"banded, which agrees with {fast}"


def test_probabilities_of_a_dilated_window() -> None:
    """By diagonals as by definition, global tokens inside the band and between its tokens."""
    model = build(TINY.replace(attention_dilation=[1, 2, [1, 2, 3, 5]])).ours
    batch = inputs(holes=True)
    recorded = run(model, batch, probabilities=True)
    keep, globals_ = (recorded.inputs[name] != 0 for name in ("attention_mask", "global_attention_mask"))
    for n in range(3):
        query, key, band, columns = (
            recorded[f"layer.{n}.{part}"] for part in ("query", "key", "band_probabilities", "column_probabilities")
        )
        gaps = TINY.replace(attention_dilation=[1, 2, [1, 2, 3, 5]]).dilation(n)
        pairs = attention_pairs(40, (4, 4), dilation=gaps, key_mask=keep, global_mask=globals_)
        dense = masked_softmax(query @ key.transpose(2, 3) / 8**0.5, pairs)
        dense = dense.masked_fill(globals_[:, None, :, None], 0)
        found = torch.zeros_like(dense)
        for b, h, i, c in band.nonzero().tolist():
            found[b, h, i, i + (c - 4) * gaps[h]] += band[b, h, i, c]
        for b in range(len(globals_)):
            for g, token in enumerate(globals_[b].nonzero().flatten().tolist()):
                assert float(found[b, :, :, token].abs().max()) == 0
                found[b, :, :, token] = columns[b, :, :, g]
        torch.testing.assert_close(found, dense, atol=1e-6, rtol=1e-4)


def test_probabilities_of_a_kernel_that_is_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import longformer.models.attention

    pair, batch = build(TINY), inputs()
    right = longformer.models.attention.attend

    def wrong(
        query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern, *rest: Any, **settings: Any
    ) -> Tensor:
        left, on_the_right = pattern.window or (0, 0)
        return right(
            query, key, value, dataclasses.replace(pattern, window=(left - 1, on_the_right)), *rest, **settings
        )

    monkeypatch.setattr(longformer.models.attention, "attend", wrong)
    with pytest.raises(LongformerError, match=r"layer\.0\.local_output: attention with probabilities"):
        run(pair.ours, batch, probabilities=True)


@pytest.mark.parametrize("which", ["ours", "reference"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_nothing_is_left_behind(which: str, probabilities: bool, tmp_path: Path) -> None:
    model, batch = getattr(build(TINY), which), inputs()
    before = state_of(model)
    run(model, batch, probabilities=probabilities)
    assert state_of(model) == before
    path = tmp_path / "trace.safetensors"
    with pytest.raises(ZeroDivisionError), trace(model, probabilities=probabilities, path=path):
        model(**batch)
        raise ZeroDivisionError
    assert state_of(model) == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LongformerError, match="ran twice"), torch.no_grad(), trace(model):
        model(**batch)
        model(**batch)
    assert state_of(model) == before


def test_gradients_leave_nothing_behind() -> None:
    pair, batch = build(TINY), inputs()
    batch |= {"start_positions": torch.tensor([9, 7]), "end_positions": torch.tensor([10, 8])}
    before = state_of(pair.ours)
    with trace(pair.ours, gradients=True) as recorded:
        recorded.backward(pair.ours(**batch).loss)
    assert state_of(pair.ours) == before
    assert all(parameter.grad is None for parameter in pair.ours.parameters())
    with pytest.raises(LongformerError, match="only inside"):
        recorded.backward(torch.zeros(()))
    pair.ours(**batch).loss.backward()
    for name, parameter in pair.ours.named_parameters():
        torch.testing.assert_close(recorded[f"gradient.parameter.{name}"], parameter.grad)
    gradient = recorded["gradient.layer.1.output"]
    assert gradient.shape == (2, 40, 32)
    assert float(gradient[1, 23:].abs().max()) > 0  # the softmax over positions reaches padding too
    assert float(gradient[1, :23].abs().max()) > 0


@pytest.mark.parametrize("rows", [1, 2])
def test_both_models_have_the_same_gradients(rows: int) -> None:
    # The reference changes its queries in place; of a single row, they are a view, and autograd treats those otherwise.
    pair = build(TINY)
    batch = {name: tensor[:rows] for name, tensor in inputs().items()}
    batch |= {"start_positions": torch.tensor([9, 7])[:rows], "end_positions": torch.tensor([10, 8])[:rows]}
    found = []
    for model in pair:
        with trace(model, gradients=True) as recorded:
            recorded.backward(model(**batch).loss)
        assert torch.equal(recorded.inputs["start_positions"], batch["start_positions"])
        assert torch.equal(recorded.inputs["end_positions"], batch["end_positions"])
        found.append(recorded)
    assert list(found[0]) == list(found[1])
    assert {f"gradient.{name}" for name in found[0] if not name.startswith("gradient.")} <= set(found[0])
    for name, value in found[0].items():
        atol = 1e-6 if name.startswith("gradient.") else FLOAT32
        torch.testing.assert_close(value, found[1][name], atol=atol, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_gradients_need_a_run_with_gradients() -> None:
    pair, batch = build(TINY), inputs()
    with pytest.raises(LongformerError, match="gradients enabled"), trace(pair.ours, gradients=True) as recorded:
        with torch.no_grad():
            output = pair.ours(**batch)
        recorded.backward(output.start_logits.sum())


def test_only_some_values() -> None:
    recorded = run(build(TINY).ours, inputs(), only=["layer.*.output", "logits"])
    assert list(recorded) == ["layer.0.output", "layer.1.output", "layer.2.output", "logits"]
    with pytest.raises(
        LongformerError, match=r"only='layer.7.\*' matches no value; there are embeddings, layer.0.query"
    ):
        run(build(TINY).ours, inputs(), only=["logits", "layer.7.*"])


def test_a_base_model_has_its_pooler() -> None:
    pair = build(TINY, kind=LongformerModel)
    batch = inputs() | {"global_attention_mask": torch.zeros(2, 40, dtype=torch.long)}
    ours, reference = run(pair.ours, batch), run(pair.reference, batch)
    assert "layer.0.global_rows" not in ours
    torch.testing.assert_close(ours["pooler_output"], reference["pooler_output"])


def test_a_model_that_did_not_run() -> None:
    with pytest.raises(LongformerError, match="did not run"), trace(build(TINY).ours):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_kernel_is_the_one_that_ran(dtype: torch.dtype, gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def watch(*arguments: Any) -> Any:
        found = dispatch.select(*arguments)
        chosen.append(found[0].impl)
        return found

    model, batch = build(TINY).ours.to(dtype), inputs()
    with monkeypatch.context() as patch:
        patch.setattr("longformer.kernels.call.select", watch)
        model.requires_grad_(gradients)
        model(**batch)
    with trace(model) as recorded:
        model(**batch)
    assert recorded.metadata["kernel"] == ", ".join(dict.fromkeys(chosen)) != "auto"
    model.longformer.encoder.layer[1].attention.self.impl = "banded"
    assert run(model, batch).metadata["kernel"] == f"{choose(torch.empty(1, 1, 1, 8, dtype=dtype)).impl}, banded"


@pytest.mark.parametrize("which", ["ours", "reference"])
def test_modes_that_cannot_be_recorded(which: str) -> None:
    model = getattr(build(dataclasses.replace(TINY, attention_probs_dropout_prob=0.1)), which).train()
    with (
        pytest.raises(LongformerError, match=r"recorded without dropout, and longformer\.encoder.*dropout of 0\.1"),
        trace(model, probabilities=True),
    ):
        raise AssertionError("it is refused before anything runs")
    if which == "ours":
        model.longformer.encoder.gradient_checkpointing = True
    else:  # under the newer of its names
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with (
        pytest.raises(LongformerError, match=r"longformer\.encoder.* has gradient_checkpointing, by which layers run"),
        trace(model, gradients=True),
    ):
        raise AssertionError("it is refused before anything runs")
    # In eval() neither is in effect.
    batch = inputs() | {"start_positions": torch.tensor([9, 7]), "end_positions": torch.tensor([10, 8])}
    with trace(model.eval(), gradients=True, probabilities=True) as recorded:
        recorded.backward(model(**batch).loss)
    assert "gradient.layer.0.output" in recorded and "layer.0.band_probabilities" in recorded


def test_masked_language_modelling_has_its_scores() -> None:
    model, batch = LongformerForMaskedLM(TINY).eval(), inputs()
    recorded = run(model, batch)
    assert list(recorded)[-1] == "logits"
    torch.testing.assert_close(recorded["logits"], model(**batch).logits.detach())
    with trace(model, gradients=True) as recorded:
        recorded.backward(model(**batch).logits.square().mean())
    assert recorded["gradient.logits"].shape == (2, 40, 60)
    assert "gradient.parameter.lm_head.bias" in recorded
    with trace(model, gradients=True) as with_labels:
        with_labels.backward(model(**batch, labels=batch["input_ids"]).loss)
    assert torch.equal(with_labels["logits"], model(**batch).logits)
    with pytest.raises(LongformerError, match="call the model without only_targets"), trace(model):
        model(**batch, labels=batch["input_ids"], only_targets=True)


class Other(nn.Module):
    """A model of someone else."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor, *, again: bool = False) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.blocks[0](x) if again else x


def test_any_module_with_a_table() -> None:
    model, x = Other(), torch.randn(5, 2, 6)
    table = Table({"blocks.{n}": Value("layer.{n}.output", "heads", "sbc")}, heads=3)
    with trace(model, table=table) as recorded:
        y = model(x)
    assert list(recorded) == ["layer.0.output", "layer.1.output"]
    torch.testing.assert_close(recorded["layer.1.output"].transpose(1, 2).flatten(2), y.detach().transpose(0, 1))
    torch.testing.assert_close(recorded.inputs["argument0"], x)
    with pytest.raises(LongformerError, match=r"layer.0.output ran twice"), trace(model, table=table):
        model(x, again=True)


class Named(nn.Module):
    """Whose modules are neither named nor defined in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.steps, self.first = (
            nn.Linear(6, 6),
            nn.ModuleList(nn.Linear(6, 6) for _ in range(11)),
            nn.Linear(6, 6),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for step in self.steps:
            x = step(x)
        return self.last(x)


def test_a_table_is_in_order_of_computation(tmp_path: Path) -> None:
    table = Table({"first": Value("z_first"), "steps.{n}": Value("y.{n}.step")}, {"last": Value("a_last")})
    names = ["z_first", *(f"y.{n}.step" for n in range(11)), "a_last"]
    model, path = Named(), tmp_path / "a.safetensors"
    with trace(model, table=table, gradients=True) as held:
        held.backward(model(torch.randn(2, 3, 6)).sum())
    activations = [name for name in held if not name.startswith("gradient.")]
    assert activations == names
    assert list(held)[13:26] == [f"gradient.{name}" for name in reversed(names)]
    held.save(path)
    assert list(read_trace(path)) == list(held)
    double = Named().double()
    double.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 6)
    a, b, truth = (
        run_table(m, x.to(dtype), table) for m, dtype in ((model, x.dtype), (model, x.dtype), (double, torch.float64))
    )
    assert_parity(a, b, truth)
    with torch.no_grad():
        model.steps[9].bias += 1e-3
    with pytest.raises(AssertionError, match=r"^y\.9\.step: actual is"):
        assert_parity(run_table(model, x, table), b, truth)


def run_table(model: nn.Module, x: Tensor, table: Table) -> Trace:
    with torch.no_grad(), trace(model, table=table) as recorded:
        model(x)
    return recorded


def test_layers_of_a_table_follow_one_another() -> None:
    model = nn.ModuleList(nn.Sequential(nn.Tanh(), nn.Linear(6, 6)) for _ in range(2))
    fitted = Table({"{n}.0": Value("z.{n}"), "{n}.1": Value("a.{n}")}).fit(model)
    assert [value.name for value in fitted.values()] == ["z.0", "a.0", "z.1", "a.1"]


def test_a_table_that_does_not_fit() -> None:
    model = Other()
    with (
        pytest.raises(LongformerError, match=r"no module encoder.{n}; its modules are blocks, blocks.0"),
        trace(model, table=Table({"encoder.{n}": Value("x.{n}")})),
    ):
        pass
    with pytest.raises(LongformerError, match="one name: x"), trace(model, table=Table({"blocks.{n}": Value("x")})):
        pass
    with pytest.raises(LongformerError, match="Other is neither our Longformer nor transformers'"), trace(model):
        pass
    table = Table({"blocks.{n}": Value("layer.{n}", "heads")})
    with pytest.raises(LongformerError, match="does not say how many"), trace(model, table=table):
        model(torch.randn(2, 5, 6))


def test_a_saved_trace_is_the_trace(tmp_path: Path) -> None:
    pair, batch = build(TINY), inputs()
    held = run(pair.ours, batch)
    held.save(tmp_path / "saved.safetensors")
    streamed = run(pair.ours, batch, path=tmp_path / "streamed.safetensors")
    for other in (read_trace(tmp_path / "saved.safetensors"), streamed):
        assert list(other) == list(held)
        assert other.metadata == held.metadata
        assert all(torch.equal(other[name], value) for name, value in held.items())
        assert all(torch.equal(other.inputs[name], value) for name, value in held.inputs.items())


STREAM = """
import resource, sys
import torch
from longformer import LongformerConfig
from longformer.parity import read_trace, trace
from longformer.parity.runs import draw

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

torch.set_num_threads(1)
config = LongformerConfig(
    vocab_size=60, hidden_size=128, num_hidden_layers=16, num_attention_heads=4, intermediate_size=1024,
    max_position_embeddings=2050, attention_window=64,
)
model = draw(config, seed=0)
inputs = {"input_ids": torch.randint(3, 60, (1, 2048)), "global_attention_mask": torch.zeros(1, 2048).long()}
with torch.no_grad():
    model(**inputs)
    before = peak()
    with trace(model, path=sys.argv[1]):
        model(**inputs)
print(peak() - before)
"""


@pytest.mark.slow
def test_a_trace_need_not_fit_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    done = subprocess.run([sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True)
    assert path.stat().st_size > 350e6
    assert int(done.stdout) < 120e6  # a layer and what is on its way to the file, not the sixteen of them


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ours", "reference"])
def test_a_compiled_model_is_recorded_at_the_boundaries_of_its_parts(which: str) -> None:
    pair, batch = build(dataclasses.replace(TINY, num_hidden_layers=1, attention_window=8)), inputs()
    batch |= {"start_positions": torch.tensor([9, 7]), "end_positions": torch.tensor([10, 8])}
    model = getattr(pair, which)
    seen = []

    def backend(graph: Any, example: Any) -> Any:
        seen.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend)
    before = state_of(model)
    # Of transformers' model torch cannot compile all.
    suppressed = torch._dynamo.config.patch(suppress_errors=which == "reference")
    with suppressed, trace(compiled, gradients=True) as recorded:
        recorded.backward(compiled(**batch).loss)
    assert seen, "nothing was compiled"
    forward = [name for name in recorded if not name.startswith("gradient.")]
    assert forward == ["embeddings", "layer.0.output", "logits"]
    with trace(model, gradients=True) as plain:
        plain.backward(model(**batch).loss)
    for name in recorded:
        torch.testing.assert_close(recorded[name], plain[name], atol=1e-5, rtol=1e-4)
    assert state_of(model) == before
    with pytest.raises(LongformerError, match="inside what is compiled"), trace(compiled, probabilities=True):
        pass
