"""The fast engine for a CPU: the plain model's parameters and numbers, with no padding and fewer passes over memory.

The real tokens of all documents stand one after another in one (N, C) matrix. Four things are done otherwise than in
the plain layers (:mod:`longformer.models.layers`), each with the same result to rounding:

- attention runs document by document, and padding of one kind is one row;
- a document's few global rows meet the hidden states themselves instead of their keys and values (:func:`_carried`);
- at inference the feed-forward's wide layer exists for some rows at a time, and sums are written over their terms;
- linear layers run through the faster of torch's two libraries (:mod:`longformer.models.linear`).

:func:`may_serve` holds every condition under which the engine may stand in for the plain model. A part that works token
by token and is not exactly one of ours, such as an adapter around a linear layer, is called as the module that it is.

Letters: B batch, S sequence, N packed tokens, L tokens of one document, H heads, D head dimension, C = H·D hidden size,
G global tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longformer.kernels import Tokens, attend, attend_rows
from longformer.kernels.compat import in_transform, is_watched
from longformer.models.attention import LongformerSelfAttention
from longformer.models.batch import Document, pack
from longformer.models.layers import (
    LongformerAttention,
    LongformerEmbeddings,
    LongformerEncoder,
    LongformerIntermediate,
    LongformerLayer,
    LongformerOutput,
)
from longformer.models.linear import Linear, faster_than_attention, linear, linear_gelu, mkl_is_slow
from longformer.models.patterns import can_be_packed

if TYPE_CHECKING:
    from longformer.models.encoder import LongformerModel

# Documents of fewer tokens are projected to global keys and values, by bytes a number. That is more arithmetic than to
# carry the queries to the hidden states, but few large products instead of many small ones. Measured on a Xeon; on an
# EPYC, whose products in attention are the slower ones, it is never worth it where the queries are few.
SHORT = {2: 512, 4: 128, 8: 128}
TOGETHER = 512  # documents of fewer tokens are projected in one product, if they are
FEED_FORWARD_ROWS = 1024  # at inference the feed-forward's wide layer exists for so many tokens at a time
# On a CPU bfloat16 products are compiled for each shape and kept. Most of training's are over all rows of a batch, of
# which there is hardly ever the same number.
ROUNDED = 64
PLAIN = ("reference", "flex", "triton", "chunked")  # implementations of attention under which the plain model runs
# The modules whose work the engine does itself, with what they do.
FORWARDS = {
    kind: kind.forward
    for kind in (
        LongformerEmbeddings,
        LongformerEncoder,
        LongformerLayer,
        LongformerAttention,
        LongformerSelfAttention,
        LongformerOutput,
        LongformerIntermediate,
        nn.Linear,
        Linear,
    )
}


# ---- when it may serve


def may_serve(model: LongformerModel, input_ids: Tensor, tokens: Tokens | None = None) -> bool:
    """Whether the engine gives what the plain model would give, to everybody who looks.

    It does not where somebody watches or has replaced something: hooks of any kind on the model, inside it, or global;
    a dispatch mode, which sees all operators; a ``forward`` put on an instance or a class; another class in place of
    one of the structure's; a compiled part; a parametrisation; a weight that is a subclass of tensor, on another device
    or on meta; compiling, tracing, a transform of ``torch.func``, forward mode. Nor does it where ``impl`` is one of
    ``PLAIN``: "reference" asks for the plain model, and the other kernels are made for whole batches. Nor where a layer
    has a mask, a score or a union, or other global tokens than the first, of which there are ``tokens``; or where it is
    causal and has global tokens.
    """
    if not _is_unseen(input_ids):
        return False
    if model.patterns is not None and not can_be_packed(model.patterns, tokens or Tokens()):
        return False
    if type(model.embeddings) is not LongformerEmbeddings or type(model.encoder) is not LongformerEncoder:
        return False
    if not all(_is_ours(layer) for layer in model.encoder.layer):
        return False
    return not any(_is_changed(part) for part in model.modules())


def may_serve_attention(attention: LongformerSelfAttention, hidden: Tensor) -> bool:
    """The same for :func:`self_attention` alone, in whatever model ``attention`` stands and whatever its own class is.

    ``hidden`` is what it is given. Its six linear parts are asked what :func:`may_serve` asks all modules.
    """
    if not _is_unseen(hidden) or attention.impl in PLAIN:
        return False
    return not any(_is_changed(part) for child in attention.children() for part in child.modules())


def _is_unseen(x: Tensor) -> bool:
    """Whether ``x``, the input, is an ordinary tensor on a CPU, and nobody sees or has replaced a work done on it."""
    if torch.compiler.is_compiling() or in_transform() or is_watched():
        return False
    return type(x) is Tensor and x.device.type == "cpu" and all(kind.forward is own for kind, own in FORWARDS.items())


def _is_ours(layer: nn.Module) -> bool:
    """Whether the modules of a layer whose work the engine does itself are the plain model's own."""
    return (
        type(layer) is LongformerLayer
        and type(layer.attention) is LongformerAttention
        and type(layer.attention.self) is LongformerSelfAttention
        and type(layer.attention.output) is LongformerOutput
        and type(layer.intermediate) is LongformerIntermediate
        and type(layer.output) is LongformerOutput
        and layer.attention.self.impl not in PLAIN
    )


