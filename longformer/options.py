"""What commands of every kind share: options, the types of their values, and where a result is printed.

Imports nothing slow.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from longformer.new_files import is_standard_output

MOST = 2**31 - 1  # more than any memory holds; torch says of larger numbers what nobody understands
COUNT = click.IntRange(1, MOST)


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
