"""How the command begins and ends as a process: its standard streams, Ctrl-C, and a status for every kind of error."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from longformer.errors import LongformerError, in_one_line, presentable

INTERRUPTED = 128 + signal.SIGINT  # as a shell says that Ctrl-C ended a command
READER_LEFT = 128 + 13  # as it says that nobody read on (SIGPIPE)
BAD_INPUT = 2
_OUTPUT = (errno.ENOSPC, errno.EBADF, errno.EPIPE, errno.EIO, errno.EFBIG, errno.EDQUOT)  # of a failing write

# What torch's allocators say where there is no memory, and of tensors that no memory could hold.
_NO_MEMORY = re.compile(r"(can.t|not able to|cannot) allocate memory|not enough memory|out of memory", re.IGNORECASE)
_TOO_LARGE = re.compile(r"Storage size calculation overflow|integer multiplication overflow|invalid size, its size")
_ASKED_FOR = re.compile(r"allocate (\d+) bytes")


def run(command: Callable[[], object]) -> int:
    """Run a command as a process does, and say with which status to end. An error is one line on standard error.

    Args:
        command: what it returns is the status if it is an int, and else 0.

    Returns:
        0 done, 2 bad input or a resource that does not suffice, 130 interrupted, 141 where nobody reads the output.

    Raises:
        Exception: a defect of this package, whose traceback says where it is.
    """
    _keep_standard_streams()
    sys.unraisablehook = _unraisable
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a document may hold characters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    output = sys.stdout
    with _noticing_interrupts() as interrupts:
        try:
            status = command()
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
        except SystemExit as stopped:
            if sys.stdout is not output:  # click puts something in its place where nobody reads
                sys.stdout = output
                return _without_output(READER_LEFT)
            return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        except (click.Abort, KeyboardInterrupt):
            return INTERRUPTED
        except BaseException as error:
            if interrupts:  # torch and NumPy turn Ctrl-C into other errors where it meets them in their imports
                return INTERRUPTED
            return _report(error)


def _unraisable(raised: sys.UnraisableHookArgs) -> None:
    """Keep silent where Ctrl-C meets code whose errors Python can only print. The command ends by its own way."""
    if not isinstance(raised.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(raised)


def _report(error: BaseException) -> int:
    """Say what was wrong, in one line, and return the status. Raises ``error`` itself where it is a defect."""
    if isinstance(error, click.ClickException):
        _say(lambda: _show(error))
        return error.exit_code
    if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT:  # files.py explains its own
        _say(lambda: click.echo(f"error: standard output cannot be written: {error.strerror}", err=True))
        return _without_output(READER_LEFT if error.errno == errno.EPIPE else BAD_INPUT)
    message = _message(error)
    if message is None:
        raise error
    _say(lambda: click.echo(f"error: {presentable(message)}", err=True))
    try:
        sys.stdout.flush()
    except OSError:  # Python would say so once more at the end, and end with another status
        return _without_output(BAD_INPUT)
    return BAD_INPUT


def _show(error: click.ClickException) -> None:
    """What click says of a wrong command line, with our word for an error."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
    vars(error)["message"] = presentable(error.message)
    click.echo(f"error: {error.format_message()}", err=True)


def _message(error: BaseException) -> str | None:
    """What is wrong, for errors that the user or the machine can be the reason of; None for all others."""
    if isinstance(error, LongformerError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else f"{error.strerror or error}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        asked = _ASKED_FOR.search(str(error))
        much = f" ({int(asked[1]) / 2**30:,.1f} GiB were asked for at once)" if asked else ""
        return (
            f"there is not enough memory{much}; give shorter texts or fewer at once (--max-length, --batch-tokens, "
            "--max-tokens), a smaller model, or a machine with more memory"
        )
    if isinstance(error, RuntimeError) and _TOO_LARGE.search(str(error)):
        return f"numbers this large make tensors too large for any memory ({in_one_line(error)}); give smaller ones"
    if type(error).__name__ == "PanicException":  # of a library in Rust; it is no Exception
        return f"a library cannot use this input ({in_one_line(error)})"
    return None


def _say(show: Callable[[], object]) -> None:
    try:
        show()
    except OSError:  # standard error is full or closed, and nobody is left to tell
        pass


def _without_output(status: int) -> int:
    """``status``; and nothing is written to standard output any more, at the end of the process least of all."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return status


def _keep_standard_streams() -> None:
    """Give a closed standard stream something to stand for it, or the next file opened would get its number.

    What is written to a closed standard output is an error. What is written to a closed standard error goes nowhere.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")


@contextmanager
def _noticing_interrupts() -> Iterator[list[int]]:
    """A list that a Ctrl-C is put into, beside the KeyboardInterrupt that it raises."""
    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()
    usual = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
