"""The spans of a document: their scores, window by window, and the answers that come of them.

Letters: S sequence (a window with its question), n tokens of a window's part of the document, W longest answer in
tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.answering.settings import AnswerSettings
from longformer.answering.texts import whole_words
from longformer.answering.windows import Reading, Window
from longformer.errors import LongformerError


@dataclass(frozen=True)
class Answer:
    """A span of the document.

    Args:
        text: the answer, ``document[start:end]``, without space around it; "" for no answer. It never cuts what a
            reader takes for one character, nor a word unless ``inside_words`` is set.
        probability: of this span among all spans of the document of at most ``max_answer_tokens``; those of different
            answers sum to at most 1. It says which span the model takes the answer to be, given that the document has
            one; it does not say whether the document has one. With ``null_threshold`` no answer is one of them.
        start, end: characters of the document. A byte order mark at its beginning counts as one.
    """

    text: str
    probability: float
    start: int
    end: int


@dataclass(frozen=True)
class Found:
    """What was found for a question.

    Args:
        answers: best first, at least one.
        null_score: by how much no answer scores more than the best span, as ``null_threshold`` compares it; it says
            something about a model that was trained on unanswerable questions (SQuAD v2).
    """

    answers: list[Answer]
    null_score: float

    @property
    def text(self) -> str:
        """The best answer."""
        return self.answers[0].text


class SpanSearch:
    """One question on its way through the model: its windows, and the best spans that were found in them so far."""

    def __init__(self, reading: Reading, settings: AnswerSettings) -> None:
        self.reading, self.settings = reading, settings
        self.best: dict[tuple[int, int], float] = {}  # characters to score
        # By window: what no answer scores, the best span's score, the logarithm of the spans' summed exponentials.
        self.nulls: dict[int, float] = {}
        self.tops: dict[int, float] = {}
        self.totals: dict[int, float] = {}
        self.logits: dict[int, Tensor] = {}  # kept where answers must not overlap

    def add(self, w: int, logits: Tensor) -> None:
        """Score the spans of window ``w`` by the logits (2, S) of its row.

        Raises:
            LongformerError: the logits are not finite.
        """
        inner = logits[:, len(self.reading.prefix) : -1]
        if not bool(inner.isfinite().all()):
            raise LongformerError(
                "the model's scores are not finite; if it runs in float16, take bfloat16 or float32, "
                "else its weights are damaged"
            )
        self.nulls[w] = float(logits[:, 0].sum())
        scores = self._scores(w, inner)
        self.tops[w] = float(scores.max())
        self.totals[w] = float(scores.flatten().logsumexp(dim=0))
        if self.settings.no_overlap:
            self.logits[w] = inner
            return
        for span, score in self._distinct(scores, self.reading.windows[w].first).items():
            self.best[span] = max(score, self.best.get(span, -math.inf))

    def _scores(self, w: int, logits: Tensor) -> Tensor:
        window = self.reading.windows[w]
        usable = self.reading.document.usable[window.first : window.stop]
        return span_scores(logits[0], logits[1], usable, window, self.settings.max_answer_tokens)

    def _distinct(self, scores: Tensor, first: int) -> dict[tuple[int, int], float]:
        """The best ``top_k`` spans of characters, or all. Several spans of tokens may be the same characters."""
        count = self.settings.top_k
        while True:
            found: dict[tuple[int, int], float] = {}
            for score, i, j in top_spans(scores, count):
                found.setdefault(self._characters(first + i, first + j), score)
            if len(found) >= self.settings.top_k or count >= scores.numel():
                return found
            count *= 4

    def _characters(self, i: int, j: int) -> tuple[int, int]:
        """Start and end of the text from token ``i`` to ``j``, without space around it and with nothing cut."""
        document = self.reading.document
        start, end = int(document.offsets[i, 0]), int(document.offsets[j, 1])
        text = document.text[start:end]
        start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
        while True:
            if not self.settings.inside_words:
                start, end = whole_words(document.text, start, end)
            if start not in document.inside and end not in document.inside:
                return start, end
            while start in document.inside:
                start -= 1
            while end in document.inside:
                end += 1

    @property
    def is_complete(self) -> bool:
        """Whether every window has been scored."""
        return len(self.totals) == len(self.reading.windows)

    def found(self) -> Found:
        """The best ``top_k``, best first; "" first among them where it beats the others by the threshold."""
        # In the order of the windows, whatever order they were read in: a sum's last digit depends on it.
        windows = range(len(self.reading.windows))
        total = float(torch.tensor([self.totals[w] for w in windows], dtype=torch.float64).logsumexp(dim=0))
        best = max(windows, key=self.tops.__getitem__)
        null = min(self.nulls.values()) if self.settings.null_rule == "minimum" else self.nulls[best]
        if self.settings.no_overlap:
            ranked = self._apart()
        else:
            ranked = sorted((-score, start, end) for (start, end), score in self.best.items())
        if self.settings.null_threshold is not None:
            total = float(np.logaddexp(total, null))
            if null - self.tops[best] > self.settings.null_threshold:
                ranked.insert(0, (-null, 0, 0))
        text = self.reading.document.text
        answers = [
            Answer(text[start:end], min(1.0, math.exp(-negative - total)), start, end)
            for negative, start, end in ranked[: self.settings.top_k]
        ]
        return Found(answers, null - self.tops[best])

    def _apart(self) -> list[tuple[float, int, int]]:
        """The best span, the best of those that share no word with it, and so on: minus its score, start, end."""
        document, windows = self.reading.document, self.reading.windows
        scores = [self._scores(w, self.logits[w]) for w in range(len(windows))]
        tops = [top_spans(of_window, 1) for of_window in scores]
        ranked: list[tuple[float, int, int]] = []
        while len(ranked) < self.settings.top_k and any(tops):
            ranked.append(
                min(
                    (-score, *self._characters(window.first + i, window.first + j))
                    for window, top in zip(windows, tops, strict=True)
                    for score, i, j in top
                )
            )
            taken = document.tokens_of(*whole_words(document.text, *ranked[-1][1:]))
            assert taken is not None  # the span is made of tokens
            for w, window in enumerate(windows):
                if window.first <= taken[1] and taken[0] < window.stop:
                    take_away(scores[w], taken[0] - window.first, taken[1] - window.first)
                    tops[w] = top_spans(scores[w], 1)
        return ranked


def span_scores(
    start_logits: Tensor, end_logits: Tensor, usable: Tensor, window: Window, max_answer_tokens: int
) -> Tensor:
    """Score of every span in a window: its start's logit plus its end's.

    Args:
        start_logits, end_logits: (n,), of the window's tokens.
        usable: (n,) bool, whether a token may begin and end a span.
        window: the spans that are scored here.
        max_answer_tokens: W.

    Returns:
        (n, min(W, n)), where column c of row i is the span from token i to token i + c, counted within the window;
        -inf where there is no such span, or where it is not to be scored here.
    """
    n = len(start_logits)
    width = min(max_answer_tokens, n)
    ends = F.pad(end_logits.masked_fill(~usable, -math.inf), (0, width - 1), value=-math.inf).unfold(0, width, 1)
    scores = start_logits.masked_fill(~usable, -math.inf)[:, None] + ends
    place = 2 * torch.arange(window.first, window.first + n)[:, None] + torch.arange(width)  # i + j
    return scores.masked_fill_((place <= window.low) | (place > window.high), -math.inf)


def top_spans(scores: Tensor, count: int) -> list[tuple[float, int, int]]:
    """The ``count`` best spans as (score, first token, last token), best first; fewer if there are fewer.

    Among equals the earlier and then the shorter comes first, which ``topk`` does not promise.

    Args:
        scores: (n, W), of ``span_scores``.
    """
    flat = scores.flatten()
    least = flat.topk(min(count, len(flat))).values[-1]
    places = ((flat >= least) & (flat > -math.inf)).nonzero().squeeze(1)
    values, order = flat[places].sort(descending=True, stable=True)
    width = scores.shape[1]
    return [
        (value, place // width, place // width + place % width)
        for value, place in zip(values[:count].tolist(), places[order[:count]].tolist(), strict=True)
    ]


def take_away(scores: Tensor, first: int, last: int) -> None:
    """Set to -inf the ``scores`` (n, W), of ``span_scores``, of spans that have a token from ``first`` to ``last``."""
    start = torch.arange(scores.shape[0])[:, None]
    end = start + torch.arange(scores.shape[1])
    scores.masked_fill_((start <= last) & (end >= first), -math.inf)
