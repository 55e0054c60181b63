"""Small training runs for tests: questions, a checkpoint, and processes that may be killed or that work together.

Processes are forked from a server that has imported everything already, so that one starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import io
import json
import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed import TCPStore

import longformer.models.pretrained
from longformer.errors import LongformerError
from longformer.training import ClassificationOptions, LMOptions, MLMOptions, QAOptions
from longformer.training.checkpoints import TENSORS, saved_steps
from longformer.training.lm import train_lm
from longformer.training.loop import Trainer
from longformer.training.mlm import MaskedLMTask
from longformer.training.options import TrainingOptions
from longformer.training.run import train_classification, train_mlm, train_qa

TOO_LONG = 240  # seconds for what takes a few, so that only what hangs meets it

QUESTIONS = [
    ("Who met?", "Ann met Bob.", "Ann"),
    ("Who was met?", "Ann met Bob.", "Bob"),
    ("Who fell?", "Dan fell down.", "Dan"),
    ("What is red?", "A red hat.", "hat"),
    ("Where?", "It is in Rome.", "Rome"),
    ("When?", "In 1066, at noon.", "1066"),
]


TEXTS = [
    ("Ann met Bob.", "people"),
    ("Dan fell down.", "people"),
    ("A red hat.", "things"),
    ("The old bridge.", "things"),
    ("It rains in Rome.", "weather"),
    ("Snow, at noon.", "weather"),
]


def squad_file(
    path: Path,
    questions: Sequence[tuple[str, str, str | None]] = QUESTIONS,
    *,
    titles: Sequence[str] = ("many", "last"),
) -> str:
    """A SQuAD file whose last question stands alone in a second article; an answer of None makes it unanswerable."""
    entries: list[dict[str, Any]] = []
    for i, (question, context, answer) in enumerate(questions):
        entry: dict[str, Any] = {"id": f"q{i}", "question": question, "answers": [], "is_impossible": answer is None}
        if answer is not None:
            entry["answers"] = [{"text": answer, "answer_start": context.find(answer)}]
        entries.append({"context": context, "qas": [entry]})
    data = [{"title": titles[0], "paragraphs": entries[:-1]}, {"title": titles[1], "paragraphs": entries[-1:]}]
    path.write_text(json.dumps({"data": data}), encoding="utf-8")
    return str(path)


def qa_options(source: Path, output: Path, file: str, **changes: Any) -> QAOptions:
    """A run of a dozen steps, with dropout as in the checkpoint."""
    values: dict[str, Any] = {"epochs": 4, "batch_size": 2, "max_length": 48, "learning_rate": 1e-3, "warmup": 0.2}
    return QAOptions(source=str(source), output=str(output), files=(file,), **{**values, **changes})


def labelled_file(path: Path, rows: Sequence[tuple[str, Any]] = TEXTS) -> str:
    """A file of JSON lines: texts, each with its label, or with a list of labels."""
    lines = [{"text": text, "labels" if isinstance(label, list) else "label": label} for text, label in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def classification_options(source: Path, output: Path, file: str, **changes: Any) -> ClassificationOptions:
    """As :func:`qa_options`."""
    values: dict[str, Any] = {"epochs": 4, "batch_size": 2, "max_length": 48, "learning_rate": 1e-3, "warmup": 0.2}
    return ClassificationOptions(source=str(source), output=str(output), files=(file,), **{**values, **changes})


def lm_options(output: Path, file: str, **changes: Any) -> LMOptions:
    """A language model of two phases of four steps each, with dropout."""
    values: dict[str, Any] = {"layers": 2, "hidden_size": 16, "heads": 2, "phases": 2, "max_steps": 4}
    values |= {"batch_size": 4, "max_length": 16, "pattern": "window=8/window=8,dilation=1:2", "hold_out": 0.1}
    return LMOptions(output=str(output), files=(file,), **{**values, **changes})


def last_state(folder: Path) -> dict[str, Tensor]:
    """Weights, moments and random states of a run's last checkpoint."""
    return load_file(saved_steps(folder / "checkpoints")[-1] / TENSORS)


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def run(options: TrainingOptions, resume: bool = False) -> None:
    """Train with one thread, so that sums are taken in one order wherever this runs."""
    torch.set_num_threads(1)
    train: dict[type, Any] = {
        ClassificationOptions: train_classification,
        LMOptions: train_lm,
        MLMOptions: train_mlm,
        QAOptions: train_qa,
    }
    train[type(options)](options, resume=resume)


