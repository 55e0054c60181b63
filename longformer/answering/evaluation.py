"""Answers to the questions of a SQuAD-format file, and how good they are; over several processes where there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from longformer.answering.answerer import BATCH_TOKENS, QuestionAnswerer
from longformer.answering.scores import Scores, bootstrap_interval, score
from longformer.answering.settings import AnswerSettings
from longformer.answering.squad import Example
from longformer.distributed import Processes, fail_together
from longformer.errors import DataError, LongformerError

QuestionFile = tuple[str, list[Example]]  # a file's path, and what of it is asked


def predict(
    examples: Sequence[Example],
    answerer: QuestionAnswerer,
    group: Processes,
    settings: AnswerSettings,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> dict[str, str]:
    """Question ids to answer texts, the same in all processes, each of which answers its share.

    Args:
        examples: the same in all processes, in one order.
        answerer: over the same weights in all processes.
        group: the processes.
        settings: what counts as an answer.
        batch_tokens: as for :meth:`QuestionAnswerer.answer_batch`.
        progress: whether the first process shows a bar on standard error, where that is a terminal.
    """
    mine = _share(examples, group)
    found: list[Any] = []
    with (
        fail_together(group),
        tqdm(total=len(mine), unit=" questions", disable=None if progress and group.is_first else True) as bar,
    ):
        if mine:
            pairs = [(example.question, example.context) for example in mine]
            found = answerer.answer_batch(pairs, settings=settings, batch_tokens=batch_tokens, progress=bar.update)
    answers = {example.id: answers[0].text for example, answers in zip(mine, found, strict=True)}
    everyone: dict[str, str] = {}
    for theirs in group.gather(answers):
        everyone |= theirs
    return {example.id: everyone[example.id] for example in examples}


def check_questions(files: Sequence[QuestionFile], answerer: QuestionAnswerer, settings: AnswerSettings) -> None:
    """Find what would stop :func:`predict`, or mix up its answers, before any time is spent on answering.

    Args:
        files: questions by file, to be asked together.
        answerer: that will be asked.
        settings: with which it will be asked.

    Raises:
        DataError: one id for two questions, or a question that cannot be asked, such as one that leaves no room for
            its context; names file and id.
    """
    seen: dict[str, tuple[str, Example]] = {}
    reader = answerer.reader(documents=1)  # questions over one context mostly follow each other
    for file, examples in files:
        for example in examples:
            first_file, first = seen.setdefault(example.id, (file, example))
            if (first.question, first.context) != (example.question, example.context):
                raise DataError(
                    f"{file}, {example.place}: id {example.id!r} is that of another question in {first_file}, "
                    f"{first.place}; ids must be unique over all files that are measured on together"
                )
            try:
                reader.read(example.question, example.context, settings)
            except LongformerError as error:
                raise DataError(f"{file}, {example.place}: id {example.id!r}: {error}") from None


def _share(examples: Sequence[Example], group: Processes) -> list[Example]:
    """This process's part: whole contexts, which are tokenised once, dealt from the longest to the shortest."""
    contexts = sorted({example.context for example in examples}, key=lambda text: (-len(text), text))
    mine = set(group.share(contexts))
    return [example for example in examples if example.context in mine]


def summary(scores: Scores) -> dict[str, Any]:
    """The official scores, and 95 % intervals by bootstrap over articles, or over questions where there is one article.

    Args:
        scores: of :func:`longformer.answering.scores.score`.

    Returns:
        ``exact_match``, ``f1``, ``total`` of :func:`longformer.answering.scores.evaluate`, with
        ``exact_match_interval`` and ``f1_interval`` (low, high) and ``interval_over``, "articles" or "questions".
    """
    clusters = _clusters(scores)
    return {
        "exact_match": float(scores.exact_match.mean()),
        "f1": float(scores.f1.mean()),
        "total": len(scores.f1),
        "exact_match_interval": bootstrap_interval(scores.exact_match, clusters=clusters),
        "f1_interval": bootstrap_interval(scores.f1, clusters=clusters),
        "interval_over": "questions" if clusters is None else "articles",
    }


def _clusters(scores: Scores) -> list[str] | None:
    return scores.articles if len(set(scores.articles)) > 1 else None


def compare(examples: Sequence[Example], predictions: Mapping[str, str], against: Mapping[str, str]) -> dict[str, Any]:
    """By how much ``predictions`` score more than ``against`` on the same questions, in points.

    The intervals of 95 % are those of the paired bootstrap: articles are drawn, or questions where there is only one
    article, and both sides are scored on the same draw. How hard the drawn questions are then makes no difference.

    Returns:
        ``predictions`` and ``against``, a :func:`summary` each; ``exact_match_difference`` and ``f1_difference``, with
        ``exact_match_difference_interval`` and ``f1_difference_interval`` (low, high); ``interval_over``, ``total``.
    """
    first, second = score(examples, predictions), score(examples, against)
    one, other = summary(first), summary(second)
    found = {"predictions": one, "against": other, "interval_over": one["interval_over"], "total": one["total"]}
    for name in ("exact_match", "f1"):
        difference = getattr(first, name) - getattr(second, name)
        found[f"{name}_difference"] = float(difference.mean())
        found[f"{name}_difference_interval"] = bootstrap_interval(difference, clusters=_clusters(first))
    return found


def describe_comparison(found: Mapping[str, Any]) -> str:
    """What :func:`compare` found for a reader, a line a figure."""
    lines = []
    for name, key in (("exact match", "exact_match"), ("F1", "f1")):
        low, high = found[f"{key}_difference_interval"]
        lines.append(
            f"{name:<11}  {found[f'{key}_difference']:+6.2f}   95% interval over {found['interval_over']} "
            f"{low:+.2f} to {high:+.2f}   ({found['predictions'][key]:.2f} against {found['against'][key]:.2f})"
        )
    return "\n".join([*lines, f"{'questions':<11}  {found['total']}"])


def describe(found: Mapping[str, Any]) -> str:
    """A :func:`summary` for a reader, a line a figure."""
    lines = []
    for name, key in (("exact match", "exact_match"), ("F1", "f1")):
        low, high = found[f"{key}_interval"]
        lines.append(
            f"{name:<11}  {found[key]:6.2f}   95% interval over {found['interval_over']} {low:.2f} to {high:.2f}"
        )
    return "\n".join([*lines, f"{'questions':<11}  {found['total']}"])
