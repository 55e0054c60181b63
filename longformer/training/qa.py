"""Question answering as a task: SQuAD questions as overlapping windows that point at the answer's tokens."""

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

NOWHERE = (0, 0)  # what a window without the answer points at: the first token, <s>


class Feature(NamedTuple):
    """A window of a question's context: token ids, and first and last token of each annotator's answer in it.

    ``spans`` is ``[NOWHERE]`` where the window has no answer, or the question none.
    """

    input_ids: list[int]
    spans: list[tuple[int, int]]


class Features(NamedTuple):
    """rows: the windows. unusable: ids of questions left out.

    No answer of theirs has a certain place, or none has tokens that one window holds whole: such a question, trained
    on, would teach that it has no answer. Or the question or its context has no tokens at all.
    """

    rows: list[Feature]
    unusable: list[str]


def make_features(examples: Iterable[Example], tokenizer: LongformerTokenizer, options: QAOptions) -> Features:
    """Questions as windows of at most ``options.max_length`` tokens: ``<s> question </s></s> context </s>``.

    A window that holds one of the answers whole points at it; any other points at ``<s>``.

    Raises:
        DataError: a question that leaves no room for its context, or windows laid so far apart that they miss text.
    """
    rows: list[Feature] = []
    unusable = []
    draw = generator(options.seed, len(tokenizer))
    # That the model has as many positions was checked when it was loaded. Questions over one context follow each other.
    reader = WindowReader(tokenizer, sys.maxsize, documents=1)
    # Windows need not share a whole answer: options.max_answer_tokens is of measuring.
    settings = AnswerSettings(max_answer_tokens=1, stride=options.stride, max_length=options.max_length)
    for example in examples:
        places = [(a.start, a.start + len(a.text)) for a in example.answers if a.start is not None]
        if not places and not example.is_impossible:
            unusable.append(example.id)
            continue
        windows = _windows(example, places, reader, settings)
        if not windows or (places and all(window.spans == [NOWHERE] for window in windows)):
            unusable.append(example.id)
            continue
        empty = [i for i, window in enumerate(windows) if window.spans == [NOWHERE]]
        if places and options.empty_windows is not None and len(empty) > options.empty_windows:
            kept = torch.randperm(len(empty), generator=draw)[: options.empty_windows].tolist()
            left_out = set(empty) - {empty[i] for i in kept}
            windows = [window for i, window in enumerate(windows) if i not in left_out]
        rows += windows
    return Features(rows, unusable)


def _windows(
    example: Example, places: Sequence[tuple[int, int]], reader: WindowReader, settings: AnswerSettings
) -> list[Feature]:
    """A question's windows over its context; none where one of the two has no tokens."""
    try:
        reading = reader.read(example.question, example.context, settings)
    except NoTokensError:
        return []
    except LongformerError as error:
        raise DataError(f"question {example.id!r}: {error}") from None
    spans = [span for span in (reading.document.tokens_of(*place) for place in places) if span is not None]
    features = []
    for w, window in enumerate(reading.windows):
        shift = reading.shift(w)
        inside = [
            (first + shift, last + shift) for first, last in spans if window.first <= first and last < window.stop
        ]
        features.append(Feature(reading.row(w).tolist(), inside or [NOWHERE]))
    return features


def fingerprint(features: Iterable[Feature], held: Iterable[Example]) -> str:
    """A hash of all that is trained and measured on, in its order, taken piece by piece: as one text it would be huge.

    It is that of two lists' ``repr``, as checkpoints of runs hold it.
    """
    digest = hashlib.sha256()
    pieces: tuple[Iterable[Any], ...] = (features, ((e.id, e.question, e.context, e.answers) for e in held))
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
        held: questions to measure on; may be none.
        tokenizer: the model's.
        options: the choices.

    Raises:
        DataError: nothing that can be trained on, or what :func:`make_features` refuses.
    """

    score = "f1"
    higher_is_better = True
    has_unused = False

    def __init__(
        self, train: Sequence[Example], held: Sequence[Example], tokenizer: LongformerTokenizer, options: QAOptions
    ) -> None:
        self.tokenizer, self.options, self.held = tokenizer, options, held
        self.features, self.unusable = make_features(train, tokenizer, options)
        if not self.features:
            raise DataError(f"none of the {len(train)} questions has an answer that can be used")
        self.lengths = [len(feature.input_ids) for feature in self.features]
        longest = max(self.lengths)
        if longest > options.batch_tokens:
            raise DataError(
                f"batch_tokens is {options.batch_tokens}, and the longest window has {longest} tokens, which cannot be "
                f"cut; give at least {longest}, or lower max_length"
            )
        self.no_answers = any(example.is_impossible for example in train)
        self.fingerprint = fingerprint(self.features, held)

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """input_ids and attention_mask (B, S), spans (B, 2), first and last token of the answer; and B."""
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
        """Mean over rows, and over start and end, of the cross-entropy among the row's own tokens.

        The loss that the model computes by itself, as the reference does, has the logits of padding in it too, so that
        a row's share depends on how long the rows beside it are.
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
        """Exact match and F1 in percent on the questions held out, which the processes share."""
        assert isinstance(model, LongformerForQuestionAnswering)
        answers = predict(
            self.held,
            QuestionAnswerer(model, self.tokenizer),
            group,
            AnswerSettings(
                max_answer_tokens=self.options.max_answer_tokens, null_threshold=0.0 if self.no_answers else None
            ),
        )
        scores = evaluate(self.held, answers)
        return {"exact_match": scores["exact_match"], "f1": scores["f1"]}
