"""Tiny models for export, and what eager mode makes of a batch, in float32 and as the truth."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tiny_heads import build_class
from torch import Tensor

from longformer import LongformerConfig
from longformer.exporting.runtime import OnnxModel

WINDOW = 16
CONFIG = LongformerConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,  # torch's exporter takes eight seconds for each
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=4098,
    attention_window=WINDOW,
    initializer_range=0.3,
)
PAD, SEPARATOR = CONFIG.pad_token_id, CONFIG.sep_token_id


def build(cls: type, **changes: Any) -> Any:
    """In float32 and ``eval()`` mode."""
    by_layer = {"attention_window": WINDOW, "attention_dilation": 1}  # a config has them for each of its layers
    return build_class(cls, CONFIG.replace(**{**by_layer, **changes}), dtype=torch.float32)


def questions(batch: int, length: int, padding: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ids (B, S) with three separators each, questions of different lengths, and padding behind the last; the mask."""
    ids, mask = torch.randint(5, CONFIG.vocab_size, (batch, length)), torch.ones(batch, length, dtype=torch.long)
    for b, padded in enumerate(padding):
        ids[b, 0] = CONFIG.bos_token_id
        ids[b, 2 + b : 4 + b] = ids[b, length - padded - 1] = SEPARATOR
        ids[b, length - padded :], mask[b, length - padded :] = PAD, 0
    return ids, mask


def global_tokens(mask: Tensor, number: str) -> Tensor:
    """(B, S) of 0 and 1: no global token, one in each row, or many in the first and few in the others."""
    chosen = torch.zeros_like(mask)
    match number:
        case "one":
            chosen[:, mask.shape[1] // 2] = 1
        case "many":
            chosen[0, ::5] = chosen[1:, 0] = 1
    return chosen


def assert_within_float32(exported: OnnxModel, model: Any, ids: Tensor, *masks: Tensor | None) -> None:
    """Its outputs are as near to those of float64 as eager mode's, but for another order of summing."""
    with torch.no_grad():
        eager, truth = model(ids, *masks), copy.deepcopy(model).double()(ids, *masks)
    actual = exported(ids, *masks)
    assert actual.keys() == eager.keys()
    for name, exact in truth.items():
        usual = (eager[name] - exact).abs().max()
        assert actual[name].shape == exact.shape
        least = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (actual[name] - exact).abs().max() <= 4 * usual.clamp(min=least)
