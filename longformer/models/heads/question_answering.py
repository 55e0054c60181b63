"""Extractive question answering: a start and an end score for every token.

Letters: B batch, S sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.errors import ConfigError, LongformerError
from longformer.kernels.compat import assert_in_graph
from longformer.models.batch import can_be_read, check_input
from longformer.models.heads.base import Head, separators
from longformer.models.layers import init_weights
from longformer.models.linear import Linear
from longformer.models.outputs import QuestionAnsweringOutput


class LongformerForQuestionAnswering(Head):
    """Extractive question answering: a start and an end score for every token.

    The input is ``<s> question </s></s> context </s>``. By default every token before the first separator is global:
    ``<s>`` and the question attend to all tokens, and all tokens attend to them.

    Args:
        config: architecture of the encoder, with ``num_labels`` 2. ``from_pretrained(new_head=True)`` sets it.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
        attention: who attends to whom, as for :class:`LongformerModel`.

    Raises:
        ConfigError: ``config.num_labels`` is not 2.
    """

    part = "qa_outputs"
    weights = ("qa_outputs.weight", "qa_outputs.bias")
    targets = ("start_positions", "end_positions")
    fixed_labels = 2

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B, S, 2), start and end."""
        return batch, seq_len, 2

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        if config.num_labels != 2:
            raise ConfigError(
                f"num_labels is {config.num_labels}; question answering has 2, start and end. If qa_outputs has two "
                "rows, write 2 (or two labels in id2label) into config.json; otherwise load another checkpoint, or one "
                "without qa_outputs to train a new head"
            )
        super().__init__(config, impl=impl, attention=attention)
        self.qa_outputs = Linear(config.hidden_size, 2)
        init_weights(self.qa_outputs, config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringOutput:
        """Score every token as start and as end of the answer.

        Args:
            global_attention_mask: as for :class:`LongformerModel`; None makes each row's question global.
            start_positions, end_positions: (B,) or (B, 1) int64, positions of the answers' first and last tokens, for a
                loss. A position of S or more lies outside the row and is left out of the mean.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as for :class:`LongformerModel`.
            output_hidden_states, output_attentions, return_dict: likewise.

        Raises:
            LongformerError: ``global_attention_mask`` is None and a row does not have exactly three separators, or
                there are no ids; only one of the two positions is given, or one below 0; or :class:`LongformerModel`
                refuses an argument.
        """
        if (start_positions is None) != (end_positions is None):
            raise LongformerError("give start_positions and end_positions together, or neither")
        like = check_input(input_ids, inputs_embeds, self.config.hidden_size)
        if start_positions is not None and end_positions is not None:
            start_positions = _checked("start_positions", start_positions, len(like))
            end_positions = _checked("end_positions", end_positions, len(like))
        encoded = self._encode(
            input_ids,
            attention_mask,
            global_attention_mask,
            inputs_embeds,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = encoded.last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):  # two columns are cheap, and they decide the answer
            start_logits, end_logits = self.qa_outputs(hidden).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_cross_entropy(start_logits, start_positions) + _cross_entropy(end_logits, end_positions)) / 2
        output = QuestionAnsweringOutput.of(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            global_attentions=encoded.global_attentions,
        )
        return output.as_asked(return_dict)

    def _global_mask_without_ids(self, inputs_embeds: Tensor) -> Tensor:
        raise LongformerError(
            "without input_ids nobody knows where the question ends; give a global_attention_mask with 1 at <s> and "
            "the question, 0 elsewhere"
        )

    def automatic_global_mask(self, input_ids: Tensor, *, checked: bool = True) -> Tensor:
        """(B, S) bool, True before the first separator of each row: ``<s>`` and the question.

        Raises:
            LongformerError: a row does not have exactly three separators, and is ``checked``. The message gives its
                number.
        """
        return separators(input_ids, self.config, "question answering", checked=checked).cumsum(dim=1) == 0


def _checked(name: str, positions: Tensor, batch: int) -> Tensor:
    """(B,) or (B, 1) to (B,). Raises LongformerError where they are not that, or where one lies before the row."""
    if (
        not isinstance(positions, Tensor)
        or tuple(positions.shape) not in ((batch,), (batch, 1))
        or positions.dtype != torch.int64
    ):
        what = f"{positions.dtype} of shape {tuple(positions.shape)}" if isinstance(positions, Tensor) else positions
        raise LongformerError(f"{name} is {what}; it must be int64 of shape (B,) = ({batch},)")
    if not can_be_read(positions):
        assert_in_graph((positions >= 0).all(), f"{name} below 0")
    elif (least := int(positions.min())) < 0:
        raise LongformerError(
            f"{name} holds {least}; a position counts from 0, and one of S or more says that the answer is outside"
        )
    return positions.flatten()


def _cross_entropy(logits: Tensor, positions: Tensor) -> Tensor:
    """Mean over the rows whose position is below S; 0 if there are none. Computed in at least float32."""
    outside = logits.shape[1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    positions = positions.to(logits.device).clamp(max=outside)
    total = F.cross_entropy(logits, positions, ignore_index=outside, reduction="sum")
    return total / (positions < outside).sum().clamp(min=1)
