"""What goes wrong in one of several processes ends them all, with one clear error in each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import in_processes, qa_options, run, run_with_fault, squad_file

from longformer import LongformerError, LongformerTokenizer
from longformer.training import MLMOptions
from longformer.training.loop import Trainer

REMEDY = "free disk space or fix the cause, then continue with --resume"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "fault", "message"),
    [
        (0, "log", rf"log\.jsonl cannot be written: Is a directory; {REMEDY}"),
        (1, "measuring", "a fault"),
        (1, "backward", "a fault"),
    ],
)
def test_an_error_of_one_process_reaches_the_other(tmp_path: Path, rank: int, fault: str, message: str) -> None:
    (tmp_path / "text.txt").write_text(12 * "Ann met Bob, and Dan fell down. ", encoding="utf-8")
    text = (str(tmp_path / "text.txt"),)
    source = save_tiny_checkpoint(tmp_path / "tiny")
    options = MLMOptions(
        source=str(source), output=str(tmp_path / "out"), files=text, evaluate_on=text, max_length=48, batch_size=4,
        max_steps=2, log_every=1,
    )  # fmt: skip
    found = in_processes(run_with_fault, [(options, fault if rank == 0 else ""), (options, fault if rank == 1 else "")])
    assert_error(found.pop(rank), message)
    # In the midst of an exchange of gradients the other one cannot be told, but sees that it is alone.
    assert_error(found.pop(), "lost the others" if fault == "backward" else f"process {rank} of 2: .*{message}")


def assert_error(found: str, message: str) -> None:
    assert re.match(f"LongformerError: .*{message}", found), found


@pytest.mark.parametrize("name", ["log.jsonl", "curves.png"])
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str, size: int) -> None:
    """When the run begins, and when all is done but for the picture; what was trained is not lost by that."""
    source, file = save_tiny_checkpoint(tmp_path / "tiny"), squad_file(tmp_path / "squad.json")
    (tmp_path / "out" / name).mkdir(parents=True)
    options = qa_options(source, tmp_path / "out", file, max_steps=1, plot=True)
    message = rf"{name} cannot be written: .*; {REMEDY}"
    if size == 1:
        with pytest.raises(LongformerError, match=message):
            run(options)
    else:
        for found in in_processes(run, [(options,), (options,)]):
            assert_error(found, message)
    assert (tmp_path / "out" / "model.safetensors").exists() == (name == "curves.png")
    (tmp_path / "out" / name).rmdir()
    run(options, resume=True)
    assert (tmp_path / "out" / "curves.png").is_file()


def test_a_step_that_does_not_fit_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where torch says so by a plain RuntimeError; another one is no matter of memory."""
    source, file = save_tiny_checkpoint(tmp_path / "tiny"), squad_file(tmp_path / "squad.json")
    monkeypatch.setattr(Trainer, "_backward", lambda *rest: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(LongformerError, match="too little memory for parts of 8192 tokens; lower batch_tokens"):
        run(qa_options(source, tmp_path / "out", file, max_steps=1))
    monkeypatch.setattr(Trainer, "_backward", lambda *rest: torch.empty(2).view(3))
    with pytest.raises(RuntimeError, match="shape"):
        run(qa_options(source, tmp_path / "other", file, max_steps=1))


@pytest.mark.parametrize("kind", ["qa", "mlm"])
def test_an_added_token_without_a_row(tmp_path: Path, kind: str) -> None:
    """It is said when training or measuring begins, not at the first text that has it."""
    source, text = save_tiny_checkpoint(tmp_path / "tiny"), tmp_path / "text.txt"
    text.write_text("No token of that kind.", encoding="utf-8")
    tokenizer = LongformerTokenizer.from_pretrained(source)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<ent>"])
    tokenizer.save_pretrained(source)
    files = {"source": str(source), "output": str(tmp_path / "out"), "files": (str(text),)}
    options = (
        MLMOptions(max_length=48, **files) if kind == "mlm" else qa_options(source, tmp_path / "out", squad_file(text))
    )
    message = rf"'<ent>' \(id {rows}\), .* embeddings for ids 0 to {rows - 1} only; .*--tokenizer names one"
    with pytest.raises(LongformerError, match=message):
        run(options)
