"""Classification: of a whole text, of each token, or between several texts.

Letters: B batch, S sequence, C hidden size, N choices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.config import PROBLEM_TYPES, LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels.compat import assert_in_graph
from longformer.models.batch import INTEGERS, can_be_read
from longformer.models.heads.base import LabelledHead, check_classes, separators
from longformer.models.layers import init_weights
from longformer.models.linear import Linear
from longformer.models.outputs import LogitsOutput, ModelOutput

REGRESSION, SINGLE_LABEL, MULTI_LABEL = PROBLEM_TYPES


class LongformerClassificationHead(nn.Module):
    """From the first token: dropout, a dense layer, tanh, dropout, and a projection to the labels."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, C) to (B, labels)."""
        first = torch.tanh(self.dense(self.dropout(hidden[:, 0])))
        scores: Tensor = self.out_proj(self.dropout(first))
        return scores


class LongformerForSequenceClassification(LabelledHead):
    """Classification of, or regression on, a whole text. By default the first token, ``<s>``, is global.

    Logits are (B, num_labels). What labels must be depends on ``config.problem_type``; where that is None, it follows
    from the number of labels and the labels' dtype, as in transformers:

    - "regression", which one label means: (B,) or (B, 1) numbers, or (B, num_labels) for several; mean squared error.
    - "single_label_classification", which integers mean: (B,) or (B, 1), each a class; cross-entropy.
    - "multi_label_classification", which floats mean: (B, num_labels) from 0 to 1; binary cross-entropy.

    Args:
        config: architecture of the encoder, ``num_labels`` and ``problem_type``.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
        attention: who attends to whom, as for :class:`LongformerModel`.
    """

    part = "classifier"
    weights = (
        "classifier.dense.weight",
        "classifier.dense.bias",
        "classifier.out_proj.weight",
        "classifier.out_proj.bias",
    )

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        super().__init__(config, impl=impl, attention=attention)
        self.classifier = LongformerClassificationHead(config)
        init_weights(self.classifier, config)

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B, labels)."""
        return batch, config.num_labels

    def automatic_global_mask(self, input_ids: Tensor, *, checked: bool = True) -> Tensor:
        """(B, S) bool, True at the first token of each row."""
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids) == 0

    def _global_mask_without_ids(self, inputs_embeds: Tensor) -> Tensor:
        return self.automatic_global_mask(inputs_embeds[..., 0])

    def problem_type(self, labels: Tensor) -> str:
        """What ``labels`` are for: the config's, or else by their number and dtype."""
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.config.num_labels == 1:
            return REGRESSION
        return SINGLE_LABEL if labels.dtype in INTEGERS else MULTI_LABEL

    def check_labels(self, labels: Tensor, like: Tensor) -> None:
        """Raise LongformerError where ``labels`` are not what the problem wants, see the class."""
        batch, number = len(like), self.config.num_labels
        if not isinstance(labels, Tensor):
            raise LongformerError(f"labels is a {type(labels).__name__}; it must be a tensor")
        kind = self.problem_type(labels)
        one = labels.flatten() if tuple(labels.shape) == (batch, 1) else labels
        if kind == SINGLE_LABEL:
            check_classes("labels", one, torch.Size([batch]), number)
            return
        shape = (batch,) if number == 1 else (batch, number)
        fits = tuple((one if number == 1 else labels).shape) == shape
        right_kind = labels.is_floating_point() or (kind == REGRESSION and labels.dtype in INTEGERS)
        if not fits or not right_kind:
            raise LongformerError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}; for {kind} it must be floating point, as "
                f"labels.float() gives, of shape {shape}"
            )
        allowed = labels.isfinite() if kind == REGRESSION else (labels >= 0) & (labels <= 1)
        if not can_be_read(labels):
            assert_in_graph(allowed.all(), "labels out of range")
        elif not bool(allowed.all()):
            must = "finite numbers" if kind == REGRESSION else "numbers from 0 to 1"
            raise LongformerError(f"labels holds {labels[~allowed][0].item()}; for {kind} it may hold {must}")

    def _logits(self, encoded: ModelOutput) -> Tensor:
        logits: Tensor = self.classifier(encoded.last_hidden_state)
        return logits

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.problem_type(labels)
        if kind == SINGLE_LABEL:
            return super()._loss(logits, labels)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = labels.reshape(logits.shape).to(logits)
        return F.mse_loss(logits, labels) if kind == REGRESSION else F.binary_cross_entropy_with_logits(logits, labels)