def _is_changed(part: nn.Module) -> bool:
    """Whether a module is watched, or its work or its weights are another's."""
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or ("forward" in part.__dict__ and not is_own_method(part, part.__dict__["forward"]))
        or "parametrizations" in part._modules
        or part._compiled_call_impl is not None
        or any(x is not None and not _is_ordinary(x) for x in part._parameters.values())
    )


def is_own_method(part: nn.Module, forward: object) -> bool:
    """Whether ``forward`` is that of the module's class, which accelerate leaves on an instance without its hooks."""
    return getattr(forward, "__self__", None) is part and getattr(forward, "__func__", None) is type(part).forward


def _is_ordinary(x: Tensor) -> bool:
    return (type(x) is nn.Parameter or type(x) is Tensor) and x.device.type == "cpu"


# ---- the layers


def encode(
    model: LongformerModel, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, tokens: Tokens
) -> Tensor:
    """Three (B, S) of int64 to (B, S, C), as the plain model's embeddings and layers."""
    encoder = model.encoder
    inputs = torch.stack([input_ids, position_ids, token_type_ids])
    packing = pack(inputs, tokens, multiple=_multiple(model))
    hidden = model.embeddings(*(packing.pack(ids) for ids in inputs))  # (N, C)
    again = encoder.gradient_checkpointing and encoder.training and torch.is_grad_enabled()
    for layer in encoder.layer:
        if again:
            hidden = checkpoint(_layer, layer, hidden, packing.documents, use_reentrant=False)
        else:
            hidden = _layer(layer, hidden, packing.documents)
    return packing.unpack(hidden, len(input_ids))


def _multiple(model: LongformerModel) -> int:
    """To what the number of packed rows is rounded up."""
    weight = next(model.encoder.parameters(), None)
    compiled = torch.is_autocast_enabled("cpu") or (weight is not None and weight.dtype == torch.bfloat16)
    return ROUNDED if model.training and compiled else 1


def _layer(layer: nn.Module, hidden: Tensor, documents: Sequence[Document]) -> Tensor:
    """(N, C) to (N, C)."""
    assert isinstance(layer, LongformerLayer)
    hidden = _sublayer_end(layer.attention.output, self_attention(layer.attention.self, hidden, documents), hidden)
    if torch.is_grad_enabled() or not (is_plain(layer.intermediate.dense) and _is_plain_end(layer.output)):
        return _sublayer_end(layer.output, _intermediate(layer.intermediate, hidden), hidden)
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    for rows, result in zip(hidden.split(FEED_FORWARD_ROWS), out.split(FEED_FORWARD_ROWS), strict=True):
        result.copy_(_sublayer_end(layer.output, _intermediate(layer.intermediate, rows), rows))
    return out


def _sublayer_end(part: LongformerOutput, x: Tensor, residual: Tensor) -> Tensor:
    """(N, in_features) and (N, C) to (N, C)."""
    update = part.dropout(_linear(part.dense, x))
    if torch.is_grad_enabled() or update.dtype != residual.dtype or not _is_plain_end(part):
        return part.LayerNorm(residual + update)
    return part.LayerNorm(update.add_(residual))


