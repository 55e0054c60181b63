"""SQuAD files and files of predictions read, with every defect named."""

from __future__ import annotations

import copy
import gzip
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longformer.answering.scores import evaluate
from longformer.answering.squad import Answer, Example, offset_report, read_null_scores, read_predictions, read_squad
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


@pytest.fixture
def cases_dir() -> Path:
    """Small files of others' making; not part of the repository."""
    folder = Path(__file__).parents[3] / "shared" / "cases" / "squad"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/cases/squad beside the repository")
    return folder


class TestReading:
    def test_what_is_there(self, tmp_path: Path) -> None:
        path = write(tmp_path, small_file())
        examples = read_squad(path)
        assert [example.id for example in examples] == ["a", "b", "3", "d"]
        assert examples[0] == Example(
            "a", "Pets", "Who?", CONTEXT, [Answer("Zürich", 21, 21)], False, "data[0].paragraphs[0].qas[0]", str(path)
        )
        assert examples[0].where == f"{path}, data[0].paragraphs[0].qas[0]: id 'a'"
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
        assert evaluate(examples[:4], {"a": "Zürich"}) == {"exact_match": 25.0, "f1": 100 * (1 + 2 / 3) / 4, "total": 4}
        v2 = evaluate(examples, {"a": "Zürich"})  # whose script counts the last of them
        assert v2 == pytest.approx({"exact_match": 0.0, "f1": 100 * 2 / 3 / 4, "total": 4})

    def test_for_prediction_answers_are_not_looked_at(self, tmp_path: Path) -> None:
        data = small_file()
        questions = data["data"][0]["paragraphs"][0]["qas"]
        del questions[0]["answers"]
        questions[1].update(answers={"text": 3}, is_impossible="perhaps")
        examples = read_squad(write(tmp_path, data), questions_only=True)
        assert [example.id for example in examples] == ["a", "b", "3", "d"]
        assert not any(example.answers or example.is_impossible for example in examples)
        with pytest.raises(DataError, match=r"qas\[0\]: id 'a': answers is missing; a question that has no"):
            read_squad(write(tmp_path, data))


PARIS = "Dan fell in Paris. Ann did not."
DAN = {"text": "Dan", "answer_start": 0}
QUESTION = {"id": "1", "question": "Who fell?", "answers": [DAN]}
ROW = {"id": "1", "title": "t", "context": PARIS, "question": "Who fell?"}
ROW["answers"] = {"text": ["Dan"], "answer_start": [0]}
MRQA = {
    "context": PARIS,
    "qas": [
        {
            "qid": "1",
            "question": "Who fell?",
            "answers": ["dan"],
            "detected_answers": [{"text": "Dan", "char_spans": [[0, 2]], "token_spans": [[0, 0]]}],
        }
    ],
}


def squad(**question: Any) -> dict[str, Any]:
    """A file with one question, QUESTION with other values; ``...`` leaves one out."""
    entry = {key: value for key, value in {**QUESTION, **question}.items() if value is not ...}
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": PARIS, "qas": [entry]}]}]}


def lines(*entries: Any) -> bytes:
    return "\n".join(json.dumps(entry) for entry in entries).encode() + b"\n"


