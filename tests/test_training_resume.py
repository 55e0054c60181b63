"""Nothing is lost: a run that is killed, meets a full disk or a bad checkpoint, ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import assert_same_bits, last_state, qa_options, run, squad_file, start

from longformer import CheckpointError, LongformerError
from longformer.training import checkpoints
from longformer.training.log import read_log
from longformer.training.loop import Trainer

RESULT = "model.safetensors"


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    file = squad_file(tmp_path / "squad.json")
    return {"source": save_tiny_checkpoint(tmp_path / "tiny"), "file": file, "evaluate_on": (file,)}


def test_killed_at_random_moments(setting: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit the same weights, moments and random states, and the same best weights, as without."""
    setting |= {"checkpoint_every": 1, "annotator": "random", "evaluate_every": 3}
    whole = qa_options(output=tmp_path / "whole", **setting)
    began = time.monotonic()
    process = start(whole, resume=False)
    process.join()
    assert process.exitcode == 0
    duration = time.monotonic() - began
    killed = qa_options(output=tmp_path / "killed", **setting)
    chance, kills = random.Random(5), 0
    for _ in range(6):
        process = start(killed, resume=True)
        process.join(chance.uniform(0.1, 1.0) * duration)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
    process = start(killed, resume=True)
    process.join()
    assert process.exitcode == 0
    assert kills >= 2
    assert_same_bits(last_state(tmp_path / "killed"), last_state(tmp_path / "whole"))
    assert (tmp_path / "killed" / RESULT).read_bytes() == (tmp_path / "whole" / RESULT).read_bytes()
    losses = [
        [(line["step"], line["loss"]) for line in read_log(tmp_path / name) if "loss" in line]
        for name in ("whole", "killed")
    ]
    assert [step for step, _ in losses[1]] == [step for step, _ in losses[0]]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def test_a_full_disk(setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third checkpoint meets a limit on the size of files; the second stays, and the run goes on from it."""
    setting |= {"checkpoint_every": 2}
    save, calls = checkpoints.save_state, []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            save(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    options = qa_options(output=tmp_path / "out", **setting)
    monkeypatch.setattr(checkpoints, "save_state", limited)
    with pytest.raises(CheckpointError, match=r"step-00000006 cannot be written .*step-00000004, is intact"):
        run(options)
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000004"]
    run(options, resume=True)
    run(qa_options(output=tmp_path / "whole", **setting))
    assert_same_bits(last_state(tmp_path / "out"), last_state(tmp_path / "whole"))


@pytest.mark.parametrize("what", ["cut", "changed", "no state", "bad state"])
def test_a_corrupt_checkpoint(setting: dict[str, Any], tmp_path: Path, what: str) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=4, checkpoint_every=2, **setting)
    run(options)
    last = checkpoints.saved_steps(tmp_path / "out" / "checkpoints")[-1]
    tensors, state = last / checkpoints.TENSORS, last / checkpoints.STATE
    data = bytearray(tensors.read_bytes())
    data[-5] ^= 1
    if what == "cut":
        tensors.write_bytes(data[:100])
    elif what == "changed":
        tensors.write_bytes(data)
    elif what == "no state":
        state.unlink()
    else:
        state.write_text("[1")
    with pytest.raises(
        CheckpointError, match=r"step-00000004 is corrupt .*the one before it, step-00000002, delete it"
    ):
        run(options, resume=True)
    before = {path.name: path.read_bytes() for path in (last.parent / "step-00000002").iterdir()}
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    run(options, resume=True)
    assert {path.name: path.read_bytes() for path in (last.parent / "step-00000002").iterdir()} == before


def test_a_loss_that_is_no_number(setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = qa_options(output=tmp_path / "out", checkpoint_every=2, **setting)
    backward = Trainer._backward

    def spoilt(self: Trainer, *arguments: Any) -> float:
        loss = backward(self, *arguments)
        return float("nan") if self.step == 5 else loss

    monkeypatch.setattr(Trainer, "_backward", spoilt)
    with pytest.raises(LongformerError, match=r"loss is nan in step 6; try a lower .*step-00000004 are from before it"):
        run(options)
    monkeypatch.undo()
    assert all(bool(x.isfinite().all()) for x in last_state(tmp_path / "out").values() if x.is_floating_point())
    run(options, resume=True)


def test_resuming_with_other_choices_or_other_data(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=2, **setting)
    run(options)
    with pytest.raises(
        LongformerError, match=r"begun with other choices: learning_rate \(0\.001, 0\.1\) \(then, now\)"
    ):
        run(qa_options(output=tmp_path / "out", max_steps=2, **{**setting, "learning_rate": 0.1}), resume=True)
    # What decides nothing about the weights may change.
    run(qa_options(output=tmp_path / "out", max_steps=2, checkpoint_every=7, **setting), resume=True)
    squad_file(Path(setting["file"]), [("Who?", "Zoe.", "Zoe"), ("Where?", "At home.", "home")])
    with pytest.raises(LongformerError, match="trained on other data than the files hold now"):
        run(options, resume=True)


def test_resuming_what_is_done_changes_nothing(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=3, **setting)
    run(options)
    result, log = (tmp_path / "out" / RESULT).read_bytes(), read_log(tmp_path / "out")
    run(options, resume=True)
    assert (tmp_path / "out" / RESULT).read_bytes() == result
    assert read_log(tmp_path / "out") == log


def test_a_log_line_that_was_cut_off(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=3, log_every=1, **setting)
    run(options)
    log = tmp_path / "out" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "loss": 1.0, "learning_rate": 0.0}\n{"step": 2, "lo')
    run(options, resume=True)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines() if "loss" in line] == [1, 2, 3]


def test_random_states_of_another_number_of_processes_are_drawn_anew() -> None:
    states = checkpoints.rng_tensors([{"cpu": torch.ones(2)}, {"cpu": torch.zeros(2)}])
    assert torch.equal(checkpoints.rng_of(states, 1)["cpu"], torch.zeros(2))
    assert checkpoints.rng_of(states, 2) == {}
