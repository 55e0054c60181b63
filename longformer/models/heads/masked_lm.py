"""Masked language modelling: a score for every word at every token.

Letters: B batch, S sequence, C hidden size, V vocabulary, M tokens that have a label.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.models.heads.base import IGNORED, LabelledHead, check_classes, mean_cross_entropy
from longformer.models.layers import init_weights
from longformer.models.linear import Linear
from longformer.models.outputs import LogitsOutput, ModelOutput


class LongformerLMHead(nn.Module):
    """A dense layer, GELU and LayerNorm, then a product with the word embeddings' shared weights, plus a bias."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(..., C) and (V, C) to (..., V)."""
        hidden = self.layer_norm(F.gelu(self.dense(hidden)))
        return F.linear(hidden.to(word_embeddings.dtype), word_embeddings, self.bias)


class LongformerForMaskedLM(LabelledHead):
    """Masked language modelling: a score for every word at every token. By default no token is global.

    The output's matrix (``lm_head.decoder.weight`` in checkpoints) is the word embeddings' matrix. So training one
    trains the other. Logits are (B, S, V). Labels are (B, S) integers: the right words, and -100 at tokens that are not
    to be predicted. If all are -100, the loss is 0.

    Args:
        config: architecture of the encoder.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
        attention: who attends to whom, as for :class:`LongformerModel`.
    """

    part = "lm_head"
    weights = (
        "lm_head.dense.weight",
        "lm_head.dense.bias",
        "lm_head.layer_norm.weight",
        "lm_head.layer_norm.bias",
        "lm_head.bias",
    )

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        super().__init__(config, impl=impl, attention=attention)
        self.lm_head = LongformerLMHead(config)
        init_weights(self.lm_head, config)

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B, S, V)."""
        return batch, seq_len, config.vocab_size

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        only_targets: bool = False,
        **arguments: Any,
    ) -> LogitsOutput:
        """As :meth:`LabelledHead.forward`.

        Args:
            only_targets: with labels, score only the tokens that have one, about a sixth of the head's work. The
                logits are then (M, V), in order. It needs labels that can be read, so it does not compile.
            arguments: all others, as there.

        Raises:
            LongformerError: as there; or ``only_targets`` without labels.
        """
        masks = (attention_mask, global_attention_mask)
        if not only_targets:
            return super().forward(input_ids, *masks, token_type_ids, position_ids, labels=labels, **arguments)
        if labels is None or input_ids is None or arguments:
            raise LongformerError("only_targets needs input_ids and labels, and gives loss and logits alone")
        self.check_labels(labels, input_ids)
        states = self._encode(
            input_ids, *masks, None, token_type_ids=token_type_ids, position_ids=position_ids
        ).last_hidden_state
        chosen = labels != IGNORED
        logits = self.lm_head(states[chosen], self._words(states))
        return LogitsOutput.of(loss=mean_cross_entropy(logits, labels[chosen]), logits=logits)

    def check_labels(self, labels: Tensor, like: Tensor) -> None:
        """Raise LongformerError where ``labels`` are not (B, S) integers, each a word or -100."""
        check_classes("labels", labels, like.shape, self.config.vocab_size, what="words")

    def _logits(self, encoded: ModelOutput) -> Tensor:
        states = encoded.last_hidden_state
        logits: Tensor = self.lm_head(states, self._words(states))
        return logits

    def _words(self, states: Tensor) -> Tensor:
        """The word embeddings' matrix (V, C).

        An offloader may keep it on meta and load it only while its module is called. Then the module is called here.
        """
        embeddings = self.longformer.embeddings.word_embeddings
        if not embeddings.weight.is_meta or states.is_meta:
            if len(embeddings.weight) != len(self.lm_head.bias):
                raise LongformerError(
                    f"there are {len(embeddings.weight)} word embeddings and lm_head.bias has {len(self.lm_head.bias)} "
                    "numbers; resize the model with its head, model.resize_token_embeddings(...), not the encoder alone"
                )
            return embeddings.weight
        words: Tensor = embeddings(torch.arange(self.config.vocab_size, device=states.device))
        return words
