"""A batch: its masks and positions checked and made, and its tokens laid out without padding.

Letters: B batch, S sequence, N packed tokens, L tokens of one document, G global tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import Tokens
from longformer.kernels.compat import assert_in_graph, in_transform, is_fake, is_jit_tracing

INTEGERS = (torch.int64, torch.int32)


# ---- what a model is given


def can_be_read(tensor: Tensor) -> bool:
    """Whether a decision may depend on the tensor's values.

    It may not in a compiled graph, under a transform of ``torch.func``, and where there are no values.
    """
    return not (torch.compiler.is_compiling() or in_transform() or tensor.is_meta or is_fake(tensor))


def check_input(input_ids: Tensor | None, inputs_embeds: Tensor | None, hidden_size: int) -> Tensor:
    """A tensor (B, S), for the shape and the device of a model's input. The values of ids are not looked at.

    Raises:
        LongformerError: both are given, or neither; or one of a wrong shape or dtype; or ``torch.jit.trace`` asks.
    """
    if is_jit_tracing():
        raise LongformerError("torch.jit.trace would keep one input's decisions; torch.export exports this model")
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither is" if input_ids is None else "both are"
        raise LongformerError(f"give input_ids or inputs_embeds, one of them; {given} given")
    if inputs_embeds is not None:
        _check_embeddings(inputs_embeds, hidden_size)
        return inputs_embeds[..., 0]
    assert input_ids is not None
    _check_form("input_ids", input_ids, None)
    return input_ids


def check_ids(name: str, ids: Tensor, size: int, like: Tensor | None = None) -> None:
    """Raise LongformerError where ``ids`` are not (B, S) integers in [0, size), or not of the shape of ``like``."""
    _check_form(name, ids, like)
    if not can_be_read(ids):
        assert_in_graph(((ids >= 0) & (ids < size)).all(), f"{name} out of range")
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise LongformerError(f"{name} holds {low if low < 0 else high}; the model has rows 0 to {size - 1} for it")


def _check_form(name: str, ids: Tensor, like: Tensor | None) -> None:
    if not isinstance(ids, Tensor) or ids.dtype not in INTEGERS:
        what = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise LongformerError(f"{name} is {what}; it must be a tensor of int64")
    if like is None and (ids.dim() != 2 or 0 in ids.shape):
        raise LongformerError(f"{name} has shape {tuple(ids.shape)}; it must be (B, S), each at least 1")
    if like is not None and ids.shape != like.shape:
        raise LongformerError(f"{name} has shape {tuple(ids.shape)}; the input has {tuple(like.shape)}")


def _check_embeddings(embeddings: Tensor, size: int) -> None:
    """Raise LongformerError where ``embeddings`` are not (B, S, size) floating-point numbers."""
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        what = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise LongformerError(f"inputs_embeds is {what}; it must be a tensor of floating-point numbers")
    if embeddings.dim() != 3 or embeddings.shape[2] != size or 0 in embeddings.shape:
        raise LongformerError(f"inputs_embeds has shape {tuple(embeddings.shape)}; it must be (B, S, {size})")


def _check_mask(name: str, mask: Tensor, like: Tensor, most: int, meaning: str) -> None:
    if not isinstance(mask, Tensor) or mask.shape != like.shape:
        what = f"has shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
        raise LongformerError(f"{name} {what}; it must be a tensor of the input's shape, {tuple(like.shape)}")
    if mask.dtype == torch.bool:
        return
    known = (mask == 0) | (mask == 1) | (mask == most)
    if not can_be_read(mask):
        assert_in_graph(known.all(), f"{name} may hold {meaning}")
    elif not bool(known.all()):
        raise LongformerError(f"{name} holds {mask[~known][0].item()}; it may hold {meaning}")


def make_tokens(like: Tensor, attention_mask: Tensor | None, global_attention_mask: Tensor | None) -> Tokens:
    """Which tokens are padding and which are global, from a model's arguments; padding wins over global.

    Args:
        like: (B, S), of any kind.
        attention_mask, global_attention_mask: (B, S), see :class:`longformer.LongformerModel`.

    Raises:
        LongformerError: a mask of another shape than ``like``, or one that holds another value than it may.
    """
    keep = is_global = None
    if attention_mask is not None:
        _check_mask("attention_mask", attention_mask, like, 2, "0 (padding), 1 (local) or 2 (global)")
        keep, is_global = attention_mask != 0, attention_mask == 2
    if global_attention_mask is not None:
        _check_mask("global_attention_mask", global_attention_mask, like, 1, "0 (local) or 1 (global)")
        named = global_attention_mask.bool()
        is_global = named if is_global is None else is_global | named
    if can_be_read(like):  # no padding and no global token are simpler than masks that say so
        keep = None if keep is None or bool(keep.all()) else keep
        is_global = None if is_global is None or not bool(is_global.any()) else is_global
    return Tokens.of(keep, is_global)


def count_positions(input_ids: Tensor | None, like: Tensor, config: LongformerConfig) -> Tensor:
    """Position ids (B, S): tokens other than padding count up from ``pad_token_id + 1``; padding has ``pad_token_id``.

    Without ids nobody knows which tokens are padding, and all count.

    Args:
        input_ids: (B, S), or None.
        like: (B, S), of any kind.

    Raises:
        LongformerError: more tokens in a row than the model has positions for.
    """
    pad = config.pad_token_id
    if input_ids is None:
        _check_length(like.shape[1], config)
        return torch.arange(pad + 1, pad + 1 + like.shape[1], device=like.device).expand(like.shape)
    real = input_ids != pad
    counts = real.sum(dim=1)
    if can_be_read(input_ids):
        _check_length(int(counts.max()), config)
    else:
        assert_in_graph((counts <= config.max_tokens).all(), "more tokens than positions")
    return real.cumsum(dim=1) * real + pad


def _check_length(longest: int, config: LongformerConfig) -> None:
    if longest > config.max_tokens:
        raise LongformerError(
            f"the input has a sequence of {longest} tokens; the model has positions for {config.max_tokens} "
            "(QuestionAnswerer reads longer documents in overlapping windows)"
        )


# ---- a batch without its padding


class Document(NamedTuple):
    """One document of a batch, as it stands in the packed rows.

    length: L, rows from its first to its last token that is no padding.
    tokens: the document as a batch of one; without a mask of padding if there is none between its tokens.
    global_index: (G,) positions of its global tokens, 0 ≤ position < L; None if it has none.
    """

    length: int
    tokens: Tokens
    global_index: Tensor | None

    @classmethod
    def of(cls, length: int, keep: Tensor | None = None, global_index: Tensor | None = None) -> Document:
        """From (L,) bool, False at padding, and (G,) positions of the global tokens."""
        keep = None if keep is None else keep[None]
        if global_index is None:
            return cls(length, Tokens(keep), None)
        is_global = torch.zeros(1, length, dtype=torch.bool, device=global_index.device)
        is_global[0, global_index] = True
        return cls(length, Tokens(keep, is_global, global_index[None]), global_index)


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
        """(B, S, ...) to (N, ...)."""
        x = x.flatten(0, 1)
        return x if self.rows is None else x.index_select(0, self.rows)

    def unpack(self, hidden: Tensor, batch: int) -> Tensor:
        """(N, ...) to (B, S, ...)."""
        hidden = hidden if self.places is None else hidden.index_select(0, self.places)
        return hidden.unflatten(0, (batch, -1))


def pack(inputs: Tensor, tokens: Tokens, *, multiple: int = 1) -> Packing:
    """Lay out a batch without its padding.

    Padding attends to nothing and nobody attends to it, so that its state depends on its own embedding alone. Places
    of equal token, position and type share one row, and the result is what computing each would give.

    Args:
        inputs: (3, B, S) token ids, position ids, token type ids. Or (1, B, S) of one number, if nobody looks at the
            result at padding: all of it then shares one row.
        tokens: which of them are padding, and which are global.
        multiple: N is made a multiple of this, by rows whose result nobody sees.
    """
    _, batch, seq_len = inputs.shape
    if tokens.keep is None:
        documents = [Document.of(seq_len, None, _global_index(tokens, b, 0)) for b in range(batch)]
        if batch * seq_len % multiple == 0:
            return Packing(documents, None, None)
        places = torch.arange(batch * seq_len, device=inputs.device)
        return Packing(documents, _filled(places, multiple), places)
    documents, spans = [], []
    for b in range(batch):
        present = tokens.keep[b].nonzero().squeeze(1).tolist()
        first, stop = (present[0], present[-1] + 1) if present else (0, 0)
        keep = tokens.keep[b, first:stop] if len(present) < stop - first else None
        documents.append(Document.of(stop - first, keep, _global_index(tokens, b, first)))
        spans.append(torch.arange(b * seq_len + first, b * seq_len + stop, device=inputs.device))
    computed = torch.cat(spans)
    places = torch.full((batch * seq_len,), -1, device=inputs.device)
    places[computed] = torch.arange(len(computed), device=inputs.device)
    padding = (places < 0).nonzero().squeeze(1)
    kinds, kind = inputs.flatten(1)[:, padding].unique(dim=1, return_inverse=True)
    places[padding] = len(computed) + kind
    examples = torch.empty(kinds.shape[1], dtype=torch.long, device=inputs.device).scatter_(0, kind, padding)
    return Packing(documents, _filled(torch.cat([computed, examples]), multiple), places)


def _filled(rows: Tensor, multiple: int) -> Tensor:
    """(N,) with its first entry repeated behind it, up to a multiple."""
    missing = -len(rows) % multiple
    return torch.cat([rows, rows[:1].expand(missing)]) if missing else rows


def _global_index(tokens: Tokens, b: int, first: int) -> Tensor | None:
    """(G,) positions of an example's global tokens, counted from ``first``; None if it has none."""
    if tokens.is_global is None:
        return None
    index = tokens.is_global[b].nonzero().squeeze(1)
    return index - first if len(index) else None
