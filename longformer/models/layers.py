"""The plain model's layers: (B, S, C) from the first line to the last, every module called once, in the paper's order.

A reader, a hook, an adapter, a compiler and a GPU see them as they stand here. Read :class:`LongformerEncoder` first,
and :mod:`longformer.models.attention` where it leads there. Names of parameters are those of the released checkpoints.

Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longformer.config import LongformerConfig
from longformer.kernels import Tokens
from longformer.models.attention import AttentionProbabilities, LongformerSelfAttention
from longformer.models.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class LongformerEmbeddings(nn.Module):
    """Sum of word, position and token type embeddings, then LayerNorm and dropout."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        pad = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=pad)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor,
        token_type_ids: Tensor,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Three (B, S) of int64 to (B, S, C). ``inputs_embeds`` (B, S, C) stand in place of the words' embeddings."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        embeddings = words + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings + self.token_type_embeddings(token_type_ids)))


class LongformerOutput(nn.Module):
    """End of a sublayer: projection back to C, dropout, residual, LayerNorm (post-norm, as in BERT)."""

    def __init__(self, config: LongformerConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, S, in_features) and (B, S, C) to (B, S, C)."""
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class LongformerAttention(nn.Module):
    """Self-attention sublayer. ``self`` and ``output`` are the checkpoints' names of its two halves."""

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str) -> None:
        super().__init__()
        self.self = LongformerSelfAttention(config, layer, impl=impl)
        self.output = LongformerOutput(config, config.hidden_size)

    def forward(
        self, hidden: Tensor, tokens: Tokens, probabilities: list[AttentionProbabilities] | None = None
    ) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        return self.output(self.self(hidden, tokens, probabilities), hidden)


class LongformerIntermediate(nn.Module):
    """First half of the feed-forward sublayer: projection to the wide layer, activation."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, C) to (B, S, intermediate_size)."""
        return self.activation(self.dense(hidden))


class LongformerLayer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str) -> None:
        super().__init__()
        self.attention = LongformerAttention(config, layer, impl=impl)
        self.intermediate = LongformerIntermediate(config)
        self.output = LongformerOutput(config, config.intermediate_size)

    def forward(
        self, hidden: Tensor, tokens: Tokens, probabilities: list[AttentionProbabilities] | None = None
    ) -> Tensor:
        """(B, S, C) to (B, S, C)."""
        hidden = self.attention(hidden, tokens, probabilities)
        return self.output(self.intermediate(hidden), hidden)


class LongformerEncoder(nn.Module):
    """The stack of layers.

    Attributes:
        gradient_checkpointing: in training keep the input of each layer alone, and compute the rest again on the way
            back: memory of one layer instead of all, for a third more time.
    """

    def __init__(self, config: LongformerConfig, *, impl: str) -> None:
        super().__init__()
        self.layer = nn.ModuleList(LongformerLayer(config, i, impl=impl) for i in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden: Tensor,
        tokens: Tokens | list[Tokens],
        states: list[Tensor] | None = None,
        probabilities: list[AttentionProbabilities] | None = None,
    ) -> Tensor:
        """(B, S, C) to (B, S, C).

        Args:
            hidden: the embeddings.
            tokens: which of them are padding, and which are global; a list says it by layer.
            states: a list that is given the embeddings and every layer's output.
            probabilities: a list that is given every layer's; layers are then not computed again on the way back.
        """
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled() and probabilities is None
        by_layer = tokens if isinstance(tokens, list) else [tokens] * len(self.layer)
        for layer, own in zip(self.layer, by_layer, strict=True):
            if states is not None:
                states.append(hidden)
            if again:
                hidden = checkpoint(layer, hidden, own, use_reentrant=False)
            else:
                hidden = layer(hidden, own, probabilities)
        if states is not None:
            states.append(hidden)
        return hidden


class LongformerPooler(nn.Module):
    """tanh of a projection of the first token."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, C) to (B, C)."""
        return torch.tanh(self.dense(hidden[:, 0]))


def init_weights(module: nn.Module, config: LongformerConfig) -> None:
    """Fresh weights: matrices normal with ``initializer_range``, biases 0, LayerNorms 1 and 0, padding rows 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        bias = getattr(part, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
