"""LongformerModel: embeddings and layers, under the parameter names of the released checkpoints.

Read :class:`LongformerModel` first. Letters: B batch, S sequence, N packed tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.models.attention import Document, LongformerSelfAttention, Padded
from longformer.models.linear import Linear, is_observed, is_plain, linear_gelu
from longformer.models.pretrained import Pretrained

# On a CPU bfloat16 products are compiled for each shape and kept. Most of training's are over all rows of a batch, of
# which there is hardly ever the same number.
ROUNDED = 64
AT_ONCE = ("cuda",)  # devices on which calls cost more than padding does; ROCm's have this name too
FEED_FORWARD_ROWS = 1024  # at inference the feed-forward's wide layer exists for so many tokens at a time


class ModelOutput(NamedTuple):
    """last_hidden_state: (B, S, C). pooler_output: (B, C), or None in a model without a pooler."""

    last_hidden_state: Tensor
    pooler_output: Tensor | None


class Packing(NamedTuple):
    """Which tokens of a padded batch are computed, and where they belong.

    documents: the batch's documents, in the order in which their tokens are packed.
    rows: (N,) places in the flattened (B·S) batch that are computed; None if all are, in order.
    places: (B·S,) packed row that holds the result of each place; None likewise.
    """

    documents: list[Document]
    rows: Tensor | None
    places: Tensor | None

    def pack(self, x: Tensor) -> Tensor:
        """(B, S) to (N,)."""
        return x.flatten() if self.rows is None else x.flatten()[self.rows]

    def unpack(self, hidden: Tensor, batch: int) -> Tensor:
        """(N, ...) to (B, S, ...)."""
        hidden = hidden if self.places is None else hidden.index_select(0, self.places)
        return hidden.unflatten(0, (batch, -1))


def pack(inputs: Tensor, key_mask: Tensor | None, global_mask: Tensor | None, *, multiple: int = 1) -> Packing:
    """Lay out a batch without its padding.

    Padding attends to nothing and nobody attends to it, so that its state depends on its own embedding alone:
    places of equal token, position and type share one row, and the result is what computing each would give.

    Args:
        inputs: (3, B, S) token ids, position ids, token type ids.
        key_mask: (B, S) bool, False at padding, or None.
        global_mask: (B, S) bool, True at global tokens, or None.
        multiple: N is made a multiple of this, by rows whose result nobody sees.
    """
    _, batch, seq_len = inputs.shape
    if key_mask is None or bool(key_mask.all()):
        documents = [Document(seq_len, None, _index(global_mask, b, 0)) for b in range(batch)]
        if batch * seq_len % multiple == 0:
            return Packing(documents, None, None)
        places = torch.arange(batch * seq_len, device=inputs.device)
        return Packing(documents, _filled(places, multiple), places)
    documents, spans = [], []
    for b in range(batch):
        present = key_mask[b].nonzero().squeeze(1).tolist()
        first, stop = (present[0], present[-1] + 1) if present else (0, 0)
        holes = key_mask[b, first:stop] if len(present) < stop - first else None
        documents.append(Document(stop - first, holes, _index(global_mask, b, first)))
        spans.append(torch.arange(b * seq_len + first, b * seq_len + stop, device=inputs.device))
    tokens = torch.cat(spans)
    places = torch.full((batch * seq_len,), -1, device=inputs.device)
    places[tokens] = torch.arange(len(tokens), device=inputs.device)
    padding = (places < 0).nonzero().squeeze(1)
    kinds, kind = inputs.flatten(1)[:, padding].unique(dim=1, return_inverse=True)
    places[padding] = len(tokens) + kind
    examples = torch.empty(kinds.shape[1], dtype=torch.long, device=inputs.device).scatter_(0, kind, padding)
    return Packing(documents, _filled(torch.cat([tokens, examples]), multiple), places)


def _filled(rows: Tensor, multiple: int) -> Tensor:
    """(N,) with its first entry repeated behind it, up to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows[:1].expand(missing)]) if missing else rows


def _index(global_mask: Tensor | None, b: int, first: int) -> Tensor | None:
    if global_mask is None:
        return None
    index = global_mask[b].nonzero().squeeze(1)
    return index - first if len(index) else None


class LongformerEmbeddings(nn.Module):
    """Sum of word, position and token type embeddings, then LayerNorm and dropout."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        pad = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=pad)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Three (N,) of int64 to (N, C)."""
        embeddings = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings + self.token_type_embeddings(token_type_ids)))


