"""Every file is read and written here: text and JSON with one clear error each, and files that are whole or as before.

Only the standard library is imported, since the command asks for its files before anything slow is loaded.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import json
import logging
import os
import shlex
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from longformer import file_kinds
from longformer.claims import LONGEST_NAME
from longformer.errors import DataError, LongformerError, presentable
from longformer.new_files import (
    STANDARD,
    STANDARD_INPUT,
    STANDARD_OUTPUT,
    NewFile,
    is_standard_input,
    is_standard_output,
    target_of,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

LARGEST = 4 * 2**30  # bytes of a file that is read at once: as Python's objects JSON takes about ten times as much
BLOCK = 2**24  # bytes

CONSTITUTION = Path(__file__).parent / "data" / "constitution.txt"  # the document of the examples
BOM = "\ufeff"  # the byte order mark with which some programs begin a file
GZIP = b"\x1f\x8b"  # how a gzip file begins
MARKS = {  # that mark in other encodings, none of which can begin a UTF-8 file
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

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
    """Text of a file in UTF-8, or in UTF-16 or UTF-32 that begins with its mark; line ends as they are, no such mark.

    Args:
        path: the file; the string ``-`` is standard input.
        error: what is raised.
        unzip: read what a gzip file holds, whatever its name.

    Raises:
        error: no such file, not readable, not text (with what it seems to be instead, and the command that makes text
            of it), or larger than ``LARGEST``.
    """
    return _decoded(_read(path, error, unzip=unzip), path, error).removeprefix(BOM)


def read_document(path: str) -> str:
    """Text of a document, as :func:`read_text` reads it. Raises DataError.

    A byte order mark of a UTF-8 file stays: it is a character of what ``open(path, encoding="utf-8")`` reads, and
    offsets count it. A web page is read with its markup, and the log says so.
    """
    remedy = "to give the document itself, use --text"
    if Path(path).parts[-3:] == CONSTITUTION.parts[-3:]:  # as the examples name it, typed outside the checkout
        remedy = f"the package has it at {CONSTITUTION}"
    data = _read(path, DataError, missing=f"; {remedy}")
    text = _decoded(data, path, DataError)
    if file_kinds.is_html(data):
        log.warning(
            "%s seems to be a web page: its markup is read as text. To read its text alone, convert it: "
            "`pandoc -f html -t plain %s -o text.txt`",
            presentable(_name(path)),
            presentable(as_argument(path)),
        )
    return text


def _read(path: str | Path, error: Error, *, unzip: bool = False, missing: str = "") -> bytes:
    name = _name(path)
    try:
        with _opened(path, error) as file, _unzipped(file) if unzip else nullcontext(file) as plain:
            return _read_bytes(plain)
    except FileNotFoundError:
        raise error(f"no file at {name!r}{missing}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as failure:
        raise error(f"{name} is a damaged gzip file: {failure}") from None
    except OSError as failure:
        raise error(f"{name} cannot be read: {failure.strerror}") from None
    except (OverflowError, MemoryError):
        raise error(
            f"{name} is too large: at most {LARGEST:,} bytes can be read, and they must fit into memory"
        ) from None


def _opened(path: str | Path, error: Error) -> AbstractContextManager[Any]:
    if path != STANDARD:
        check_path(path, error=error)
        return open(path, "rb")
    if sys.stdin is None:
        raise error("standard input is closed; give a file, or something to read there")
    return nullcontext(sys.stdin.buffer)


@contextmanager
def _unzipped(file: Any) -> Iterator[Any]:
    if file.peek(2)[:2] == GZIP:  # without a seek, which a pipe does not have
        with gzip.GzipFile(fileobj=file) as unzipped:
            yield unzipped
    else:
        yield file


def as_argument(path: str | Path) -> str:
    """A file's name as a shell takes it, for a command in a message; ``FILE`` for standard input, which has none."""
    if path == STANDARD:
        return "FILE"
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _name(path: str | Path) -> str:
    return "standard input" if path == STANDARD else str(path)


