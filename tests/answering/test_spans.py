"""Which answers come of the spans' scores: nothing cut, no overlap where that is asked, and what no answer scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_answerer import FakeModel, FakeTokenizer, planted, uneven
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import byte_level_tokenizer, tiny_model

from longformer import AnswerSettings
from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.spans import Answer
from longformer.answering.texts import inside_graphemes, whole_words


def answerer_of(starts: dict[str, float], ends: dict[str, float], **config: int) -> QuestionAnswerer:
    """As ``planted``, with the settings' own defaults."""
    model = planted(starts, ends, **config).model
    return QuestionAnswerer(model, FakeTokenizer())


class TestNothingIsCut:
    def test_the_last_accent_stays(self) -> None:
        document = "We saw Zoe\u0308 there"
        answerer = answerer_of({"Z": 9}, {"e": 9})  # the model points at the letter and not at its accent
        for inside_words in (False, True):
            (answer,) = answerer.answer("q", document, max_answer_tokens=3, inside_words=inside_words)
            assert (answer.text, answer.start, answer.end) == ("Zoe\u0308", 7, 11)

    @pytest.mark.parametrize(
        ("document", "whole"),
        [
            ("a 👨‍👩‍👧 b", "👨‍👩‍👧"),
            ("a 🇩🇪🇫🇷 b", "🇩🇪"),
            ("a 👍🏽 b", "👍🏽"),
            ("a \u1100\u1161\u11a8 b", "\u1100\u1161\u11a8"),
        ],
    )
    def test_a_cluster_stays_whole(self, document: str, whole: str) -> None:
        for character in set(whole) - {"\u200d"}:
            answers = answerer_of({character: 9}, {character: 9}).answer("q", document, max_answer_tokens=1)
            assert whole in answers[0].text or answers[0].text in document.split()[1]
            assert answers[0].start not in inside_graphemes(document)
            assert answers[0].end not in inside_graphemes(document)

    def test_a_word_is_completed_unless_asked_otherwise(self) -> None:
        answerer = answerer_of({"r": 9}, {"s": 9})
        document = "in Warsaw's town"
        assert [a.text for a in answerer.answer("q", document)] == ["Warsaw"]
        assert [a.text for a in answerer.answer("q", document, inside_words=True)] == ["rs"]

    def test_a_mark_at_the_beginning_counts_and_is_not_read(self) -> None:
        plain, marked = (answerer_of({"A": 9}, {"a": 9}) for _ in range(2))
        (one,), (other,) = plain.answer("q", "Ada met"), marked.answer("q", "\ufeffAda met")
        assert (other.text, other.start, other.end) == ("Ada", one.start + 1, one.end + 1) == ("Ada", 1, 4)
        assert plain.model.rows == marked.model.rows

    @given(st.text("aé\u0301 👍🏽🇩🇪-", min_size=1, max_size=25).filter(lambda text: text.strip("\u0301 ")))
    def test_every_answer_begins_and_ends_between_words_and_characters(self, document: str) -> None:
        answers = QuestionAnswerer(uneven().model, FakeTokenizer()).answer("q", document, top_k=50)
        assert len({(a.start, a.end) for a in answers}) == len(answers)
        for answer in answers:
            assert answer.text == document[answer.start : answer.end] != ""
            assert not {answer.start, answer.end} & inside_graphemes(document)
            assert whole_words(document, answer.start, answer.end) == (answer.start, answer.end)

    def test_a_real_tokenizer(self, tmp_path: Path) -> None:
        tokenizer = byte_level_tokenizer(tmp_path)  # where an accent is two tokens
        document = "Zoe\u0308 and Rene\u0301 met Noe\u0308l"
        answers = QuestionAnswerer(tiny_model(tokenizer), tokenizer).answer(
            "who", document, top_k=100, inside_words=True
        )
        assert len(answers) > 50
        assert not {place for a in answers for place in (a.start, a.end)} & inside_graphemes(document)


def apart_by_definition(answerer: QuestionAnswerer, document: str, **settings: int) -> Iterator[Answer]:
    """All answers, best first, of which one is left out that shares a word with one before it."""
    kept: list[tuple[int, int]] = []
    for answer in answerer.answer("qq", document, **{**settings, "top_k": 10_000}):
        first, last = whole_words(document, answer.start, answer.end)
        if all(last <= a or b <= first for a, b in kept):
            kept.append((first, last))
            yield answer


