"""What SQuAD v2.0's official script says of answers and of what speaks for no answer, number for number.

``value`` below is, by question, what speaks for no answer: a probability, or a score such as ``predict --null-scores``
writes. A question counts as answered by "" where it is above a threshold. Source: the definitions of the script
``evaluate-v2.0.py`` that SQuAD's authors published with Rajpurkar et al. 2018, arXiv 1806.03822.

The script takes all questions into account that have a prediction. It does not say what the others mean for its parts
beyond the means; here they score 0 wherever they take part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from longformer.answering.scores import Scores
from longformer.errors import DataError


class Curve(NamedTuple):
    """Precision against recall where the threshold for no answer is raised from value to value, and the area under it.

    precision, recall: as many numbers each, in [0, 1], from recall 0 on.
    average: the average precision, in percent.
    """

    precision: list[float]
    recall: list[float]
    average: float


def predicted(scores: Scores) -> Scores:
    """The scores of the questions that have a prediction, which are those that the script counts."""
    missing = set(scores.missing)
    return scores.only(np.array([key not in missing for key in scores.ids], dtype=bool))


def with_threshold(scores: Scores, values: Mapping[str, float], threshold: float) -> Scores:
    """The scores where the answer is "" to each question, of those with a prediction, of value above ``threshold``.

    Args:
        scores: of :func:`longformer.answering.scores.score` with the rules of v2.0.
        values: by id; those of questions without a prediction are not needed.
        threshold: the largest value with which a question keeps its answer.
    """
    missing = set(scores.missing)
    none = np.array([key not in missing and values[key] > threshold for key in scores.ids], dtype=bool)
    right = (~scores.has_answer).astype(np.float64)
    return replace(
        scores,
        exact_match=np.where(none, 100.0 * right, scores.exact_match),
        f1_share=np.where(none, right, scores.f1_share),
        empty=scores.empty | none,
    )


def by_kind(scores: Scores) -> dict[str, float | int]:
    """``exact``, ``f1`` and ``total``; also of the questions with an answer and of those without, where there are any.

    The names are the script's: ``HasAns_exact``, ``NoAns_f1``, and so on; percent, and numbers of questions.
    """
    kinds = (("", np.ones(len(scores.ids), dtype=bool)), ("HasAns_", scores.has_answer), ("NoAns_", ~scores.has_answer))
    found: dict[str, float | int] = {}
    for prefix, which in kinds:
        if which.any():
            found[f"{prefix}exact"] = float(scores.exact_match[which].mean())
            found[f"{prefix}f1"] = float(scores.f1[which].mean())
            found[f"{prefix}total"] = int(which.sum())
    return found


def best_thresholds(scores: Scores, values: Mapping[str, float]) -> dict[str, float]:
    """``best_exact`` and ``best_f1``, in percent, and the thresholds that give them, by the script's own scan.

    The scan goes through the questions from the lowest value to the highest, and takes the best mean on the way. Three
    things about it are odd. Among questions of one value it may stop between two, where no threshold can be. Where no
    answer to all is best it says 0.0, which is right of probabilities but not of scores. And an answer such as "the"
    counts as wrong, where none would be right and the means take it for none. :func:`tune` is otherwise.

    Args:
        scores: all questions, those without a prediction too.
        values: by id. Among equals their order decides, as it does in the script.
    """
    if len(scores.ids) == len(scores.missing):
        raise DataError("none of the questions has a prediction, so that there is no threshold to find")
    found = {}
    for name, shares in _shares(scores):
        gains = np.where(scores.has_answer, shares, np.where(scores.empty, 0.0, -1.0))
        best, threshold = _without_answers(scores), 0.0
        for value, total, _ in _scan(scores, gains, values):
            if total > best:
                best, threshold = total, value
        found[f"best_{name}"] = 100.0 * best / (len(scores.ids) - len(scores.missing))
        found[f"best_{name}_thresh"] = float(threshold)
    return found


def tune(scores: Scores, values: Mapping[str, float]) -> dict[str, float]:
    """As :func:`best_thresholds`, but each threshold gives the mean that is said of it, and none gives a better one.

    Of equals it is the lowest; where no answer to all is best, it is just below the lowest value.

    Args:
        scores: questions with a prediction.
        values: by id.
    """
    found = {}
    for name, shares in _shares(scores):
        gains = shares - ~scores.has_answer
        best, threshold = _without_answers(scores), np.nextafter(min(values[key] for key in scores.ids), -np.inf)
        for value, total, is_last in _scan(scores, gains, values):
            if is_last and total > best:
                best, threshold = total, value
        found[f"best_{name}"] = 100.0 * best / len(scores.ids)
        found[f"best_{name}_thresh"] = float(threshold)
    return found


def _shares(scores: Scores) -> tuple[tuple[str, np.ndarray], ...]:
    """Exact match and F1 in [0, 1]: sums over these round as the script's do, which decides between near equals."""
    return ("exact", scores.exact_match / 100.0), ("f1", scores.f1_share)


def _without_answers(scores: Scores) -> float:
    """The sum of the scores where no question is answered."""
    return float((~scores.has_answer).sum())


def _scan(scores: Scores, gains: np.ndarray, values: Mapping[str, float]) -> Iterator[tuple[float, float, bool]]:
    """Each question's value, from the lowest on, with the sum of scores where it and those before it are answered.

    The third is whether it is the last of its value, so that a threshold of that value gives this sum.

    Args:
        scores: questions; those without a prediction are left out.
        gains: (N,), by how much the sum grows with each question that is answered.
        values: by id.
    """
    places = {key: i for i, key in enumerate(scores.ids)}
    missing = set(scores.missing)
    order = sorted((key for key in values if key in places and key not in missing), key=values.__getitem__)
    total = _without_answers(scores)
    for n, key in enumerate(order):
        total += float(gains[places[key]])
        yield values[key], total, n + 1 == len(order) or values[order[n + 1]] != values[key]


def precision_recall(scores: Scores, values: Mapping[str, float]) -> dict[str, Curve]:
    """The curves ``exact``, ``f1`` and ``oracle``; none where no question has an answer.

    Recall is over the questions with an answer. The oracle gives a right answer to each of these, so that its curve
    says how well ``values`` tell the two kinds apart.
    """
    if not scores.has_answer.any():
        return {}
    of = {key: i for i, key in enumerate(scores.ids)}
    order = sorted((key for key in values if key in of), key=values.__getitem__)
    kinds = {**dict(_shares(scores)), "oracle": np.ones(len(scores.ids))}
    return {
        name: _curve(
            [points[of[key]] * scores.has_answer[of[key]] for key in order],
            [values[key] for key in order],
            int(scores.has_answer.sum()),
        )
        for name, points in kinds.items()
    }


def _curve(points: list[float], values: list[float], relevant: int) -> Curve:
    """The curve of ``points``, in [0, 1], of the questions in the order of their ``values``."""
    precision, recall, average, total = [1.0], [0.0], 0.0, 0.0
    for n, point in enumerate(points):
        total += float(point)
        if n + 1 == len(points) or values[n + 1] != values[n]:  # a threshold can be here
            average += total / (n + 1) * (total / relevant - recall[-1])
            precision.append(total / (n + 1))
            recall.append(total / relevant)
    return Curve(precision, recall, 100.0 * average)