class LongformerForTokenClassification(LabelledHead):
    """A class for every token. By default no token is global.

    Logits are (B, S, num_labels). Labels are (B, S) integers, each a class, or -100 at tokens that do not count. If all
    are -100, the loss is 0.

    Args:
        config: architecture of the encoder, and ``num_labels``.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
        attention: who attends to whom, as for :class:`LongformerModel`.
    """

    part = "classifier"
    weights = ("classifier.weight", "classifier.bias")

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        super().__init__(config, impl=impl, attention=attention)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        init_weights(self.classifier, config)

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B, S, labels)."""
        return batch, seq_len, config.num_labels

    def check_labels(self, labels: Tensor, like: Tensor) -> None:
        """Raise LongformerError where ``labels`` are not (B, S) integers, each a class or -100."""
        check_classes("labels", labels, like.shape, self.config.num_labels)

    def _logits(self, encoded: ModelOutput) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(encoded.last_hidden_state))
        return logits


class LongformerForMultipleChoice(LabelledHead):
    """Which of N texts fits a question. All inputs are (B, N, S) instead of (B, S).

    Each choice is ``<s> question </s></s> choice </s>``. By default every token behind the two separators in the middle
    is global: the choice and the last separator. Logits are (B, N). Labels are (B,) integers, each a choice.

    Args:
        config: architecture of the encoder.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
        attention: who attends to whom, as for :class:`LongformerModel`.
    """

    part = "classifier"
    weights = (
        "classifier.weight",
        "classifier.bias",
        "longformer.pooler.dense.weight",
        "longformer.pooler.dense.bias",
    )

    def __init__(self, config: LongformerConfig, *, impl: str = "auto", attention: Any = None) -> None:
        super().__init__(config, impl=impl, attention=attention, add_pooling_layer=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = Linear(config.hidden_size, 1)
        init_weights(self.classifier, config)

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B·N, 1), a score for every text."""
        return batch, 1

    def automatic_global_mask(self, input_ids: Tensor, *, checked: bool = True) -> Tensor:
        """(B·N, S) bool, True behind the second separator of each row, from its (B·N, S) ids.

        Raises:
            LongformerError: a row does not have exactly three separators, and is ``checked``. The message gives its
                number.
        """
        behind = separators(input_ids, self.config, "multiple choice", checked=checked).cumsum(dim=1) >= 1
        # Counted from the first separator, as the reference does, whatever stands between the first two.
        return (behind.cumsum(dim=1) > 2) & behind

    def _global_mask_without_ids(self, inputs_embeds: Tensor) -> Tensor:
        raise LongformerError(
            "without input_ids nobody knows where the question ends; give a global_attention_mask with 1 at each choice"
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput:
        """As :meth:`LabelledHead.forward`, of (B, N, S) inputs. Hidden states and attentions are of all B·N texts.

        Raises:
            LongformerError: as there; or inputs of another shape than the first, such as masks for fewer choices.
        """
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "global_attention_mask": global_attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        shape = _choices(input_ids, inputs_embeds)
        for name, tensor in given.items():
            if name == "position_ids" and isinstance(tensor, Tensor) and tensor.shape == (1, shape[2]):
                continue  # one row for all texts
            if tensor is not None and (not isinstance(tensor, Tensor) or tensor.shape != shape):
                what = f"has shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"is {_kind(tensor)}"
                raise LongformerError(f"{name} {what}; every input must be (B, N, S) = {tuple(shape)}")
        if labels is not None:
            check_classes("labels", labels, shape[:1], shape[1], what="choices")
        output = super().forward(
            **{
                name: tensor if tensor is None or tensor.dim() == 2 else tensor.flatten(0, 1)
                for name, tensor in given.items()
            },
            inputs_embeds=None if inputs_embeds is None else inputs_embeds.flatten(0, 1),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = output.logits.view(shape[:2])
        loss = None if labels is None else self._loss(logits, labels)
        output = LogitsOutput.of(**{**dict(output.items()), "loss": loss, "logits": logits})
        return output.as_asked(return_dict)

    def _logits(self, encoded: ModelOutput) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(encoded.pooler_output))
        return logits


def _choices(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> torch.Size:
    """(B, N, S). Raises LongformerError where the input has no choices."""
    first = input_ids if inputs_embeds is None else inputs_embeds
    dimensions = 3 if inputs_embeds is None else 4
    if not isinstance(first, Tensor) or first.dim() != dimensions or 0 in first.shape:
        what = f"has shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"is {_kind(first)}"
        name, letters = ("input_ids", "(B, N, S)") if inputs_embeds is None else ("inputs_embeds", "(B, N, S, C)")
        raise LongformerError(
            f"{name} {what}; multiple choice takes a tensor of shape {letters}, as many choices for every question"
        )
    return first.shape[:3]


def _kind(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"
