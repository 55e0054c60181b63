"""What a call of the tokenizer may ask for, and the checks of the texts that it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longformer.errors import DataError, LongformerError, unknown_name

_CHOICES: dict[str, tuple[object, ...]] = {
    "padding": (False, True, "longest", "max_length", "do_not_pad"),
    "truncation": (None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate"),
    "padding_side": (None, "right", "left"),
    "return_tensors": (None, "pt", "np"),
}


@dataclass(frozen=True)
class EncodingOptions:
    """The keywords of a call of the tokenizer. They mean what they mean in transformers.

    Args:
        add_special_tokens: lay the tokens out as ``<s> text </s>`` or ``<s> text </s></s> text_pair </s>``.
        padding: True or "longest" pads to the batch's longest row, "max_length" to ``max_length``; False or
            "do_not_pad" not at all.
        truncation: True or "longest_first" cuts from the longer half of a pair until it fits ``max_length``,
            "only_first" cuts the first text alone (the question), "only_second" the second alone (the context); False
            or "do_not_truncate" cuts nothing. None is "longest_first" where ``max_length`` is given and ``padding`` is
            not, else False.
        max_length: most tokens of a row, special tokens included; None is the tokenizer's ``model_max_length``.
        stride: how many tokens of the cut text a window shares with the one before, see
            ``return_overflowing_tokens``.
        is_split_into_words: texts are lists of words.
        pad_to_multiple_of: rows that are padded get a multiple of this many tokens.
        padding_side: "right" or "left"; None is the tokenizer's.
        return_tensors: None for lists, "pt" for tensors, "np" for arrays.
        return_token_type_ids, return_attention_mask: give ``token_type_ids`` (all 0), ``attention_mask`` (1 for a
            token, 0 for padding); None gives them where they are of the tokenizer's ``model_input_names``.
        return_overflowing_tokens: what is cut becomes further rows, with the other text of a pair in each;
            ``overflow_to_sample_mapping`` gives by row the number of its text.
        return_special_tokens_mask: give ``special_tokens_mask``: 1 for a special token, padding included, else 0.
        return_offsets_mapping: give ``offset_mapping``: by token the characters (start, end) that it covers in its own
            text; (0, 0) for special tokens and padding.
        return_length: give ``length``, the number of tokens of each row.
        split_special_tokens: treat special tokens written in a text, as ``</s>``, like any other text. Without it they
            become the special token.
        track_offsets: False saves the time to find each token's characters; the encoding does not know them then. It is
            the one option that transformers does not have.
    """

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    split_special_tokens: bool = False
    track_offsets: bool = True

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EncodingOptions:
        """Options by their names. Raises LongformerError for an unknown name or a value that means nothing."""
        for name in options:
            if name not in OPTIONS:
                raise LongformerError(unknown_name(name, OPTIONS, "option of the tokenizer"))
        return cls(**options)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, least in (("max_length", 1), ("stride", 0), ("pad_to_multiple_of", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise LongformerError(f"{name} is {value!r}; it must be an int of at least {least}")
        if self.max_length is not None and self.strategy is None and self.padding != "max_length":
            raise LongformerError(
                f"max_length {self.max_length} does nothing without truncation=True or padding='max_length'; "
                "pass one of them, or no max_length"
            )
        if self.return_offsets_mapping and not self.track_offsets:
            raise LongformerError("return_offsets_mapping=True needs the offsets that track_offsets=False leaves out")

    @property
    def strategy(self) -> str | None:
        """How to cut, as the ``tokenizers`` library calls it; None for not at all."""
        if self.truncation is True or (
            self.truncation is None and self.max_length is not None and self.padding is False
        ):
            return "longest_first"
        return None if self.truncation in (None, False, "do_not_truncate") else str(self.truncation)

    @property
    def pads(self) -> bool:
        return self.padding not in (False, "do_not_pad")

    def length(self, wanted_by: str, model_max_length: int) -> int:
        """``max_length``, else the tokenizer's. Raises LongformerError where neither says a length."""
        if self.max_length is not None:
            return self.max_length
        if model_max_length >= NO_LIMIT:
            raise LongformerError(f"{wanted_by} needs max_length, since this tokenizer states no model_max_length")
        return model_max_length


OPTIONS = tuple(field.name for field in dataclasses.fields(EncodingOptions))
NO_LIMIT = int(1e30)  # how checkpoints write, and transformers says, that a tokenizer knows of no longest row


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise LongformerError, which lists the choices, where ``value`` is none of them."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):  # 1 is not True
        raise LongformerError(unknown_name(str(value), [repr(choice) for choice in choices], f"value of {name}"))


def text_rows(text: Any, text_pair: Any, *, words: bool) -> tuple[list[Any], list[Any] | None, bool]:
    """First texts, second texts or None, and whether they are a batch. Every text is checked.

    Args:
        text, text_pair: as the tokenizer takes them.
        words: a text is a list of words.

    Raises:
        DataError: a text that is no text, or empty where a pair needs two; no rows, or halves of unequal number.
    """
    batched = _is_batch(text, words)
    firsts: list[Any] = list(text) if batched else [text]
    seconds: list[Any] | None = None
    if text_pair is not None:
        if _is_batch(text_pair, words) != batched:
            raise DataError("text and text_pair must be two strings, or two lists of the same length")
        seconds = list(text_pair) if batched else [text_pair]
    elif batched and firsts and all(_is_pair(row, words) for row in firsts):
        firsts, seconds = [row[0] for row in firsts], [row[1] for row in firsts]
    if not firsts:
        raise DataError("the batch is empty; give at least one text")
    if seconds is not None and len(seconds) != len(firsts):
        raise DataError(f"text has {len(firsts)} rows and text_pair {len(seconds)}; give one context for each question")
    for name, column in (("text", firsts), ("text_pair", seconds or [])):
        for i, value in enumerate(column):
            _check_text(value, f"{name}[{i}]" if batched else name, words=words, empty_allowed=seconds is None)
    if words:  # the library takes a tuple for a pair
        firsts = [list(row) for row in firsts]
    return firsts, seconds, batched


def _is_batch(text: Any, words: bool) -> bool:
    return isinstance(text, (list, tuple)) and (not words or (bool(text) and isinstance(text[0], (list, tuple))))


def _is_pair(row: Any, words: bool) -> bool:
    half = (list, tuple) if words else str
    if not isinstance(row, (list, tuple)) or len(row) != 2:
        return False
    return (isinstance(row, tuple) and not words) or all(isinstance(part, half) for part in row)


def _check_text(value: Any, name: str, *, words: bool, empty_allowed: bool) -> None:
    if words:
        if not isinstance(value, (list, tuple)):
            raise DataError(f"{name} is of type {type(value).__name__}; is_split_into_words needs a list of words")
        for i, word in enumerate(value):
            _check_text(word, f"{name}[{i}]", words=False, empty_allowed=True)
        value = "".join(value)
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
