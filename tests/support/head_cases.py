"""Every head with every kind of answer that it takes: a class, a config, and a batch with right answers for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from reference import padded_batch, question_row
from torch import Tensor

from longformer import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from longformer.models.heads import IGNORED, Head

Inputs = dict[str, Tensor]


class HeadCase(NamedTuple):
    """kind: the class. changes: of a config, for the head and its answers. is_real: whether labels are floats."""

    kind: type[Head]
    changes: dict[str, object]
    is_real: bool = False


CASES = {
    "question answering": HeadCase(LongformerForQuestionAnswering, {}),
    "masked words": HeadCase(LongformerForMaskedLM, {}),
    "one number": HeadCase(LongformerForSequenceClassification, {"num_labels": 1}, True),
    "several numbers": HeadCase(
        LongformerForSequenceClassification, {"num_labels": 3, "problem_type": "regression"}, True
    ),
    "one class": HeadCase(LongformerForSequenceClassification, {"num_labels": 3}),
    "several classes": HeadCase(LongformerForSequenceClassification, {"num_labels": 3}, True),
    "tokens": HeadCase(LongformerForTokenClassification, {"num_labels": 3}),
    "choices": HeadCase(LongformerForMultipleChoice, {}),
}


def question_batch(config: LongformerConfig, kind: type[Head], *, left: bool = False) -> Inputs:
    """Four padded rows of a question and a context: (4, 40), or (2, 2, 40) for multiple choice."""
    rows = [question_row(config, q, n) for q, n in ((1, 23), (6, 40), (14, 37), (3, 9))]
    return shaped_for(kind, padded_batch(config, rows, left=left))


def shaped_for(kind: type[Head], inputs: Inputs) -> Inputs:
    """(4, S) inputs as the class takes them: two choices for each of two questions, or four texts."""
    if kind is not LongformerForMultipleChoice:
        return inputs
    return {name: tensor.unflatten(0, (2, 2)) for name, tensor in inputs.items()}


def answers(case: HeadCase, config: LongformerConfig, inputs: Inputs) -> Inputs:
    """Right answers, drawn, for ``inputs``."""
    ids = inputs["input_ids"]
    rows = len(ids)
    match case.kind.__name__.removeprefix("LongformerFor"):
        case "QuestionAnswering":
            start = torch.randint(ids.shape[1] + 1, (rows,))  # S lies outside
            return {"start_positions": start, "end_positions": torch.randint(ids.shape[1], (rows,))}
        case "MaskedLM" | "TokenClassification" as task:
            classes = config.vocab_size if task == "MaskedLM" else config.num_labels
            labels = torch.randint(classes, ids.shape)
            labels[torch.rand(ids.shape) > 0.4] = IGNORED
            return {"labels": labels}
        case "MultipleChoice":
            return {"labels": torch.randint(ids.shape[1], (rows,))}
    if not case.is_real:
        return {"labels": torch.randint(config.num_labels, (rows,))}
    real = torch.randn(rows) if config.num_labels == 1 else torch.randn(rows, config.num_labels)
    return {"labels": real if config.num_labels == 1 or config.problem_type else (real > 0).float()}
