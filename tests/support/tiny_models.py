"""A Longformer so small that float64 and hundreds of runs cost nothing, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longformer import LongformerConfig, LongformerModel

CONFIG = LongformerConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=66,
    type_vocab_size=2,
    initializer_range=0.2,
    attention_window=8,
)
PAD = CONFIG.pad_token_id
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build(
    config: LongformerConfig = CONFIG, *, dtype: torch.dtype = torch.float64, **arguments: Any
) -> LongformerModel:
    """In ``eval()`` mode, every weight drawn, biases too."""
    torch.manual_seed(1)
    model = LongformerModel(config, **arguments)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=config.initializer_range)
            if name.endswith("LayerNorm.weight"):
                weight.add_(1)
    torch.manual_seed(0)
    return model.to(dtype).eval()


def random_ids(*shape: int) -> Tensor:
    return torch.randint(3, CONFIG.vocab_size, shape)


def states(model: LongformerModel, *arguments: Any, **named: Any) -> Tensor:
    with torch.no_grad():
        return model(*arguments, **named).last_hidden_state


def assert_close(x: Tensor, y: Tensor) -> None:
    """Equal but for float64's rounding."""
    torch.testing.assert_close(x, y, rtol=0, atol=1e-13)


def padded(rows: list[Tensor], shifts: list[int], seq_len: int) -> tuple[Tensor, Tensor]:
    ids, mask = torch.full((len(rows), seq_len), PAD), torch.zeros(len(rows), seq_len, dtype=torch.long)
    for i, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        ids[i, shift : shift + len(row)] = row
        mask[i, shift : shift + len(row)] = 1
    return ids, mask
