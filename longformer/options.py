"""What commands of every kind share: options, the types of their values, and where a result is printed.

Imports nothing slow.
"""

import functools
import io
import math
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import click

from longformer.new_files import is_standard_output

MOST = 2**31 - 1  # more than any memory holds; torch says of larger numbers what nobody understands


class _Side(NamedTuple):
    """One end of a range. beyond: the limit itself is not in the range."""

    limit: float
    beyond: bool
    upper: bool

    def holds(self, number: float) -> bool:
        """Whether the number is on the right side. NaN never is."""
        if number == self.limit:
            return not self.beyond
        return number < self.limit if self.upper else number > self.limit

    @property
    def words(self) -> str:
        if self.upper:
            return f"{'less than' if self.beyond else 'at most'} {self.limit}"
        return f"more than {self.limit}" if self.beyond else f"{self.limit} or more"


def _sides(limits: click.IntRange | click.FloatRange) -> list[_Side]:
    lower = None if limits.min is None else _Side(limits.min, limits.min_open, False)
    upper = None if limits.max is None else _Side(limits.max, limits.max_open, True)
    return [side for side in (lower, upper) if side is not None]


def _checked(number: float, limits: click.IntRange | click.FloatRange, *about: Any) -> Any:
    for side in _sides(limits):
        if not side.holds(number):
            limits.fail(f"{number} is out of range; give {side.words}", *about)
    return number


def _in_words(limits: click.IntRange | click.FloatRange) -> str:
    """What help shows of a range: not an upper end that only the machine sets."""
    return ", ".join(side.words for side in _sides(limits) if not (side.upper and side.limit >= MOST))


class Whole(click.IntRange):
    """A whole number between two limits, for instance ``Whole(0, 2**63 - 1)``. Help says them in words."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        number: int = _checked(click.INT.convert(value, parameter, context), self, parameter, context)
        return number

    def _describe_range(self) -> str:  # click asks for it when it writes an option's help
        return _in_words(self)


class Real(click.FloatRange):
    """A number between two limits, for instance ``Real(0, 1, max_open=True)``. Help says them in words."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number: float = _checked(click.FLOAT.convert(value, parameter, context), self, parameter, context)
        return number

    def _describe_range(self) -> str:
        return _in_words(self)


class Count(click.ParamType):
    """A whole number from 1 on. Help does not show the bounds, which say nothing to a reader."""

    name = "integer"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        number: int = Whole(1, MOST).convert(value, parameter, context)
        return number


COUNT = Count()
SEED = Whole(0, 2**63 - 1)


class Threshold(click.ParamType):
    """A number that others are compared with: any but NaN, which none is above or below."""

    name = "float"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number: float = click.FLOAT.convert(value, parameter, context)
        if math.isnan(number):
            self.fail(f"{value!r} is no number; give one such as 0.5", parameter, context)
        return number


tokenizer_option = click.option(
    "--tokenizer",
    metavar="NAME",
    help="Folder, or name on the hub, of the tokenizer, where it is not the model's own.",
)


def show_result(text: str, outputs: Iterable[str | Path | None] = ()) -> None:
    """Print what a command found to standard output; or to standard error where one of its files goes there.

    Args:
        text: a table for a reader.
        outputs: files that the command writes; None stands for one that was not asked for.
    """
    click.echo(text, err=any(path is not None and is_standard_output(path) for path in outputs))


class _Nowhere(io.TextIOBase):
    """A text stream that forgets what is written to it."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


def add_quiet(group: click.Group) -> None:
    """Give every command of ``group``, and of the groups in it, the option ``--quiet``.

    With it nothing that the command says on standard error is shown: progress, remarks, the files that were written.
    An error still is, because it is said after the command has ended (:func:`longformer.process.run`).
    """
    for command in group.commands.values():
        if isinstance(command, click.Group):
            add_quiet(command)
            continue
        command.params.append(
            click.Option(["-q", "--quiet"], is_flag=True, help="Show results and errors only, no progress.")
        )
        command.callback = _silenced(command.callback)


def _silenced(run: Any) -> Any:
    @functools.wraps(run)
    def run_quietly(*arguments: Any, quiet: bool, **options: Any) -> Any:
        if not quiet:
            return run(*arguments, **options)
        with redirect_stderr(_Nowhere()):
            return run(*arguments, **options)

    return run_quietly
