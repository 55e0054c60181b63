"""Small causal language models, and their attention by the plain formula over all S × S pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longformer import LongformerConfig, LongformerForCausalLM
from longformer.models.causal import CausalSelfAttention


def causal_config(**changes: Any) -> LongformerConfig:
    """Three layers of four heads, two of which have gaps in the layer at the top."""
    values: dict[str, Any] = {
        "vocab_size": 11,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 130,
        "attention_window": (4, 6, 10),
        "attention_dilation": (1, 2, (1, 1, 2, 3)),
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "sep_token_id": 0,
        "position_embedding_type": "relative",
    }
    return LongformerConfig(**{**values, **changes})


def causal_model(*, attention: Any = None, **changes: Any) -> LongformerForCausalLM:
    """Such a model with random weights in float64, in ``eval()`` mode. u, v and biases are not 0."""
    model = LongformerForCausalLM(causal_config(**changes), attention=attention).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.3)
            elif "LayerNorm" in name or "layer_norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dense_attention(layer: CausalSelfAttention, hidden: Tensor, left: int, gaps: tuple[int, ...]) -> Tensor:
    """(B, S, C) to (B, S, C) by the formula of Transformer-XL for all S × S pairs, with a mask made by hand.

    ``left`` and ``gaps`` are said here, and not asked of the layer's pattern.
    """

    def sees(head: int, row: int, column: int) -> bool:
        back = row - column
        return 0 <= back <= left * gaps[head] and back % gaps[head] == 0

    return attention_of_pairs(layer, hidden, sees)


def attention_of_pairs(
    layer: CausalSelfAttention,
    hidden: Tensor,
    sees: Callable[[int, int, int], bool],
    bias: Callable[[int, int, int], float] = lambda h, i, j: 0.0,
) -> Tensor:
    """The same where head h of row i sees column j as ``sees`` says, with ``bias`` added to the scaled score."""
    seq_len, size = hidden.shape[1:]
    heads, dim = layer.num_heads, layer.head_dim
    query, key, value = (part(hidden).unflatten(-1, (heads, dim)) for part in (layer.query, layer.key, layer.value))
    scores = torch.einsum("bihd,bjhd->bhij", query, key)
    if layer.is_relative:
        # Of every pair the encoding of its own distance; that of a later token is never used.
        places = torch.stack([encoded(abs(i - j), size) for i in range(seq_len) for j in range(seq_len)])
        places = layer.position(places).view(seq_len, seq_len, heads, dim)
        scores = scores + torch.einsum("hd,bjhd->bhj", layer.content_bias, key)[:, :, None]
        scores = scores + torch.einsum("bihd,ijhd->bhij", query + layer.position_bias, places)
    triples = list(itertools.product(range(heads), range(seq_len), range(seq_len)))
    seen, added = (torch.tensor([f(*triple) for triple in triples]).view(heads, seq_len, seq_len) for f in (sees, bias))
    weights = (scores / math.sqrt(dim) + added).masked_fill(~seen, -math.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2)


def encoded(distance: int, size: int) -> Tensor:
    """The sinusoids of a distance, (size,), each by its own formula."""
    half = size // 2
    angles = [distance / 10_000 ** (k / half) for k in range(half)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)
