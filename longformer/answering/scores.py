"""How good answers are: the official SQuAD scripts' exact match and F1, and bootstrap intervals."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longformer.answering.squad import Example
from longformer.errors import DataError, LongformerError


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and the words a, an, the; runs of whitespace become one space."""
    text = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, answers: Sequence[str], *, v2: bool = False) -> float:
    """1.0 where the normalised prediction equals one of the normalised answers, else 0.0.

    Args:
        prediction: the answer to judge.
        answers: the annotators' answers; none is allowed with ``v2`` only, and means that "" is right.
        v2: the rules of the v2.0 script, which leaves out answers of which normalisation leaves nothing.
    """
    return max(float(normalize_answer(prediction) == normalize_answer(gold)) for gold in _golds(answers, v2))


def f1(prediction: str, answers: Sequence[str], *, v2: bool = False) -> float:
    """Harmonic mean of precision and recall over the multiset of normalised words; the best over ``answers``.

    Where either side has no words the v2.0 script gives 1 if both have none, and the v1.1 script 0.

    Args:
        prediction, answers, v2: as for ``exact_match``.
    """
    return max(_f1(prediction, gold, v2) for gold in _golds(answers, v2))


@dataclass(frozen=True)
class Scores:
    """Scores by question, in the order of the examples.

    Args:
        exact_match: (N,) float64, each 0 or 100.
        f1_share: (N,) float64, F1, each in [0, 1].
        ids: of the N questions.
        articles: N names, the clusters for ``bootstrap_interval``.
        has_answer: (N,) bool, whether the context answers the question.
        empty: (N,) bool, whether the prediction is "", which says that it does not.
        missing: ids of the questions that have no prediction; they scored 0.
        v2: whether the rules were those of the v2.0 script.
    """

    exact_match: np.ndarray
    f1_share: np.ndarray
    ids: list[str]
    articles: list[str]
    has_answer: np.ndarray
    empty: np.ndarray
    missing: list[str]
    v2: bool

    @property
    def f1(self) -> np.ndarray:
        """(N,) float64, F1 in percent."""
        return 100.0 * self.f1_share

    def only(self, which: np.ndarray) -> Scores:
        """The scores of some questions. ``which``: (N,) bool."""
        ids = [key for key, kept in zip(self.ids, which, strict=True) if kept]
        return Scores(
            exact_match=self.exact_match[which],
            f1_share=self.f1_share[which],
            ids=ids,
            articles=[name for name, kept in zip(self.articles, which, strict=True) if kept],
            has_answer=self.has_answer[which],
            empty=self.empty[which],
            missing=sorted(set(self.missing) & set(ids), key=ids.index),
            v2=self.v2,
        )


def score(examples: Sequence[Example], predictions: Mapping[str, str], *, v2: bool | None = None) -> Scores:
    """Exact match and F1 of every question. A question without a prediction scores 0 and is listed.

    Where an id occurs more than once, the v1.1 script counts each, and the v2.0 script the last.

    Args:
        examples: questions with their answers.
        predictions: id to answer text, "" for no answer.
        v2: which official script's rules; None takes v2.0's if any question is unanswerable, else v1.1's.

    Raises:
        DataError: no examples, predictions for none of them, or an answerable question without answers.
    """
    if not examples:
        raise DataError("there are no questions to score")
    missing = [example.id for example in examples if example.id not in predictions]
    if predictions and len(missing) == len(examples):
        raise DataError(
            f"none of the {len(predictions)} predictions is for one of the {len(examples)} questions; "
            f"ids look like {next(iter(predictions))!r} there and {examples[0].id!r} here. Are they of the same file?"
        )
    if v2 is None:
        v2 = any(example.is_impossible for example in examples)
    if v2:
        examples = list({example.id: example for example in examples}.values())
        missing = list(dict.fromkeys(missing))
    exact, overlap = [], []
    for example in examples:
        if not example.answers and not (v2 and example.is_impossible):
            raise DataError(f"question {example.id!r} has no answers to score against")
        golds = [answer.text for answer in example.answers]
        prediction = predictions.get(example.id)
        exact.append(0.0 if prediction is None else exact_match(prediction, golds, v2=v2))
        overlap.append(0.0 if prediction is None else f1(prediction, golds, v2=v2))
    return Scores(
        exact_match=100.0 * np.array(exact),
        f1_share=np.array(overlap),
        ids=[example.id for example in examples],
        articles=[example.article for example in examples],
        has_answer=np.array([not example.is_impossible for example in examples]),
        empty=np.array([predictions.get(example.id) == "" for example in examples]),
        missing=missing,
        v2=v2,
    )


