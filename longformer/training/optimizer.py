"""AdamW: without weight decay for biases and LayerNorms, with layer-wise learning rates, warm-up and linear decay."""

from __future__ import annotations

import re

import torch
from torch import nn

from longformer.training.options import TrainingOptions

LAYER = re.compile(r"\bencoder\.layer\.(\d+)\.")


def make_optimizer(model: nn.Module, options: TrainingOptions, *, fused: bool = True) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient.

    Weight decay applies to matrices and embeddings, not to biases and LayerNorms. A parameter's learning rate is the
    schedule's times ``layer_decay`` to the power of its depth, which is 0 in the head and grows by 1 with each layer
    below it. The parameter group keeps this factor as ``"scale"``.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = 1 + max((int(found[1]) for name, _ in named if (found := LAYER.search(name))), default=-1)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((_depth(name, layers), parameter.dim() >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": options.weight_decay if decays else 0.0,
                "scale": options.layer_decay**depth,
            }
            for (depth, decays), parameters in groups.items()
        ],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=fused,
    )


def _depth(name: str, layers: int) -> int:
    """How far below the head a parameter is: 0 in the head, 1 in the last layer, ``layers`` + 1 in the embeddings."""
    found = LAYER.search(name)
    if found:
        return layers - int(found[1])
    return layers + 1 if "embeddings." in name else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, options: TrainingOptions, step: int, steps: int) -> float:
    """Set and return the learning rate of step ``step`` (from 0) of ``steps``: up in the warm-up, then down towards 0.

    It depends on the step alone, so the schedule has no state to save.
    """
    warmup = int(options.warmup * steps)
    rate = options.learning_rate * min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate
