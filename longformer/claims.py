"""Which process works on what: names of unfinished files, and folders that one process at a time may write into."""

from __future__ import annotations

import glob
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from longformer.errors import LongformerError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DAY = 24 * 3600.0  # seconds
LONGEST_NAME = 255  # bytes, on every common file system
LOCK = ".in-use"  # the file in a folder that says who writes into it


def unfinished(path: Path) -> Path:
    """The name under which this thread makes what is to be ``path``: it tells who makes it, and on which machine."""
    thread = "" if threading.current_thread() is threading.main_thread() else f"-{threading.get_native_id()}"
    return path.with_name(f"{_stem(path.name)}.{socket.gethostname()}.{os.getpid()}{thread}")


def _stem(name: str) -> str:
    """How the names of unfinished files begin: with their own, or a digest where that would become too long."""
    room = LONGEST_NAME - len(f"..{socket.gethostname()}.{2**32}-{2**32}")
    long = len(os.fsencode(name)) > room
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32] if long else name}"


def abandoned(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files and folders that were to become one of ``names`` in ``folder``, and whose makers were killed before that.

    A process of another machine cannot be asked whether it is alive; it is taken to be until its file is a day old.
    Nothing that this process makes may be under way.
    """
    found = []
    for name in names:
        for path in folder.glob(f"{glob.escape(_stem(name))}.*"):
            host, _, number = path.name.removeprefix(f"{_stem(name)}.").rpartition(".")
            number = number.partition("-")[0]
            if not number.isdecimal():
                continue
            if host in ("", socket.gethostname()):  # "": of a version that did not write it
                alive = int(number) != os.getpid() and _is_alive(int(number))
            else:
                alive = time.time() - path.stat().st_mtime < DAY
            if not alive:
                found.append(path)
    return found


@contextmanager
def claimed(folder: Path, *, error: type[LongformerError] = LongformerError) -> Iterator[None]:
    """Let no other process write into ``folder``, which is made if it is not there, inside the block.

    The claim is a lock on a file that holds the process's number. The system takes it away when the process ends,
    however that happens: so one that was killed leaves no claim behind. A file system without locks has no claims.
    Folders that were made for it and are empty at the end are removed.

    Raises:
        error: another process has the folder, and its number is in the message; or it cannot be written.
    """
    lock, made = folder / LOCK, [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as at_the_end:
        try:
            for path in reversed(made):
                at_the_end.callback(remove_if_empty, path)
            folder.mkdir(parents=True, exist_ok=True)
            number = _locked(folder, lock, error)
            at_the_end.callback(os.close, number)
            at_the_end.callback(lock.unlink, missing_ok=True)
            os.truncate(number, 0)
            os.write(number, f"{socket.gethostname()} {os.getpid()}".encode())
        except OSError as failure:
            raise error(
                f"{folder} cannot be written: {failure.strerror}; free disk space, or name another folder"
            ) from None
        yield


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that was made and that nothing was written into."""
    with suppress(OSError):  # something was
        folder.rmdir()


def _locked(folder: Path, lock: Path, error: type[LongformerError]) -> int:
    """The number of the open file ``lock``, which this process has locked."""
    while True:
        number = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            host, _, process = os.read(number, 1000).decode("utf-8", "replace").partition(" ")
            os.close(number)
            where = f" on {host}" if host not in ("", socket.gethostname()) else ""
            raise error(
                f"{folder} is in use by process {process or 'unknown'}{where}, which writes into it; wait until that "
                "has ended, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            if os.path.samestat(os.fstat(number), os.stat(lock)):
                return number
        except FileNotFoundError:
            pass
        os.close(number)  # the one that had it removed it in between


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
