"""``explain``: the answers of a document, and what there is to see of how the model came to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.settings import AnswerSettings, check_count
from longformer.answering.spans import Answer
from longformer.errors import LongformerError, unknown_name
from longformer.explain.attribution import (
    Probe,
    attention_gradient,
    global_mask_of,
    has_gradients,
    integrated_gradients,
)
from longformer.explain.faithfulness import Curves, follow_orders
from longformer.explain.methods import METHODS, STEPS
from longformer.explain.packing import (
    ENTRIES,
    Candidates,
    Limits,
    PackedLayer,
    candidates,
    lowest_level,
    pack,
)
from longformer.explain.passage import SPECIAL, Passage, read_passage
from longformer.explain.probabilities import Attention, Layer, mean_of_heads, observed
from longformer.explain.rollout import rollout
from longformer.kernels.masks import Pattern

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
        count: how many attention probabilities of the model are not 0.
        lowest, limits: which entries were kept in ``packed``.
        rollout: (L, A, S): in [n - 1] how much of each token is in the answer, through the last n layers. 0 for an
            answer outside the passage.
        attributions: by method, (2, S): how much each token counts for the start score and for the end score of the
            best answer. Integrated gradients are in units of the scores; the others say shares and sum to 1.
        curves: of each method, how the best answer's score falls and rises with the tokens that it names first; None
            without a method.
        default_globals: whether the global tokens are those of a model for question answering: the question's.
    """

    question: str
    document: str
    answers: list[Answer]
    passage: Passage
    start_logits: Tensor
    end_logits: Tensor
    patterns: list[Pattern]
    means: list[Attention]
    packed: list[PackedLayer]
    count: int
    lowest: int
    limits: Limits
    rollout: Tensor
    attributions: Mapping[str, Tensor]
    curves: Curves | None
    default_globals: bool

    @property
    def global_index(self) -> Tensor:
        """The tokens that are global in any layer, ascending."""
        return torch.cat([mean.global_index for mean in self.means]).unique()


class _Recorder:
    """Takes each layer's attention as the model computes it."""

    def __init__(self, limits: Limits, count: Callable[[int], object]) -> None:
        self.limits, self.count_heads = limits, count
        self.count = 0
        self.patterns: list[Pattern] = []
        self.means: list[Attention] = []
        self.layers: list[list[list[Candidates]]] = []

    def __call__(self, layer: Layer, output: Tensor) -> None:
        found: list[list[Candidates]] = []

        def heads() -> Iterator[Attention]:
            for attention in layer.heads():
                found.append(candidates(attention, self.limits))
                self.count += attention.seen()
                self.count_heads(1)
                yield attention

        self.means.append(mean_of_heads(heads()))
        self.patterns.append(layer.pattern)
        self.layers.append(found)


def check_methods(methods: Sequence[str]) -> None:
    """Raise LongformerError where one is not of METHODS."""
    for name in methods:
        if name not in METHODS:
            raise LongformerError(unknown_name(name, METHODS, "method of attribution"))


def _methods(answerer: QuestionAnswerer, asked: Sequence[str] | None, steps: int) -> list[str]:
    """What the answerer's model can compute of what was asked for."""
    if next(answerer.model.parameters(), None) is None:
        raise LongformerError("an exported model has no attention to show; explain the model that it was made from")
    check_count("steps", steps)
    check_methods(asked or ())
    with_gradients = has_gradients(answerer.model)
    wanted = list(METHODS if asked is None else dict.fromkeys(asked))
    possible = [name for name in wanted if with_gradients or name == "rollout"]
    if asked is not None and possible != wanted:
        missing = next(name for name in wanted if name not in possible)
        raise LongformerError(f"{missing} needs gradients, which a model in int8 does not have; load it without int8")
    return possible


