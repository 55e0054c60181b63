"""Nothing is lost: a run that is killed, meets a full disk or a bad checkpoint, ends as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import assert_same_bits, context, last_state, qa_options, run, run_with_fault, squad_file, start

from longformer import CheckpointError, LongformerConfig, LongformerError, LongformerForQuestionAnswering
from longformer.training import checkpoints, loop
from longformer.training.log import read_log
from longformer.training.loop import Trainer
from longformer.training.qa import QuestionAnsweringTask

RESULT = "model.safetensors"


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    file = squad_file(tmp_path / "squad.json")
    return {"source": save_tiny_checkpoint(tmp_path / "tiny"), "file": file, "evaluate_on": (file,)}


@pytest.mark.slow
def test_killed_at_random_moments(setting: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit the same weights, moments and random states, and the same best weights, as without."""
    setting |= {"checkpoint_every": 1, "annotator": "random", "evaluate_every": 3}
    uninterrupted = qa_options(output=tmp_path / "whole", **setting)
    process = start(uninterrupted, resume=False)
    process.join()
    assert process.exitcode == 0
    killed = qa_options(output=tmp_path / "killed", **setting)
    chance, kills = random.Random(5), 0
    for least in (0, 2, 4, 7):  # checkpoints to wait for: the machine's speed decides neither whether nor how often
        process = start(killed, resume=True)
        while process.exitcode is None and _last_step(tmp_path / "killed") < least:
            time.sleep(0.002)
        process.join(chance.uniform(0.0, 0.05))
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
        [(line["step"], line["loss"], line["tokens"]) for line in read_log(tmp_path / name) if "loss" in line]
        for name in ("whole", "killed")
    ]
    assert losses[1] == losses[0]
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


def _last_step(folder: Path) -> int:
    """Of the last checkpoint that is there, whole or not."""
    steps = checkpoints.saved_steps(folder / "checkpoints")
    return int(steps[-1].name.removeprefix("step-")) if steps else 0