def _decoded(data: bytes, path: str | Path, error: Error) -> str:
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as failure:
                raise error(
                    f"{_name(path)} begins as {encoding} text and goes on otherwise, at byte {failure.start}; "
                    "it was cut short or joined with another: fetch it again"
                ) from None
    kind, what = file_kinds.what_is(data), "is not plain text"
    if kind is None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as failure:
            kind = file_kinds.encoding_of(data, failure.start)
            what = f"is not UTF-8 text: byte 0x{data[failure.start]:02x} at offset {failure.start}"
    remedy = kind.remedy.replace("{}", as_argument(path))
    raise error(f"{_name(path)} {what}; it seems to be {kind.name}: {remedy}")


def check_path(path: str | Path, *, error: Error = DataError) -> None:
    """Raise ``error`` where no file can have this name, which the system's calls say by other exceptions."""
    try:
        if b"\x00" not in os.fsencode(path):
            return
        why = "a NUL character"
    except UnicodeEncodeError:
        why = "half a character"
    raise error(f"{str(path)!r} names no file: there is {why} in it")


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
    return parse_json(read_text(path, error=error), _name(path), kind, error=error)


def read_toml(path: str | Path, *, error: Error = DataError) -> dict[str, Any]:
    """The entries of a TOML file. Raises ``error``, which names the file, where it cannot be read or is none."""
    text, name = read_text(path, error=error), _name(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise error(f"{name} is not valid TOML: {failure}") from None
    except ValueError:
        raise error(_too_many_digits(name)) from None
    except RecursionError:
        raise error(f"{name} is nested too deep to be read as TOML") from None


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
        line = f"line {failure.lineno}, " if "\n" in text.strip() else ""
        where = f"{failure.msg}, at {line}column {failure.colno}"
        raise error(f"{name} is not valid JSON: {where}{_instead_of_json(text)}") from None
    except ValueError:
        raise error(_too_many_digits(name)) from None
    except RecursionError:
        raise error(f"{name} is nested too deep to be read as JSON") from None
    except MemoryError:
        raise error(f"{name} is too large for this machine's memory") from None
    if not isinstance(value, kind):
        raise error(f"{name} holds {describe_json(value)}; it must be {JSON_TYPES[kind]}")
    return value


def _too_many_digits(name: str) -> str:
    most = sys.get_int_max_str_digits()  # beyond it Python converts no integer, and the parsers say so
    return f"{name} holds an integer of more than {most} digits, which cannot be read"


def _instead_of_json(text: str) -> str:
    """What a file holds that a server gave in place of the one that was asked for."""
    if file_kinds.is_html(text[: file_kinds.SAMPLE].encode("utf-8", "replace")):
        return "; it is a web page, perhaps one that says why there is no such file: fetch it again"
    if text.startswith("version https://git-lfs"):
        return "; it is a Git LFS pointer: run `git lfs pull` in its folder"
    return ""


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
        outputs: files to write; the string ``-`` is standard output.
        inputs: files that the command reads; the string ``-`` is standard input.

    Raises:
        DataError: nothing can be written there; or it is one of the inputs, or another output, by whatever path or
            link it is reached; or standard input is to be read twice.
    """
    inputs = list(inputs)
    check_inputs(inputs)
    outputs = list(outputs)
    for path in outputs:
        _check_output(path)
    check_overwrites(outputs, inputs)


def check_inputs(inputs: Iterable[str | Path]) -> None:
    """Raise DataError where several of a command's inputs are standard input, which can be read only once."""
    names = [str(path) for path in inputs if is_standard_input(path)]
    if len(names) > 1:
        raise DataError(
            f"standard input can be read only once, but it is named {len(names)} times ({', '.join(names)}); "
            "give files for the others"
        )


def check_overwrites(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Raise DataError where an output is one of the inputs, or another output. The rest of :func:`check_outputs`."""
    # Standard input may be a file that the shell opened.
    read = [STANDARD_INPUT if path == STANDARD else path for path in inputs]
    taken = [(path, "is read by this command, and would be overwritten") for path in read]
    for path in outputs:
        for other, why in taken:
            if _is_same_file(path, other):
                what = f"{path}" if Path(path) == Path(other) else f"{path} is the same file as {other}, which"
                raise DataError(f"{what} {why}; give another file to write")
        taken.append((path, "is written by this command already"))


def is_stream(path: str | Path) -> bool:
    """Whether what is written to ``path`` goes on to somewhere and is not to be read again: a device, a pipe, ``-``."""
    return target_of(path)[1]


def check_suffix(path: str | Path, suffix: str) -> None:
    """Raise DataError where a file to write has not the ending that says what it is. Standard output may be any."""
    check_path(path)
    if not str(path).lower().endswith(suffix) and not is_stream(path):
        raise DataError(f"{str(path)!r} must end in {suffix}, which says what it is")


def _is_same_file(one: str | Path, other: str | Path) -> bool:
    if is_standard_output(one) and is_standard_output(other):
        return True
    if STANDARD in (one, other):
        one, other = (STANDARD_OUTPUT if path == STANDARD else path for path in (one, other))
    if os.path.exists(one) and not os.path.isfile(one):  # a terminal or a pipe may well be read and written
        return False
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def _check_output(path: str | Path) -> None:
    check_path(path)
    if is_standard_output(path):
        _check_standard_output()
        return
    if str(path) == "" or str(path).endswith(("/", os.sep)):
        raise DataError(f"{str(path)!r} names no file to write; give one")
    try:
        target, is_stream = target_of(path)
        long = len(os.fsencode(target.name)) > LONGEST_NAME
    except OSError as failure:
        raise DataError(f"{path} cannot be written: {failure.strerror}; give another place") from None
    if long:
        raise DataError(f"{path} cannot be written: the file's name is too long; give one of {LONGEST_NAME} bytes")
    folder = target.parent
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; give a file to write to")
    if is_stream:
        if not os.access(target, os.W_OK):
            raise DataError(f"{path} cannot be written to; give another place")
        return
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {str(folder)!r} to write {target.name} into; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{str(folder)!r} cannot be written into; give another place for {target.name}")


def _check_standard_output() -> None:
    try:
        os.write(1, b"")  # which writes nothing, and fails where standard output is closed
    except OSError as failure:
        raise DataError(f"standard output cannot be written: {failure.strerror}; give a file to write to") from None


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a new file, then move it to ``path``, which is whole at any time: what it was, or this.

    Truncating in place would pull a file from under the models whose weights are mapped from it. A link at ``path``
    stays one, and the file that it leads to is replaced. A device or a pipe, such as /dev/stdout, is written into, and
    so is standard output for the string ``-``. Several threads and processes may write one path: the last one's stays.

    Raises:
        OSError: it cannot be written; and whatever ``write`` raises.
    """
    new = NewFile(path)
    try:
        write(new.made)
        new.commit()
    finally:
        new.discard()


def write_file(path: str | Path, write: Callable[[Path], object], *, error: Error = DataError) -> None:
    """As :func:`replace_file`, but raises ``error``, which names ``path``, where that fails."""
    check_path(path, error=error)
    try:
        replace_file(path, write)
    except OSError as failure:
        is_standard = is_standard_output(path)
        if is_standard and failure.errno == errno.EPIPE:  # nobody reads on, as after `| head`: no error of ours
            raise
        name = "standard output" if is_standard else path
        raise error(f"{name} cannot be written: {failure.strerror or failure}") from None


def write_text(path: str | Path, text: str, *, error: Error = DataError) -> None:
    """Write a UTF-8 file, whole or not at all. Raises ``error``, which names ``path``, where that fails."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise error(f"{path} cannot be written: there is half a character at {failure.start} of its text") from None
    write_file(path, lambda new: new.write_bytes(data), error=error)


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
