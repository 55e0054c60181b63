"""The task of classifying texts: labelled texts become rows, each with the target of its loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longformer.classifying.classifier import TextClassifier, encode, pad, predictions
from longformer.classifying.labels import REGRESSION, SINGLE_LABEL, Labels, labels_of_head
from longformer.classifying.scores import label_scores, number_scores
from longformer.classifying.texts import LabelledText, read_labelled_texts
from longformer.config import LongformerConfig
from longformer.distributed import Processes, fail_together
from longformer.errors import DataError
from longformer.models.heads import LongformerForSequenceClassification
from longformer.models.pretrained import Pretrained
from longformer.tokenizer import LongformerTokenizer
from longformer.training.batches import generator
from longformer.training.options import ClassificationOptions


class ClassificationData(NamedTuple):
    """Texts to train on, texts to measure on, which may be none, and what their labels mean."""

    train: list[LabelledText]
    held_out: list[LabelledText]
    labels: Labels


def read_data(options: ClassificationOptions, head: LongformerConfig | None) -> ClassificationData:
    """Read the files that ``options`` name.

    Args:
        options: the choices.
        head: config of the checkpoint's own head, whose labels are kept; None if a new head is to be drawn. Its labels
            are those of the texts to train on, held-out ones included.

    Raises:
        LongformerError: a file cannot be used, or the head and ``options`` contradict each other.
    """
    texts, held_out = (
        [t for file in files for t in read_labelled_texts(file)] for files in (options.files, options.evaluate_on)
    )
    if head is None:
        labels = Labels.of_texts(texts, options.problem_type)
    else:
        labels = labels_of_head(head, options.problem_type, options.source)
    if options.hold_out is None:
        return ClassificationData(texts, held_out, labels)
    count = round(options.hold_out * len(texts))
    if not 0 < count < len(texts):
        what = "nothing to measure on" if count == 0 else "nothing to train on"
        raise DataError(f"hold_out is {options.hold_out}; of {len(texts)} texts that leaves {what}")
    chosen = set(torch.randperm(len(texts), generator=generator(options.seed))[:count].tolist())
    return ClassificationData(
        [text for i, text in enumerate(texts) if i not in chosen], [texts[i] for i in sorted(chosen)], labels
    )


class ClassificationTask:
    """Rows to train on, and rows to measure on.

    The best weights are those with the highest macro-F1 if a text has one label, with the highest micro-F1 if it may
    have several, and with the lowest mean squared error for regression.

    Args:
        data: the texts and their labels.
        tokenizer: the model's.
        options: the choices.

    Attributes:
        cut: how many texts are longer than ``options.max_length``, so that their ends are cut off.

    Raises:
        DataError: a text has no tokens, or a label is unknown or of another kind; names file and line.
    """

    def __init__(
        self, data: ClassificationData, tokenizer: LongformerTokenizer, options: ClassificationOptions
    ) -> None:
        self.tokenizer, self.labels = tokenizer, data.labels
        kind = data.labels.problem_type
        self.score = {REGRESSION: "mean_squared_error", SINGLE_LABEL: "macro_f1"}.get(kind, "micro_f1")
        self.higher_is_better = kind != REGRESSION
        self.targets, self.held_out_targets = (data.labels.targets(texts) for texts in (data.train, data.held_out))
        (self.rows, cut), (self.held_out, held_out_cut) = (
            encode([t.text.text for t in texts], tokenizer, options.max_length, [t.text.place for t in texts])
            for texts in (data.train, data.held_out)
        )
        self.cut = sum(cut) + sum(held_out_cut)
        self.lengths = [len(row) for row in self.rows]
        longest = max(self.lengths)
        if longest > options.batch_tokens:
            raise DataError(
                f"batch_tokens is {options.batch_tokens}, and the longest row has {longest} tokens, which cannot be "
                f"split; raise batch_tokens to at least {longest}, or lower max_length"
            )
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.labels).encode())
        for rows, targets in ((self.rows, self.targets), (self.held_out, self.held_out_targets)):
            digest.update(np.array([len(row) for row in rows]).tobytes())
            for row in rows:
                digest.update(row.tobytes())
            digest.update(targets.numpy().tobytes())
        return digest.hexdigest()

    def collate(self, rows: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], int]:
        """The inputs, and the number of rows B.

        They are input_ids and attention_mask (B, S), and labels as :meth:`Labels.targets` gives them.
        """
        ids, mask = pad([self.rows[row] for row in rows], self.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": self.targets[list(rows)]}, len(rows)

    def loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """The head's own loss, as a mean over the rows: cross-entropy, binary cross-entropy or squared error."""
        loss: Tensor = model(**inputs).loss
        return loss

    def evaluate(self, model: Pretrained, group: Processes) -> dict[str, float]:
        """Scores on the held-out texts, see :mod:`longformer.classifying.scores`. Each process computes a share."""
        assert isinstance(model, LongformerForSequenceClassification)
        mine = group.share(range(len(self.held_out)))
        found = torch.empty(0)
        with fail_together(group):
            found = TextClassifier(model, self.tokenizer).logits([self.held_out[row] for row in mine])
        logits = torch.empty(len(self.held_out), len(self.labels.names), dtype=torch.float64)
        for rank, theirs in enumerate(group.gather(found)):
            logits[rank :: group.size] = theirs
        return self._scores(logits)

    def _scores(self, logits: Tensor) -> dict[str, float]:
        kind, right = self.labels.problem_type, self.held_out_targets
        if kind == REGRESSION:
            return number_scores(right.numpy(), logits[:, 0].numpy())
        if kind == SINGLE_LABEL:
            right = torch.nn.functional.one_hot(right, logits.shape[1])
        scores = label_scores(right.bool().numpy(), predictions(logits, kind).numpy())
        if kind == SINGLE_LABEL:
            del scores["micro_f1"]  # equals accuracy
        return scores