class TestForms:
    """Question files as people have them; all hold the question "Who fell?" of id 1, and the answer "Dan" at 0."""

    @pytest.mark.parametrize(
        ("content", "places"),
        [
            (squad(), ["data[0].paragraphs[0].qas[0]"]),
            (squad()["data"], ["[0].paragraphs[0].qas[0]"]),
            ({"data": [MRQA]}, ["data[0].qas[0]"]),
            ({"data": [ROW]}, ["data[0]"]),
            ([ROW], ["[0]"]),
            (lines(ROW), ["line 1"]),
            (lines(ROW, {**ROW, "id": "2"}), ["line 1", "line 2"]),
            (b"\n" + lines(ROW) + b"\n\r\n" + lines({**ROW, "id": "2"}), ["line 2", "line 5"]),
            (lines(*squad()["data"], {"paragraphs": []}), ["line 1.paragraphs[0].qas[0]"]),
            (lines({"header": {"dataset": "NewsQA"}}, MRQA), ["line 2.qas[0]"]),
            (lines({"header": {}}, {**ROW, "qid": "1", "id": "1"}), ["line 2"]),
            (json.dumps(squad(), indent=1).encode(), ["data[0].paragraphs[0].qas[0]"]),
            ({key: [value] for key, value in ROW.items()}, ["[0]"]),
            ({key: [value, value] for key, value in ROW.items()} | {"id": ["1", 2], "version": "1"}, ["[0]", "[1]"]),
            ({key: {"7": value} for key, value in ROW.items()}, ["[0]"]),
        ],
        ids=str,
    )
    def test_containers(self, content: Any, places: list[str], tmp_path: Path) -> None:
        examples = read_squad(write(tmp_path, content))
        assert [example.place for example in examples] == places
        assert (examples[0].id, examples[0].question, examples[0].context) == ("1", "Who fell?", PARIS)
        assert examples[0].answers == [Answer("Dan", 0, 0)] and not examples[0].is_impossible

    def test_compressed_and_in_other_encodings(self, tmp_path: Path) -> None:
        text = json.dumps(squad(question="Wer stürzte?"), ensure_ascii=False)
        for data in (
            gzip.compress(text.encode()),
            gzip.compress(b"\xef\xbb\xbf" + text.encode()),
            text.encode("utf-16"),
            b"\xfe\xff" + text.encode("utf-16-be"),
        ):
            assert read_squad(write(tmp_path, data))[0].question == "Wer stürzte?"
        with pytest.raises(DataError, match="is a damaged gzip file"):
            read_squad(write(tmp_path, gzip.compress(text.encode())[:-9]))
        with pytest.raises(DataError, match="begins as UTF-16 text and goes on otherwise, at byte"):
            read_squad(write(tmp_path, b"\xff\xfe" + b"{\x00}"))

    @pytest.mark.parametrize(
        "question",
        [
            {"answers": [{"text": "Dan", "answer_start": 0.0}]},
            {"answers": [{"text": "Dan", "answer_start": "0"}]},
            {"answers": [{"text": "Dan", "answer_start": [[0, 2]]}]},
            {"answers": {"text": ["Dan"], "answer_start": [0]}},
            {"answers": DAN},
            {"is_impossible": None},
            {"is_impossible": 0},
            {"is_impossible": "false"},
            {"is_impossible": False},
            {"id": ..., "qid": "1"},
            {"id": 1},
            {"id": ..., "question_id": 1},
            {"answers": [DAN, {"text": "", "answer_start": -1}, {"text": None}]},
        ],
        ids=str,
    )
    def test_an_answer_in_other_words(self, question: dict[str, Any], tmp_path: Path) -> None:
        (example,) = read_squad(write(tmp_path, squad(**question)))
        assert (example.id, example.answers, example.is_impossible) == ("1", [Answer("Dan", 0, 0)], False)

    @pytest.mark.parametrize(
        "start",
        [{}, *({"answer_start": value} for value in (None, "?", True, 1e400, 0.5, {}, [], "9" * 5000, 10**30))],
        ids=lambda start: str(start)[:30],
    )
    def test_an_offset_that_is_none(self, start: dict[str, Any], tmp_path: Path) -> None:
        def examples(context: str) -> list[Example]:
            data = squad(answers=[{"text": "Dan", **start}])
            data["data"][0]["paragraphs"][0]["context"] = context
            return read_squad(write(tmp_path, data))

        assert [answer.start for answer in examples("Dan fell")[0].answers] == [0]  # once in the context
        twice = examples("Dan met Dan")
        assert [answer.start for answer in twice[0].answers] == [None]
        assert offset_report(twice).unusable == ["data[0].paragraphs[0].qas[0].answers[0]"]

    def test_space_around_an_answer(self, tmp_path: Path) -> None:
        for start in (11, None):
            (example,) = read_squad(write(tmp_path, squad(answers=[{"text": " Paris ", "answer_start": start}])))
            assert example.answers == [Answer("Paris", 12, None if start is None else 12)]

    @pytest.mark.parametrize(
        "question",
        [
            {"answers": []},
            {"answers": [], "is_impossible": False},
            {"answers": [], "is_impossible": True},
            {"answers": None},
            {"answers": None, "is_impossible": True},
            {"answers": ..., "is_impossible": True},
            {"answers": [{"text": "", "answer_start": -1}], "is_impossible": True},
            {"answers": {"text": [], "answer_start": []}},
            {"answers": [], "is_impossible": True, "plausible_answers": [DAN]},
            {
                "id": 11,
                "answers": [{"text": "", "answer_start": 0, "answer_category": "NOT_GIVEN"}],
                "is_impossible": 1,
            },
        ],
        ids=str,
    )
    def test_a_question_without_answers_has_none(self, question: dict[str, Any], tmp_path: Path) -> None:
        (example,) = read_squad(write(tmp_path, squad(**question)))
        assert example.is_impossible and example.answers == []

    @pytest.mark.parametrize(("title", "read"), [(None, ""), (1984, "1984"), (1.5, "1.5"), (["t"], ""), (..., "")])
    def test_titles(self, title: Any, read: str, tmp_path: Path) -> None:
        data = squad()
        data["data"][0]["title"] = title
        if title is ...:
            del data["data"][0]["title"]
        (example,) = read_squad(write(tmp_path, data))
        assert example.title == read and example.article == (read or "data[0]")

    def test_a_context_that_nobody_asks_about(self, tmp_path: Path) -> None:
        data = squad()
        data["data"][0]["paragraphs"][:0] = [{"context": "", "qas": []}, {"qas": []}]
        assert [example.place for example in read_squad(write(tmp_path, data))] == ["data[0].paragraphs[2].qas[0]"]

    def test_rows_of_mrqa_as_a_dataset_keeps_them(self, tmp_path: Path) -> None:
        detected = {"text": ["Paris"], "char_spans": [{"start": [12], "end": [16]}]}
        row = {"qid": "1", "context": PARIS, "question": "Where?", "answers": ["paris"], "detected_answers": detected}
        (example,) = read_squad(write(tmp_path, [row]))
        assert example.answers == [Answer("Paris", 12, 12)]

    def test_where_the_form_is_not_certain(self, tmp_path: Path) -> None:
        both = {**ROW, "qas": [{**QUESTION, "id": "2"}]}
        path = write(tmp_path, [both])
        with pytest.raises(DataError) as caught:
            read_squad(path)
        assert str(caught.value) == (
            f"{path}, [0] has qas and question, so that its form is not certain; say it with --format"
        )
        assert [example.id for example in read_squad(path, form="rows")] == ["1"]
        assert [example.id for example in read_squad(path, form="mrqa")] == ["2"]
        with pytest.raises(DataError, match=r"\[0\].paragraphs is missing"):
            read_squad(path, form="squad")

    def test_files_of_others(self, cases_dir: Path) -> None:
        """Each is read, or refused by one line that says where and why."""
        refused = {
            "latin1.json": " is not UTF-8 text: byte 0xe9",
            "lone_surrogate.json": ": id '1': the context has U+D83D",
        }
        for path in sorted(cases_dir.glob("*.json")):
            if path.name in refused:
                with pytest.raises(DataError, match=re.escape(refused[path.name])):
                    read_squad(path)
            else:
                assert read_squad(path)[0].context.startswith("Dan fell in Paris.")
                assert read_squad(path, questions_only=True)[0].question.startswith("Who ")


