"""``explain``: the answers of a document, and what there is to see of how the model came to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.settings import AnswerSettings
from longformer.answering.spans import Answer
from longformer.errors import LongformerError
from longformer.explain.packing import (
    ENTRIES,
    Candidates,
    Limits,
    PackedLayer,
    candidates,
    lowest_level,
    pack,
)
from longformer.explain.passage import QUESTION, Passage, read_passage
from longformer.explain.probabilities import Attention, added, observed
from longformer.explain.rollout import rollout
from longformer.kernels import AttentionPattern

ANSWERS = 5  # unless the settings say how many


@dataclass(frozen=True)
class Explanation:
    """Letters: S sequence, A answers, L layers.

    Args:
        question, document: as they were given.
        answers: best first, with the probabilities that ``longformer answer`` gives them.
        passage: what the model read: the window of the document that scores the best answer.
        start_logits, end_logits: (S,) float64.
        patterns: of each layer, who may attend to whom.
        means: of each layer, the mean of its heads' attention.
        packed: of each layer, every head's attention.
        lowest, limits: which entries were kept in ``packed``.
        rollout: (L, A, S): in [n - 1] how much of each token is in the answer, through the last n layers. 0 for an
            answer outside the passage.
    """

    question: str
    document: str
    answers: list[Answer]
    passage: Passage
    start_logits: Tensor
    end_logits: Tensor
    patterns: list[AttentionPattern]
    means: list[Attention]
    packed: list[PackedLayer]
    lowest: int
    limits: Limits
    rollout: Tensor


class _Recorder:
    """Takes each layer's attention as the model computes it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.patterns: list[AttentionPattern] = []
        self.means: list[Attention] = []
        self.layers: list[list[list[Candidates]]] = []

    def __call__(self, pattern: AttentionPattern, heads: Iterator[Attention]) -> None:
        total, found = None, []
        for attention in heads:
            found.append(candidates(attention, self.limits))
            total = attention if total is None else added(total, attention)
        assert total is not None
        for sum_ in (total.band, total.columns, total.rows):
            sum_ /= len(found)
        self.patterns.append(pattern)
        self.means.append(total)
        self.layers.append(found)


def _check_pattern(answerer: QuestionAnswerer) -> None:
    """The page shows the model's attention, and names what is global as the question, which another choice is not."""
    if next(answerer.model.parameters(), None) is None:
        raise LongformerError("an exported model has no attention to show; explain the model that it was made from")
    if answerer.global_mask is not None:
        raise LongformerError(
            "the QuestionAnswerer has a global_mask; only answers with the question global can be explained: "
            "make one without"
        )


def explain(
    answerer: QuestionAnswerer,
    question: str,
    document: str,
    *,
    settings: AnswerSettings | None = None,
    entries: int = ENTRIES,
    **fields: Any,
) -> Explanation:
    """Answer a question, and record how.

    The model runs once more over the window that holds the best answer; of that run is what is recorded. Memory: one
    head's attention at a time, the mean of each layer's heads, and the largest entries of every row.

    Args:
        answerer: whose model it is.
        question, document: as for :meth:`QuestionAnswerer.answer`.
        settings: what counts as an answer; None is the defaults, with five answers.
        entries: attention probabilities that are kept, over all layers and heads.
        fields: of the settings, in place of those in ``settings``, such as ``top_k=3``.

    Raises:
        DataError, LongformerError: as :meth:`QuestionAnswerer.answer`; ``entries`` is no positive number; or the
            answerer makes other tokens global than the question, or has an exported model.
    """
    if not isinstance(entries, int) or isinstance(entries, bool) or entries < 1:
        raise LongformerError(f"entries is {entries!r}; it must be an int of at least 1")
    _check_pattern(answerer)
    settings = AnswerSettings.of(AnswerSettings(top_k=ANSWERS) if settings is None else settings, fields)
    # Where the first answer is "", the second says which window to show.
    answers = answerer.answer(question, document, settings=replace(settings, top_k=max(2, settings.top_k)))
    passage = read_passage(answerer, question, document, answers, settings)
    answers, passage = answers[: settings.top_k], replace(passage, spans=passage.spans[: settings.top_k])
    config = answerer.model.config
    seq_len = len(passage.ids)
    heads = config.num_hidden_layers * config.num_attention_heads
    global_tokens = passage.kinds.count(QUESTION) + 1  # the question and the token before it
    recorder = _Recorder(Limits.of(seq_len, global_tokens, heads, entries))
    with observed(answerer.model, recorder):
        (logits,) = answerer.logits([passage.ids])
    lowest = lowest_level(recorder.layers, recorder.limits)
    targets = torch.zeros(len(answers), seq_len)
    for row, span in zip(targets, passage.spans, strict=True):
        if span is not None:
            row[span[0] : span[1] + 1] = 1 / (span[1] + 1 - span[0])
    return Explanation(
        question=question,
        document=document,
        answers=answers,
        passage=passage,
        start_logits=logits[0],
        end_logits=logits[1],
        patterns=recorder.patterns,
        means=recorder.means,
        packed=[pack(layer, seq_len, lowest) for layer in recorder.layers],
        lowest=lowest,
        limits=recorder.limits,
        rollout=rollout(recorder.means, targets),
    )
