"""The heads, which solve a task on top of the encoder: question answering and masked language modelling.

Everything about a head is said on its class, see :class:`Head`. The table ``HEADS`` at the end lists the heads.
Conversion and parity use this table. The package exports a new head in ``longformer/__init__.py``.

Letters: B batch, S sequence, C hidden size, V vocabulary, M tokens that have a label.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.errors import ConfigError, LongformerError
from longformer.kernels.compat import assert_in_graph, register_output
from longformer.models.batch import can_be_read
from longformer.models.encoder import LongformerModel
from longformer.models.layers import init_weights
from longformer.models.linear import Linear
from longformer.models.pretrained import Pretrained

IGNORED = -100  # label of a token that is not to be predicted


class Head(Pretrained):
    """Base of the heads. A head keeps its encoder as ``longformer``.

    part: name of the head's own module, in the class and in checkpoints.
    targets: arguments of ``forward`` that hold the right answers. If they are given, ``forward`` computes a loss.
    """

    part: ClassVar[str]
    targets: ClassVar[tuple[str, ...]]

    longformer: LongformerModel

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """Shape of the output of the head's own module for a batch."""
        raise NotImplementedError

    def automatic_global_mask(self, input_ids: Tensor) -> Tensor | None:
        """(B, S) bool, the global tokens if no ``global_attention_mask`` is given; None if no token is global."""
        return None


class QuestionAnsweringOutput(NamedTuple):
    """start_logits, end_logits: (B, S), unnormalised log-probability that the answer starts or ends at a token."""

    start_logits: Tensor
    end_logits: Tensor


class QuestionAnsweringLoss(NamedTuple):
    """loss: scalar, mean cross-entropy of start and end. start_logits, end_logits: (B, S)."""

    loss: Tensor
    start_logits: Tensor
    end_logits: Tensor


class LongformerForQuestionAnswering(Head):
    """Extractive question answering: a start and an end score for every token.

    The input is ``<s> question </s></s> context </s>``. By default every token before the first separator is global:
    ``<s>`` and the question attend to all tokens, and all tokens attend to them.

    Args:
        config: architecture of the encoder, with ``num_labels`` 2. ``from_pretrained(new_head=True)`` sets it.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.

    Raises:
        ConfigError: ``config.num_labels`` is not 2.
    """

    part = "qa_outputs"
    targets = ("start_positions", "end_positions")
    num_labels = 2

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B, S, 2), start and end."""
        return batch, seq_len, 2

    def __init__(self, config: LongformerConfig, *, impl: str = "auto") -> None:
        super().__init__()
        if config.num_labels != 2:
            raise ConfigError(
                f"num_labels is {config.num_labels}; question answering has 2, start and end. If qa_outputs has two "
                "rows, write 2 (or two labels in id2label) into config.json; otherwise load another checkpoint, or one "
                "without qa_outputs to train a new head"
            )
        self.config = config
        self.longformer = LongformerModel(config, add_pooling_layer=False, impl=impl)
        self.qa_outputs = Linear(config.hidden_size, 2)
        init_weights(self.qa_outputs, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> QuestionAnsweringOutput | QuestionAnsweringLoss:
        """Score every token as start and as end of the answer.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: as for :class:`LongformerModel`.
            global_attention_mask: as for :class:`LongformerModel`; None makes each row's question global.
            start_positions, end_positions: (B,) int64, positions of the answers' first and last tokens, for a loss. A
                position below 0 counts as 0. A position of S or more lies outside the row and is left out of the mean.

        Returns:
            ``QuestionAnsweringOutput``, or ``QuestionAnsweringLoss`` if positions are given. Both unpack.

        Raises:
            LongformerError: ``global_attention_mask`` is None and a row does not have exactly three separators, or only
                one of the two positions is given, or :class:`LongformerModel` refuses an argument.
        """
        if (start_positions is None) != (end_positions is None):
            raise LongformerError("give start_positions and end_positions together, or neither")
        for name, positions in (("start_positions", start_positions), ("end_positions", end_positions)):
            if positions is not None and (positions.shape != input_ids.shape[:1] or positions.dtype != torch.int64):
                raise LongformerError(
                    f"{name} is {positions.dtype} of shape {tuple(positions.shape)}; it must be int64 of shape (B,) = "
                    f"({input_ids.shape[0]},)"
                )
        if global_attention_mask is None:
            global_attention_mask = self.automatic_global_mask(input_ids)
        hidden = self.longformer(input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids)
        with torch.autocast(input_ids.device.type, enabled=False):  # two columns are cheap, and they decide the answer
            start_logits, end_logits = self.qa_outputs(hidden.last_hidden_state).unbind(dim=-1)
        if start_positions is None or end_positions is None:
            return QuestionAnsweringOutput(start_logits, end_logits)
        loss = (_cross_entropy(start_logits, start_positions) + _cross_entropy(end_logits, end_positions)) / 2
        return QuestionAnsweringLoss(loss, start_logits, end_logits)

    def automatic_global_mask(self, input_ids: Tensor) -> Tensor:
        """(B, S) bool, True before the first separator of each row: ``<s>`` and the question.

        Raises:
            LongformerError: a row does not have exactly three separators. The message gives its number.
        """
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
            what = f"has shape {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else f"is {input_ids!r}"
            raise LongformerError(f"input_ids {what}; it must be a tensor of shape (B, S)")
        separator = input_ids == self.config.sep_token_id
        count = separator.sum(dim=1)
        if not can_be_read(input_ids):
            assert_in_graph((count == 3).all(), "a row of input_ids does not have exactly three separators")
            return separator.cumsum(dim=1) == 0
        wrong = (count != 3).nonzero().flatten().tolist()
        if wrong:
            raise LongformerError(
                f"row {wrong[0]} of input_ids has {int(count[wrong[0]])} separators (id {self.config.sep_token_id}); "
                "question answering needs three: <s> question </s></s> context </s>; "
                "use tokenizer(question, context), or give a global_attention_mask"
            )
        return separator.cumsum(dim=1) == 0


def _cross_entropy(logits: Tensor, positions: Tensor) -> Tensor:
    """Mean over the rows whose position is below S; 0 if there are none. Computed in at least float32."""
    outside = logits.shape[1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    positions = positions.clamp(0, outside)
    total = F.cross_entropy(logits, positions, ignore_index=outside, reduction="sum")
    return total / (positions < outside).sum().clamp(min=1)


class MaskedLMOutput(NamedTuple):
    """logits: (B, S, V), the unnormalised log-probability of each word of the vocabulary at each token."""

    logits: Tensor


class MaskedLMLoss(NamedTuple):
    """loss: scalar, mean cross-entropy. logits: (M, V), for the M tokens that have a label, in order."""

    loss: Tensor
    logits: Tensor


# An exported program that is saved to a file names its outputs by these names.
for _output in (QuestionAnsweringOutput, QuestionAnsweringLoss, MaskedLMOutput, MaskedLMLoss):
    register_output(_output, f"longformer.{_output.__name__}")


class LongformerLMHead(nn.Module):
    """A dense layer, GELU and LayerNorm, then a product with the word embeddings' shared weights, plus a bias."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """(..., C) and (V, C) to (..., V)."""
        hidden = self.layer_norm(F.gelu(self.dense(hidden)))
        return F.linear(hidden.to(word_embeddings.dtype), word_embeddings, self.bias)


