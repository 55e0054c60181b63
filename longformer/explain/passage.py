"""What the model reads: question and part of a document, as tokens whose text a page can show.

Letters: S sequence, n tokens of the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.settings import AnswerSettings
from longformer.answering.spans import Answer
from longformer.answering.windows import Window

SPECIAL, QUESTION, DOCUMENT = "s", "q", "d"


@dataclass(frozen=True)
class Passage:
    """One row of the model's input, and where it stands in the document.

    Args:
        ids: (S,) int64.
        texts: of each token, as it stands in question or document; "" where tokens share a character, but for the first
            of them. The name of a special token.
        gaps: what stands before each token, after the one before it: mostly white space.
        kinds: "s" special, "q" question, "d" document.
        tail: what stands after the document's last token.
        first, stop, total: tokens of the document: read here ``first <= token < stop``, and all that there are.
        window, windows: which of how many windows this is, from 0.
        spans: of each answer the first and last place in the row; None where it is not in this window.
    """

    ids: np.ndarray
    texts: list[str]
    gaps: list[str]
    kinds: str
    tail: str
    first: int
    stop: int
    total: int
    window: int
    windows: int
    spans: list[tuple[int, int] | None]


def read_passage(
    answerer: QuestionAnswerer, question: str, document: str, answers: Sequence[Answer], settings: AnswerSettings
) -> Passage:
    """The window, of those that ``answerer`` reads the document in, that scores the best of ``answers``.

    An answer "" stands at the first token, where a model points that finds none.

    Raises:
        DataError, LongformerError: as :meth:`QuestionAnswerer.answer`.
    """
    reading = answerer.reader().read(question, document, settings)
    offsets = reading.document.offsets
    places = [reading.document.tokens_of(answer.start, answer.end) if answer.text else None for answer in answers]
    w = reading.window_of(*next(place for place in places if place is not None))
    window, shift = reading.windows[w], reading.shift(w)
    asked = question.strip()
    encoding = answerer.tokenizer(asked, return_offsets_mapping=True, split_special_tokens=True)
    question_offsets = np.array(encoding["offset_mapping"][1:-1]).reshape(-1, 2)
    question_texts, question_gaps, _ = _cut(asked, question_offsets, 0)
    start = int(offsets[window.first - 1, 1]) if window.first else 0
    texts, gaps, end = _cut(document, offsets[window.first : window.stop], start)
    tail = document[end:] if window.stop == len(offsets) else ""
    row = reading.row(w)
    begin, separator = answerer.tokenizer.convert_ids_to_tokens([int(row[0]), reading.sep_token_id])
    return Passage(
        ids=row,
        texts=[begin, *question_texts, separator, separator, *texts, separator],
        gaps=["", *question_gaps, "", "", *gaps, ""],
        kinds=f"{SPECIAL}{QUESTION * len(question_texts)}{SPECIAL * 2}{DOCUMENT * len(texts)}{SPECIAL}",
        tail=tail,
        first=window.first,
        stop=window.stop,
        total=len(offsets),
        window=w,
        windows=len(reading.windows),
        spans=[_place_in_row(place, window, shift) for place in places],
    )


def _place_in_row(place: tuple[int, int] | None, window: Window, shift: int) -> tuple[int, int] | None:
    """First and last place in a window's row of the document's tokens ``place``; None where they are outside."""
    if place is None:
        return 0, 0
    first, last = place
    return (first + shift, last + shift) if window.first <= first and last < window.stop else None


def _cut(text: str, offsets: np.ndarray, start: int) -> tuple[list[str], list[str], int]:
    """Texts of the tokens at ``offsets`` (n, 2), what stands before each, and where the last ends."""
    texts, gaps = [], []
    for begin, end in offsets.tolist():
        begin, end = max(begin, start), max(end, start)
        gaps.append(text[start:begin])
        texts.append(text[begin:end])
        start = end
    return texts, gaps, start
