"""A model for question answering of which the answer hangs on one known token, by weights that are written by hand.

Every token is a letter. "A" and "B" are the only ones that can be answers, and "B" has the higher score of its own. But
a "k" within the window raises the score of what it is near: by attention that is the same to every token of the window,
and of which nothing but a "k" has a value.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_checkpoint import byte_level_tokenizer, tiny_model

from longformer import QuestionAnswerer

QUESTION = "who?"
DOCUMENT = "..x.k.A.........y.....B.z"  # the window reaches 4 tokens: the "k" is near the "A", and not near the "B"
KEY, NEAR, FAR = (DOCUMENT.index(letter) for letter in "kAB")


@torch.no_grad()
def one_token_answerer(folder: Path) -> QuestionAnswerer:
    tokenizer = byte_level_tokenizer(folder)
    model = tiny_model(tokenizer, num_hidden_layers=1, num_attention_heads=1, attention_window=8, layer_norm_eps=1.0)
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    ids = {letter: tokenizer(letter)["input_ids"][1] for letter in "kAB"}
    words = model.longformer.embeddings.word_embeddings.weight
    # Pairs of x and -x have mean 0, and the large epsilon makes LayerNorm nearly linear.
    words[ids["k"], :2] = torch.tensor([1.0, -1.0])
    words[ids["A"], 2:4] = torch.tensor([1.0, -1.0])
    words[ids["B"], 2:4] = torch.tensor([1.5, -1.5])
    attention = model.longformer.encoder.layer[0].attention
    attention.self.value.weight[0, 0] = 1
    attention.output.dense.weight[4:6, 0] = torch.tensor([20.0, -20.0])
    model.qa_outputs.weight[:, 2], model.qa_outputs.weight[:, 4] = 10, 5
    return QuestionAnswerer(model, tokenizer)
