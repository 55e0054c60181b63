"""LongformerSelfAttention: project, attend locally, attend globally, merge (arXiv 2004.05150, §3.1).

Letters: B batch, S sequence, H heads, D head dimension, C = H·D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longformer.config import LongformerConfig
from longformer.kernels import Tokens, attend, attend_globally


class LongformerSelfAttention(nn.Module):
    """Sliding-window and global attention of one layer, up to the output projection.

    Every token attends to its window and to the global tokens, through ``query``, ``key`` and ``value``. A global token
    attends to every token instead, through projections of its own.

    Args:
        config: the model's configuration.
        layer: number of the layer, which decides its window and its heads' dilation.
        impl: implementation of the kernels, see :func:`longformer.kernels.choose`.
    """

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str = "auto") -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.pattern = config.pattern(layer)
        self.dropout_p = config.attention_probs_dropout_prob
        self.impl = impl
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.query_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.value_global = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """(B, S, C) to (B, S, C); the rows of padding are 0."""
        dropout_p = self.dropout_p if self.training else 0.0
        query, key, value = (self._split(part(hidden)) for part in (self.query, self.key, self.value))
        out = attend(query, key, value, self.pattern, tokens, dropout_p=dropout_p, impl=self.impl)
        if tokens.is_global is not None:
            parts = (self.query_global, self.key_global, self.value_global)
            query, key, value = (self._split(part(hidden)) for part in parts)
            rows = attend_globally(query, key, value, tokens, dropout_p=dropout_p, impl=self.impl)
            out = torch.where(tokens.is_global[:, None, :, None], rows, out)
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, H, S, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
