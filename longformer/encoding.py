"""Encoding: what a tokenizer returns, with the way from tokens to words and characters and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding as RawEncoding

from longformer.errors import DataError, LongformerError


class Span(NamedTuple):
    """Tokens, or characters, from ``start`` up to and without ``end``."""

    start: int
    end: int


class Encoding(dict[str, Any]):
    """What the tokenizer returns: a dict of ``input_ids``, ``attention_mask`` and what else was asked for.

    ``model(**encoding)`` works, and every entry is an attribute too, as in ``encoding.input_ids``. For one text the
    values are lists of S ints, for a batch lists of such lists; with ``return_tensors`` they are (B, S) int64 tensors
    or arrays. ``encoding[i]`` is the encoding that the ``tokenizers`` library made of row i.

    The methods below answer by row and by place within it: ``encoding.char_to_token(row, char)``. Without a row,
    ``encoding.char_to_token(char)`` means row 0. ``sequence_index`` is 0 for the first text of a pair (the question),
    and 1 for the second (the context). Words are the pieces into which the tokenizer splits a text before it looks for
    tokens, or the given ones with ``is_split_into_words``.

    Args:
        data: the entries by name.
        encodings: by row what the ``tokenizers`` library made; None where it made nothing, as in a batch that was
            padded afterwards.
        tracks_offsets: whether ``encodings`` know the characters of their tokens.

    Raises:
        LongformerError: a question about tokens, words or characters that this encoding knows nothing of.
    """

    def __init__(
        self, data: dict[str, Any], encodings: list[RawEncoding] | None = None, *, tracks_offsets: bool = True
    ) -> None:
        super().__init__(data)
        self.encodings = encodings
        self._tracks_offsets = tracks_offsets

    is_fast = True  # it comes from the tokenizers library

    @property
    def data(self) -> dict[str, Any]:
        """The entries, as a plain dict."""
        return dict(self)

    @property
    def n_sequences(self) -> int:
        """1 for a text, 2 for a pair."""
        return int(self._row(0).n_sequences)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self._row(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(f"this encoding has no {name!r}; it has {', '.join(self)}") from None

    def _row(self, row: Any, *, characters: bool = False) -> Any:
        if self.encodings is None:
            raise LongformerError("this encoding was made by pad(), which does not know the texts of its tokens")
        if characters and not self._tracks_offsets:
            raise LongformerError("this encoding knows no characters: it was made with track_offsets=False")
        return self.encodings[row]

    def _ask(self, question: str, row: int, place: int | None, *sequence_index: int) -> Any:
        """The library's answer about ``place`` of ``row``; about place ``row`` of row 0 where ``place`` is None."""
        row, place = (0, row) if place is None else (row, place)
        encoding = self._row(row, characters="char" in question)
        if question.startswith("token") and place < 0:
            place += len(encoding)
        return getattr(encoding, question)(place, *sequence_index)

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as text."""
        return self._row(batch_index).tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """By token of a row: 0 for the first text, 1 for the second, None for special tokens and padding."""
        return self._row(batch_index).sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """By token of a row: the number of its word in its own text, None for special tokens and padding."""
        return self._row(batch_index).word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text a token is of, 0 or 1; None for a special token."""
        return self._ask("token_to_sequence", batch_or_token_index, token_index)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of a token's word in its own text; None for a special token."""
        return self._ask("token_to_word", batch_or_token_index, token_index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> Span | None:
        """The characters of a token in its own text; None for a special token."""
        return _span(self._ask("token_to_chars", batch_or_token_index, token_index))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character; None where none does, as for space between words."""
        return self._ask("char_to_token", batch_or_char_index, char_index, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that holds a character; None where none does."""
        return self._ask("char_to_word", batch_or_char_index, char_index, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """The tokens of a word; None where it has none."""
        return _span(self._ask("word_to_tokens", batch_or_word_index, word_index, sequence_index))

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """The characters of a word in its own text; None where there is no such word."""
        return _span(self._ask("word_to_chars", batch_or_word_index, word_index, sequence_index))

    def convert_to_tensors(self, tensor_type: str | None = None) -> Encoding:
        """Turn every entry into a tensor ("pt") or an array ("np"), in place; None leaves them as they are.

        Raises:
            LongformerError: rows of different lengths, or entries that are no numbers.
        """
        for name, value in self.items():
            self[name] = _as_tensor(name, value, tensor_type)
        return self

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Encoding:
        """Move the tensors to ``device``, in place; only for ``return_tensors="pt"``.

        Raises:
            LongformerError: an encoding without tensors.
        """
        if not any(isinstance(value, torch.Tensor) for value in self.values()):
            raise LongformerError('this encoding holds no tensors to move; ask for them with return_tensors="pt"')
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device, non_blocking=non_blocking)
        return self


def _span(bounds: tuple[int, int] | None) -> Span | None:
    return None if bounds is None else Span(*bounds)


def _as_tensor(name: str, value: Any, kind: str | None) -> Any:
    """Nested lists of numbers as a tensor ("pt") or an array ("np"), whole numbers as int64; as they are for None."""
    if kind is None or isinstance(value, (torch.Tensor, np.ndarray)):
        return value
    try:
        return torch.tensor(value) if kind == "pt" else np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        lengths = {len(row) for row in value if isinstance(row, list)}
        if len(lengths) > 1:
            raise LongformerError(
                f"{name}: rows of {min(lengths)} to {max(lengths)} tokens do not fit one tensor; pass padding=True"
            ) from None
        raise LongformerError(f"{name} does not fit a tensor: it must be numbers, in rows of one length") from None


def check_halves(encodings: Sequence[RawEncoding], batched: bool) -> None:
    """Refuse pairs with a half in which the tokenizer finds nothing; what was cut to nothing is no such half."""
    for i, encoding in enumerate(encodings):
        found = set(encoding.sequence_ids)
        for sequence, name in enumerate(("question", "context")):
            if sequence not in found and not encoding.overflowing:
                where = f" of row {i}" if batched else ""
                raise DataError(f"the {name}{where} has no tokens; give a text that is not empty")


# What the tokens that pad a row have in each entry that is as long as the row; ids are the tokenizer's.
_PADDING = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}


