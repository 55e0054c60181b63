"""The right answers by which a head has a loss: those of the command's input, or ones that a rule chooses.

Letters: B batch, S sequence, N choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import DataError, LongformerError
from longformer.models.heads import (
    IGNORED,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForTokenClassification,
)
from longformer.models.heads.base import LabelledHead, check_classes
from longformer.parity.layout import TARGETS, Longformer, effective_inputs

OF_TOKENS = (LongformerForMaskedLM, LongformerForTokenClassification)  # have a label for every token


def targets_of(kind: type[Longformer]) -> tuple[str, ...]:
    """Names of the arguments that hold the right answers; the base model has none."""
    return getattr(kind, "targets", ())


def read_targets(path: str, kind: type[Longformer], values: Mapping[str, Any], lengths: list[int]) -> dict[str, Tensor]:
    """The answers in a ``.json`` file: lists of numbers; labels of tokens are filled up with -100.

    Args:
        path: of the file, for messages.
        kind: the class that they are for. Other classes' are left out.
        values: what the file holds.
        lengths: of its rows.

    Raises:
        DataError: an entry is no list of numbers, or labels of tokens are not one for each.
    """
    found = {}
    for name in targets_of(kind):
        if name not in values:
            continue
        value = values[name]
        if kind in OF_TOKENS:
            rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
            if [len(row) if isinstance(row, list) else None for row in rows] != lengths:
                raise DataError(f"{path}: {name} must have a label for each token, in rows of {lengths}")
            value = [row + [IGNORED] * (max(lengths) - len(row)) for row in rows]
        try:
            found[name] = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise DataError(f"{path}: {name} must be a list of numbers, or of lists of equally many") from None
        if kind is LongformerForQuestionAnswering and (found[name].dtype != torch.int64 or found[name].dim() != 1):
            raise DataError(f"{path}: {name} must be a list of whole numbers, one a row")
    return found


def default_targets(
    kind: type[Longformer], config: LongformerConfig, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Answers for an input that has none.

    - Question answering: from each row's first token that is not global to its last, padding left out.
    - Masked LM: every token itself. Token classification: its id, modulo the number of labels. Padding has no label.
    - Sequence classification: row i has class i, modulo the number of labels. Where labels are floats, label j of row i
      is 1 if i + j is odd, else 0.
    - Multiple choice: all rows are choices of one question, and the first is right.
    """
    ids, effective = inputs["input_ids"], effective_inputs(inputs)
    real, is_global = effective["attention_mask"] != 0, effective["global_attention_mask"] != 0
    row = torch.arange(len(ids))
    if kind is LongformerForQuestionAnswering:
        local = real & ~is_global
        answer = torch.where(local.any(dim=1, keepdim=True), local, real).int()
        last = answer.shape[1] - 1
        return {"start_positions": answer.argmax(dim=1), "end_positions": last - answer.flip(1).argmax(dim=1)}
    if kind is LongformerForMaskedLM:
        labels = ids.masked_fill(~real, IGNORED)
    elif kind is LongformerForTokenClassification:
        labels = (ids % config.num_labels).masked_fill(~real, IGNORED)
    elif kind is LongformerForMultipleChoice:
        labels = torch.zeros(1, dtype=torch.long)
    elif config.num_labels == 1 or config.problem_type not in (None, "single_label_classification"):
        labels = ((row[:, None] + torch.arange(config.num_labels)) % 2).float()
    else:
        labels = row % config.num_labels
    return {"labels": labels}


def check_targets(
    path: str,
    kind: type[Longformer],
    config: LongformerConfig,
    targets: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
) -> None:
    """Raise DataError, which names ``path``, where the answers are incomplete or do not fit the input."""
    ids = inputs["input_ids"]
    for name in targets_of(kind):
        if name not in targets:
            both = " and ".join(targets_of(kind))
            raise DataError(f"{path} lacks {name}; give both {both}, or neither to have them chosen")
    if kind is LongformerForQuestionAnswering:
        return _check_positions(path, targets, effective_inputs(inputs)["attention_mask"] != 0)
    labels = targets["labels"]
    try:
        if kind is LongformerForMultipleChoice:
            choices = choices_of(path, {**inputs, **targets})
            check_classes("labels", labels, torch.Size([len(ids) // choices]), choices, what="choices")
            return None
        assert issubclass(kind, LabelledHead)
        with torch.device("meta"):
            head = kind(config)
        head.check_labels(labels, ids)
    except DataError:
        raise
    except LongformerError as error:
        raise DataError(f"{path}: {error}") from None


def _check_positions(path: str, targets: Mapping[str, Tensor], real: Tensor) -> None:
    for name, positions in targets.items():
        if positions.shape != real.shape[:1] or positions.dtype != torch.int64:
            raise DataError(
                f"{path}: {name} has shape {tuple(positions.shape)} and dtype {positions.dtype}; it is one position a "
                f"row, {len(real)} whole numbers"
            )
        for row, position in enumerate(positions.tolist()):
            if not (0 <= position < real.shape[1] and real[row, position]):
                raise DataError(f"{path}: {name} has {position} for row {row}, where the input has no token")


def cut(targets: Mapping[str, Tensor], kind: type[Longformer], length: int) -> dict[str, Tensor]:
    """The answers of an input that is cut to ``length`` tokens."""
    return {name: tensor[:, :length] if kind in OF_TOKENS else tensor for name, tensor in targets.items()}


def choices_of(path: str, inputs: Mapping[str, Tensor]) -> int:
    """N, from the rows and the labels of multiple choice; without labels all rows are choices of one question.

    Raises:
        DataError: the rows cannot be shared out evenly.
    """
    rows, labels = len(inputs["input_ids"]), inputs.get("labels")
    questions = 1 if labels is None else labels.numel()
    if not questions or rows % questions:
        raise DataError(f"{path}: {rows} rows are no equal number of choices for each of {questions} labels")
    return rows // questions


def as_arguments(
    kind: type[Longformer], inputs: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The arguments of a model's forward: for multiple choice (B, N, S) of (B·N, S) rows, and labels in its dtype."""
    arguments = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    if kind is not LongformerForMultipleChoice:
        return arguments
    choices = choices_of("the input", inputs)
    return {name: x if name in TARGETS else x.unflatten(0, (-1, choices)) for name, x in arguments.items()}
