"""Lower precision for inference: mixed bfloat16, and int8 linear layers.

To run the complete model in bfloat16 or float16, use ``from_pretrained(..., dtype=torch.bfloat16)`` instead.
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
    """Compute the matrix products of the encoder's layers in bfloat16. Changes ``model`` in place.

    Embeddings, residuals, LayerNorms and heads stay in float32, and so does softmax. The layers' matrices take half the
    memory.
    """
    for name, layer in _linear_layers(model).items():
        model.set_submodule(name, Linear.sharing(layer).to(torch.bfloat16))


def use_int8(model: nn.Module) -> None:
    """Compute the encoder's linear layers in int8, by torch's dynamic quantisation. Changes ``model`` in place.

    It is for inference on a CPU only. Everything else, attention included, stays in float32. Weights are rounded once,
    for each output channel. A layer's input is rounded in each call, to the range of its values. The projections for
    global attention stay in float32: few rows pass through them, and the packed engine reads their weights as matrices.

    Raises:
        LongformerError: this build of torch has no engine for quantised products, or the model is not on a CPU.
    """
    if torch.backends.quantized.engine == "none":
        raise LongformerError("this build of torch has no engine for int8 products; use mixed or bfloat16")
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise LongformerError(f"int8 works on the CPU only, and the model is on {device}; use mixed or bfloat16 there")
    kept_in_float32 = {
        id(projection)
        for attention in model.modules()
        if isinstance(attention, LongformerSelfAttention)
        for projection in (attention.query_global, attention.key_global, attention.value_global)
    }
    for name, layer in _linear_layers(model).items():
        if id(layer) not in kept_in_float32:
            model.set_submodule(name, _quantised(layer))


NAMED = {"mixed": use_mixed, "int8": use_int8}
"""Names that ``from_pretrained`` accepts as ``dtype``, besides torch's own types."""


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside the encoder's layers, by name. Heads and pooler are not included."""
    return {
        name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and "encoder.layer." in name
    }


def _quantised(layer: nn.Linear) -> nn.Module:
    plain: Any = layer
    plain.qconfig = per_channel_dynamic_qconfig
    with warnings.catch_warnings():  # torch will move this function, and warns of it
        warnings.filterwarnings("ignore", message="torch.quantize_per", category=UserWarning)
        quantised: nn.Module = Int8Linear.from_float(plain)
    return quantised
