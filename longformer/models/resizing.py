"""Another size of the vocabulary: old rows stay, and new ones are drawn from their mean and spread.

Letters: V vocabulary, C hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from longformer.errors import LongformerError

if TYPE_CHECKING:
    from longformer.models.pretrained import Pretrained

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id")


@torch.no_grad()
def resize_embeddings(model: Pretrained, rows: int | None, multiple: int | None) -> nn.Embedding:
    """Word embeddings of ``rows`` rows, rounded up to a ``multiple``; the bias of a tied output gets that size too.

    Raises:
        LongformerError: a special token would lose its row, or a number is not an int of at least 1.
    """
    old = model.get_input_embeddings()
    if not isinstance(old, nn.Embedding):
        raise LongformerError(f"the word embeddings are a {type(old).__name__}; only an nn.Embedding can be resized")
    rows = old.num_embeddings if rows is None else rows
    for name, number in (("new_num_tokens", rows), ("pad_to_multiple_of", 1 if multiple is None else multiple)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise LongformerError(f"{name} is {number!r}; it must be an int >= 1")
    rows = rows if multiple is None else -(-rows // multiple) * multiple
    lost = [f"{name} {getattr(model.config, name)}" for name in SPECIAL if getattr(model.config, name) >= rows]
    if lost:
        raise LongformerError(f"with {rows} rows {', '.join(lost)} would have none; keep more rows")
    if rows == old.num_embeddings:
        return old
    head = getattr(model, "lm_head", None)
    if head is not None:
        head.bias = nn.Parameter(_resized(head.bias, rows, spread=False), requires_grad=head.bias.requires_grad)
    weight = _resized(old.weight, rows)
    new = nn.Embedding(rows, weight.shape[1], padding_idx=old.padding_idx, _weight=weight)
    new.weight.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


def _resized(old: Tensor, rows: int, *, spread: bool = True) -> Tensor:
    """(V, ...) to (rows, ...): the first of the old rows, and behind them new ones."""
    missing = rows - len(old)
    if missing <= 0:
        return old[:rows].clone()
    wide = old.float()
    new = wide.mean(0).expand(missing, *old.shape[1:])
    if spread:
        new = new + wide.std(0, correction=0) * torch.randn(new.shape, device=old.device)
    return torch.cat([old, new.to(old.dtype)])