def _is_plain_end(part: LongformerOutput) -> bool:
    """Whether nobody else's module sees what is between: then rows may go through in parts, and be overwritten."""
    return is_plain(part.dense) and type(part.dropout) is nn.Dropout and type(part.LayerNorm) is nn.LayerNorm


def _intermediate(part: LongformerIntermediate, x: Tensor) -> Tensor:
    """(N, C) to (N, intermediate_size)."""
    dense = part.dense
    if part.activation is F.gelu and is_plain(dense):
        return linear_gelu(_cast(dense, x), dense.weight, dense.bias)
    return part.activation(_linear(dense, x))


def is_plain(*parts: nn.Module) -> bool:
    """Whether all are linear layers of torch's class or ours: then their weights may be used without a call."""
    return all(type(part) is nn.Linear or type(part) is Linear for part in parts)


def _linear(part: nn.Module, x: Tensor) -> Tensor:
    """(N, in_features) to (N, out_features): by the weights of a plain layer, by a call of any other module."""
    if not is_plain(part):
        return part(x)
    assert isinstance(part, nn.Linear)
    if torch.is_autocast_enabled("cpu"):  # which casts both sides itself
        return F.linear(x, part.weight, part.bias)
    return linear(_cast(part, x), part.weight, part.bias)


def _cast(part: nn.Linear, x: Tensor) -> Tensor:
    """``x`` as the layer takes it: ours casts, torch's refuses another precision than its weight's."""
    return x.to(part.weight.dtype) if type(part) is Linear else x


# ---- attention


def self_attention(attention: LongformerSelfAttention, hidden: Tensor, documents: Sequence[Document]) -> Tensor:
    """(N, C) to (N, C). Rows behind the last document are padding, and their result is 0."""
    lengths = [document.length for document in documents]
    lengths.append(hidden.shape[0] - sum(lengths))
    query, key, value = (
        _split(attention, _linear(part, hidden)).split(lengths)
        for part in (attention.query, attention.key, attention.value)
    )
    rows = hidden.split(lengths)
    global_rows = _short_global_rows(attention, rows, documents)
    results = []
    for i, document in enumerate(documents):
        if not document.length:
            continue
        out = _local_rows(attention, document, query[i], key[i], value[i])
        if document.global_index is not None:
            # A global row was computed locally like any other, and is now replaced.
            new = global_rows[i] if i in global_rows else _global_rows(attention, rows[i], document)
            replace = out.index_copy if torch.is_grad_enabled() else out.index_copy_
            out = replace(0, document.global_index, new.to(out.dtype))
        results.append(out)
    if lengths[-1]:
        results.append(query[-1].new_zeros(lengths[-1], hidden.shape[1]))
    return torch.cat(results) if len(results) > 1 else results[0]


def _split(attention: LongformerSelfAttention, x: Tensor) -> Tensor:
    """(..., C) to (..., H, D)."""
    return x.unflatten(-1, (attention.num_heads, attention.head_dim))


def _as_batch(x: Tensor) -> Tensor:
    """(L, H, D) to (1, H, L, D)."""
    return x.transpose(0, 1)[None]


def _dropout_p(attention: LongformerSelfAttention) -> float:
    return attention.dropout_p if attention.training else 0.0