def evaluate(
    examples: Sequence[Example], predictions: Mapping[str, str], *, v2: bool | None = None
) -> dict[str, float | int]:
    """``{"exact_match": percent, "f1": percent, "total": questions}``, as the official SQuAD script computes them.

    A question without a prediction counts as 0, as in the v1.1 script; ``score`` lists those questions.

    Args, raises: as ``score``.
    """
    scores = score(examples, predictions, v2=v2)
    total = len(scores.ids)
    return {
        "exact_match": float(scores.exact_match.sum() / total),
        "f1": float(scores.f1.sum() / total),
        "total": total,
    }


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval for the mean of ``values``.

    Questions of one article share their difficulty, so the honest unit to resample is often the article: with
    ``clusters`` whole clusters are drawn with replacement, and the mean is taken over all values drawn.

    Args:
        values: (N,), one score a question.
        clusters: N names; values with the same name are drawn together. None draws values one by one.
        confidence: probability that the interval covers, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of NumPy's generator; the same seed gives the same interval.

    Returns:
        (low, high)

    Raises:
        LongformerError: no values, values that are not finite, another number of names than of values, or
            ``confidence`` or ``resamples`` out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise LongformerError(f"values has shape {values.shape}; it must be one row of at least one finite number")
    if not 0 < confidence < 1:
        raise LongformerError(f"confidence is {confidence!r}; it must lie between 0 and 1, as 0.95 does")
    if resamples < 1:
        raise LongformerError(f"resamples is {resamples!r}; it must be at least 1")
    if clusters is None:
        sums, counts = values, np.ones_like(values)
    else:
        if len(clusters) != len(values):
            raise LongformerError(f"clusters names {len(clusters)} values, but there are {len(values)}; give one each")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        member_of = np.array([numbers[name] for name in clusters])
        sums = np.bincount(member_of, weights=values)
        counts = np.bincount(member_of).astype(np.float64)

    return _interval_of_ratio(sums, counts, confidence, resamples, seed)


def bootstrap_ratio_interval(
    totals: Sequence[float], counts: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval, of 95 %, for the sum of ``totals`` over the sum of ``counts``, drawn in pairs.

    Args:
        totals: (N,), such as the bits of each row of text.
        counts: (N,), above 0, such as the tokens that take them.
        resamples, seed: as of :func:`bootstrap_interval`.

    Returns:
        (low, high)

    Raises:
        LongformerError: no values, values that are not finite, another number of counts, or one that is not above 0.
    """
    above, below = np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if above.ndim != 1 or not above.size or above.shape != below.shape:
        raise LongformerError(
            f"totals has shape {above.shape} and counts {below.shape}; they must be rows of the same length"
        )
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below > 0).all()):
        raise LongformerError("totals must hold finite numbers, and counts finite ones above 0")
    return _interval_of_ratio(above, below, 0.95, resamples, seed)


def _interval_of_ratio(
    sums: np.ndarray, counts: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = []
    rows_at_once = max(1, 1_000_000 // len(sums))  # bounds memory: about 24 MB whatever the number of questions
    for done in range(0, resamples, rows_at_once):
        drawn = generator.integers(len(sums), size=(min(rows_at_once, resamples - done), len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def _golds(answers: Sequence[str], v2: bool) -> Sequence[str]:
    if v2:
        return [gold for gold in answers if normalize_answer(gold)] or [""]
    if not answers:
        raise DataError("there are no answers to score against; only v2 scores questions without one")
    return answers


def _f1(prediction: str, gold: str, v2: bool) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if v2 and not (predicted and wanted):
        return float(predicted == wanted)
    shared = (Counter(predicted) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
