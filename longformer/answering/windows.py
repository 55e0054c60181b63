"""WindowReader: a question and a document as tokens, and the overlapping windows in which a model reads them.

A document beyond the model's positions is read in windows, each after the whole question:
``<s> question </s></s> part of the document </s>``. Every span of the document is scored in one window alone, the one
where it has the most context around it.

Letters: S sequence (a window with its question), n tokens of a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longformer.answering.settings import AnswerSettings
from longformer.answering.texts import check_texts, inside_graphemes, shorten
from longformer.errors import DataError, LongformerError
from longformer.files import BOM
from longformer.tokenizer import LongformerTokenizer


class Window(NamedTuple):
    """Part of a document that the model reads at once, and the spans that are scored there.

    first, stop: its tokens, ``first <= token < stop``.
    low, high: a span from token i to token j is scored here if ``low < i + j <= high``. Between two windows that both
        hold a span, this is the one where the nearer edge is farther from it.
    """

    first: int
    stop: int
    low: int
    high: int


def lay_windows(tokens: int, capacity: int, stride: int) -> list[Window]:
    """Windows of up to ``capacity`` tokens, one every ``stride``, until the document's ``tokens`` are covered.

    Every span of at most ``capacity - stride + 1`` tokens is scored in exactly one window, which holds it whole.
    """
    count = 1 + max(0, -(-(tokens - capacity) // stride))
    firsts = [w * stride for w in range(count)]
    stops = [min(first + capacity, tokens) for first in firsts]
    # Span i to j has i - first tokens before it in the later window, and stop - 1 - j behind it in the earlier one.
    # The later window is better where the former is more, that is from i + j = first + stop on.
    limits = [-1, *(firsts[w + 1] + stops[w] - 1 for w in range(count - 1)), 2 * tokens]
    return [Window(firsts[w], stops[w], limits[w], limits[w + 1]) for w in range(count)]


class NoTokensError(DataError):
    """A question or a document in which the tokenizer finds nothing."""


@dataclass(frozen=True)
class Document:
    """A document as tokens.

    Args:
        text: the document.
        ids: (n,) int64.
        offsets: (n, 2) int64, the characters of each token: first, and one behind the last.
        usable: (n,) bool, whether a token may begin or end an answer: one of white space may not, nor one of a part
            that was normalised away.
    """

    text: str
    ids: np.ndarray
    offsets: np.ndarray
    usable: Tensor

    @cached_property
    def inside(self) -> frozenset[int]:
        """The places at which ``text`` must not be cut, as :func:`inside_graphemes` finds them."""
        return inside_graphemes(self.text)

    def tokens_of(self, start: int, end: int) -> tuple[int, int] | None:
        """First and last token that have characters of ``text[start:end]``; None where none has."""
        first, stop = self.offsets.T
        inside = np.flatnonzero((first < end) & (stop > start) & (first < stop))
        return (int(inside[0]), int(inside[-1])) if len(inside) else None


@dataclass(frozen=True)
class Reading:
    """A question over a document, and the windows in which a model reads it.

    Args:
        prefix: ids of ``<s> question </s></s>``, with which every row begins.
        document: the document.
        sep_token_id: id of the ``</s>`` with which every row ends.
        windows: cover the document; at least one.
    """

    prefix: list[int]
    document: Document
    sep_token_id: int
    windows: list[Window]

    def row(self, w: int) -> np.ndarray:
        """What the model reads for window ``w``: (S,) int64."""
        part = self.document.ids[self.windows[w].first : self.windows[w].stop]
        return np.concatenate([self.prefix, part, [self.sep_token_id]])

    def shift(self, w: int) -> int:
        """What a token's place in the row of window ``w`` is more than its place in the document."""
        return len(self.prefix) - self.windows[w].first

    def window_of(self, first: int, last: int) -> int:
        """The number of the window in which the span from token ``first`` to ``last`` is scored."""
        return next(w for w, window in enumerate(self.windows) if window.low < first + last <= window.high)


