"""QuestionAnswerer: question and document in, answers out, however long the document is.

A document beyond the model's positions is read in overlapping windows, each after the whole question. Every span of
the document is scored once, in the window where it has the most context around it, so that the scores of all windows
make one list, and one softmax over it makes the probabilities.

Letters: n tokens of a document, W = longest answer in tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.distributed import check_device
from longformer.errors import DataError, LongformerError
from longformer.models.heads import LongformerForQuestionAnswering
from longformer.tokenizer import LongformerTokenizer

PRETRAINED = Path(__file__).parents[1] / "pretrained"  # the checkpoint that the package ships

BATCH_TOKENS = 4096
LEAST_FULL = 0.75  # a row shorter than this share of its batch's longest goes into the next batch


@dataclass(frozen=True)
class Answer:
    """A span of the document.

    Args:
        text: the answer, ``document[start:end]``, without space around it; "" for no answer.
        probability: of this span among all spans of the document of at most ``max_answer_tokens``; those of different
            answers sum to at most 1. It says which span the model takes the answer to be, given that the document has
            one; it does not say whether the document has one. With ``null_threshold`` no answer is one of them.
        start, end: characters of the document.
    """

    text: str
    probability: float
    start: int
    end: int


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


class QuestionAnswerer:
    """Answers questions with spans of documents.

    Args:
        model: answers in ``eval()`` mode; one that is in training is put back into it afterwards.
        tokenizer: the one of the model's checkpoint.
        global_mask: which tokens are global, (B, S) bool, of a batch's ids, (B, S) int64, which are padded on the
            right; None is the question, by ``model.automatic_global_mask``. Every batch of ``answer_batch`` is given
            to it.

    Raises:
        LongformerError: a tokenizer that is not the model's, by its special tokens.
    """

    def __init__(
        self,
        model: LongformerForQuestionAnswering,
        tokenizer: LongformerTokenizer,
        *,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name in ("sep_token_id", "pad_token_id"):
            of_model, of_tokenizer = getattr(model.config, name), getattr(tokenizer, name)
            if of_model != of_tokenizer:
                raise LongformerError(
                    f"{name} is {of_model} for the model and {of_tokenizer} for the tokenizer; "
                    "load both from the same checkpoint"
                )
        self.model = model
        self.tokenizer = tokenizer
        self.global_mask = global_mask

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
        local_files_only: bool = False,
        config: LongformerConfig | None = None,
        global_mask: Callable[[Tensor], Tensor] | None = None,
    ) -> QuestionAnswerer:
        """Load model and tokenizer of a checkpoint.

        Args:
            name_or_path: a folder or a name on the hub; None is the small checkpoint that comes with the package.
            revision, dtype, device, impl, local_files_only, config: as for
                :meth:`LongformerForQuestionAnswering.from_pretrained`.
            global_mask: as for the class.

        Raises:
            CheckpointError: not found, not readable, or without a head for question answering.
            ConfigError: a config of another architecture.
            LongformerError: a device that this machine does not have.
        """
        check_device(device)
        source = PRETRAINED if name_or_path is None else name_or_path
        tokenizer = LongformerTokenizer.from_pretrained(source, revision=revision, local_files_only=local_files_only)
        model = LongformerForQuestionAnswering.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            device=device,
            impl=impl,
            local_files_only=local_files_only,
            config=config,
        )
        return cls(model, tokenizer, global_mask=global_mask)

    def answer(
        self,
        question: str,
        document: str,
        *,
        top_k: int = 1,
        max_answer_tokens: int = 30,
        stride: int | None = None,
        max_length: int | None = None,
        null_threshold: float | None = None,
    ) -> list[Answer]:
        """The best answers to a question in a document, best first. Text like ``</s>`` is ordinary text in both.

        Args:
            question: space around it is ignored.
            document: of any length.
            top_k: how many answers; fewer come back only where the document has fewer spans. They may overlap, but no
                two are the same characters.
            max_answer_tokens: longest answer, in tokens.
            stride: tokens from the start of one window to the start of the next. The smaller, the more context every
                span has and the longer it takes. None lets windows share a quarter of their tokens, and more where
                ``max_answer_tokens`` wants it.
            max_length: tokens that the model reads at once, question and special tokens included; None is as many as
                it has positions for.
            null_threshold: for a model trained on SQuAD v2, which points at the first token where the text has no
                answer: the first answer is "" where that scores more than this above the best span. None always
                answers.

        Raises:
            DataError: a question or document that is no text, is blank, or has no tokens; a question so long that too
                little is left for the document.
            LongformerError: an argument out of range, or a model whose scores are not finite.
        """
        return self.answer_batch(
            [(question, document)],
            top_k=top_k,
            max_answer_tokens=max_answer_tokens,
            stride=stride,
            max_length=max_length,
            null_threshold=null_threshold,
        )[0]

    def answer_batch(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 30,
        stride: int | None = None,
        max_length: int | None = None,
        null_threshold: float | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Answer]]:
        """Answer many questions, in batches of windows of like length. Nothing is computed before all are checked.

        Args:
            pairs: (question, document) each. Documents that occur more than once are tokenised once.
            top_k, max_answer_tokens, stride, max_length, null_threshold: as for :meth:`answer`.
            batch_tokens: most tokens of a batch, padding counted; a longer window goes alone.
            progress: called with the number of questions that were finished since its last call.

        Returns:
            What :meth:`answer` gives for each pair, in their order. Rounding may differ in the last digits, since
            sums are taken in another order in a batch of another shape.

        Raises:
            DataError, LongformerError: as :meth:`answer`; the message says which pair.
        """
        check_settings(
            top_k=top_k,
            max_answer_tokens=max_answer_tokens,
            stride=stride,
            max_length=max_length,
            batch_tokens=batch_tokens,
        )
        if null_threshold is not None and not math.isfinite(null_threshold):
            raise LongformerError(f"null_threshold is {null_threshold}; it must be a number, such as 0.0")
        limit = self._limit(max_length)
        readings: list[_Reading] = []
        documents: dict[str, _Document] = {}
        pairs = list(pairs)
        for i, pair in enumerate(pairs):
            try:
                readings.append(self._read(pair, documents, limit, max_answer_tokens, stride))
            except LongformerError as error:
                if len(pairs) == 1:
                    raise
                raise type(error)(f"pairs[{i}]: {error}") from None

        places = [(r, w) for r, reading in enumerate(readings) for w in range(len(reading.windows))]
        rows = [readings[r].row(w) for r, w in places]
        for batch in group_by_length([len(row) for row in rows], batch_tokens):
            finished = 0
            for n, logits in zip(batch, self._logits([rows[n] for n in batch]), strict=True):
                r, w = places[n]
                readings[r].add(w, logits, top_k, max_answer_tokens)
                finished += readings[r].is_complete
            if progress is not None and finished:
                progress(finished)
        return [reading.answers(top_k, null_threshold) for reading in readings]

    def _remedy(self, limit: int) -> str:
        """What to do where a window of ``limit`` tokens has no room for an answer."""
        other = "shorten the question, or ask for shorter answers"
        return other if limit == self._limit(None) else f"raise max_length (--max-length), {other}"

    def _limit(self, max_length: int | None) -> int:
        positions: int = self.model.config.max_tokens
        if max_length is not None and max_length > positions:
            raise LongformerError(
                f"max_length is {max_length}; the model has positions for {positions} tokens, so give at most that"
            )
        return positions if max_length is None else max_length

    def _read(
        self,
        pair: tuple[str, str],
        documents: dict[str, _Document],
        limit: int,
        max_answer_tokens: int,
        stride: int | None,
    ) -> _Reading:
        """Tokenise a pair, each half once, and lay windows over its document."""
        question, document = check_pair(pair)
        encoding = self.tokenizer(question.strip(), return_offsets=False, split_special_tokens=True)
        # <s> question </s></s> context </s>: a text alone is <s> text </s>.
        prefix = [*encoding["input_ids"], self.tokenizer.sep_token_id]
        if len(prefix) == 3:
            raise DataError(f"the question {_brief(question)} has no tokens; ask in characters that the model knows")
        if document not in documents:
            documents[document] = self._tokenize(document)
        tokens = len(documents[document].ids)
        capacity = limit - len(prefix) - 1
        if capacity < min(tokens, max_answer_tokens):
            raise DataError(
                f"the question {_brief(question)} and its special tokens take {len(prefix) + 1} of the {limit} tokens "
                f"read at once, which leaves {max(capacity, 0)} for the document, less than an answer of "
                f"max_answer_tokens={max_answer_tokens}; {self._remedy(limit)}"
            )
        most = max(1, capacity - max_answer_tokens + 1)  # an answer must fit into what two windows share
        if stride is None:
            stride = min(most, capacity - capacity // 4)
        elif stride > most:
            raise LongformerError(
                f"stride is {stride}; with {capacity} tokens of the document in a window and max_answer_tokens="
                f"{max_answer_tokens}, windows more than {most} apart would miss answers, so give at most that"
            )
        laid = lay_windows(tokens, capacity, stride)
        return _Reading(document, documents[document], prefix, self.tokenizer.sep_token_id, laid)

    def _tokenize(self, document: str) -> _Document:
        encoding = self.tokenizer(document, split_special_tokens=True)
        ids, offsets = encoding["input_ids"][1:-1], encoding.offsets[1:-1]
        # Tokens of white space, or of a part that was normalised away, neither begin nor end an answer.
        usable = [not document[start:end].isspace() and start < end for start, end in offsets]
        if not any(usable):
            raise DataError(f"the document {_brief(document)} has no tokens; give text in characters the model knows")
        return _Document(np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64), torch.tensor(usable))

    def _logits(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Start and end logits of each row, (2, S) float64 on the CPU, as they come out of one batch."""
        longest = max(len(row) for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.from_numpy(row)
            mask[i, : len(row)] = 1
        device = next(self.model.parameters()).device
        given = {"attention_mask": mask.to(device)}
        if self.global_mask is not None:
            given["global_attention_mask"] = self.global_mask(ids).to(device)
        with torch.inference_mode(), _evaluating(self.model):
            start_logits, end_logits = self.model(ids.to(device), **given)
        logits = torch.stack([start_logits, end_logits], dim=1).cpu().double()  # (B, 2, S)
        for i, row in enumerate(rows):
            yield logits[i, :, : len(row)]


@dataclass(frozen=True)
class _Document:
    """ids: (n,) int64. offsets: (n, 2), characters of each token. usable: (n,) bool, may begin or end an answer."""

    ids: np.ndarray
    offsets: np.ndarray
    usable: Tensor


class _Reading:
    """One pair on its way through the model: its windows, and what was found in them so far."""

    def __init__(
        self, text: str, document: _Document, prefix: list[int], sep_token_id: int, windows: list[Window]
    ) -> None:
        self.text = text
        self.document = document
        self.prefix = prefix
        self.sep_token_id = sep_token_id
        self.windows = windows
        self.best: dict[tuple[int, int], float] = {}  # characters to score
        self.null = math.inf  # score of no answer, the least over the windows: one that holds it denies it
        self.totals: dict[int, float] = {}  # window to the logarithm of its spans' summed exponentials

    def row(self, w: int) -> np.ndarray:
        """What the model reads for window ``w``: (S,) int64."""
        context = self.document.ids[self.windows[w].first : self.windows[w].stop]
        return np.concatenate([self.prefix, context, [self.sep_token_id]])

    def add(self, w: int, logits: Tensor, top_k: int, max_answer_tokens: int) -> None:
        """Score the spans of window ``w`` by the logits (2, S) of its row."""
        window = self.windows[w]
        self.null = min(self.null, float(logits[:, 0].sum()))
        start_logits, end_logits = logits[:, len(self.prefix) : -1]
        if not bool(start_logits.isfinite().all() and end_logits.isfinite().all()):
            raise LongformerError(
                "the model's scores are not finite; if it runs in float16, take bfloat16 or float32, "
                "else its weights are damaged"
            )
        scores = span_scores(
            start_logits, end_logits, self.document.usable[window.first : window.stop], window, max_answer_tokens
        )
        self.totals[w] = float(scores.flatten().logsumexp(dim=0))
        for span, score in self._distinct(scores, window.first, top_k).items():
            self.best[span] = max(score, self.best.get(span, -math.inf))

    def _distinct(self, scores: Tensor, first: int, top_k: int) -> dict[tuple[int, int], float]:
        """The best ``top_k`` spans of characters, or all. Tokens that share a character make a span occur twice."""
        count = top_k
        while True:
            found: dict[tuple[int, int], float] = {}
            for score, i, j in top_spans(scores, count):
                found.setdefault(self._characters(first + i, first + j), score)
            if len(found) >= top_k or count >= scores.numel():
                return found
            count *= 4

    def _characters(self, i: int, j: int) -> tuple[int, int]:
        start, end = int(self.document.offsets[i, 0]), int(self.document.offsets[j, 1])
        text = self.text[start:end]
        return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())

    @property
    def is_complete(self) -> bool:
        """Whether every window has been scored."""
        return len(self.totals) == len(self.windows)

    def answers(self, top_k: int, null_threshold: float | None) -> list[Answer]:
        """The best ``top_k``, best first; "" first among them where it beats the others by the threshold."""
        # In the order of the windows, whatever order they were read in: a sum's last digit depends on it.
        totals = torch.tensor([self.totals[w] for w in range(len(self.windows))], dtype=torch.float64)
        total = float(totals.logsumexp(dim=0))
        ranked = sorted((-score, start, end) for (start, end), score in self.best.items())
        if null_threshold is not None:
            total = float(np.logaddexp(total, self.null))
            if self.null - max(self.best.values()) > null_threshold:
                ranked.insert(0, (-self.null, 0, 0))
        return [
            Answer(self.text[start:end], min(1.0, math.exp(-negative - total)), start, end)
            for negative, start, end in ranked[:top_k]
        ]


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


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Batches of indices into ``lengths``, from the longest to the shortest rows.

    A batch's rows times its longest are at most ``batch_tokens`` (a longer row goes alone), and none is shorter than
    three quarters of the longest. The longest come first, so that what does not fit into memory fails at once.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens and lengths[i] >= LEAST_FULL * longest:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def check_pair(pair: Any) -> tuple[str, str]:
    """``pair`` as question and document; raises DataError where it is not two texts that are not blank."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise DataError(f"{_brief(pair)} is no pair; give (question, document)")
    for name, text in zip(("question", "document"), pair, strict=True):
        if not isinstance(text, str):
            remedy = "decode it first, for example with .decode('utf-8')" if isinstance(text, bytes) else "give a str"
            raise DataError(f"the {name} is of type {type(text).__name__}, not str; {remedy}")
        if not text.strip():
            raise DataError(f"the {name} is {'blank' if text else 'empty'}; give text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"the {name} has U+{ord(text[error.start]):04X} at character {error.start}, half of a character; "
                "decode its source as UTF-8"
            ) from None
    return pair[0], pair[1]


def check_settings(**settings: int | None) -> None:
    """Raises LongformerError where a setting of :meth:`QuestionAnswerer.answer_batch` is no int of at least 1."""
    for name, value in settings.items():
        if value is None and name in ("stride", "max_length"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise LongformerError(f"{name} is {value!r}; it must be an int of at least 1")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def _brief(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
