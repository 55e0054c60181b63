"""Scores against an implementation written from the definition, and what the bootstrap gives."""

from __future__ import annotations

import json
import random
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longformer.answering.scores import bootstrap_interval, evaluate, exact_match, f1, normalize_answer, score
from longformer.answering.squad import Answer, Example, read_squad
from longformer.errors import DataError, LongformerError

# The definition, put into code a second time: by characters and by lists, where the package uses tables


def defined_words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    # An article is a maximal run of word characters that spells one, so that "a-" counts and "Łan" does not.
    runs = re.split(r"(\w+)", kept)
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def defined_exact(prediction: str, gold: str) -> bool:
    return " ".join(defined_words(prediction)) == " ".join(defined_words(gold))


def defined_f1(prediction: str, gold: str, v2: bool) -> float:
    predicted, wanted = defined_words(prediction), defined_words(gold)
    if v2 and (not predicted or not wanted):
        return 1.0 if predicted == wanted else 0.0
    left, shared = list(wanted), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def defined_scores(data: dict[str, Any], predictions: dict[str, str], v2: bool) -> dict[str, float]:
    """Both scripts' averages, over the JSON itself."""
    exact, overlap = [], []
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                golds = [answer["text"] for answer in question["answers"]]
                if v2:
                    golds = [gold for gold in golds if defined_words(gold)]
                    golds = golds or [""]
                prediction = predictions.get(str(question["id"]))
                if prediction is None:
                    exact.append(0.0)
                    overlap.append(0.0)
                    continue
                exact.append(max(float(defined_exact(prediction, gold)) for gold in golds))
                overlap.append(max(defined_f1(prediction, gold, v2) for gold in golds))
    count = len(exact)
    return {"exact_match": 100 * sum(exact) / count, "f1": 100 * sum(overlap) / count, "total": count}


ANSWER_LIKE = st.lists(
    st.one_of(
        st.sampled_from(
            ["the", "The", "a", "AN", "an-a", "cat", "Cat's", "cats", "U.S.", "—", "“", "%", "é", "İ", " ", "\u00a0"]
        ),
        st.text(max_size=4),
    ),
    max_size=6,
).map(" ".join)


class TestScoresOfOneQuestion:
    @pytest.mark.parametrize(
        ("text", "normal"),
        [
            ("The Cat, sat!", "cat sat"),
            ("a an the", ""),
            ("A", ""),
            ("theory of an atom", "theory of atom"),
            ("the-end", "theend"),  # punctuation goes first, so "the" is no word of its own any more
            ("the—end", "—end"),  # a dash outside ASCII is kept, and is no word character
            ("“the” end", "“ ” end"),
            ("a.b.c", "abc"),
            ("A.", ""),
            ("  tabs\tand\nlines \u00a0 end ", "tabs and lines end"),
            ("ÉCOLE", "école"),
            ("Straße", "straße"),
            ("$1,000.50", "100050"),
            ("!?", ""),
            ("", ""),
            ("a_b", "ab"),
            ("анализ a", "анализ"),
        ],
    )
    def test_normal_form_by_hand(self, text: str, normal: str) -> None:
        assert normalize_answer(text) == normal

    @pytest.mark.parametrize(
        ("prediction", "golds", "v1", "v2"),
        [
            ("the cat", ["cat"], (1, 1), (1, 1)),
            ("black cat", ["cat"], (0, 2 / 3), (0, 2 / 3)),
            ("black cat", ["dog", "cat", "a black cat!"], (1, 1), (1, 1)),
            ("cat cat dog", ["cat"], (0, 0.5), (0, 0.5)),  # a multiset: the second cat earns nothing
            ("cat cat", ["cat cat cat"], (0, 0.8), (0, 0.8)),
            ("one two", ["two three", "one four five"], (0, 0.5), (0, 0.5)),
            ("cat", ["dog"], (0, 0), (0, 0)),
            ("", ["cat"], (0, 0), (0, 0)),
            # Nothing left on either side: v1.1 finds equal strings without a shared word, v2.0 says 1.
            ("the", ["a"], (1, 0), (1, 1)),
            ("", ["!"], (1, 0), (1, 1)),
            ("the", ["a", "the cat"], (1, 0), (0, 0)),  # v2.0 leaves "a" out where another answer remains
            ("Beyoncé", ["beyoncé."], (1, 1), (1, 1)),
            ("Beyonce", ["Beyoncé"], (0, 0), (0, 0)),
            ("1,000", ["1000"], (1, 1), (1, 1)),
        ],
    )
    def test_by_hand(self, prediction: str, golds: list[str], v1: tuple[float, float], v2: tuple[float, float]) -> None:
        for rules, expected in ((False, v1), (True, v2)):
            got = exact_match(prediction, golds, v2=rules), f1(prediction, golds, v2=rules)
            assert got == pytest.approx(expected, abs=1e-15), rules

    def test_unanswerable(self) -> None:
        assert (exact_match("", [], v2=True), f1("", [], v2=True)) == (1, 1)
        assert (exact_match("the", [], v2=True), f1("the", [], v2=True)) == (1, 1)
        assert (exact_match("cat", [], v2=True), f1("cat", [], v2=True)) == (0, 0)
        for function in (exact_match, f1):
            with pytest.raises(DataError, match="no answers"):
                function("cat", [])

    @given(ANSWER_LIKE, st.lists(ANSWER_LIKE, min_size=1, max_size=3))
    def test_by_the_definition(self, prediction: str, golds: list[str]) -> None:
        assert normalize_answer(prediction) == " ".join(defined_words(prediction))
        for v2 in (False, True):
            remaining = [gold for gold in golds if defined_words(gold)] or [""] if v2 else golds
            assert exact_match(prediction, golds, v2=v2) == max(defined_exact(prediction, gold) for gold in remaining)
            expected = max(defined_f1(prediction, gold, v2) for gold in remaining)
            assert f1(prediction, golds, v2=v2) == pytest.approx(expected, abs=1e-15)


