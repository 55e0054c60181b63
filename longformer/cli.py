"""The ``longformer`` command.

What is slow to import is imported inside the commands, so that ``longformer --help`` answers at once; what is cheap to
check is checked before a model is loaded. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from longformer.bench.cli import bench
from longformer.errors import DataError, LongformerError
from longformer.parity.cli import parity

if TYPE_CHECKING:
    from longformer.question_answering import Answer, QuestionAnswerer
    from longformer.squad import Example

DTYPES = ("float32", "bfloat16", "float16", "float64")
IMPLEMENTATIONS = ("auto", "reference", "banded", "blocked", "fused", "triton")

Command = TypeVar("Command", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 2 bad input (``error: ...`` on standard error), 130 interrupted.

    Args:
        arguments: of the command line; None takes ``sys.argv``'s.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a document may hold characters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(arguments, prog_name="longformer", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except LongformerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="longformer")
def cli() -> None:
    """Answer questions over long documents with a Longformer.

    \b
    longformer answer "How old must a person be to become President?" constitution.txt
    curl -s https://example.org/page.txt | longformer answer "Who wrote this?" -
    """


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


def batch_option(command: Command) -> Command:
    """Option for the size of a batch."""
    return click.option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        default=4096,
        show_default=True,
        metavar="N",
        help="Most tokens in a batch, padding counted.",
    )(command)


def _load(model: str | None, revision: str | None, device: str | None, dtype: str, impl: str) -> QuestionAnswerer:
    import torch

    from longformer.question_answering import QuestionAnswerer

    if model is None and revision is not None:
        raise click.UsageError("--revision is of a --model on the hub; name one, or leave --revision out")
    return QuestionAnswerer.from_pretrained(
        model, revision=revision, device=device, dtype=getattr(torch, dtype) if dtype in DTYPES else dtype, impl=impl
    )


def _first_given(*names: str) -> str | None:
    """The first of the parameters ``names`` that stands on the command line, as an option is written."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            return f"--{name.replace('_', '-')}"
    return None


@cli.command()
@click.argument("question")
@click.argument("document", required=False)
@click.option("--text", metavar="TEXT", help="The document itself, instead of a file.")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="How many answers."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of the answers.")
@answer_options
@model_options
def answer(
    question: str,
    document: str | None,
    text: str | None,
    top_k: int,
    as_json: bool,
    max_answer_tokens: int,
    stride: int | None,
    **model: Any,
) -> None:
    """Answer QUESTION from the file DOCUMENT (- for standard input)."""
    if (document is None) == (text is None):
        raise click.UsageError("give the document as a file, as - for standard input, or with --text: one of them")
    if text is None:
        assert document is not None
        text = read_document(document)

    from longformer.question_answering import check_pair

    check_pair((question, text))
    answers = _load(**model).answer(question, text, top_k=top_k, max_answer_tokens=max_answer_tokens, stride=stride)
    if as_json:
        click.echo(json.dumps([asdict(found) for found in answers], indent=2))
    else:
        click.echo("\n\n".join(describe(found, text) for found in answers))


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


def describe(found: Answer, document: str) -> str:
    """An answer as a reader wants it: its text, how probable, where, and the sentence around it."""
    text = click.style(printable(found.text), bold=True)
    before, after = surroundings(document, found.start, found.end)
    line = document.count("\n", 0, found.start) + 1
    sentence = f"{printable(before)}{text}{printable(after)}".strip()
    return (
        f"{text}\n"
        f"  probability {found.probability:.1%}, line {line}, "
        f"characters {found.start} to {found.end} of {len(document)}\n"
        f"  {sentence}"
    )


SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+|\n\s*\n""")


def surroundings(document: str, start: int, end: int, *, most: int = 160) -> tuple[str, str]:
    """What stands before and behind ``document[start:end]`` in its sentence, up to about ``most`` characters each."""
    before = document[max(0, start - most) : start]
    ends = [match.end() for match in SENTENCE_END.finditer(before)]
    if ends:
        before = before[ends[-1] :]
    elif start > most:
        before = f"... {before.partition(' ')[2]}"
    after = document[end : end + most]
    # One character more is searched, so that an answer which ends its sentence is seen to.
    found = SENTENCE_END.search(document[end - 1 : end + most])
    if found:
        after = after[: found.end() - 1].rstrip()
    elif end + most < len(document):
        after = f"{after.rpartition(' ')[0]} ..."
    return before, after


def printable(text: str) -> str:
    """``text`` on one line, and without characters that would steer the terminal."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text))


