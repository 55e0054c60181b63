"""A model for question answering of which the answer hangs on one known token, by weights that are written by hand.

Every token is a letter. "A" and "B" are the only ones that can be answers, and "B" has the higher score of its own. But
a "k" within the window raises the score of what it is near: by attention that is the same to every token of the window,
and of which nothing but a "k" has a value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_checkpoint import byte_level_tokenizer, tiny_model

from longformer import LongformerForQuestionAnswering, QuestionAnswerer

QUESTION = "who?"
DOCUMENT = "..x.k.A.........y.....B.z"  # the window reaches 4 tokens: the "k" is near the "A", and not near the "B"
FAR_DOCUMENT = "k.........x.......................A.......y"
KEY, NEAR, FAR = (DOCUMENT.index(letter) for letter in "kAB")


def _with_letters(folder: Path, layers: int, window: int) -> tuple[LongformerForQuestionAnswering, Any]:
    """A model whose weights are 0, but for the letters "k" in dimensions 0 and 1, and "A" and "B" in 2 and 3."""
    tokenizer = byte_level_tokenizer(folder)
    sizes = {"num_hidden_layers": layers, "num_attention_heads": 1, "attention_window": window}
    model = tiny_model(tokenizer, **sizes, layer_norm_eps=1.0)
    for name, weight in model.named_parameters():
        weight.fill_(1.0 if name.endswith("LayerNorm.weight") else 0.0)
    ids = {letter: tokenizer(letter)["input_ids"][1] for letter in "kAB"}
    words = model.longformer.embeddings.word_embeddings.weight
    # Pairs of x and -x have mean 0, and the large epsilon makes LayerNorm nearly linear.
    words[ids["k"], :2] = torch.tensor([1.0, -1.0])
    words[ids["A"], 2:4] = torch.tensor([1.0, -1.0])
    words[ids["B"], 2:4] = torch.tensor([1.5, -1.5])
    return model, tokenizer


@torch.no_grad()
def far_token_answerer(folder: Path) -> QuestionAnswerer:
    """The same by way of global tokens: in layer 0 they take up a "k", and in layer 1 every token reads them."""
    model, tokenizer = _with_letters(folder, layers=2, window=4)
    below, above = (layer.attention for layer in model.longformer.encoder.layer)
    below.self.value_global.weight[0, 0] = 1
    below.output.dense.weight[6:8, 0] = torch.tensor([20.0, -20.0])
    above.self.value.weight[1, 6] = 1
    above.output.dense.weight[4:6, 1] = torch.tensor([20.0, -20.0])
    model.qa_outputs.weight[:, 2], model.qa_outputs.weight[:, 4] = 10, 25
    return QuestionAnswerer(model, tokenizer)


@torch.no_grad()
def one_token_answerer(folder: Path) -> QuestionAnswerer:
    model, tokenizer = _with_letters(folder, layers=1, window=8)
    attention = model.longformer.encoder.layer[0].attention
    attention.self.value.weight[0, 0] = 1
    attention.output.dense.weight[4:6, 0] = torch.tensor([20.0, -20.0])
    model.qa_outputs.weight[:, 2], model.qa_outputs.weight[:, 4] = 10, 5
    return QuestionAnswerer(model, tokenizer)
