"""The ``longformer`` command.

What is slow to import is imported inside the commands, so that ``longformer --help`` answers at once; what is cheap to
check is checked before a model is loaded. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from longformer.bench.cli import bench
from longformer.cli_options import (
    DTYPES,
    Command,
    answer_options,
    check_output,
    load_answerer,
    model_options,
    read_document,
)
from longformer.errors import DataError, LongformerError
from longformer.explain.cli import explain
from longformer.parity.cli import parity
from longformer.training.cli import evaluate_mlm, train

if TYPE_CHECKING:
    from longformer.answering.answerer import Answer
    from longformer.answering.squad import Example


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 done, 2 bad input (``error: ...`` on standard error), 130 interrupted.

    A training that SIGTERM ended exits with 143.

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
    max_length: int | None,
    null_threshold: float | None,
    **model: Any,
) -> None:
    """Answer QUESTION from the file DOCUMENT (- for standard input)."""
    if (document is None) == (text is None):
        raise click.UsageError("give the document as a file, as - for standard input, or with --text: one of them")
    if text is None:
        assert document is not None
        text = read_document(document)

    from longformer.answering.answerer import check_pair

    check_pair((question, text))
    answers = load_answerer(**model).answer(
        question,
        text,
        top_k=top_k,
        max_answer_tokens=max_answer_tokens,
        stride=stride,
        max_length=max_length,
        null_threshold=null_threshold,
    )
    if as_json:
        click.echo(json.dumps([asdict(found) for found in answers], indent=2))
    else:
        click.echo("\n\n".join(describe(found, text) for found in answers))


def describe(found: Answer, document: str) -> str:
    """An answer as a reader wants it: its text, how probable, where, and the sentence around it."""
    if not found.text:
        return f"no answer\n  probability {found.probability:.1%}"
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
def predict(file: str, output: str, limit: int | None, **settings: Any) -> None:
    """Answer every question of the SQuAD-format FILE. Under torchrun the processes share them."""
    check_output(output)
    from longformer.answering.squad import read_squad

    predictions = _predict(read_squad(file, require_answers=False)[:limit], **settings)
    if predictions is not None:
        write_json(output, predictions)
        click.echo(f"wrote {len(predictions)} answers to {output}", err=True)


MODEL_OPTIONS = ("model", "revision", "device", "dtype", "impl")


def _predict(examples: Sequence[Example], **settings: Any) -> dict[str, str] | None:
    """Question ids to answer texts, under a progress bar; in all processes but the first None.

    Args:
        settings: the options of ``model_options``, ``answer_options`` and ``batch_option``.
    """
    from longformer.answering.evaluation import predict
    from longformer.distributed import processes, together

    model = {name: settings.pop(name) for name in MODEL_OPTIONS}
    with processes(model["device"]) as group:
        with together(group):
            answerer = load_answerer(**{**model, "device": group.device if group.joined else model["device"]})
        predictions = predict(examples, answerer, group, progress=True, **settings)
        return predictions if group.is_first else None


def write_json(path: str, value: Mapping[str, str]) -> None:
    """Write ``value`` whole or not at all. Raises DataError where that fails."""
    from longformer.checkpoints.weights import write_text

    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


@cli.command()
@click.argument("file")
@click.option("--predictions", metavar="P.json", help="Judge these answers, {id: text}, instead of predicting first.")
@click.option(
    "--against", metavar="Q.json", help="By how much --predictions are better than these, with paired intervals."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object of the scores.")
@batch_option
@answer_options
@model_options
def evaluate(file: str, predictions: str | None, against: str | None, as_json: bool, **settings: Any) -> None:
    """Exact match and F1 on the SQuAD-format FILE, as the official script computes them, with 95 % intervals.

    Under torchrun the processes share the questions.
    """
    if against is not None and predictions is None:
        raise click.UsageError("--against compares answers with those of --predictions; name these too")
    if predictions is not None:
        given = _first_given(*settings)
        if given is not None:
            raise click.UsageError(f"{given} says how to predict, but --predictions has it done; leave one out")

        if not is_first_process():
            return

    from longformer.answering.squad import offset_report, read_predictions, read_squad

    if predictions is not None and against is not None:
        _report_comparison(file, (predictions, against), as_json)
        return
    examples = read_squad(file)
    offsets = offset_report(examples)
    if (offsets.realigned or offsets.unusable) and is_first_process():
        click.echo(f"{file}: {offsets}", err=True)
    impossible = sum(example.is_impossible for example in examples)
    if predictions is not None:
        _report_scores(examples, read_predictions(predictions), as_json)
        return
    if impossible and settings["null_threshold"] is None and is_first_process():
        click.echo(
            f"{file}: {impossible} of {len(examples)} questions have no answer; all get one (see --null-threshold)",
            err=True,
        )
    texts = _predict(examples, **settings)
    if texts is not None:
        _report_scores(examples, texts, as_json)


def is_first_process() -> bool:
    """Whether this process, of those that torchrun started, is the one that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _report_scores(examples: Sequence[Example], predictions: Mapping[str, str], as_json: bool) -> None:
    from longformer.answering import evaluation
    from longformer.answering.squad import score

    scores = score(examples, predictions)
    found, missing = evaluation.summary(scores), scores.missing
    unknown = sorted(predictions.keys() - {example.id for example in examples})
    if missing:
        click.echo(f"{_listed(missing)} without a prediction, scored 0", err=True)
    if unknown:
        click.echo(f"{_listed(unknown)} predicted but not in the file, left out", err=True)
    click.echo(json.dumps(found) if as_json else evaluation.describe(found))