class WindowReader:
    """Tokenises questions and documents, each text once, and lays windows over the documents.

    Args:
        tokenizer: the model's.
        positions: most tokens that the model reads at once.
        documents: how many documents, of those read last, are kept as tokens for other questions; None keeps all.
    """

    def __init__(self, tokenizer: LongformerTokenizer, positions: int, *, documents: int | None = None) -> None:
        self.tokenizer, self.positions = tokenizer, positions
        self._tokenize = lru_cache(documents)(partial(_tokenize, tokenizer))

    def read(self, question: str, document: str, settings: AnswerSettings) -> Reading:
        """Lay windows over ``document``, after ``question``. Text like ``</s>`` is ordinary text in both.

        Args:
            question: space around it is ignored.
            document: of any length.
            settings: of which ``max_answer_tokens``, ``stride`` and ``max_length`` count.

        Raises:
            NoTokensError: the tokenizer finds nothing in one of the two.
            DataError: one of the two is no text or blank, or the question leaves too little room for the document.
            LongformerError: ``max_length`` or ``stride`` is too large.
        """
        check_texts(question, document)
        limit = self.limit(settings)
        encoding = self.tokenizer(question.strip(), track_offsets=False, split_special_tokens=True)
        # <s> question </s></s> document </s>: a text alone is <s> text </s>.
        prefix = [*encoding["input_ids"], self.tokenizer.sep_token_id]
        if len(prefix) == 3:
            raise NoTokensError(
                f"the question {shorten(question)} has no tokens; ask in characters that the model knows"
            )
        tokens = self._tokenize(document)
        capacity = limit - len(prefix) - 1
        longest = settings.max_answer_tokens
        if capacity < min(len(tokens.ids), longest):
            raise DataError(
                f"the question {shorten(question)} and its special tokens take {len(prefix) + 1} of the {limit} tokens "
                f"read at once, which leaves {max(capacity, 0)} for the document{self._remedy(limit, longest)}"
            )
        most = max(1, capacity - longest + 1)  # an answer must fit into what two windows share
        stride = min(most, capacity - capacity // 4) if settings.stride is None else settings.stride
        if stride > most and len(tokens.ids) > capacity:
            answers = f" and max_answer_tokens={longest}" if longest > 1 else ""
            raise LongformerError(
                f"stride is {stride}; with {capacity} tokens of the document in a window{answers}, windows more than "
                f"{most} apart would miss answers, so give at most that"
            )
        windows = lay_windows(len(tokens.ids), capacity, stride)
        return Reading(prefix, tokens, self.tokenizer.sep_token_id, windows)

    def limit(self, settings: AnswerSettings) -> int:
        """Tokens read at once. Raises LongformerError where ``max_length`` is more than there are positions."""
        if settings.max_length is not None and settings.max_length > self.positions:
            raise LongformerError(
                f"max_length is {settings.max_length}; the model has positions for {self.positions} tokens, "
                "so give at most that"
            )
        return self.positions if settings.max_length is None else settings.max_length

    def _remedy(self, limit: int, longest: int) -> str:
        """What is too little for an answer of ``longest`` tokens, and what to do where ``limit`` tokens are read."""
        remedies = ["shorten the question"]
        if limit < self.positions:
            remedies.insert(0, "raise max_length (--max-length)")
        if longest == 1:
            return f"; {', or '.join(remedies)}"
        too_little = f", less than an answer of max_answer_tokens={longest}"
        return f"{too_little}; {', '.join(remedies)}, or ask for shorter answers"


def _tokenize(tokenizer: LongformerTokenizer, text: str) -> Document:
    skipped = len(BOM) if text.startswith(BOM) else 0  # the model never reads it, but it counts as a character
    encoding = tokenizer(text[skipped:], return_offsets_mapping=True, split_special_tokens=True)
    ids = encoding["input_ids"][1:-1]
    offsets = [(start + skipped, end + skipped) for start, end in encoding["offset_mapping"][1:-1]]
    usable = [not text[start:end].isspace() and start < end for start, end in offsets]
    if not any(usable):
        raise NoTokensError(f"the document {shorten(text)} has no tokens; give text in characters that the model knows")
    return Document(text, np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64), torch.tensor(usable))
