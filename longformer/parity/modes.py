"""In which mode a model is, and what follows from it: what cannot be recorded so, and which kernel runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longformer.errors import LongformerError
from longformer.kernels import choose
from longformer.models.attention import LongformerSelfAttention
from longformer.parity.table import Value


def check_mode(model: nn.Module, values: Mapping[str, Value], *, probabilities: bool, gradients: bool) -> None:
    """Raise LongformerError, before ``model`` runs, where it is in a mode that cannot be recorded.

    values: by the path of the module that gives them.
    """
    parts = dict(model.named_modules())
    for path, value in values.items():
        part = parts[path]
        dropout_p = getattr(part, "dropout_p", getattr(part, "dropout", 0))  # ours and transformers' name for it
        if probabilities and value.kind == "attention" and part.training and dropout_p:
            raise LongformerError(
                f"attention probabilities are recorded without dropout, and {path} is in training mode with a "
                f"dropout of {dropout_p}: call model.eval(), or set the config's attention_probs_dropout_prob to 0"
            )
    again = [path for path, part in parts.items() if getattr(part, "gradient_checkpointing", False) and part.training]
    if gradients and again:
        raise LongformerError(
            f"{again[0] or 'the model'} has gradient_checkpointing, by which layers run a second time on the way "
            "back, and a value has one result: set it to False to record gradients, or call model.eval()"
        )


def kernel_of(attention: LongformerSelfAttention, hidden: Tensor, output: Tensor) -> str:
    """Which kernel made ``output`` of ``hidden``: where ``impl`` is "auto", the one chosen for the layer's queries."""
    weights = [part.weight for part in (attention.query, attention.key, attention.value)]
    return choose(
        output.new_empty(1, 1, 1, attention.head_dim),
        impl=attention.impl,
        dropout_p=attention.dropout_p if attention.training else 0.0,
        backward=torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, *weights)),
    ).impl