def predictions_of_every_kind(data: dict[str, Any]) -> dict[str, str]:
    """Right, nearly right, wrong, empty and missing predictions, at random."""
    choose = random.Random(0)
    predictions = {}
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            words = paragraph["context"].split()
            for question in paragraph["qas"]:
                texts = [answer["text"] for answer in question["answers"]] or [""]
                at = choose.randrange(len(words))
                right = choose.choice(texts)
                kinds = [right, "The " + right + ".", " ".join(right.split()[1:]), f"{right} {words[at]}"]
                kinds += [" ".join(words[at : at + 4]), "", "the", None]
                prediction = choose.choice(kinds)
                if prediction is not None:
                    predictions[str(question["id"])] = prediction
    return predictions


class TestEvaluate:
    @pytest.mark.parametrize(
        ("name", "v2"),
        [("squad-v1.1-dev-part", False), ("squad2-dev-part", True), ("xquad-en", False), ("covid-qa", False)],
    )
    def test_real_files_by_the_definition(self, name: str, v2: bool, data_dir: Path) -> None:
        path = data_dir / f"{name}.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        predictions = predictions_of_every_kind(data)
        result = evaluate(read_squad(path), predictions)
        assert result == pytest.approx(defined_scores(data, predictions, v2), rel=1e-12)
        assert type(result["exact_match"]) is type(result["f1"]) is float and type(result["total"]) is int
        assert 10 < result["exact_match"] < result["f1"] < 90

    def test_rules_can_be_stated(self) -> None:
        examples = [Example("1", "", "q", "the", [Answer("the", 0)])]
        assert evaluate(examples, {"1": "a"}) == {"exact_match": 100.0, "f1": 0.0, "total": 1}
        assert evaluate(examples, {"1": "a"}, v2=True) == {"exact_match": 100.0, "f1": 100.0, "total": 1}

    def test_one_unanswerable_question_makes_it_v2(self) -> None:
        examples = [Example("1", "", "q", "the", [Answer("the", 0)]), Example("2", "", "q", "c", is_impossible=True)]
        assert evaluate(examples, {"1": "a", "2": ""})["f1"] == 100
        assert evaluate(examples, {"1": "a", "2": "c"})["f1"] == 50

    def test_missing_predictions_score_0_and_are_listed(self) -> None:
        examples = [Example(str(i), "t", "q", "cat", [Answer("cat", 0)]) for i in range(4)]
        examples.append(Example("4", "t", "q", "cat", is_impossible=True))
        scores = score(examples, {"2": "cat", "unrelated": "dog"})
        assert scores.missing == ["0", "1", "3", "4"]
        assert scores.exact_match.tolist() == scores.f1.tolist() == [0, 0, 100, 0, 0]
        assert evaluate(examples, {"2": "cat"}) == {"exact_match": 20.0, "f1": 20.0, "total": 5}
        assert evaluate(examples, {}) == {"exact_match": 0.0, "f1": 0.0, "total": 5}

    def test_predictions_for_another_file(self) -> None:
        examples = [Example("1", "t", "q", "cat", [Answer("cat", 0)])]
        with pytest.raises(DataError, match=r"none of the 2 predictions is for one of the 1 questions.*'x'.*'1'"):
            evaluate(examples, {"x": "cat", "y": "cat"})

    def test_nothing_to_score(self) -> None:
        with pytest.raises(DataError, match="no questions"):
            evaluate([], {})
        unanswered = [Example("7", "t", "q", "cat")]
        for v2 in (None, True, False):
            with pytest.raises(DataError, match="question '7' has no answers"):
                evaluate(unanswered, {"7": "cat"}, v2=v2)
        with pytest.raises(DataError, match="question '7' has no answers"):
            evaluate([Example("7", "t", "q", "cat", is_impossible=True)], {"7": ""}, v2=False)

    def test_offsets_play_no_part(self) -> None:
        assert evaluate([Example("1", "", "q", "cat cat", [Answer("cat", None, 9)])], {"1": "cat"})["f1"] == 100

    def test_articles_are_the_clusters(self) -> None:
        examples = [
            Example("1", "Normans", "q", "c", [Answer("c", 0)], place="data[0].paragraphs[0].qas[0]"),
            Example("2", "", "q", "c", [Answer("c", 0)], place="data[1].paragraphs[0].qas[0]"),
        ]
        assert score(examples, {"1": "c"}).articles == ["Normans", "data[1]"]


