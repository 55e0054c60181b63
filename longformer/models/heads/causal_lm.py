"""Causal language modelling: a score for every token at the token before it.

Letters: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.models.batch import can_be_read
from longformer.models.causal import LongformerCausalModel, Memory
from longformer.models.generation import generate
from longformer.models.heads.base import Head, mean_cross_entropy
from longformer.models.heads.masked_lm import LanguageModelHead, LongformerLMHead
from longformer.models.layers import init_weights
from longformer.models.outputs import ModelOutput


class LongformerForCausalLM(LanguageModelHead):
    """Causal language modelling: at every token a score for each token that may come next.

    A token sees what stands before it in its window, or by its mask, see :mod:`longformer.models.causal`. The output's
    matrix is the word embeddings' matrix. Logits are (B, S, V). Labels are (B, S) integers, as a rule the ids
    themselves: the logits of a token are compared with the label of the token after it. -100 marks what is not to be
    predicted, and if there is nothing to predict, the loss is 0. No token can be global.

    Args:
        config: architecture. ``attention_window`` is two-sided, as everywhere: 512 lets a token see the 256 tokens
            before itself. ``position_embedding_type`` "relative" has the paper's positions, which know no longest text.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
        attention: who attends to whom, as for :class:`LongformerModel`; what is later is left out. While text is made,
            a layer with a mask keeps the keys and values of all tokens, and not of a window.
    """

    longformer: LongformerCausalModel

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        super(Head, self).__init__()  # not a head's own: its encoder looks ahead
        self.longformer = LongformerCausalModel(config, impl=impl, attention=attention)
        self.lm_head = LongformerLMHead(config)
        init_weights(self.lm_head, config)

    def extend(self, input_ids: Tensor, memory: Memory) -> Tensor:
        """Logits (B, S, V) of further tokens (B, S) behind those in ``memory``, which is brought up to date.

        They are the logits that the whole sequence would have at these tokens.

        Raises:
            LongformerError: more tokens than the model has positions for.
        """
        states = self.longformer.extend(input_ids, memory)
        logits: Tensor = self.lm_head(states, self._words(states))
        return logits

    def generate(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        """The ids with further ones behind them, as :func:`longformer.models.generation.generate` draws them."""
        return generate(
            self,
            input_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )

    def _encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        global_attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        **arguments: Any,
    ) -> ModelOutput:
        for name, mask, marked in (
            ("attention_mask", attention_mask, 2),
            ("global_attention_mask", global_attention_mask, 1),
        ):
            if isinstance(mask, Tensor) and can_be_read(mask) and bool((mask == marked).any()):
                raise LongformerError(
                    f"{name} makes a token global, which would see what comes after it; a causal language model has no "
                    "global tokens"
                )
        return super()._encode(input_ids, attention_mask, None, inputs_embeds, **arguments)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each label, from the logits one token before it."""
        return mean_cross_entropy(logits[:, :-1], labels[:, 1:])
