"""``longformer answer``, ``predict`` and ``evaluate``. What is slow to import is imported where it is run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from longformer.answering.options import (
    COUNT,
    MODEL_OPTIONS,
    Command,
    answer_options,
    check_one_document,
    checkpoint_files,
    document_arguments,
    first_given,
    given_document,
    load_answerer,
    model_options,
    take_settings,
)
from longformer.answering.settings import AnswerSettings
from longformer.errors import DataError
from longformer.files import check_outputs, write_json

if TYPE_CHECKING:
    from longformer.answering.answerer import Answer
    from longformer.answering.squad import Example


@click.command()
@document_arguments
@click.option(
    "--top-k",
    type=COUNT,
    default=AnswerSettings.top_k,
    show_default=True,
    metavar="N",
    help="How many answers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of the answers.")
@answer_options
@model_options
def answer(question: str, document: str | None, text: str | None, as_json: bool, **options: Any) -> None:
    """Answer QUESTION from the file DOCUMENT (- for standard input)."""
    check_one_document(document, text)
    text = given_document(document, text)

    from longformer.answering.windows import check_texts

    check_texts(question, text)
    settings = take_settings(options)
    answers = load_answerer(**options).answer(question, text, settings=settings)
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


@click.command()
@click.argument("file")
@click.option("-o", "--output", required=True, metavar="OUT.json", help="Where to write the answers, {id: text}.")
@click.option("--limit", type=COUNT, metavar="N", help="Answer the first N questions only.")
@batch_option
@answer_options
@model_options
def predict(file: str, output: str, limit: int | None, **options: Any) -> None:
    """Answer every question of the SQuAD-format FILE. Under torchrun the processes share them."""
    check_outputs([output], [file, *checkpoint_files(options["model"], options["tokenizer"])])
    from longformer.answering.squad import read_squad

    predictions = _predict(read_squad(file, require_answers=False)[:limit], options)
    if predictions is not None:
        write_json(output, predictions)
        click.echo(f"wrote {len(predictions)} answers to {output}", err=True)


def _predict(examples: Sequence[Example], options: dict[str, Any]) -> dict[str, str] | None:
    """Question ids to answer texts, under a progress bar; in all processes but the first None.

    Args:
        examples: the questions.
        options: those of ``model_options``, ``answer_options`` and ``batch_option``.
    """
    from longformer.answering.evaluation import predict
    from longformer.distributed import fail_together, processes

    model = {name: options[name] for name in MODEL_OPTIONS}
    settings, batch_tokens = take_settings(options), options["batch_tokens"]
    with processes(model["device"]) as group:
        with fail_together(group):
            answerer = load_answerer(**{**model, "device": group.device if group.joined else model["device"]})
        predictions = predict(examples, answerer, group, settings, batch_tokens=batch_tokens, progress=True)
        return predictions if group.is_first else None


@click.command()
@click.argument("file")
@click.option("--predictions", metavar="P.json", help="Judge these answers, {id: text}, instead of predicting first.")
@click.option(
    "--against", metavar="Q.json", help="By how much --predictions are better than these, with paired intervals."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object of the scores.")
@batch_option
@answer_options
@model_options
def evaluate(file: str, predictions: str | None, against: str | None, as_json: bool, **options: Any) -> None:
    """Exact match and F1 on the SQuAD-format FILE, as the official script computes them, with 95 % intervals.

    Under torchrun the processes share the questions.
    """
    if against is not None and predictions is None:
        raise click.UsageError("--against compares answers with those of --predictions; name these too")
    if predictions is not None:
        given = first_given(*options)
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
    if impossible and options["null_threshold"] is None and is_first_process():
        click.echo(
            f"{file}: {impossible} of {len(examples)} questions have no answer; all get one (see --null-threshold)",
            err=True,
        )
    texts = _predict(examples, options)
    if texts is not None:
        _report_scores(examples, texts, as_json)


def is_first_process() -> bool:
    """Whether this process, of those that torchrun started, is the one that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _report_scores(examples: Sequence[Example], predictions: Mapping[str, str], as_json: bool) -> None:
    from longformer.answering import evaluation
    from longformer.answering.scores import score

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