def explain(
    answerer: QuestionAnswerer,
    question: str,
    document: str,
    *,
    settings: AnswerSettings | None = None,
    entries: int = ENTRIES,
    methods: Sequence[str] | None = None,
    steps: int = STEPS,
    progress: bool | None = False,
    **fields: Any,
) -> Explanation:
    """Answer a question, and record how.

    The model runs once more over the window that holds the best answer; of that run is what is recorded. Then each
    method of attribution says which tokens count for that answer, and the model runs without them, to see whether they
    do. Memory: one head's attention at a time, the mean of each layer's heads, the largest entries of every row, and of
    gradients those of one run.

    Args:
        answerer: whose model it is.
        question, document: as for :meth:`QuestionAnswerer.answer`.
        settings: what counts as an answer; None is the defaults, with five answers.
        entries: attention probabilities that are kept, over all layers and heads.
        methods: of ``longformer.explain.METHODS``, in the order in which the page offers them. None is all that the
            model can compute; without gradients, in int8, that is rollout alone. An empty list is none.
        steps: of integrated gradients. More of them take longer, and leave a smaller error.
        progress: show bars on standard error; None is where that is a terminal.
        fields: of the settings, in place of those in ``settings``, such as ``top_k=3``.

    Raises:
        DataError, LongformerError: as :meth:`QuestionAnswerer.answer`; ``entries`` or ``steps`` is no positive number;
            a method that there is not, or that the model cannot compute; or an exported model.
    """
    check_count("entries", entries)
    wanted = _methods(answerer, methods, steps)
    settings = AnswerSettings.of(AnswerSettings(top_k=ANSWERS) if settings is None else settings, fields)
    # Where the first answer is "", the second says which window to show.
    answers = answerer.answer(question, document, settings=replace(settings, top_k=max(2, settings.top_k)))
    passage = read_passage(answerer, question, document, answers, settings)
    answers, passage = answers[: settings.top_k], replace(passage, spans=passage.spans[: settings.top_k])
    config = answerer.model.config
    seq_len, ids = len(passage.ids), torch.from_numpy(passage.ids)
    heads = config.num_hidden_layers * config.num_attention_heads
    limits = Limits.of(seq_len, int(global_mask_of(answerer, ids).sum()), heads, entries)
    hidden = None if progress is None else not progress
    with tqdm(total=heads, desc="attention of each head", disable=hidden) as bar:
        recorder = _Recorder(limits, bar.update)
        with observed(answerer.model, recorder):
            (logits,) = answerer.logits([passage.ids])
    lowest = lowest_level(recorder.layers, recorder.limits)
    targets = torch.zeros(len(answers), seq_len)
    for row, span in zip(targets, passage.spans, strict=True):
        if span is not None:
            row[span[0] : span[1] + 1] = 1 / (span[1] + 1 - span[0])
    packed = [pack(layer, seq_len, lowest) for layer in recorder.layers]
    recorder.layers.clear()
    assert passage.spans[0] is not None  # the passage is the window of the best answer
    removable = torch.tensor([kind != SPECIAL for kind in passage.kinds])
    probe = Probe(answerer, ids, passage.spans[0], removable)
    attributions = {name: _attribution(name, probe, recorder.means, steps, progress) for name in wanted}
    return Explanation(
        question=question,
        document=document,
        answers=answers,
        passage=passage,
        start_logits=logits[0],
        end_logits=logits[1],
        patterns=recorder.patterns,
        means=recorder.means,
        packed=packed,
        count=recorder.count,
        lowest=lowest,
        limits=recorder.limits,
        rollout=rollout(recorder.means, targets),
        attributions=attributions,
        curves=follow_orders(probe, attributions, progress=progress) if attributions else None,
        default_globals=answerer.global_mask is None,
    )


def _attribution(name: str, probe: Probe, means: list[Attention], steps: int, progress: bool | None) -> Tensor:
    """One method's attribution to the tokens: (2, S)."""
    if name == "integrated-gradients":
        return integrated_gradients(probe, steps, progress=progress)
    if name == "attention-gradient":
        found = attention_gradient(probe, progress=progress)
    else:
        targets = torch.zeros(2, len(probe.ids))
        targets[[0, 1], list(probe.span)] = 1
        found = rollout(means, targets)[-1]
    return found / found.sum(dim=1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
