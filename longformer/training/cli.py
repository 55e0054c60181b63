"""The commands ``longformer train`` and ``longformer evaluate-mlm``. Fields of the options classes become options."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from typing import Any

import click

from longformer.errors import LongformerError
from longformer.files import check_inputs
from longformer.help import GroupedCommand
from longformer.options import MOST, SEED, Real, Whole, tokenizer_option
from longformer.training.lm_options import LMOptions
from longformer.training.options import ClassificationOptions, MLMOptions, QAOptions, TrainingOptions

POSITIONAL = ("source", "output", "files")
GROUPS = {  # headings of the help, and the options under each
    "Data": (
        "tokenizer", "revision", "evaluate_on", "hold_out", "max_length", "stride", "empty_windows", "annotator",
        "mask_probability", "problem_type", "new_head",
    ),
    "Model": (
        "layers", "hidden_size", "heads", "pattern", "positions", "hidden_dropout", "attention_dropout", "freeze",
    ),
    "Steps and learning rate": (
        "epochs", "phases", "max_steps", "batch_size", "learning_rate", "warmup", "layer_decay", "weight_decay",
        "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed",
    ),
    "Evaluation": ("evaluate_every", "evaluation_step", "patience", "max_answer_tokens"),
    "Speed and memory": ("batch_tokens", "precision", "gradient_checkpointing", "impl", "device", "parallel"),
    "Checkpoints and log": ("checkpoint_every", "keep_checkpoints", "log_every", "plot", "store"),
}  # fmt: skip


@click.group()
def train() -> None:
    """Train a model further, in one process or, under torchrun, in several.

    \b
    longformer train qa SRC DST train.json --evaluate-on dev.json
    longformer train qa SRC DST train.json --evaluate-on dev.json --resume
    torchrun --nproc-per-node 4 --no-python longformer train qa SRC DST train.json --device cuda
    """


def options_of(options_class: type[TrainingOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command one option for every field of the class. An option that is not given is None."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(options_class)
        for entry in reversed(dataclasses.fields(options_class)):
            if entry.name not in (*POSITIONAL, *options_class.unused):
                command = _option(entry, hints[entry.name])(command)
        command = click.option(
            "--resume",
            is_flag=True,
            help="Continue the run in DST from its last checkpoint, or start it if there is none.",
        )(command)
        command = click.option(
            "--config", metavar="FILE.toml", help="Read options from a file, such as a run's training.toml."
        )(command)
        command = click.argument("files", metavar="[FILE...]", nargs=-1)(command)
        command = click.argument("output", metavar="[DST]", required=False)(command)
        if "source" in options_class.unused:
            return command
        return click.argument("source", metavar="[SRC]", required=False)(command)

    return decorate


def _option(entry: dataclasses.Field[Any], hint: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = "--" + entry.name.replace("_", "-")
    base = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    hidden = entry.default is None or entry.default is False or entry.default == ()
    shown = "" if hidden else f"  [default: {entry.default}]"
    arguments: dict[str, Any] = {"default": None, "help": entry.metadata["help"] + shown}
    if base is bool:
        return click.option(f"{flag}/--no-{flag.removeprefix('--')}", entry.name, **arguments)
    if typing.get_origin(base) is tuple:
        return click.option(flag, entry.name, multiple=True, metavar="NAME", help=arguments["help"])
    if entry.metadata["among"]:
        return click.option(flag, entry.name, type=click.Choice(entry.metadata["among"]), **arguments)
    metavar = {int: "N", float: "X", str: "NAME"}[base]
    also = ("--lr",) if entry.name == "learning_rate" else ()  # as everybody calls it
    return click.option(flag, *also, entry.name, type=base, metavar=metavar, **arguments)


def _read(options_class: type[Any], given: dict[str, Any]) -> Any:
    """The options from the configuration file, if one is given, and from the command line. Checks what is read once."""
    config = given.pop("config")
    changes = {name: value for name, value in given.items() if value not in (None, ())}
    try:
        options = options_class.read(config, **changes)
    except LongformerError as error:
        if any(not changes.get(name) for name in options_class.required) and config is None:
            given_names = "DST" if "source" in options_class.unused else "SRC, DST"
            raise click.UsageError(f"give {given_names} and at least one FILE, or a --config that names them") from None
        raise error from None
    check_inputs([*filter(None, [config]), *options.files, *options.evaluate_on])
    return options


@train.command("qa", cls=GroupedCommand, groups=GROUPS)
@options_of(QAOptions)
def qa(resume: bool, **given: Any) -> None:
    """Fine-tune the model SRC (folder or name on the hub) on the SQuAD-format FILEs, v1.1 or v2, and write it to DST.

    If SRC has no head for question answering, a new one is drawn at random. DST holds the best weights as a checkpoint,
    the options (training.toml), the log (log.jsonl) and the checkpoints to resume from.
    """
    options = _read(QAOptions, given)
    from longformer.training.run import train_qa

    train_qa(options, resume=resume)


@train.command("classification", cls=GroupedCommand, groups=GROUPS)
@options_of(ClassificationOptions)
def classification(resume: bool, **given: Any) -> None:
    """Fine-tune the model SRC (folder or name on the hub) on the labelled texts in FILEs, and write it to DST.

    A .csv file has the columns "text" and "label" or, with | between the labels in a cell, "labels"; other columns are
    ignored. A .jsonl file has in each line an object with "text", and "label" or a list "labels". If SRC has no head
    for the classification of texts, a new one is drawn at random. DST holds the same as for `train qa`.

    Measured are accuracy and F1, or the squared error and correlations of a regression. Macro-F1 decides which weights
    are best; if a text may have several labels, micro-F1; for regression, the error.
    """
    options = _read(ClassificationOptions, given)
    from longformer.training.run import train_classification

    train_classification(options, resume=resume)


@click.command("evaluate-mlm")
@click.argument("model")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@tokenizer_option
@click.option("--revision", metavar="REV", help="Branch, tag or commit of MODEL on the hub.")
@click.option(
    "--max-length",
    type=Whole(8, MOST),
    metavar="N",
    help="Tokens in one row. The default is 4096, or the number of the model's positions if that is smaller.",
)
@click.option(
    "--mask-probability",
    type=Real(0, 1, min_open=True, max_open=True),
    default=MLMOptions.mask_probability,
    show_default=True,
    metavar="X",
    help="Share of the tokens that are to be predicted.",
)
@click.option(
    "--seed",
    type=SEED,
    default=MLMOptions.seed,
    show_default=True,
    metavar="N",
    help="Seed of the masks.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16", "float64"]),
    default="float32",
    show_default=True,
    help="Precision of the weights.",
)
@click.option("--device", metavar="NAME", help="Where to compute, such as cuda. The default is the CPU.")
@click.option(
    "--impl",
    type=click.Choice(["auto", "reference", "banded", "blocked", "triton"]),
    default="auto",
    help="How attention is computed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as a JSON object.")
def evaluate_mlm(model: str, files: tuple[str, ...], dtype: str, as_json: bool, **settings: Any) -> None:
    """Bits per masked token of MODEL (folder or name on the hub) on text FILEs, with a 95 % interval.

    Files are read, packed and masked as in `train mlm --evaluate-on`: the same length, share and seed mask the same
    tokens. MODEL must have a masked-LM head, as `train mlm` writes it. Under torchrun each process computes a share of
    the rows.
    """
    check_inputs(files)
    import torch

    from longformer.training.measure import describe, measure_mlm

    found = measure_mlm(model, files, dtype=getattr(torch, dtype), **settings)
    if found is not None:
        click.echo(json.dumps(found) if as_json else describe(found))


@train.command("mlm", cls=GroupedCommand, groups=GROUPS)
@options_of(MLMOptions)
def mlm(resume: bool, **given: Any) -> None:
    """Continue pretraining the model SRC by masked language modelling on text FILEs, and write it to DST.

    A file is one document; in a .jsonl file each line's "text" is one. If SRC has no masked-LM head, a new one is drawn
    at random. DST holds the same as for `train qa`.
    """
    options = _read(MLMOptions, given)
    from longformer.training.run import train_mlm

    train_mlm(options, resume=resume)


@train.command("lm", cls=GroupedCommand, groups=GROUPS)
@options_of(LMOptions)
def lm(resume: bool, **given: Any) -> None:
    """Train a new character language model on text FILEs, in phases, and write it to DST.

    Each phase doubles the windows and the length of the rows. DST holds the model, its vocabulary (characters.json) and
    the options (training.toml), and for each phase a folder with the model after it, the log and the checkpoints to
    resume from. The model writes text with `longformer generate DST`.
    """
    options = _read(LMOptions, given)
    from longformer.training.lm import train_lm

    train_lm(options, resume=resume)
