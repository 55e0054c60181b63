"""The tokenizer's calls give what transformers' tokenizers give on the same files: one table, every call on both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import TEXTS, write_bert_files, write_roberta_files
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, LongformerTokenizerFast

from longformer import LongformerTokenizer

Call = Callable[[Any], Any]

QUESTION, CONTEXT = "Who wrote the caffè's naïve menu?", "Dan, " * 12 + "Ann and\n two  others wrote it; 北京 knows 🙂."
QUESTIONS, CONTEXTS = [QUESTION, "Who?", "Where is it now?"], [CONTEXT, "Ann.", "The menu is lost, it isn't 'here'."]
WORDS, MORE_WORDS = ["Ann", "wrote", "menus", ",", "naïvely"], ["Dan", "reads"]

WINDOWS = {"return_overflowing_tokens": True, "return_offsets_mapping": True, "truncation": "only_second"}
EVERYTHING = {
    "return_token_type_ids": True,
    "return_attention_mask": True,
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
    "return_length": True,
}


def options(text: Any, pair: Any = None, **how: Any) -> Call:
    return lambda tokenizer: tokenizer(text, pair, **how)


ENCODINGS: dict[str, Call] = {
    "text": options(QUESTION),
    "pair": options(QUESTION, CONTEXT, **EVERYTHING),
    "batch": options(QUESTIONS, **EVERYTHING),
    "pairs": options(QUESTIONS, CONTEXTS, **EVERYTHING),
    "pairs in tuples": options(list(zip(QUESTIONS, CONTEXTS, strict=True))),
    "pairs in lists": options([list(pair) for pair in zip(QUESTIONS, CONTEXTS, strict=True)]),
    "empty text": options(["", " "]),
    "without special tokens": options(QUESTIONS, CONTEXTS, add_special_tokens=False, **EVERYTHING),
    "words": options(WORDS, is_split_into_words=True, **EVERYTHING),
    "words in a tuple": options(tuple(WORDS), is_split_into_words=True),
    "two words": options(WORDS[:2], is_split_into_words=True),
    "pair of words": options(WORDS, MORE_WORDS, is_split_into_words=True, **EVERYTHING),
    "batch of words": options([WORDS, MORE_WORDS], is_split_into_words=True, padding=True),
    "pairs of words": options([WORDS, MORE_WORDS], [MORE_WORDS, WORDS], is_split_into_words=True, padding=True),
    "pairs of words in tuples": options([(WORDS, MORE_WORDS), (MORE_WORDS, WORDS)], is_split_into_words=True),
    "no attention mask": options(QUESTION, return_attention_mask=False),
    "verbatim special tokens": options("a </s> b [SEP] c", split_special_tokens=True),
    "padding": options(QUESTIONS, CONTEXTS, padding=True, return_tensors="pt", **EVERYTHING),
    "padding longest": options(QUESTIONS, padding="longest", return_tensors="np", **EVERYTHING),
    "padding to max_length": options(QUESTIONS, padding="max_length", max_length=70, **EVERYTHING),
    "padding below a row": options(QUESTIONS, padding="max_length", max_length=7),
    "padding one text": options(QUESTION, padding="max_length", max_length=40, return_tensors="pt"),
    "padding one text to its own length": options(QUESTION, padding=True),
    "do_not_pad": options(QUESTIONS, padding="do_not_pad", truncation="do_not_truncate"),
    "padding to a multiple": options(QUESTIONS, padding=True, pad_to_multiple_of=16, return_tensors="pt"),
    "padding one text to a multiple": options(QUESTION, padding=True, pad_to_multiple_of=32),
    "a multiple without padding": options(QUESTIONS, pad_to_multiple_of=16),
    "padding on the left": options(QUESTIONS, CONTEXTS, padding=True, padding_side="left", **EVERYTHING),
    "max_length alone": options(QUESTION, CONTEXT, max_length=20),
    "cut and padded": options(
        QUESTIONS, CONTEXTS, truncation=True, padding="max_length", max_length=32, pad_to_multiple_of=8
    ),
    "cut and padded to longest": options(
        QUESTIONS, CONTEXTS, truncation="only_second", padding=True, max_length=40, return_tensors="pt"
    ),
    "windows": options(QUESTION, CONTEXT, max_length=60, stride=8, **WINDOWS),
    "windows of a batch": options(QUESTIONS, CONTEXTS, max_length=64, stride=4, padding="max_length", **WINDOWS),
    "windows in tensors": options(
        QUESTIONS, CONTEXTS, max_length=60, stride=3, padding=True, return_tensors="pt", return_length=True, **WINDOWS
    ),
    "windows of one text": options(
        CONTEXT, truncation=True, max_length=30, stride=5, return_overflowing_tokens=True, return_length=True
    ),
    "windows without anything cut": options(QUESTION, truncation=True, max_length=200, return_overflowing_tokens=True),
    "windows of both": options(CONTEXT, CONTEXT, truncation=True, max_length=30, return_overflowing_tokens=True),
    "windows of the first": options(
        CONTEXT, QUESTION, truncation="only_first", max_length=60, return_overflowing_tokens=True
    ),
    **{
        f"cut {how} to {length}": options(QUESTION, CONTEXT, truncation=how, max_length=length, **EVERYTHING)
        for how in (True, "longest_first", "only_first", "only_second")
        for length in (55, 60, 75, 100, 150, 300)
        if how != "only_first" or length > 100
    },
    **{
        f"cut {how} of both, to {length}": options(CONTEXT, CONTEXT, truncation=how, max_length=length)
        for how in (True, "only_first", "only_second")
        for length in (5, 6, 7, 50, 51, 124, 125)
        if how is True or length > 120
    },
    **{
        f"one text cut {how} to {length}": options(QUESTION, truncation=how, max_length=length)
        for how in (True, "longest_first", "only_first")
        for length in (3, 10, 100)
    },
    "encode_plus": lambda tokenizer: getattr(tokenizer, "encode_plus", tokenizer)(QUESTION, CONTEXT),
    "batch_encode_plus": lambda tokenizer: getattr(tokenizer, "batch_encode_plus", tokenizer)(QUESTIONS, padding=True),
}

OTHERS: dict[str, Call] = {
    "encode": lambda tokenizer: tokenizer.encode(QUESTION, CONTEXT),
    "encode without special tokens": lambda tokenizer: tokenizer.encode(QUESTION, add_special_tokens=False),
    "encode as a tensor": lambda tokenizer: tokenizer.encode(QUESTION, return_tensors="pt"),
    "encode, cut": lambda tokenizer: tokenizer.encode(QUESTION, max_length=5, truncation=True),
    "tokenize": lambda tokenizer: tokenizer.tokenize(QUESTION),
    "tokenize a pair": lambda tokenizer: tokenizer.tokenize(QUESTION, pair=CONTEXT, add_special_tokens=True),
    "decode": lambda tokenizer: tokenizer.decode(tokenizer.encode(QUESTION, CONTEXT)),
    "decode without special tokens": lambda tokenizer: tokenizer.decode(
        tokenizer.encode(QUESTION, CONTEXT), skip_special_tokens=True
    ),
    "decode a batch": lambda tokenizer: tokenizer.decode(tokenizer(QUESTIONS)["input_ids"]),
    "batch_decode": lambda tokenizer: tokenizer.batch_decode(
        tokenizer(QUESTIONS, padding=True, return_tensors="pt")["input_ids"], skip_special_tokens=True
    ),
    "batch_decode of an array": lambda tokenizer: tokenizer.batch_decode(np.array([[5, 6], [7, 8]])),
    "batch_decode of one row": lambda tokenizer: tokenizer.batch_decode([5, 6]),
    "batch_decode of tensors": lambda tokenizer: tokenizer.batch_decode([[5, 6], [7]]),
    "decode with spaces cleaned": lambda tokenizer: tokenizer.decode(
        tokenizer.encode("Don't , I 'm here . We 've it ' s !"), clean_up_tokenization_spaces=True
    ),
    "decode with spaces kept": lambda tokenizer: tokenizer.decode(
        tokenizer.encode("Don't , I 'm"), clean_up_tokenization_spaces=False
    ),
    "decode nothing": lambda tokenizer: tokenizer.decode([]),
    "tokens to ids": lambda tokenizer: tokenizer.convert_tokens_to_ids(tokenizer.tokenize(CONTEXT)),
    "unknown token": lambda tokenizer: tokenizer.convert_tokens_to_ids(["no such token"]),
    "ids to tokens": lambda tokenizer: tokenizer.convert_ids_to_tokens(tokenizer.encode(QUESTION)),
    "one id": lambda tokenizer: tokenizer.convert_ids_to_tokens(7),
    "ids to tokens without special ones": lambda tokenizer: tokenizer.convert_ids_to_tokens(
        tokenizer.encode(QUESTION), skip_special_tokens=True
    ),
    "tokens to text": lambda tokenizer: tokenizer.convert_tokens_to_string(tokenizer.tokenize(QUESTION)),
    "vocabulary": lambda tokenizer: (tokenizer.get_vocab(), tokenizer.vocab, tokenizer.get_added_vocab()),
    "sizes": lambda tokenizer: (tokenizer.vocab_size, len(tokenizer)),
    "special tokens to add": lambda tokenizer: [tokenizer.num_special_tokens_to_add(pair) for pair in (False, True)],
    "special tokens": lambda tokenizer: (tokenizer.all_special_tokens, tokenizer.all_special_ids),
    "special tokens by role": lambda tokenizer: tokenizer.special_tokens_map,
    "roles": lambda tokenizer: [
        getattr(tokenizer, f"{role}_token{end}")
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        for end in ("", "_id")
    ],
    "extra special tokens": lambda tokenizer: (tokenizer.extra_special_tokens, tokenizer.extra_special_tokens_ids),
    "special tokens mask": lambda tokenizer: tokenizer.get_special_tokens_mask(
        tokenizer.encode(QUESTION, CONTEXT), already_has_special_tokens=True
    ),
    "settings": lambda tokenizer: [
        getattr(tokenizer, name)
        for name in (
            *("is_fast", "padding_side", "truncation_side", "model_max_length", "model_input_names"),
            *("pad_token_type_id", "clean_up_tokenization_spaces"),
        )
    ],
    "pad": lambda tokenizer: tokenizer.pad(
        [{"input_ids": tokenizer.encode(text), "labels": i} for i, text in enumerate(QUESTIONS)]
    ),
    "pad as tensors": lambda tokenizer: tokenizer.pad(
        [tokenizer(text, return_token_type_ids=True, return_special_tokens_mask=True) for text in QUESTIONS],
        return_tensors="pt",
    ),
    "pad a batch": lambda tokenizer: tokenizer.pad(tokenizer(QUESTIONS), pad_to_multiple_of=8, return_tensors="np"),
    "pad one": lambda tokenizer: tokenizer.pad(tokenizer(QUESTION), padding="max_length", max_length=50),
    "pad below a row": lambda tokenizer: tokenizer.pad(tokenizer(QUESTIONS), padding="max_length", max_length=6),
    "pad on the left": lambda tokenizer: tokenizer.pad(tokenizer(QUESTIONS), padding_side="left"),
    "pad not": lambda tokenizer: tokenizer.pad({"input_ids": [[5], [6, 7]]}, padding=False),
    "pad without a mask": lambda tokenizer: tokenizer.pad({"input_ids": [[5], [6, 7]]}, return_attention_mask=False),
    "pad tensors": lambda tokenizer: tokenizer.pad(
        [{"input_ids": torch.tensor([5] * n), "labels": torch.tensor(n)} for n in (1, 3)]
    ),
    "pad arrays": lambda tokenizer: tokenizer.pad({"input_ids": [np.array([5]), np.array([6, 7])]}),
}


def plain(value: Any) -> Any:
    """Something that ``==`` compares: tensors and arrays with their dtype and shape."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return type(value).__name__, str(value.dtype), value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return value


