"""Valid files made invalid, and commands that are run on them: strategies of hypothesis, and what must hold."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from longformer.cli import main

DEEP = 100_000
MARK = "a number of too many digits"  # stands for one, which json.dumps does not write
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, 10**400, -(10**400),
    -(2**63) - 1, 0.5, -0.0,
    1e-320, 1e308, float("nan"), float("inf"), "", " ", "x", "1", "\x00", "\x1b[2J", "\ud800", "ﬀ\u0301\u202e",
    "é" * 500, "x" * 100_000, [], {}, [[]], [None], {"": {}}, [1, "a", None], MARK,
]  # fmt: skip
ODD_BYTES = [
    b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80", b"\xed\xa0\x80", b"\r", b"\n\n", b'"', b"{", b"]", b"-",
    b"9" * 30, b"1" + b"0" * 400, b"9" * 5000, b"[" * DEEP, b'{"a":' * DEEP, b"%PDF-1.7", b"PK\x03\x04", b"\x1f\x8b",
    b"<html>", b"NaN", b"\\ud800", b"\x1b[31m",
]  # fmt: skip
ODD_ARGUMENTS = [
    "", "-", "--", "./", "x/", "text.txt/", "0", "-1", "1", "3", "2147483648", "9" * 20, "1" + "0" * 400,
    "1" + "0" * 5000, "1e3", "nan", "inf", "-inf", "1,2", ",",
    "x" * 5000, "\x1b[2J", "a\nb", "\udcff", "\ud800", "a\x00b", "é", "/", "..", "/dev/null", "~", "~nobody/x", "True",
]  # fmt: skip


def mangled_bytes(valid: bytes, *, short: bool = False) -> st.SearchStrategy[bytes]:
    """``valid`` cut, with bytes changed, with odd bytes put in, or with a part of it twice.

    ``short``: put nothing in that is long, where what is read is then computed with.
    """
    odd = st.sampled_from([bytes_ for bytes_ in ODD_BYTES if not short or len(bytes_) < 100])
    place = st.integers(0, len(valid))

    def replaced(start: int, length: int, by: bytes) -> bytes:
        return valid[:start] + by + valid[start + length :]

    return st.one_of(
        place.map(lambda end: valid[:end]),
        st.builds(replaced, place, st.integers(0, 8), odd),
        st.builds(replaced, place, st.integers(1, 4), st.binary(min_size=1, max_size=4)),
        st.builds(lambda start, end: valid[:end] + valid[start:], place, place),
        st.binary(max_size=40),
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values inside a JSON value, itself included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of a JSON value in which ``change`` was made to what stands at ``path``; None leaves it out."""
    if not path:
        return change(value)
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed(value[key], tuple(rest), change)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    if not path:
        return {}

    def drop(container: Any) -> Any:
        copy = dict(container) if isinstance(container, dict) else list(container)
        del copy[path[-1]]
        return copy

    return changed(value, path[:-1], drop)


def renamed(value: Any, path: tuple[Any, ...], name: str) -> Any:
    if not path or not isinstance(path[-1], str):
        return value
    return changed(value, path[:-1], lambda o: {name if key == path[-1] else key: inner for key, inner in o.items()})


def as_json(value: Any) -> bytes:
    return json.dumps(value).replace(f'"{MARK}"', "9" * 5000).encode()


def mangled_json(valid: Any, *, short: bool = False) -> st.SearchStrategy[bytes]:
    """A JSON file in which a value was replaced, left out or renamed; or one whose bytes were mangled."""
    path = st.sampled_from(list(places(valid))[:300])
    odd = st.sampled_from([value for value in ODD_VALUES if not short or len(str(value)) < 1000])
    return st.one_of(
        st.builds(lambda path, by: as_json(changed(valid, path, lambda _: by)), path, odd),
        st.builds(lambda path, by: as_json(changed(valid, path, lambda _: by)), path, odd),
        st.builds(lambda path, other: as_json(changed(valid, path, lambda _: at(valid, other))), path, path),
        path.map(lambda path: as_json(without(valid, path))),
        st.sampled_from([b"{}", b"[]", b"null", b'""', b"0", b" "]),
        st.builds(lambda path, name: as_json(renamed(valid, path, name)), path, st.sampled_from(["", "x", "\ud800"])),
        mangled_bytes(as_json(valid), short=short),
    )


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


class Done(NamedTuple):
    """How a command ended: its status and what it wrote."""

    status: int
    out: str
    err: str


def run(*arguments: str, stdin: bytes = b"") -> Done:
    """Run the command in this process. What libraries write to the process's own standard error counts, too."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as raw, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            os.dup2(raw.fileno(), 2)
            try:
                main(list(arguments))
            except SystemExit as end:
                status = end.code
            finally:
                os.dup2(kept, 2)
            raw.seek(0)
            direct = raw.read().decode(errors="replace")
    finally:
        os.close(kept)
        sys.stdin = before
    assert isinstance(status, int)
    texts = [stream.buffer.getvalue().decode(errors="replace") for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(status, texts[0], texts[1] + direct)


def check(done: Done, *, works: tuple[int, ...] = (0,)) -> None:
    """A command works, or it says in one readable line what is wrong, and ends with status 2."""
    assert "Traceback" not in done.err and "panicked" not in done.err, done.err
    if done.status in works:
        return
    assert done.status == 2, done
    lines = done.err.splitlines()
    assert lines, "nothing is said"
    last = lines[-1]
    if not lines[0].startswith("Usage: "):
        assert sum(line.startswith("error: ") for line in lines) == 1, done.err
        assert last.startswith("error: "), done.err
    assert last.isprintable() and len(last) < 2500, last
    assert re.search(r"\w", last.removeprefix("error: ")), last


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)
