"""SIGTERM and Ctrl-C while training: a step is finished and saved, all processes stop at it, and nothing is lost."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import (
    assert_same_bits,
    context,
    in_processes,
    interrupted_command,
    last_state,
    qa_options,
    run,
    squad_file,
    start,
)

from longformer import LongformerError
from longformer.distributed import Processes
from longformer.training.checkpoints import saved_steps
from longformer.training.log import read_log
from longformer.training.loop import Trainer
from longformer.training.qa import QuestionAnsweringTask
from longformer.training.signals import Signals

EVERY = {"log_every": 5, "evaluate_every": 3, "checkpoint_every": 100}


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    file = squad_file(tmp_path / "squad.json")
    return {"source": save_tiny_checkpoint(tmp_path / "tiny"), "file": file, "evaluate_on": (file,), **EVERY}


def command_of(options: Any, tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "run.toml").write_text(options.to_toml(), encoding="utf-8")
    return "train", "qa", "--config", str(tmp_path / "run.toml")


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.slow
def test_a_run_that_is_asked_to_stop(setting: dict[str, Any], tmp_path: Path, name: str, status: int) -> None:
    options = qa_options(output=tmp_path / "out", **setting)
    with context().Pool(1) as pool:
        found, stderr = pool.apply(interrupted_command, (name, *command_of(options, tmp_path)))
    assert found == status
    assert f"stopped by {name} at step 5 of 12, which is saved; continue with --resume" in stderr
    assert saved_steps(tmp_path / "out" / "checkpoints")[-1].name == "step-00000005"
    uninterrupted = qa_options(output=tmp_path / "whole", **setting)
    for process in (start(options, resume=True), start(uninterrupted, resume=False)):
        process.join()
        assert process.exitcode == 0
    assert_same_bits(last_state(tmp_path / "out"), last_state(tmp_path / "whole"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    lines = [
        [{name: x for name, x in line.items() if name != "tokens_per_second"} for line in read_log(tmp_path / folder)]
        for folder in ("out", "whole")
    ]
    assert lines[0] == lines[1]


def test_asked_during_an_evaluation_that_was_due(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on with an evaluation, and is asked to stop in its midst, trains no step more."""
    options = qa_options(output=tmp_path / "out", **setting)
    evaluate, calls = QuestionAnsweringTask.evaluate, []

    def asked(self: QuestionAnsweringTask, *arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:  # the model that training begins with
            return evaluate(self, *arguments)
        if len(calls) == 2:
            raise LongformerError("no memory left")
        signal.raise_signal(signal.SIGTERM)
        return evaluate(self, *arguments)

    monkeypatch.setattr(QuestionAnsweringTask, "evaluate", asked)
    with pytest.raises(LongformerError, match="no memory left"):
        run(options)
    monkeypatch.setattr(Trainer, "_train", lambda *rest: pytest.fail("a step was trained"))
    with pytest.raises(SystemExit) as stopped:
        run(options, resume=True)
    assert stopped.value.code == 143
    assert [line["step"] for line in read_log(tmp_path / "out") if "f1" in line] == [0, 3]


@pytest.mark.slow
def test_two_processes_of_which_one_is_asked(setting: dict[str, Any], tmp_path: Path) -> None:
    setting |= {"evaluate_every": 5}  # due at that very step: left for when the run goes on
    options = qa_options(output=tmp_path / "out", **setting)
    arguments = command_of(options, tmp_path)
    first, second = in_processes(interrupted_command, [("", *arguments), ("SIGTERM", *arguments)])
    assert (first[0], second[0]) == (143, 143)
    assert "stopped by SIGTERM at step 5 of 12" in first[1]
    assert saved_steps(tmp_path / "out" / "checkpoints")[-1].name == "step-00000005"
    assert [line["step"] for line in read_log(tmp_path / "out") if "f1" in line] == [0]
    assert in_processes(run, [(options, True), (options, True)]) == [None, None]
    uninterrupted = qa_options(output=tmp_path / "whole", **setting)
    assert in_processes(run, [(uninterrupted,), (uninterrupted,)]) == [None, None]
    assert_same_bits(last_state(tmp_path / "out"), last_state(tmp_path / "whole"))


def test_handlers() -> None:
    """They are in place within alone; a second signal is what it always was; one that is ignored stays ignored."""
    signals = Signals(Processes(0, 1, torch.device("cpu"), joined=False))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with signals.recorded():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            assert signals.agreed() is None
            signal.raise_signal(signal.SIGINT)
            assert signals.agreed() == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
