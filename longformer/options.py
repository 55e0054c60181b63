"""What commands of every kind share: options, the types of their values, and where a result is printed.

Imports nothing slow.
"""

import functools
import io
import math
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import click

from longformer.new_files import is_standard_output

MOST = 2**31 - 1  # more than any memory holds; torch says of larger numbers what nobody understands


class Count(click.ParamType):
    """A whole number from 1 on. Help does not show the upper bound, which says nothing to a reader."""

    name = "integer"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        number: int = click.IntRange(1, MOST).convert(value, parameter, context)
        return number


COUNT = Count()


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
