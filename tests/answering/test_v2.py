"""SQuAD v2.0's figures against its definitions, put into code a second time: question by question, with no scan."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longformer.answering import v2
from longformer.answering.scores import exact_match, f1, score
from longformer.answering.squad import Answer, Example, read_squad

Values = Mapping[str, float]


def question(key: str, *golds: str) -> Example:
    return Example(key, "t", "q", "c", [Answer(gold, None) for gold in golds], is_impossible=not golds)


def points(example: Example, prediction: str) -> tuple[float, float]:
    golds = [answer.text for answer in example.answers]
    return exact_match(prediction, golds, v2=True), f1(prediction, golds, v2=True)


def defined_means(examples: list[Example], predictions: Mapping[str, str], values: Values, threshold: float):
    """Exact match and F1 in percent where what is above the threshold is answered by none."""
    answers = {e.id: "" if values[e.id] > threshold else predictions[e.id] for e in examples if e.id in predictions}
    every = [points(example, answers[example.id]) for example in examples if example.id in answers]
    return [100 * sum(column) / len(every) for column in zip(*every, strict=True)]


def defined_best(examples: list[Example], predictions: Mapping[str, str], values: Values, part: int):
    """The script's best mean, over beginnings of the order by value, and the value at its end."""
    known = {example.id: example for example in examples}
    order = [key for key in sorted(values, key=lambda key: values[key]) if key in predictions and key in known]
    best: tuple[float, float] | None = None
    for count in range(len(order) + 1):
        kept = set(order[:count])
        total = 0.0
        for example in examples:
            if example.id in kept and (example.answers or predictions[example.id]):
                total += points(example, predictions[example.id])[part] if example.answers else 0.0
            else:
                total += float(example.is_impossible)
        found = 100 * total / sum(example.id in predictions for example in examples)
        if best is None or found > best[0] + 1e-9:
            best = found, values[order[count - 1]] if count else 0.0
    return best


def defined_average(examples: list[Example], earned: Mapping[str, float], values: Values) -> float:
    """Average precision: the precision at each threshold, weighted by the recall that it adds."""
    known = {example.id: example for example in examples}
    relevant = sum(not example.is_impossible for example in examples)
    average = before = 0.0
    for threshold in sorted({value for key, value in values.items() if key in known}):
        kept = [key for key, value in values.items() if value <= threshold and key in known]
        right = sum(earned[key] for key in kept if known[key].answers)
        average += right / len(kept) * (right / relevant - before)
        before = right / relevant
    return 100 * average


EXAMPLES = [question("a", "cat"), question("b", "the cat", "dog"), question("c"), question("d"), question("e", "a dog")]
EXAMPLES.append(question("f", "black cat"))
ANSWER = st.sampled_from(["cat", "the", "", "black dog", "dog", "!"])
VALUE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(-5, 5))


@given(
    st.fixed_dictionaries({example.id: ANSWER for example in EXAMPLES}),
    st.permutations([example.id for example in EXAMPLES]),
    st.lists(VALUE, min_size=6, max_size=6),
    VALUE,
)
def test_by_the_definitions(
    predictions: dict[str, str], order: list[str], numbers: list[float], threshold: float
) -> None:
    values = dict(zip(order, numbers, strict=True))
    scores = score(EXAMPLES, predictions, v2=True)
    found = v2.by_kind(v2.with_threshold(scores, values, threshold))
    assert [found["exact"], found["f1"]] == pytest.approx(defined_means(EXAMPLES, predictions, values, threshold))
    for prefix, kind in (("HasAns", False), ("NoAns", True)):
        some = [example for example in EXAMPLES if example.is_impossible == kind]
        expected = defined_means(some, predictions, values, threshold)
        assert [found[f"{prefix}_exact"], found[f"{prefix}_f1"]] == pytest.approx(expected)
        assert found[f"{prefix}_total"] == len(some)

    best = v2.best_thresholds(scores, values)
    for part, name in enumerate(("exact", "f1")):
        assert (best[f"best_{name}"], best[f"best_{name}_thresh"]) == pytest.approx(
            defined_best(EXAMPLES, predictions, values, part), abs=1e-9
        )

    curves = v2.precision_recall(scores, values)
    earned = {example.id: points(example, predictions[example.id]) for example in EXAMPLES}
    kinds = {"exact": {key: p[0] for key, p in earned.items()}, "f1": {key: p[1] for key, p in earned.items()}}
    for name, points_of in {**kinds, "oracle": dict.fromkeys(predictions, 1.0)}.items():
        assert curves[name].average == pytest.approx(defined_average(EXAMPLES, points_of, values), abs=1e-9)
        assert curves[name].recall == sorted(curves[name].recall) and curves[name].precision[0] == 1.0

    tuned = v2.tune(scores, values)
    lowest = min(numbers)
    every = [defined_means(EXAMPLES, predictions, values, threshold) for threshold in {lowest - 1, *numbers}]
    for part, name in enumerate(("exact", "f1")):
        given_by_it = defined_means(EXAMPLES, predictions, values, tuned[f"best_{name}_thresh"])[part]
        assert tuned[f"best_{name}"] == pytest.approx(given_by_it) == pytest.approx(max(m[part] for m in every))