class TestMalformed:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", " is empty"),
            (b'{"data": [', " is not valid JSON"),
            (b'{"data": "\xe9"}', " is not UTF-8 text: byte 0xe9 at offset 10"),
            (b"[1, 2]", ", [0] is 1; it must be an object"),
            (b"3", " holds 3; it must be an object or a list of questions"),
            (b"{}", ": data is missing"),
            (b"[]", ": holds no questions"),
            (b'{"data": {}}', ": data is an object; it must be a list"),
            (b'{"data": []}', ": holds no questions"),
            (b'{"question": [], "id": {}}', ": holds no questions"),
            (
                b'{"question": ["a", "b"], "id": [1]}',
                ': the columns of a table must be of one length, but "question" has',
            ),
            (b'{"question": ["Who?"], "id": [1]}', ", [0]: id '1': context is missing"),
            (b'{"data": [{"paragraphs": []}]}', ": holds no questions"),
            (b'{"header": {}}\n{"header": {}}', ": holds no questions"),
            (b'{"id": "1"}\n{"id"', ', line 1: id "1": question is missing, and there are neither paragraphs'),
        ],
    )
    def test_files(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = write(tmp_path, content)
        with pytest.raises(DataError, match=f"^{re.escape(str(path) + message)}"):
            read_squad(path)

    def test_files_that_cannot_be_opened(self, tmp_path: Path) -> None:
        for read in (read_squad, read_predictions):
            with pytest.raises(DataError, match=r"no file at .*absent.json"):
                read(tmp_path / "absent.json")
            with pytest.raises(DataError, match="cannot be read: Is a directory"):
                read(tmp_path)

    def test_a_line_that_is_no_json(self, tmp_path: Path) -> None:
        path = write(tmp_path, lines(ROW) + b'{"id": "2", "question"\n' + lines({**ROW, "id": "3"}))
        with pytest.raises(DataError) as caught:
            read_squad(path)
        assert str(caught.value) == f"{path}, line 2 is not valid JSON: Expecting ':' delimiter, at column 23"
        skipped: list[str] = []
        assert [example.id for example in read_squad(path, skipped=skipped)] == ["1", "3"]
        assert skipped == [str(caught.value)]

    ARTICLE = ("data", 0)
    PARAGRAPH = (*ARTICLE, "paragraphs", 0)
    QUESTION = (*PARAGRAPH, "qas", 1)
    ANSWER = (*QUESTION, "answers", 0)
    AT = "data[0].paragraphs[0].qas[1]: id 'b': "

    @pytest.mark.parametrize(
        ("keys", "value", "message"),
        [
            (ARTICLE, 3, "data[0] is 3; it must be an object"),
            ((*ARTICLE, "paragraphs"), None, "data[0].paragraphs is null; it must be a list"),
            ((*ARTICLE, "paragraphs"), ..., "data[0]: question is missing, and there are neither paragraphs nor qas"),
            (PARAGRAPH, "text", 'data[0].paragraphs[0] is "text"; it must be an object'),
            ((*PARAGRAPH, "context"), ..., "data[0].paragraphs[0].qas[0]: id 'a': context is missing"),
            (
                (*PARAGRAPH, "context"),
                ["a"],
                "data[0].paragraphs[0].qas[0]: id 'a': context is a list; it must be",
            ),
            ((*PARAGRAPH, "context"), " \n", "data[0].paragraphs[0].qas[0]: id 'a': the context is blank; give text"),
            ((*PARAGRAPH, "context"), "\ud83d", "data[0].paragraphs[0].qas[0]: id 'a': the context has U+D83D at"),
            ((*PARAGRAPH, "qas"), {}, "data[0].paragraphs[0].qas is an object; it must be a list"),
            ((*PARAGRAPH, "qas"), ..., "data[0].paragraphs[0].qas is missing"),
            (QUESTION, [], "data[0].paragraphs[0].qas[1] is a list; it must be an object"),
            ((*QUESTION, "id"), ..., "data[0].paragraphs[0].qas[1]: id is missing"),
            ((*QUESTION, "id"), 1.5, "data[0].paragraphs[0].qas[1]: id is 1.5; it must be a string or an integer"),
            ((*QUESTION, "id"), True, "data[0].paragraphs[0].qas[1]: id 'True': id is true; it must be a string or"),
            ((*QUESTION, "id"), None, "data[0].paragraphs[0].qas[1]: id is null; it must be a string or an integer"),
            (
                (*QUESTION, "question"),
                "What?",  # as a different question under a used id; the id is changed below
                "data[0].paragraphs[0].qas[1]: id 'a': this is also the id of another question, at "
                "data[0].paragraphs[0].qas[0]; ids must be unique",
            ),
            ((*QUESTION, "question"), "", AT + "the question is empty; give text"),
            ((*QUESTION, "question"), None, AT + "question is missing"),
            ((*QUESTION, "question"), ["Who?"], AT + "question is a list; it must be a string"),
            ((*QUESTION, "answers"), 3, AT + "answers is 3; it must be a list"),
            ((*QUESTION, "answers"), {}, AT + "answers[0].text is missing"),
            (
                (*QUESTION, "answers"),
                {"text": [3], "answer_start": []},
                AT + "answers.text[0] is 3; it must be",
            ),
            (
                (*QUESTION, "is_impossible"),
                True,
                AT + "is_impossible is true, yet there are answers; correct one or the other",
            ),
            (ANSWER, 3, AT + "answers[0] is 3; it must be an object"),
            ((*ANSWER, "text"), ..., AT + "answers[0].text is missing"),
            ((*ANSWER, "text"), 1999, AT + "answers[0].text is 1999; it must be a string"),
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
        assert str(caught.value).startswith(f"{path}, {message}") and "\n" not in str(caught.value)
        skipped: list[str] = []
        examples = read_squad(path, skipped=skipped)
        assert (skipped[0] == str(caught.value) and "d" in [example.id for example in examples]) or keys == self.ARTICLE
        if keys[: len(self.QUESTION)] == self.QUESTION:
            assert [example.id for example in examples] == ["a", "3", "d"] and len(skipped) == 1

    def test_nothing_is_left(self, tmp_path: Path) -> None:
        path = write(tmp_path, squad(question=""))
        with pytest.raises(DataError, match="holds no questions, only 1 entry that cannot be used"):
            read_squad(path, skipped=[])

    def test_a_long_value_is_cut_short(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            read_squad(write(tmp_path, {"data": "x" * 10_000}))
        assert len(str(caught.value)) < len(str(tmp_path)) + 150

    def test_id_of_a_question_over_another_context(self, tmp_path: Path) -> None:
        data = small_file()
        data["data"][1]["paragraphs"][0]["qas"][0].update(id="3", question="Who?")
        with pytest.raises(DataError, match="id '3': this is also the id of another question"):
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

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"a": 0.5, "b": None}, ": the value for id 'b' is null; it must be a finite number"),
            ({"a": 0.5, "b": True}, ": the value for id 'b' is true; it must be a finite number"),
            ({"a": 0.5, "b": math.nan}, ": the value for id 'b' is NaN; it must be a finite number"),
            ({"x": 0.5}, ": holds no value for id 'a' and 1 more, of which there is a prediction"),
            ([], " holds a list; it must be an object"),
        ],
    )
    def test_null_scores(self, content: Any, message: str, tmp_path: Path) -> None:
        path = write(tmp_path, content)
        with pytest.raises(DataError, match=f"^{re.escape(str(path) + message)}"):
            read_null_scores(path, ["a", "b"])

    def test_null_scores_that_are_well(self, tmp_path: Path) -> None:
        assert read_null_scores(write(tmp_path, {"b": -1, "a": 0.5, "c": 7}), ["a"]) == {"b": -1, "a": 0.5, "c": 7}