class LongformerOutput(nn.Module):
    """End of a sublayer: projection back to C, dropout, residual, LayerNorm (post-norm, as in BERT)."""

    def __init__(self, config: LongformerConfig, in_features: int) -> None:
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(N, in_features) and (N, C) to (N, C)."""
        update = self.dropout(self.dense(x))
        if torch.is_grad_enabled() or update.dtype != residual.dtype or is_observed(self.dense, self.dropout):
            return self.LayerNorm(residual + update)
        return self.LayerNorm(update.add_(residual))


class LongformerAttention(nn.Module):
    """Self-attention sublayer. ``self`` and ``output`` are the checkpoints' names of its two halves."""

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str) -> None:
        super().__init__()
        self.self = LongformerSelfAttention(config, layer, impl=impl)
        self.output = LongformerOutput(config, config.hidden_size)

    def forward(self, hidden: Tensor, documents: list[Document] | Padded) -> Tensor:
        """(N, C) to (N, C)."""
        return self.output(self.self(hidden, documents), hidden)


class LongformerIntermediate(nn.Module):
    """First half of the feed-forward sublayer: projection to the wide layer, activation."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        activations: dict[str, Callable[[Tensor], Tensor]] = {
            "gelu": F.gelu,
            "gelu_new": partial(F.gelu, approximate="tanh"),
            "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
            "relu": F.relu,
            "silu": F.silu,
        }
        self.activation = activations[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C) to (N, intermediate_size)."""
        dense = self.dense
        # Both at once, unless somebody wants to see what comes between, or has put another layer here.
        if self.activation is F.gelu and is_plain(dense):
            return linear_gelu(hidden.to(dense.weight.dtype), dense.weight, dense.bias)
        return self.activation(dense(hidden))


class LongformerLayer(nn.Module):
    """Attention and feed-forward."""

    def __init__(self, config: LongformerConfig, layer: int, *, impl: str) -> None:
        super().__init__()
        self.attention = LongformerAttention(config, layer, impl=impl)
        self.intermediate = LongformerIntermediate(config)
        self.output = LongformerOutput(config, config.intermediate_size)

    def forward(self, hidden: Tensor, documents: list[Document] | Padded) -> Tensor:
        """(N, C) to (N, C)."""
        hidden = self.attention(hidden, documents)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_observed(self.intermediate, self.output):
            return self.output(self.intermediate(hidden), hidden)
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        parts = (x.flatten(0, -2).split(FEED_FORWARD_ROWS) for x in (hidden, out))
        for rows, result in zip(*parts, strict=True):
            result.copy_(self.output(self.intermediate(rows), rows))
        return out


class LongformerEncoder(nn.Module):
    """The stack of layers, over packed rows (N, C), or over a padded batch (B, S, C), see :class:`Padded`.

    Attributes:
        gradient_checkpointing: in training keep the input of each layer alone, and compute the rest again on the way
            back: memory of one layer instead of all, for a third more time.
    """

    def __init__(self, config: LongformerConfig, *, impl: str) -> None:
        super().__init__()
        self.layer = nn.ModuleList(LongformerLayer(config, i, impl=impl) for i in range(config.num_hidden_layers))
        self.gradient_checkpointing = False

    def forward(self, hidden: Tensor, documents: list[Document] | Padded) -> Tensor:
        """(N, C) to (N, C)."""
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layer:
            hidden = checkpoint(layer, hidden, documents, use_reentrant=False) if again else layer(hidden, documents)
        return hidden


