"""The task of question answering. SQuAD questions become overlapping windows, labelled with the answer's tokens."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.evaluation import predict
from longformer.answering.scores import evaluate
from longformer.answering.settings import AnswerSettings
from longformer.answering.squad import Example
from longformer.answering.windows import NoTokensError, WindowReader
from longformer.distributed import Processes
from longformer.errors import DataError, LongformerError
from longformer.models.heads import LongformerForQuestionAnswering
from longformer.models.pretrained import Pretrained
from longformer.tokenizer import LongformerTokenizer
from longformer.training.batches import generator
from longformer.training.options import QAOptions

NO_ANSWER = (0, 0)  # the span of a window without the answer: the first token, <s>


class Feature(NamedTuple):
    """A window of a question's context: its token ids, and the first and last token of each annotator's answer in it.

    ``spans`` is ``[NO_ANSWER]`` if the window does not contain the answer, or if the question has none.
    """

    input_ids: list[int]
    spans: list[tuple[int, int]]


class Features(NamedTuple):
    """rows: the windows. unusable: ids of the questions that were left out.

    A question is left out if none of its answers has a known place, or if no window contains a complete answer. Such a
    question would teach the model that there is no answer. It is also left out if it or its context has no tokens.
    """

    rows: list[Feature]
    unusable: list[str]


def make_features(examples: Iterable[Example], tokenizer: LongformerTokenizer, options: QAOptions) -> Features:
    """Questions as windows of at most ``options.max_length`` tokens: ``<s> question </s></s> context </s>``.

    A window that contains a complete answer is labelled with it, any other window with ``<s>``.

    Raises:
        DataError: a question leaves no room for its context, or the stride is so large that windows would miss text.
    """
    rows: list[Feature] = []
    unusable = []
    draw = generator(options.seed, len(tokenizer))
    # The model's number of positions was checked when it was loaded. Questions about one context follow each other, so
    # one document at a time is enough.
    reader = WindowReader(tokenizer, sys.maxsize, documents=1)
    # Neighbouring windows need not overlap by a complete answer. options.max_answer_tokens is for measuring only.
    settings = AnswerSettings(max_answer_tokens=1, stride=options.stride, max_length=options.max_length)
    for example in examples:
        places = [(a.start, a.start + len(a.text)) for a in example.answers if a.start is not None]
        if not places and not example.is_impossible:
            unusable.append(example.id)
            continue
        windows = _windows(example, places, reader, settings)
        if not windows or (places and all(window.spans == [NO_ANSWER] for window in windows)):
            unusable.append(example.id)
            continue
        empty = [i for i, window in enumerate(windows) if window.spans == [NO_ANSWER]]
        if places and options.empty_windows is not None and len(empty) > options.empty_windows:
            kept = torch.randperm(len(empty), generator=draw)[: options.empty_windows].tolist()
            left_out = set(empty) - {empty[i] for i in kept}
            windows = [window for i, window in enumerate(windows) if i not in left_out]
        rows += windows
    return Features(rows, unusable)


def _windows(
    example: Example, places: Sequence[tuple[int, int]], reader: WindowReader, settings: AnswerSettings
) -> list[Feature]:
    """A question's windows over its context; none if the question or the context has no tokens."""
    try:
        reading = reader.read(example.question, example.context, settings)
    except NoTokensError:
        return []
    except LongformerError as error:
        raise DataError(f"{example.where}: {error}") from None
    spans = [span for span in (reading.document.tokens_of(*place) for place in places) if span is not None]
    features = []
    for w, window in enumerate(reading.windows):
        shift = reading.shift(w)
        inside = [
            (first + shift, last + shift) for first, last in spans if window.first <= first and last < window.stop
        ]
        features.append(Feature(reading.row(w).tolist(), inside or [NO_ANSWER]))
    return features


def fingerprint(features: Iterable[Feature], held_out: Iterable[Example]) -> str:
    """A hash of all data to train and to measure on, in order.

    It equals the hash of the two lists' ``repr``, which checkpoints hold. It is computed item by item, because the
    complete text would be huge.
    """
    digest = hashlib.sha256()
    pieces: tuple[Iterable[Any], ...] = (features, ((e.id, e.question, e.context, e.answers) for e in held_out))
    for items in pieces:
        digest.update(b"[")
        for i, item in enumerate(items):
            digest.update(f"{', ' if i else ''}{item!r}".encode())
        digest.update(b"]")
    return digest.hexdigest()


class QuestionAnsweringTask:
    """Rows to train on, and questions to measure on.

    Args:
        train: questions to train on.
        held_out: questions to measure on; may be none.
        tokenizer: the model's.
        options: the choices.

    Raises:
        DataError: no question can be used for training, or :func:`make_features` raises it.
    """

    score = "f1"
    higher_is_better = True

    def __init__(
        self, train: Sequence[Example], held_out: Sequence[Example], tokenizer: LongformerTokenizer, options: QAOptions
    ) -> None:
        self.tokenizer, self.options, self.held_out = tokenizer, options, held_out
        self.features, self.unusable = make_features(train, tokenizer, options)
        if not self.features:
            raise DataError(f"none of the {len(train)} questions has an answer that can be used")
        self.lengths = [len(feature.input_ids) for feature in self.features]
        longest = max(self.lengths)
        if longest > options.batch_tokens:
            raise DataError(
                f"batch_tokens is {options.batch_tokens}, and the longest window has {longest} tokens, which cannot be "
                f"split; raise batch_tokens to at least {longest}, or lower max_length"
            )
        self.no_answers = any(example.is_impossible for example in train)
        self.fingerprint = fingerprint(self.features, held_out)

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """The inputs, and the number of rows B.

        They are input_ids and attention_mask (B, S), and spans (B, 2), the first and last token of each answer.
        """
        features = [self.features[row] for row in rows]
        longest = max(len(feature.input_ids) for feature in features)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for i, feature in enumerate(features):
            ids[i, : len(feature.input_ids)] = torch.tensor(feature.input_ids)
            mask[i, : len(feature.input_ids)] = 1
        spans = torch.tensor([self._span(row, epoch) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "spans": spans}, len(rows)

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Cross-entropy over each row's own tokens, as a mean over the rows and over start and end.

        The model's own loss, like the reference's, includes the logits of padding. Then a row's loss would depend on
        the length of the other rows in the batch.
        """
        mask = inputs["attention_mask"]
        total = mask.new_zeros((), dtype=torch.float32)
        for logits, places in zip(model(inputs["input_ids"], mask), inputs["spans"].unbind(dim=1), strict=True):
            total = total + F.cross_entropy(logits.float().masked_fill(mask == 0, -math.inf), places)
        return total / 2

    def _span(self, row: int, epoch: int) -> tuple[int, int]:
        spans = self.features[row].spans
        if self.options.annotator == "first" or len(spans) == 1:
            return spans[0]
        draw = generator(self.options.seed, epoch, row)
        return spans[int(torch.randint(len(spans), (), generator=draw))]

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """Exact match and F1 in percent on the held-out questions. Each process answers a share of them."""
        assert isinstance(model, LongformerForQuestionAnswering)
        answers = predict(
            self.held_out,
            QuestionAnswerer(model, self.tokenizer),
            group,
            AnswerSettings(
                max_answer_tokens=self.options.max_answer_tokens, null_threshold=0.0 if self.no_answers else None
            ),
        )
        scores = evaluate(self.held_out, answers.texts)
        return {"exact_match": scores["exact_match"], "f1": scores["f1"]}
