"""Files of texts, with labels or without: CSV, and JSON lines. Imports nothing slow."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from longformer.errors import DataError
from longformer.files import describe_json, parse_json, read_text

SUFFIXES = (".csv", ".jsonl")
SEPARATOR = "|"  # between the labels in one cell of a CSV file
LONGEST_CELL = 2**31 - 1  # characters; Python's own limit, 131,072, is less than a long document has
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WHOLE_NUMBER = re.compile(r"[+-]?\d+")


class Text(NamedTuple):
    """A text of a file.

    line: number of the line on which its record begins, from 1.
    """

    text: str
    file: str
    line: int

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.file}, line {self.line}"


class LabelledText(NamedTuple):
    """A text with its label or labels.

    label: one label, as a name or a number; a tuple of names if the file gives a list of labels.
    name: one label as it is written in the file. "1.10" is another name than "1.1".
    """

    text: Text
    label: str | float | tuple[str, ...]
    name: str


def is_table(path: str) -> bool:
    """Whether a file holds many texts: CSV or JSON lines, by its name."""
    return path.lower().endswith(SUFFIXES)


def read_texts(path: str | Path) -> list[Text]:
    """The texts of a ``.csv`` or ``.jsonl`` file. Labels and everything else are ignored.

    Raises:
        DataError: the file cannot be read, or a record has no text; names the file and the line.
    """
    return [_text(path, line, record) for line, record in _records(path)]


def read_labelled_texts(path: str | Path) -> list[LabelledText]:
    """The texts of a ``.csv`` or ``.jsonl`` file with their labels.

    A CSV file begins with the names of its columns: ``text``, and ``label`` or ``labels``. In JSON lines every line is
    an object with the same names. ``label`` is one label: a name, or a number. ``labels`` are several, or none: a list
    of names, which a CSV file writes in one cell with ``|`` between them. Other columns are ignored.

    Raises:
        DataError: the file cannot be read, or a record lacks its text or label, or has an empty or a malformed one;
            names the file and the line.
    """
    found = [(_text(path, line, record), record) for line, record in _records(path)]
    read = [_labelled(text, record) for text, record in found]
    return _with_numbers(read) if _is_csv(path) else read


def _is_csv(path: str | Path) -> bool:
    return str(path).lower().endswith(".csv")


def _records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the first line and values by name, of each record."""
    if not is_table(str(path)):
        raise DataError(f"{path} is neither a {' nor a '.join(SUFFIXES)} file, by its name; give one of them")
    text = read_text(path)
    count = 0
    for record in _csv_records(path, text) if _is_csv(path) else _json_records(path, text):
        count += 1
        yield record
    if not count:
        raise DataError(f"{path} holds no texts")


def _json_records(path: str | Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number},")


def _csv_records(path: str | Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        names: list[str] | None = None
        line = 1
        for cells in reader:
            if cells and names is None:
                names = [name.strip() for name in cells]
                _check_columns(path, names)
            elif cells and names is not None:
                if len(cells) != len(names):
                    raise DataError(f"{path}, line {line}: has {len(cells)} cells; there are {len(names)} columns")
                yield line, dict(zip(names, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: is not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _check_columns(path: str | Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}, line 1: has the column {twice!r} twice; name each column once")
    if "text" not in names:
        shown = ", ".join(map(repr, names))
        remedy = "the first line must name the columns"
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):  # as Excel writes in many countries
            remedy += ", with commas between them and between the cells"
        raise DataError(f"{path}, line 1: has no column 'text', but {shown}; {remedy}")


def _text(path: str | Path, line: int, record: dict[str, Any]) -> Text:
    text = Text(record.get("text", ""), str(path), line)
    if "text" not in record:
        raise DataError(f"{text.place}: 'text' is missing")
    if not isinstance(text.text, str):
        raise DataError(f"{text.place}: 'text' is {describe_json(text.text)}; it must be a string")
    if not text.text.strip():
        raise DataError(f"{text.place}: 'text' is empty")
    return text


def _labelled(text: Text, record: dict[str, Any]) -> LabelledText:
    given = [name for name in ("label", "labels") if name in record]
    if len(given) != 1:
        what = "both 'label' and 'labels'" if given else "neither 'label' nor 'labels'"
        raise DataError(f"{text.place}: there is {what}; give one of them")
    value = record[given[0]]
    if given == ["labels"]:
        return LabelledText(text, _several(text, value), "")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        several = "; a list of labels is called 'labels'" if isinstance(value, list) else ""
        raise DataError(f"{text.place}: 'label' is {describe_json(value)}; it must be a string or a number{several}")
    name = str(value).strip()
    if not name:
        raise DataError(f"{text.place}: 'label' is empty")
    return LabelledText(text, name if isinstance(value, str) else value, name)


def _several(text: Text, value: Any) -> tuple[str, ...]:
    if _is_csv(text.file):
        value = value.split(SEPARATOR) if value.strip() else []
    if not isinstance(value, list):
        raise DataError(f"{text.place}: 'labels' is {describe_json(value)}; it must be a list")
    for label in value:
        if isinstance(label, bool) or not isinstance(label, (str, int)) or not str(label).strip():
            what = "an empty string" if isinstance(label, str) else describe_json(label)
            raise DataError(f"{text.place}: 'labels' holds {what}; it may hold names and whole numbers")
    names = tuple(str(label).strip() for label in value)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{text.place}: 'labels' holds {twice!r} twice; give each label once")
    return names


def _with_numbers(read: list[LabelledText]) -> list[LabelledText]:
    """The texts of a CSV file, where a cell cannot say whether "3" is a number: it is one if all or fractions are."""
    numbers = [NUMBER.fullmatch(row.name) is not None for row in read]
    fractions = any(number and not WHOLE_NUMBER.fullmatch(row.name) for number, row in zip(numbers, read, strict=True))
    if not all(numbers) and not fractions:
        return read
    return [row._replace(label=_number(row)) if number else row for number, row in zip(numbers, read, strict=True)]


def _number(row: LabelledText) -> float:
    try:
        return int(row.name) if WHOLE_NUMBER.fullmatch(row.name) else float(row.name)
    except ValueError:  # Python converts no integer of thousands of digits
        raise DataError(f"{row.text.place}: the label has {len(row.name)} digits; no number needs so many") from None
