"""Token ids, offsets and layout against transformers' tokenizers on the same files, live; and every error."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer as ReferenceAutoTokenizer
from transformers import BertTokenizerFast, LongformerTokenizerFast, RobertaTokenizerFast

from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.tokenizer import LongformerTokenizer

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


@pytest.fixture(scope="session")
def roberta_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE vocabulary in RoBERTa's two files, trained here."""
    folder = tmp_path_factory.mktemp("roberta")
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


@pytest.fixture(scope="session")
def bert_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small WordPiece ``tokenizer.json`` as BERT's checkpoints ship it: with truncation and padding of its own."""
    folder = tmp_path_factory.mktemp("bert")
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


@pytest.fixture(scope="session")
def roberta(roberta_files: Path) -> LongformerTokenizer:
    return LongformerTokenizer.from_pretrained(roberta_files)


@pytest.fixture(scope="session")
def bert(bert_files: Path) -> LongformerTokenizer:
    return LongformerTokenizer.from_pretrained(bert_files)


@pytest.fixture(scope="session")
def real(data_dir: Path) -> LongformerTokenizer:
    return LongformerTokenizer.from_pretrained(data_dir / "roberta-tokenizer")


@pytest.fixture(scope="session")
def reference(roberta_files: Path) -> LongformerTokenizerFast:
    return LongformerTokenizerFast.from_pretrained(roberta_files)


@pytest.fixture(scope="session")
def real_reference(data_dir: Path) -> RobertaTokenizerFast:
    return RobertaTokenizerFast.from_pretrained(data_dir / "roberta-tokenizer")


@pytest.fixture(scope="session")
def bert_reference(bert_files: Path) -> BertTokenizerFast:
    tokenizer = BertTokenizerFast.from_pretrained(bert_files)
    tokenizer._tokenizer.no_truncation()
    tokenizer._tokenizer.no_padding()
    return tokenizer


def segment(tokenizer: BertTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]


def assert_equal_on(ours: LongformerTokenizer, theirs: LongformerTokenizerFast, texts: list[str]) -> None:
    """Ids, offsets, sequence ids and decoded text, of every text alone and of neighbours as pairs."""
    for text in texts:
        encoding, expected = ours(text), theirs(text, return_offsets_mapping=True)
        assert encoding["input_ids"] == expected["input_ids"], text
        assert encoding["attention_mask"] == expected["attention_mask"]
        assert encoding.offsets == expected["offset_mapping"], text
        assert ours.decode(encoding["input_ids"]) == theirs.decode(expected["input_ids"])
        assert ours.decode(encoding["input_ids"], skip_special_tokens=True) == theirs.decode(
            expected["input_ids"], skip_special_tokens=True
        )
        assert ours.convert_ids_to_tokens(encoding["input_ids"]) == theirs.convert_ids_to_tokens(expected["input_ids"])
        verbatim = ours(text, split_special_tokens=True)
        assert verbatim["input_ids"] == theirs(text, split_special_tokens=True)["input_ids"], text
    filled = [text for text in texts if text.strip()]
    for question, context in itertools.pairwise(filled):
        encoding, expected = ours(question, context), theirs(question, context, return_offsets_mapping=True)
        assert encoding["input_ids"] == expected["input_ids"], (question, context)
        assert encoding.offsets == expected["offset_mapping"]
        assert encoding.sequence_ids == expected.sequence_ids()


