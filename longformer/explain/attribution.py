"""Attribution: how much each token counts for the start score and the end score of an answer.

Three methods. *Integrated gradients* (Sundararajan et al. 2017, arXiv 1703.01365, §3): the gradient of a score with
respect to the embeddings, averaged over a straight line from the embeddings of a row without the tokens to those of the
real row, times what the embeddings differ by. The parts of all tokens sum to what the score differs by, but for the
error of the average (completeness). *Attention × gradient* (Chefer et al. 2021, arXiv 2103.15679, eq. 5 and 6): a
rollout of the attention probabilities, each times the score's gradient with respect to it, where that is positive.
*Rollout* is that of :mod:`longformer.explain.rollout`, from the answer's first and from its last token.

A token is taken out by putting the embedding of the padding token in its place, at the same position. It still attends
and is attended to.

Letters: S sequence, C hidden size, N rows of a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as Int8Linear
from tqdm import tqdm

from longformer.answering.answerer import BATCH_TOKENS, QuestionAnswerer
from longformer.answering.mode import evaluating
from longformer.explain.methods import STEPS
from longformer.explain.probabilities import Attention, Layer, means_of_heads, observed
from longformer.explain.rollout import carried_back
from longformer.models.batch import count_positions


def has_gradients(model: nn.Module) -> bool:
    """Whether gradients go through the whole model. Through linear layers in int8 they do not."""
    return not any(isinstance(part, Int8Linear) for part in model.modules())


def global_mask_of(answerer: QuestionAnswerer, ids: Tensor) -> Tensor:
    """Which tokens of a row (S,) the answerer makes global: (1, S) bool."""
    choose = answerer.global_mask or answerer.model.automatic_global_mask
    return choose(ids[None])


class Probe:
    """The start score and the end score of one span, as functions of what stands at the tokens of one row.

    Args:
        answerer: whose model it is.
        ids: (S,) int64, the row.
        span: its first and last token.
        removable: (S,) bool, the tokens that may be taken out; the others always stay.
    """

    def __init__(self, answerer: QuestionAnswerer, ids: Tensor, span: tuple[int, int], removable: Tensor) -> None:
        self.model, self.span = answerer.model, span
        self.removable = removable
        device = next(self.model.parameters()).device
        row = ids[None]
        self._given = {
            "attention_mask": torch.ones_like(row),
            "global_attention_mask": global_mask_of(answerer, ids).long(),
            "position_ids": count_positions(row, row, self.model.config),
        }
        self._given = {name: value.to(device) for name, value in self._given.items()}
        self.ids = ids.to(device)

    @property
    def batch_rows(self) -> int:
        """How many rows are computed at once, so that memory stays that of one row of BATCH_TOKENS tokens."""
        return max(1, BATCH_TOKENS // len(self.ids))

    def without(self, absent: Tensor) -> Tensor:
        """The two scores where tokens are taken out: (N, S) bool to (N, 2) float64 on the CPU."""
        ids = self.ids.masked_fill(absent.to(self.ids.device), self.model.config.pad_token_id)
        with torch.inference_mode(), evaluating(self.model) as model:
            return self._scores(model, ids).cpu().double()

    def states(self, absent: Tensor) -> Tensor:
        """What the layers are given where tokens are taken out: (S,) bool to (S, C)."""
        ids = self.ids.masked_fill(absent.to(self.ids.device), self.model.config.pad_token_id)[None]
        with torch.no_grad(), evaluating(self.model) as model:
            part: Any = model.longformer
            (states,) = part.embeddings(ids, self._given["position_ids"], torch.zeros_like(ids))
        return states

    def at(self, states: Tensor) -> Tensor:
        """The two scores where the layers are given ``states``: (N, S, C) to (N, 2), with gradients."""
        with evaluating(self.model) as model, _put_behind(self.model.longformer.embeddings, states):
            return self._scores(model, self.ids.expand(len(states), -1))

    def _scores(self, model: Any, ids: Tensor) -> Tensor:
        given = {name: value.expand(len(ids), -1) for name, value in self._given.items()}
        start_logits, end_logits = model(ids, **given)
        return torch.stack([start_logits[:, self.span[0]], end_logits[:, self.span[1]]], dim=1)


@contextmanager
def _put_behind(module: nn.Module, output: Tensor) -> Iterator[None]:
    """While this is open, ``module`` gives ``output`` in this thread."""
    thread = threading.get_ident()
    handle = module.register_forward_hook(lambda *_: output if threading.get_ident() == thread else None)
    try:
        yield
    finally:
        handle.remove()


def integrated_gradients(probe: Probe, steps: int = STEPS, *, progress: bool | None = False) -> Tensor:
    """Each token's part in the difference that all removable tokens make to the start score and the end score.

    Memory is that of a few steps, as many as ``probe.batch_rows``, since their sum is all that is kept.

    Args:
        probe: the span's scores.
        steps: at how many places of the line gradients are taken, each in the middle of an equal part of it.
        progress: show a bar on standard error; None is where that is a terminal.

    Returns:
        (2, S) float32 on the CPU.
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        tqdm(total=steps, desc="integrated gradients", disable=None if progress is None else not progress) as bar,
    ):
        real, bare = probe.states(torch.zeros_like(probe.removable)), probe.states(probe.removable)
        difference = real - bare
        total = torch.zeros(2, *real.shape, device=real.device)
        places = (torch.arange(steps, device=real.device) + 0.5) / steps
        for part in places.split(probe.batch_rows):
            states = (bare + part[:, None, None].to(real) * difference).requires_grad_()
            scores = probe.at(states)
            for side in (0, 1):
                (slope,) = torch.autograd.grad(scores[:, side].sum(), states, retain_graph=side == 0)
                total[side] += slope.sum(0)
            bar.update(len(part))
        return (difference.float() * total / steps).sum(-1).cpu()


def attention_gradient(probe: Probe, *, progress: bool | None = False) -> Tensor:
    """Rollout of attention × gradient, for the start score and the end score: (2, S) float32 on the CPU.

    The token whose score it is begins with 1, for the way past all attention. No matrix of S × S is made: as in
    :mod:`longformer.explain.rollout` a vector is carried back along the band.

    Args:
        probe: the span's scores.
        progress: show a bar on standard error; None is where that is a terminal.
    """
    seen: list[tuple[Layer, Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        states = probe.states(torch.zeros_like(probe.removable)).requires_grad_()
        with observed(probe.model, lambda layer, output: seen.append((layer, output))):
            scores = probe.at(states[None])[0]
        outputs = [output for _, output in seen]
        slopes = [torch.autograd.grad(scores[side], outputs, retain_graph=side == 0) for side in (0, 1)]
    weights = torch.zeros(2, len(probe.ids))
    for side, token in enumerate(probe.span):
        weights[side, token] = 1
    heads = sum(layer.module.num_heads for layer, _ in seen)
    with tqdm(total=heads, desc="attention × gradient", disable=None if progress is None else not progress) as bar:

        def counted(products: Iterator[list[Attention]]) -> Iterator[list[Attention]]:
            for product in products:
                bar.update()
                yield product

        for (layer, _), *both in zip(reversed(seen), *map(reversed, slopes), strict=True):
            means = means_of_heads(counted(layer.products([slope[0] for slope in both])))
            weights += torch.cat([carried_back(part[None], mean) for part, mean in zip(weights, means, strict=True)])
    return weights
