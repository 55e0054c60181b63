"""``longformer train``: the fields of the options classes as command-line options."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from longformer.errors import LongformerError
from longformer.training.options import MLMOptions, QAOptions, TrainingOptions

ARGUMENTS = ("source", "output", "files")  # by place


@click.group()
def train() -> None:
    """Train a model further, on one process or, under torchrun, on many.

    \b
    longformer train qa SRC DST train.json --evaluate-on dev.json
    longformer train qa SRC DST train.json --evaluate-on dev.json --resume
    torchrun --nproc-per-node 4 --no-python longformer train qa SRC DST train.json --device cuda
    """


def options_of(kind: type[TrainingOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put an option for every field of ``kind`` on a command; what is not given does not reach it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(kind)
        for entry in reversed(dataclasses.fields(kind)):
            if entry.name not in ARGUMENTS:
                command = _option(entry, hints[entry.name])(command)
        command = click.option(
            "--resume", is_flag=True, help="Go on with the run in DST from its last checkpoint; begin if there is none."
        )(command)
        command = click.option(
            "--config", metavar="FILE.toml", help="Options from a file, such as a run's training.toml."
        )(command)
        command = click.argument("files", metavar="[FILE...]", nargs=-1)(command)
        command = click.argument("output", metavar="[DST]", required=False)(command)
        return click.argument("source", metavar="[SRC]", required=False)(command)

    return decorate


def _option(entry: dataclasses.Field[Any], hint: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = "--" + entry.name.replace("_", "-")
    base = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    unsaid = entry.default is None or entry.default is False or entry.default == ()
    shown = "" if unsaid else f"  [default: {entry.default}]"
    arguments: dict[str, Any] = {"default": None, "help": entry.metadata["help"] + shown}
    if base is bool:
        return click.option(f"{flag}/--no-{flag.removeprefix('--')}", entry.name, **arguments)
    if typing.get_origin(base) is tuple:
        return click.option(flag, entry.name, multiple=True, metavar="NAME", help=arguments["help"])
    if entry.metadata["among"]:
        return click.option(flag, entry.name, type=click.Choice(entry.metadata["among"]), **arguments)
    metavar = {int: "N", float: "X", str: "NAME"}[base]
    return click.option(flag, entry.name, type=base, metavar=metavar, **arguments)


def _read(kind: type[Any], given: dict[str, Any]) -> Any:
    """The options from the configuration file, if there is one, and the command line."""
    config = given.pop("config")
    changes = {name: value for name, value in given.items() if value not in (None, ())}
    try:
        return kind.read(config, **changes)
    except LongformerError as error:
        if any(not changes.get(name) for name in ARGUMENTS) and config is None:
            raise click.UsageError("give SRC, DST and at least one FILE, or a --config that names them") from None
        raise error from None


@train.command("qa")
@options_of(QAOptions)
def qa(resume: bool, **given: Any) -> None:
    """Fine-tune the encoder SRC (folder or name on the hub) on the SQuAD-format FILEs, v1.1 or v2, into DST.

    The head for question answering is drawn afresh if SRC has none. DST holds the best weights as a checkpoint, the
    options (training.toml), the log (log.jsonl) and the checkpoints to resume from.
    """
    options = _read(QAOptions, given)
    from longformer.training.run import train_qa

    train_qa(options, resume=resume)


@click.command("evaluate-mlm")
@click.argument("model")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of MODEL on the hub.")
@click.option(
    "--max-length",
    type=click.IntRange(min=8),
    metavar="N",
    help="Tokens of a row; 4096 unless given, or as many as the model has positions for if fewer.",
)
@click.option(
    "--mask-probability",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=MLMOptions.mask_probability,
    show_default=True,
    metavar="X",
    help="Share of the tokens to predict.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=MLMOptions.seed, show_default=True, metavar="N", help="Of the masks."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    show_default=True,
    help="Precision.",
)
@click.option("--device", metavar="NAME", help="Where to compute, such as cuda; the CPU unless named.")
@click.option(
    "--impl",
    type=click.Choice(["auto", "reference", "banded", "blocked", "triton"]),
    default="auto",
    help="How attention is computed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object of the figures.")
def evaluate_mlm(model: str, files: tuple[str, ...], dtype: str, as_json: bool, **settings: Any) -> None:
    """Bits per masked token of MODEL (folder or name on the hub) on text FILEs, with a 95 % interval.

    Files are read, packed and masked as `train mlm --evaluate-on` does it: with the same length, share and seed the
    same tokens are masked. MODEL has a masked-LM head, as `train mlm` writes it. Under torchrun the processes share
    the rows.
    """
    import torch

    from longformer.training.measure import describe, measure_mlm

    found = measure_mlm(model, files, dtype=getattr(torch, dtype), **settings)
    if found is not None:
        click.echo(json.dumps(found) if as_json else describe(found))


@train.command("mlm")
@options_of(MLMOptions)
def mlm(resume: bool, **given: Any) -> None:
    """Continue pretraining the encoder SRC by masked language modelling on text FILEs, into DST.

    A file is one document; of a .jsonl file each line's "text" is one. The masked-LM head is drawn afresh if SRC has
    none. DST is as for `train qa`.
    """
    options = _read(MLMOptions, given)
    from longformer.training.run import train_mlm

    train_mlm(options, resume=resume)
