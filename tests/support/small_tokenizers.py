"""Small tokenizers of both families, trained here, as the files that checkpoints have; and texts that try them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "Hello world!",
    " Hello world!",
    "   three leading spaces, two trailing  ",
    "line one\nline two\r\n\n\tindented\x0bvertical",
    "I don't, you're, we'll: 3.14159 -- 1,000,000 (50%)",
    "caffè Ångström naïve Zürich; decomposed: cafe\u0301",
    "北京是中国的首都。 東京 مرحبا بالعالم Привет, мир हिन्दी ไทย",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
    "zero\u200bwidth, no\u00a0break, \ufeffmark, \x00nul, \x7fdelete",
    "</s>",
    "a</s>b <s> c <mask>d  <mask>  e<pad><unk> </S> < /s>",
    "[SEP] a [CLS]b[MASK] [PAD] [UNK] [sep]",
    "x" * 300,
    "the " * 200,
    " ",
    "",
]
CORPUS = [text for text in TEXTS for _ in range(3)] + ["democratized natural language processing for all the world"] * 5


def write_roberta_files(folder: Path) -> Path:
    """A byte-level BPE vocabulary of 420 tokens in RoBERTa's two files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))
    return folder


def write_bert_files(folder: Path) -> Path:
    """A WordPiece ``tokenizer.json`` as BERT's checkpoints ship it: with truncation and padding of its own."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
