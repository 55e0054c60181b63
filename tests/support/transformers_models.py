"""Every Longformer and LED of transformers in a tiny size, and one batch that takes all ways through its attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from reference import double_softmax
from torch import Tensor, nn

transformers.logging.set_verbosity_error()  # else it says, on every length, that it pads to a multiple of the window

PAD = 1
LONGFORMERS = tuple(
    f"Longformer{head}"
    for head in (
        "Model",
        "ForMaskedLM",
        "ForMultipleChoice",
        "ForQuestionAnswering",
        "ForSequenceClassification",
        "ForTokenClassification",
    )
)
LEDS = ("LEDModel", "LEDForConditionalGeneration", "LEDForQuestionAnswering")
ATTENTIONS = 3  # in each model, one a layer
SIZES = {
    "vocab_size": 60,
    "attention_window": [8, 16, 4],
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def tiny_config(name: str, **changes: Any) -> Any:
    """Three layers of 32, of unequal windows, without dropout."""
    if name.startswith("LED"):
        sizes = {
            "d_model": 32,
            "encoder_layers": ATTENTIONS,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_encoder_position_embeddings": 128,
            "max_decoder_position_embeddings": 64,
            "decoder_start_token_id": 2,
            "init_std": 0.2,
        }
        drop = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
        return transformers.LEDConfig(**{**SIZES, **sizes, **drop, **changes})
    sizes = {
        "sep_token_id": 2,
        "hidden_size": 32,
        "num_hidden_layers": ATTENTIONS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 130,
        "initializer_range": 0.2,
    }
    drop = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return transformers.LongformerConfig(**{**SIZES, **sizes, **drop, **changes})


def tiny_transformers(name: str, *, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """In ``eval()`` mode, every weight drawn, biases too. The same weights whenever it is asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = getattr(transformers, name)(tiny_config(name, **changes))
        with torch.no_grad():
            for key, weight in model.named_parameters():
                weight.normal_(std=0.2)
                if key.lower().endswith("norm.weight"):
                    weight.add_(1)
    return model.to(dtype).eval()


def attentions_of(model: nn.Module) -> list[Any]:
    """The modules that are replaced, in the order of the layers."""
    ends = (".attention.self", ".longformer_self_attn")
    return [module for name, module in model.named_modules() if name.endswith(ends)]


def batch_for(name: str) -> dict[str, Tensor]:
    """Four rows of 43: padding at the end, at the start and between; three, no, many and one global tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 60, (4, 43), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :3] = mask[1, 28:] = mask[2, 12:15] = mask[3, 9:] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    global_mask = torch.zeros_like(ids)
    global_mask[0, [0, 1, 30]] = global_mask[2, :20] = global_mask[3, 0] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": global_mask}
    if name == "LongformerForMultipleChoice":
        return {key: value.unflatten(0, (2, 2)) for key, value in inputs.items()}
    return {**inputs, "decoder_input_ids": ids[:, :7]} if name.startswith("LED") else inputs


def outputs_of(model: Any, inputs: dict[str, Tensor], **more: Any) -> list[Tensor]:
    """All floating-point results, in order; float64 throughout where the weights are."""
    with double_softmax(model.dtype):
        return _floating(model(**inputs, return_dict=True, **more).to_tuple())


def _floating(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results] if results.is_floating_point() else []
    return [x for each in results for x in _floating(each)] if isinstance(results, (tuple, list)) else []


def differentiate(model: Any, inputs: dict[str, Tensor], **more: Any) -> dict[str, Tensor | None]:
    """Gradients of a weighted sum of the first result, by the parameter's name."""
    model.zero_grad(set_to_none=True)
    with double_softmax(model.dtype):
        first = outputs_of(model, inputs, **more)[0].flatten()
        (first * torch.linspace(-1, 1, len(first), dtype=first.dtype)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}
