"""Every model class in the tiny size of ``tiny_models``, and one batch that takes all ways through it.

``CLASSES`` take the same (B, S) batch; multiple choice wants one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_models import CONFIG, NO_DROPOUT, padded, random_ids
from torch import Tensor, nn

from longformer import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
)
from longformer.models import packed

HEADS = [
    LongformerForQuestionAnswering,
    LongformerForMaskedLM,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerForMultipleChoice,
]
CLASSES = [LongformerModel, *HEADS[:-1]]
SEQ_LEN = 48


def build_class(
    cls: type, config: LongformerConfig = CONFIG, *, dtype: torch.dtype = torch.float64, **arguments: Any
) -> Any:
    """In ``eval()`` mode, without dropout, every weight drawn, biases too."""
    torch.manual_seed(1)
    model = cls(config.replace(**NO_DROPOUT), **arguments)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=config.initializer_range)
            if name.lower().endswith("norm.weight"):
                weight.add_(1)
    torch.manual_seed(0)
    return model.to(dtype).eval()


def encoder_of(model: Any) -> LongformerModel:
    return getattr(model, "longformer", model)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """ids, attention mask and global mask, three (4, 48): padding on both sides; no, few, and many global tokens.

    The same whenever it is asked for.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        ids, mask = padded([random_ids(n) for n in (40, 25, 30, 9)], [0, 3, 0, 0], SEQ_LEN)
    global_mask = torch.zeros_like(ids)
    global_mask[0, [0, 1, 30]] = global_mask[2, :20] = global_mask[3, 0] = 1
    return ids, mask, global_mask


def flat(outputs: tuple[Tensor, ...]) -> Tensor:
    """All numbers that a model gives, in one row."""
    return torch.cat([x.flatten() for x in outputs])


def weighted_sum(outputs: tuple[Tensor, ...]) -> Tensor:
    """A scalar in which every output counts otherwise, to take gradients of."""
    row = flat(outputs)
    return (row * torch.linspace(-1, 1, len(row), dtype=row.dtype)).sum()


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]


@contextmanager
def counted_layers() -> Iterator[list[Tensor]]:
    """What the packed engine's layers are given, in order; empty where the plain model runs."""
    seen: list[Tensor] = []
    run = packed._layer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_layer", lambda layer, hidden, docs: (seen.append(hidden), run(layer, hidden, docs))[1])
        yield seen