@cli.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT.json", help="Where to write the answers, {id: text}.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Answer the first N questions only.")
@batch_option
@answer_options
@model_options
def predict(
    file: str,
    output: str,
    limit: int | None,
    batch_tokens: int,
    max_answer_tokens: int,
    stride: int | None,
    **model: Any,
) -> None:
    """Answer every question of the SQuAD-format FILE."""
    check_output(output)
    from longformer.squad import read_squad

    examples = read_squad(file, require_answers=False)[:limit]
    predictions = _predict(
        examples, _load(**model), batch_tokens=batch_tokens, max_answer_tokens=max_answer_tokens, stride=stride
    )
    write_json(output, predictions)
    click.echo(f"wrote {len(predictions)} answers to {output}", err=True)


def _predict(examples: Sequence[Example], answerer: QuestionAnswerer, **settings: Any) -> dict[str, str]:
    """Question ids to answer texts, under a progress bar on standard error where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(examples), unit=" questions", disable=None) as bar:
        answers = answerer.answer_batch(
            [(example.question, example.context) for example in examples], progress=bar.update, **settings
        )
    return {example.id: found[0].text for example, found in zip(examples, answers, strict=True)}


def check_output(path: str) -> None:
    """Raises DataError where a file cannot be written at ``path``, before anything is computed for it."""
    folder = Path(path).parent
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; give a file to write to")
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r} to write {Path(path).name} into; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{str(folder)!r} cannot be written into; give another place for {Path(path).name}")


def write_json(path: str, value: Mapping[str, str]) -> None:
    """Write ``value`` whole or not at all. Raises DataError where that fails."""
    from longformer.weights import replace_file

    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"

    def write(new: Path) -> None:
        new.write_text(text, encoding="utf-8")

    try:
        replace_file(Path(path), write)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


@cli.command()
@click.argument("file")
@click.option("--predictions", metavar="P.json", help="Judge these answers, {id: text}, instead of predicting first.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object of the scores.")
@batch_option
@answer_options
@model_options
def evaluate(
    file: str,
    predictions: str | None,
    as_json: bool,
    batch_tokens: int,
    max_answer_tokens: int,
    stride: int | None,
    **model: Any,
) -> None:
    """Exact match and F1 on the SQuAD-format FILE, as the official script computes them."""
    if predictions is not None:
        given = _first_given("batch_tokens", "max_answer_tokens", "stride", *model)
        if given is not None:
            raise click.UsageError(f"{given} says how to predict, but --predictions has it done; leave one out")

    from longformer.squad import offset_report, read_predictions, read_squad

    examples = read_squad(file)
    offsets = offset_report(examples)
    if offsets.realigned or offsets.unusable:
        click.echo(f"{file}: {offsets}", err=True)
    impossible = sum(example.is_impossible for example in examples)
    if predictions is not None:
        texts = read_predictions(predictions)
    else:
        if impossible:
            click.echo(f"{file}: {impossible} of {len(examples)} questions have no answer; all get one", err=True)
        texts = _predict(
            examples, _load(**model), batch_tokens=batch_tokens, max_answer_tokens=max_answer_tokens, stride=stride
        )
    _report_scores(examples, texts, as_json)


def _report_scores(examples: Sequence[Example], predictions: Mapping[str, str], as_json: bool) -> None:
    from longformer.squad import bootstrap_interval, score
    from longformer.squad import evaluate as official_scores

    scores = score(examples, predictions)
    unknown = sorted(predictions.keys() - {example.id for example in examples})
    if scores.missing:
        click.echo(f"{_listed(scores.missing)} without a prediction, scored 0", err=True)
    if unknown:
        click.echo(f"{_listed(unknown)} predicted but not in the file, left out", err=True)
    official = official_scores(examples, predictions)
    if as_json:
        click.echo(json.dumps(official))
        return
    clusters = scores.articles if len(set(scores.articles)) > 1 else None
    unit = "questions" if clusters is None else "articles"
    for name, key, values in (("exact match", "exact_match", scores.exact_match), ("F1", "f1", scores.f1)):
        low, high = bootstrap_interval(values, clusters=clusters)
        click.echo(f"{name:<11}  {official[key]:6.2f}   95% interval over {unit} {low:.2f} to {high:.2f}")
    click.echo(f"{'questions':<11}  {official['total']}")


def _listed(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
    return f"{len(ids)} question{'s' if len(ids) > 1 else ''} ({shown})"


def _windows(context: click.Context, parameter: click.Parameter, value: str) -> int | list[int]:
    try:
        windows = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor numbers with commas between") from None
    return windows if len(windows) > 1 else windows[0]


@cli.command()
@click.argument("source", metavar="SRC")
@click.argument("folder", metavar="DST")
@click.option("--to-long", is_flag=True, help="Make a Longformer of a BERT or RoBERTa checkpoint, to be trained on.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="N",
    help="With --to-long: the longest sequence that the new model reads.",
)
@click.option(
    "--attention-window",
    default="512",
    show_default=True,
    metavar="W[,W...]",
    callback=_windows,
    help="With --to-long: the two-sided window, one for all layers or one a layer.",
)
@click.option("--keep", multiple=True, metavar="PART", help="With --to-long: keep this head too, such as qa_outputs.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Without --to-long: store the weights in this precision.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of SRC on the hub.")
def convert(
    source: str,
    folder: str,
    to_long: bool,
    max_tokens: int,
    attention_window: int | list[int],
    keep: tuple[str, ...],
    dtype: str | None,
    revision: str | None,
) -> None:
    """Write the checkpoint SRC (folder or name on the hub) to the folder DST, as safetensors with today's names."""
    given = _first_given(*(("dtype",) if to_long else ("max_tokens", "attention_window", "keep")))
    if given is not None:
        raise click.UsageError(f"{given} {'does not go with' if to_long else 'needs'} --to-long")

    import torch

    from longformer import convert as conversion

    if to_long:
        done = conversion.to_long(
            source, folder, max_tokens=max_tokens, attention_window=attention_window, keep=keep, revision=revision
        )
    else:
        done = conversion.convert(
            source, folder, dtype=None if dtype is None else getattr(torch, dtype), revision=revision
        )
    click.echo(f"wrote {done.folder}", err=True)
    if done.dropped:
        click.echo(f"left out: {', '.join(done.dropped)}", err=True)


