"""Dense twins of what longformer.explain keeps by band, for its tests."""

from __future__ import annotations

import torch
from torch import Tensor

from longformer import QuestionAnswerer
from longformer.explain.probabilities import Attention, LayerPattern
from longformer.kernels import attention_pairs
from longformer.models.attention import LongformerSelfAttention


def dense(pattern: LayerPattern, attention: Attention) -> Tensor:
    """The (S, S) matrix of an attention."""
    seq_len = len(attention.band)
    matrix = torch.zeros(seq_len, seq_len)
    for i in range(seq_len):
        for c, offset in enumerate(attention.offsets.tolist()):
            j = i + offset
            if 0 <= j < seq_len:
                matrix[i, j] += attention.band[i, c]
        matrix[i, pattern.global_index] += attention.columns[i]
    matrix[pattern.global_index] = attention.rows
    return matrix


def dense_of_model(answerer: QuestionAnswerer, ids: Tensor) -> Tensor:
    """(L, H, S, S) attention probabilities of a model over one row of ids, each from a dense masked softmax."""
    matrices, global_mask = [], answerer.model.automatic_global_mask(ids[None])[0]

    def hook(module: LongformerSelfAttention, arguments: tuple) -> None:
        def heads(layer):
            return layer(arguments[0]).unflatten(-1, (module.num_heads, -1)).transpose(0, 1)

        scale = module.head_dim**-0.5
        seen = attention_pairs(len(ids), module.window, dilation=module.dilation)[0] | global_mask[None, :]
        local = heads(module.query) @ heads(module.key).mT * scale
        local = local.masked_fill(~seen, float("-inf")).softmax(-1)
        from_global = (heads(module.query_global) @ heads(module.key_global).mT * scale).softmax(-1)
        matrices.append(torch.where(global_mask[:, None], from_global, local))

    modules = [module for module in answerer.model.modules() if isinstance(module, LongformerSelfAttention)]
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    with torch.no_grad():
        answerer.model(ids[None])
    for handle in handles:
        handle.remove()
    return torch.stack(matrices)
