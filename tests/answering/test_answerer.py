"""QuestionAnswerer: which span wins, over how many windows, and what is refused before any work."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from fake_answerer import CLS, PAD, SEP, TWICE, FakeModel, FakeTokenizer, LetterByLetter, planted, uneven
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import byte_level_tokenizer, save_tiny_checkpoint, tiny_model, wordpiece_tokenizer
from torch import Tensor

from longformer import CheckpointError, DataError, LongformerError
from longformer.answering.answerer import QuestionAnswerer, group_by_length
from longformer.answering.settings import AnswerSettings
from longformer.answering.spans import Answer, top_spans


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


class TestSpans:
    def test_the_best_span_with_its_characters(self):
        document = "xxxAyyBxxx"
        (answer,) = planted({"A": 5}, {"B": 5}).answer("q", document)
        assert answer == Answer("AyyB", answer.probability, 3, 7)
        assert document[answer.start : answer.end] == answer.text
        spans = sum(math.exp(5 * (i == 3) + 5 * (j == 6)) for i in range(10) for j in range(i, 10))
        assert answer.probability == pytest.approx(math.exp(10) / spans, rel=1e-6)

    def test_the_end_is_never_before_the_start(self):
        assert texts(planted({"A": 5}, {"B": 4}).answer("q", "xxBxxAxx")) == ["A"]

    @pytest.mark.parametrize("most, expected", [(1, "A"), (3, "Ax"), (4, "Ax"), (5, "AxxxB"), (100, "AxxxB")])
    def test_answers_are_no_longer_than_asked(self, most, expected):
        answers = planted({"A": 5}, {"B": 5, "x": 1}).answer("q", "AxxxB", max_answer_tokens=most)
        assert texts(answers) == [expected]

    def test_question_and_special_tokens_are_no_answers(self):
        model = FakeModel(lambda t, i: 9 * (t in (CLS, SEP, ord("q"))), lambda t, i: 9 * (t in (CLS, SEP, ord("q"))))
        assert texts(LetterByLetter(model, FakeTokenizer()).answer("qqq", "ab")) == ["a"]

    def test_among_equals_the_earlier_then_the_shorter(self):
        answers = planted({}, {}).answer("q", "abc", top_k=10)
        assert texts(answers) == ["a", "ab", "abc", "b", "bc", "c"]
        assert [answer.probability for answer in answers] == pytest.approx([1 / 6] * 6)

    def test_fewer_answers_where_there_are_fewer(self):
        assert len(planted({}, {}).answer("q", "ab", top_k=100)) == 3

    def test_no_white_space_around_answers(self):
        answers = planted({" ": 9, "\n": 9}, {" ": 9, "\n": 9}).answer("q", " a \n b ", top_k=100)
        assert sorted(texts(answers)) == ["a", "a \n b", "b"]

    def test_the_same_characters_come_back_once(self):
        # Four token spans (two starts by two ends, less the one that runs backwards) are this one character.
        answers = planted({}, {}).answer("q", TWICE, top_k=10)
        assert [(answer.text, answer.probability) for answer in answers] == [(TWICE, pytest.approx(1 / 3))]

    def test_no_two_answers_are_alike_and_none_is_lost_to_duplicates(self):
        answers = planted({TWICE: 5}, {TWICE: 5}).answer("q", TWICE + "ab", top_k=6)
        assert len(set(answers)) == 6

    def test_top_spans_of_a_window_without_any(self):
        assert top_spans(torch.full((3, 2), -math.inf), 5) == []


def brute_force(answerer: QuestionAnswerer, question: str, document: str, **settings: int) -> list[Answer]:
    """The same by trying everything: each span in the window where its nearer edge is farthest."""
    top_k, longest, stride = settings["top_k"], settings["max_answer_tokens"], settings["stride"]
    encoding = FakeTokenizer()(document, return_offsets_mapping=True, split_special_tokens=True)
    ids, offsets = encoding["input_ids"][1:-1], encoding["offset_mapping"][1:-1]
    prefix = len(FakeTokenizer()(question, split_special_tokens=True)["input_ids"]) + 1
    capacity = settings["max_length"] - prefix - 1
    windows = [(0, min(capacity, len(ids)))]
    while windows[-1][1] < len(ids):
        first = windows[-1][0] + stride
        windows.append((first, min(first + capacity, len(ids))))
    scores: dict[tuple[int, int], float] = {}
    total = 0.0
    for i, j in itertools.combinations_with_replacement(range(len(ids)), 2):
        if j - i >= longest or document[slice(*offsets[i])].isspace() or document[slice(*offsets[j])].isspace():
            continue
        holding = [(first, stop) for first, stop in windows if first <= i and j < stop]
        first, _ = max(holding, key=lambda window: min(i - window[0], window[1] - 1 - j))
        score = answerer.model.start(ids[i], prefix + i - first) + answerer.model.end(ids[j], prefix + j - first)
        total += math.exp(score)
        span = offsets[i][0], offsets[j][1]
        scores[span] = max(score, scores.get(span, -math.inf))
    ranked = sorted(scores, key=lambda span: (-scores[span], span))
    return [Answer(document[a:b], math.exp(scores[a, b]) / total, a, b) for a, b in ranked[:top_k]]


@st.composite
def cases(draw):
    document = draw(st.text(f"ab{TWICE} ", min_size=1, max_size=30).filter(lambda text: text.strip()))
    longest = draw(st.integers(1, 8))
    capacity = draw(st.integers(longest, 40))
    return document, {
        "max_answer_tokens": longest,
        "stride": draw(st.integers(1, capacity - longest + 1)),
        "max_length": capacity + 6,
        "top_k": draw(st.integers(1, 12)),
    }


class TestWindows:
    @given(cases())
    def test_answers_equal_those_of_trying_everything(self, case):
        document, settings = case
        answerer = uneven()
        answers, expected = (
            answerer.answer("qq", document, **settings),
            brute_force(answerer, "qq", document, **settings),
        )
        assert [(a.text, a.start, a.end) for a in answers] == [(a.text, a.start, a.end) for a in expected]
        assert [a.probability for a in answers] == pytest.approx([a.probability for a in expected], rel=1e-9)

    @given(cases())
    def test_probabilities_sum_to_at_most_one(self, case):
        document, settings = case
        answers = uneven().answer("qq", document, **{**settings, "top_k": 10_000})
        assert all(0 < answer.probability <= 1 for answer in answers)
        assert sum(answer.probability for answer in answers) <= 1 + 1e-9
        if TWICE not in document:
            assert sum(answer.probability for answer in answers) == pytest.approx(1)

    @pytest.mark.parametrize("place", [0, 7, 43, 44, 45, 89, 90, 150, 298])
    def test_an_answer_anywhere_in_a_long_document(self, place):
        document = "x" * place + "AB" + "x" * (298 - place)
        answerer = planted({"A": 5}, {"B": 5}, max_tokens=60)
        (answer,) = answerer.answer("qq", document)
        assert (answer.text, answer.start) == ("AB", place)
        assert sum(map(len, answerer.model.rows)) > 5

    def test_the_default_stride_shares_a_quarter(self):
        answerer = planted({}, {}, max_tokens=126)
        answerer.answer("qq", "x" * 200)
        (rows,) = answerer.model.rows
        assert [row.count(ord("x")) for row in rows] == [120, 110]  # from 0 and from 90

    def test_windows_share_a_whole_answer_by_default(self):
        answerer = planted({"A": 5}, {"B": 5}, max_tokens=46)  # 40 for the document, of which a quarter is too little
        for place in range(100):
            document = "x" * place + "A" + "x" * 28 + "B" + "x" * (100 - place)
            assert answerer.answer("qq", document)[0].start == place

    def test_where_two_windows_hold_a_span_the_one_with_more_context_decides(self):
        # Windows of 20 tokens at 0 and 10. Seen near an edge, "b" looks best; seen from afar, "c".
        def start(token: int, place: int) -> float:
            edge = min(place - 5, 24 - place)
            return {"b": 9 if edge < 5 else 0, "c": 5}.get(chr(token), 0)

        answerer = LetterByLetter(FakeModel(start, lambda t, i: 0), FakeTokenizer())
        document = "x" * 12 + "b" + "x" * 4 + "c" + "x" * 12
        settings = {"max_answer_tokens": 1, "max_length": 26, "stride": 10}
        assert answerer.answer("qq", document, **settings)[0].text == "c"

    def test_the_document_is_tokenised_whole(self):
        answerer = planted({}, {}, max_tokens=60)
        answerer.answer("qq", "x" * 300)
        assert answerer.tokenizer.texts == ["qq", "x" * 300]

    def test_windows_follow_the_whole_question(self):
        answerer = planted({}, {}, max_tokens=40)
        answerer.answer("  why ", "x" * 50)
        for row in itertools.chain(*answerer.model.rows):
            assert row[:7] == [CLS, *map(ord, "why"), SEP, SEP, ord("x")]
            assert [token for token in row if token != PAD][-1] == SEP


PAIRS = [("q" * (i % 3 + 1), "abcd" * (1 + 7 * i % 23)) for i in range(23)]


class TestBatches:
    def test_agrees_with_one_at_a_time(self):
        answerer = uneven(max_tokens=50)
        settings = {"top_k": 3, "max_answer_tokens": 5}
        assert answerer.answer_batch(PAIRS, **settings) == [
            answerer.answer(question, document, **settings) for question, document in PAIRS
        ]

    @pytest.mark.parametrize("batch_tokens", [1, 40, 200, 10_000])
    def test_the_size_of_batches_changes_no_answer(self, batch_tokens):
        answerer = uneven(max_tokens=50)
        expected = answerer.answer_batch(PAIRS)
        answerer.model.rows.clear()
        assert answerer.answer_batch(PAIRS, batch_tokens=batch_tokens) == expected
        for rows in answerer.model.rows:
            assert len(rows) == 1 or len(rows) * len(rows[0]) <= batch_tokens

    def test_short_questions_are_not_padded_to_long_ones(self):
        answerer = uneven()
        answerer.answer_batch([("q", "a" * n) for n in (5, 400, 6, 390, 5, 100)])
        assert [sorted(sum(t != PAD for t in row) for row in rows) for rows in answerer.model.rows] == [
            [395, 405],
            [105],
            [10, 10, 11],
        ]

    @given(st.lists(st.integers(1, 300)), st.integers(1, 600))
    def test_grouping(self, lengths, batch_tokens):
        batches = group_by_length(lengths, batch_tokens)
        assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= batch_tokens
            assert min(lengths[i] for i in batch) >= 0.75 * longest

    def test_progress_counts_every_question_once(self):
        seen: list[int] = []
        uneven(max_tokens=50).answer_batch(PAIRS, batch_tokens=100, progress=seen.append)
        assert sum(seen) == len(PAIRS) and len(seen) > 3 and all(seen)

    def test_windows_are_counted_as_they_are_read(self):
        seen: list[tuple[int, int]] = []
        question, document = PAIRS[0]
        uneven(max_tokens=50).answer(question, document * 200, windows=lambda *found: seen.append(found))
        assert len(seen) > 1 and {total for _, total in seen} == {sum(done for done, _ in seen)}

    def test_a_document_is_tokenised_once(self):
        answerer = uneven()
        answerer.answer_batch([("p", "abc"), ("q", "abc"), ("r", "abc")])
        assert answerer.tokenizer.texts == ["p", "abc", "q", "r"]

    def test_nothing_to_answer(self):
        assert uneven().answer_batch([]) == []

    def test_the_message_says_which_pair(self):
        answerer = uneven()
        with pytest.raises(DataError, match=r"^pairs\[1\]: the document is empty"):
            answerer.answer_batch([("q", "abc"), ("q", "")])
        assert answerer.model.rows == []

    def test_settings_as_one_thing_or_by_name(self):
        answerer = uneven(max_tokens=50)
        settings = AnswerSettings(top_k=3, max_answer_tokens=5)
        expected = answerer.answer_batch(PAIRS, top_k=3, max_answer_tokens=5)
        assert answerer.answer_batch(PAIRS, settings=settings) == expected
        assert answerer.answer(*PAIRS[4], settings=settings) == expected[4]
        assert answerer.answer(*PAIRS[4], settings=settings, top_k=2) == expected[4][:2]

    def test_no_gradients_and_no_dropout_and_training_goes_on(self):
        answerer = uneven()
        answerer.model.train()
        answerer.answer("q", "abc")
        assert answerer.model.modes == [(False, False)]
        assert answerer.model.training
        answerer.model.eval()
        answerer.answer("q", "abc")
        assert not answerer.model.training


class TestBadInput:
    @pytest.mark.parametrize(
        "question, document, message",
        [
            ("", "abc", "the question is empty"),
            (" \n", "abc", "the question is blank"),
            ("q", "", "the document is empty"),
            ("q", "\t ", "the document is blank"),
            (None, "abc", "the question is of type NoneType, not str"),
            ("q", b"abc", r"the document is of type bytes, not str; decode it first"),
            ("q", ["abc"], "the document is of type list, not str"),
            ("q", "ab\ud800", r"the document has U\+D800 at character 2"),
            ("q" * 60, "a" * 100, r"the question 'qq.*\.\.\. .*take 64 of the 64 .*leaves 0 .*shorten the question"),
            ("q" * 40, "a" * 100, r"take 44 of the 64 .*leaves 20 .*max_answer_tokens=30; shorten"),
        ],
    )
    def test_texts(self, question, document, message):
        answerer = uneven(max_tokens=64)
        with pytest.raises(DataError, match=message):
            answerer.answer(question, document)
        assert answerer.model.rows == []

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"top_k": 0}, "top_k is 0; it must be an int of at least 1"),
            ({"top_k": True}, "top_k is True"),
            ({"top_k": None}, "top_k is None"),
            ({"max_answer_tokens": 0}, "max_answer_tokens is 0"),
            ({"max_answer_tokens": 2.5}, "max_answer_tokens is 2.5"),
            ({"stride": 0}, "stride is 0"),
            ({"stride": 31}, "stride is 31; .*max_answer_tokens=30, windows more than 30 apart .*give at most that$"),
            ({"max_length": 0}, "max_length is 0"),
            ({"max_length": 65}, "max_length is 65; the model has positions for 64 tokens"),
            ({"topk": 3}, "'topk' is no setting of an answer; did you mean 'top_k'"),
            ({"settings": {"top_k": 3}}, "settings is {'top_k': 3}; it must be AnswerSettings"),
            ({"max_length": 30}, r"5 of the 30 tokens .*; raise max_length \(--max-length\), shorten the question, or"),
        ],
    )
    def test_settings(self, settings, message):
        answerer = uneven(max_tokens=64)
        with pytest.raises(LongformerError, match=message):
            answerer.answer("q", "a" * 100, **settings)
        assert answerer.model.rows == []

    def test_a_keyword_that_is_no_setting(self):
        with pytest.raises(LongformerError, match="'batch_token' is no setting of an answer; did you mean 'batch_tok"):
            uneven().answer_batch([("q", "abc")], batch_token=7)

    def test_batch_tokens(self):
        with pytest.raises(LongformerError, match="batch_tokens is 0"):
            uneven().answer_batch([("q", "abc")], batch_tokens=0)

    @pytest.mark.parametrize("pair", ["qd", ("q",), ("q", "d", "e"), None])
    def test_no_pair(self, pair):
        with pytest.raises(DataError, match=r"is no pair; give \(question, document\)"):
            uneven().answer_batch([pair])

    def test_a_long_question_is_fine_where_the_document_is_short(self):
        assert uneven(max_tokens=64).answer("q" * 50, "a" * 10)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_scores_that_are_not_finite(self, value):
        with pytest.raises(LongformerError, match="not finite; if it runs in float16, take bfloat16 or float32"):
            planted({"a": value}, {}).answer("q", "abc")

    def test_a_tokenizer_of_another_checkpoint(self):
        tokenizer = FakeTokenizer()
        tokenizer.sep_token_id = 7
        with pytest.raises(LongformerError, match="sep_token_id is 2 for the model and 7 for the tokenizer"):
            QuestionAnswerer(FakeModel(None, None), tokenizer)

    @pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta"])
    def test_a_device_that_is_not_there(self, device, tmp_path):
        with pytest.raises(LongformerError, match=f"device '{device}' cannot be used here"):
            QuestionAnswerer.from_pretrained(tmp_path, device=device)


DOCUMENT = "The Zürich lake is 88 km² large. It </s> holds [SEP] 3.9 km³ of water, they say 🦦. " * 3


class TestRealModels:
    @pytest.fixture(params=[byte_level_tokenizer, wordpiece_tokenizer], ids=["byte-level", "wordpiece"])
    def tokenizer(self, request, tmp_path):
        return request.param(tmp_path)

    def test_scores_are_the_models_own(self, tokenizer):
        model = tiny_model(tokenizer, max_tokens=512)
        encoding = tokenizer(
            "How large?", DOCUMENT, return_tensors="pt", return_offsets_mapping=True, split_special_tokens=True
        )
        offsets, sequences = encoding.pop("offset_mapping")[0].tolist(), encoding.sequence_ids(0)
        with torch.inference_mode():
            start_logits, end_logits = (logits[0] for logits in model(**encoding))
        context = [t for t, sequence in enumerate(sequences) if sequence == 1]
        spans = {
            (i, j): float(start_logits[i] + end_logits[j])
            for i, j in itertools.combinations_with_replacement(context, 2)
            if j - i < 7 and all(DOCUMENT[slice(*offsets[t])].strip() for t in (i, j))
        }
        i, j = max(spans, key=spans.__getitem__)
        answerer = QuestionAnswerer(model, tokenizer)
        (answer,) = answerer.answer("How large?", DOCUMENT, max_answer_tokens=7, inside_words=True)
        assert (answer.start, answer.end) == (offsets[i][0], offsets[j][1])
        assert answer.text == DOCUMENT[answer.start : answer.end]
        expected = math.exp(spans[i, j]) / sum(map(math.exp, spans.values()))
        assert answer.probability == pytest.approx(expected, rel=1e-4)

    def test_windows_and_batches_agree_with_one_at_a_time(self, tokenizer):
        answerer = QuestionAnswerer(tiny_model(tokenizer), tokenizer)
        pairs = [("How large?", DOCUMENT), ("Who?", "They."), ("Where is </s>?", DOCUMENT[:60]), ("Who?", DOCUMENT[5:])]
        settings = {"top_k": 3, "max_answer_tokens": 6}
        together = answerer.answer_batch(pairs, batch_tokens=150, **settings)
        for (question, document), answers in zip(pairs, together, strict=True):
            alone = answerer.answer(question, document, **settings)
            assert [(a.start, a.end) for a in answers] == [(a.start, a.end) for a in alone]
            assert [a.probability for a in answers] == pytest.approx([a.probability for a in alone], rel=1e-4)
            assert all(document[a.start : a.end] == a.text == a.text.strip() != "" for a in answers)

    def test_the_same_bits_again(self, tokenizer):
        answerer = QuestionAnswerer(tiny_model(tokenizer), tokenizer)
        assert answerer.answer("How large?", DOCUMENT, top_k=5) == answerer.answer("How large?", DOCUMENT, top_k=5)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_loaded_in_any_precision(self, dtype, tmp_path):
        answerer = QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path), dtype=dtype)
        assert {parameter.dtype for parameter in answerer.model.parameters()} == {dtype}
        assert len(answerer.answer("How large?", DOCUMENT, top_k=4)) == 4

    def test_a_document_of_nothing_that_the_tokenizer_knows(self, tmp_path):
        answerer = QuestionAnswerer(tiny_model(tokenizer := wordpiece_tokenizer(tmp_path)), tokenizer)
        with pytest.raises(DataError, match=r"the document .* has no tokens"):
            answerer.answer("Who?", "\u200b\ufeff\u200b")
        with pytest.raises(DataError, match=r"the question .* has no tokens"):
            answerer.answer("\u200b\ufeff\u200b", "They.")


class TestShippedCheckpoint:
    @pytest.fixture
    def answerer(self, pretrained_dir: Path) -> QuestionAnswerer:
        return QuestionAnswerer.from_pretrained()

    @pytest.fixture
    def constitution(self, pretrained_dir: Path) -> str:
        return (pretrained_dir.parent / "data" / "constitution.txt").read_text(encoding="utf-8")

    def test_the_model_cards_example(self, answerer):
        document = "Huggingface has democratized NLP. Huge thanks to Huggingface for this."
        (answer,) = answerer.answer("What has Huggingface done ?", document)
        assert "democratized NLP" in answer.text

    @pytest.mark.slow
    def test_the_end_of_a_document_beyond_the_positions(self, answerer, constitution):
        question = "In suits at common law, how much must the value in controversy exceed?"
        (answer,) = answerer.answer(question, constitution)
        assert answer.text == "twenty dollars"
        assert constitution[answer.start : answer.end] == answer.text
        assert answer.start > 0.95 * len(constitution)

    def test_short_windows_find_it_too(self, answerer, constitution):
        question = "In suits at common law, how much must the value in controversy exceed?"
        (answer,) = answerer.answer(question, constitution[-6000:], max_length=512)
        assert "twenty dollars" in answer.text


def test_global_tokens_of_ones_own_choice(tmp_path: Path) -> None:
    """One choice for windows of whatever length, padding never being global; the question's is what is taken else."""
    tokenizer = byte_level_tokenizer(tmp_path)
    model = tiny_model(tokenizer)
    pairs = [("who fell", "Dan fell. Ann did not."), ("who", "Ann stood and Dan fell, all the same.")]
    own, same = (QuestionAnswerer(model, tokenizer, global_mask=mask) for mask in (None, model.automatic_global_mask))
    assert own.answer_batch(pairs, top_k=3) == same.answer_batch(pairs, top_k=3)
    seen: list[tuple[int, ...]] = []

    def none(ids: Tensor) -> Tensor:
        seen.append(tuple(ids.shape))
        return torch.zeros_like(ids, dtype=torch.bool)

    found = QuestionAnswerer(model, tokenizer, global_mask=none).answer_batch(pairs, top_k=3)
    assert found != own.answer_batch(pairs, top_k=3) and seen
    with pytest.raises(LongformerError, match="global_attention_mask has shape"):
        QuestionAnswerer(model, tokenizer, global_mask=lambda ids: none(ids)[:, 1:]).answer_batch(pairs)
    with pytest.raises(LongformerError, match=r"global_mask returned a int; it must return a \(B, S\) tensor"):
        QuestionAnswerer(model, tokenizer, global_mask=lambda ids: 3).answer_batch(pairs)
    with pytest.raises(LongformerError, match="global_mask is a str; it must be a function"):
        QuestionAnswerer(model, tokenizer, global_mask="window")