class LongformerPooler(nn.Module):
    """tanh of a projection of the first token."""

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, C) to (B, C)."""
        return torch.tanh(self.dense(hidden[:, 0]))


class LongformerModel(Pretrained, nn.Module):
    """The encoder: token ids in, a vector a token out.

    Args:
        config: its architecture.
        add_pooling_layer: whether it has the pooler (a head other than multiple choice has no use for it).
        impl: implementation of the attention kernels, see :func:`longformer.kernels.choose`.

    Attributes:
        at_once: whether on a GPU a batch's documents are computed together, padding and all; with a call for each
            document it would wait for the host. False is one after the other, without padding, as on a CPU.
    """

    def __init__(self, config: LongformerConfig, *, add_pooling_layer: bool = True, impl: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.at_once = True
        self.embeddings = LongformerEmbeddings(config)
        self.encoder = LongformerEncoder(config, impl=impl)
        self.pooler = LongformerPooler(config) if add_pooling_layer else None
        init_weights(self, config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> ModelOutput:
        """Encode a batch.

        Args:
            input_ids: (B, S) int64 token ids; any S up to ``config.max_tokens``, no multiple of anything.
            attention_mask: (B, S): 0 padding, 1 attend locally, 2 attend globally. None is all 1.
            global_attention_mask: (B, S): 1 at tokens that attend globally, 0 elsewhere; they join those marked 2.
            token_type_ids: (B, S), None is all 0.
            position_ids: (B, S) rows of the position embeddings. By default tokens other than padding count up from
                ``pad_token_id + 1``, and padding has ``pad_token_id``.

        Raises:
            LongformerError: a wrong shape, dtype or value, named.
        """
        key_mask, global_mask = self._masks(input_ids, attention_mask, global_attention_mask)
        if position_ids is None:
            position_ids = self._positions(input_ids)
        else:
            _check_ids("position_ids", position_ids, input_ids, self.config.max_position_embeddings)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        else:
            _check_ids("token_type_ids", token_type_ids, input_ids, self.config.type_vocab_size)
        compiling = torch.compiler.is_compiling()
        tokens = None if compiling else self._at_once(input_ids, key_mask)
        if compiling or tokens is not None:
            key_mask = None if tokens == input_ids.numel() else key_mask
            batch = Padded.of(key_mask, global_mask, counted=not compiling)
            hidden = self.encoder(self.embeddings(input_ids, position_ids, token_type_ids), batch)
            return ModelOutput(hidden, None if self.pooler is None else self.pooler(hidden))
        inputs = torch.stack([input_ids, position_ids, token_type_ids])
        packing = pack(inputs, key_mask, global_mask, multiple=self._multiple())
        hidden = self.embeddings(*(packing.pack(ids) for ids in (input_ids, position_ids, token_type_ids)))
        hidden = packing.unpack(self.encoder(hidden, packing.documents), input_ids.shape[0])
        return ModelOutput(hidden, None if self.pooler is None else self.pooler(hidden))

    def _at_once(self, input_ids: Tensor, key_mask: Tensor | None) -> int | None:
        """Number of tokens in a batch that is computed as it is; None if it is not, as one that is mostly padding."""
        if not self.at_once or input_ids.device.type not in AT_ONCE or len(input_ids) == 1:
            return None
        tokens = input_ids.numel() if key_mask is None else int(key_mask.sum())
        return tokens if 2 * tokens >= input_ids.numel() else None

    def _multiple(self) -> int:
        """To what the number of packed rows is rounded up, for :func:`pack`."""
        weight = self.embeddings.word_embeddings.weight
        compiled = weight.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        return ROUNDED if self.training and compiled and weight.device.type == "cpu" else 1

    def _masks(
        self, input_ids: Tensor, attention_mask: Tensor | None, global_attention_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Key mask and global mask, (B, S) bool; padding wins over global."""
        _check_ids("input_ids", input_ids, None, self.config.vocab_size)
        _check_mask("attention_mask", attention_mask, input_ids, 2, "0 (padding), 1 (local) or 2 (global)")
        _check_mask("global_attention_mask", global_attention_mask, input_ids, 1, "0 (local) or 1 (global)")
        if attention_mask is None:
            return None, None if global_attention_mask is None else global_attention_mask.bool()
        global_mask = attention_mask == 2
        if global_attention_mask is not None:
            global_mask |= global_attention_mask.bool()
        return attention_mask != 0, global_mask & (attention_mask != 0)

    def _positions(self, input_ids: Tensor) -> Tensor:
        pad = self.config.pad_token_id
        real = input_ids != pad
        if torch.compiler.is_compiling():
            torch._assert_async((real.sum(dim=1) <= self.config.max_tokens).all(), "more tokens than positions")
            return real.cumsum(dim=1) * real + pad
        longest = int(real.sum(dim=1).max())
        if longest > self.config.max_tokens:
            raise LongformerError(
                f"input_ids has a sequence of {longest} tokens; the model has positions for {self.config.max_tokens} "
                "(QuestionAnswerer reads longer documents in overlapping windows)"
            )
        return real.cumsum(dim=1) * real + pad


def init_weights(module: nn.Module, config: LongformerConfig) -> None:
    """Fresh weights: matrices normal with ``initializer_range``, biases 0, LayerNorms 1 and 0, padding rows 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()


def _check_ids(name: str, ids: Tensor, like: Tensor | None, size: int) -> None:
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        what = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise LongformerError(f"{name} is {what}; it must be a tensor of int64")
    if like is None and (ids.dim() != 2 or 0 in ids.shape):
        raise LongformerError(f"{name} has shape {tuple(ids.shape)}; it must be (B, S), each at least 1")
    if like is not None and ids.shape != like.shape:
        raise LongformerError(f"{name} has shape {tuple(ids.shape)}; input_ids has {tuple(like.shape)}")
    if torch.compiler.is_compiling():
        torch._assert_async(((ids >= 0) & (ids < size)).all(), f"{name} out of range")
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise LongformerError(f"{name} holds {low if low < 0 else high}; the model has rows 0 to {size - 1} for it")


def _check_mask(name: str, mask: Tensor | None, input_ids: Tensor, most: int, meaning: str) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        what = f"has shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        raise LongformerError(f"{name} {what}; it must be a tensor of input_ids' shape, {tuple(input_ids.shape)}")
    if mask.dtype != torch.bool:
        known = (mask == 0) | (mask == 1) | (mask == most)
        if torch.compiler.is_compiling():
            torch._assert_async(known.all(), f"{name} may hold {meaning}")
            return
        if not bool(known.all()):
            raise LongformerError(f"{name} holds {mask[~known][0].item()}; it may hold {meaning}")
