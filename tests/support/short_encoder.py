"""Random short encoders, BERT's and RoBERTa's, which tests make long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoint import byte_level_tokenizer, wordpiece_tokenizer
from tokenizers import Tokenizer

SHORT = 16  # positions of the short encoders
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def short_encoder(kind: str, folder: Path, head: str = "Model") -> Any:
    """Save a random BERT or RoBERTa with its tokenizer, which is limited as those of short encoders are."""
    if kind == "Bert":
        tokenizer = wordpiece_tokenizer(folder)
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        raw.enable_truncation(8)
        raw.enable_padding(length=8)
        raw.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"model_max_length": SHORT, "tokenizer_class": "BertTokenizer"})
        )
        rows = SHORT
    else:
        tokenizer = byte_level_tokenizer(folder)
        rows = SHORT + tokenizer.pad_token_id + 1
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=rows, pad_token_id=tokenizer.pad_token_id, **SIZES
    )
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return model
