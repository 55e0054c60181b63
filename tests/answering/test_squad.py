"""SQuAD files and files of predictions read, with every defect named."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from longformer.answering.scores import evaluate
from longformer.answering.squad import Answer, Example, offset_report, read_predictions, read_squad
from longformer.errors import DataError

CONTEXT = "Zoë met Zoë’s cat in Zürich. The cat slept."


def small_file() -> dict[str, Any]:
    def question(key: Any, text: str, start: int) -> dict[str, Any]:
        return {"id": key, "question": "Who?", "answers": [{"text": text, "answer_start": start}]}

    questions = [question("a", "Zürich", 21), question("b", "met", 4), question(3, "slept", 37)]
    first = {"title": "Pets", "paragraphs": [{"context": CONTEXT, "qas": questions}]}
    impossible = {"id": "d", "question": "Why?", "answers": [], "is_impossible": True, "plausible_answers": []}
    second = {"paragraphs": [{"context": "Nothing.", "qas": [impossible]}]}
    return {"version": "v2.0", "data": [first, second]}


def write(folder: Path, content: Any) -> Path:
    path = folder / "questions.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


class TestReading:
    def test_what_is_there(self, tmp_path: Path) -> None:
        examples = read_squad(write(tmp_path, small_file()))
        assert [example.id for example in examples] == ["a", "b", "3", "d"]
        assert examples[0] == Example(
            "a", "Pets", "Who?", CONTEXT, [Answer("Zürich", 21, 21)], False, "data[0].paragraphs[0].qas[0]"
        )
        assert [example.is_impossible for example in examples] == [False, False, False, True]
        assert examples[3].answers == [] and examples[3].place == "data[1].paragraphs[0].qas[0]"
        assert [example.article for example in examples] == ["Pets", "Pets", "Pets", "data[1]"]

    def test_a_byte_order_mark(self, tmp_path: Path) -> None:
        text = json.dumps(small_file(), ensure_ascii=False)
        assert len(read_squad(write(tmp_path, b"\xef\xbb\xbf" + text.encode()))) == 4

    @pytest.mark.parametrize(
        ("name", "questions", "realigned", "unusable"),
        [
            ("squad-v1.1-dev-part", 5946, 0, 0),
            ("squad-v1.1-train-part", 4000, 0, 0),
            ("squad2-dev-part", 1007, 0, 0),
            ("xquad-en", 758, 0, 0),
            ("covid-qa", 901, 125, 7),
        ],
    )
    def test_real_files(self, name: str, questions: int, realigned: int, unusable: int, data_dir: Path) -> None:
        examples = read_squad(data_dir / f"{name}.json")
        report = offset_report(examples)
        assert (len(examples), report.realigned, len(report.unusable)) == (questions, realigned, unusable)
        for example in examples:
            for answer in example.answers:
                if answer.start is not None:
                    assert example.context[answer.start : answer.start + len(answer.text)] == answer.text

    @pytest.mark.parametrize(
        ("text", "stated", "start"),
        [
            ("Zürich", 21, 21),
            ("Zürich", 20, 21),
            ("Zürich", 0, 21),
            ("Zürich", -1, 21),
            ("Zürich", 10**9, 21),
            ("Zoë", 0, 0),
            ("Zoë", 8, 8),  # twice in the context, and the offset says which
            ("Zoë", 7, None),
            ("cat", 0, None),
            ("dog", 4, None),
            ("zürich", 21, None),
            ("slept.", -6, 37),  # not counted from the end
        ],
    )
    def test_offsets(self, text: str, stated: int, start: int | None, tmp_path: Path) -> None:
        data = small_file()
        data["data"][0]["paragraphs"][0]["qas"][0]["answers"] = [{"text": text, "answer_start": stated}]
        examples = read_squad(write(tmp_path, data))
        assert examples[0].answers == [Answer(text, start, stated)]
        report = offset_report(examples)
        assert report.total == 3
        assert report.realigned == (start is not None and start != stated)
        assert report.unusable == (["data[0].paragraphs[0].qas[0].answers[0]"] if start is None else [])

    def test_overlapping_occurrences_are_two(self, tmp_path: Path) -> None:
        data = small_file()
        data["data"][0]["paragraphs"][0]["context"] = "x banana"
        data["data"][0]["paragraphs"][0]["qas"] = [
            {"id": "a", "question": "?", "answers": [{"text": "ana", "answer_start": 0}]}
        ]
        assert read_squad(write(tmp_path, data))[0].answers[0].start is None

    def test_the_report_in_words(self) -> None:
        def report(*answers: Answer) -> str:
            return str(offset_report([Example("1", "", "q", "c", list(answers), place="data[0].paragraphs[0].qas[0]")]))

        right, moved, lost = Answer("c", 0, 0), Answer("c", 0, 3), Answer("c", None, 3)
        assert report(right, Answer("c", 0)) == "2 answers, all at their stated offsets"
        assert report(right, moved) == "2 answers, 1 with a wrong offset: 1 realigned"
        assert report(right, moved, lost) == (
            "3 answers, 2 with a wrong offset: 1 realigned, "
            "1 of no use for training (data[0].paragraphs[0].qas[0].answers[2])"
        )
        assert report(*[lost] * 5).endswith("answers[2], ...)")

    def test_a_repeated_entry_is_kept(self, tmp_path: Path) -> None:
        data = small_file()
        questions = data["data"][0]["paragraphs"][0]["qas"]
        questions.append({**questions[0], "answers": [{"text": "in Zürich", "answer_start": 18}]})
        examples = read_squad(write(tmp_path, data))
        assert [example.id for example in examples] == ["a", "b", "3", "a", "d"]
        assert evaluate(examples, {"a": "Zürich"})["total"] == 5

    def test_without_answers_for_prediction(self, tmp_path: Path) -> None:
        data = small_file()
        del data["data"][0]["paragraphs"][0]["qas"][0]["answers"]
        data["data"][0]["paragraphs"][0]["qas"][1]["answers"] = []
        examples = read_squad(write(tmp_path, data), require_answers=False)
        assert [len(example.answers) for example in examples] == [0, 0, 1, 0]
        with pytest.raises(DataError, match=r"data\[0\].paragraphs\[0\].qas\[0\].answers is missing"):
            read_squad(write(tmp_path, data))


class TestMalformed:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", " is empty"),
            (b'{"data": [', " is not valid JSON"),
            (b'{"data": "\xe9"}', " is not UTF-8 text: byte 0xe9 at offset 10"),
            (b"[1, 2]", " holds a list; it must be an object"),
            (b"{}", ": data is missing"),
            (b'{"data": {}}', ": data is an object; it must be a list"),
            (b'{"data": []}', ": holds no questions"),
            (b'{"data": [{"paragraphs": []}]}', ": holds no questions"),
        ],
    )
    def test_files(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = write(tmp_path, content)
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}{message}"):
            read_squad(path)

    def test_files_that_cannot_be_opened(self, tmp_path: Path) -> None:
        for read in (read_squad, read_predictions):
            with pytest.raises(DataError, match=r"no file at .*absent.json"):
                read(tmp_path / "absent.json")
            with pytest.raises(DataError, match="cannot be read: Is a directory"):
                read(tmp_path)

    ARTICLE = ("data", 0)
    PARAGRAPH = (*ARTICLE, "paragraphs", 0)
    QUESTION = (*PARAGRAPH, "qas", 1)
    ANSWER = (*QUESTION, "answers", 0)

    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (ARTICLE, 3, "data[0] is 3; it must be an object"),
            ((*ARTICLE, "title"), 3, "data[0].title is 3; it must be a string"),
            ((*ARTICLE, "paragraphs"), None, "data[0].paragraphs is null; it must be a list"),
            ((*ARTICLE, "paragraphs"), ..., "data[0].paragraphs is missing"),
            (PARAGRAPH, "text", 'data[0].paragraphs[0] is "text"; it must be an object'),
            ((*PARAGRAPH, "context"), ..., "data[0].paragraphs[0].context is missing"),
            ((*PARAGRAPH, "context"), ["a"], "data[0].paragraphs[0].context is a list; it must be a string"),
            ((*PARAGRAPH, "context"), " \n", "data[0].paragraphs[0].context is empty"),
            ((*PARAGRAPH, "qas"), {}, "data[0].paragraphs[0].qas is an object; it must be a list"),
            (QUESTION, [], "data[0].paragraphs[0].qas[1] is a list; it must be an object"),
            ((*QUESTION, "id"), ..., "data[0].paragraphs[0].qas[1].id is missing"),
            ((*QUESTION, "id"), 1.5, "data[0].paragraphs[0].qas[1].id is 1.5; it must be a string or an integer"),
            ((*QUESTION, "id"), True, "data[0].paragraphs[0].qas[1].id is true; it must be a string or an integer"),
            (
                (*QUESTION, "question"),
                "What?",  # as a different question under a used id; the id is changed below
                "data[0].paragraphs[0].qas[1]: id 'a' is that of another question, at data[0].paragraphs[0].qas[0]",
            ),
            ((*QUESTION, "question"), "", "data[0].paragraphs[0].qas[1].question is empty"),
            ((*QUESTION, "question"), None, "data[0].paragraphs[0].qas[1].question is null; it must be a string"),
            ((*QUESTION, "answers"), {}, "data[0].paragraphs[0].qas[1].answers is an object; it must be a list"),
            (
                (*QUESTION, "answers"),
                [],
                "data[0].paragraphs[0].qas[1].answers is empty; a question that has no answer",
            ),
            (
                (*QUESTION, "is_impossible"),
                1,
                "data[0].paragraphs[0].qas[1].is_impossible is 1; it must be true or false",
            ),
            (
                (*QUESTION, "is_impossible"),
                True,
                "data[0].paragraphs[0].qas[1]: is_impossible is true, yet there are 1",
            ),
            (ANSWER, "met", 'data[0].paragraphs[0].qas[1].answers[0] is "met"; it must be an object'),
            ((*ANSWER, "text"), ..., "data[0].paragraphs[0].qas[1].answers[0].text is missing"),
            ((*ANSWER, "text"), 1999, "data[0].paragraphs[0].qas[1].answers[0].text is 1999; it must be a string"),
            ((*ANSWER, "text"), " ", "data[0].paragraphs[0].qas[1].answers[0].text is empty"),
            ((*ANSWER, "answer_start"), ..., "data[0].paragraphs[0].qas[1].answers[0].answer_start is missing"),
            ((*ANSWER, "answer_start"), "4", 'answers[0].answer_start is "4"; it must be an integer'),
            ((*ANSWER, "answer_start"), 4.0, "answers[0].answer_start is 4.0; it must be an integer"),
            ((*ANSWER, "answer_start"), False, "answers[0].answer_start is false; it must be an integer"),
        ],
    )
    def test_places(self, keys: tuple[Any, ...], value: Any, message: str, tmp_path: Path) -> None:
        data = copy.deepcopy(small_file())
        place: Any = data
        for key in keys[:-1]:
            place = place[key]
        if value is ...:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value
        if "another question" in message:
            place["id"] = "a"
        path = write(tmp_path, data)
        with pytest.raises(DataError) as caught:
            read_squad(path)
        assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)

    def test_a_long_value_is_cut_short(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            read_squad(write(tmp_path, {"data": "x" * 10_000}))
        assert len(str(caught.value)) < len(str(tmp_path)) + 150

    def test_id_of_a_question_over_another_context(self, tmp_path: Path) -> None:
        data = small_file()
        data["data"][1]["paragraphs"][0]["qas"][0].update(id="3", question="Who?")
        with pytest.raises(DataError, match="id '3' is that of another question"):
            read_squad(write(tmp_path, data))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", " is empty"),
            (b'["a"]', " holds a list; it must be an object"),
            (b'{"q1": "x", "q2": 3}', ": the prediction for id 'q2' is 3; it must be a string"),
            (b'{"q1": null}', ": the prediction for id 'q1' is null; it must be a string"),
            (b'{"q1": "\xff"}', " is not UTF-8 text: byte 0xff at offset 8"),
            (b'{"q1": ', " is not valid JSON"),
        ],
    )
    def test_predictions(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = write(tmp_path, content)
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}{message}"):
            read_predictions(path)

    def test_predictions_that_are_well(self, tmp_path: Path) -> None:
        predictions = {"a": "Zürich", "b": ""}
        assert read_predictions(write(tmp_path, predictions)) == predictions
        assert read_predictions(write(tmp_path, {})) == {}
