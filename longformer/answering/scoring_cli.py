"""``longformer evaluate`` and ``tune-threshold``. What is slow to import is imported where it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from longformer.answering.files_cli import (
    Questions,
    counted,
    is_first_process,
    listed_questions,
    question_options,
)
from longformer.answering.options import answer_options, batch_option, first_given, model_options
from longformer.errors import DataError
from longformer.files import check_outputs, is_stream

if TYPE_CHECKING:
    from longformer.answering.scores import Scores
    from longformer.answering.squad import Example
    from longformer.answering.v2 import Curve

PICTURES = (".png", ".pdf", ".svg")


@click.command()
@question_options
@click.option("--predictions", metavar="P.json", help="Judge these answers, {id: text}, instead of predicting first.")
@click.option(
    "--against", metavar="Q.json", help="By how much --predictions are better than these, with paired intervals."
)
@click.option(
    "--missing",
    type=click.Choice(["zero", "skip"]),
    default="zero",
    show_default=True,
    help="What a question without a prediction counts: 0, or nothing, as in the official script of v2.0.",
)
@click.option(
    "--na-probs",
    metavar="N.json",
    help="What speaks for no answer, {id: probability or null score}: gives best thresholds and average precision.",
)
@click.option(
    "--na-prob-thresh",
    type=float,
    default=1.0,
    show_default=True,
    metavar="X",
    help="With --na-probs: where these are above X, the answer counts as none, as in the official script.",
)
@click.option("--plot", metavar="PICTURE", help="With --na-probs: draw precision against recall (.png, .pdf, .svg).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object of the scores.")
@batch_option
@answer_options
@model_options
def evaluate(
    file: str, predictions: str | None, form: str | None, skip_bad: bool, as_json: bool, **options: Any
) -> None:
    """Exact match and F1 on FILE, as the official scripts of SQuAD compute them, with 95 % intervals.

    For a file with unanswerable questions, all figures of the official script of v2.0. Under torchrun the processes
    share the questions.
    """
    how = {name: options.pop(name) for name in ("against", "missing", "na_probs", "na_prob_thresh", "plot")}
    _check_evaluation(file, predictions, how, options)
    if predictions is not None and not is_first_process():
        return
    questions = Questions(file, form, skip_bad)
    if predictions is not None and how["against"] is not None:
        found = _comparison(questions, (predictions, how["against"]))
    else:
        texts = _given_or_predicted(questions, predictions, options)
        if texts is None:
            return
        found = _judged(questions.examples, texts, how)
    if skip_bad:
        found["skipped"] = len(questions.skipped)
    from longformer.answering import evaluation

    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(evaluation.describe_comparison(found) if how["against"] else evaluation.describe(found))


def _check_evaluation(file: str, predictions: str | None, how: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise UsageError or DataError for options of ``evaluate`` that do not go together."""
    if how["against"] is not None and predictions is None:
        raise click.UsageError("--against compares answers with those of --predictions; name these too")
    given = first_given(*options) if predictions is not None else None
    if given is not None:
        raise click.UsageError(f"{given} says how to predict, but --predictions has it done; leave one out")
    given = first_given("missing", "na_probs", "na_prob_thresh", "plot") if how["against"] is not None else None
    if given is not None:
        raise click.UsageError(f"{given} does not go with --against; leave one out")
    given = first_given("na_prob_thresh", "plot") if how["na_probs"] is None else None
    if given is not None:
        raise click.UsageError(f"{given} needs --na-probs, which says what speaks for no answer")
    if how["plot"] is not None:
        if Path(how["plot"]).suffix.lower() not in PICTURES and not is_stream(how["plot"]):
            raise DataError(f"{how['plot']!r} must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
        inputs = [path for path in (file, predictions, how["na_probs"]) if path is not None]
        check_outputs([how["plot"]], inputs)
        _require_matplotlib()


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise DataError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")


def _given_or_predicted(
    questions: Questions, predictions: str | None, options: dict[str, Any]
) -> dict[str, str] | None:
    """Answer texts by id, of a file or of a model; None where another process has them."""
    from longformer.answering.squad import offset_report, read_predictions

    offsets = offset_report(questions.examples)
    if (offsets.realigned or offsets.unusable) and is_first_process():
        click.echo(f"{questions.file}: {offsets}", err=True)
    if predictions is not None:
        return read_predictions(predictions)
    impossible = sum(example.is_impossible for example in questions.examples)
    if impossible and options["null_threshold"] is None and is_first_process():
        click.echo(
            f"{questions.file}: {impossible} of {len(questions.examples)} questions have no answer; all get one (see "
            "--null-threshold)",
            err=True,
        )
    predicted = questions.predict(options)
    return None if predicted is None else predicted.texts


def _judged(examples: Sequence[Example], predictions: Mapping[str, str], how: Mapping[str, Any]) -> dict[str, Any]:
    """All figures of ``evaluate``, by name; what is missing or left over is told on standard error."""
    from longformer.answering import evaluation, v2
    from longformer.answering.scores import score
    from longformer.answering.squad import read_null_scores

    raw = score(examples, predictions, v2=None if how["na_probs"] is None else True)
    skip = how["missing"] == "skip"
    if raw.missing:
        click.echo(
            f"{listed_questions(raw.missing)} without a prediction, {'left out' if skip else 'scored 0'}", err=True
        )
    unknown = sorted(predictions.keys() - set(raw.ids))
    if unknown:
        click.echo(f"{listed_questions(unknown)} predicted but not in the file, left out", err=True)
    if skip and len(raw.missing) == len(raw.ids):
        raise DataError("there is no prediction for any question, and --missing skip leaves out those without one")
    scores, values = raw, {}
    if how["na_probs"] is not None:
        values = read_null_scores(how["na_probs"], (key for key in raw.ids if key in predictions))
        scores = v2.with_threshold(raw, values, how["na_prob_thresh"])
        _tell_threshold(raw, scores, values, how["na_prob_thresh"])
    found = evaluation.summary(v2.predicted(scores) if skip else scores)
    if values:
        found |= v2.best_thresholds(raw, values)
        curves = v2.precision_recall(raw, values)
        found |= {f"pr_{name}_ap": curve.average for name, curve in curves.items()}
        if how["plot"] is not None:
            _plot(how["plot"], curves, raw, values)
    return found


def _tell_threshold(raw: Scores, scores: Scores, values: Mapping[str, float], threshold: float) -> None:
    """Say where the threshold changed answers that were made by values which are no probabilities."""
    changed = int((scores.empty & ~raw.empty).sum())
    if changed and not all(0 <= value <= 1 for value in values.values()):
        click.echo(
            f"{counted(changed)} answered by none, since --na-probs, which are no probabilities, are above "
            f"{threshold:g} (see --na-prob-thresh)",
            err=True,
        )


def _plot(path: str, curves: Mapping[str, Curve], scores: Scores, values: Mapping[str, float]) -> None:
    from matplotlib.figure import Figure

    from longformer.plotting import draw_precision_recall, draw_values_by_kind
    from longformer.plotting.figures import write_figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_precision_recall(left, {name: (curve.recall, curve.precision) for name, curve in curves.items()})
    known = [(values[key], has) for key, has in zip(scores.ids, scores.has_answer, strict=True) if key in values]
    draw_values_by_kind(right, [value for value, has in known if has], [value for value, has in known if not has])
    write_figure(path, figure, dpi=110)


def _comparison(questions: Questions, paths: tuple[str, str]) -> dict[str, Any]:
    from longformer.answering import evaluation
    from longformer.answering.squad import read_predictions

    answers = [read_predictions(path) for path in paths]
    for path, predictions in zip(paths, answers, strict=True):
        missing = [example.id for example in questions.examples if example.id not in predictions]
        if missing:
            named = listed_questions(missing)
            raise DataError(f"{path}: no answer to {named} of {questions.file}; only answers to all can be compared")
    return evaluation.compare(questions.examples, *answers)


@click.command("tune-threshold")
@question_options
@click.option("--predictions", metavar="P.json", help="Answers, {id: text}, made without --null-threshold.")
@click.option("--null-scores", metavar="N.json", help="Null scores of the same run, as `predict` writes them.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@batch_option
@answer_options
@model_options
def tune_threshold(
    file: str,
    predictions: str | None,
    null_scores: str | None,
    form: str | None,
    skip_bad: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the --null-threshold with which a model scores best on FILE, which has unanswerable questions (SQuAD v2).

    Without --predictions and --null-scores the model answers first, once, whatever the number of thresholds.
    """
    if (predictions is None) != (null_scores is None):
        raise click.UsageError("--predictions and --null-scores are of one run of `predict`; give both, or neither")
    given = first_given(*options) if predictions is not None else None
    if given is not None or first_given("null_threshold") is not None:
        raise click.UsageError(f"{given or '--null-threshold'} says how to predict; leave it out")
    if predictions is not None and not is_first_process():
        return
    questions = Questions(file, form, skip_bad)
    from longformer.answering import v2
    from longformer.answering.scores import score
    from longformer.answering.squad import read_null_scores, read_predictions

    if predictions is not None and null_scores is not None:
        texts = read_predictions(predictions)
        values = read_null_scores(null_scores, (example.id for example in questions.examples if example.id in texts))
    else:
        predicted = questions.predict(options)
        if predicted is None:
            return
        texts, values = predicted.texts, {key: of.null_score for key, of in predicted.found.items()}
    scores = score(questions.examples, texts, v2=True)
    if scores.missing:
        click.echo(f"{listed_questions(scores.missing)} without a prediction, left out", err=True)
    scores = v2.predicted(scores)
    if not scores.ids:
        raise DataError(f"{predictions}: holds no predictions")
    found = {**v2.tune(scores, values), "total": len(scores.ids)}
    if as_json:
        click.echo(json.dumps({**found, "skipped": len(questions.skipped)} if skip_bad else found))
        return
    for name, key in (("F1", "f1"), ("exact match", "exact")):
        click.echo(f"best {name:<11}  {found[f'best_{key}']:6.2f}   --null-threshold {found[f'best_{key}_thresh']!r}")
    click.echo(f"{'questions':<16}  {found['total']}{questions.summary()}")
