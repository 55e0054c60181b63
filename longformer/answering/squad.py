"""SQuAD-format files: reading them with every claim checked, and the official scripts' exact match and F1."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longformer.errors import DataError, LongformerError


@dataclass(frozen=True)
class Answer:
    """One annotator's answer.

    Args:
        text: the answer as the file has it.
        start: character at which ``text`` starts in the context, so that ``context[start : start + len(text)] ==
            text``; None where the file's offset is wrong and the right one is not certain (``text`` is absent from
            the context, or occurs there more than once). Training must leave such an answer out.
        stated: the offset that the file gives, right or wrong; None for an answer that came from no file.
    """

    text: str
    start: int | None
    stated: int | None = None


@dataclass(frozen=True)
class Example:
    """One question over one context.

    Args:
        id: the question's id, as a string also where the file has a number.
        title: title of the article, "" where the file gives none.
        question, context: neither is blank.
        answers: all annotators' answers; empty where ``is_impossible``, and in files read with
            ``require_answers=False``.
        is_impossible: the context does not answer the question (SQuAD v2.0).
        place: where the question stands in its file, as in ``data[3].paragraphs[1].qas[0]``.
    """

    id: str
    title: str
    question: str
    context: str
    answers: list[Answer] = field(default_factory=list)
    is_impossible: bool = False
    place: str = ""

    @property
    def article(self) -> str:
        """Name of the article, the cluster of a bootstrap: its title, else its place in the file (``data[3]``)."""
        return self.title or self.place.partition(".")[0]


def read_squad(path: str | Path, *, require_answers: bool = True) -> list[Example]:
    """Read a SQuAD v1.1 or v2.0 file, in the file's order.

    An answer whose ``answer_start`` does not point at its text is realigned where the text occurs exactly once in
    the context, otherwise its ``start`` is None; ``offset_report`` counts both. An entry that repeats an earlier one's
    id, question and context is kept, as the official scripts count it twice.

    Args:
        path: the JSON file, UTF-8.
        require_answers: False reads questions without answers too, for prediction.

    Raises:
        DataError: no such file, not UTF-8, not JSON, or malformed; names the file and the place within it.
    """
    try:
        document = _read_object(path)
        examples = list(_examples(document, require_answers))
        if not examples:
            raise DataError("holds no questions")
        _refuse_shared_ids(examples)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return examples


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read a predictions file: one JSON object, id to answer text, "" for no answer.

    Raises:
        DataError: no such file, not UTF-8, not JSON, or malformed; names the file and the id.
    """
    try:
        predictions = _read_object(path)
        for key, text in predictions.items():
            if not isinstance(text, str):
                raise DataError(f"the prediction for id {key!r} is {_brief(text)}; it must be a string")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return predictions


@dataclass(frozen=True)
class OffsetReport:
    """What became of the answers' stated offsets; ``str()`` says it in a line.

    Args:
        total: answers in all.
        realigned: answers whose offset was wrong, and put right because their text occurs once in the context.
        unusable: places of the answers whose offset is wrong and stays unknown, by question.
    """

    total: int
    realigned: int
    unusable: list[str]

    def __str__(self) -> str:
        wrong = self.realigned + len(self.unusable)
        if not wrong:
            return f"{self.total} answers, all at their stated offsets"
        line = f"{self.total} answers, {wrong} with a wrong offset: {self.realigned} realigned"
        if not self.unusable:
            return line
        named = ", ".join(self.unusable[:3]) + (", ..." if len(self.unusable) > 3 else "")
        return f"{line}, {len(self.unusable)} of no use for training ({named})"


def offset_report(examples: Iterable[Example]) -> OffsetReport:
    """Count the answers that were realigned and those that training must leave out."""
    total, realigned, unusable = 0, 0, []
    for example in examples:
        for i, answer in enumerate(example.answers):
            total += 1
            if answer.start is None:
                unusable.append(f"{example.place}.answers[{i}]")
            elif answer.stated not in (None, answer.start):
                realigned += 1
    return OffsetReport(total, realigned, unusable)


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
    """Scores by question, in percent, in the order of the examples.

    Args:
        exact_match: (N,) float64, each 0 or 100.
        f1: (N,) float64, each in [0, 100].
        articles: N names, the clusters for ``bootstrap_interval``.
        missing: ids of the questions that have no prediction; they scored 0.
    """

    exact_match: np.ndarray
    f1: np.ndarray
    articles: list[str]
    missing: list[str]


