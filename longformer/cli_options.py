"""What several commands share: options of model and answers, and the checks made before a model is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from longformer.errors import DataError

if TYPE_CHECKING:
    import torch

    from longformer.answering.answerer import QuestionAnswerer

DTYPES = ("float32", "bfloat16", "float16", "float64")
IMPLEMENTATIONS = ("auto", "reference", "banded", "blocked", "fused", "triton", "flex")

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Options that say which model to load, and how."""
    for option in (
        click.option("--impl", type=click.Choice(IMPLEMENTATIONS), default="auto", help="How attention is computed."),
        click.option(
            "--dtype",
            type=click.Choice([*DTYPES, "mixed", "int8"]),
            default="float32",
            show_default=True,
            help="Precision; mixed computes matrix products in bfloat16, int8 the linear layers in int8.",
        ),
        click.option("--device", metavar="NAME", help="Where to compute, such as cuda; the CPU unless named."),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of --model on the hub."),
        click.option(
            "--model",
            metavar="NAME",
            help="Folder, or name on the hub. Without it, the small model that comes with the package.",
        ),
    ):
        command = option(command)
    return command


def answer_options(command: Command) -> Command:
    """Options that say what counts as an answer and how a long document is read."""
    for option in (
        click.option(
            "--null-threshold",
            type=float,
            metavar="X",
            help="For a model trained on SQuAD v2: answer nothing where that scores more than X above the best answer.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=1),
            metavar="N",
            help="Tokens read at once; as many as the model has positions for unless given.",
        ),
        click.option(
            "--stride",
            type=click.IntRange(min=1),
            metavar="N",
            help="Tokens between the starts of the overlapping windows in which a long document is read.",
        ),
        click.option(
            "--max-answer-tokens",
            type=click.IntRange(min=1),
            default=30,
            show_default=True,
            metavar="N",
            help="Longest answer.",
        ),
    ):
        command = option(command)
    return command


def load_answerer(
    model: str | None, revision: str | None, device: torch.device | str | None, dtype: str, impl: str
) -> QuestionAnswerer:
    """The model and tokenizer that ``model_options`` name."""
    import torch

    from longformer.answering.answerer import QuestionAnswerer

    if model is None and revision is not None:
        raise click.UsageError("--revision is of a --model on the hub; name one, or leave --revision out")
    return QuestionAnswerer.from_pretrained(
        model, revision=revision, device=device, dtype=getattr(torch, dtype) if dtype in DTYPES else dtype, impl=impl
    )


def read_document(path: str) -> str:
    """Text of a UTF-8 file, or of standard input for ``-``, with its line ends as they are.

    Raises:
        DataError: no such file, not readable, or not UTF-8; says at which byte.
    """
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"no file at {name!r}; to give the document itself, use --text") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from None


def check_output(path: str) -> None:
    """Raises DataError where a file cannot be written at ``path``, before anything is computed for it."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; give a file to write to")
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r} to write {Path(path).name} into; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{str(folder)!r} cannot be written into; give another place for {Path(path).name}")
