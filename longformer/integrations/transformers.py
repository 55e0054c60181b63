"""Our attention inside transformers' own Longformer and LED: the same model, weights and outputs, in less time.

:func:`replace_attention` changes the class of the model's self-attention modules, and nothing else. The modules and
their six linear layers stay the objects that they are. So optimisers, adapters, hooks, checkpoints and the names of the
weights stay what they were, and :func:`restore_attention` needs only to change the classes back.

Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers.models.led import modeling_led
from transformers.models.longformer import modeling_longformer

from longformer.errors import LongformerError
from longformer.kernels import IMPLEMENTATIONS, AttentionPattern, Tokens
from longformer.kernels.compat import in_transform, is_jit_tracing, is_watched
from longformer.models import attention, packed
from longformer.models.batch import can_be_read, pack

__all__ = ["replace_attention", "restore_attention"]

Model = TypeVar("Model", bound=nn.Module)


def replace_attention(model: Model, *, impl: str = "auto") -> Model:
    """Let the self-attention of a transformers Longformer, or of an LED's encoder, be computed by our kernels.

    The outputs are equal to rounding, and so are the gradients; dropout draws other numbers of the same distribution.
    The model is changed in place. Nothing is copied, and no weight changes its name: a pipeline, a Trainer, an adapter
    or an optimiser that holds the model goes on as it is. To do it twice is harmless.

    transformers' own code still computes what ours does not: a call with ``output_attentions=True``, and every call
    while somebody looks inside the attention (a hook on one of its linear layers or on all modules, a mode that sees
    every operator, a transform of ``torch.func``, ``torch.jit.trace``).

    Args:
        model: any model that holds Longformers or LEDs of transformers, with any head, in any wrapper.
        impl: implementation of the kernels, see :func:`longformer.kernels.choose`. The fast ones have no second
            derivative; ``"banded"`` has.

    Returns:
        ``model``.

    Raises:
        LongformerError: the model holds no such attention, or one whose ``forward`` somebody else has replaced, or
            there is no implementation of that name. The model is then left as it was.
    """
    if impl not in IMPLEMENTATIONS:
        raise LongformerError(f"impl is {impl!r}; it must be one of {', '.join(IMPLEMENTATIONS)}")
    found = dict(_of_types(model, {**OURS, **THEIRS}))
    if not found:
        raise LongformerError(
            f"{type(model).__name__} has no self-attention that can be replaced; give a Longformer or an LED of "
            "transformers, such as LongformerForQuestionAnswering or LEDForConditionalGeneration"
        )
    _check_forwards(found)
    for module in found.values():
        module.__class__ = OURS.get(type(module), type(module))
        module.impl = impl
    return model


def restore_attention(model: Model) -> Model:
    """Undo :func:`replace_attention`. A model that it has not changed is left as it is.

    Returns:
        ``model``.

    Raises:
        LongformerError: somebody else has replaced the ``forward`` of one of its attentions since.
    """
    found = dict(_of_types(model, THEIRS))
    _check_forwards(found)
    for module in found.values():
        module.__class__ = THEIRS[type(module)]
        del module.impl
    return model


def _of_types(model: nn.Module, types: Mapping[type, type]) -> Iterator[tuple[str, Any]]:
    """Name and module of those whose class is one of ``types``. A subclass, which may compute otherwise, is not."""
    return ((name, module) for name, module in model.named_modules() if type(module) in types)


def _check_forwards(modules: Mapping[str, nn.Module]) -> None:
    """Raise LongformerError where a ``forward`` on a module itself, which goes before its class's, is another's."""
    for name, module in modules.items():
        if "forward" in module.__dict__:
            if not packed.is_own_method(module, module.__dict__["forward"]):
                raise LongformerError(
                    f"{name} has a forward of its own, as the hooks of the accelerate package put there; remove it "
                    "(accelerate.hooks.remove_hook_from_submodules), and dispatch the model again afterwards"
                )
            del module.forward


class _SelfAttention(attention.LongformerSelfAttention):
    """What both classes below do. Their modules were made by transformers' class, whose attributes they have."""

    replaces: ClassVar[Any]
    one_sided_attn_window_size: int
    dropout: float

    @property
    def pattern(self) -> AttentionPattern:
        """Who attends to whom, by transformers' own attribute, which may be changed."""
        return AttentionPattern((self.one_sided_attn_window_size, self.one_sided_attn_window_size))

    @property
    def dropout_p(self) -> float:  # type: ignore[override]
        return self.dropout

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        """(B, S, C) to a tuple of (B, S, C). Arguments and results are those of transformers' class.

        Args:
            hidden_states: (B, S, C); S need not be a multiple of anything.
            attention_mask: (B, S), negative at padding and positive at global tokens: what the next two say too.
            is_index_masked, is_index_global_attn: (B, S) bool, True at padding and at global tokens.
            is_global_attn: whether there is any global token.
            output_attentions: whether to return the probabilities too.
            others: what another release of transformers may give.
        """
        if output_attentions or others or (not torch.compiler.is_compiling() and self._is_looked_into()):
            return self.replaces.forward(
                self,
                hidden_states,
                attention_mask,
                is_index_masked,
                is_index_global_attn,
                is_global_attn,
                output_attentions,
                **others,
            )
        assert is_index_masked is not None
        known = can_be_read(hidden_states)
        keep = None if known and not is_index_masked.any() else ~is_index_masked
        tokens = Tokens.of(keep, is_index_global_attn if is_global_attn else None)
        if packed.may_serve_attention(self, hidden_states):
            return (self._packed(hidden_states, tokens),)
        return (super().forward(hidden_states, tokens.with_index(counted=known)),)

    def _packed(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        """(B, S, C) to (B, S, C) by the engine, without the padding. Each document's length is its own."""
        batch, seq_len, _ = hidden.shape
        rounded = hidden.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        alike = torch.zeros(1, batch, seq_len, dtype=torch.int64)
        packing = pack(alike, tokens, multiple=packed.ROUNDED if rounded else 1)
        return packing.unpack(packed.self_attention(self, packing.pack(hidden), packing.documents), batch)

    def _is_looked_into(self) -> bool:
        """Whether somebody may see what happens inside. They should see what they saw before."""
        parts = (part for child in self.children() for part in child.modules())
        return (
            is_watched()
            or in_transform()
            or is_jit_tracing()
            or any(
                part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
                for part in parts
            )
        )


# They are called what they replace: torch and accelerate decide by a class's name which modules to keep in one piece.


class LongformerSelfAttention(_SelfAttention, modeling_longformer.LongformerSelfAttention):
    """In place of transformers' class of the same name."""

    replaces = modeling_longformer.LongformerSelfAttention


class LEDEncoderSelfAttention(_SelfAttention, modeling_led.LEDEncoderSelfAttention):
    """In place of transformers' class of the same name."""

    replaces = modeling_led.LEDEncoderSelfAttention


THEIRS: dict[type, type] = {kind: kind.replaces for kind in (LongformerSelfAttention, LEDEncoderSelfAttention)}
OURS: dict[type, type] = {theirs: ours for ours, theirs in THEIRS.items()}
