"""Answers to the questions of a SQuAD-format file, and how good they are; over several processes where there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from longformer.distributed import Processes, together
from longformer.question_answering import QuestionAnswerer
from longformer.squad import Example, bootstrap_interval, score
from longformer.squad import evaluate as official_scores


def predict(
    examples: Sequence[Example],
    answerer: QuestionAnswerer,
    group: Processes,
    *,
    progress: bool = False,
    **settings: Any,
) -> dict[str, str]:
    """Question ids to answer texts, the same in all processes, each of which answers its share.

    Args:
        examples: the same in all processes, in one order.
        answerer: over the same weights in all processes.
        group: the processes.
        progress: whether to show a bar on standard error, of the first process, where that is a terminal.
        settings: of :meth:`QuestionAnswerer.answer_batch`.
    """
    mine = _share(examples, group)
    found: list[Any] = []
    with (
        together(group),
        tqdm(total=len(mine), unit=" questions", disable=None if progress and group.is_first else True) as bar,
    ):
        if mine:
            pairs = [(example.question, example.context) for example in mine]
            found = answerer.answer_batch(pairs, progress=bar.update, **settings)
    answers = {example.id: answers[0].text for example, answers in zip(mine, found, strict=True)}
    everyone: dict[str, str] = {}
    for theirs in group.gather(answers):
        everyone |= theirs
    return {example.id: everyone[example.id] for example in examples}


def _share(examples: Sequence[Example], group: Processes) -> list[Example]:
    """This process's part: whole contexts, which are tokenised once, dealt from the longest to the shortest."""
    contexts = sorted({example.context for example in examples}, key=lambda text: (-len(text), text))
    mine = set(group.share(contexts))
    return [example for example in examples if example.context in mine]


def summary(examples: Sequence[Example], predictions: Mapping[str, str]) -> dict[str, Any]:
    """The official scores, and 95 % intervals by bootstrap over articles, or over questions where there is one article.

    Returns:
        ``exact_match``, ``f1``, ``total`` of :func:`longformer.squad.evaluate`, with ``exact_match_interval`` and
        ``f1_interval`` (low, high) and ``interval_over``, "articles" or "questions".
    """
    scores = score(examples, predictions)
    clusters = scores.articles if len(set(scores.articles)) > 1 else None
    return {
        **official_scores(examples, predictions),
        "exact_match_interval": bootstrap_interval(scores.exact_match, clusters=clusters),
        "f1_interval": bootstrap_interval(scores.f1, clusters=clusters),
        "interval_over": "questions" if clusters is None else "articles",
    }


def describe(found: Mapping[str, Any]) -> str:
    """A :func:`summary` for a reader, a line a figure."""
    lines = []
    for name, key in (("exact match", "exact_match"), ("F1", "f1")):
        low, high = found[f"{key}_interval"]
        lines.append(
            f"{name:<11}  {found[key]:6.2f}   95% interval over {found['interval_over']} {low:.2f} to {high:.2f}"
        )
    return "\n".join([*lines, f"{'questions':<11}  {found['total']}"])