class TestAgainstTheReference:
    def test_small_vocabulary(self, roberta: LongformerTokenizer, reference: LongformerTokenizerFast) -> None:
        assert_equal_on(roberta, reference, TEXTS)

    def test_real_vocabulary(self, real: LongformerTokenizer, real_reference: RobertaTokenizerFast) -> None:
        assert_equal_on(real, real_reference, TEXTS)

    def test_real_questions_and_contexts(
        self, real: LongformerTokenizer, real_reference: RobertaTokenizerFast, data_dir: Path
    ) -> None:
        articles = json.loads((data_dir / "xquad-en.json").read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        questions = [qa["question"] for paragraph in paragraphs for qa in paragraph["qas"]]
        contexts = [paragraph["context"] for paragraph in paragraphs for _ in paragraph["qas"]]
        encoding = real(questions, contexts, padding=True)
        expected = real_reference(questions, contexts, padding=True, return_offsets_mapping=True)
        assert len(questions) == 758
        assert encoding["input_ids"] == expected["input_ids"]
        assert encoding["attention_mask"] == expected["attention_mask"]
        assert encoding.offsets == expected["offset_mapping"]
        assert encoding.sequence_ids == [expected.sequence_ids(row) for row in range(758)]

    @given(st.text(max_size=40), st.sampled_from(["", "</s>", "<mask>", " ", "\n\n"]), st.text(max_size=40))
    def test_any_text(
        self, roberta: LongformerTokenizer, reference: LongformerTokenizerFast, head: str, middle: str, tail: str
    ) -> None:
        text = head + middle + tail
        assert roberta(text)["input_ids"] == reference(text)["input_ids"]

    @given(st.text(max_size=40), st.sampled_from(["", "[SEP]", "[MASK]", " "]), st.text(max_size=40))
    def test_any_text_word_piece(
        self, bert: LongformerTokenizer, bert_reference: BertTokenizerFast, head: str, middle: str, tail: str
    ) -> None:
        text = head + middle + tail
        assert bert(text)["input_ids"][1:-1] == segment(bert_reference, text)

    def test_special_tokens_of_the_real_vocabulary(self, real: LongformerTokenizer) -> None:
        assert real("Hello world!")["input_ids"] == [0, 31414, 232, 328, 2]
        ids = (real.cls_token_id, real.pad_token_id, real.sep_token_id, real.unk_token_id, real.mask_token_id)
        assert ids == (0, 1, 2, 3, 50264)
        assert (real.cls_token, real.sep_token, real.pad_token) == ("<s>", "</s>", "<pad>")
        assert (real.unk_token, real.mask_token) == ("<unk>", "<mask>")
        assert real.vocab_size == len(real) == 50265
        assert real.model_max_length is None

    def test_truncation_cuts_the_context(self, real: LongformerTokenizer, real_reference: RobertaTokenizerFast) -> None:
        question, context = "Where is it?", "It is " + "very " * 50 + "far away."
        for length in (11, 20, 59, 60, 64, 65, 1000):
            encoding = real(question, context, truncation=True, max_length=length)
            expected = real_reference(
                question, context, truncation="only_second", max_length=length, return_offsets_mapping=True
            )
            assert encoding["input_ids"] == expected["input_ids"]
            assert encoding.offsets == expected["offset_mapping"]
            alone = real(context, truncation=True, max_length=length)
            assert alone["input_ids"] == real_reference(context, truncation=True, max_length=length)["input_ids"]

    def test_word_piece_in_the_three_separator_layout(
        self, bert: LongformerTokenizer, bert_reference: BertTokenizerFast
    ) -> None:
        cls, sep = bert.cls_token_id, bert.sep_token_id
        assert (bert.cls_token, bert.sep_token, bert.pad_token) == ("[CLS]", "[SEP]", "[PAD]")
        filled = [text for text in TEXTS if text.strip()]
        for question, context in itertools.pairwise(filled):
            encoding = bert(question, context)
            first, second = (segment(bert_reference, text) for text in (question, context))
            assert encoding["input_ids"] == [cls, *first, sep, sep, *second, sep]
            theirs = [bert_reference(text, return_offsets_mapping=True) for text in (question, context)]
            expected = theirs[0]["offset_mapping"] + theirs[1]["offset_mapping"]
            assert encoding.offsets == expected
            assert encoding.sequence_ids == [None, *[0] * len(first), None, None, *[1] * len(second), None]
            assert bert(question)["input_ids"] == bert_reference(question)["input_ids"]
            assert bert.decode(first) == bert_reference.decode(first)

    def test_the_shipped_tokenizer(self, pretrained_dir: Path, data_dir: Path) -> None:
        ours, theirs = (
            LongformerTokenizer.from_pretrained(pretrained_dir),
            BertTokenizerFast.from_pretrained(pretrained_dir),
        )
        theirs._tokenizer.no_truncation()
        theirs._tokenizer.no_padding()
        articles = json.loads((data_dir / "xquad-en.json").read_text(encoding="utf-8"))["data"]
        for paragraph in (article["paragraphs"][0] for article in articles):
            first, second = paragraph["qas"][0]["question"], paragraph["context"]
            sep = ours.sep_token_id
            expected = [ours.cls_token_id, *segment(theirs, first), sep, sep, *segment(theirs, second), sep]
            assert ours(first, second)["input_ids"] == expected


MASK_EATS_SPACE = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
NEW_TOKEN = {"content": "<ent>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}


@pytest.mark.parametrize(
    "files",
    [
        {"special_tokens_map": {"mask_token": MASK_EATS_SPACE, "cls_token": "<s>"}},
        {"special_tokens_map": {"mask_token": MASK_EATS_SPACE}, "tokenizer_config": {"mask_token": "<mask>"}},
        {"tokenizer_config": {"mask_token": {"__type": "AddedToken", **MASK_EATS_SPACE}}},
        {"tokenizer_config": {"add_prefix_space": True, "model_max_length": 4096}},
        {
            "tokenizer_config": {
                "added_tokens_decoder": {
                    "420": {**NEW_TOKEN, "special": False},
                    "4": {**MASK_EATS_SPACE, "special": True},
                }
            }
        },
        {"added_tokens": {"<ent>": 420}},
        {"added_tokens": {"<ent>": 420}, "special_tokens_map": {"mask_token": "<ent>"}},
    ],
    ids=["map", "map-over-config", "typed", "prefix-space", "decoder", "added", "added-special"],
)
def test_the_files_that_older_checkpoints_have_beside_the_vocabulary(
    files: dict[str, object], roberta_files: Path, tmp_path: Path
) -> None:
    source, saved_by_us, saved_by_them = tmp_path / "source", tmp_path / "ours", tmp_path / "theirs"
    source.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (source / name).write_bytes((roberta_files / name).read_bytes())
    for name, content in files.items():
        (source / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    ours, theirs = LongformerTokenizer.from_pretrained(source), LongformerTokenizerFast.from_pretrained(source)
    ours.save_pretrained(saved_by_us)
    theirs.save_pretrained(saved_by_them)
    texts = [*TEXTS, "a <mask> b<mask> c  <mask>", "an <ent> and<ent>an <ENT>"]
    assert_equal_on(ours, theirs, texts)
    assert_equal_on(LongformerTokenizer.from_pretrained(saved_by_us), theirs, texts)
    assert_equal_on(LongformerTokenizer.from_pretrained(saved_by_them), theirs, texts)
    assert_equal_on(ours, LongformerTokenizerFast.from_pretrained(saved_by_us), texts)


class TestSaving:
    def test_word_piece_for_us_and_for_transformers(self, bert: LongformerTokenizer, tmp_path: Path) -> None:
        bert.save_pretrained(tmp_path / "new" / "folder")
        again = LongformerTokenizer.from_pretrained(tmp_path / "new" / "folder")
        theirs = ReferenceAutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
        for text in TEXTS[:10]:
            pair = ("Who did it?", text)
            assert again(*pair)["input_ids"] == bert(*pair)["input_ids"] == theirs(*pair)["input_ids"]
            assert set(theirs(*pair)) == {"input_ids", "attention_mask"}
        assert theirs.sep_token_id == bert.sep_token_id

    def test_the_older_files_are_written_too(self, roberta: LongformerTokenizer, tmp_path: Path) -> None:
        roberta.save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        again = LongformerTokenizer.from_pretrained(tmp_path)
        assert [again(text)["input_ids"] for text in TEXTS] == [roberta(text)["input_ids"] for text in TEXTS]

    @pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"])
    def test_what_cannot_be_written(self, bert: LongformerTokenizer, tmp_path: Path, name: str) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=r"the tokenizer cannot be written into .*: .*Is a directory.*; make"):
            bert.save_pretrained(tmp_path)

    def test_model_max_length(self, roberta_files: Path, tmp_path: Path) -> None:
        config = {"model_max_length": 4096}
        tokenizer = LongformerTokenizer(
            vocab=roberta_files / "vocab.json", merges=roberta_files / "merges.txt", config=config
        )
        tokenizer.save_pretrained(tmp_path)
        assert LongformerTokenizer.from_pretrained(tmp_path).model_max_length == 4096
        assert LongformerTokenizerFast.from_pretrained(tmp_path).model_max_length == 4096

    @pytest.mark.parametrize("limit", [int(1e30), 1e30, 0, -1, "512", None])
    def test_limits_that_are_none(self, limit: object, bert_files: Path) -> None:
        tokenizer = LongformerTokenizer(bert_files / "tokenizer.json", config={"model_max_length": limit})
        assert tokenizer.model_max_length is None

    def test_pickle_and_copy(self, roberta: LongformerTokenizer) -> None:
        encoding = roberta("Hello world!", "again", return_tensors="pt")
        for tokenizer in (pickle.loads(pickle.dumps(roberta)), copy.deepcopy(roberta)):
            assert tokenizer("Hello world!", "again").input_ids == encoding["input_ids"][0].tolist()
        again = pickle.loads(pickle.dumps(encoding))
        assert torch.equal(again["input_ids"], encoding["input_ids"]) and again.offsets == encoding.offsets


class TestEncoding:
    def test_the_model_cards_lines(self, real: LongformerTokenizer) -> None:
        tokenizer = real
        text = "Huggingface has democratized NLP. Huge thanks to Huggingface for this."
        question = "What has Huggingface done ?"
        encoding = tokenizer(question, text, return_tensors="pt")
        input_ids = encoding["input_ids"]
        attention_mask = encoding["attention_mask"]
        assert input_ids.shape == attention_mask.shape and attention_mask.all()
        start_scores, end_scores = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
        positions = [i for i, sequence in enumerate(encoding.sequence_ids[0]) if sequence == 1]
        first = next(i for i in positions if encoding.offsets[0][i][0] == text.index("democratized"))
        last = next(i for i in positions if encoding.offsets[0][i][1] == text.index("."))
        start_scores[0, first], end_scores[0, last] = 1, 1
        all_tokens = tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
        answer_tokens = all_tokens[torch.argmax(start_scores) : torch.argmax(end_scores) + 1]
        answer = tokenizer.decode(tokenizer.convert_tokens_to_ids(answer_tokens))
        assert answer == " democratized NLP"
        assert tokenizer.decode(tokenizer.convert_tokens_to_ids([])) == ""

    def test_a_dict_of_what_the_model_takes(self, roberta: LongformerTokenizer) -> None:
        encoding = roberta("Who?", "Me.", return_tensors="pt")
        assert list(encoding.keys()) == ["input_ids", "attention_mask"]
        assert dict(**encoding) == dict(encoding)
        assert encoding.input_ids is encoding["input_ids"] and encoding.attention_mask is encoding["attention_mask"]
        moved = encoding.to("cpu")
        assert torch.equal(moved.input_ids, encoding.input_ids)
        assert (moved.offsets, moved.sequence_ids) == (encoding.offsets, encoding.sequence_ids)
        with pytest.raises(LongformerError, match="return_tensors"):
            roberta("Who?", "Me.").to("cpu")

    def test_offsets_point_into_their_own_text(self, real: LongformerTokenizer) -> None:
        question, context = "Who is  Zoë?", " Zoë—my 🙂 sister—\n is here."
        encoding = real(question, context)
        covered = {0: set(), 1: set()}
        for (start, end), sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True):
            if sequence is None:
                assert (start, end) == (0, 0)
            else:
                covered[sequence].update(range(start, end))
        for sequence, text in enumerate((question, context)):
            missed = "".join(text[i] for i in range(len(text)) if i not in covered[sequence])
            assert not missed.strip(), missed

    def test_padding_a_batch(self, roberta: LongformerTokenizer) -> None:
        questions, contexts = ["a b", "who is it", "x"], ["c", "d e f g h", "y z"]
        rows = [roberta(*pair) for pair in zip(questions, contexts, strict=True)]
        longest = max(len(row["input_ids"]) for row in rows)
        for padding in (True, "longest"):
            batch = roberta(questions, contexts, padding=padding, return_tensors="pt")
            assert batch["input_ids"].shape == (3, longest)
            assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
            for i, row in enumerate(rows):
                real_length = len(row["input_ids"])
                rest = longest - real_length
                assert batch["input_ids"][i].tolist() == row["input_ids"] + [roberta.pad_token_id] * rest
                assert batch["attention_mask"][i].tolist() == [1] * real_length + [0] * rest
                assert batch.offsets[i] == row.offsets + [(0, 0)] * rest
                assert batch.sequence_ids[i] == row.sequence_ids + [None] * rest

    def test_without_padding_rows_keep_their_lengths(self, roberta: LongformerTokenizer) -> None:
        batch = roberta(["a b", "x"], ["c", "y z x"])
        assert batch["input_ids"] == [roberta("a b", "c")["input_ids"], roberta("x", "y z x")["input_ids"]]
        assert batch["attention_mask"] == [[1] * len(row) for row in batch["input_ids"]]

    def test_pairs_as_tuples(self, roberta: LongformerTokenizer) -> None:
        pairs = [("a b", "c"), ("x", "y z x")]
        assert roberta(pairs) == roberta(["a b", "x"], ["c", "y z x"])
        assert roberta(pairs).offsets == roberta(["a b", "x"], ["c", "y z x"]).offsets

    def test_arrays(self, roberta: LongformerTokenizer) -> None:
        arrays, tensors = (roberta(["a", "b c"], padding=True, return_tensors=kind) for kind in ("np", "pt"))
        assert isinstance(arrays["input_ids"], np.ndarray) and arrays["input_ids"].dtype == np.int64
        assert np.array_equal(arrays["input_ids"], tensors["input_ids"].numpy())
        assert roberta("a", return_tensors="np")["input_ids"].shape == (1, len(roberta("a")["input_ids"]))

    def test_without_offsets(self, roberta: LongformerTokenizer) -> None:
        for text in TEXTS[:8]:
            quick = roberta(text, "context", return_offsets=False)
            assert quick == roberta(text, "context") and quick.offsets is None
            assert quick.sequence_ids == roberta(text, "context").sequence_ids

    @pytest.mark.parametrize("kind", ["roberta", "bert"])
    def test_separators_in_a_document_can_be_made_ordinary_text(
        self, kind: str, request: pytest.FixtureRequest
    ) -> None:
        tokenizer: LongformerTokenizer = request.getfixturevalue(kind)
        text = f"a {tokenizer.sep_token} b {tokenizer.cls_token}{tokenizer.pad_token}"
        counts = []
        for split in (False, True):
            ids = tokenizer("who", text, split_special_tokens=split)["input_ids"]
            counts.append([ids.count(index) for index in (tokenizer.sep_token_id, tokenizer.cls_token_id)])
        assert counts == [[4, 2], [3, 1]]
        assert tokenizer("who", text)["input_ids"].count(tokenizer.sep_token_id) == 4  # nothing stays switched

    def test_threads_do_not_disturb_each_other(self, roberta_files: Path) -> None:
        tokenizer = LongformerTokenizer.from_pretrained(roberta_files)
        expected = [tokenizer("who", f"a </s> {'b ' * i}", split_special_tokens=i % 2 == 0) for i in range(40)]
        fresh = LongformerTokenizer.from_pretrained(roberta_files)
        with ThreadPoolExecutor(4) as pool:
            got = list(
                pool.map(lambda i: fresh("who", f"a </s> {'b ' * i}", split_special_tokens=i % 2 == 0), range(40))
            )
        assert got == expected


class TestIdsAndTokens:
    def test_one_and_several(self, roberta: LongformerTokenizer, reference: LongformerTokenizerFast) -> None:
        ids = list(range(roberta.vocab_size))
        tokens = roberta.convert_ids_to_tokens(ids)
        assert tokens == reference.convert_ids_to_tokens(ids)
        assert roberta.convert_tokens_to_ids(tokens) == ids
        assert roberta.convert_tokens_to_ids(tuple(tokens)) == ids
        for one in (7, np.int64(7), torch.tensor(7)):
            assert roberta.convert_ids_to_tokens(one) == tokens[7]
            assert roberta.decode(one) == reference.decode(7)
        assert roberta.convert_tokens_to_ids(tokens[7]) == 7
        for several in (np.array([5, 7]), torch.tensor([5, 7]), (5, 7)):
            assert roberta.convert_ids_to_tokens(several) == [tokens[5], tokens[7]]
            assert roberta.decode(several) == reference.decode([5, 7])

    def test_an_unknown_token_has_the_unknown_id(
        self, roberta: LongformerTokenizer, reference: LongformerTokenizerFast
    ) -> None:
        assert roberta.convert_tokens_to_ids("no such token") == reference.convert_tokens_to_ids("no such token")
        assert roberta.convert_tokens_to_ids(["no such token"]) == [roberta.unk_token_id]

    @pytest.mark.parametrize("index", [420, -1, 2**40])
    def test_an_unknown_id_is_refused(self, index: int, roberta: LongformerTokenizer) -> None:
        for ids in (index, [5, index]):
            for function in (roberta.convert_ids_to_tokens, roberta.decode):
                with pytest.raises(LongformerError, match=f"token id {index} .* 0 to 419"):
                    function(ids)

    @pytest.mark.parametrize(
        "ids", [1.5, [1.5], "12", ["12"], None, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64)]
    )
    def test_ids_of_no_use(self, ids: object, roberta: LongformerTokenizer) -> None:
        for function in (roberta.convert_ids_to_tokens, roberta.decode):
            with pytest.raises(LongformerError, match="pass one row"):
                function(ids)


