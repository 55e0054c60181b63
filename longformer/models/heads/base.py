"""What all heads share: the encoder below them, its arguments, and a loss from labels.

Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels.compat import assert_in_graph
from longformer.models.batch import INTEGERS, can_be_read, check_input
from longformer.models.encoder import LongformerModel
from longformer.models.outputs import LogitsOutput, ModelOutput
from longformer.models.pretrained import Pretrained

IGNORED = -100  # label of what is not to be predicted


class Head(Pretrained):
    """Base of the heads. A head keeps its encoder as ``longformer``.

    part: name of the head's own module, in the class and in checkpoints.
    weights: names of the head's own weights in checkpoints.
    targets: arguments of ``forward`` that hold the right answers. If they are given, ``forward`` computes a loss.
    """

    part: ClassVar[str]
    weights: ClassVar[tuple[str, ...]]
    targets: ClassVar[tuple[str, ...]] = ("labels",)

    longformer: LongformerModel

    def __init__(
        self, config: LongformerConfig, *, impl: str = "auto", add_pooling_layer: bool = False, attention: Any = None
    ) -> None:
        super().__init__()
        self.longformer = LongformerModel(config, add_pooling_layer=add_pooling_layer, impl=impl, attention=attention)

    @property
    def config(self) -> LongformerConfig:
        """The encoder's, so that there is one."""
        return self.longformer.config

    @config.setter
    def config(self, config: LongformerConfig) -> None:
        self.longformer.config = config

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """Shape of the output of the head's own module for a batch."""
        raise NotImplementedError

    def automatic_global_mask(self, input_ids: Tensor, *, checked: bool = True) -> Tensor | None:
        """(B, S) bool, the global tokens if no ``global_attention_mask`` is given; None if no token is global.

        Args:
            input_ids: (B, S).
            checked: whether rows are refused of which a head cannot tell them.
        """
        return None

    def _encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        global_attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        **arguments: Any,
    ) -> ModelOutput:
        """The encoder's output, with the head's own global tokens if no others are given."""
        if global_attention_mask is None:
            if input_ids is not None:
                global_attention_mask = self.automatic_global_mask(input_ids)
            elif inputs_embeds is not None:
                global_attention_mask = self._global_mask_without_ids(inputs_embeds)
        encoded: ModelOutput = self.longformer(
            input_ids, attention_mask, global_attention_mask, inputs_embeds=inputs_embeds, **arguments
        )
        return encoded

    def _global_mask_without_ids(self, inputs_embeds: Tensor) -> Tensor | None:
        """As :meth:`automatic_global_mask`, from (B, S, C). A head whose mask depends on the ids refuses."""
        return None


class LabelledHead(Head):
    """Base of the heads whose right answers are ``labels``."""

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
        """Compute the logits and, if labels are given, the loss.

        Args:
            labels: the right answers, as the class says.
            global_attention_mask: as for :class:`LongformerModel`. None gives the head's own, as the class says.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as for :class:`LongformerModel`.
            output_hidden_states, output_attentions, return_dict: likewise.

        Raises:
            LongformerError: labels have a wrong shape, dtype or value, or :class:`LongformerModel` refuses an argument.
        """
        like = check_input(input_ids, inputs_embeds, self.config.hidden_size)
        if labels is not None:
            self.check_labels(labels, like)
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
        logits = self._logits(encoded)
        output = LogitsOutput.of(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            global_attentions=encoded.global_attentions,
        )
        return output.as_asked(return_dict)

    def check_labels(self, labels: Tensor, like: Tensor) -> None:
        """Raise LongformerError where ``labels`` do not fit the head and an input of the shape of ``like``."""
        raise NotImplementedError

    def _logits(self, encoded: ModelOutput) -> Tensor:
        raise NotImplementedError

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of whole-number labels; a head with another loss overrides it."""
        return mean_cross_entropy(logits, labels)


def separators(input_ids: Tensor, config: LongformerConfig, task: str, *, checked: bool = True) -> Tensor:
    """(B, S) bool, True at the separators of ``<s> question </s></s> context </s>``. ``checked``: or an error.

    Raises:
        LongformerError: a row does not have exactly three separators. The message gives its number.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
        what = f"has shape {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else f"is {input_ids!r}"
        raise LongformerError(f"input_ids {what}; it must be a tensor of shape (B, S)")
    separator = input_ids == config.sep_token_id
    if not checked:
        return separator
    count = separator.sum(dim=1)
    if not can_be_read(input_ids):
        assert_in_graph((count == 3).all(), "a row of input_ids does not have exactly three separators")
        return separator
    wrong = (count != 3).nonzero().flatten().tolist()
    if wrong:
        raise LongformerError(
            f"row {wrong[0]} of input_ids has {int(count[wrong[0]])} separators (id {config.sep_token_id}); "
            f"{task} needs three: <s> question </s></s> context </s>; "
            "use tokenizer(question, context), or give a global_attention_mask"
        )
    return separator


def check_classes(name: str, labels: Tensor, shape: torch.Size, classes: int, *, what: str = "classes") -> None:
    """Raise LongformerError where ``labels`` are not integers of ``shape``, each a class or ``IGNORED``."""
    if not isinstance(labels, Tensor) or labels.shape != shape or labels.dtype not in INTEGERS:
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
        raise LongformerError(f"{name} is {kind}; it must be int64 of shape {tuple(shape)}")
    allowed = (labels == IGNORED) | ((labels >= 0) & (labels < classes))
    if not can_be_read(labels):
        assert_in_graph(allowed.all(), f"{name} out of range")
    elif not bool(allowed.all()):
        raise LongformerError(
            f"{name} holds {int(labels[~allowed][0])}; it may hold {IGNORED} (not to be predicted) and the {what} 0 to "
            f"{classes - 1}"
        )


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that are not ``IGNORED``; 0 if all are. Computed in at least float32.

    Args:
        logits: (..., classes).
        labels: (...) integers.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    labels = labels.to(logits.device, torch.int64).flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)
