"""Encoding: what a tokenizer returns; and the checks of the texts and the ids that it is given."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from longformer.errors import DataError, LongformerError


class Encoding(dict[str, Any]):
    """What the tokenizer returns: a dict of ``input_ids`` and ``attention_mask``, so that ``model(**encoding)`` works.

    For one text the values are lists of S ints, for a batch lists of such lists; with ``return_tensors`` always one
    (B, S) int64 tensor or array each.

    Args:
        input_ids: token ids.
        attention_mask: 1 for a token, 0 for padding.
        offsets: by token the characters (start, end) that it covers in its own text; (0, 0) for special tokens and
            padding. Nested like the lists of ``input_ids``; None if they were not asked for.
        sequence_ids: by token 0 for the first text (the question), 1 for the second (the context), None for special
            tokens and padding. Nested like ``offsets``.
    """

    def __init__(self, *, input_ids: Any, attention_mask: Any, offsets: Any, sequence_ids: Any) -> None:
        super().__init__(input_ids=input_ids, attention_mask=attention_mask)
        self.offsets = offsets
        self.sequence_ids = sequence_ids

    @property
    def input_ids(self) -> Any:
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        return self["attention_mask"]

    def to(self, device: torch.device | str | int) -> Encoding:
        """The same encoding with its tensors on ``device``; only for ``return_tensors="pt"``."""
        if not isinstance(self["input_ids"], torch.Tensor):
            raise LongformerError('this encoding holds no tensors to move; ask for them with return_tensors="pt"')
        return Encoding(
            input_ids=self["input_ids"].to(device),
            attention_mask=self["attention_mask"].to(device),
            offsets=self.offsets,
            sequence_ids=self.sequence_ids,
        )


def text_rows(
    text: str | Sequence[str] | Sequence[tuple[str, str]], text_pair: str | Sequence[str] | None
) -> tuple[list[str], list[str] | None, bool]:
    """First texts, second texts or None, and whether they are a batch. Every text is checked."""
    batched = isinstance(text, (list, tuple))
    firsts: list[Any] = list(text) if batched else [text]
    seconds: list[Any] | None = None
    if text_pair is not None:
        if isinstance(text_pair, (list, tuple)) != batched:
            raise DataError("text and text_pair must be two strings, or two lists of the same length")
        seconds = list(text_pair) if batched else [text_pair]
    elif batched and firsts and all(isinstance(row, tuple) and len(row) == 2 for row in firsts):
        firsts, seconds = [row[0] for row in firsts], [row[1] for row in firsts]
    if not firsts:
        raise DataError("the batch is empty; give at least one text")
    if seconds is not None and len(seconds) != len(firsts):
        raise DataError(f"text has {len(firsts)} rows and text_pair {len(seconds)}; give one context for each question")
    for name, column in (("text", firsts), ("text_pair", seconds or [])):
        for i, value in enumerate(column):
            _check_text(value, f"{name}[{i}]" if batched else name, empty_allowed=seconds is None)
    return firsts, seconds, batched


def _check_text(value: Any, name: str, *, empty_allowed: bool) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name} is of type {type(value).__name__}; it must be a string, or a list of strings")
    if not empty_allowed and not value.strip():
        raise DataError(f"{name} is empty; a question and a context need text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} has the lone surrogate U+{ord(value[error.start]):04X} at character {error.start}, which is no "
            "text; decode the source as UTF-8"
        ) from None


def pad_rows(rows: list[Any], value: Any) -> None:
    """Lengthen every row, in place, to the longest one's length with ``value``."""
    length = max(len(row) for row in rows)
    for row in rows:
        row += [value] * (length - len(row))


def as_tensor(rows: list[list[int]], kind: str | None) -> Any:
    """Rows of one length as a (B, S) int64 tensor ("pt") or array ("np"); as they are for None."""
    if kind == "pt":
        return torch.tensor(rows, dtype=torch.long)
    return np.array(rows, dtype=np.int64) if kind == "np" else rows


def is_one_id(ids: Any) -> bool:
    """Whether ``ids`` is a single number, of Python, NumPy or torch, rather than several."""
    return getattr(ids, "ndim", None) == 0 or isinstance(ids, (int, np.integer))


def token_ids(ids: Any) -> list[int]:
    """``ids`` as a list of Python ints."""
    try:
        return [operator.index(number) for number in ([ids] if is_one_id(ids) else ids)]
    except (TypeError, ValueError):
        raise LongformerError(
            f"token ids must be an int or one row of ints, but are {str(ids)[:60]!r}; of a batch, pass one row"
        ) from None
