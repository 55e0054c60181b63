"""Each command with odd values for its arguments and options: it works, or says in one line what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from causal_models import causal_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mangling import ODD_ARGUMENTS, check, run
from tiny_checkpoint import byte_level_tokenizer, save_tiny_checkpoint, tiny_model
from training_runs import squad_file

import longformer
from longformer import LongformerForMaskedLM, LongformerForSequenceClassification
from longformer.cli import cli
from longformer.generating import Characters

pytestmark = pytest.mark.slow

TEXT = "Ann met Bob in Rome, on Monday. Dan fell down."
# A valid call of each command. Those of bench and train end early, since nothing is to be measured and trained here.
CALLS = {
    ("answer",): ["Who met Bob?", "text.txt", "--model", "model"],
    ("predict",): ["questions.json", "--model", "model", "-o", "p.json"],
    ("evaluate",): ["questions.json", "--model", "model"],
    ("explain",): ["Who met Bob?", "text.txt", "--model", "model", "-o", "page.html"],
    ("tune-threshold",): ["questions.json", "--model", "model"],
    ("classify",): ["classes", "text.txt"],
    ("convert",): ["model", "converted"],
    ("convert", "--to-long"): ["model", "longer", "--max-tokens", "99", "--attention-window", "8"],
    ("evaluate-lm",): ["lm", "text.txt"],
    ("pattern",): ["window=4/full", "--length", "30", "--heads", "2", "--head-dim", "4", "--no-measure"],
    ("evaluate-mlm",): ["mlm", "text.txt"],
    ("generate",): ["lm", "Ann met", "--max-characters", "3"],
    ("parity", "record"): ["model", "text.txt", "-o", "trace.safetensors"],
    ("parity", "compare"): ["ours", "ours", "text.txt", "--model", "model"],
    ("train", "qa"): ["absent", "run", "questions.json"],
    ("train", "classification"): ["absent", "run", "text.txt"],
    ("train", "lm"): ["run", "text.txt"],
    ("train", "mlm"): ["absent", "run", "text.txt"],
    ("bench", "attention"): ["--json", "absent/x.json"],
    ("bench", "model"): ["--json", "absent/x.json"],
    ("bench", "qa"): ["questions.json", "--tokenizer", "model", "--json", "absent/x.json"],
    ("bench", "precision"): ["questions.json", "--model", "model", "--json", "absent/x.json"],
    ("bench", "scaling"): ["--json", "absent/x.json"],
    ("bench", "memory"): ["--json", "absent/x.json"],
    ("bench", "gpu"): ["--json", "absent/x.json"],
    ("bench", "needle"): ["--json", "absent/x.json"],
    ("bench", "patterns"): ["patterns", "--text", "absent.txt"],
}
ELSEWHERE = ("/", "..")  # where no output may go


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    save_tiny_checkpoint(folder / "model")
    LongformerForMaskedLM(tiny_model(byte_level_tokenizer(folder / "mlm")).config).save_pretrained(folder / "mlm")
    tokenizer = byte_level_tokenizer(folder / "classes")
    LongformerForSequenceClassification(tiny_model(tokenizer).config).save_pretrained(folder / "classes")
    characters = Characters.of([TEXT])
    causal_model(vocab_size=len(characters)).float().save_pretrained(folder / "lm")
    characters.save_pretrained(folder / "lm")
    squad_file(folder / "questions.json")
    (folder / "text.txt").write_text(TEXT)
    return folder


def options_of(names: tuple[str, ...]) -> list[str]:
    command: click.Command = cli
    for name in names:
        if isinstance(command, click.Group):
            command = command.commands[name]
    return [
        parameter.opts[0]
        for parameter in command.params
        if isinstance(parameter, click.Option)
        and not parameter.is_flag
        and parameter.opts[0] not in ("--json", "--plot")
    ]


@pytest.mark.parametrize("names", CALLS, ids=" ".join)
@given(data=st.data())
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
def test_odd_values(names: tuple[str, ...], world: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject) -> None:
    monkeypatch.chdir(world)
    arguments = list(CALLS[names])
    odd = st.sampled_from(ODD_ARGUMENTS)
    stays = 2 if names[0] == "bench" else 0  # what ends it early
    which = data.draw(st.sampled_from([*range(len(arguments) - stays), *options_of(names) * 2]))
    value = data.draw(odd.filter(lambda value: value not in ELSEWHERE))
    if isinstance(which, int):
        arguments[which] = value
    else:
        arguments += [which, value]
    check(run(*names, *arguments), works=(0, 1) if "compare" in names else (0,))


def child(*arguments: str | bytes, folder: Path, **how: object) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(longformer.__file__).parents[1])}
    command = [sys.executable, "-m", "longformer", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=False, **{"stderr": subprocess.PIPE, **how})


ANSWER = ("answer", "Who met Bob?", "text.txt", "--model", "model")


@pytest.mark.parametrize("arguments", [("--help",), ANSWER], ids=["help", "answer"])
def test_standard_output_that_is_full(world: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = child(*arguments, folder=world, stdout=full)
    assert done.returncode == 2
    assert done.stderr == b"error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("arguments", [("--help",), ANSWER], ids=["help", "answer"])
def test_standard_output_that_is_closed(world: Path, arguments: tuple[str, ...]) -> None:
    done = child(*arguments, folder=world, stdout=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 2
    assert done.stderr == b"error: standard output cannot be written: Bad file descriptor\n"


PREDICT = ("predict", "questions.json", "--model", "model", "-o")


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_file_to_standard_output_that_is_closed(world: Path, name: str) -> None:
    done = child(*PREDICT, name, folder=world, stdout=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 2
    assert done.stderr == (b"error: standard output cannot be written: Bad file descriptor; give a file to write to\n")


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_nobody_reads_a_file_to_standard_output(world: Path, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = child(*PREDICT, name, folder=world, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_standard_streams_that_are_not_needed(world: Path) -> None:
    def close() -> None:
        for number in (0, 1, 2):
            os.close(number)

    arguments = ("predict", "questions.json", "-o", "p.json", "--model", "model")
    done = child(*arguments, folder=world, stdin=None, stdout=None, stderr=None, preexec_fn=close)
    assert done.returncode == 0
    assert (world / "p.json").read_bytes().startswith(b"{")


def test_nobody_reads(world: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = child(*ANSWER, folder=world, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_standard_input_that_is_closed(world: Path) -> None:
    done = child("answer", "Who?", "-", "--model", "model", folder=world, preexec_fn=lambda: os.close(0))
    assert done.returncode == 2
    assert done.stderr == b"error: standard input is closed; give a file, or something to read there\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"\xff\xed", b"no file at '\\udcff\\udced'"),
        (b"x" * 5000, b"cannot be read: File name too long"),
        (b"a\x1b[2Jb", b"no file at 'a\\x1b[2Jb'"),
        (b"circle", b"circle cannot be read: Too many levels of symbolic links"),
    ],
    ids=["half", "long", "escape", "circle"],
)
def test_names_of_files(world: Path, name: bytes, said: bytes) -> None:
    if not (world / "circle").is_symlink():
        (world / "circle").symlink_to("circle")
    done = child("answer", "Who?", name, "--model", "model", folder=world)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count(b"\n") == 1 and len(done.stderr) < 1000


INTERRUPTED = """
import os, signal, sys, threading
sys.argv = ["longformer", *{arguments!r}]
threading.Timer({delay}, os.kill, (os.getpid(), signal.SIGINT)).start()
from longformer.__main__ import main
main()
"""


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.4, 1.0, 2.0])
def test_an_interrupt_at_any_time(world: Path, delay: float) -> None:
    """While the command's modules are imported, while torch is, and later."""
    script = INTERRUPTED.format(arguments=ANSWER, delay=delay)
    environment = {**os.environ, "PYTHONPATH": str(Path(longformer.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], cwd=world, env=environment, capture_output=True, check=False)
    assert done.returncode in (130, -signal.SIGINT, 0)  # 0: it was done before
    assert done.stderr.strip() == b""