class TestBadText:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("", "context"), "text is empty"),
            (("question", ""), "text_pair is empty"),
            (("question", " \n"), "text_pair is empty"),
            ((["a", "b"], ["c", ""]), r"text_pair\[1\] is empty"),
            ((3,), "text is of type int"),
            ((None,), "text is of type NoneType"),
            ((b"bytes", "context"), "text is of type bytes"),
            ((["a", None],), r"text\[1\] is of type NoneType"),
            ((["a", ("b", "c")],), r"text\[1\] is of type tuple"),
            (([("a", 3)],), r"text_pair\[0\] is of type int"),
            (([],), "the batch is empty"),
            (([], []), "the batch is empty"),
            ((["a", "b"], ["c"]), "text has 2 rows and text_pair 1"),
            ((["a"], "b"), "two strings, or two lists"),
            (("a", ["b"]), "two strings, or two lists"),
            (("ab\udc80", "context"), r"text has the lone surrogate U\+DC80 at character 2"),
        ],
    )
    def test_is_named(self, arguments: tuple[object, ...], message: str, roberta: LongformerTokenizer) -> None:
        with pytest.raises(DataError, match=message):
            roberta(*arguments)

    def test_text_of_which_nothing_remains(self, bert: LongformerTokenizer) -> None:
        with pytest.raises(DataError, match="the context has no tokens"):
            bert("who", "\u200b\ufeff")
        with pytest.raises(DataError, match="the question of row 1 has no tokens"):
            bert(["who", "\u200b"], ["me", "me"])

    def test_max_length_that_the_question_fills(self, roberta: LongformerTokenizer) -> None:
        fixed = len(roberta("who is it", "x")["input_ids"]) - len(roberta("x")["input_ids"]) + 2
        assert len(roberta("who is it", "x y z", truncation=True, max_length=fixed + 1)["input_ids"]) == fixed + 1
        with pytest.raises(
            DataError, match=f"max_length {fixed} .* question .* take {fixed}; give at least {fixed + 1}"
        ):
            roberta("who is it", "x y z", truncation=True, max_length=fixed)
        with pytest.raises(DataError, match="question of row 1"):
            roberta(["a", "who is it"], ["b", "x y z"], truncation=True, max_length=fixed)
        with pytest.raises(DataError, match="special tokens take 2; give at least 3"):
            roberta("who is it", truncation=True, max_length=2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": "max_length"}, "padding is 'max_length'"),
            ({"return_tensors": "tf"}, "return_tensors is 'tf'"),
            ({"truncation": "longest_first", "max_length": 9}, "truncation is 'longest_first'"),
            ({"max_length": 9}, "max_length 9 does nothing without truncation"),
            ({"truncation": True}, "needs max_length"),
        ],
    )
    def test_options_that_mean_nothing(
        self, options: dict[str, object], message: str, roberta: LongformerTokenizer
    ) -> None:
        with pytest.raises(LongformerError, match=message):
            roberta("question", "context", **options)

    def test_ragged_rows_in_one_tensor(self, roberta: LongformerTokenizer) -> None:
        with pytest.raises(LongformerError, match=r"rows of 3 to 5 tokens .* padding=True"):
            roberta(["x", "xyz"], return_tensors="pt")


