"""Two processes give what one gives, whether they copy the model or shard it; and disagree with one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import (
    QUESTIONS,
    classification_options,
    command,
    group_is_kept,
    in_processes,
    labelled_file,
    last_state,
    printed,
    qa_options,
    run,
    squad_file,
)

from longformer import LongformerForMaskedLM, LongformerForQuestionAnswering
from longformer.distributed import processes
from longformer.training import MLMOptions
from longformer.training.log import read_log

pytestmark = pytest.mark.slow

# AdamW divides by the gradient's size: where that is 0 but for rounding, as of a key's bias, an epsilon as small as
# usual turns rounding into steps of full length. With this one the weights differ by as little as the gradients do.
STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "adam_epsilon": 1e-3}
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Any]:
    file = squad_file(tmp_path / "squad.json")
    # Steps of four and of two questions; the last are one question a process, or in parts of one.
    changes = {"batch_size": 4, "evaluate_on": (file,), "epochs": 3, **STILL}
    return {"source": save_tiny_checkpoint(tmp_path / "tiny"), "file": file, **changes}


def assert_same_run(one: Path, other: Path) -> None:
    """Weights and moments, to rounding."""
    expected, found = ({k: v for k, v in last_state(x).items() if not k.startswith("rng/")} for x in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_weights_of_one(setting: dict[str, Any], tmp_path: Path, parallel: str) -> None:
    run(qa_options(output=tmp_path / "one", **setting))
    options = qa_options(output=tmp_path / "two", parallel=parallel, batch_tokens=48, **setting)
    assert in_processes(run, [(options,), (options,)]) == [None, None]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    models = [LongformerForQuestionAnswering.from_pretrained(tmp_path / name) for name in ("one", "two")]
    for x, y in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(y, x, **ROUNDING)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_group_outlives_the_model(setting: dict[str, Any], tmp_path: Path, parallel: str) -> None:
    """Were the model's the last reference to it, the process would now and then wait for ever when it lets it go."""
    options = qa_options(output=tmp_path / "two", parallel=parallel, max_steps=1, **setting)
    assert in_processes(group_is_kept, [(options,), (options,)]) == [True, True]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_classify_as_one(setting: dict[str, Any], tmp_path: Path, parallel: str) -> None:
    file = labelled_file(tmp_path / "texts.jsonl")
    values: dict[str, Any] = {"batch_size": 4, "evaluate_on": (file,), "epochs": 3, **STILL}
    run(classification_options(setting["source"], tmp_path / "one", file, **values))
    options = classification_options(
        setting["source"], tmp_path / "two", file, parallel=parallel, batch_tokens=30, **values
    )
    assert in_processes(run, [(options,), (options,)]) == [None, None]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    scores = [[line for line in read_log(tmp_path / name) if "accuracy" in line] for name in ("one", "two")]
    assert scores[0] == scores[1] and len(scores[0]) == 4  # before training too


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_parameters_that_go_unused(tmp_path: Path, parallel: str) -> None:
    """Where no token is global, the projections for global ones get no gradient, in two processes as in one."""
    source = save_tiny_checkpoint(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text(12 * "Ann met Bob, and Dan fell down. ", encoding="utf-8")
    values: dict[str, Any] = {
        "source": str(source), "files": (str(tmp_path / "text.txt"),), "evaluate_on": (str(tmp_path / "text.txt"),),
        "max_length": 48, "batch_size": 3, "epochs": 2, "learning_rate": 1e-3, "gradient_checkpointing": True, **STILL,
    }  # fmt: skip
    run(MLMOptions(output=str(tmp_path / "one"), **values))
    options = MLMOptions(output=str(tmp_path / "two"), parallel=parallel, **values)
    assert in_processes(run, [(options,), (options,)]) == [None, None]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    before, after = (
        {k: v for k, v in kind.from_pretrained(folder).longformer.state_dict().items() if "_global." in k}
        for kind, folder in ((LongformerForQuestionAnswering, source), (LongformerForMaskedLM, tmp_path / "two"))
    )
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_resume(setting: dict[str, Any], tmp_path: Path, parallel: str) -> None:
    """From the checkpoint before the last, to the same bits; dropout on."""
    setting |= {"parallel": parallel, "hidden_dropout": None, "attention_dropout": None, "checkpoint_every": 3}
    options = qa_options(output=tmp_path / "out", **setting)
    assert in_processes(run, [(options,), (options,)]) == [None, None]
    first, last = sorted((tmp_path / "out" / "checkpoints").iterdir())
    wanted = last_state(tmp_path / "out")
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    assert in_processes(run, [(options, True), (options, True)]) == [None, None]
    found = last_state(tmp_path / "out")
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_one_process_goes_on_where_two_were(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "two", checkpoint_every=3, **setting)
    assert in_processes(run, [(options,), (options,)]) == [None, None]
    last = sorted((tmp_path / "two" / "checkpoints").iterdir())[-1]
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    run(options, resume=True)
    run(qa_options(output=tmp_path / "one", **setting))
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_processes_that_disagree(setting: dict[str, Any], tmp_path: Path) -> None:
    options = [qa_options(output=tmp_path / "out", **{**setting, "learning_rate": rate}) for rate in (1e-3, 2e-3)]
    for message in in_processes(run, [(one,) for one in options]):
        assert message.startswith("LongformerError: the processes disagree about options")
    other = squad_file(tmp_path / "other.json", [*QUESTIONS, ("Why?", "For fun.", "fun")])
    options = [qa_options(output=tmp_path / "out", **{**setting, "file": f}) for f in (setting["file"], other)]
    for message in in_processes(run, [(one,) for one in options]):
        assert message.startswith("LongformerError: the processes disagree about")
    assert not (tmp_path / "out" / "training.toml").exists()


def test_an_error_of_one_process_is_raised_by_all(setting: dict[str, Any], tmp_path: Path) -> None:
    options = [
        qa_options(output=tmp_path / "out", **{**setting, "file": f}) for f in (setting["file"], str(tmp_path / "no"))
    ]
    first, second = in_processes(run, [(one,) for one in options])
    assert first == f"LongformerError: process 1 of 2: no file at {str(tmp_path / 'no')!r}"
    assert second == f"DataError: no file at {str(tmp_path / 'no')!r}"


def test_fewer_questions_a_step_than_processes(setting: dict[str, Any], tmp_path: Path) -> None:
    options = qa_options(output=tmp_path / "out", **{**setting, "batch_size": 1})
    for message in in_processes(run, [(options,), (options,)]):
        assert "batch_size is 1, which 2 processes cannot share" in message


def test_predict_and_evaluate_share_the_questions(setting: dict[str, Any], tmp_path: Path) -> None:
    model = ("--model", str(setting["source"]))
    assert command("predict", setting["file"], "-o", str(tmp_path / "one.json"), *model) == 0
    arguments = ("predict", setting["file"], "-o", str(tmp_path / "two.json"), *model)
    assert in_processes(command, [arguments, arguments, arguments]) == [0, 0, 0]
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())
    arguments = ("evaluate", setting["file"], *model)
    status, one = printed(*arguments)
    assert status == 0
    assert "exact match" in one
    assert in_processes(printed, [arguments, arguments]) == [(0, one), (0, "")]
    # What is there to be judged is judged by one.
    given = (*arguments[:2], "--predictions", str(tmp_path / "one.json"))
    (status, output), silent = in_processes(printed, [given, given])
    assert (status, output, silent) == (0, one, (0, ""))