class TestBootstrap:
    def test_close_to_the_normal_interval(self) -> None:
        values = np.random.default_rng(1).normal(70, 30, 2000)
        low, high = bootstrap_interval(values)
        half = 1.96 * values.std() / np.sqrt(len(values))
        assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1)

    def test_coverage(self) -> None:
        generator = np.random.default_rng(2)
        inside = 0
        for _ in range(200):
            low, high = bootstrap_interval(100.0 * (generator.random(150) < 0.7), resamples=500, confidence=0.9)
            inside += low <= 70 <= high
        assert 0.84 < inside / 200 < 0.96

    def test_clusters_that_agree_within_widen_the_interval(self) -> None:
        by_article = np.random.default_rng(3).normal(70, 10, 30)
        values, names = np.repeat(by_article, 40), [f"article {i // 40}" for i in range(1200)]
        clustered = bootstrap_interval(values, clusters=names)
        alone = bootstrap_interval(values)
        of_articles = bootstrap_interval(by_article)
        assert clustered == pytest.approx(of_articles, abs=1e-9)  # a cluster of equal values is one observation
        assert clustered[1] - clustered[0] > 5 * (alone[1] - alone[0])

    def test_clusters_of_unequal_size_weigh_by_their_questions(self) -> None:
        values, names = [100.0] * 99 + [0.0], ["big"] * 99 + ["small"]
        # Draws: big twice 100, small twice 0, one of each 99.
        assert bootstrap_interval(values, clusters=names, confidence=0.4) == (99.0, 99.0)
        assert bootstrap_interval(values, clusters=names) == (0.0, 100.0)

    def test_what_the_clusters_are_called_does_not_matter(self) -> None:
        values = np.arange(50.0)
        for names in ([f"{i}" for i in range(50)], [f"{-i}" for i in range(50)]):
            assert bootstrap_interval(values, clusters=names) == bootstrap_interval(values)

    def test_seed_decides(self) -> None:
        values = np.random.default_rng(4).random(40)
        assert bootstrap_interval(values) == bootstrap_interval(values.tolist())
        assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)

    def test_one_value_and_many(self) -> None:
        assert bootstrap_interval([42.0]) == (42.0, 42.0)
        low, high = bootstrap_interval(np.full(2_000_000, 42.0), resamples=3)  # more than are drawn at once
        assert (low, high) == (42.0, 42.0)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"values": []}, "at least one finite number"),
            ({"values": [[1.0]]}, r"shape \(1, 1\)"),
            ({"values": [1.0, float("nan")]}, "finite"),
            ({"values": [1.0], "clusters": ["a", "b"]}, "names 2 values, but there are 1"),
            ({"values": [1.0], "confidence": 95}, "confidence is 95"),
            ({"values": [1.0], "confidence": 0.0}, "confidence is 0.0"),
            ({"values": [1.0], "resamples": 0}, "resamples is 0"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(LongformerError, match=message):
            bootstrap_interval(**arguments)
