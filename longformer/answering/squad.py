"""SQuAD-format files of questions, and files of predictions, read with every claim in them checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longformer.errors import DataError
from longformer.files import JSON_TYPES, describe_json, read_json


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
    document = read_json(path)
    try:
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
    predictions: dict[str, str] = read_json(path)
    for key, text in predictions.items():
        if not isinstance(text, str):
            raise DataError(f"{path}: the prediction for id {key!r} is {describe_json(text)}; it must be a string")
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


def _get(entry: Any, key: str, kind: type | tuple[type, ...], at: str, **default: Any) -> Any:
    """``entry[key]``, checked to be of ``kind``; ``default=`` stands in for a key that is absent."""
    if not isinstance(entry, dict):
        raise DataError(f"{at} is {describe_json(entry)}; it must be an object")
    where = f"{at}.{key}" if at else key
    if key not in entry:
        if "default" in default:
            return default["default"]
        raise DataError(f"{where} is missing")
    value = entry[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # In Python true is an integer too; in a data file it never is.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{where} is {describe_json(value)}; it must be {' or '.join(JSON_TYPES[k] for k in kinds)}")
    return value


def _text(entry: Any, key: str, at: str) -> str:
    value: str = _get(entry, key, str, at)
    if not value.strip():
        raise DataError(f"{at}.{key} is empty")
    return value