def test_processes_leave_out_bad_questions_together(setting: dict[str, Any], tmp_path: Path) -> None:
    path = Path(setting["file"])
    data = json.loads(path.read_text())
    paragraphs = data["data"][0]["paragraphs"]
    paragraphs[1]["qas"][0]["question"] = 60 * "Who "
    del paragraphs[2]["qas"][0]["question"]
    path.write_text(json.dumps(data))
    outputs = [str(tmp_path / name) for name in ("p.json", "n.json")]
    arguments = ("predict", str(path), "-o", outputs[0], "--null-scores", outputs[1], "--model", str(setting["source"]))
    assert in_processes(command, [arguments, arguments]) == [2, 2] and not Path(outputs[0]).exists()
    assert in_processes(command, [(*arguments, "--skip-bad"), (*arguments, "--skip-bad")]) == [0, 0]
    for output in outputs:
        assert list(json.loads(Path(output).read_text())) == ["q0", "q3", "q4", "q5"]
    (status, out), silent = in_processes(printed, [("evaluate", *arguments[1:2], *arguments[-2:], "--skip-bad")] * 2)
    assert status == 0 and out.endswith("questions    5   (2 entries left out)\n") and silent == (0, "")


def test_without_torchrun_there_is_one() -> None:
    with processes() as group:
        assert (group.rank, group.size, group.joined) == (0, 1, False)
        assert group.gather(7) == [7]
        assert group.sum([1.0, 2.0]) == [1.0, 2.0]
