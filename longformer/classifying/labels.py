"""What the labels of a file mean to a model: a number, one of several names, or any of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longformer.classifying.texts import LabelledText
from longformer.config import PROBLEM_TYPES, LongformerConfig
from longformer.errors import DataError, LongformerError, listed

REGRESSION, SINGLE_LABEL, MULTI_LABEL = PROBLEM_TYPES
VALUE = "value"  # name of the one output of a regression
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Labels:
    """What a head predicts.

    Args:
        problem_type: one of ``PROBLEM_TYPES``.
        names: of the labels, in the order of the head's outputs.
    """

    problem_type: str
    names: tuple[str, ...]

    @classmethod
    def of_config(cls, config: LongformerConfig) -> Labels:
        """Those of a head that exists. Without a problem type one output means regression, as for the head's loss."""
        kind = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
        return cls(kind, config.label_names)

    @classmethod
    def of_texts(cls, texts: Sequence[LabelledText], problem_type: str | None) -> Labels:
        """Those of a new head. The names are sorted, as numbers if all of them are whole numbers.

        Args:
            texts: at least one.
            problem_type: None lets it follow from the labels, see :func:`problem_type_of`.

        Raises:
            DataError: labels of different kinds, or of another kind than ``problem_type``; or all texts have the same.
        """
        kind = problem_type_of(texts) if problem_type is None else problem_type
        values = [_value(text, kind) for text in texts]
        if len(set(values)) == 1:
            shown = texts[0].name or listed(values[0]) or "no label"
            raise DataError(
                f"{texts[0].text.file}: all {len(texts)} texts have the same label ({shown}); give texts of others too"
            )
        if kind == REGRESSION:
            return cls(kind, (VALUE,))
        names = sorted({name for value in values for name in value})
        return cls(kind, tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else names))

    def targets(self, texts: Iterable[LabelledText]) -> Tensor:
        """What the head's loss takes: (N,) float32 for regression, (N,) int64 for one label, else (N, labels) float32.

        Raises:
            DataError: a label of another kind, or one that is not among the names; names file, line and label.
        """
        values = [(text, _value(text, self.problem_type)) for text in texts]
        if self.problem_type == REGRESSION:
            return torch.tensor([value for _, value in values], dtype=torch.float32)
        numbers = {name: i for i, name in enumerate(self.names)}
        for text, names in values:
            unknown = [name for name in names if name not in numbers]
            if unknown:
                known = listed([repr(name) for name in self.names])
                raise DataError(f"{text.text.place}: the label {unknown[0]!r} is unknown; there are {known}")
        rows = [[numbers[name] for name in names] for _, names in values]
        if self.problem_type == SINGLE_LABEL:
            return torch.tensor([row[0] for row in rows], dtype=torch.int64)
        targets = torch.zeros(len(rows), len(self.names))
        for i, row in enumerate(rows):
            targets[i, row] = 1
        return targets


def labels_of_head(config: LongformerConfig, problem_type: str | None, source: str) -> Labels:
    """The labels of the head of the checkpoint ``source``, which is to be trained further.

    Raises:
        LongformerError: the head is for another problem than ``problem_type``, or predicts several numbers.
    """
    labels = Labels.of_config(config)
    if labels.problem_type == REGRESSION and len(labels.names) > 1:
        raise LongformerError(
            f"the head of {source} predicts {len(labels.names)} numbers, a file gives one; set new_head to replace it"
        )
    if problem_type not in (None, labels.problem_type):
        raise LongformerError(
            f"problem_type is {problem_type}, and the head of {source} is for {labels.problem_type}; leave "
            "problem_type out, or set new_head to replace the head"
        )
    return labels


def problem_type_of(texts: Iterable[LabelledText]) -> str:
    """Regression if there is a number with a fraction, several labels if there are lists, else a single label.

    Raises:
        DataError: labels of different kinds; names one text of each kind.
    """
    first: dict[str, LabelledText] = {}
    has_fraction = False
    for text in texts:
        label = text.label
        kind = "a list of labels" if isinstance(label, tuple) else "a name" if isinstance(label, str) else "a number"
        has_fraction |= isinstance(label, float)
        first.setdefault(kind, text)
    if len(first) > 1:
        (one, a), (other, b) = list(first.items())[:2]
        raise DataError(
            f"{b.text.place}: the label is {other}, but in {a.text.place} it is {one}; give labels of one kind, or set "
            "problem_type"
        )
    return MULTI_LABEL if "a list of labels" in first else REGRESSION if has_fraction else SINGLE_LABEL


def _value(text: LabelledText, kind: str) -> Any:
    """The label as a number for regression, else as a tuple of names. Raises DataError if it is of another kind."""
    label = text.label
    if kind == REGRESSION:
        if isinstance(label, (str, tuple)) or not abs(label) <= LARGEST:
            shown = f"a list of {len(label)} labels" if isinstance(label, tuple) else repr(label)
            raise DataError(f"{text.text.place}: the label is {shown}; for {kind} it must be a finite number")
        return float(label)
    if kind == SINGLE_LABEL and isinstance(label, tuple) and len(label) != 1:
        raise DataError(f"{text.text.place}: there are {len(label)} labels; for {kind} there must be one")
    return label if isinstance(label, tuple) else (text.name,)
