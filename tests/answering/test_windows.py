"""WindowReader: rows of a question and a part of a document, which together cover the document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import byte_level_tokenizer

from longformer import AnswerSettings, DataError, LongformerError, LongformerTokenizer
from longformer.answering.windows import Reading, Window, WindowReader, lay_windows

QUESTION, DOCUMENT = " Who fell? ", "Dan fell. Ann did not. Ünï " * 9


@pytest.fixture
def tokenizer(tmp_path: Path) -> LongformerTokenizer:
    return byte_level_tokenizer(tmp_path)


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_every_span_is_scored_once_where_it_is_whole(tokens: int, capacity: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, capacity))
    windows = lay_windows(tokens, capacity, stride)
    assert windows[0].first == 0 and windows[-1].stop == tokens
    for i in range(tokens):
        for j in range(i, min(i + capacity - stride + 1, tokens)):
            (window,) = (window for window in windows if window.low < i + j <= window.high)
            assert window.first <= i and j < window.stop


def test_a_document_that_fits_is_one_window() -> None:
    assert lay_windows(10, 10, 3) == [Window(0, 10, -1, 20)]


def read(tokenizer: LongformerTokenizer, **fields: int) -> Reading:
    return WindowReader(tokenizer, 512).read(QUESTION, DOCUMENT, AnswerSettings(**fields))


def test_one_row_is_the_tokenizers_own(tokenizer: LongformerTokenizer) -> None:
    reading = read(tokenizer)
    assert len(reading.windows) == 1
    assert reading.row(0).tolist() == tokenizer(QUESTION.strip(), DOCUMENT)["input_ids"]


def test_rows_of_several_windows(tokenizer: LongformerTokenizer) -> None:
    reading = read(tokenizer, max_length=60, max_answer_tokens=10, stride=21)
    ids = tokenizer(DOCUMENT)["input_ids"][1:-1]
    assert len(reading.windows) > 5
    for w, window in enumerate(reading.windows):
        row = reading.row(w)
        assert row.dtype == np.int64 and len(row) <= 60
        for token in (window.first, window.stop - 1):
            assert row[token + reading.shift(w)] == ids[token]
        assert row.tolist() == [*reading.prefix, *ids[window.first : window.stop], tokenizer.sep_token_id]
    assert [reading.window_of(i, i) for i in (0, len(ids) - 1)] == [0, len(reading.windows) - 1]


def test_tokens_of_characters(tokenizer: LongformerTokenizer) -> None:
    document = read(tokenizer).document
    start = DOCUMENT.index("Ann")
    first, last = document.tokens_of(start, start + 3) or (0, 0)
    assert (document.offsets[first, 0], document.offsets[last, 1]) == (start, start + 3)
    first, last = document.tokens_of(DOCUMENT.index("Ü"), DOCUMENT.index("Ü") + 1) or (0, 0)
    assert last == first + 1  # a character of two bytes
    assert document.tokens_of(len(DOCUMENT), len(DOCUMENT) + 3) is None


class Counting:
    """A tokenizer that keeps what it is given."""

    def __init__(self, tokenizer: LongformerTokenizer) -> None:
        self.tokenizer, self.texts, self.sep_token_id = tokenizer, [], tokenizer.sep_token_id

    def __call__(self, text: str, **how: bool) -> object:
        self.texts.append(text)
        return self.tokenizer(text, **how)


@pytest.mark.parametrize(("documents", "again"), [(None, 0), (2, 0), (1, 1)])
def test_documents_are_kept(tokenizer: LongformerTokenizer, documents: int | None, again: int) -> None:
    counting = Counting(tokenizer)
    reader = WindowReader(counting, 512, documents=documents)
    for document in ("abc", "abc", "def", "abc"):
        reader.read("who", document, AnswerSettings())
    assert counting.texts.count("abc") == 1 + again


def test_a_stride_matters_only_where_there_are_several_windows(tokenizer: LongformerTokenizer) -> None:
    reader = WindowReader(tokenizer, 64)
    assert len(reader.read("who", "Dan fell.", AnswerSettings(stride=1000)).windows) == 1
    with pytest.raises(LongformerError, match=r"stride is 1000; with 57 tokens .* more than 28 apart would miss"):
        reader.read("who", DOCUMENT, AnswerSettings(stride=1000))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            "take 64 of the 64 .* leaves 0 for the document, less than .*=30; shorten the question, or ask for shorter",
        ),
        ({"max_answer_tokens": 1}, "which leaves 0 for the document; shorten the question$"),
        (
            {"max_answer_tokens": 1, "max_length": 20},
            r"which leaves 0 for the document; raise max_length \(--max-length\), or shorten the question$",
        ),
    ],
)
def test_no_room(tokenizer: LongformerTokenizer, fields: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WindowReader(tokenizer, 64).read("q" * 60, DOCUMENT, AnswerSettings(**fields))
