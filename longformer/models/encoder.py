"""LongformerModel: token ids in, a vector a token out.

Its layers, in :mod:`longformer.models.layers`, are the plain model. On a CPU, where nobody watches, the same parameters
serve a faster engine, :mod:`longformer.models.packed`, which computes the same numbers without the padding.

Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels.compat import is_jit_tracing
from longformer.models import packed
from longformer.models.batch import can_be_read, check_ids, count_positions, make_tokens
from longformer.models.layers import LongformerEmbeddings, LongformerEncoder, LongformerPooler, init_weights
from longformer.models.pretrained import Pretrained


class ModelOutput(NamedTuple):
    """last_hidden_state: (B, S, C). pooler_output: (B, C), or None in a model without a pooler."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None


class LongformerModel(Pretrained, nn.Module):
    """The encoder: token ids in, a vector a token out.

    Args:
        config: its architecture.
        add_pooling_layer: whether it has the pooler (a head other than multiple choice has no use for it).
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`. With ``"reference"`` the
            plain model runs, whatever the device, with dense attention.
    """

    def __init__(self, config: LongformerConfig, *, add_pooling_layer: bool = True, impl: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.embeddings = LongformerEmbeddings(config)
        self.encoder = LongformerEncoder(config, impl=impl)
        self.pooler = LongformerPooler(config) if add_pooling_layer else None
        init_weights(self, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> ModelOutput:
        """Encode a batch.

        Args:
            input_ids: (B, S) int64 token ids; any S up to ``config.max_tokens``, no multiple of anything.
            attention_mask: (B, S): 0 padding, 1 attend locally, 2 attend globally. None is all 1.
            global_attention_mask: (B, S): 1 at tokens that attend globally, 0 elsewhere; they join those marked 2.
            token_type_ids: (B, S), None is all 0.
            position_ids: (B, S) rows of the position embeddings. By default tokens other than padding count up from
                ``pad_token_id + 1``, and padding has ``pad_token_id``.

        Raises:
            LongformerError: a wrong shape, dtype or value, named; or ``torch.jit.trace``.
        """
        if is_jit_tracing():
            raise LongformerError("torch.jit.trace would keep one input's decisions; torch.export exports this model")
        config = self.config
        check_ids("input_ids", input_ids, config.vocab_size)
        tokens = make_tokens(input_ids, attention_mask, global_attention_mask)
        if position_ids is None:
            position_ids = count_positions(input_ids, config)
        else:
            check_ids("position_ids", position_ids, config.max_position_embeddings, input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        else:
            check_ids("token_type_ids", token_type_ids, config.type_vocab_size, input_ids)
        if packed.may_serve(self, input_ids):
            hidden = packed.encode(self, input_ids, position_ids, token_type_ids, tokens)
        else:
            tokens = tokens.with_index(counted=can_be_read(input_ids))
            hidden = self.encoder(self.embeddings(input_ids, position_ids, token_type_ids), tokens)
        return ModelOutput(hidden, None if self.pooler is None else self.pooler(hidden))
