"""How the command ends: a status and one line for every kind of error that is no defect."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import byte_level_tokenizer, save_tiny_checkpoint

from longformer import LongformerError, process
from longformer.cli import main

PanicException = type("PanicException", (BaseException,), {})  # as libraries in Rust raise it


def raising(error: BaseException) -> Any:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (LongformerError("x\x1b\ny"), 2, "error: x\\x1b y\n"),
        (MemoryError(), 2, "error: there is not enough memory; give shorter texts or fewer at once"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."), 2,
         "error: there is not enough memory (2.0 GiB were asked for at once); give shorter"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "error: there is not enough memory; give"),
        (RuntimeError("Storage size calculation overflowed with sizes=[2]"), 2, "error: numbers this large make"),
        (OSError(errno.ENOENT, "No such file or directory", "a"), 2, "error: a: No such file or directory\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: standard output cannot be written: No space"),
        (PanicException("index out of bounds"), 2, "error: a library cannot use this input (PanicException: index"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(143), 143, ""),
    ],
)  # fmt: skip
def test_statuses(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_without_output", lambda status: status)
    assert process.run(raising(error)) == status
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") <= 1


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), AssertionError("x")])
def test_defects_show_where_they_are(error: Exception) -> None:
    with pytest.raises(type(error)):
        process.run(raising(error))


def test_an_interrupt_that_an_import_turned_into_something_else() -> None:
    def command() -> None:
        try:
            process.signal.raise_signal(process.signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy failed to import") from None

    assert process.run(command) == 130


def test_an_implementation_that_cannot_serve_is_found_before_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("longformer.kernels.dispatch.triton_refusal", lambda query: "its kernels want a GPU")
    (tmp_path / "text.txt").write_text("Ann met Bob.")
    for arguments in (
        ["answer", "Who?", "--text", "Ann.", "--model", str(tmp_path), "--impl", "triton"],
        ["evaluate-mlm", str(tmp_path), "absent", "--impl", "triton"],
        ["classify", str(tmp_path), str(tmp_path / "text.txt"), "--impl", "triton"],
        ["train", "qa", str(tmp_path), str(tmp_path / "run"), "absent", "--impl", "triton"],
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert capsys.readouterr().err.startswith('error: impl is "triton", and its kernels want a GPU')


def test_another_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    for name in ("tokenizer.json", "vocab.json"):
        (model / name).unlink()
    byte_level_tokenizer(tmp_path / "tokenizer")
    arguments = ["answer", "Who met?", "--text", "Ann met Bob.", "--model", str(model)]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "has neither tokenizer.json nor vocab.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")])
    assert end.value.code == 0
    (tmp_path / "tokenizer" / "added_tokens.json").write_text('{"<more>": 261}')
    with pytest.raises(SystemExit):
        main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")])
    assert "the tokenizer has '<more>' (id 261), but the model has embeddings for ids 0" in capsys.readouterr().err


def test_a_checkpoint_is_not_converted_onto_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").symlink_to(model / "model.safetensors")
    before = (model / "model.safetensors").read_bytes()
    for folder, said in (("model", "is the source itself and"), ("other", "is read by this command, and")):
        with pytest.raises(SystemExit):
            main(["convert", str(model), str(tmp_path / folder), "--dtype", "float16"])
        assert f"{said} would be overwritten" in capsys.readouterr().err
    assert (model / "model.safetensors").read_bytes() == before


def test_a_training_does_not_write_over_what_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_checkpoint(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"text": "Ann met Bob."}')
    (tmp_path / "link.jsonl").symlink_to("run/log.jsonl")
    for file in ("run/log.jsonl", "link.jsonl"):
        with pytest.raises(SystemExit):
            main(["train", "mlm", str(model), str(tmp_path / "run"), str(tmp_path / file), "--max-length", "32"])
        assert "is read by this command, and would be overwritten" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_a_disk_that_is_full_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    model = save_tiny_checkpoint(tmp_path / "model")
    (tmp_path / "text.txt").write_text("Ann met Bob.")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    process.signal.signal(process.signal.SIGXFSZ, process.signal.SIG_IGN)
    for arguments in (
        ["parity", "record", str(model), str(tmp_path / "text.txt"), "-o", str(tmp_path / "t.safetensors")],
        ["convert", str(model), str(tmp_path / "new")],
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(SystemExit) as end:
                main(arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert end.value.code == 2
        assert "File too large" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.txt"]