class TestNoOverlap:
    @pytest.mark.parametrize("inside_words", [False, True])
    @given(document=st.text("ab -", min_size=1, max_size=40).filter(str.strip), longest=st.integers(1, 6))
    def test_by_the_definition(self, inside_words: bool, document: str, longest: int) -> None:
        answerer = uneven()
        settings = {"max_answer_tokens": longest, "max_length": 6 + 2 * longest, "inside_words": inside_words}
        expected = list(itertools.islice(apart_by_definition(answerer, document, **settings), 4))
        assert answerer.answer("qq", document, top_k=4, no_overlap=True, **settings) == expected

    def test_runners_up(self) -> None:
        answerer = answerer_of({"A": 9, "B": 5}, {"A": 9, "B": 5})
        document = "A fell. B stood."
        assert [a.text for a in answerer.answer("q", document, top_k=2)] == ["A", "A fell. B"]
        found = answerer.answer("q", document, top_k=2, no_overlap=True)
        assert [a.text for a in found] == ["A", "B"]
        best, other = answerer.answer("q", document, top_k=10_000), found[1]
        assert other in best and found[0] == best[0]  # probabilities are among all spans all the same

    def test_fewer_where_there_are_no_more(self) -> None:
        assert len(answerer_of({}, {}).answer("q", "one two", top_k=9, no_overlap=True)) == 2

    def test_no_answer_overlaps_nothing(self) -> None:
        model = FakeModel(lambda t, i: 9 * (i == 0), lambda t, i: 9 * (i == 0))
        found = QuestionAnswerer(model, FakeTokenizer()).answer(
            "q", "one two", top_k=3, no_overlap=True, null_threshold=0.0
        )
        assert [a.text for a in found] == ["", "one", "two"]


LONG = "b " + "x " * 14
IN_TWO = {"max_answer_tokens": 1, "max_length": 26, "inside_words": True}


class TestNoAnswer:
    """Two windows: in the first "b" is the best span, and no answer scores as ``nulls`` say, window by window."""

    def answerer(self, nulls: tuple[float, float]) -> QuestionAnswerer:
        class Windowed(FakeModel):
            def forward(self, input_ids, attention_mask):
                start, end = super().forward(input_ids, attention_mask)
                for row, ids in enumerate(input_ids.tolist()):
                    start[row, 0] = nulls[0 if ord("b") in ids else 1]
                return start, end

        return QuestionAnswerer(Windowed(lambda t, i: 5 * (t == ord("b")), lambda t, i: 0), FakeTokenizer())

    @pytest.mark.parametrize(
        ("rule", "nulls", "score"),
        [
            ("same-window", (7.0, 1.0), 2.0),
            ("same-window", (1.0, 7.0), -4.0),
            ("minimum", (7.0, 1.0), -4.0),
            ("minimum", (1.0, 7.0), -4.0),
        ],
    )
    def test_the_rule_says_which_window(self, rule: str, nulls: tuple[float, float], score: float) -> None:
        answerer = self.answerer(nulls)
        (found,) = answerer.search([("qq", LONG)], null_rule=rule, **IN_TWO).values()
        assert sum(map(len, answerer.model.rows)) == 2
        assert found.null_score == score and found.text == "b"
        for threshold, text in ((score - 0.1, ""), (score, "b"), (score + 0.1, "b")):
            settings = AnswerSettings(null_threshold=threshold, null_rule=rule, **IN_TWO)
            assert answerer.answer("qq", LONG, settings=settings)[0].text == text

    def test_its_probability_is_among_all_spans(self) -> None:
        answerer = self.answerer((7.0, 1.0))
        none, best = answerer.answer("qq", LONG, top_k=2, null_threshold=0.0, **IN_TWO)
        assert none.text == "" and math.log(none.probability / best.probability) == pytest.approx(2.0)
        rest = 14 * math.exp(0)
        assert none.probability == pytest.approx(math.exp(7) / (math.exp(7) + math.exp(5) + rest))