class TestBadFiles:
    def write(self, folder: Path, roberta_files: Path, **changed: bytes | None) -> Path:
        names = {
            "vocab": "vocab.json",
            "merges": "merges.txt",
            "json": "tokenizer.json",
            "config": "tokenizer_config.json",
        }
        contents = {"vocab": (roberta_files / "vocab.json").read_bytes()}
        contents["merges"] = (roberta_files / "merges.txt").read_bytes()
        for key, content in {**contents, **changed}.items():
            if content is not None:
                (folder / names[key]).write_bytes(content)
        return folder

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"vocab": None}, r"neither tokenizer.json nor vocab.json; "),
            ({"merges": None}, r"neither tokenizer.json nor merges.txt; "),
            ({"vocab": None, "merges": None}, r"neither tokenizer.json nor vocab.json and merges.txt; "),
            ({"vocab": b""}, r"vocab.json is empty"),
            ({"vocab": b'{"a": '}, r"vocab.json is not valid JSON"),
            ({"vocab": b"\xff\xfe"}, r"vocab.json is not UTF-8 text: byte 0xff at offset 0"),
            ({"vocab": b"[1]"}, r"vocab.json holds a list; it must be an object"),
            ({"vocab": b'{"a": "b"}'}, r"vocab.json and .*merges.txt are not a byte-level BPE"),
            ({"vocab": b'{"a": -1}'}, r"vocab.json and .*merges.txt are not a byte-level BPE"),
            ({"merges": b"#version: 0.2\na b c\n"}, r"merges.txt are not a byte-level BPE"),
            ({"merges": b"#version: 0.2\nzz yy\n"}, r"merges.txt are not a byte-level BPE"),
            ({"vocab": b'{"<s>": 0, "<pad>": 1}', "merges": b""}, r"sep token '</s>' is not in the vocabulary"),
            ({"json": b"{}"}, r"tokenizer.json is not a tokenizer of the tokenizers library"),
            ({"json": b"nonsense"}, r"tokenizer.json is not valid JSON"),
            ({"config": b"[]"}, r"tokenizer_config.json holds a list"),
            ({"config": b'{"sep_token": "</zz>"}'}, r"sep token '</zz>' is not in the vocabulary"),
            ({"config": b'{"sep_token": 3}'}, r"sep token 3 is not in the vocabulary"),
            ({"config": b'{"added_tokens_decoder": {"x": 1}}'}, r"added_tokens_decoder beside it does not map"),
            ({"config": b'{"added_tokens_decoder": [1]}'}, r"added_tokens_decoder beside it does not map"),
            ({"config": b'{"added_tokens_decoder": {"999": {"content": "<new>"}}}'}, r"'<new>' has id 420, not 999"),
        ],
    )
    def test_is_named(
        self, changed: dict[str, bytes | None], message: str, roberta_files: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(CheckpointError, match=message):
            LongformerTokenizer.from_pretrained(self.write(tmp_path, roberta_files, **changed))

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="nowhere"):
            LongformerTokenizer.from_pretrained(tmp_path / "nowhere")

    def test_paths_given_by_hand(self, roberta_files: Path, tmp_path: Path) -> None:
        vocab, merges = roberta_files / "vocab.json", roberta_files / "merges.txt"
        with pytest.raises(CheckpointError, match=r"no file at .*absent.json"):
            LongformerTokenizer(tmp_path / "absent.json")
        with pytest.raises(CheckpointError, match=r"no file at .*absent.json"):
            LongformerTokenizer(vocab=tmp_path / "absent.json", merges=merges)
        with pytest.raises(CheckpointError, match=r"no file at .*absent.txt"):
            LongformerTokenizer(vocab=vocab, merges=tmp_path / "absent.txt")
        for arguments in ({}, {"vocab": vocab}, {"merges": merges}, {"tokenizer_json": vocab, "vocab": vocab}):
            with pytest.raises(LongformerError, match="give tokenizer_json alone, or both vocab and merges"):
                LongformerTokenizer(**arguments)

    def test_word_piece_without_its_unknown_token(self, tmp_path: Path) -> None:
        vocabulary = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.add_special_tokens([AddedToken("[SEP]", special=True)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(CheckpointError, match=r"unknown token '\[UNK\]' is not in the vocabulary"):
            LongformerTokenizer.from_pretrained(tmp_path)

    def test_a_vocabulary_without_unknown_and_mask(self, tmp_path: Path) -> None:
        vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3}
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        tokenizer = LongformerTokenizer.from_pretrained(tmp_path)
        assert (tokenizer.unk_token, tokenizer.unk_token_id, tokenizer.mask_token, tokenizer.mask_token_id) == (
            None,
        ) * 4
        assert tokenizer("aa", "a")["input_ids"] == [0, 3, 3, 2, 2, 3, 2]
        with pytest.raises(LongformerError, match="token 'b' is not in the vocabulary"):
            tokenizer.convert_tokens_to_ids("b")
