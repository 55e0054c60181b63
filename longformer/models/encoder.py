"""LongformerModel: token ids in, a vector a token out.

Its layers, in :mod:`longformer.models.layers`, are the plain model. On a CPU, where nobody watches, the same parameters
serve a faster engine, :mod:`longformer.models.packed`, which computes the same numbers without the padding.

Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import Tokens
from longformer.kernels.compat import in_transform
from longformer.models import packed
from longformer.models.attention import AttentionProbabilities, LongformerSelfAttention
from longformer.models.batch import can_be_read, check_ids, check_input, count_positions, make_tokens
from longformer.models.layers import (
    LongformerEmbeddings,
    LongformerEncoder,
    LongformerLayer,
    LongformerPooler,
    init_weights,
)
from longformer.models.outputs import ModelOutput
from longformer.models.patterns import choose_patterns, tokens_by_layer
from longformer.models.pretrained import Pretrained


class LongformerModel(Pretrained, nn.Module):
    """The encoder: token ids in, a vector a token out.

    Args:
        config: its architecture.
        add_pooling_layer: whether it has the pooler (a head other than multiple choice has no use for it).
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`. With ``"reference"`` the
            plain model runs, whatever the device, with dense attention.
        attention: who attends to whom, in place of what the config says. One for all layers, a list of one for each, or
            a dict by their numbers, of which others stay as they are. Each is a pattern of ``longformer.kernels``; a
            text, see :mod:`longformer.pattern_entries`; or a function of FlexAttention's form: ``mask_mod`` takes the
            window's place, ``score_mod`` changes the scores within the layer's pattern. A config keeps of a function
            the name alone, and whoever loads the model gives it again.

    Raises:
        LongformerError: ``attention`` does not fit the model.
        ConfigError: the config says that a layer was made with a function, and it is not given.
    """

    def __init__(
        self, config: LongformerConfig, *, add_pooling_layer: bool = True, impl: str = "auto", attention: Any = None
    ) -> None:
        super().__init__()
        self.config, self.patterns = choose_patterns(config, attention, impl)
        self.impl = impl
        self.embeddings = LongformerEmbeddings(config)
        self.encoder = LongformerEncoder(self.config, impl=impl)
        for layer, pattern in zip(self.encoder.layer, self.patterns or (), strict=self.patterns is not None):
            assert isinstance(layer, LongformerLayer)
            layer.attention.self.set_pattern(pattern)
        self.pooler = LongformerPooler(config) if add_pooling_layer else None
        init_weights(self, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput:
        """Encode a batch.

        Args:
            input_ids: (B, S) int64 token ids; any S up to ``config.max_tokens``, no multiple of anything.
            attention_mask: (B, S): 0 padding, 1 attend locally, 2 attend globally. None is all 1.
            global_attention_mask: (B, S): 1 at tokens that attend globally, 0 elsewhere; they join those marked 2.
            token_type_ids: (B, S), None is all 0.
            position_ids: (B, S) or (1, S) rows of the position embeddings. By default tokens other than padding count
                up from ``pad_token_id + 1``, and padding has ``pad_token_id``.
            inputs_embeds: (B, S, C) in place of ``input_ids`` and their embeddings. By default all positions count.
            output_hidden_states, output_attentions: whether the output has them, see :class:`ModelOutput`. None is no.
            return_dict: False gives a plain tuple.

        Raises:
            LongformerError: a wrong shape, dtype or value, named; ids and embeddings both, or neither; or
                ``torch.jit.trace``.
        """
        like = check_input(input_ids, inputs_embeds, self.config.hidden_size)
        if input_ids is not None:
            check_ids("input_ids", input_ids, self.config.vocab_size)
        elif inputs_embeds is not None:
            self._check_precision(inputs_embeds)
        tokens = make_tokens(like, attention_mask, global_attention_mask)
        position_ids, token_type_ids = self._other_ids(input_ids, like, position_ids, token_type_ids)
        states: list[Tensor] | None = [] if output_hidden_states else None
        probabilities: list[AttentionProbabilities] | None = [] if output_attentions else None
        by_layer: list[Tokens] | None = None
        if self.patterns is not None:
            by_layer = tokens_by_layer(self.patterns, tokens, input_ids, like, counted=self._counts(like))
            tokens = by_layer[0]  # which the packed engine takes if it is that of all layers
        is_asked = output_hidden_states or output_attentions
        if input_ids is not None and not is_asked and packed.may_serve(self, input_ids, tokens):
            hidden = packed.encode(self, input_ids, position_ids, token_type_ids, tokens)
        else:
            tokens = tokens.with_index(counted=self._counts(like))
            hidden = self.embeddings(input_ids, position_ids, token_type_ids, inputs_embeds)
            hidden = self.encoder(hidden, by_layer or tokens, states, probabilities)
        unused = [by_layer is None and tokens.is_global is None, *(own.is_global is None for own in by_layer or ())]
        if any(unused) and torch.is_grad_enabled() and _can_be_joined():
            hidden = _Joined.apply(hidden, *self._global_projections(unused[1:]))
        output = ModelOutput.of(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            hidden_states=None if states is None else tuple(states),
            **_attentions(probabilities),
        )
        return output.as_asked(return_dict)

    def _check_precision(self, inputs_embeds: Tensor) -> None:
        given, own = inputs_embeds.dtype, self.embeddings.position_embeddings.weight.dtype
        if torch.promote_types(given, own) != own and not torch.is_autocast_enabled(inputs_embeds.device.type):
            raise LongformerError(f"inputs_embeds is {given} and the model {own}; convert one: inputs_embeds.to({own})")

    def _other_ids(
        self, input_ids: Tensor | None, like: Tensor, position_ids: Tensor | None, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions and token types, (B, S) each."""
        config = self.config
        if position_ids is None:
            position_ids = count_positions(input_ids, like, config)
        else:
            if isinstance(position_ids, Tensor) and position_ids.shape == (1, like.shape[1]):
                position_ids = position_ids.expand(like.shape)
            check_ids("position_ids", position_ids, config.max_position_embeddings, like)
        if token_type_ids is None:
            return position_ids, torch.zeros_like(position_ids)
        check_ids("token_type_ids", token_type_ids, config.type_vocab_size, like)
        return position_ids, token_type_ids

    def _counts(self, like: Tensor) -> bool:
        """Whether there are as many global columns as the data have global tokens, and not as many as tokens.

        In a graph there are where the attention is to be linear in length.
        """
        return can_be_read(like) or (self.impl == "chunked" and torch.compiler.is_compiling())

    def _global_projections(self, of_layer: Sequence[bool]) -> Iterable[Tensor]:
        """Parameters that have no part in a batch without global tokens: of these layers, or of all."""
        for n, layer in enumerate(self.encoder.layer):
            if of_layer and not of_layer[n]:
                continue
            attention = getattr(layer, "attention", None)
            attention = getattr(attention, "self", None)
            if isinstance(attention, LongformerSelfAttention):
                for part in (attention.query_global, attention.key_global, attention.value_global):
                    yield from part.parameters()


def _attentions(probabilities: list[AttentionProbabilities] | None) -> dict[str, tuple[Tensor, ...] | None]:
    """The entries of an output, each layer's columns before its band."""
    if probabilities is None:
        return {}
    rows = [p.band[..., :0] if p.rows is None else p.rows.mT for p in probabilities]  # a layer may have no global token
    return {
        "attentions": tuple(p.band if p.columns is None else torch.cat([p.columns, p.band], -1) for p in probabilities),
        "global_attentions": tuple(rows) if any(p.rows is not None for p in probabilities) else None,
    }


def _can_be_joined() -> bool:
    """Whether unused parameters may be made a part of the result.

    Alone in a graph they may not: there their gradients would be 0, in place of None, and weight decay would act.
    """
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    return not in_transform() and not (alone and torch.compiler.is_compiling())


class _Joined(torch.autograd.Function):
    """Its first argument, as if it depended on the others too. Their gradients are None.

    DistributedDataParallel waits in every step for every parameter that the result depends on.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *unused: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in ctx.needs_input_grad[1:])
