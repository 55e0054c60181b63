"""Every file is read and written here: text and JSON with one clear error each, and files that are whole or as before.

Only the standard library is imported, since the command asks for its files before anything slow is loaded.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO

from longformer.errors import DataError, LongformerError

LARGEST = 4 * 2**30  # bytes of a file that is read at once: as Python's objects JSON takes about ten times as much
BLOCK = 2**24  # bytes
DAY = 24 * 3600.0  # seconds
LINKS = 40  # as many as Linux follows

BOM = "\ufeff"  # the byte order mark with which some programs begin a file
GZIP = b"\x1f\x8b"  # how a gzip file begins
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # that mark in UTF-16, whose bytes cannot begin a UTF-8 file

JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}

Error = type[LongformerError]


# Reading


def read_text(path: str | Path, *, error: Error = DataError, unzip: bool = False) -> str:
    """Text of a file in UTF-8, or in UTF-16 that begins with its mark; line ends as they are, no byte order mark.

    Args:
        path: the file.
        error: what is raised.
        unzip: read what a gzip file holds, whatever its name.

    Raises:
        error: no such file, not readable, not text (with the first wrong byte), or larger than ``LARGEST``.
    """
    return _read(str(path), lambda: _unzipped(path) if unzip else open(path, "rb"), error).removeprefix(BOM)


@contextmanager
def _unzipped(path: str | Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        if file.peek(2)[:2] == GZIP:  # without a seek, which a pipe does not have
            with gzip.GzipFile(fileobj=file) as unzipped:
                yield unzipped
        else:
            yield file


def read_document(path: str) -> str:
    """Text of a document, as :func:`read_text` reads it, or of standard input for ``-``. Raises DataError.

    A byte order mark of a UTF-8 file stays: it is a character of what ``open(path, encoding="utf-8")`` reads, and
    offsets count it.
    """
    if path == "-":
        return _read("standard input", lambda: nullcontext(sys.stdin.buffer), DataError)
    return _read(path, lambda: open(path, "rb"), DataError, missing="; to give the document itself, use --text")


def _read(name: str, opened: Callable[[], AbstractContextManager[Any]], error: Error, missing: str = "") -> str:
    try:
        with opened() as file:
            data = _read_bytes(file)
    except FileNotFoundError:
        raise error(f"no file at {name!r}{missing}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as failure:
        raise error(f"{name} is a damaged gzip file: {failure}") from None
    except OSError as failure:
        raise error(f"{name} cannot be read: {failure.strerror}") from None
    except (OverflowError, MemoryError):
        raise error(
            f"{name} is too large: {LARGEST:,} bytes can be read at most, and no more than fit memory"
        ) from None
    try:
        return data.decode("utf-16" if data.startswith(UTF16) else "utf-8")
    except UnicodeDecodeError as failure:
        if failure.encoding != "utf-8":
            raise error(f"{name} begins as UTF-16 text and goes on otherwise, at byte {failure.start}") from None
        raise error(
            f"{name} is not UTF-8 text: byte 0x{data[failure.start]:02x} at offset {failure.start}; "
            "convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from None


def _read_bytes(file: BinaryIO) -> bytes:
    """All of a file. Raises OverflowError beyond ``LARGEST``: a device such as /dev/zero has no end."""
    blocks, size = [], 0
    while block := file.read(BLOCK):
        blocks.append(block)
        size += len(block)
        if size > LARGEST:
            raise OverflowError
    return b"".join(blocks)


def read_json(path: str | Path, kind: type = dict, *, error: Error = DataError) -> Any:
    """The JSON value of a UTF-8 file.

    Args:
        path: the file.
        kind: what the value must be: ``dict`` is a JSON object, ``list`` a list.
        error: what is raised.

    Raises:
        error: as :func:`read_text` and :func:`parse_json`; names the file.
    """
    return parse_json(read_text(path, error=error), str(path), kind, error=error)


def parse_json(text: str, name: str, kind: type = dict, *, error: Error = DataError) -> Any:
    """The JSON value that is written in ``text``, which a message calls ``name``.

    Raises:
        error: empty, no JSON, nested too deep, with an integer of more digits than Python converts, larger than the
            memory, or of another type than ``kind``.
    """
    if not text.strip():
        raise error(f"{name} is empty")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as failure:
        raise error(f"{name} is not valid JSON: {failure}") from None
    except ValueError:
        most = sys.get_int_max_str_digits()  # beyond it Python converts no integer, and json.loads says so
        raise error(f"{name} holds an integer of more than {most} digits, which cannot be read") from None
    except RecursionError:
        raise error(f"{name} is nested too deep to be read as JSON") from None
    except MemoryError:
        raise error(f"{name} is too large for this machine's memory") from None
    if not isinstance(value, kind):
        raise error(f"{name} holds {describe_json(value)}; it must be {JSON_TYPES[kind]}")
    return value


def describe_json(value: Any) -> str:
    """What a JSON value is, in a few words, for a message."""
    if value is None or isinstance(value, (dict, list)):
        return JSON_TYPES[type(value)]
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# Writing


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path] = ()) -> None:
    """Check where a command will write, before it begins to work.

    Args:
        outputs: files to write.
        inputs: files that the command reads; ``-``, which is standard input, is none of them.

    Raises:
        DataError: nothing can be written there; or it is one of the inputs, or another output, by whatever path or
            link it is reached.
    """
    taken = [(Path(path), "is read by this command, and would be overwritten") for path in inputs if path != "-"]
    for path in map(Path, outputs):
        for other, why in taken:
            if _is_same_file(path, other):
                what = f"{path}" if path == other else f"{path} is the same file as {other}, which"
                raise DataError(f"{what} {why}; give another file to write")
        taken.append((path, "is written by this command already"))
        _check_output(path)


def _is_same_file(one: Path, other: Path) -> bool:
    if one.exists() and not one.is_file():  # a terminal or a pipe may well be read and written
        return False
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def _check_output(path: Path) -> None:
    target, is_stream = _target(path)
    folder = target.parent
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file to write to")
    if is_stream:
        if not os.access(target, os.W_OK):
            raise DataError(f"{path} cannot be written to; give another place")
        return
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r} to write {target.name} into; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{str(folder)!r} cannot be written into; give another place for {target.name}")


def _target(path: Path) -> tuple[Path, bool]:
    """The file that ``path`` leads to over links, and whether it is a device, a pipe or an open file such as stdout."""
    for _ in range(LINKS):
        folder = path.absolute().parent.resolve()
        if path.exists() and (folder == Path("/dev") or folder.parts[:2] == ("/", "proc")):
            return path, True  # not followed: /dev/stdout leads to a file where it is redirected to one
        if not path.is_symlink():
            break
        path = folder / os.readlink(path)
    return path, path.exists() and not path.is_file() and not path.is_dir()


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a new file, then move it to ``path``, which is whole at any time: what it was, or this.

    Truncating in place would pull a file from under the models whose weights are mapped from it. A link at ``path``
    stays one, and the file that it leads to is replaced. A device or a pipe, such as /dev/stdout, is written into.

    Raises:
        OSError: it cannot be written; and whatever ``write`` raises.
    """
    target, is_stream = _target(Path(path))
    if is_stream:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / target.name
            write(made)
            with made.open("rb") as source, _stream(target) as stream:
                shutil.copyfileobj(source, stream)
        return
    new = unfinished(target)
    try:
        new.touch()
        mode = (target if target.exists() else new).stat().st_mode
        write(new)
        new.chmod(mode)  # safetensors would keep the file from everyone but its owner
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def _stream(target: Path) -> IO[bytes]:
    """A device, a pipe or an open file, to be written to behind what is there already."""
    name = str(target).removeprefix("/proc/self").removeprefix("/dev")
    number = {"/stdout": "1", "/stderr": "2"}.get(name, name.removeprefix("/fd/"))
    if not number.isdecimal():
        return target.open("ab")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return os.fdopen(os.dup(int(number)), "wb")  # which goes on where the process's own writing has come to


