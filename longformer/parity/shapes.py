"""The shapes that a Longformer's values have, from its config and its input alone: nothing is run.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from longformer.checkpoints.names import todays_name
from longformer.checkpoints.weights import find_weights, read_tensors
from longformer.config import LongformerConfig
from longformer.models.heads import Head
from longformer.parity.runs import kind_of
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, PROBABILITIES

Shape = tuple[int, ...]


def expected_shapes(folder: str, config: LongformerConfig, inputs: Mapping[str, Tensor]) -> dict[str, Shape]:
    """By value, for the checkpoint in ``folder`` on ``inputs`` as a trace has them."""
    batch, seq_len = inputs["input_ids"].shape
    globals_ = int((inputs["global_attention_mask"] != 0).sum(dim=1).max())
    states, heads = (batch, seq_len, config.hidden_size), (batch, config.num_attention_heads)
    by_heads, inner = (*heads, seq_len, config.head_dim), (batch, seq_len, config.intermediate_size)
    shapes: dict[str, Shape] = {"embeddings": states}
    for n in range(config.num_hidden_layers):
        left, right = config.window(n)
        parts: dict[str, Shape] = {
            **dict.fromkeys(("query", "key", "value", "local_output"), by_heads),
            **dict.fromkeys(("attention_output", "output"), states),
            **dict.fromkeys(("intermediate", "feed_forward"), inner),
            PROBABILITIES[0]: (*heads, seq_len, left + 1 + right),
        }
        if globals_:
            parts[GLOBAL_ROWS] = (*heads, globals_, config.head_dim)
            parts[PROBABILITIES[1]] = (*heads, seq_len, globals_)
            parts[PROBABILITIES[2]] = (*heads, globals_, seq_len)
        shapes |= {f"layer.{n}.{part}": shape for part, shape in parts.items()}
    kind = kind_of(folder).model
    if issubclass(kind, Head):
        shapes["logits"] = kind.logits_shape(config, batch, seq_len)
    else:
        shapes["pooler_output"] = (batch, config.hidden_size)
    weights = read_tensors(find_weights(folder))
    return {
        **shapes,
        **{GRADIENT + name: shape for name, shape in shapes.items()},
        **{PARAMETER + todays_name(name): tuple(weight.shape) for name, weight in weights.items()},
    }
