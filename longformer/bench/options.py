"""Options that several subcommands of ``longformer bench`` share, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from longformer.errors import LongformerError
from longformer.options import COUNT, MOST

Command = TypeVar("Command", bound=Callable[..., Any])

POSITIVE = COUNT


class Numbers(click.ParamType):
    """Numbers with commas between them, each at least ``least``: ``1024,2048``."""

    name = "N[,N...]"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor numbers with commas between them", parameter, context)
        if min(numbers) < self.least:
            self.fail(f"{min(numbers)} is too small; give at least {self.least}", parameter, context)
        if max(numbers) > MOST:
            self.fail(f"{max(numbers)} is too large; give at most {MOST}", parameter, context)
        return numbers


class Names(click.ParamType):
    """Names with commas between them: ``float32,bfloat16``."""

    name = "NAME[,NAME...]"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))


class Shapes(click.ParamType):
    """Batch, heads and tokens of attention: ``1x12x4096,4x16x16384``."""

    name = "BxHxS[,BxHxS...]"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[tuple[int, int, int], ...]:
        if isinstance(value, tuple):
            return value
        shapes = []
        for part in value.split(","):
            numbers = part.strip().lower().split("x")
            if len(numbers) != 3 or not all(number.isdecimal() and 0 < int(number) <= MOST for number in numbers):
                self.fail(
                    f"{part!r} is no shape; give batch, heads and tokens with an x between them: 1x12x4096",
                    parameter,
                    context,
                )
            batch, heads, tokens = map(int, numbers)
            shapes.append((batch, heads, tokens))
        return tuple(shapes)


def all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help text."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def common(rounds: int) -> Callable[[Command], Command]:
    """The options of every benchmark; ``rounds`` is the default of --rounds."""
    return all_of(
        click.option(
            "--rounds",
            type=POSITIVE,
            default=rounds,
            show_default=True,
            metavar="N",
            help="How often to measure; medians are reported.",
        ),
        click.option(
            "--threads", type=POSITIVE, metavar="N", help="Threads to compute with; by default torch's choice."
        ),
        click.option(
            "--json",
            "json_file",
            metavar="FILE.json",
            help="Write everything to this file; - is standard output.",
        ),
        click.option("--plot", metavar="FILE.png", help="Draw the result into this file; - is standard output."),
    )


# Which model.
architecture = all_of(
    click.option(
        "--config", metavar="FILE", help="A config.json; by default the architecture of the released base model."
    ),
    click.option(
        "--variants",
        type=Names(),
        default="float32,bfloat16",
        show_default=True,
        help="Precisions of our model; transformers runs beside each in the nearest dtype.",
    ),
)

# Which problem of attention, and which of our implementations.
attention_shape = all_of(
    click.option("--batch", type=POSITIVE, default=1, show_default=True, metavar="B", help="How many sequences."),
    click.option("--heads", type=POSITIVE, default=12, show_default=True, metavar="H", help="How many heads."),
    click.option("--head-dim", type=POSITIVE, default=64, show_default=True, metavar="D", help="Size of a head."),
    click.option(
        "--window", type=POSITIVE, default=256, show_default=True, metavar="N", help="Tokens seen on each side."
    ),
    click.option("--impls", type=Names(), default="auto", show_default=True, help="Our implementations."),
)


def our_names(impls: tuple[str, ...]) -> tuple[str, ...]:
    """The names of our contenders. The one for "auto", which users get by default, is plainly "longformer".

    Raises:
        LongformerError: there is no such implementation.
    """
    from longformer.kernels import IMPLEMENTATIONS

    for impl in impls:
        if impl not in IMPLEMENTATIONS:
            raise LongformerError(f"{impl!r} is no implementation; there are {', '.join(IMPLEMENTATIONS)}")
    return tuple("longformer" if impl == "auto" else f"longformer ({impl})" for impl in impls)


def known_dtype(name: str) -> str:
    """``name``, if the kernels have such a dtype. Raises LongformerError if they do not."""
    from longformer.kernels.api import DTYPES

    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    if name not in names:
        raise LongformerError(f"{name!r} is no dtype of the kernels; there are {', '.join(names)}")
    return name