@pytest.mark.slow
def test_what_killed_processes_left_is_removed(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed while it writes its result, for real; and what is not ours to remove stays."""
    options = qa_options(output=tmp_path / "out", checkpoint_every=5, max_steps=6, **setting)
    process = context().Process(target=run_with_fault, args=(options, "killed while writing the result"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    out = tmp_path / "out"
    (left,) = out.glob(".model.safetensors.*")
    assert left.stat().st_size > 0
    step = checkpoints.saved_steps(out / "checkpoints")[-1]
    dead, alive, here = process.pid, os.getppid(), socket.gethostname()
    gone = [out / f".curves.png.{here}.{dead}", out / f".config.json.{dead}", step / f".state.json.{here}.{dead}"]
    gone += [out / f".training.toml.{here}.{os.getpid()}", out / f".log.jsonl.elsewhere.{alive}"]
    kept = [out / f".curves.png.{here}.{alive}", out / f".log.jsonl.other.{dead}", out / f".notes.{here}.{dead}"]
    kept += [out / ".model.safetensors.backup"]
    for path in [*gone, *kept]:
        path.write_text("")
    os.utime(gone[-1], (0, 0))
    (out / "checkpoints" / f".step-00000007.{here}.{dead}").mkdir()
    (out / "checkpoints" / f".step-00000007.{here}.{alive}").mkdir()
    run(options, resume=True)
    assert sorted(out.glob(".*")) == sorted(kept)
    assert [path.name for path in (out / "checkpoints").glob(".*")] == [f".step-00000007.{here}.{alive}"]
    assert not gone[2].exists()


def test_a_full_disk(setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third checkpoint meets a limit on the size of files; the second stays, and the run goes on from it."""
    setting |= {"checkpoint_every": 2, "evaluate_every": 12}
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
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_state", limited)
        with pytest.raises(CheckpointError, match=r"step-00000006 cannot be written .*step-00000004, is intact"):
            run(options)
    left = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000004"]
    run(options, resume=True)
    run(qa_options(output=tmp_path / "whole", **setting))
    assert_same_bits(last_state(tmp_path / "out"), last_state(tmp_path / "whole"))


@pytest.mark.parametrize("what", ["cut", "changed", "no state", "bad state", "other state", "other step", "lacking"])
def test_a_corrupt_checkpoint(setting: dict[str, Any], tmp_path: Path, what: str) -> None:
    setting |= {"max_steps": 4, "checkpoint_every": 2, "evaluate_every": 4}
    options = qa_options(output=tmp_path / "out", **setting)
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
    elif what == "other state":
        state.write_text(state.read_text().replace('"worse": 0', '"worse": 1'))
    elif what == "other step":
        state.write_bytes((last.parent / "step-00000002" / checkpoints.STATE).read_bytes())
        tensors.write_bytes((last.parent / "step-00000002" / checkpoints.TENSORS).read_bytes())
    elif what == "lacking":
        state.write_text(json.dumps({"step": 4}))
    else:
        state.write_text("[1")
    with pytest.raises(
        CheckpointError, match=r"step-00000004 is corrupt .*delete it to continue from the one before it, step-00000002"
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
    with pytest.raises(
        LongformerError, match=r"loss is nan in step 6; .* checkpoint \(step-00000004\), with --resume and a lower"
    ):
        run(options)
    monkeypatch.undo()
    assert all(bool(x.isfinite().all()) for x in last_state(tmp_path / "out").values() if x.is_floating_point())
    # What the message advises is possible, and the log tells of it.
    lower = qa_options(output=tmp_path / "out", checkpoint_every=2, **setting, learning_rate=1e-4, max_grad_norm=0.5)
    run(lower, resume=True)
    lines = read_log(tmp_path / "out")
    (noted,) = [line for line in lines if "note" in line]
    assert noted == {
        "step": 4,
        "note": "learning_rate (0.001, 0.0001); max_grad_norm (1.0, 0.5) (before, now)",
    }
    assert [line["step"] for line in lines if "loss" in line][-1] == 12
    assert max(line["learning_rate"] for line in lines if "loss" in line and line["step"] > 4) <= 1e-4


def test_resuming_with_other_choices_or_other_data(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=2, **setting)
    run(options)
    with pytest.raises(LongformerError, match=r"started with other options: weight_decay \(0\.01, 0\.1\) \(then"):
        run(qa_options(output=tmp_path / "out", max_steps=2, weight_decay=0.1, **setting), resume=True)
    # What decides nothing about the weights may change.
    run(qa_options(output=tmp_path / "out", max_steps=2, checkpoint_every=7, **setting), resume=True)
    squad_file(Path(setting["file"]), [("Who?", "Zoe.", "Zoe"), ("Where?", "At home.", "home")])
    with pytest.raises(LongformerError, match="the files hold other data now than when"):
        run(options, resume=True)


def test_a_pattern_is_trained_with_and_kept(tmp_path: Path) -> None:
    text = "window=4:8,global=none/full,causal,global-every=9"
    source = save_tiny_checkpoint(tmp_path / "tiny", attention_pattern=text)
    options = qa_options(output=tmp_path / "out", source=source, file=squad_file(tmp_path / "squad.json"), max_steps=3)
    run(options)
    trained = LongformerForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert trained.config == LongformerConfig.from_pretrained(source) and trained.config.attention_pattern is not None
    before = LongformerForQuestionAnswering.from_pretrained(source).state_dict()
    changed = {name for name, weight in trained.state_dict().items() if not torch.equal(weight, before[name])}
    assert "longformer.encoder.layer.1.attention.self.query_global.weight" in changed
    assert "longformer.encoder.layer.0.attention.self.query_global.weight" not in changed, "it has no global token"


def test_resuming_from_another_checkpoint_or_version(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=2, **setting)
    run(options)
    weights = (setting["source"] / "model.safetensors").read_bytes()
    model = LongformerForQuestionAnswering.from_pretrained(setting["source"])
    with torch.no_grad():
        model.longformer.encoder.layer[1].output.dense.bias[3] += 1e-3
    model.save_pretrained(setting["source"])
    with pytest.raises(LongformerError, match=r"tiny has other weights or another config now"):
        run(options, resume=True)
    (setting["source"] / "model.safetensors").write_bytes(weights)
    run(options, resume=True)
    config = LongformerConfig.from_pretrained(setting["source"])
    config.replace(attention_pattern="window=8/full").save(setting["source"] / "config.json")
    with pytest.raises(LongformerError, match=r"tiny has other weights or another config now"):
        run(options, resume=True)
    config.save(setting["source"] / "config.json")
    folder = tmp_path / "out" / "checkpoints"
    state = checkpoints.load_state(folder)
    assert state is not None
    checkpoints.update_values(folder, {key: value for key, value in state.values.items() if key != "worse"})
    with pytest.raises(CheckpointError, match="lacks 'worse'; another version"):
        run(options, resume=True)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_evaluation_that_fails_costs_nothing(
    setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Nor does a death between the best weights and the checkpoint that knows of them."""
    setting |= {"checkpoint_every": 100, "evaluate_every": 5, "log_every": 3}
    run(qa_options(output=tmp_path / "whole", **setting))
    options = qa_options(output=tmp_path / "out", **setting)

    measure = QuestionAnsweringTask.evaluate

    def fail(*arguments: Any) -> Any:
        if not (tmp_path / "out" / "checkpoints").exists():  # the model that training begins with
            return measure(*arguments)
        raise LongformerError("no memory left")

    with monkeypatch.context() as patch:  # undo() would undo what conftest patched as well
        if moment == "before":
            patch.setattr(QuestionAnsweringTask, "evaluate", fail)
        else:
            patch.setattr(checkpoints, "update_values", fail)
        with pytest.raises(LongformerError, match="no memory left"):
            run(options)
    assert [path.name for path in checkpoints.saved_steps(tmp_path / "out" / "checkpoints")] == ["step-00000005"]
    trained = []
    train = Trainer._train
    monkeypatch.setattr(Trainer, "_train", lambda self, *rest: trained.append(self.step) or train(self, *rest))
    run(options, resume=True)
    assert trained == [5, 6, 7, 8, 9, 10, 11]
    assert_same_bits(last_state(tmp_path / "out"), last_state(tmp_path / "whole"))
    assert (tmp_path / "out" / RESULT).read_bytes() == (tmp_path / "whole" / RESULT).read_bytes()
    out, uninterrupted = (
        [{name: x for name, x in line.items() if name != "tokens_per_second"} for line in read_log(tmp_path / folder)]
        for folder in ("out", "whole")
    )
    assert out == uninterrupted  # also the means over steps before and after the interruption


def test_speed_is_that_of_the_steps(setting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an evaluation between two lines of the log takes."""
    clock = itertools.count()  # a second passes with each look at it, and a thousand with an evaluation
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))

    def evaluate(*arguments: Any) -> dict[str, float]:
        for _ in range(1000):
            next(clock)
        return {"exact_match": 0.0, "f1": 0.0}

    monkeypatch.setattr(QuestionAnsweringTask, "evaluate", evaluate)
    run(qa_options(output=tmp_path / "out", max_steps=3, evaluate_every=2, log_every=3, **setting))
    (line,) = [line for line in read_log(tmp_path / "out") if "loss" in line]
    assert line["tokens_per_second"] == round(line["tokens"] / 3, 1)


def test_resuming_what_is_done_changes_nothing(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", max_steps=3, **setting)
    run(options)
    result, log = (tmp_path / "out" / RESULT).read_bytes(), read_log(tmp_path / "out")
    tokenizer = (tmp_path / "out" / "tokenizer.json").stat()
    run(options, resume=True)
    assert (tmp_path / "out" / RESULT).read_bytes() == result
    assert read_log(tmp_path / "out") == log
    # Not written again, which is not done whole or not at all.
    assert (tmp_path / "out" / "tokenizer.json").stat().st_mtime_ns == tokenizer.st_mtime_ns


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
