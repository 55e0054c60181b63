"""Files of questions and files of predictions, read with every claim in them checked that anyone relies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longformer.answering.forms import RawQuestion, find_questions
from longformer.answering.texts import check_text
from longformer.errors import DataError
from longformer.files import describe_json, read_json, read_text


@dataclass(frozen=True)
class Answer:
    """One annotator's answer.

    Args:
        text: the answer as the file has it, without space around it.
        start: character at which ``text`` starts in the context, so that ``context[start : start + len(text)] ==
            text``; None where the file's offset is wrong or missing and the right one is not certain (``text`` is
            absent from the context, or occurs there more than once). Training must leave such an answer out.
        stated: the offset that the file gives for ``text``, right or wrong; None where it gives none.
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
            ``questions_only=True``.
        is_impossible: the context does not answer the question (SQuAD v2.0).
        place: where the question stands in its file, as in ``data[3].paragraphs[1].qas[0]`` or ``line 7``.
        file: the file's path.
    """

    id: str
    title: str
    question: str
    context: str
    answers: list[Answer] = field(default_factory=list)
    is_impossible: bool = False
    place: str = ""
    file: str = ""

    @property
    def article(self) -> str:
        """Name of the article, the cluster of a bootstrap: its title, else its place in the file (``data[3]``)."""
        return self.title or self.place.partition(".")[0]

    @property
    def where(self) -> str:
        """File, place and id, for a message."""
        return f"{', '.join(filter(None, (self.file, self.place)))}: id {self.id!r}".removeprefix(": ")


def read_squad(
    path: str | Path, *, questions_only: bool = False, form: str | None = None, skipped: list[str] | None = None
) -> list[Example]:
    """Read a file of questions, in its order: SQuAD v1.1 or v2.0, or any other of ``forms.FORMS``.

    A question has no answer (v2.0) where the file has none for it, whatever ``is_impossible`` says; an answer of which
    the text is empty is none. An answer whose ``answer_start`` does not point at its text, or is not there, is
    realigned where the text occurs exactly once in the context, otherwise its ``start`` is None; ``offset_report``
    counts both. An entry that repeats an earlier one's id, question and context is kept.

    Args:
        path: the file: JSON or JSON lines, also in gzip; UTF-8, or UTF-16 with its mark.
        questions_only: for prediction: look at ids, questions, contexts and titles, and at nothing else.
        form: a key of ``forms.FORMS``; None tells it by what is in the file.
        skipped: is given a line for every question that cannot be used, which is then left out; None raises the first.

    Raises:
        DataError: no such file, not UTF-8, not JSON, or without a question that can be used. Where ``skipped`` is None,
            a question that cannot be used: it lacks id, question or context, one of them is no text, its id is that
            of another question, or its answers are none or contradict ``is_impossible``; names file, place and id.
    """
    found: list[Example] = []
    seen: dict[str, Example] = {}
    refused = 0

    def refuse(problem: str) -> None:
        nonlocal refused
        refused += 1
        if skipped is None:
            raise DataError(f"{path}, {problem}")
        skipped.append(f"{path}, {problem}")

    for raw in find_questions(read_text(path, unzip=True), str(path), form, refuse):
        try:
            example = _example(raw, str(path), questions_only)
            check_id(example, seen)
            found.append(example)
        except DataError as error:
            refuse(f"{raw.place}{_named(raw.entry)}: {error}")
    if not found:
        raise DataError(
            f"{path}: holds no questions"
            + (f", only {refused} {'entry' if refused == 1 else 'entries'} that cannot be used" if refused else "")
        )
    return found


def check_id(example: Example, seen: dict[str, Example]) -> None:
    """Put ``example`` under its id into ``seen``. Raises DataError where that holds another question of that id.

    Predictions are looked up by id, so that one id must not stand for two questions.
    """
    first = seen.setdefault(example.id, example)
    if (first.question, first.context) != (example.question, example.context):
        where = first.place if first.file == example.file else f"{first.file}, {first.place}"
        raise DataError(f"this is also the id of another question, at {where}; ids must be unique")


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


def read_null_scores(path: str | Path, needed: Iterable[str]) -> dict[str, float]:
    """Read what speaks for no answer: one JSON object, id to a probability or to a score, in the file's order.

    Args:
        path: the file.
        needed: ids that it must have.

    Raises:
        DataError: no such file, not UTF-8, not JSON, malformed, or without one of the ids; names the file and the id.
    """
    values: dict[str, float] = read_json(path)
    for key, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not -LARGEST_VALUE <= value <= LARGEST_VALUE:
            raise DataError(
                f"{path}: the value for id {key!r} is {describe_json(value)}; it must be a finite number from "
                f"{-LARGEST_VALUE:g} to {LARGEST_VALUE:g}"
            )
    check_values(path, values, needed)
    return values


def check_values(path: str | Path, values: Mapping[str, float], needed: Iterable[str]) -> None:
    """Raise DataError, which names ``path`` and the id, where ``values`` by ids lack one of the ids ``needed``."""
    missing = [key for key in needed if key not in values]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{path}: holds no value for id {missing[0]!r}{others}, of which there is a prediction")


@dataclass(frozen=True)
class OffsetReport:
    """What became of the answers' stated offsets; ``str()`` says it in a line.

    Args:
        total: answers in all.
        realigned: answers whose offset was wrong, and put right because their text occurs once in the context.
        unusable: places of the answers whose offset is wrong or missing and stays unknown, by question.
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


