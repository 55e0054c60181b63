"""The patterns of a model's layers: from its config and from ``attention=``, and what they make of a batch's tokens.

A model without patterns of its own has none of this: then ``LongformerModel.patterns`` is None.

Letters: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import AttentionPattern, GlobalTokens, MaskPattern, Tokens
from longformer.kernels.dispatch import MASKED
from longformer.kernels.masks import Pattern, arguments_of, check_function
from longformer.models.batch import can_be_read
from longformer.pattern_entries import LayerEntry


def choose_patterns(
    config: LongformerConfig, attention: Any, impl: str = "auto"
) -> tuple[LongformerConfig, list[Pattern] | None]:
    """The pattern of each layer, and a config that says them; None if ``attention_window`` says everything.

    Args:
        config: the model's.
        attention, impl: as for :class:`longformer.LongformerModel`.

    Raises:
        LongformerError: ``attention`` does not fit the model, is none of what it may be, or no pattern for ``impl``.
    """
    if attention is None and config.attention_pattern is None:
        return config, None
    layers = range(config.num_hidden_layers)
    given = dict.fromkeys(layers, attention)
    if isinstance(attention, Mapping) and not all(isinstance(key, str) for key in attention):
        given = _by_layer(attention, config.num_hidden_layers)
    elif isinstance(attention, Sequence) and not isinstance(attention, str):
        if len(attention) != config.num_hidden_layers:
            raise LongformerError(
                f"attention lists {len(attention)} layers, and the model has {config.num_hidden_layers}; give one for "
                "each layer, one for all, or a dict by the layers' numbers"
            )
        given = dict(zip(layers, attention, strict=True))
    try:
        patterns = [_of_layer(config, layer, given.get(layer)) for layer in layers]
        known = config.attention_pattern or (LayerEntry(),) * len(layers)
        entries = [known[i] if given.get(i) is None else patterns[i].as_entry() for i in layers]
    except ValueError as error:
        raise error if isinstance(error, LongformerError) else LongformerError(str(error)) from None
    for layer, pattern in enumerate(patterns):
        if not pattern.is_band and impl not in MASKED:
            raise LongformerError(
                f'impl is "{impl}", and the pattern of layer {layer} is no window; "flex" and "reference" compute any '
                'mask, score and union, and "auto" takes one of them'
            )
    return (config if attention is None else config.replace(attention_pattern=entries)), patterns


def _by_layer(attention: Mapping[Any, Any], count: int) -> dict[int, Any]:
    wrong = [layer for layer in attention if not isinstance(layer, int) or not 0 <= layer < count]
    if wrong:
        raise LongformerError(f"attention names layer {wrong[0]!r}; the model has layers 0 to {count - 1}")
    return dict(attention)


def _of_layer(config: LongformerConfig, layer: int, given: Any) -> Pattern:
    if given is None:
        return config.pattern(layer)
    if isinstance(given, (AttentionPattern, MaskPattern)):
        given.gaps(config.num_attention_heads)  # raises where it has dilations for another number of heads
        return given
    if isinstance(given, (str, Mapping)):
        return config.replace(attention_pattern=given).pattern(layer)
    if not callable(given):
        raise LongformerError(
            f"attention of layer {layer} is {given!r}; it must be a pattern, a text such as 'window=128,causal', or a "
            "function of FlexAttention's form mask_mod or score_mod"
        )
    if arguments_of(given) != 5:
        check_function(given, 4)
        return MaskPattern((given,))
    base = config.pattern_without_function(layer)
    if isinstance(base, MaskPattern):
        return replace(base, score=given)
    return MaskPattern((base,), given, base.causal)


def tokens_by_layer(
    patterns: Sequence[Pattern], tokens: Tokens, input_ids: Tensor | None, like: Tensor, *, counted: bool
) -> list[Tokens]:
    """The tokens of each layer: a batch's, with the global tokens of the layer's own pattern, and with their index.

    Args:
        patterns: of the layers.
        tokens: of the batch.
        input_ids: (B, S), or None if the model was given embeddings.
        like: (B, S), of any kind.
        counted: as for :meth:`Tokens.with_index`.

    Raises:
        LongformerError: a pattern asks ids that are not there, or its predicate returns another shape.
    """
    found: dict[GlobalTokens | None, Tokens] = {None: tokens.with_index(counted=counted)}
    for own in {pattern.global_tokens for pattern in patterns} - {None}:
        assert own is not None
        try:
            is_global = own.mask(like, input_ids)
        except ValueError as error:
            raise LongformerError(str(error)) from None
        if tokens.is_global is not None and not own.only_these:
            is_global = is_global | tokens.is_global
        with_own = Tokens.of(tokens.keep, is_global)
        if can_be_read(like) and with_own.is_global is not None and not bool(with_own.is_global.any()):
            with_own = Tokens(tokens.keep)
        found[own] = with_own.with_index(counted=counted)
    return [found[pattern.global_tokens] for pattern in patterns]


def can_be_packed(patterns: Sequence[Pattern], tokens: Tokens) -> bool:
    """Whether the packed engine computes these patterns.

    It lays documents out anew, so that a mask would be asked about other places. It has one set of global tokens for
    all layers, and their rows see every token.

    Args:
        patterns: of the layers.
        tokens: of the first layer, with the global tokens of its own pattern.
    """
    return all(
        pattern.is_band
        and pattern.global_tokens == patterns[0].global_tokens
        and not (pattern.causal and tokens.is_global is not None)
        for pattern in patterns
    )
