"""Whole training steps: each judged from what was recorded before it; one process against two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parity_training
import pytest
import torch
from parity_training import make_clipped, make_training, run_joined
from torch import Tensor, nn
from training_runs import in_processes

from longformer.cli import main
from longformer.errors import DataError
from longformer.parity import Trace, Training, compare_steps, trace_steps
from longformer.parity.steps import read_ranks, run_training


@pytest.fixture(scope="module")
def clean() -> Trace:
    return run_training(make_training())


def judged(clean: Trace, run: Trace, **settings: Any) -> Any:
    return compare_steps(make_training(), {"one": clean, "other": run}, **settings)


def test_what_is_recorded(clean: Trace) -> None:
    names = list(clean)
    assert names[:2] == ["start.weight.0.weight", "start.weight.0.bias"]
    assert names[6:9] == ["step.0.loss", "step.0.gradient.0.weight", "step.0.gradient.0.bias"]
    assert {"step.2.state.3.bias.exp_avg", "step.2.state.3.bias.exp_avg_sq", "step.2.weight.3.bias"} < set(names)
    made = make_training()
    weights = dict(made.model.named_parameters())
    assert all(torch.equal(clean[f"start.weight.{name}"], weight) for name, weight in weights.items())
    assert not torch.equal(clean["step.0.weight.0.weight"], clean["start.weight.0.weight"])
    with pytest.raises(DataError, match="took no step"), trace_steps(made.model, made.optimizer):
        pass


def test_the_same_is_identical_and_other_kernels_are_rounding(clean: Trace) -> None:
    assert judged(clean, run_training(make_training())).verdict == "identical"
    other = make_training()
    other.optimizer = torch.optim.AdamW(other.model.parameters(), lr=1e-2, foreach=False)
    other.loss = lambda module, step: parity_training.loss(module, step) * 1.0 + 0.0
    run = run_training(other)
    run.tensors = {name: value.clone() for name, value in run.items()}
    run.tensors["step.0.loss"] = run["step.0.loss"].nextafter(torch.tensor(9.0))
    assert judged(clean, run).verdict == "rounding"


def changed(change: Callable[[Training], None]) -> Trace:
    training = make_training()
    change(training)
    return run_training(training)


def decay(training: Training) -> None:
    training.optimizer.param_groups[0]["weight_decay"] = 0.02


def eps(training: Training) -> None:
    training.optimizer.param_groups[0]["eps"] = 1e-6


def betas(training: Training) -> None:
    training.optimizer.param_groups[0]["betas"] = (0.9, 0.99)


@pytest.mark.parametrize(
    ("change", "first", "operation"),
    [
        (decay, "step.0.weight.0.weight", "the optimiser's step"),
        (eps, "step.0.weight.0.weight", "the optimiser's step"),
        (betas, "step.0.state.0.weight.exp_avg_sq", "the optimiser's state"),
    ],
)
def test_a_wrong_optimiser_is_told_from_a_wrong_gradient(
    clean: Trace, change: Callable[[Training], None], first: str, operation: str
) -> None:
    found = judged(clean, changed(change))
    assert found.verdict == "different"
    assert (found.findings[0].step.name, found.findings[0].step.operation) == (first, (operation,))
    assert not any(".gradient." in finding.step.name for finding in found.findings)
    assert {finding.run for finding in found.findings} == {"other"}


def test_a_factor_on_all(clean: Trace) -> None:
    found = judged(clean, run_training(make_clipped()))
    assert all(".gradient." in finding.step.name for finding in found.findings)  # the updates follow from them
    assert "a factor on all gradients of step 1 in other: they are 0." in found.notes[0]
    third = changed(lambda training: setattr(training, "before_step", scaled))
    assert "0.333333 (1/3) times what they should be" in judged(clean, third).notes[0]


def scaled(module: nn.Module) -> None:
    for parameter in module.parameters():
        assert parameter.grad is not None
        parameter.grad /= 3


@pytest.mark.parametrize("name", ["step.1.weight.1.bias", "step.2.state.3.weight.exp_avg", "step.1.gradient.0.weight"])
def test_one_number_is_found_in_its_step_alone(clean: Trace, name: str) -> None:
    def plant(value: Tensor) -> Tensor:
        value = value.clone()
        value.flatten()[1] += 1e-4 * value.abs().max()
        return value

    run = Trace()
    run.metadata, run.tensors = clean.metadata, {k: plant(x) if k == name else x for k, x in clean.items()}
    found = [finding.step.name for finding in judged(clean, run).findings]
    assert found[0] == name  # and what is computed from it next, where that is recorded as it was


def test_other_weights_to_begin_with(clean: Trace) -> None:
    """Every step follows from the one before, in both; the first weights tell that they are not one training."""
    torch.manual_seed(7)
    other = make_training()
    with torch.no_grad():
        next(other.model.parameters()).flatten()[0] += 1e-3
    result = judged(clean, run_training(other))
    assert result.verdict == "different" and result.findings == []
    assert "begin with other weights: start.weight.0.weight" in " ".join(result.notes)


def test_traces_that_do_not_fit(clean: Trace) -> None:
    training = make_training()
    training.steps = 2
    with pytest.raises(DataError, match="one has 3 steps, and the training 2"):
        compare_steps(training, {"one": clean, "other": changed(decay)})
    other = Training(nn.Linear(6, 3), torch.optim.SGD(nn.Linear(6, 3).parameters(), lr=0.1), parity_training.loss, 3)
    with pytest.raises(DataError, match="one is of a model with other parameters"):
        compare_steps(other, {"one": clean, "other": changed(decay)})


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("from parity_training import *\n\ndef number():\n    return 7\n")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["parity", "steps", *arguments])
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, said.out, said.err

    return run


@pytest.mark.slow
def test_two_processes_against_one(command: Any, tmp_path: Path) -> None:
    assert in_processes(run_joined, [(tmp_path,)] * 2) == [None, None]
    status, out, _ = command("train.py:make_training", "rank*.safetensors")
    assert status == 0 and out.startswith("rounding: every step of train.py:make_training and rank*.safetensors")
    assert read_ranks("rank*.safetensors")[1] == []

    status, out, _ = command("train.py:make_training", "alone*.safetensors", "--json", "out.json")
    assert status == 1
    assert "alone1.safetensors and alone0.safetensors disagree first in step.0.gradient.0.weight" in out
    found = json.loads(Path("out.json").read_text())
    assert found["verdict"] == "different" and found["findings"][0]["value"] == "step.0.gradient.0.weight"


def test_the_command(command: Any, clean: Trace) -> None:
    assert command("train.py:make_training", "train.py:make_training")[1].startswith("identical: ")
    status, out, _ = command("train.py:make_training", "train.py:make_clipped")
    assert status == 1 and "by the backward pass" in out and "a factor on all gradients of step 1" in out
    clean.save("clean.safetensors")
    assert command("train.py:make_training", "clean.safetensors")[0] == 0
    for arguments, message in (
        (("train.py:number", "clean.safetensors"), "train.py:number returned a int; it must return a longformer.par"),
        (("clean.safetensors", "train.py:make_training"), "clean.safetensors is no training: the first of"),
        (("train.py:make_training", "none*.safetensors"), "no file at 'none*.safetensors'; trace_steps("),
    ):
        status, _, err = command(*arguments)
        assert status == 2 and message in err