def group_is_kept(options: TrainingOptions) -> bool:
    """Whether the group of processes is there after training, when the model that refers to it is gone."""
    groups: list[Any] = []
    leave = torch.distributed.destroy_process_group

    def look_and_leave() -> None:
        groups.append(weakref.ref(torch.distributed.group.WORLD))
        leave()

    torch.distributed.destroy_process_group = look_and_leave
    run(options)
    gc.collect()
    return groups[0]() is not None


def run_with_fault(options: TrainingOptions, fault: str) -> None:
    """Train; ``fault`` is of this process alone, which is one of its own for the test."""
    _put_fault(fault)
    run(options)


def _put_fault(fault: str) -> None:
    train = Trainer._train

    def fail(*arguments: Any) -> Any:
        raise LongformerError("a fault")

    def die(tensors: Any, path: Path, **named: Any) -> None:
        save_file(tensors, path, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.step == 4:
            os.kill(os.getpid(), signal.Signals[fault])
        return train(self, *arguments)

    def spoil_log(self: Trainer, *arguments: Any) -> Any:
        (self.folder / "log.jsonl").unlink()
        (self.folder / "log.jsonl").mkdir()
        return train(self, *arguments)

    if fault == "measuring":
        MaskedLMTask.bits_by_row = fail  # type: ignore[method-assign]
    elif fault == "backward":
        Trainer._backward = fail  # type: ignore[method-assign]
    elif fault == "killed while writing the result":
        longformer.checkpoints.folder.save_file = die
    elif fault in ("SIGTERM", "SIGINT"):
        Trainer._train = interrupted  # type: ignore[method-assign]
    elif fault == "log":
        Trainer._train = spoil_log  # type: ignore[method-assign]


def interrupted_command(fault: str, *arguments: str) -> tuple[int, str]:
    """Exit status and standard error of the command, whose process is sent a signal during its fifth step."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        _put_fault(fault)
        torch.set_num_threads(1)
        return command(*arguments), stderr.getvalue()


def printed(*arguments: str) -> tuple[int, str]:
    """The exit status and the standard output of the command."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        return command(*arguments), output.getvalue()


def command(*arguments: str) -> int:
    """The exit status of the ``longformer`` command."""
    from longformer.cli import main

    try:
        main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    raise AssertionError("the command did not end")


def context() -> Any:
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([__name__, "torch._dynamo", "torch.distributed.fsdp"])  # which training imports late
    return made


def start(options: TrainingOptions, *, resume: bool) -> Any:
    """A process that trains; to be killed, or joined."""
    process = context().Process(target=run, args=(options, resume))
    process.start()
    return process


def in_processes(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What ``function`` returns in each of as many processes as there are ``arguments``, joined as by torchrun.

    An error that it raises is returned in its place, as text.
    """
    # As torchrun does it: the store is here from the start, so that no port is chosen that another may take meanwhile.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    made = context()
    results = made.SimpleQueue()
    processes = [
        made.Process(target=_member, args=(results, rank, len(arguments), store.port, function, theirs))
        for rank, theirs in enumerate(arguments)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + TOO_LONG
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        if process.exitcode is None:  # which would keep this one from ending as well
            process.kill()
    found = {}
    while not results.empty():
        rank, result = results.get()
        found[rank] = result
    assert len(found) == len(processes), "a process ended without a result, or not at all"
    return [found[rank] for rank in range(len(processes))]


def _member(results: Any, rank: int, size: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(TOO_LONG - 30)  # where it waits, should it hang
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    where |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ |= {name: str(value) for name, value in where.items()}
    try:
        results.put((rank, function(*arguments)))
    except LongformerError as error:
        results.put((rank, f"{type(error).__name__}: {error}"))
    except BaseException as error:
        results.put((rank, f"unexpected {type(error).__name__}: {error}"))
        raise