class Pair:
    """Ours and transformers' tokenizer of the same files."""

    def __init__(self, ours: LongformerTokenizer, theirs: Any) -> None:
        self.ours, self.theirs = ours, theirs

    def assert_equal(self, call: Call) -> None:
        ours, theirs = call(self.ours), call(self.theirs)
        assert type(ours) is type(theirs) or isinstance(ours, Mapping)
        assert plain(ours) == plain(theirs)
        if isinstance(ours, Mapping):
            assert list(ours) == list(theirs)


@pytest.fixture(scope="module", params=["small", "real", "shipped"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "shipped":
        folder = request.getfixturevalue("pretrained_dir")
        return Pair(LongformerTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    if request.param == "real":
        folder = request.getfixturevalue("data_dir") / "roberta-tokenizer"
    else:
        folder = write_roberta_files(tmp_path_factory.mktemp("roberta"))
    return Pair(LongformerTokenizer.from_pretrained(folder), LongformerTokenizerFast.from_pretrained(folder))


@pytest.mark.parametrize("call", ENCODINGS.values(), ids=ENCODINGS)
def test_encodings(pair: Pair, call: Call) -> None:
    pair.assert_equal(call)
    ours, theirs = call(pair.ours), call(pair.theirs)
    for i, row in enumerate(theirs.encodings):
        assert ours.tokens(i) == theirs.tokens(i) and ours.word_ids(i) == theirs.word_ids(i)
        assert ours.sequence_ids(i) == theirs.sequence_ids(i)
        assert ours[i].ids == row.ids
        for token in range(len(row)):
            for question in ("token_to_sequence", "token_to_word", "token_to_chars"):
                assert getattr(ours, question)(i, token) == getattr(theirs, question)(i, token)
                assert i or getattr(ours, question)(token) == getattr(theirs, question)(token)
        for sequence in range(row.n_sequences):
            for char in (0, 1, 5, 17, 40):
                for question in ("char_to_token", "char_to_word"):
                    assert getattr(ours, question)(i, char, sequence) == getattr(theirs, question)(i, char, sequence)
            for word in range(5):
                tokens = theirs.word_to_tokens(i, word, sequence)
                assert ours.word_to_tokens(i, word, sequence) == tokens
                if tokens is not None:
                    chars = ours.word_to_chars(i, word, sequence)
                    assert chars == theirs.word_to_chars(i, word, sequence)
                    assert (chars.start, chars.end) == tuple(chars)
    assert ours.token_to_chars(0, -2) == theirs[0].token_to_chars(len(theirs[0]) - 2)


@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
def test_other_calls(pair: Pair, call: Call) -> None:
    pair.assert_equal(call)


@given(
    texts=st.lists(st.sampled_from([text for text in TEXTS if text.strip()]), min_size=1, max_size=3),
    paired=st.booleans(),
    truncation=st.sampled_from([False, True, "only_first"]),
    max_length=st.integers(9, 40),
    stride=st.integers(0, 2),
    padding=st.sampled_from([False, True, "max_length"]),
    side=st.sampled_from(["left", "right"]),
    overflowing=st.booleans(),
    special=st.booleans(),
)
def test_any_options(small: Pair, texts: list[str], paired: bool, padding: Any, truncation: Any, **how: Any) -> None:
    if truncation == "only_first" and paired:
        return
    if truncation is False and padding != "max_length":
        del how["max_length"]
    given = {
        "padding": padding,
        "truncation": truncation,
        "padding_side": how.pop("side"),
        "return_overflowing_tokens": how.pop("overflowing"),
        "add_special_tokens": how.pop("special"),
        **how,
        **EVERYTHING,
    }
    small.assert_equal(options(texts, [CONTEXT] * len(texts) if paired else None, **given))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = write_roberta_files(tmp_path_factory.mktemp("roberta"))
    return Pair(LongformerTokenizer.from_pretrained(folder), LongformerTokenizerFast.from_pretrained(folder))


def both(folder: Path, **changes: Any) -> Pair:
    return Pair(
        LongformerTokenizer.from_pretrained(folder, **changes),
        LongformerTokenizerFast.from_pretrained(folder, **changes),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"padding_side": "left"},
        {"truncation_side": "left"},
        {"model_max_length": 24},
        {"add_prefix_space": True},
        {"pad_token": "</s>"},
        {"additional_special_tokens": ["<mask>", "wrote"]},
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    ],
    ids=str,
)
def test_settings_given_at_loading(changes: dict[str, Any], tmp_path: Path) -> None:
    pair = both(write_roberta_files(tmp_path), **changes)
    pair.ours.save_pretrained(tmp_path / "ours")
    again = both(tmp_path / "ours")
    crossed = Pair(again.ours, pair.theirs), Pair(pair.ours, again.theirs)
    for either in (pair, again, *crossed):
        for call in ("settings", "special tokens", "roles", "pad on the left", "pad", "sizes"):
            either.assert_equal(OTHERS[call])
        for call in ("pairs", "padding", "windows", "windows of both", "words", "cut True to 75"):
            either.assert_equal(ENCODINGS[call])
        if "model_max_length" in changes:
            either.assert_equal(options(QUESTION, CONTEXT, truncation=True))
            either.assert_equal(options(QUESTION, padding="max_length"))


def test_settings_that_are_changed(tmp_path: Path) -> None:
    pair = both(write_roberta_files(tmp_path))
    for tokenizer in (pair.ours, pair.theirs):
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.mask_token_id = 7
    for call in ("roles", "special tokens", "pad", "special tokens mask"):
        pair.assert_equal(OTHERS[call])
    for call in ("padding", "windows", "cut True to 75"):
        pair.assert_equal(ENCODINGS[call])


ADDING: dict[str, Call] = {
    "one": lambda tokenizer: tokenizer.add_tokens("<ent>"),
    "several": lambda tokenizer: tokenizer.add_tokens(["<ent>", "wrote", "<ent>", "Dan"]),
    "words with flags": lambda tokenizer: tokenizer.add_tokens([AddedToken("rote", single_word=True, lstrip=True)]),
    "special": lambda tokenizer: tokenizer.add_tokens(["<ent>", "[E]"], special_tokens=True),
    "by role": lambda tokenizer: tokenizer.add_special_tokens({"mask_token": "[M]", "pad_token": "<s>"}),
    "by role with flags": lambda tokenizer: tokenizer.add_special_tokens({"unk_token": AddedToken("[U]", rstrip=True)}),
    "extra": lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>", "[E]"]}),
    "extra twice": lambda tokenizer: [
        tokenizer.add_special_tokens({"extra_special_tokens": [token]}) for token in ("<ent>", "[E]")
    ],
    "extra beside": lambda tokenizer: [
        tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
        for token in ("<ent>", "[E]", "<ent>")
    ],
    "nothing": lambda tokenizer: (tokenizer.add_tokens([]), tokenizer.add_special_tokens({})),
}


@pytest.mark.parametrize("add", ADDING.values(), ids=ADDING)
def test_added_tokens(add: Call, tmp_path: Path) -> None:
    """At once, and after each has saved them and each has loaded the other's files."""
    pair = both(write_roberta_files(tmp_path))
    for tokenizer in (pair.ours, pair.theirs):
        tokenizer("wrote", split_special_tokens=True)  # what a call keeps for the next one knows the new tokens too
    pair.assert_equal(add)
    pair.ours.save_pretrained(tmp_path / "ours")
    pair.theirs.save_pretrained(tmp_path / "theirs")
    of_ours, of_theirs = both(tmp_path / "ours"), both(tmp_path / "theirs")
    for either in (pair, of_ours, of_theirs, Pair(of_theirs.ours, of_ours.theirs)):
        for call in (
            "vocabulary",
            "sizes",
            "roles",
            "special tokens",
            "extra special tokens",
            "special tokens by role",
        ):
            either.assert_equal(OTHERS[call])
        for text in (CONTEXT, "an <ent> and<ent>an [E] [M]x [U] y wrote rote  rote Dan"):
            for how in ({}, {"split_special_tokens": True}, {"truncation": True, "max_length": 12, "padding": True}):
                either.assert_equal(options(text, **how, **EVERYTHING))
            either.assert_equal(lambda tokenizer, text=text: tokenizer.tokenize(text))
            for skip in (False, True):
                either.assert_equal(
                    lambda tokenizer, text=text, skip=skip: tokenizer.decode(tokenizer.encode(text), skip)
                )


def test_added_tokens_of_the_older_files(tmp_path: Path) -> None:
    write_roberta_files(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<ent>": 420, "[E]": 421}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"extra_special_tokens": ["[E]"]}))
    pair = both(tmp_path)
    for call in ("vocabulary", "special tokens", "extra special tokens", "sizes"):
        pair.assert_equal(OTHERS[call])
    pair.assert_equal(options("an <ent> and [E] and", **EVERYTHING))
    pair.assert_equal(lambda tokenizer: tokenizer.decode([420, 5, 421], skip_special_tokens=True))


class TestCollatorsAndTrainer:
    def test_padding(self, small: Pair) -> None:
        def collate(tokenizer: Any) -> Any:
            features = [{**tokenizer(text), "label": i} for i, text in enumerate(QUESTIONS)]
            return transformers.DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)(features)

        small.assert_equal(collate)

    def test_token_classification(self, small: Pair) -> None:
        def collate(tokenizer: Any) -> Any:
            rows = [tokenizer(text)["input_ids"] for text in QUESTIONS]
            features = [{"input_ids": row, "labels": list(range(len(row)))} for row in rows]
            return transformers.DataCollatorForTokenClassification(tokenizer)(features)

        small.assert_equal(collate)

    def test_masked_language_modelling(self, small: Pair) -> None:
        def collate(tokenizer: Any) -> Any:
            collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4, seed=0)
            return collator([tokenizer(text) for text in QUESTIONS])

        small.assert_equal(collate)

    def test_a_training_run(self, small: Pair, tmp_path: Path) -> None:
        tokenizer = small.ours
        config = transformers.LongformerConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=130, attention_window=[8], pad_token_id=1, sep_token_id=2,
        )  # fmt: skip
        trainer = transformers.Trainer(
            transformers.LongformerForSequenceClassification(config),
            transformers.TrainingArguments(
                tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
            ),
            transformers.DataCollatorWithPadding(tokenizer),
            [{**tokenizer(text), "labels": i % 2} for i, text in enumerate(QUESTIONS)],
            processing_class=tokenizer,
        )
        assert trainer.train().global_step == 2
        trainer.save_model(tmp_path / "saved")
        assert plain(both(tmp_path / "saved").ours(QUESTIONS)) == plain(small.theirs(QUESTIONS))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False, "do_lower_case": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_vocabulary_of_berts_first_years(tmp_path: Path, config: dict[str, Any], line_end: str) -> None:
    """A folder with vocab.txt and tokenizer_config.json alone, as SciBERT and PubMedBERT have it."""
    write_bert_files(tmp_path)
    words = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
    (tmp_path / "tokenizer.json").unlink()
    lines = [word for word, _ in sorted(words.items(), key=lambda item: item[1])]
    lines += ["Hello", "Zürich", "caffè", "北京是中国的首都", "##首都"]  # what the settings make a difference to
    (tmp_path / "vocab.txt").write_bytes("".join(line + line_end for line in lines).encode())
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = LongformerTokenizer.from_pretrained(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]
    ids = ours("Hello Zürich")["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.cls_token, ours.sep_token, ours.pad_token_id) == ("[CLS]", "[SEP]", theirs.pad_token_id)
    ours.save_pretrained(tmp_path / "saved")
    assert LongformerTokenizer.from_pretrained(tmp_path / "saved")("Hello Zürich")["input_ids"] == ids


def test_words_that_end_at_spaces_alone(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nA\n##-\n##b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_basic_tokenize": false, "max_len": 12}')
    tokenizer = LongformerTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("A-b a [MASK]") == ["A", "##-", "##b", "[UNK]", "[MASK]"]
    assert tokenizer.model_max_length == 12
