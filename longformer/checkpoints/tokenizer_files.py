"""The files of a tokenizer, of every year since 2020: which there are, and how they are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder

from longformer.errors import CheckpointError, explaining
from longformer.files import describe_json, parse_json, read_json, read_text

log = logging.getLogger(__name__)

# What the two families call their special tokens, where no file says so.
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
EXTRA_TOKENS = ("extra_special_tokens", "additional_special_tokens")  # today's name of the list, and the one before
ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # what files say of an added token
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


WORDPIECE_SETTINGS = {  # what tokenizer_config.json may say beside a vocab.txt, and what holds where it does not
    "do_lower_case": True,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "do_basic_tokenize": True,
}


def token_content(given: Any, usual: str | None) -> Any:
    """The text of a special token: as config files write it, a string, an object with the string in it, or nothing; or
    an ``AddedToken``."""
    given = given.get("content") if isinstance(given, Mapping) else getattr(given, "content", given)
    return usual if given is None else given


def listed_tokens(config: Mapping[str, Any], name: str) -> list[Any]:
    """The tokens in an entry that is a list of them, or lacks. Raises CheckpointError where it is anything else."""
    given = config.get(name)
    if given is None:
        return []
    if not isinstance(given, list):
        raise CheckpointError(f"{name} of the tokenizer's files is {describe_json(given)}, which is no list of tokens")
    return given


def read_tokenizer_json(path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``. Raises CheckpointError, which names the file, where it is none."""
    text = read_text(path, error=CheckpointError)
    parse_json(text, str(path), error=CheckpointError)  # says where it is no JSON, which the library does not
    with explaining(CheckpointError, f"{path} is not a tokenizer of the tokenizers library"):
        return Tokenizer.from_str(text)


def read_vocab_and_merges(vocab: Path, merges: Path) -> Tokenizer:
    """RoBERTa's byte-level BPE of ``vocab.json`` and ``merges.txt``. Raises CheckpointError where they are none."""
    words = read_json(vocab, error=CheckpointError)
    lines = [line.rstrip("\r") for line in read_text(merges, error=CheckpointError).split("\n")]
    pairs = [line.partition(" ")[::2] for line in lines if line and not line.startswith("#version")]
    with explaining(CheckpointError, f"{vocab} and {merges} are not a byte-level BPE vocabulary"):
        tokenizer = Tokenizer(models.BPE(words, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def read_wordpiece(vocab: Path, config: Mapping[str, Any]) -> Tokenizer:
    """BERT's WordPiece of a ``vocab.txt``, which has a token in each line.

    Args:
        vocab: the file.
        config: from ``read_tokenizer_config``. ``do_lower_case`` (True unless it says otherwise), ``strip_accents``
            (None: where it makes lower case), ``tokenize_chinese_chars`` (True), and ``do_basic_tokenize`` (True;
            without it words end at spaces alone, and letters stay as they are) say how to tokenize.

    Raises:
        CheckpointError: it cannot be read, or is no such vocabulary; or one of those is none of true, false and null.
    """
    given = {name: config.get(name, usual) for name, usual in WORDPIECE_SETTINGS.items()}
    for name, value in given.items():
        if type(value) is not bool and not (value is None and name == "strip_accents"):
            where = f"{vocab}: the tokenizer_config.json beside it"
            raise CheckpointError(f"{where} has {name} {value!r}; it must be true or false")
    text = read_text(vocab, error=CheckpointError).replace("\r\n", "\n").replace("\r", "\n")
    words = {token: index for index, token in enumerate(text.removesuffix("\n").split("\n"))}
    unknown = token_content(config.get("unk_token"), BERT_TOKENS["unk_token"])
    with explaining(CheckpointError, f"{vocab} is not a WordPiece vocabulary"):
        tokenizer = Tokenizer(models.WordPiece(words, unk_token=unknown))
    if "do_lower_case" not in config and any(word != word.lower() and not word.startswith("[") for word in words):
        log.warning(
            "%s has capital letters, but no tokenizer_config.json says do_lower_case: texts are made lower case", vocab
        )
    tokenizer.decoder = WordPieceDecoder()
    if given["do_basic_tokenize"]:
        tokenizer.normalizer = normalizers.BertNormalizer(
            handle_chinese_chars=given["tokenize_chinese_chars"],
            strip_accents=given["strip_accents"],
            lowercase=given["do_lower_case"],
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def family_of(tokenizer: Tokenizer) -> dict[str, str]:
    """What the special tokens of a vocabulary are called where no file says so: BERT's names or RoBERTa's."""
    known = tokenizer.token_to_id
    return BERT_TOKENS if known("<s>") is None and known("[CLS]") is not None else ROBERTA_TOKENS


def add_stated_tokens(tokenizer: Tokenizer, source: str | Path, config: Mapping[str, Any]) -> None:
    """Make added tokens written in a text count as such. A ``tokenizer.json`` says that by itself.

    Args:
        tokenizer: of the files of the vocabulary.
        source: their path, for messages.
        config: from ``read_tokenizer_config``.

    Raises:
        CheckpointError: they are stated in no known form, or with ids that they do not have.
    """
    tokens: dict[str, tuple[int, Mapping[str, Any]]] = {}
    try:
        for index, entry in (config.get("added_tokens_decoder") or {}).items():
            tokens[entry["content"]] = int(index), entry
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{source}: added_tokens_decoder beside it does not map ids to tokens") from None
    for role, usual in family_of(tokenizer).items():
        given = config.get(role)
        token = token_content(given, usual)
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is not None and token not in tokens:
            tokens[token] = number, given if isinstance(given, Mapping) else {}
    for content, (number, entry) in sorted(tokens.items(), key=lambda item: item[1][0]):
        flags = {flag: bool(entry.get(flag, False)) for flag in ADDED_FLAGS}
        special = bool(entry.get("special", True))
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(content, special=special, **flags)])
        got = tokenizer.token_to_id(content)
        if got != number:
            raise CheckpointError(f"{source}: added token {content!r} has id {got}, not {number} as stated beside it")


def read_tokenizer_config(files: Mapping[str, Path]) -> dict[str, Any]:
    """``tokenizer_config.json``, completed from the two files that older checkpoints have beside it.

    Args:
        files: the files that there are, by their names in ``TOKENIZER_FILES``.

    Raises:
        CheckpointError: one of them is no JSON object.
    """
    read = partial(read_json, error=CheckpointError)
    config: dict[str, Any] = read(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    if "added_tokens_decoder" in config:  # written by versions that put everything in one file
        return config
    if "special_tokens_map.json" in files:
        config |= read(files["special_tokens_map.json"])
    if "added_tokens.json" in files:
        names = [
            token_content(config.get(role), usual)
            for family in (ROBERTA_TOKENS, BERT_TOKENS)
            for role, usual in family.items()
        ]
        names.extend(token_content(token, None) for name in EXTRA_TOKENS for token in listed_tokens(config, name))
        added = read(files["added_tokens.json"])
        if not all(type(index) is int for index in added.values()):
            raise CheckpointError(f"{files['added_tokens.json']} does not map tokens to ids")
        config["added_tokens_decoder"] = {
            index: {"content": token, "special": token in names, "normalized": token not in names}
            for token, index in added.items()
        }
    return config
