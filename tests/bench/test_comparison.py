"""``longformer evaluate --predictions --against``: two sets of answers to the same questions, compared pair by pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longformer.answering.evaluation import compare
from longformer.answering.squad import Answer, Example
from longformer.cli import main


def example(name: str, title: str, gold: str) -> Example:
    return Example(id=name, title=title, question="?", context=gold, answers=[Answer(gold, 0, 0)], place="data[0]")


# One article with one question, of which P knows the answer; one with three, of which Q knows one better.
EXAMPLES = [example("a", "A", "Ann"), example("b1", "B", "Rome"), example("b2", "B", "Dan"), example("b3", "B", "hat")]
P = {"a": "Ann", "b1": "Rome", "b2": "Dan Lee", "b3": "no"}
Q = {"a": "Bob", "b1": "Rome", "b2": "Dan", "b3": "no"}


def test_by_hand() -> None:
    """Exact match differs by 100, 0, -100, 0, and F1 by 100, 0, -100/3, 0. Two articles drawn of two are with a chance
    of a quarter each twice A, and twice B: at these ends lie the intervals."""
    found = compare(EXAMPLES, P, Q)
    assert found["exact_match_difference"] == 0
    assert found["exact_match_difference_interval"] == pytest.approx((-100 / 3, 100))
    assert found["f1_difference"] == pytest.approx((100 - 100 / 3) / 4)
    assert found["f1_difference_interval"] == pytest.approx((-100 / 9, 100))
    assert (found["interval_over"], found["total"]) == ("articles", 4)
    assert (found["predictions"]["exact_match"], found["against"]["exact_match"]) == (50, 50)
    back = compare(EXAMPLES, Q, P)
    assert back["f1_difference_interval"] == pytest.approx((-100, 100 / 9))


def test_pairs_are_drawn_together() -> None:
    """Where one side is better by as much in a hard article as in an easy one, there is no doubt about the mean."""
    some = [example(f"{t}{i}", t, "x") for t in "AB" for i in range(2)]
    one, other = {"A0": "x", "A1": "x", "B0": "x", "B1": "y"}, {"A0": "x", "A1": "y", "B0": "y", "B1": "y"}
    assert compare(some, one, other)["exact_match_difference_interval"] == (50, 50)


def test_one_article_is_drawn_by_its_questions() -> None:
    found = compare(EXAMPLES[1:3], P, Q)
    assert found["interval_over"] == "questions"
    assert found["exact_match_difference_interval"] == (-100, 0)


def test_articles_of_one_question_each_are_questions() -> None:
    """As in a file of rows without titles, where an interval over articles would claim more than there is."""
    assert compare([EXAMPLES[0], EXAMPLES[1]], P, Q)["interval_over"] == "questions"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    data = [
        {
            "title": e.title,
            "paragraphs": [
                {
                    "context": e.context,
                    "qas": [{"id": e.id, "question": "?", "answers": [{"text": e.answers[0].text, "answer_start": 0}]}],
                }
            ],
        }
        for e in EXAMPLES
    ]
    contents: dict[str, Any] = {"squad": {"data": data}, "p": P, "q": Q, "few": {"a": "Ann"}}
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return {name: str(tmp_path / f"{name}.json") for name in contents}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    return int(stopped.value.code or 0), *capsys.readouterr()


def test_the_command(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [files["squad"], "--predictions", files["p"], "--against", files["q"]]
    status, out, err = run(capsys, *arguments)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "exact match   +0.00   95% interval over articles -33.33 to +100.00   (50.00 against 50.00)",
        "F1           +16.67   95% interval over articles -11.11 to +100.00   (66.67 against 50.00)",
        "questions    4",
    ]
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["f1_difference_interval"] == pytest.approx([-100 / 9, 100])


@pytest.mark.parametrize("order", ["few first", "few second"])
def test_answers_that_are_missing(files: dict[str, str], capsys: pytest.CaptureFixture[str], order: str) -> None:
    pair = (files["few"], files["q"]) if order == "few first" else (files["q"], files["few"])
    status, out, err = run(capsys, files["squad"], "--predictions", pair[0], "--against", pair[1])
    assert (status, out) == (2, "")
    assert f"{files['few']}: no answer to 3 questions (b1, b2, b3) of {files['squad']}; only answers to all" in err


def test_nothing_to_compare(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, files["squad"], "--against", files["q"])
    assert status == 2
    assert "--against compares answers with those of --predictions; name these too" in err
