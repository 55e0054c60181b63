"""The heads, which solve a task on top of the encoder. Everything about a head is said on its class, see ``base``.

The table ``HEADS`` lists the heads that transformers' Longformer has too. Loading, conversion and parity use it. The
causal language model is not among them: its encoder is another one. The package exports a new head in
``longformer/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from longformer.models.heads.base import IGNORED, Head
from longformer.models.heads.causal_lm import LongformerForCausalLM
from longformer.models.heads.classification import (
    LongformerForMultipleChoice,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from longformer.models.heads.masked_lm import LongformerForMaskedLM
from longformer.models.heads.question_answering import LongformerForQuestionAnswering

__all__ = [
    "HEADS",
    "IGNORED",
    "Head",
    "LongformerForCausalLM",
    "LongformerForMaskedLM",
    "LongformerForMultipleChoice",
    "LongformerForQuestionAnswering",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
    "head_of",
]

HEADS: tuple[type[Head], ...] = (
    LongformerForQuestionAnswering,
    LongformerForMaskedLM,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerForMultipleChoice,
)
"""Every head of the encoder."""


def head_of(names: Collection[str], architectures: Sequence[str] = ()) -> type[Head] | None:
    """The head that a checkpoint is for; None if it has the weights of none.

    Args:
        names: today's names of its weights.
        architectures: the classes that its ``config.json`` names, of any model: "RobertaForTokenClassification". One of
            them is taken if its weights are there, else the first one in ``HEADS`` whose weights are.
    """
    if LongformerForCausalLM.__name__ in architectures:  # whose weights have the names of a masked language model's
        return LongformerForCausalLM
    tasks = {name.rpartition("For")[2] for name in architectures}
    found = [head for head in HEADS if all(weight in names for weight in head.weights)]
    return next((head for head in found if head.__name__.rpartition("For")[2] in tasks), found[0] if found else None)
