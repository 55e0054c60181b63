"""Lower precision for inference: mixed bfloat16, and int8 linear layers.

Whole-model bfloat16 or float16 needs nothing of this: it is ``from_pretrained(..., dtype=torch.bfloat16)``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as Int8Linear
from torch.ao.quantization import per_channel_dynamic_qconfig

from longformer.errors import LongformerError
from longformer.models.attention import LongformerSelfAttention
from longformer.models.linear import Linear


def use_mixed(model: nn.Module) -> None:
    """Matrix products of ``model``'s layers in bfloat16; embeddings, residuals, LayerNorms and heads stay float32.

    In place. Softmax is computed in float32 in any case. The layers' matrices take half the memory.
    """
    for name, layer in _linear_layers(model).items():
        model.set_submodule(name, Linear.sharing(layer).to(torch.bfloat16))


def use_int8(model: nn.Module) -> None:
    """``model``'s linear layers in int8, by torch's dynamic quantisation; all else, and all attention, in float32.

    In place, for inference on a CPU alone. Weights are rounded once, by output channel; each layer's input is rounded
    as it comes, to the range that it has. The projections for global attention stay as they are: few rows go through
    them, and the others' weights are read as matrices.

    Raises:
        LongformerError: this build of torch has no engine for quantised products, or the model is not on a CPU.
    """
    if torch.backends.quantized.engine == "none":
        raise LongformerError("this build of torch has no engine for int8 products; use mixed or bfloat16")
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise LongformerError(f"int8 works on the CPU, and the model is on {device}; use mixed or bfloat16 there")
    spared = {
        id(projection)
        for attention in model.modules()
        if isinstance(attention, LongformerSelfAttention)
        for projection in (attention.query_global, attention.key_global, attention.value_global)
    }
    for name, layer in _linear_layers(model).items():
        if id(layer) not in spared:
            model.set_submodule(name, _quantised(layer))


NAMED = {"mixed": use_mixed, "int8": use_int8}
"""What ``from_pretrained`` takes as ``dtype`` beside torch's own."""


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the encoder's stack, by name; heads and pooler are not among them."""
    return {
        name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and "encoder.layer." in name
    }


def _quantised(layer: nn.Linear) -> nn.Module:
    plain: Any = layer
    plain.qconfig = per_channel_dynamic_qconfig
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.quantize_per", category=UserWarning)  # a later torch moves it
        quantised: nn.Module = Int8Linear.from_float(plain)
    return quantised