class LongformerForMaskedLM(Head):
    """Masked language modelling: a score for every word at every token. By default no token is global.

    The output's matrix (``lm_head.decoder.weight`` in checkpoints) is the word embeddings' matrix. So training one
    trains the other.

    Args:
        config: architecture of the encoder.
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.
    """

    part = "lm_head"
    targets = ("labels",)

    @classmethod
    def logits_shape(cls, config: LongformerConfig, batch: int, seq_len: int) -> tuple[int, ...]:
        """(B, S, V)."""
        return batch, seq_len, config.vocab_size

    def __init__(self, config: LongformerConfig, *, impl: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.longformer = LongformerModel(config, add_pooling_layer=False, impl=impl)
        self.lm_head = LongformerLMHead(config)
        init_weights(self.lm_head, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput | MaskedLMLoss:
        """Score every word at every token. With labels, score only the tokens that have one, about a sixth of the work.

        Args:
            input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids: as for
                :class:`LongformerModel`.
            labels: (B, S) int64, the right words; -100 at tokens that are not to be predicted.

        Returns:
            ``MaskedLMOutput``, or ``MaskedLMLoss`` if labels are given. Both unpack. If all labels are -100, the loss
            is 0.

        Raises:
            LongformerError: labels have a wrong shape, dtype or value, or :class:`LongformerModel` refuses an argument.
        """
        if labels is not None:
            self._check_labels(labels, input_ids)
        hidden = self.longformer(input_ids, attention_mask, global_attention_mask, token_type_ids, position_ids)
        states = hidden.last_hidden_state
        words = self._words(states)
        if labels is None:
            return MaskedLMOutput(self.lm_head(states, words))
        chosen = labels != IGNORED
        logits = self.lm_head(states[chosen], words)
        raised = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = F.cross_entropy(raised, labels[chosen], reduction="sum")
        return MaskedLMLoss(total / chosen.sum().clamp(min=1), logits)

    def _words(self, states: Tensor) -> Tensor:
        """The word embeddings' matrix (V, C).

        An offloader may keep it on meta and load it only while its module is called. Then the module is called here.
        """
        embeddings = self.longformer.embeddings.word_embeddings
        if not embeddings.weight.is_meta or states.is_meta:
            return embeddings.weight
        words: Tensor = embeddings(torch.arange(self.config.vocab_size, device=states.device))
        return words

    def _check_labels(self, labels: Tensor, input_ids: Tensor) -> None:
        if labels.shape != input_ids.shape or labels.dtype != torch.int64:
            raise LongformerError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}; it must be int64 of input_ids' shape, "
                f"{tuple(input_ids.shape)}"
            )
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= self.config.vocab_size))
        if bool(wrong.any()):
            raise LongformerError(
                f"labels holds {int(labels[wrong][0])}; it may hold {IGNORED} (not to be predicted) and the words 0 to "
                f"{self.config.vocab_size - 1}"
            )


HEADS: dict[str, type[Head]] = {head.part: head for head in (LongformerForQuestionAnswering, LongformerForMaskedLM)}
"""Every head by the name of its part. If a checkpoint has several of them, it is for the first one in this table."""