def _local_rows(
    attention: LongformerSelfAttention, document: Document, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Sliding-window attention within a document: three (L, H, D) to (L, C)."""
    out = attend(
        _as_batch(query),
        _as_batch(key),
        _as_batch(value),
        attention.pattern,
        document.tokens,
        dropout_p=_dropout_p(attention),
        impl=attention.impl,
    )
    return out[0].transpose(0, 1).flatten(1)


def _attend_to_all(
    attention: LongformerSelfAttention, document: Document, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """Attention of a document's global rows (G, H, D) to all of its (L, H, D) keys and values: (G, C)."""
    out = attend_rows(
        _as_batch(query),
        _as_batch(key),
        _as_batch(value),
        document.tokens.keep,
        dropout_p=_dropout_p(attention),
        impl=attention.impl,
    )
    return out[0].transpose(0, 1).flatten(1)


def _short_global_rows(
    attention: LongformerSelfAttention, rows: Sequence[Tensor], documents: Sequence[Document]
) -> dict[int, Tensor]:
    """Global rows (G, C) of the short documents, by number, from each one's (L, C): projected all at once."""
    short = {
        i: x.global_index
        for i, x in enumerate(documents)
        if x.global_index is not None and x.length < TOGETHER and not _is_carried(attention, x, rows[i])
    }
    if not short:
        return {}
    lengths = [documents[i].length for i in short]
    firsts = [0, *itertools.accumulate(lengths)]
    hidden = torch.cat([rows[i] for i in short]) if len(short) > 1 else rows[next(iter(short))]
    places = torch.cat([first + index for first, index in zip(firsts, short.values(), strict=False)])
    queries = _split(attention, _linear(attention.query_global, hidden[places])).split(
        [len(index) for index in short.values()]
    )
    keys, values = (
        _split(attention, _linear(part, hidden)).split(lengths)
        for part in (attention.key_global, attention.value_global)
    )
    return {
        i: _attend_to_all(attention, documents[i], query, key, value)
        for i, query, key, value in zip(short, queries, keys, values, strict=True)
    }


def _global_rows(attention: LongformerSelfAttention, hidden: Tensor, document: Document) -> Tensor:
    """Attention of a document's global rows to all rows of ``hidden`` (L, C), by the global projections: (G, C)."""
    index = document.global_index
    assert index is not None
    query = _split(attention, _linear(attention.query_global, hidden[index]))  # (G, H, D)
    if _is_carried(attention, document, hidden):
        return _carried(attention, hidden, query, document.tokens.keep)
    keys, values = (_split(attention, _linear(part, hidden)) for part in (attention.key_global, attention.value_global))
    return _attend_to_all(attention, document, query, keys, values)


def _is_carried(attention: LongformerSelfAttention, document: Document, hidden: Tensor) -> bool:
    """Whether a document's global queries are carried to its hidden states (L, C), and these not projected.

    Carrying and then attending costs G·H·C a row. Projecting costs C·C, in the products of a linear layer, which may
    be faster, and then attending G·C.
    """
    parts = (attention.key_global, attention.value_global)
    if not (is_plain(*parts) and all(part.bias is not None for part in parts)):
        return False
    assert document.global_index is not None
    if document.length < SHORT[hidden.element_size()] and not mkl_is_slow():
        return False
    ratio = faster_than_attention(hidden.dtype, document.length)
    return len(document.global_index) * (attention.num_heads - 1) * ratio < hidden.shape[1]


def _carried(attention: LongformerSelfAttention, hidden: Tensor, query: Tensor, keep: Tensor | None) -> Tensor:
    """The same without projecting every row: q · (K x + b) = (Kᵀ q) · x + q · b, and Σ p (V x) = V (Σ p x).

    One attention with G·H queries of size C has the hidden states themselves as keys and as values. To carry the
    biases along, exactly even where dropout keeps Σ p from being 1, a column of ones is put to the hidden states.
    Without dropout q · b shifts a whole row of scores, which changes no probability, and Σ p is 1.
    """
    dropout_p = _dropout_p(attention)
    heads = (attention.num_heads, attention.head_dim)
    key, value = attention.key_global, attention.value_global
    query = torch.bmm(query.transpose(0, 1), key.weight.unflatten(0, heads))  # (H, G, C)
    hidden = hidden.to(query.dtype)
    if dropout_p:
        hidden = F.pad(hidden, (0, 1), value=1.0)
        query = F.pad(query, (0, 1))
    sums = attend_rows(
        query.flatten(0, 1)[None, None],
        hidden[None, None],
        hidden[None, None],
        keep,
        scale=1 / math.sqrt(attention.head_dim),
        dropout_p=dropout_p,
        impl=attention.impl,
    )[0, 0].unflatten(0, query.shape[:2])  # (H, G, C)
    total: Tensor | float = 1.0
    if dropout_p:
        sums, total = sums[..., :-1], sums[..., -1:]
    out = torch.bmm(sums, value.weight.unflatten(0, heads).transpose(1, 2))  # (H, G, D)
    out = (out + total * value.bias.unflatten(0, heads)[:, None]).transpose(0, 1).flatten(1)
    # The key's bias changes no probability. Its gradient is 0, and not missing, which optimisers treat otherwise.
    return out + 0 * key.bias if torch.is_grad_enabled() else out
