"""A checkpoint of a few kilobytes, with random weights and a tokenizer of its own, for tests that need a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from longformer import LongformerConfig, LongformerForQuestionAnswering, LongformerTokenizer


def byte_level_tokenizer(folder: Path) -> LongformerTokenizer:
    """RoBERTa's kind, without merges: every byte is a token, so that one character may be several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return LongformerTokenizer(vocab=folder / "vocab.json", merges=folder / "merges.txt")


def wordpiece_tokenizer(folder: Path) -> LongformerTokenizer:
    """BERT's kind, over letters, digits and punctuation."""
    characters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(tokens[:5])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return LongformerTokenizer(folder / "tokenizer.json")


def tiny_model(
    tokenizer: LongformerTokenizer, *, max_tokens: int = 64, **changes: Any
) -> LongformerForQuestionAnswering:
    """Two layers of 16, with random weights that are large enough to prefer some answers over others.

    ``changes`` are made to the configuration.
    """
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=max_tokens + tokenizer.pad_token_id + 1,
        attention_window=8,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    return LongformerForQuestionAnswering(config.replace(**changes)).eval()


def save_tiny_checkpoint(folder: Path, **changes: Any) -> Path:
    """Write a checkpoint with 64 positions and a byte-level tokenizer into ``folder``, and return that."""
    tokenizer = byte_level_tokenizer(folder)
    tiny_model(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
