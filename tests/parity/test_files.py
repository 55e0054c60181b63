"""Trace files: what other readers make of them, and what is refused."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import TINY, build, padded_batch, question_row
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

from longformer.errors import DataError
from longformer.kernels import choose
from longformer.parity import read_trace, trace
from longformer.parity.format import TraceWriter, digest

METADATA = {"format": "longformer-trace", "version": "1"}


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "trace.safetensors"
    model = build(TINY).ours
    inputs = padded_batch(TINY, [question_row(TINY, 6, 40), question_row(TINY, 3, 23)])
    with torch.no_grad(), trace(model, path=path, metadata={"model": "tiny", "seed": "0"}):
        model(**inputs)
    return path


def test_any_safetensors_reader_reads_it(recorded: Path) -> None:
    ours = read_trace(recorded)
    for tensors in (safetensors_torch.load_file(recorded), safetensors_numpy.load_file(recorded)):
        assert set(tensors) == {*ours, *(f"input.{name}" for name in ours.inputs)}
        assert np.array_equal(np.asarray(tensors["layer.1.query"]), ours["layer.1.query"].numpy())


def test_the_documented_reader(recorded: Path) -> None:
    """As docs/trace-format.md has it, by hand: eight bytes, a header, the data."""
    data = recorded.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == "longformer-trace" and metadata["version"] == "1"
    assert json.loads(metadata["config"])["hidden_size"] == 32
    assert len(json.loads(metadata["weights"])["longformer.embeddings.word_embeddings.weight"]) == 64
    assert (metadata["dtype"], metadata["device"]) == ("float32", "cpu")
    assert metadata["kernel"] == choose(torch.empty(1, 1, 1, 8)).impl
    assert {"torch", "python"} <= json.loads(metadata["versions"]).keys()
    entry = header["layer.2.output"]
    begin, end = entry["data_offsets"]
    values = np.frombuffer(data[8 + size + begin : 8 + size + end], dtype="<f4").reshape(entry["shape"])
    assert np.array_equal(values, read_trace(recorded)["layer.2.output"].numpy())
    # No holes: every byte belongs to one tensor.
    spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    assert spans[0][0] == 0 and spans[-1][1] == len(data) - 8 - size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_sizes_that_are_no_multiple_of_eight(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    tensors = {
        "a": torch.arange(3, dtype=torch.bfloat16),
        "b": torch.randn(2, dtype=torch.float64),
        "c": torch.randn(3),
        "d": torch.tensor([True]),
        "e": torch.zeros(0, 4),
        "f": torch.tensor(2.5),
    }
    writer = TraceWriter(path, tensors, METADATA)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    for found in (safetensors_torch.load_file(path), read_trace(path)):
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_an_unfinished_file_is_not_there(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "x.safetensors", ["a"], METADATA)
    writer.write("a", torch.zeros(4))
    assert not (tmp_path / "x.safetensors").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_names_and_metadata_of_any_length(tmp_path: Path) -> None:
    names = [f"layer.{n}.ä{'x' * 200}" for n in range(50)]
    writer = TraceWriter(tmp_path / "x.safetensors", names, {**METADATA, "text": "ü" * 10_000})
    for name in names:
        writer.write(name, torch.zeros(1, 1, 1, 1, 1, 1, 1, 2))
    writer.close()
    assert set(read_trace(tmp_path / "x.safetensors")) == set(names)


def write(path: Path, metadata: dict[str, str] | None) -> Path:
    safetensors_torch.save_file({"embeddings": torch.zeros(2)}, path, metadata=metadata)
    return path


def test_what_is_no_trace_is_refused(tmp_path: Path, recorded: Path) -> None:
    with pytest.raises(DataError, match="no trace file at"):
        read_trace(tmp_path / "absent.safetensors")
    with pytest.raises(DataError, match="has format None"):
        read_trace(write(tmp_path / "plain.safetensors", None))
    with pytest.raises(DataError, match=r"is of version '2' .* reads version 1"):
        read_trace(write(tmp_path / "new.safetensors", {"format": "longformer-trace", "version": "2"}))
    (tmp_path / "text.safetensors").write_text("a text")
    data = recorded.read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:-100])
    (tmp_path / "header.safetensors").write_bytes(data[:50])
    for name in ("text", "short", "header"):
        with pytest.raises(DataError, match="cut short, corrupt"):
            read_trace(tmp_path / f"{name}.safetensors")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written: No such file"):
        TraceWriter(tmp_path / "absent" / "x.safetensors", [], METADATA)
    writer = TraceWriter(tmp_path / "x.safetensors", ["a"], METADATA)
    with pytest.raises(DataError, match=r"a is torch\.complex64; a trace holds"):
        writer.write("a", torch.zeros(1, dtype=torch.complex64))
    writer.write("a", torch.zeros(2))
    with pytest.raises(DataError, match="a is written twice"):
        writer.write("a", torch.zeros(2))
    writer.discard()


def test_a_digest_is_of_the_bytes() -> None:
    import hashlib

    x = torch.arange(6, dtype=torch.float32).view(2, 3)
    assert digest(x.T) == hashlib.sha256(np.ascontiguousarray(x.numpy().T).tobytes()).hexdigest()
    assert digest(torch.zeros(0)) == hashlib.sha256(b"").hexdigest()
