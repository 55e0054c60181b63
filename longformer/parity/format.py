"""Traces, and the files they are kept in: safetensors, whose metadata say what made them.

``docs/trace-format.md`` describes the files exactly.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from longformer import __version__
from longformer.checkpoints.names import todays_name
from longformer.errors import DataError, LongformerError
from longformer.files import parse_json
from longformer.new_files import NewFile
from longformer.parity.table import order, order_of

FORMAT = "longformer-trace"
VERSION = 1
INPUT = "input."  # tensors of this prefix are what the model was given

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
NAMES = {name: str(dtype).removeprefix("torch.") for dtype, name in DTYPES.items()}
FLOATING = ("float64", "float32", "float16", "bfloat16")


class Header(NamedTuple):
    """dtype: as torch calls it, without "torch."."""

    dtype: str
    shape: tuple[int, ...]


class Trace(Mapping[str, Tensor]):
    """What was recorded: tensors by name, in the order of computation.

    inputs: what the model was given, by argument: (B, S) int64 each for a Longformer.
    metadata: strings, as in a trace file.
    """

    def __init__(self) -> None:
        self.tensors: Mapping[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}
        self._backward: Callable[[Tensor], None] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        given = self.metadata.get("order")
        return iter(sorted(self.tensors, key=order if given is None else order_of(json.loads(given))))

    def __len__(self) -> int:
        return len(self.tensors)

    def backward(self, loss: Tensor) -> None:
        """Record the gradients of the scalar ``loss``, inside ``with trace(..., gradients=True)``.

        The gradient by each recorded activation is ``gradient.<name>``. The gradient by each parameter
        that the loss depends on is ``gradient.parameter.<name>``. The parameters' own ``.grad`` does not change.
        """
        if self._backward is None:
            raise LongformerError("gradients are recorded only inside `with trace(model, gradients=True)`")
        self._backward(loss)

    def save(self, path: str | Path) -> None:
        """Write a trace file. Raises DataError where it cannot be written."""
        names = [INPUT + name for name in self.inputs] + list(self.tensors)
        writer = TraceWriter(path, names, self.metadata)
        try:
            for name, tensor in self.inputs.items():
                writer.write(INPUT + name, tensor)
            for name in self:
                writer.write(name, self[name])
            writer.close()
        finally:
            writer.discard()


def read_trace(path: str | Path) -> Trace:
    """Open a trace file. Its tensors are read when they are asked for.

    Raises:
        DataError: there is no such file, or it is corrupt, no trace, or of another version of the format.
    """
    file = TraceFile(path)
    trace = Trace()
    trace.tensors, trace.inputs, trace.metadata = file, file.inputs, file.metadata
    return trace


class TraceWriter:
    """Writes tensors to a trace file as they come, and holds none of them.

    The header of a safetensors file names every tensor and stands before the data. ``names`` says how long it can get:
    so much room is left free, and spaces fill what is not needed.

    Args:
        path: the file. It appears, complete, when :meth:`close` is called, and replaces what was there.
        names: of all tensors that may come.
        metadata: strings, see ``docs/trace-format.md``; :meth:`close` may add up to 64 KiB.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: str | Path, names: Iterable[str], metadata: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.metadata = dict(metadata)
        self._entries: dict[str, Any] = {}
        self._late: list[tuple[str, Tensor]] = []
        # An entry is its name, a dtype, up to 8 sizes and two offsets of up to 20 digits, and 60 other characters.
        room = sum(len(json.dumps(name)) + 60 + 8 * 21 + 2 * 21 for name in names)
        self._header_size = -(-(room + len(json.dumps(self.metadata)) + 65536) // 8) * 8
        self._offset = 0
        try:
            self._new = NewFile(self.path)
            self._file: BinaryIO = self._new.made.open("wb", buffering=0)  # nothing is left to be written at its end
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from None
        try:
            self._put(b" " * (8 + self._header_size))
        except OSError as error:
            self.discard()
            raise DataError(f"{path} cannot be written: {error.strerror}") from None

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a tensor. Raises DataError if the disk is full, or for a dtype that trace files do not have."""
        if name in self._entries:
            raise DataError(f"{name} is written twice to {self.path}")
        if tensor.dtype not in DTYPES:
            raise DataError(f"{name} is {tensor.dtype}; a trace holds {', '.join(sorted(DTYPES.values()))}")
        size = tensor.numel() * tensor.element_size()
        if size % 8:  # larger types behind it would not be aligned; so such tensors, small in practice, come last
            self._late.append((name, tensor.detach().cpu().clone()))
            self._entries[name] = None
            return
        self._append(name, tensor)

    def _append(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        self._entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._offset, self._offset + size],
        }
        try:
            if size:
                self._put(tensor.flatten().view(torch.uint8).numpy().data)
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from None
        self._offset += size

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the header, and move the file to its place."""
        for name, tensor in sorted(self._late, key=lambda item: -item[1].element_size()):
            self._append(name, tensor)
        self.metadata.update(metadata or {})
        header = json.dumps({"__metadata__": self.metadata, **self._entries}, ensure_ascii=True).encode()
        if len(header) > self._header_size:
            self.discard()
            raise DataError(f"the metadata of {self.path} has {len(header):,} bytes, more than was left free for it")
        try:
            self._file.seek(0)
            self._put(struct.pack("<Q", self._header_size) + header.ljust(self._header_size))
            self._file.close()
            self._new.commit()
        except OSError as error:
            self.discard()
            raise DataError(f"{self.path} cannot be written: {error.strerror}") from None

    def discard(self) -> None:
        """Remove what was written, unless :meth:`close` has moved it to its place."""
        self._file.close()
        self._new.discard()

    def _put(self, data: bytes | memoryview) -> None:
        """Write all of ``data``, of which the system may take a part at a time."""
        rest = memoryview(data).cast("B")
        while len(rest):
            rest = rest[self._file.write(rest) :]


class TraceFile(Mapping[str, Tensor]):
    """A trace file, read one value at a time.

    The keys are the names of the values. ``inputs`` is what the model was given, ``headers`` each tensor's dtype and
    shape.

    Raises:
        DataError: there is no such file, or it is corrupt, no trace, or of another version of the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"no trace file at {path}; `longformer parity record` writes one")
        try:
            with safe_open(self.path, "pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                names = list(file.keys())
                pieces = {name: file.get_slice(name) for name in names}
                self.headers = {
                    name: Header(NAMES.get(piece.get_dtype(), piece.get_dtype()), tuple(piece.get_shape()))
                    for name, piece in pieces.items()
                }
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is cut short, corrupt, or no safetensors file: {error}; record it again") from None
        _check_metadata(self.path, self.metadata)
        self._names = [name for name in names if not name.startswith(INPUT)]
        self._inputs = [name for name in names if name.startswith(INPUT)]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """``input_ids`` and whatever else the model was given, (B, S) int64 each."""
        return {name.removeprefix(INPUT): self._read(name) for name in self._inputs}

    def _read(self, name: str) -> Tensor:
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def headers_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Header]:
    """Dtypes and shapes by name; those of a file are known without reading its data."""
    if isinstance(tensors, TraceFile):
        return tensors.headers
    return {
        name: Header(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def _check_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DataError(f'{path} is no trace: its metadata has format {metadata.get("format")!r}, not "{FORMAT}"')
    if metadata.get("version") != str(VERSION):
        raise DataError(
            f"{path} is of version {metadata.get('version')!r} of the trace format, and this reads version {VERSION}; "
            "record it again"
        )
    for key in ("config", "weights"):
        try:
            metadata_object(metadata, key)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    try:
        order = parse_json(metadata.get("order", "[]"), "order", list)
    except DataError:
        order = None
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise DataError(f"{path}: a trace's metadata has 'order', which must be a JSON list of names; record it again")


def metadata_object(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """An entry of the metadata that is a JSON object: empty where it is missing or null. Raises DataError otherwise."""
    value = parse_json(metadata.get(key, "null"), f"a trace's metadata has {key!r}, which", object)
    if value is not None and not isinstance(value, dict):
        raise DataError(f"a trace's metadata has {key!r} {value!r}, which must be a JSON object; record it again")
    return value or {}


def describe_model(model: nn.Module, *, digests: bool) -> dict[str, str]:
    """Metadata about ``model`` as it is now: its config, dtype and device, and if wanted its weights' digests."""
    parameters = list(model.parameters())
    config: Any = getattr(model, "config", None)
    package = type(model).__module__.partition(".")[0]
    reference = {package: version(package)} if package == "transformers" else {}
    return {
        "config": json.dumps(config.to_dict() if hasattr(config, "to_dict") else None, default=str, sort_keys=True),
        "weights": json.dumps(weight_digests(model) if digests else {}, sort_keys=True),
        "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else "",
        "device": parameters[0].device.type if parameters else "",
        "training": json.dumps(model.training),
        "versions": json.dumps(
            {
                "longformer": __version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                **reference,
            }
        ),
    }


def weight_digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter's bytes (little-endian, row by row), under the name that today's checkpoints use."""
    return {todays_name(name): digest(parameter) for name, parameter in model.named_parameters()}


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(data.view(torch.uint8).numpy().data if len(data) else b"").hexdigest()
