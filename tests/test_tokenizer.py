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
from small_tokenizers import TEXTS, write_bert_files, write_roberta_files
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer as ReferenceAutoTokenizer
from transformers import BertTokenizerFast, LongformerTokenizerFast, RobertaTokenizerFast

from longformer import LongformerForQuestionAnswering
from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.tokenizer import LongformerTokenizer


@pytest.fixture(scope="session")
def roberta_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roberta_files(tmp_path_factory.mktemp("roberta"))


@pytest.fixture(scope="session")
def bert_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_files(tmp_path_factory.mktemp("bert"))


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
        encoding, expected = (tokenizer(text, return_offsets_mapping=True) for tokenizer in (ours, theirs))
        assert encoding["input_ids"] == expected["input_ids"], text
        assert encoding["attention_mask"] == expected["attention_mask"]
        assert encoding["offset_mapping"] == expected["offset_mapping"], text
        assert ours.decode(encoding["input_ids"]) == theirs.decode(expected["input_ids"])
        assert ours.decode(encoding["input_ids"], skip_special_tokens=True) == theirs.decode(
            expected["input_ids"], skip_special_tokens=True
        )
        assert ours.convert_ids_to_tokens(encoding["input_ids"]) == theirs.convert_ids_to_tokens(expected["input_ids"])
        verbatim = ours(text, split_special_tokens=True)
        assert verbatim["input_ids"] == theirs(text, split_special_tokens=True)["input_ids"], text
    filled = [text for text in texts if text.strip()]
    for question, context in itertools.pairwise(filled):
        encoding, expected = (one(question, context, return_offsets_mapping=True) for one in (ours, theirs))
        assert encoding["input_ids"] == expected["input_ids"], (question, context)
        assert encoding["offset_mapping"] == expected["offset_mapping"]
        assert encoding.sequence_ids() == expected.sequence_ids()


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
        encoding = real(questions, contexts, padding=True, return_offsets_mapping=True)
        expected = real_reference(questions, contexts, padding=True, return_offsets_mapping=True)
        assert len(questions) == 758
        assert encoding["input_ids"] == expected["input_ids"]
        assert encoding["attention_mask"] == expected["attention_mask"]
        assert encoding["offset_mapping"] == expected["offset_mapping"]
        assert all(encoding.sequence_ids(row) == expected.sequence_ids(row) for row in range(758))

    @given(st.text(max_size=40), st.sampled_from(["", "</s>", "<mask>", " ", "\n\n"]), st.text(max_size=40))
    @pytest.mark.slow
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
        assert real.model_max_length == int(1e30)  # as in transformers

    def test_word_piece_in_the_three_separator_layout(
        self, bert: LongformerTokenizer, bert_reference: BertTokenizerFast
    ) -> None:
        cls, sep = bert.cls_token_id, bert.sep_token_id
        assert (bert.cls_token, bert.sep_token, bert.pad_token) == ("[CLS]", "[SEP]", "[PAD]")
        filled = [text for text in TEXTS if text.strip()]
        for question, context in itertools.pairwise(filled):
            encoding = bert(question, context, return_offsets_mapping=True)
            first, second = (segment(bert_reference, text) for text in (question, context))
            assert encoding["input_ids"] == [cls, *first, sep, sep, *second, sep]
            theirs = [bert_reference(text, return_offsets_mapping=True) for text in (question, context)]
            expected = theirs[0]["offset_mapping"] + theirs[1]["offset_mapping"]
            assert encoding["offset_mapping"] == expected
            assert encoding.sequence_ids() == [None, *[0] * len(first), None, None, *[1] * len(second), None]
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
        assert tokenizer.model_max_length == int(1e30)

    def test_pickle_and_copy(self, roberta: LongformerTokenizer) -> None:
        encoding = roberta("Hello world!", "again", return_tensors="pt", return_offsets_mapping=True)
        for tokenizer in (pickle.loads(pickle.dumps(roberta)), copy.deepcopy(roberta)):
            assert tokenizer("Hello world!", "again").input_ids == encoding["input_ids"][0].tolist()
        again = pickle.loads(pickle.dumps(encoding))
        assert list(again) == list(encoding) and all(torch.equal(again[name], encoding[name]) for name in encoding)
        assert again.char_to_token(6) == encoding.char_to_token(6) is not None


