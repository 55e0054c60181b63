"""Answers to the questions of a SQuAD-format file, and how good they are; over several processes where there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from longformer.answering.answerer import BATCH_TOKENS, QuestionAnswerer
from longformer.answering.scores import Scores, bootstrap_interval, score
from longformer.answering.settings import AnswerSettings
from longformer.answering.spans import Found
from longformer.answering.squad import Example, check_id
from longformer.answering.v2 import by_kind
from longformer.distributed import Processes, fail_together
from longformer.errors import DataError, LongformerError


@dataclass(frozen=True)
class Predicted:
    """What was found for questions by their ids, in their order, and a line for each that was left out."""

    found: dict[str, Found]
    skipped: list[str]

    @property
    def texts(self) -> dict[str, str]:
        """Question ids to answer texts, "" for no answer."""
        return {key: found.text for key, found in self.found.items()}


def predict(
    examples: Sequence[Example],
    answerer: QuestionAnswerer,
    group: Processes,
    settings: AnswerSettings,
    *,
    batch_tokens: int = BATCH_TOKENS,
    skip_bad: bool = False,
    progress: bool = False,
) -> Predicted:
    """Answers to questions, the same in all processes, each of which answers its share.

    Args:
        examples: the same in all processes, in one order.
        answerer: over the same weights in all processes.
        group: the processes.
        settings: what counts as an answer.
        batch_tokens: as for :meth:`QuestionAnswerer.answer_batch`.
        skip_bad: leave a question out that cannot be asked, such as one that leaves no room for its context.
        progress: whether the first process shows a bar on standard error, where that is a terminal.

    Raises:
        DataError: a question that cannot be asked, with file, place and id; with ``skip_bad`` only where none can.
        LongformerError: a setting out of range, or a model whose scores are not finite.
    """
    mine = _share(examples, group)
    skipped: dict[str, str] = {}
    with (
        fail_together(group),
        tqdm(total=len(mine), unit=" questions", disable=None if progress and group.is_first else True) as bar,
    ):

        def refuse(i: int, error: LongformerError) -> None:
            message = f"{mine[i].where}: {error}"
            if not skip_bad or not isinstance(error, DataError):
                raise type(error)(message) from None
            skipped[mine[i].id] = message
            bar.update(1)

        pairs = [(example.question, example.context) for example in mine]
        found = answerer.search(
            pairs, settings=settings, batch_tokens=batch_tokens, progress=bar.update, refused=refuse
        )
    everyone: dict[str, Found | str] = {}
    for theirs, left_out in group.gather(({mine[i].id: of_question for i, of_question in found.items()}, skipped)):
        everyone |= {**theirs, **left_out}
    in_order = {example.id: everyone[example.id] for example in examples}
    skips = [message for message in in_order.values() if isinstance(message, str)]
    answers = {key: of_question for key, of_question in in_order.items() if not isinstance(of_question, str)}
    if skips and not answers:
        raise DataError(f"none of the {len(skips)} questions can be asked; the first is {skips[0]}")
    return Predicted(answers, skips)


def check_questions(examples: Iterable[Example], answerer: QuestionAnswerer, settings: AnswerSettings) -> None:
    """Find what would stop :func:`predict`, or mix up its answers, before any time is spent on answering.

    Args:
        examples: the questions, of any number of files, to be asked together.
        answerer: that will be asked.
        settings: with which it will be asked.

    Raises:
        DataError: one id for two questions, or a question that cannot be asked, such as one that leaves no room for
            its context; names file, place and id.
    """
    seen: dict[str, Example] = {}
    reader = answerer.reader(documents=1)  # questions over one context mostly follow each other
    for example in examples:
        try:
            check_id(example, seen)
            reader.read(example.question, example.context, settings)
        except LongformerError as error:
            raise DataError(f"{example.where}: {error}") from None


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
        ``exact_match_interval`` and ``f1_interval`` (low, high) and ``interval_over``, "articles" or "questions". By
        the rules of v2.0 also :func:`longformer.answering.v2.by_kind`.
    """
    clusters = _clusters(scores)
    return {
        **(by_kind(scores) if scores.v2 else {}),
        "exact_match": float(scores.exact_match.mean()),
        "f1": float(scores.f1.mean()),
        "total": len(scores.f1),
        "exact_match_interval": bootstrap_interval(scores.exact_match, clusters=clusters),
        "f1_interval": bootstrap_interval(scores.f1, clusters=clusters),
        "interval_over": "articles" if clusters is not None and len(set(clusters)) < len(clusters) else "questions",
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
    return "\n".join([*lines, *_describe_counts(found)])


def describe(found: Mapping[str, Any]) -> str:
    """A :func:`summary`, and what :mod:`longformer.answering.v2` adds to it, for a reader, a line a figure."""
    lines = []
    for name, key in (("exact match", "exact_match"), ("F1", "f1")):
        low, high = found[f"{key}_interval"]
        lines.append(
            f"{name:<11}  {found[key]:6.2f}   95% interval over {found['interval_over']} {low:.2f} to {high:.2f}"
        )
    lines += _describe_counts(found)
    for name, key in (("with an answer", "HasAns"), ("without an answer", "NoAns")):
        if f"{key}_total" in found:
            exact, overlap, total = (found[f"{key}_{figure}"] for figure in ("exact", "f1", "total"))
            lines.append(f"{name:<17}  exact match {exact:.2f}, F1 {overlap:.2f}, questions {total}")
    for name, key in (("best exact match", "best_exact"), ("best F1", "best_f1")):
        if key in found:
            lines.append(f"{name:<17}  {found[key]:6.2f}   with no answer above {found[f'{key}_thresh']!r}")
    if "pr_f1_ap" in found:
        exact, overlap, oracle = (found[f"pr_{figure}_ap"] for figure in ("exact", "f1", "oracle"))
        lines.append(f"average precision  exact match {exact:.2f}, F1 {overlap:.2f}, oracle {oracle:.2f}")
    return "\n".join(lines)


def _describe_counts(found: Mapping[str, Any]) -> list[str]:
    skipped = found.get("skipped")
    left_out = f"   ({skipped} {'entry' if skipped == 1 else 'entries'} left out)" if skipped else ""
    return [f"{'questions':<11}  {found['total']}{left_out}"]