def pad_columns(columns: dict[str, list[Any]], length: int, pad_token_id: int, side: str) -> dict[str, list[Any]]:
    """Rows of ``columns`` that are as long as the row's ids, with padding up to ``length`` on ``side``.

    Args:
        columns: by entry a list of rows. Entries that are not one number for each token stay as they are.
        length: rows that are longer stay as they are.
        pad_token_id: pads ``input_ids``.
        side: "right" or "left".
    """
    padded = dict(columns)
    for name, filler in {"input_ids": pad_token_id, **_PADDING}.items():
        if name in columns:
            fillers = [[filler] * (length - len(row)) for row in columns[name]]
            padded[name] = [
                row + fill if side == "right" else fill + row for row, fill in zip(columns[name], fillers, strict=True)
            ]
    return padded


def as_columns(encodings: Any) -> tuple[dict[str, list[Any]], bool, str | None]:
    """What ``pad`` is given as lists of rows by entry, whether it is a batch, and the kind of its tensors.

    Args:
        encodings: an encoding, of one text or of a batch, or a list of encodings of one text each. Values are lists,
            arrays or tensors.

    Raises:
        LongformerError: an encoding without ``input_ids``, or encodings with different entries.
    """
    if isinstance(encodings, Sequence) and not isinstance(encodings, str):
        try:
            columns = {name: [row[name] for row in encodings] for name in encodings[0]} if encodings else {}
        except KeyError as error:
            raise LongformerError(f"pad: not every encoding has {error.args[0]!r}, which the first one has") from None
    else:
        columns = dict(encodings)
    if "input_ids" not in columns:
        raise LongformerError(f"pad needs encodings with 'input_ids', but there are {list(columns) or 'none'}")
    kinds = {_kind(value) for value in columns["input_ids"]} | {_kind(columns["input_ids"])}
    lists = {name: [_plain(value) for value in column] for name, column in columns.items()}
    batched = not lists["input_ids"] or isinstance(lists["input_ids"][0], list)
    if not batched:
        lists = {name: [column] for name, column in lists.items()}
    return lists, batched, next((kind for kind in ("pt", "np") if kind in kinds), None)


def _kind(value: Any) -> str | None:
    return "pt" if isinstance(value, torch.Tensor) else "np" if isinstance(value, (np.ndarray, np.generic)) else None


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value