def test_a_checkpoint_under_another_pattern(tmp_path: Path) -> None:
    """Window, dilation and global tokens are the caller's, the weights the checkpoint's."""
    folder = save_tiny_checkpoint(tmp_path)
    plain = QuestionAnswerer.from_pretrained(folder)
    config = plain.model.config.replace(attention_window=2, attention_dilation=3)
    changed = QuestionAnswerer.from_pretrained(folder, config=config, global_mask=plain.model.automatic_global_mask)
    assert changed.model.config == config and changed.global_mask == plain.model.automatic_global_mask
    for mine, other in zip(changed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    question, document = "who fell", "Dan fell. Ann did not."
    assert changed.answer(question, document) != plain.answer(question, document)


class TestTokensWithoutARow:
    def test_is_said_when_the_two_are_put_together(self, tmp_path: Path) -> None:
        tokenizer = byte_level_tokenizer(tmp_path)
        model, rows = tiny_model(tokenizer), len(tokenizer)
        QuestionAnswerer(model, tokenizer)
        assert tokenizer.add_tokens(["<ent>", "<place>"]) == 2
        both = rf"'<ent>' \(id {rows}\), '<place>' \(id {rows + 1}\)"
        message = rf"the tokenizer has {both}, but .* embeddings for ids 0 to {rows - 1} only; take the"
        with pytest.raises(CheckpointError, match=message):
            QuestionAnswerer(model, tokenizer)

    def test_is_said_when_a_checkpoint_is_loaded(self, tmp_path: Path) -> None:
        """A vocabulary with gaps, whose number of tokens alone would fit."""
        tokenizer = byte_level_tokenizer(tmp_path)
        tiny_model(tokenizer).save_pretrained(tmp_path)
        vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
        vocabulary["b"] = 7000
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"the tokenizer has 'b' \(id 7000\), but"):
            QuestionAnswerer.from_pretrained(tmp_path)
