"""What several commands share: options of model and answers, and what is made of them. Imports nothing slow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from longformer.answering.settings import NULL_RULES, SETTINGS, AnswerSettings
from longformer.options import COUNT, tokenizer_option

if TYPE_CHECKING:
    import torch

    from longformer.answering.answerer import QuestionAnswerer

DTYPES = ("float32", "bfloat16", "float16", "float64")
IMPLEMENTATIONS = ("auto", "reference", "banded", "blocked", "fused", "triton", "flex", "chunked")

WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")  # files of a checkpoint that are not an exported model's

MODEL_OPTIONS = ("model", "tokenizer", "revision", "device", "dtype", "impl")

Command = TypeVar("Command", bound=Callable[..., Any])


def loading_options(command: Command) -> Command:
    """Options that say how to load a model."""
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
        click.option("--revision", metavar="REV", help="Branch, tag or commit of the model on the hub."),
        tokenizer_option,
    ):
        command = option(command)
    return command


def model_options(command: Command) -> Command:
    """Options that say which model to load, and how."""
    return click.option(
        "--model",
        metavar="NAME",
        help="Folder, also of longformer export, or name on the hub. Without it, the small model that comes with the "
        "package.",
    )(loading_options(command))


def batch_option(command: Command) -> Command:
    """Option for the size of a batch."""
    return click.option(
        "--batch-tokens",
        type=COUNT,
        default=4096,
        show_default=True,
        metavar="N",
        help="Most tokens in a batch, padding counted.",
    )(command)


def answer_options(command: Command) -> Command:
    """Options that say what counts as an answer and how a long document is read."""
    return span_options(
        click.option(
            "--null-threshold",
            type=float,
            metavar="X",
            help="For a model trained on SQuAD v2: answer nothing where that scores more than X above the best answer.",
        )(command)
    )


def span_options(command: Command) -> Command:
    """The :func:`answer_options` but --null-threshold: they say which spans are answers, and in which windows."""
    for option in (
        click.option("--inside-words", is_flag=True, help="Answers may begin and end inside a word."),
        click.option("--no-overlap", is_flag=True, help="Of several answers, no two share a word."),
        click.option(
            "--null-rule",
            type=click.Choice(NULL_RULES),
            default=AnswerSettings.null_rule,
            show_default=True,
            help="Which window says what no answer scores: that of the best answer, or the one where it scores least.",
        ),
        click.option(
            "--max-length",
            type=COUNT,
            metavar="N",
            help="Tokens read at once; as many as the model has positions for unless given.",
        ),
        click.option(
            "--stride",
            type=COUNT,
            metavar="N",
            help="Tokens between the starts of the overlapping windows in which a long document is read.",
        ),
        click.option(
            "--max-answer-tokens",
            type=COUNT,
            default=AnswerSettings.max_answer_tokens,
            show_default=True,
            metavar="N",
            help="Longest answer.",
        ),
    ):
        command = option(command)
    return command


def document_arguments(command: Command) -> Command:
    """QUESTION, and the DOCUMENT as a file or a text, for :func:`given_document`."""
    for argument in (
        click.option("--text", metavar="TEXT", help="The document itself, instead of a file."),
        click.argument("document", required=False),
        click.argument("question"),
    ):
        command = argument(command)
    return command


def given_document(document: str | None, text: str | None) -> str:
    """The text of the document, which is given as a file or as a text. Raises DataError where it cannot be read."""
    if text is not None:
        return text
    assert document is not None
    from longformer.files import read_document

    question = click.get_current_context().params.get("question", "")
    if not os.path.lexists(document) and document != "-" and os.path.isfile(question):
        raise click.UsageError(f"{question!r} is a file and {document!r} is none; give the question first")
    return read_document(document)


def check_one_document(document: str | None, text: str | None) -> None:
    """Raise UsageError unless the document is given in one way."""
    if (document is None) == (text is None):
        raise click.UsageError("give the document as a file, as - for standard input, or with --text: one of them")


def first_given(*names: str) -> str | None:
    """The first of the parameters ``names`` that stands on the command line, as an option is written."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            return f"--{name.replace('_', '-')}"
    return None


def take_settings(options: dict[str, Any]) -> AnswerSettings:
    """The settings that are among a command's options, which are taken out of these."""
    return AnswerSettings(**{name: options.pop(name) for name in SETTINGS if name in options})


def checkpoint_files(model: str | None, tokenizer: str | None = None) -> list[Path]:
    """The files that are read of a model and of a tokenizer, as :func:`longformer.checkpoints.folder.files_of` says."""
    from longformer.checkpoints.folder import files_of
    from longformer.hub import PRETRAINED

    return files_of(PRETRAINED if model is None else model) + ([] if tokenizer is None else files_of(tokenizer))


def is_exported(model: str) -> bool:
    """Whether ``model`` is an ``.onnx`` file, or a folder that holds one and no weights of ours."""
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        return any(path.glob("*.onnx")) and not any(each for end in WEIGHTS for each in path.glob(end))
    return path.suffix == ".onnx"


def load_answerer(
    model: str | None,
    tokenizer: str | None,
    revision: str | None,
    device: torch.device | str | None,
    dtype: str,
    impl: str,
) -> QuestionAnswerer:
    """The model and tokenizer that ``model_options`` name. An ``impl`` that cannot serve is said before they load."""
    import torch

    from longformer.answering.answerer import QuestionAnswerer
    from longformer.models.loading import check_implementation

    if model is None and revision is not None:
        raise click.UsageError("--revision needs a --model on the hub; name one, or leave --revision out")
    if model is not None and is_exported(model):
        given = first_given("revision", "device", "dtype", "impl")
        if given is not None:
            raise click.UsageError(f"{given} does not go with an exported --model, in which that is fixed")
        return QuestionAnswerer.from_onnx(os.path.expanduser(model), tokenizer=tokenizer)
    number_type = getattr(torch, dtype) if dtype in DTYPES else dtype
    check_implementation(impl, device, number_type)
    return QuestionAnswerer.from_pretrained(
        model, tokenizer=tokenizer, revision=revision, device=device, dtype=number_type, impl=impl
    )
