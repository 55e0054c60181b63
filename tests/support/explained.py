"""For the tests of longformer.explain: dense twins of what it keeps by band, and a reader of what its page holds."""

from __future__ import annotations

import itertools
import zlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longformer import QuestionAnswerer
from longformer.explain import Explanation
from longformer.explain.packing import RATIO, PackedLayer
from longformer.explain.probabilities import Attention
from longformer.kernels import Tokens
from longformer.models.attention import LongformerSelfAttention


def dense(attention: Attention) -> Tensor:
    """The (S, S) matrix of an attention."""
    seq_len = len(attention.band)
    matrix = torch.zeros(seq_len, seq_len)
    for i in range(seq_len):
        for c, offset in enumerate(attention.offsets.tolist()):
            j = i + offset
            if 0 <= j < seq_len:
                matrix[i, j] += attention.band[i, c]
        matrix[i, attention.global_index] += attention.columns[i]
    matrix[attention.row_index] = attention.rows
    return matrix


def dense_of_model(answerer: QuestionAnswerer, ids: Tensor) -> Tensor:
    """(L, H, S, S) attention probabilities of a model over one row of ids, each from a dense masked softmax."""
    choose = answerer.global_mask or answerer.model.automatic_global_mask
    matrices, global_mask = [], choose(ids[None])[0]

    def hook(module: LongformerSelfAttention, arguments: tuple) -> None:
        def heads(layer):
            (hidden,) = arguments[0]  # one row
            return layer(hidden).unflatten(-1, (module.num_heads, -1)).transpose(0, 1)

        scale = module.head_dim**-0.5
        seen = module.pattern.pairs(len(ids), Tokens.of(None, global_mask[None]))[0]
        local = heads(module.query) @ heads(module.key).mT * scale
        local = local.masked_fill(~seen, float("-inf")).softmax(-1)
        from_global = (heads(module.query_global) @ heads(module.key_global).mT * scale).softmax(-1)
        matrices.append(torch.where(global_mask[:, None], from_global, local))

    modules = [module for module in answerer.model.modules() if isinstance(module, LongformerSelfAttention)]
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    with torch.no_grad():
        answerer.model(ids[None], global_attention_mask=global_mask[None].long())
    for handle in handles:
        handle.remove()
    return torch.stack(matrices)


class Rows(NamedTuple):
    """What a packed layer holds. N is the number of its entries.

    first: (H·S + 1,) where each row's entries begin; row h·S + i is token i's in head h.
    slot, probability: (N,). share: (H·S,), how much of a row's attention its kept entries carry.
    """

    first: np.ndarray
    slot: np.ndarray
    probability: np.ndarray
    share: np.ndarray


def unpack(packed: PackedLayer) -> Rows:
    """What the page's script reads from a layer's block."""
    data = zlib.decompress(packed.data)
    ends = np.cumsum(packed.lengths)
    counts, gaps = read_small_numbers(data[: ends[0]]), read_small_numbers(data[ends[0] : ends[1]])
    level, share = (np.frombuffer(data[a:b], dtype=np.uint8) for a, b in itertools.pairwise(ends[1:]))
    first = np.concatenate([[0], counts.cumsum()])
    run = (gaps + 1).cumsum()  # over all rows: each begins anew
    base = np.concatenate([[0], run])[first[:-1]]
    slot = run - np.repeat(base, counts) - 1
    return Rows(first, slot, RATIO ** -level.astype(np.float64), share / 255)


def read_small_numbers(data: bytes) -> np.ndarray:
    """The inverse of ``longformer.explain.packing.small_numbers``: int64."""
    written = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(written < 255)
    return 255 * (np.diff(ends, prepend=-1) - 1) + written[ends]


def kept(found: Explanation, layer: int, head: int, token: int) -> tuple[dict[int, float], float]:
    """What the page keeps of a row: tokens to probabilities, and the share of its attention that it says they carry."""
    rows, pattern, index = unpack(found.packed[layer]), found.patterns[layer], found.means[layer].global_index.numpy()
    row = head * len(found.passage.ids) + token
    span = slice(rows.first[row], rows.first[row + 1])
    columns = rows.slot[span]
    if token not in index and pattern.window is not None:  # whose slots are the global tokens and then the band
        assert isinstance(pattern.dilation, tuple)
        in_band = token + (columns - len(index) - pattern.window[0]) * pattern.dilation[head]
        columns = np.where(columns < len(index), np.append(index, -1)[np.minimum(columns, len(index))], in_band)
    assert len(set(columns.tolist())) == len(columns)
    return dict(zip(columns.tolist(), rows.probability[span].tolist(), strict=True)), float(rows.share[row])
