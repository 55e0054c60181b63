"""AnswerSettings: what counts as an answer, and how a long document is read. Imports nothing slow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longformer.errors import LongformerError, unknown_name

NULL_RULES = ("same-window", "minimum")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What counts as an answer, and how a long document is read. Frozen, and checked once when it is made.

    Args:
        top_k: how many answers; fewer come back only where the document has fewer spans. They may overlap unless
            ``no_overlap`` is set, but no two are the same characters.
        max_answer_tokens: longest answer, in tokens, before it is completed to whole words.
        stride: tokens from the start of one window to the start of the next. A smaller stride gives every span more
            context and takes longer. None lets windows share a quarter of their tokens, and more where
            ``max_answer_tokens`` needs it.
        max_length: tokens that the model reads at once, question and special tokens included; None is as many as
            the model has positions for.
        null_threshold: for a model trained on SQuAD v2, which points at the first token where the text has no
            answer: the first answer is "" where that scores more than this above the best span. None always answers.
        null_rule: which window of a long document says what no answer scores. "same-window" is the one in which the
            best span is scored, so that both scores are of one pass of the model. "minimum" is the window where no
            answer scores least, as in transformers' example script ``run_qa``.
        no_overlap: answers share no word with each other, best first.
        inside_words: answers may begin and end inside a word. False completes the words in which an answer begins and
            ends (:func:`longformer.answering.texts.whole_words` says what a word is).

    Raises:
        LongformerError: a value of another type or out of range, with its name.
    """

    top_k: int = 1
    max_answer_tokens: int = 30
    stride: int | None = None
    max_length: int | None = None
    null_threshold: float | None = None
    null_rule: str = "same-window"
    no_overlap: bool = False
    inside_words: bool = False

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_tokens"):
            check_count(name, getattr(self, name))
        for name in ("stride", "max_length"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("no_overlap", "inside_words"):
            if not isinstance(getattr(self, name), bool):
                raise LongformerError(f"{name} is {getattr(self, name)!r}; it must be True or False")
        if self.null_rule not in NULL_RULES:
            raise LongformerError(f"null_rule is {self.null_rule!r}; it must be {' or '.join(map(repr, NULL_RULES))}")
        threshold: object = self.null_threshold
        if threshold is None:
            return
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not math.isfinite(threshold):
            raise LongformerError(f"null_threshold is {threshold!r}; it must be a finite number such as 0.0, or None")

    @classmethod
    def of(
        cls, settings: AnswerSettings | None, changes: Mapping[str, Any], *, besides: Sequence[str] = ()
    ) -> AnswerSettings:
        """``settings`` with ``changes``, which are the keywords of a call.

        Args:
            settings: to begin with; None is the class's defaults.
            changes: values by name.
            besides: other keywords of that call, one of which may be meant by an unknown name.

        Raises:
            LongformerError: ``settings`` of another class, a name that is no setting, or a value out of range.
        """
        if settings is not None and not isinstance(settings, cls):
            raise LongformerError(f"settings is {settings!r}; it must be AnswerSettings")
        for name in changes:
            if name not in SETTINGS:
                known = (*SETTINGS, *besides)
                raise LongformerError(unknown_name(name, known, "setting of an answer"))
        return dataclasses.replace(cls() if settings is None else settings, **changes)


SETTINGS = tuple(field.name for field in dataclasses.fields(AnswerSettings))


def check_count(name: str, value: object) -> None:
    """Raise LongformerError, which names it, where a value is no int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise LongformerError(f"{name} is {value!r}; it must be an int of at least 1")