MODEL_CARD = """
import torch
from longformer import LongformerTokenizer as AutoTokenizer
from longformer import LongformerForQuestionAnswering as AutoModelForQuestionAnswering

tokenizer = AutoTokenizer.from_pretrained("valhalla/longformer-base-4096-finetuned-squadv1")
model = AutoModelForQuestionAnswering.from_pretrained("valhalla/longformer-base-4096-finetuned-squadv1")

text = "Huggingface has democratized NLP. Huge thanks to Huggingface for this."
question = "What has Huggingface done ?"
encoding = CALL(question, text, return_tensors="pt")
input_ids = encoding["input_ids"]

# default is local attention everywhere
# the forward method will automatically set global attention on question tokens
attention_mask = encoding["attention_mask"]

FORWARD
all_tokens = tokenizer.convert_ids_to_tokens(input_ids[0].tolist())

answer_tokens = all_tokens[torch.argmax(start_scores) :torch.argmax(end_scores)+1]
answer = tokenizer.decode(tokenizer.convert_tokens_to_ids(answer_tokens))
# output => democratized NLP
"""
# What the card of valhalla/longformer-base-4096-finetuned-squadv1 printed in 2020, and what it prints since.
IN_2020 = "start_scores, end_scores = model(input_ids, attention_mask=attention_mask)"
TODAY = """
outputs = model(input_ids, attention_mask=attention_mask)
start_scores, end_scores = outputs.start_logits, outputs.end_logits
"""