class TestAwkward:
    def test_the_script_may_stop_between_equals_and_tuning_does_not(self) -> None:
        examples = [question("a", "cat"), question("b")]
        predictions, values = {"a": "cat", "b": "dog"}, {"a": 0.5, "b": 0.5}
        scores = score(examples, predictions)
        assert v2.best_thresholds(scores, values)["best_exact"] == 100  # "a" keeps its answer, and "b" does not
        assert v2.best_thresholds(scores, {"b": 0.5, "a": 0.5})["best_exact"] == 50
        tuned = v2.tune(scores, values)
        assert tuned["best_exact"] == 50 and tuned["best_exact_thresh"] < 0.5

    def test_an_answer_of_nothing_but_an_article(self) -> None:
        scores = score([question("a", "cat"), question("b")], {"a": "cat", "b": "the"})
        values = {"b": 0.1, "a": 0.2}
        assert v2.by_kind(scores)["exact"] == 100
        assert v2.best_thresholds(scores, values)["best_exact"] == 50
        assert v2.tune(scores, values) == pytest.approx(
            {"best_exact": 100, "best_exact_thresh": 0.2, "best_f1": 100, "best_f1_thresh": 0.2}
        )

    def test_where_none_is_best_of_all(self) -> None:
        scores = score([question("a", "cat"), question("b")], {"a": "dog", "b": "dog"})
        values = {"a": -7.0, "b": -3.0}
        assert v2.best_thresholds(scores, values)["best_f1_thresh"] == 0.0
        assert v2.tune(scores, values)["best_f1_thresh"] == np.nextafter(-7.0, -np.inf)

    def test_missing_predictions(self) -> None:
        scores = score(EXAMPLES, {"a": "cat", "c": "", "f": "cat"})
        assert scores.missing == ["b", "d", "e"]
        assert v2.predicted(scores).ids == ["a", "c", "f"] and v2.predicted(scores).missing == []
        assert v2.by_kind(scores)["total"] == 6 and v2.by_kind(scores)["exact"] == pytest.approx(100 * 2 / 6)
        assert v2.by_kind(v2.predicted(scores))["exact"] == pytest.approx(100 * 2 / 3)
        values = {"a": 0.1, "c": 0.2, "f": 0.3}
        # The script's sum begins with all questions without an answer, also those that have no prediction.
        assert v2.best_thresholds(scores, values)["best_exact"] == pytest.approx(100 * (2 + 1) / 3)
        assert v2.with_threshold(scores, values, -1).exact_match.tolist() == [0, 0, 100, 0, 0, 0]

    def test_files_of_one_kind(self) -> None:
        without = score([question("a"), question("b")], {"a": "", "b": "cat"})
        assert v2.by_kind(without) == {
            **{"exact": 50.0, "f1": 50.0, "total": 2},
            **{"NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2},
        }
        assert v2.precision_recall(without, {"a": 0.1, "b": 0.2}) == {}
        answerable = score([question("a", "cat")], {"a": "cat"}, v2=True)
        assert "NoAns_total" not in v2.by_kind(answerable)

    def test_values_of_other_questions_count_nothing(self) -> None:
        scores = score(EXAMPLES, {example.id: "cat" for example in EXAMPLES})
        values = {example.id: i / 7 for i, example in enumerate(EXAMPLES)}
        more = {"x": -1.0, **values, "y": 0.5}
        assert v2.best_thresholds(scores, more) == v2.best_thresholds(scores, values)
        assert v2.precision_recall(scores, more) == v2.precision_recall(scores, values)

    def test_a_repeated_id_counts_once_by_its_last_answers(self) -> None:
        examples = [question("a", "cat"), question("b"), question("a", "dog")]
        scores = score(examples, {"a": "dog"})
        assert scores.ids == ["a", "b"] and scores.missing == ["b"]
        assert v2.by_kind(scores)["HasAns_exact"] == 100


def test_real_questions(data_dir: Path) -> None:
    path = data_dir / "squad2-dev-part.json"
    examples = read_squad(path)
    choose = random.Random(0)
    predictions, values = {}, {}
    for example in examples:
        words = example.context.split()
        at = choose.randrange(len(words))
        right = choose.choice([answer.text for answer in example.answers] or [""])
        kinds = [right, f"The {right}.", f"{right} {words[at]}", " ".join(words[at : at + 3]), "", "the", "!?"]
        predictions[example.id] = choose.choice(kinds)
        values[example.id] = round(choose.random() + 0.4 * example.is_impossible, choose.choice([1, 9]))
    scores = score(examples, predictions)
    found = v2.by_kind(v2.with_threshold(scores, values, 1.0))
    assert [found["exact"], found["f1"]] == pytest.approx(defined_means(examples, predictions, values, 1.0), abs=1e-9)
    assert found["HasAns_total"] + found["NoAns_total"] == found["total"] == 1007
    with_answers = {
        entry["id"]
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for entry in itertools.chain(*(paragraph["qas"] for paragraph in article["paragraphs"]))
        if entry["answers"]
    }
    assert {key for key, has in zip(scores.ids, scores.has_answer, strict=True) if has} == with_answers
    curves = v2.precision_recall(scores, values)
    earned = {example.id: points(example, predictions[example.id])[1] for example in examples}
    assert curves["f1"].average == pytest.approx(defined_average(examples, earned, values), abs=1e-9)