def score(examples: Sequence[Example], predictions: Mapping[str, str], *, v2: bool | None = None) -> Scores:
    """Exact match and F1 of every question. A question without a prediction scores 0 and is listed.

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
        f1=100.0 * np.array(overlap),
        articles=[example.article for example in examples],
        missing=missing,
    )


def evaluate(
    examples: Sequence[Example], predictions: Mapping[str, str], *, v2: bool | None = None
) -> dict[str, float | int]:
    """``{"exact_match": percent, "f1": percent, "total": questions}``, as the official SQuAD script computes them.

    A question without a prediction counts as 0, as in the v1.1 script; ``score`` lists those questions.

    Args, raises: as ``score``.
    """
    scores = score(examples, predictions, v2=v2)
    total = len(examples)
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
        raise LongformerError(f"totals has shape {above.shape} and counts {below.shape}; they must be as long rows")
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


def _read_object(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError("no such file") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not text.strip():
        raise DataError("is empty")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"holds {_brief(value)}, not a JSON object")
    return value


def _refuse_shared_ids(examples: Iterable[Example]) -> None:
    """Predictions are looked up by id, so one id must not stand for two questions."""
    seen: dict[str, Example] = {}
    for example in examples:
        first = seen.setdefault(example.id, example)
        if (first.question, first.context) != (example.question, example.context):
            raise DataError(
                f"{example.place}: id {example.id!r} is that of another question, at {first.place}; ids must be unique"
            )


def _examples(document: dict[str, Any], require_answers: bool) -> Iterator[Example]:
    for i, article in enumerate(_get(document, "data", list, "")):
        at = f"data[{i}]"
        title = _get(article, "title", str, at, default="")
        for j, paragraph in enumerate(_get(article, "paragraphs", list, at)):
            at = f"data[{i}].paragraphs[{j}]"
            context = _text(paragraph, "context", at)
            for k, question in enumerate(_get(paragraph, "qas", list, at)):
                yield _example(question, title, context, f"{at}.qas[{k}]", require_answers)


def _example(entry: Any, title: str, context: str, at: str, require_answers: bool) -> Example:
    key = _get(entry, "id", (str, int), at)  # some published files number their questions
    question = _text(entry, "question", at)
    impossible = _get(entry, "is_impossible", bool, at, default=False)
    answers = _get(entry, "answers", list, at, **({} if require_answers else {"default": []}))
    if impossible and answers:
        raise DataError(f"{at}: is_impossible is true, yet there are {len(answers)} answers; correct one or the other")
    if require_answers and not impossible and not answers:
        raise DataError(f"{at}.answers is empty; a question that has no answer says is_impossible: true")
    return Example(
        id=str(key),
        title=title,
        question=question,
        context=context,
        answers=[_answer(answer, context, f"{at}.answers[{n}]") for n, answer in enumerate(answers)],
        is_impossible=impossible,
        place=at,
    )


def _answer(entry: Any, context: str, at: str) -> Answer:
    text = _text(entry, "text", at)
    stated = _get(entry, "answer_start", int, at)
    if stated >= 0 and context.startswith(text, stated):
        return Answer(text, stated, stated)
    found = context.find(text)
    certain = found >= 0 and context.find(text, found + 1) < 0
    return Answer(text, found if certain else None, stated)


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def _get(entry: Any, key: str, kind: type | tuple[type, ...], at: str, **default: Any) -> Any:
    """``entry[key]``, checked to be of ``kind``; ``default=`` stands in for a key that is absent."""
    if not isinstance(entry, dict):
        raise DataError(f"{at} is {_brief(entry)}; it must be an object")
    where = f"{at}.{key}" if at else key
    if key not in entry:
        if "default" in default:
            return default["default"]
        raise DataError(f"{where} is missing")
    value = entry[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # In Python true is an integer too; in a data file it never is.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{where} is {_brief(value)}; it must be {' or '.join(_NAMES[k] for k in kinds)}")
    return value


def _text(entry: Any, key: str, at: str) -> str:
    value: str = _get(entry, key, str, at)
    if not value.strip():
        raise DataError(f"{at}.{key} is empty")
    return value


def _brief(value: Any) -> str:
    """What a JSON value is, in a few words, for a message."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float, str)):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "..."
    return _NAMES[type(value)]