LARGEST_VALUE = 1e100  # of a null score or a probability: sums and pictures of larger ones overflow
ID_KEYS = ("id", "qid", "question_id")


def _named(entry: Mapping[str, Any]) -> str:
    """A question's id in a message; "" where it has none."""
    found = [str(entry[key]) for key in ID_KEYS if isinstance(entry.get(key), (str, int))]
    return f": id {found[0][:100]!r}" if found else ""


def _example(raw: RawQuestion, file: str, questions_only: bool) -> Example:
    key = next((key for key in ID_KEYS if key in raw.entry), None)
    if key is None:
        raise DataError("id is missing")
    value = raw.entry[key]
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise DataError(f"{key} is {describe_json(value)}; it must be a string or an integer")
    for name, text in (("question", raw.entry.get("question")), ("context", raw.context)):
        if text is None:
            raise DataError(f"{name} is missing")
        if not isinstance(text, str):
            raise DataError(f"{name} is {describe_json(text)}; it must be a string")
        check_text(name, text)
    numbered = isinstance(raw.title, (int, float)) and not isinstance(raw.title, bool)
    answers = [] if questions_only else list(_answers(raw.entry, raw.context))
    return Example(
        id=str(value),  # some published files number their questions
        title=str(raw.title) if numbered or isinstance(raw.title, str) else "",
        question=raw.entry["question"],
        context=raw.context,
        answers=answers,
        is_impossible=not questions_only and not answers,
        place=raw.place,
        file=file,
    )


def _answers(entry: Mapping[str, Any], context: str) -> Iterator[Answer]:
    """A question's answers, those without text left out. Raises DataError where they cannot be told."""
    impossible = str(entry.get("is_impossible")).lower() in ("true", "1", "1.0")
    if "answers" not in entry and not impossible:
        raise DataError("answers is missing; a question that has no answer says is_impossible: true, or answers: []")
    detected = {text.casefold(): (text, start) for text, start in _texts(entry, "detected_answers")}
    for text, start in _texts(entry, "answers"):
        if start is None:  # MRQA says in another place, and as the context spells it, where its answers stand
            text, start = detected.get(text.casefold(), (text, start))
        if not text.strip():
            continue
        if impossible:
            raise DataError("is_impossible is true, yet there are answers; correct one or the other")
        yield _answer(text, _integer(start), context)


def _answer(text: str, stated: int | None, context: str) -> Answer:
    """An answer without the space around its text, which the file's offset may count or not."""
    kept = text.strip()
    before = text.index(kept)
    stated_of_kept = None if stated is None else stated + before
    forms = ((text, stated, before), (kept, stated_of_kept, 0))
    for form, offset, shift in forms:
        if offset is not None and offset >= 0 and context.startswith(form, offset):
            return Answer(kept, offset + shift, stated_of_kept)
    for form, _, shift in forms:
        found = context.find(form)
        if found >= 0 and context.find(form, found + 1) < 0:
            return Answer(kept, found + shift, stated_of_kept)
    return Answer(kept, None, stated_of_kept)


def _texts(entry: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Texts with their stated offsets: of a list of objects or of strings, of one object, or of an object of lists."""
    value = entry.get(key)
    if value is None:
        return
    items: Any
    columns = isinstance(value, dict) and isinstance(value.get("text"), list)
    if columns:
        places = value.get("answer_start", value.get("char_spans"))
        texts = value["text"]
        starts = places if isinstance(places, list) and len(places) == len(texts) else [None] * len(texts)
        items = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    else:
        items = [value] if isinstance(value, (dict, str)) else value
    if not isinstance(items, list):
        raise DataError(f"{key} is {describe_json(value)}; it must be a list")
    for i, item in enumerate(items):
        at = f"{key}.text[{i}]" if columns else f"{key}[{i}].text"
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise DataError(f"{key}[{i}] is {describe_json(item)}; it must be an object")
        if "text" not in item:
            raise DataError(f"{at} is missing")
        text = "" if item["text"] is None else item["text"]
        if not isinstance(text, str):
            raise DataError(f"{at} is {describe_json(text)}; it must be a string")
        yield text, item.get("answer_start", item.get("char_spans"))


def _integer(value: Any) -> int | None:
    """An offset as files have it: a whole number, also written as 4.0 or "4"; of spans the first one's start."""
    while isinstance(value, (list, dict)) and value:
        value = value[0] if isinstance(value, list) else value.get("start")
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        return None
