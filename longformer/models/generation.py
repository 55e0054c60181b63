"""Text from a causal language model, token by token: each new token is drawn from the model's scores for the next one.

Nothing is computed twice: a :class:`longformer.models.causal.Memory` keeps the windows' keys and values, so that a new
token costs the same however long the text has become.

Letters: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.models.batch import check_ids
from longformer.models.causal import Memory

PIECE = 1024  # tokens of a prompt that are read at once


class Model(Protocol):
    """What is needed of a causal language model."""

    config: LongformerConfig
    training: bool

    def extend(self, input_ids: Tensor, memory: Memory) -> Tensor: ...

    def train(self, mode: bool = True) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from its scores.

    Args:
        temperature: divides the scores; 0 takes the best token, and draws nothing.
        top_k: draw among so many of the best tokens; None is all.
        top_p: draw among the fewest best tokens that have this probability together; None is all.
        seed: of the draws; None is another one each time.

    Raises:
        LongformerError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise LongformerError(f"temperature is {self.temperature}; it must be 0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise LongformerError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise LongformerError(f"top_p is {self.top_p}; it must be more than 0 and at most 1")

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B, V) scores to (B, V) probabilities, 0 for tokens that are not drawn. The temperature must be above 0."""
        scores = scores.double() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[1]:
            least = scores.topk(self.top_k, dim=1).indices
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, least, True)
            scores = scores.masked_fill(~kept, -math.inf)
        probabilities = scores.softmax(1)
        if self.top_p is None:
            return probabilities
        ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
        better = ordered.cumsum(1) - ordered  # probability of all better tokens; the best has 0 and always stays
        ordered = ordered.masked_fill(better >= self.top_p, 0)
        return torch.zeros_like(probabilities).scatter(1, order, ordered / ordered.sum(1, keepdim=True))

    def draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """A token for each row of scores: (B, V) to (B,)."""
        if self.temperature == 0:
            return scores.argmax(1)
        return self.probabilities(scores).multinomial(1, generator=generator)[:, 0]

    def generator(self, device: torch.device) -> torch.Generator:
        """Of the draws, at its beginning."""
        draws = torch.Generator(device)
        if self.seed is None:
            draws.seed()
        else:
            draws.manual_seed(self.seed)
        return draws


def next_tokens(model: Model, input_ids: Tensor, sampling: Sampling) -> Iterator[Tensor]:
    """Tokens (B,) that follow (B, S), one after the other without an end. The model must be in ``eval()`` mode.

    The padding token is never drawn.

    Raises:
        LongformerError: ``input_ids`` are no ids of the model, the model's scores are not finite, or there is no
            position for a further token.
    """
    check_ids("input_ids", input_ids, model.config.vocab_size)
    memory, generator = Memory(), sampling.generator(input_ids.device)
    with torch.inference_mode():
        for piece in input_ids.split(PIECE, dim=1):
            logits = model.extend(piece, memory)
    while True:
        scores = logits[:, -1].float()
        if not bool(scores.isfinite().all()):
            raise LongformerError("the model's scores are not finite; its weights are damaged")
        is_padding = torch.arange(scores.shape[1], device=scores.device) == model.config.pad_token_id
        token = sampling.draw(scores.masked_fill(is_padding, -math.inf), generator)
        yield token
        with torch.inference_mode():
            logits = model.extend(token[:, None], memory)


def generate(
    model: Model,
    input_ids: Tensor,
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[Sequence[int]] = (),
) -> Tensor:
    """The ids with further ones behind them: (B, S) int64 to (B, S + new).

    Args:
        model: a causal language model. It computes as in ``eval()`` mode, and is left in the mode that it was in.
        input_ids: at least one token a row. Rows are of one length, without padding.
        max_new_tokens: most tokens to add.
        temperature, top_k, top_p, seed: as for :class:`Sampling`.
        stop: a row ends when its new tokens end with one of these. Behind its end it is filled up with padding, and
            where all rows have ended nothing more is added.

    Raises:
        LongformerError: an argument is out of range, or as for :func:`next_tokens`.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if max_new_tokens < 0:
        raise LongformerError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more")
    if any(len(sequence) == 0 for sequence in stop):
        raise LongformerError("stop holds a sequence without tokens, at which every text would end; leave it out")
    was_training = model.training
    model.train(False)
    try:
        check_ids("input_ids", input_ids, model.config.vocab_size)
        return torch.cat([input_ids, _new_tokens(model, input_ids, sampling, max_new_tokens, stop)], 1)
    finally:
        model.train(was_training)


def _new_tokens(
    model: Model, input_ids: Tensor, sampling: Sampling, most: int, stop: Sequence[Sequence[int]]
) -> Tensor:
    """(B, new)."""
    new = input_ids[:, :0]
    ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    ends = [torch.tensor(sequence, dtype=input_ids.dtype, device=input_ids.device) for sequence in stop]
    if most == 0:
        return new
    for token in next_tokens(model, input_ids, sampling):
        token = token.to(input_ids.dtype).masked_fill(ended, model.config.pad_token_id)
        new = torch.cat([new, token[:, None]], 1)
        for end in ends:
            if new.shape[1] >= len(end):
                ended = ended | (new[:, -len(end) :] == end).all(1)
        if new.shape[1] == most or bool(ended.all()):
            return new
    raise AssertionError("next_tokens has no end")
