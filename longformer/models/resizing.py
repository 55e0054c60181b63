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
def resize_embeddings(
    model: Pretrained, rows: int | None, multiple: int | None, *, from_old: bool = True
) -> nn.Embedding:
    """Word embeddings of ``rows`` rows, rounded up to a ``multiple``, of which the first are the model's.

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
    _check_special(model, rows)
    if rows == old.num_embeddings:
        return old
    weight = _resized(old.weight, rows, std=None if from_old else model.config.initializer_range)
    new = nn.Embedding(rows, weight.shape[1], padding_idx=old.padding_idx, _weight=weight)
    new.weight.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def fit_vocabulary(model: Pretrained, embeddings: object) -> None:
    """Give config and bias the number of rows of the word embeddings that are to come.

    Raises:
        LongformerError: they are no module, or give vectors of another size; or a special token has no row.
    """
    if not isinstance(embeddings, nn.Module):
        raise LongformerError(f"the word embeddings are {embeddings!r}; they must be a module such as nn.Embedding")
    weight = getattr(embeddings, "weight", None)
    if not isinstance(weight, Tensor):
        return
    size = model.config.hidden_size
    if weight.dim() != 2 or weight.shape[1] != size:
        raise LongformerError(f"the word embeddings' weight is {tuple(weight.shape)}; it must be (rows, {size})")
    rows = len(weight)
    _check_special(model, rows)
    bias = getattr(getattr(model, "lm_head", None), "bias", None)
    if isinstance(bias, nn.Parameter) and len(bias) != rows:
        resized = nn.Parameter(_resized(bias, rows, std=0), requires_grad=bias.requires_grad)
        setattr(model.get_submodule("lm_head"), "bias", resized)  # noqa: B010 - it is a module of any class to mypy
    if rows != model.config.vocab_size:
        model.config = model.base_model.config = model.config.replace(vocab_size=rows)


def _check_special(model: Pretrained, rows: int) -> None:
    lost = [f"{name} {getattr(model.config, name)}" for name in SPECIAL if getattr(model.config, name) >= rows]
    if lost:
        raise LongformerError(f"with {rows} rows {', '.join(lost)} would have none; keep more rows")


def _resized(old: Tensor, rows: int, *, std: float | None) -> Tensor:
    """(V, ...) to (rows, ...): the first of the old rows, and behind them new ones.

    Args:
        std: None for new rows with the old ones' mean and spread, 0 for their mean alone, else a spread around 0.
    """
    missing = rows - len(old)
    if missing <= 0:
        return old[:rows].clone()
    wide = old.float()
    new = torch.randn(missing, *old.shape[1:], device=old.device)
    if std:
        new = new * std
    else:
        new = wide.mean(0) + new * (wide.std(0, correction=0) if std is None else 0)
    return torch.cat([old, new.to(old.dtype)])
