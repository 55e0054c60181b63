"""``bench transformers``: transformers' own Longformer and LED encoder, with our attention inside and without.

One model serves both contenders: our attention is put in, or taken out, before each run and outside its time. Weights
are random: nothing has to be downloaded, and the time does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longformer.bench.problem import make_document
from longformer.bench.rivals import import_transformers
from longformer.bench.timing import Case, Contender, UnavailableError
from longformer.config import LongformerConfig
from longformer.errors import LongformerError


def longformer_model(config: LongformerConfig) -> nn.Module:
    """transformers' Longformer without a head, in float32."""
    transformers = import_transformers()
    theirs = transformers.LongformerConfig.from_dict(config.to_dict())
    return _drawn(lambda: transformers.LongformerModel(theirs, add_pooling_layer=False))


def led_encoder(config: LongformerConfig) -> nn.Module:
    """An LED's encoder to go with a Longformer: half as many layers, windows twice as wide, else of its sizes.

    To the released base model it gives the encoder of ``allenai/led-base-16384``.
    """
    transformers = import_transformers()
    layers = max(1, config.num_hidden_layers // 2)
    theirs = transformers.LEDConfig(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=config.num_attention_heads,
        decoder_attention_heads=config.num_attention_heads,
        encoder_ffn_dim=config.intermediate_size,
        max_encoder_position_embeddings=16384,
        attention_window=[2 * config.attention_window[0]] * layers,  # type: ignore[index]
        pad_token_id=config.pad_token_id,
    )
    return _drawn(lambda: transformers.LEDModel(theirs).encoder)


def _drawn(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


MODELS = {"LongformerModel": longformer_model, "LED's encoder": led_encoder}


def cases(config: LongformerConfig, *, lengths: Sequence[int], global_tokens: int) -> list[Case]:
    """One forward pass in float32: the Longformer at each length, and LED's encoder at the longest.

    Raises:
        LongformerError: transformers is not installed, or a document of that length is impossible.
    """
    try:
        import_transformers()
    except UnavailableError as error:
        raise LongformerError(str(error)) from None
    from longformer.integrations.transformers import replace_attention, restore_attention

    asked = [("LongformerModel", tokens) for tokens in lengths] + [("LED's encoder", max(lengths))]
    made: dict[str, nn.Module] = {}

    def contender(label: str, change: Callable[[Any], Any], name: str, inputs: dict[str, Tensor]) -> Contender:
        if name not in made:
            made[name] = MODELS[name](config)
        model = made[name]
        return Contender(label, partial(_states, model, inputs), prepare=partial(change, model))

    found = []
    for name, tokens in asked:
        ids = make_document(config, tokens, global_tokens)
        inputs = {"input_ids": ids, "global_attention_mask": (torch.arange(tokens)[None] < global_tokens).long()}
        changes = {"our attention inside": replace_attention, "as it is": restore_attention}
        found.append(
            Case(
                name=f"transformers' {name}, {tokens} tokens, {global_tokens} global, float32",
                settings={
                    "shape": [1, tokens],
                    "global_tokens": global_tokens,
                    "dtype": "float32",
                    "threads": torch.get_num_threads(),
                    "config": config.to_dict(),
                },
                dtype=torch.float32,
                builders={label: partial(contender, label, change, name, inputs) for label, change in changes.items()},
                items=(tokens, "tokens"),
            )
        )
    return found


def _states(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(**inputs).last_hidden_state]
