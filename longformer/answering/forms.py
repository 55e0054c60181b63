"""The forms in which files hold questions, in one table, and how the questions are found in them.

A file is JSON or JSON lines, as it is or in gzip. Its entries are the items of a list called ``data``, of a list, its
lines, or the rows of a table that is kept by its columns. The keys of an entry tell its form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from longformer.errors import DataError
from longformer.files import JSON_TYPES, describe_json, parse_json


class RawQuestion(NamedTuple):
    """A question as the file has it, with nothing checked.

    place: as in ``data[3].paragraphs[1].qas[0]`` or ``line 7``.
    entry: the object with its id, question and answers.
    context, title: None where the file has none.
    """

    place: str
    entry: dict[str, Any]
    context: Any
    title: Any


Refuse = Callable[[str], object]  # is told what cannot be read, with its place; raises, or takes a note of it


def find_questions(text: str, name: str, form: str | None, refuse: Refuse) -> Iterator[RawQuestion]:
    """The questions of a file, in its order.

    Args:
        text: the file.
        name: what a message calls it.
        form: one of ``FORMS``; None tells each entry's form by its keys.
        refuse: called for a part that holds no questions where some should be.

    Raises:
        DataError: no JSON, or not a list of entries; and what ``refuse`` raises.
    """
    for place, entry in _entries(text, name, refuse):
        if not isinstance(entry, dict):
            refuse(f"{place} is {describe_json(entry)}; it must be an object")
        elif list(entry) != ["header"]:  # with which a file of MRQA begins
            chosen = form or _tell_form(place, entry, refuse)
            if chosen is not None:
                yield from FORMS[chosen](entry, place, refuse)


def _entries(text: str, name: str, refuse: Refuse) -> Iterator[tuple[str, Any]]:
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    # No JSON of several lines is like that: an object in the first line, and in the next one another.
    by_lines = len(lines) > 1 and _is_object(lines[0][1]) and lines[1][1].lstrip().startswith("{")
    if not by_lines:
        try:
            value = parse_json(text, name, object)
        except DataError:
            by_lines = len(lines) > 1 and sum(_is_object(line) for _, line in lines) * 2 >= len(lines)
            if not by_lines:
                raise
    if by_lines:
        for n, line in lines:
            try:
                yield f"line {n}", parse_json(line, f"line {n}")
            except DataError as error:
                refuse(str(error))
        return
    if isinstance(value, list):
        yield from ((f"[{i}]", entry) for i, entry in enumerate(value))
    elif isinstance(value, dict) and "data" not in value and isinstance(value.get("question"), (list, dict)):
        yield from _rows(value, name)
    elif isinstance(value, dict) and "data" not in value and any(map(value.__contains__, KEYS)):
        yield "line 1", value  # JSON lines, of which there is one
    elif isinstance(value, dict):
        yield from _list(value, "data", "", _raise_for(name))
    else:
        raise DataError(f"{name} holds {describe_json(value)}; it must be an object or a list of questions")


def _rows(table: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table that is kept by its columns: each a list, or an object whose values are the column."""
    columns = {
        key: list(column.values()) if isinstance(column, dict) else column
        for key, column in table.items()
        if isinstance(column, (list, dict))
    }
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{describe_json(key)} has {length}" for key, length in lengths.items())
        raise DataError(f"{name}: the columns of a table must be of one length, but {said}")
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        yield f"[{i}]", dict(zip(columns, row, strict=True))


def _is_object(line: str) -> bool:
    return re.match(r"\s*\{.*\}\s*$", line) is not None


def _raise_for(name: str) -> Refuse:
    def refuse(problem: str) -> None:
        raise DataError(f"{name}: {problem}")

    return refuse


def _list(entry: dict[str, Any], key: str, at: str, refuse: Refuse) -> list[tuple[str, Any]]:
    """The items of the list ``entry[key]`` with their places; none where there is no list, which is refused."""
    place = f"{at}.{key}" if at else key
    value = entry.get(key)
    if not isinstance(value, list):
        is_what = f"is {describe_json(value)}; it must be {JSON_TYPES[list]}" if key in entry else "is missing"
        refuse(f"{place} {is_what}")
        return []
    return [(f"{place}[{i}]", item) for i, item in enumerate(value)]


def _objects(items: list[tuple[str, Any]], refuse: Refuse) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, item in items:
        if isinstance(item, dict):
            yield place, item
        else:
            refuse(f"{place} is {describe_json(item)}; it must be an object")


def _of_article(entry: dict[str, Any], at: str, refuse: Refuse) -> Iterator[RawQuestion]:
    for place, paragraph in _objects(_list(entry, "paragraphs", at, refuse), refuse):
        for question in _of_paragraph(paragraph, place, refuse):
            yield question._replace(title=entry.get("title"))


def _of_paragraph(entry: dict[str, Any], at: str, refuse: Refuse) -> Iterator[RawQuestion]:
    for place, question in _objects(_list(entry, "qas", at, refuse), refuse):
        yield RawQuestion(place, question, entry.get("context"), entry.get("title"))


def _of_row(entry: dict[str, Any], at: str, refuse: Refuse) -> Iterator[RawQuestion]:
    yield RawQuestion(at, entry, entry.get("context"), entry.get("title"))


FORMS: dict[str, Callable[[dict[str, Any], str, Refuse], Iterator[RawQuestion]]] = {
    "squad": _of_article,  # articles with paragraphs, and these with questions: SQuAD's own, v1.1 and v2.0
    "mrqa": _of_paragraph,  # contexts with their questions: MRQA's, one a line behind a header
    "rows": _of_row,  # questions with their contexts: the rows of Hugging Face's datasets
}
KEYS = {"paragraphs": "squad", "qas": "mrqa", "question": "rows"}  # what is in an entry of each form


def _tell_form(place: str, entry: dict[str, Any], refuse: Refuse) -> str | None:
    found = [key for key in KEYS if key in entry]
    if len(found) == 1:
        return KEYS[found[0]]
    if found:
        refuse(f"{place} has {' and '.join(found)}, so that its form is not certain; say it with --format")
    else:
        known = entry.get("id", entry.get("qid"))
        named = "" if known is None else f": id {describe_json(known)}"
        refuse(f"{place}{named}: question is missing, and there are neither paragraphs nor qas with questions")
    return None