KEYS = ["data", "paragraphs", "qas", "context", "question", "id", "qid", "answers", "text", "answer_start", "title"]
KEYS += ["is_impossible", "detected_answers", "char_spans", "start", "header"]
TEXT = st.sampled_from(["", " a", "a", "\ud83d"])
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-2, 10**20), st.floats(), TEXT)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)


ANYTHING = st.recursive(LEAF, nested, max_leaves=25)


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=6) | st.lists(ANYTHING, max_size=3), st.booleans())
def test_whatever_is_in_a_file_it_is_read_or_refused(content: Any, questions_only: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        question = content if isinstance(content, dict) else {}
        for written in (content, {"data": [content]}, squad(answers=content), squad(**question)):
            path = write(Path(folder), written)
            try:
                examples = read_squad(path, questions_only=questions_only, skipped=[])
            except DataError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
            else:
                assert all(e.id is not None and e.question.strip() and e.context.strip() for e in examples)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_bad_line_among_lines(tmp_path: Path, bad: int) -> None:
    lines = [json.dumps({"id": str(i), "question": "Who?", "context": "Dan fell."}) for i in range(4)]
    lines[bad] = "{broken"
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(lines))
    skipped: list = []
    read = read_squad(path, questions_only=True, skipped=skipped)
    assert [example.id for example in read] == [str(i) for i in range(4) if i != bad]
    assert len(skipped) == 1