def _report_comparison(file: str, paths: tuple[str, str], as_json: bool) -> None:
    from longformer.answering import evaluation
    from longformer.answering.squad import read_predictions, read_squad

    examples = read_squad(file)
    answers = [read_predictions(path) for path in paths]
    for path, predictions in zip(paths, answers, strict=True):
        missing = [example.id for example in examples if example.id not in predictions]
        if missing:
            raise DataError(f"{path}: no answer to {_listed(missing)} of {file}; only answers to all can be compared")
    found = evaluation.compare(examples, *answers)
    click.echo(json.dumps(found) if as_json else evaluation.describe_comparison(found))


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
@click.option("--to-long", is_flag=True, help="Make a long Longformer of a BERT, RoBERTa or Longformer checkpoint.")
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
@click.option("--keep", multiple=True, metavar="PART", help="With --to-long: keep this head too, such as lm_head.")
@click.option(
    "--positions",
    type=click.Choice(["copied", "random"]),
    default="copied",
    show_default=True,
    help="With --to-long: repeat the source's position embeddings, or draw them afresh, to compare.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Without --to-long: store the weights in this precision.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of SRC on the hub.")
def convert(
    source: str,
    folder: str,
    to_long: bool,
    max_tokens: int,
    attention_window: int | list[int],
    keep: tuple[str, ...],
    positions: str,
    dtype: str | None,
    revision: str | None,
) -> None:
    """Write the checkpoint SRC (folder or name on the hub) to the folder DST, as safetensors with today's names."""
    given = _first_given(*(("dtype",) if to_long else ("max_tokens", "attention_window", "keep", "positions")))
    if given is not None:
        raise click.UsageError(f"{given} {'does not go with' if to_long else 'needs'} --to-long")

    import torch

    from longformer import convert as conversion

    if to_long:
        done = conversion.to_long(
            source,
            folder,
            max_tokens=max_tokens,
            attention_window=attention_window,
            keep=keep,
            positions=positions,
            revision=revision,
        )
    else:
        done = conversion.convert(
            source, folder, dtype=None if dtype is None else getattr(torch, dtype), revision=revision
        )
    click.echo(f"wrote {done.folder}", err=True)
    if done.dropped:
        click.echo(f"left out: {', '.join(done.dropped)}", err=True)


cli.add_command(bench)
cli.add_command(evaluate_mlm)
cli.add_command(explain)
cli.add_command(parity)
cli.add_command(train)