def write_file(path: str | Path, write: Callable[[Path], object], *, error: Error = DataError) -> None:
    """As :func:`replace_file`, but raises ``error``, which names ``path``, where that fails."""
    try:
        replace_file(path, write)
    except OSError as failure:
        raise error(f"{path} cannot be written: {failure.strerror or failure}") from None


def write_text(path: str | Path, text: str, *, error: Error = DataError) -> None:
    """Write a UTF-8 file, whole or not at all. Raises ``error``, which names ``path``, where that fails."""
    write_file(path, lambda new: new.write_text(text, encoding="utf-8", newline=""), error=error)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Raises DataError, which names ``path``, where that fails."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    if any("\ud800" <= character <= "\udfff" for character in text):  # UTF-8 has no halves of characters, JSON has
        text = json.dumps(value, indent=1)
    write_text(path, text + "\n")


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or to a folder's list of names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def unfinished(path: Path) -> Path:
    """The name under which this process makes what is to be ``path``: it tells who makes it, and on which machine."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def abandoned(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files and folders that were to become one of ``names`` in ``folder``, and whose makers were killed before that.

    A process of another machine cannot be asked whether it is alive; it is taken to be until its file is a day old.
    Nothing that this process makes may be under way.
    """
    found = []
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*"):
            host, _, number = path.name.removeprefix(f".{name}.").rpartition(".")
            if not number.isdecimal():
                continue
            if host in ("", socket.gethostname()):  # "": of a version that did not write it
                alive = int(number) != os.getpid() and _is_alive(int(number))
            else:
                alive = time.time() - path.stat().st_mtime < DAY
            if not alive:
                found.append(path)
    return found


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
