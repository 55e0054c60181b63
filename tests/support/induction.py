"""A Longformer whose weights are written by hand: two heads of it continue a repeated sequence, as induction heads do.

(Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".) The state of a token has four parts of 16:
the token itself, the token before it, what is predicted, and the position, each as a place that is larger than the
others. In layer 0, head 2 looks at the position before its own and copies the token there into "the token before it".
In layer 1, head 1 looks for tokens whose "token before it" is its own token, and copies them into "what is predicted".
All other heads have random weights and write a little into every part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longformer import LongformerConfig, LongformerForMaskedLM

PART = 16
TOKEN, BEFORE, PREDICTED, POSITION = (slice(i * PART, (i + 1) * PART) for i in range(4))
CIRCUIT = ((0, 2), (1, 1))  # layer and head
SHARP = 3.0  # makes the softmax nearly one-hot
NOISE = 0.05  # of what the other heads write
CONFIG = LongformerConfig(
    vocab_size=PART,
    hidden_size=4 * PART,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=8,
    max_position_embeddings=PART,
    type_vocab_size=1,
    attention_window=2 * PART,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    pad_token_id=1,
)


@torch.no_grad()
def induction_model() -> LongformerForMaskedLM:
    """In float64 and ``eval()`` mode. ``logits[0, i]`` names what followed the earlier copy of token i."""
    torch.manual_seed(0)
    model = LongformerForMaskedLM(CONFIG).double().eval()
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if name.lower().endswith(("layernorm.weight", "layer_norm.weight")) else 0.0)
    same = torch.eye(PART, dtype=torch.float64)
    embeddings = model.longformer.embeddings
    embeddings.word_embeddings.weight[:, TOKEN] = same
    embeddings.position_embeddings.weight[:, POSITION] = same
    for number, layer in enumerate(model.longformer.encoder.layer):
        attention, out = layer.attention.self, layer.attention.output.dense
        for part in (attention.query, attention.key, attention.value):
            part.weight.normal_(std=0.3)
        out.weight.normal_(std=NOISE)
        head = dict(CIRCUIT)[number]
        rows = slice(head * PART, (head + 1) * PART)
        for part in (attention.query, attention.key, attention.value):
            part.weight[rows] = 0
        out.weight[:, rows] = 0
        attention.value.weight[rows, TOKEN] = same
        if number == 0:
            attention.query.weight[rows, POSITION] = SHARP * same.roll(-1, 0)  # the place of the position before
            attention.key.weight[rows, POSITION] = SHARP * same
            out.weight[BEFORE, rows] = 2 * same
        else:
            attention.query.weight[rows, TOKEN] = SHARP * same
            attention.key.weight[rows, BEFORE] = SHARP * same
            out.weight[PREDICTED, rows] = 2 * same
    model.lm_head.dense.weight[TOKEN, PREDICTED] = same
    return model


def predicted(model: LongformerForMaskedLM, ids: Tensor) -> int:
    """What the model predicts at the last token of ids (1, S)."""
    with torch.no_grad():
        return int(model(ids).logits[0, -1].argmax())