@pytest.mark.parametrize("forward", [IN_2020, TODAY], ids=["2020", "today"])
@pytest.mark.parametrize("call", ["tokenizer.encode_plus", "tokenizer"])
def test_the_model_cards_own_code(
    call: str, forward: str, pretrained_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its import line is another; the checkpoint of that name is here the one that the package ships."""
    (tmp_path / "valhalla").mkdir()
    (tmp_path / "valhalla" / "longformer-base-4096-finetuned-squadv1").symlink_to(pretrained_dir)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(MODEL_CARD.replace("CALL", call).replace("FORWARD", forward), names)
    assert names["answer"] == "democratized nlp"  # whose tokens have no capitals


def test_one_line_into_the_model(pretrained_dir: Path) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(pretrained_dir)
    model = LongformerForQuestionAnswering.from_pretrained(pretrained_dir)
    with torch.no_grad():
        outputs = model(**tokenizer("Who fell?", "Dan fell. Ann did not.", return_tensors="pt").to("cpu"))
    assert outputs.start_logits.shape == (1, len(tokenizer("Who fell?", "Dan fell. Ann did not.")["input_ids"]))


class TestEncoding:
    def test_a_dict_of_what_the_model_takes(self, roberta: LongformerTokenizer) -> None:
        encoding = roberta("Who?", "Me.", return_tensors="pt")
        assert list(encoding.keys()) == ["input_ids", "attention_mask"]
        assert dict(**encoding) == dict(encoding)
        assert encoding.input_ids is encoding["input_ids"] and encoding.attention_mask is encoding["attention_mask"]
        moved = encoding.to(torch.device("meta"), non_blocking=True)
        assert moved is encoding and encoding.input_ids.is_meta and encoding["attention_mask"].is_meta
        assert roberta("Who?", "Me.", return_tensors="pt").to("cpu").sequence_ids() == moved.sequence_ids()
        with pytest.raises(LongformerError, match="return_tensors"):
            roberta("Who?", "Me.").to("cpu")

    def test_offsets_point_into_their_own_text(self, real: LongformerTokenizer) -> None:
        question, context = "Who is  Zoë?", " Zoë—my 🙂 sister—\n is here."
        encoding = real(question, context, return_offsets_mapping=True)
        covered = {0: set(), 1: set()}
        for (start, end), sequence in zip(encoding["offset_mapping"], encoding.sequence_ids(), strict=True):
            if sequence is None:
                assert (start, end) == (0, 0)
            else:
                covered[sequence].update(range(start, end))
        for sequence, text in enumerate((question, context)):
            missed = "".join(text[i] for i in range(len(text)) if i not in covered[sequence])
            assert not missed.strip(), missed

    def test_padding_a_batch(self, roberta: LongformerTokenizer) -> None:
        questions, contexts = ["a b", "who is it", "x"], ["c", "d e f g h", "y z"]
        rows = [roberta(*pair, return_offsets_mapping=True) for pair in zip(questions, contexts, strict=True)]
        longest = max(len(row["input_ids"]) for row in rows)
        for padding in (True, "longest"):
            batch = roberta(questions, contexts, padding=padding, return_tensors="pt", return_offsets_mapping=True)
            assert batch["input_ids"].shape == (3, longest)
            assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
            for i, row in enumerate(rows):
                real_length = len(row["input_ids"])
                rest = longest - real_length
                assert batch["input_ids"][i].tolist() == row["input_ids"] + [roberta.pad_token_id] * rest
                assert batch["attention_mask"][i].tolist() == [1] * real_length + [0] * rest
                assert batch["offset_mapping"][i].tolist() == [*map(list, row["offset_mapping"])] + [[0, 0]] * rest
                assert batch.sequence_ids(i) == row.sequence_ids() + [None] * rest

    def test_without_padding_rows_keep_their_lengths(self, roberta: LongformerTokenizer) -> None:
        batch = roberta(["a b", "x"], ["c", "y z x"])
        assert batch["input_ids"] == [roberta("a b", "c")["input_ids"], roberta("x", "y z x")["input_ids"]]
        assert batch["attention_mask"] == [[1] * len(row) for row in batch["input_ids"]]

    def test_pairs_as_tuples(self, roberta: LongformerTokenizer) -> None:
        pairs = [("a b", "c"), ("x", "y z x")]
        for batch in (pairs, [list(pair) for pair in pairs]):
            encoding = roberta(batch, return_offsets_mapping=True)
            assert encoding == roberta(["a b", "x"], ["c", "y z x"], return_offsets_mapping=True)

    def test_arrays(self, roberta: LongformerTokenizer) -> None:
        arrays, tensors = (roberta(["a", "b c"], padding=True, return_tensors=kind) for kind in ("np", "pt"))
        assert isinstance(arrays["input_ids"], np.ndarray) and arrays["input_ids"].dtype == np.int64
        assert np.array_equal(arrays["input_ids"], tensors["input_ids"].numpy())
        assert roberta("a", return_tensors="np")["input_ids"].shape == (1, len(roberta("a")["input_ids"]))

    def test_without_offsets(self, roberta: LongformerTokenizer) -> None:
        for text in TEXTS[:8]:
            quick = roberta(text, "context", track_offsets=False)
            assert quick == roberta(text, "context")
            assert quick.sequence_ids() == roberta(text, "context").sequence_ids()
            for question in (quick.char_to_token, quick.token_to_chars, quick.char_to_word, quick.word_to_chars):
                with pytest.raises(LongformerError, match="track_offsets=False"):
                    question(1)

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
        is_batch = isinstance(ids, torch.Tensor) and not ids.is_floating_point()  # which decode takes
        for function in (roberta.convert_ids_to_tokens, *([] if is_batch else [roberta.decode])):
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

    def test_max_length_that_the_other_half_fills(self, roberta: LongformerTokenizer) -> None:
        fixed = len(roberta("who is it", "x")["input_ids"]) - len(roberta("x")["input_ids"]) + 2
        cut = {"truncation": "only_second", "max_length": fixed}
        assert len(roberta("who is it", "x y z", **cut | {"max_length": fixed + 1})["input_ids"]) == fixed + 1
        with pytest.raises(
            DataError,
            match=f"max_length {fixed} .* question and the special tokens take {fixed}; give at least {fixed + 1}",
        ):
            roberta("who is it", "x y z", **cut)
        with pytest.raises(DataError, match="question of row 1"):
            roberta(["a", "who is it"], ["b", "x y z"], **cut)
        with pytest.raises(
            DataError, match=f"the context and the special tokens take {fixed}; give at least {fixed + 1}"
        ):
            roberta("x y z", "who is it", **cut | {"truncation": "only_first"})
        with pytest.raises(DataError, match="special tokens take 2; give at least 3"):
            roberta("who is it", truncation=True, max_length=2)
        with pytest.raises(DataError, match="special tokens take 4; give at least 5"):
            roberta("who is it", "x y z", truncation=True, max_length=4)

    @pytest.mark.parametrize("truncation", ["longest_first", "only_first", "only_second"])
    @pytest.mark.parametrize("max_length", range(5, 24))
    def test_a_stride_that_leaves_no_room(
        self, truncation: str, max_length: int, roberta: LongformerTokenizer, reference: LongformerTokenizerFast
    ) -> None:
        pair, how = ("abcdef", "uvwxyzuvwxyz"), {"truncation": truncation, "max_length": max_length}
        for stride in range(8):
            try:
                encoding = roberta(*pair, **how, stride=stride, return_overflowing_tokens=True)
            except DataError as error:
                remedy = int(str(error).rpartition("at least ")[2])
                again = roberta(*pair, **how | {"max_length": remedy}, stride=stride, return_overflowing_tokens=True)
                assert max_length < remedy and again["input_ids"]
            else:
                expected = reference(*pair, **how, stride=stride, return_overflowing_tokens=True)
                assert encoding["input_ids"] == expected["input_ids"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"padding": "max_len"}, "'max_len' is no value of padding; did you mean \"'max_length'\"?"),
            ({"padding": 1}, "'1' is no value of padding"),
            ({"return_tensors": "tf"}, "'tf' is no value of return_tensors; .*'pt', 'np'"),
            ({"truncation": "only_secnd", "max_length": 9}, "'only_secnd' is no .* did you mean \"'only_second'\"?"),
            ({"padding_side": "top"}, "'top' is no value of padding_side"),
            ({"max_length": 9, "truncation": False}, "max_length 9 does nothing without truncation"),
            ({"max_length": 9, "padding": True}, "max_length 9 does nothing without truncation"),
            ({"max_length": 0, "truncation": True}, "max_length is 0; it must be an int of at least 1"),
            ({"max_length": "9", "truncation": True}, "max_length is '9'"),
            ({"stride": -1}, "stride is -1; it must be an int of at least 0"),
            ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
            ({"truncation": True}, "truncation=True needs max_length"),
            ({"padding": "max_length"}, 'padding="max_length" needs max_length'),
            ({"return_offsets_mapping": True, "track_offsets": False}, "return_offsets_mapping=True needs"),
            ({"truncation": True, "padding": True, "max_length": 9, "pad_to_multiple_of": 4}, "9 is no multiple of"),
            ({"return_tensor": "pt"}, "'return_tensor' is no option .* did you mean 'return_tensors'?"),
            ({"max_lenght": 9}, "'max_lenght' is no option of the tokenizer; did you mean 'max_length'?"),
        ],
    )
    def test_options_that_mean_nothing(
        self, options: dict[str, object], message: str, roberta: LongformerTokenizer
    ) -> None:
        with pytest.raises(LongformerError, match=message):
            roberta("question", "context", **options)

    def test_only_second_of_one_text(self, roberta: LongformerTokenizer) -> None:
        with pytest.raises(LongformerError, match="'only_second' cuts text_pair, but there is none"):
            roberta("question", truncation="only_second", max_length=9)

    def test_options_of_loading(self, roberta_files: Path) -> None:
        with pytest.raises(LongformerError, match=r"'padding_sid' is no option .* did you mean 'padding_side'\?"):
            LongformerTokenizer.from_pretrained(roberta_files, padding_sid="left")
        with pytest.raises(LongformerError, match="'top' is no value of truncation_side"):
            LongformerTokenizer.from_pretrained(roberta_files, truncation_side="top")

    def test_tokens_that_are_none(self, roberta_files: Path) -> None:
        tokenizer = LongformerTokenizer.from_pretrained(roberta_files)
        with pytest.raises(LongformerError, match=r"'cls_tokn' is no special token; did you mean 'cls_token'\?"):
            tokenizer.add_special_tokens({"cls_tokn": "<c>"})
        with pytest.raises(LongformerError, match="extra_special_tokens is '<c>'; it must be a list"):
            tokenizer.add_special_tokens({"extra_special_tokens": "<c>"})
        with pytest.raises(LongformerError, match="'3' is no token; give a str"):
            tokenizer.add_tokens([3])
        with pytest.raises(LongformerError, match="mask_token '<m>' is not in the vocabulary; call add_special"):
            tokenizer.mask_token = "<m>"
        with pytest.raises(LongformerError, match="already_has_special_tokens=True"):
            tokenizer.get_special_tokens_mask([5, 6])
        assert len(tokenizer) == 420

    def test_what_cannot_be_padded(self, roberta: LongformerTokenizer) -> None:
        with pytest.raises(LongformerError, match=r"needs encodings with 'input_ids', but there are \['labels'\]"):
            roberta.pad([{"labels": 1}])
        with pytest.raises(LongformerError, match="not every encoding has 'labels'"):
            roberta.pad([{"input_ids": [1], "labels": 1}, {"input_ids": [1]}])
        with pytest.raises(LongformerError, match="labels: rows of 1 to 2 tokens do not fit"):
            roberta.pad(
                [{"input_ids": [1], "labels": [1]}, {"input_ids": [1, 2], "labels": [1, 2]}], return_tensors="pt"
            )
        with pytest.raises(LongformerError, match="text does not fit a tensor"):
            roberta.pad([{"input_ids": [1], "text": "a"}], return_tensors="pt")
        with pytest.raises(LongformerError, match="made by pad"):
            roberta.pad([roberta("a")]).char_to_token(0)

    def test_an_entry_that_is_not_there(self, roberta: LongformerTokenizer) -> None:
        with pytest.raises(AttributeError, match="no 'labels'; it has input_ids, attention_mask"):
            roberta("a").labels  # noqa: B018
        with pytest.raises(KeyError):
            roberta("a")["labels"]

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
            ({"vocab": b"\xff"}, r"vocab.json is not UTF-8 text: byte 0xff at offset 0"),
            ({"vocab": b"[1]"}, r"vocab.json holds a list; it must be an object"),
            ({"vocab": b'{"a": "b"}'}, r"vocab.json and .*merges.txt are not a byte-level BPE"),
            ({"vocab": b'{"a": -1}'}, r"vocab.json and .*merges.txt are not a byte-level BPE"),
            ({"merges": b"#version: 0.2\na b c\n"}, r"merges.txt are not a byte-level BPE"),
            ({"merges": b"#version: 0.2\nzz yy\n"}, r"merges.txt are not a byte-level BPE"),
            ({"vocab": b'{"<s>": 0, "<pad>": 1}', "merges": b""}, r"sep_token '</s>' is not in the vocabulary"),
            ({"json": b"{}"}, r"tokenizer.json is not a tokenizer of the tokenizers library"),
            ({"json": b"nonsense"}, r"tokenizer.json is not valid JSON"),
            ({"config": b"[]"}, r"tokenizer_config.json holds a list"),
            ({"config": b'{"sep_token": "</zz>"}'}, r"sep_token '</zz>' is not in the vocabulary"),
            ({"config": b'{"sep_token": 3}'}, r"sep_token 3 is not in the vocabulary"),
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