@cli.group()
def train() -> None:
    """Train a model further."""


@train.command("qa")
@click.argument("source", metavar="SRC")
@click.argument("folder", metavar="DST")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--hold-out", multiple=True, metavar="TITLE", help="Article to leave out and to measure on afterwards.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, metavar="N")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, metavar="N")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-4, show_default=True)
@click.option("--attention-dropout", type=click.FloatRange(0, 1, max_open=True), help="Instead of the model's own.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--train-embeddings", is_flag=True, help="Train the embeddings too; they stay as they are otherwise.")
@click.option("--store", type=click.Choice(DTYPES), default="float32", show_default=True, help="Precision of DST.")
@click.option("--seed", type=int, default=0, show_default=True)
def train_qa(
    source: str,
    folder: str,
    files: tuple[str, ...],
    hold_out: tuple[str, ...],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    attention_dropout: float | None,
    precision: str,
    train_embeddings: bool,
    store: str,
    seed: int,
) -> None:
    """Fine-tune the encoder SRC (folder or name on the hub) on the SQuAD-format FILEs, and save it in DST.

    The head for question answering is drawn afresh if SRC has none.
    """
    from longformer.squad import read_squad

    examples = [example for file in files for example in read_squad(file)]
    titles = {example.title for example in examples}
    for title in hold_out:
        if title not in titles:
            raise DataError(f"--hold-out {title!r}: no file has an article of that title")
    kept = [example for example in examples if example.title not in hold_out]
    held = [example for example in examples if example.title in hold_out]

    import torch

    from longformer.attention import LongformerSelfAttention
    from longformer.heads import LongformerForQuestionAnswering
    from longformer.question_answering import QuestionAnswerer
    from longformer.tokenizer import LongformerTokenizer
    from longformer.training import Recipe, finetune_qa
    from longformer.weights import find_weights, read_tensors

    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=precision,
        freeze_embeddings=not train_embeddings,
        seed=seed,
    )
    has_head = any(name.startswith("qa_outputs.") for name in read_tensors(find_weights(source)))
    tokenizer = LongformerTokenizer.from_pretrained(source)
    torch.manual_seed(seed)
    model = LongformerForQuestionAnswering.from_pretrained(source, new_head=not has_head)
    for part in model.modules():
        if isinstance(part, LongformerSelfAttention) and attention_dropout is not None:
            part.dropout_p = attention_dropout
    finetune_qa(model, tokenizer, kept, recipe)
    model.to(getattr(torch, store)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    click.echo(f"wrote {folder}", err=True)
    if held:
        answerer = QuestionAnswerer.from_pretrained(folder)
        _report_scores(held, _predict(held, answerer), as_json=False)


cli.add_command(bench)
cli.add_command(parity)
