"""Where a file is written: beside the one that it replaces until it is whole, or into a device or a pipe."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from longformer.claims import unfinished

STANDARD = "-"  # standard input or standard output, as a command's arguments name it; a file of that name is ./-
STANDARD_INPUT, STANDARD_OUTPUT = Path("/dev/stdin"), Path("/dev/stdout")
STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}  # the numbers of a process's open files that every process has
LINKS = 40  # as many as Linux follows


def target_of(path: str | Path) -> tuple[Path, bool]:
    """The file that ``path`` leads to over links, and whether it is a device, a pipe or an open file such as stdout.

    Raises:
        OSError: the links lead in a circle.
    """
    if path == STANDARD:
        return STANDARD_OUTPUT, True
    path = Path(path)
    for _ in range(LINKS):
        folder = Path(os.path.realpath(path.absolute().parent))
        is_there = os.path.exists(path)
        if is_there and (folder == Path("/dev") or folder.parts[:2] == ("/", "proc")):
            return folder / path.name, True  # not followed: /dev/stdout leads to a file where it is redirected to one
        if not os.path.islink(path):
            return path, is_there and not os.path.isfile(path) and not os.path.isdir(path)
        path = folder / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def is_standard_input(path: str | Path) -> bool:
    """Whether ``path`` names standard input: ``-``, /dev/stdin, /dev/fd/0, /proc/self/fd/0, or a link to them."""
    return path == STANDARD or _open_file(path) == STREAMS["stdin"]


def is_standard_output(path: str | Path) -> bool:
    """Whether ``path`` names standard output: ``-``, /dev/stdout, /dev/fd/1, /proc/self/fd/1, or a link to them."""
    return path == STANDARD or _open_file(path) == STREAMS["stdout"]


def _open_file(path: str | Path) -> int | None:
    """The number of the file, among those that this process has open, that ``path`` leads to; None if to no such."""
    try:
        target, _ = target_of(path)
    except (OSError, ValueError):  # it names nothing
        return None
    if str(target.parent) == "/dev":
        return STREAMS.get(target.name)
    among_open = str(target.parent) in ("/dev/fd", f"/proc/{os.getpid()}/fd")  # the links before have been followed
    return int(target.name) if among_open and target.name.isdecimal() else None


class NewFile:
    """A file that appears at ``path`` when it is complete, and not before: see :func:`replace_file`.

    ``made`` is where to make it. Then :meth:`commit` puts it in its place, and :meth:`discard` removes what was made;
    it may be called in any case, and does nothing after a commit.

    Raises:
        OSError: it cannot be written there.
    """

    def __init__(self, path: str | Path) -> None:
        self._to_standard = path == STANDARD
        self._target, self._is_stream = target_of(path)
        self._folder = tempfile.TemporaryDirectory() if self._is_stream else None
        if self._folder is not None:
            self.made = Path(self._folder.name) / self._target.name
            return
        self.made = unfinished(self._target)
        self.made.touch()
        self._mode = (self._target if os.path.exists(self._target) else self.made).stat().st_mode

    def commit(self) -> None:
        """Put the file in its place."""
        if self._is_stream:
            with self.made.open("rb") as source, self._stream() as stream:
                shutil.copyfileobj(source, stream)
                stream.flush()
        else:
            self.made.chmod(self._mode)  # safetensors would keep the file from everyone but its owner
            os.replace(self.made, self._target)

    def _stream(self) -> AbstractContextManager[IO[bytes]]:
        if not self._to_standard:
            return _stream(self._target)
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.flush()
        own = getattr(sys.stdout, "buffer", None)  # a notebook's standard output has none
        return _stream(self._target) if own is None else nullcontext(own)

    def discard(self) -> None:
        """Remove what was made, unless it is in its place."""
        if self._folder is not None:
            self._folder.cleanup()
        else:
            self.made.unlink(missing_ok=True)


def _stream(target: Path) -> IO[bytes]:
    """A device, a pipe or an open file, to be written to behind what is there already."""
    number = _open_file(target)
    if number is None:
        return target.open("ab")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return os.fdopen(os.dup(number), "wb")  # which goes on where the process's own writing has come to
