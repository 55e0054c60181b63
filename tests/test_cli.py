"""The ``longformer`` command: what it prints where, and how it ends."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_checkpoint import save_tiny_checkpoint

import longformer
from longformer import CheckpointError, DataError, LongformerConfig, LongformerError, LongformerForQuestionAnswering
from longformer import cli as command
from longformer.answering import options
from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.cli import describe, surroundings
from longformer.answering.scores import evaluate
from longformer.answering.settings import AnswerSettings
from longformer.answering.spans import Answer, Found
from longformer.answering.squad import read_squad
from longformer.kernels.api import IMPLEMENTATIONS

DOCUMENT = "First line.\nIt rained. On Monday, Ada Lovelace met 12 people! They left.\n\nLast line.\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch):
    """An answerer that is there without loading, and finds "Ada Lovelace"; it keeps what it was called with."""

    class Stub:
        loaded: dict | None = None
        asked: dict | None = None

        def from_pretrained(self, name=None, **how):
            self.loaded = {"name": name, **how}
            return self

        def answer(self, question, document, *, settings, windows):
            self.asked = {"question": question, "document": document, "settings": settings}
            start = document.index("Ada Lovelace")
            return [
                Answer("Ada Lovelace", 0.8125, start, start + 12),
                Answer("Ada", 0.125, start, start + 3),
            ][: settings.top_k]

        def search(self, pairs, *, settings, batch_tokens, progress, refused):
            self.asked = {"settings": settings, "batch_tokens": batch_tokens}
            found = {}
            for i, (question, document) in enumerate(pairs):
                if question == "Too long?":
                    refused(i, DataError("leaves no room"))
                    continue
                progress(1)
                answers = [Answer(document[: 4 - n], 0.5 - n / 10, 0, 4 - n) for n in range(min(settings.top_k, 3))]
                none = settings.null_threshold is not None and len(document) > settings.null_threshold
                found[i] = Found([Answer("", 0.5, 0, 0), *answers] if none else answers, float(len(document)))
            return found

    stub = Stub()
    monkeypatch.setattr(QuestionAnswerer, "from_pretrained", stub.from_pretrained)
    return stub


def squad_file(path: Path, *contexts: str, **more: object) -> str:
    """A file with one question a context, whose answer is the context's first four characters."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {"id": f"id{i}", "question": "Who?", "answers": [{"text": context[:4], "answer_start": 0}], **more}
            ],
        }
        for i, context in enumerate(contexts)
    ]
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": paragraphs}]}), encoding="utf-8")
    return str(path)


def scores(out: str) -> dict[str, float]:
    """The official scores among what ``evaluate --json`` printed."""
    return {name: value for name, value in json.loads(out).items() if name in ("exact_match", "f1", "total")}


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


class TestAnswer:
    def test_for_a_reader(self, run, stub, tmp_path):
        (tmp_path / "d.txt").write_text(DOCUMENT, encoding="utf-8")
        status, out, err = run("answer", "Who?", str(tmp_path / "d.txt"))
        assert (status, err) == (0, "")
        assert out == (
            "Ada Lovelace\n"
            "  probability 81.2%, line 2, characters 34 to 46 of 85\n"
            "  On Monday, Ada Lovelace met 12 people!\n"
        )

    def test_as_json_and_nothing_else(self, run, stub):
        status, out, err = run("answer", "Who?", "--text", DOCUMENT, "--top-k", "2", "--json")
        assert (status, err) == (0, "")
        place = {"line": 2, "sentence": "On Monday, Ada Lovelace met 12 people!"}
        assert json.loads(out) == [
            {"text": "Ada Lovelace", "probability": 0.8125, "start": 34, "end": 46, **place},
            {"text": "Ada", "probability": 0.125, "start": 34, "end": 37, **place},
        ]

    def test_no_answer_stands_nowhere(self, run, stub, monkeypatch):
        monkeypatch.setattr(stub, "answer", lambda *_, **__: [Answer("", 0.5, 0, 0)])
        (found,) = json.loads(run("answer", "Who?", "--text", "a", "--json")[1])
        assert found == {"text": "", "probability": 0.5, "start": 0, "end": 0, "line": None, "sentence": None}
        assert run("answer", "Who?", "--text", "a")[1] == "no answer\n  probability 50.0%\n"

    def test_several_answers_stand_apart(self, run, stub):
        _, out, _ = run("answer", "Who?", "--text", DOCUMENT, "--top-k", "2")
        assert [block.splitlines()[0] for block in out.split("\n\n")] == ["Ada Lovelace", "Ada"]

    def test_options_reach_the_model(self, run, stub):
        import torch

        run("answer", "Who?", "--text", DOCUMENT)
        assert stub.loaded == {
            "name": None,
            "tokenizer": None,
            "revision": None,
            "device": None,
            "dtype": torch.float32,
            "impl": "auto",
        }
        assert stub.asked == {"question": "Who?", "document": DOCUMENT, "settings": AnswerSettings()}
        options = (
            "--model m/n --tokenizer t --revision r --device cpu --dtype bfloat16 --impl banded --max-answer-tokens 7 "
            "--stride 9 --null-threshold 1 --null-rule minimum --no-overlap --inside-words --top-k 2"
        )
        run("answer", "Who?", "--text", DOCUMENT, *options.split())
        assert stub.loaded == {
            "name": "m/n",
            "tokenizer": "t",
            "revision": "r",
            "device": "cpu",
            "dtype": torch.bfloat16,
            "impl": "banded",
        }
        answer = {"null_threshold": 1, "null_rule": "minimum", "no_overlap": True, "inside_words": True, "top_k": 2}
        assert stub.asked["settings"] == AnswerSettings(max_answer_tokens=7, stride=9, **answer)

    def test_standard_input_as_it_is(self, run, stub, monkeypatch):
        stdin(monkeypatch, "\ufeffZürich.\r\nAda Lovelace".encode())
        status, out, _ = run("answer", "Who?", "-", "--json")
        (answer,) = json.loads(out)
        assert status == 0 and stub.asked["document"] == "\ufeffZürich.\r\nAda Lovelace"
        assert (answer["start"], answer["sentence"]) == (10, "Ada Lovelace")  # without the mark before

    @pytest.mark.parametrize("mark, encoding", [("\ufeff", "utf-8"), ("", "utf-8"), ("\ufeff", "utf-16-le")])
    def test_offsets_are_of_what_open_reads(self, run, checkpoint, tmp_path, mark, encoding):
        path = tmp_path / "d.txt"
        path.write_bytes(f"{mark}Anna sang.\r\nPaul ran.".encode(encoding))
        text = open(path, encoding="utf-8" if encoding == "utf-8" else "utf-16", newline="").read()
        arguments = ["answer", "Who?", str(path), "--model", checkpoint, "--json", "--top-k", "5"]
        answers = json.loads(run(*arguments)[1])
        assert [text[a["start"] : a["end"]] for a in answers] == [a["text"] for a in answers]
        assert not any("\ufeff" in a["text"] + a["sentence"] for a in answers)
        plain = json.loads(run(*[*arguments[:2], "--text", "Anna sang.\r\nPaul ran.", *arguments[3:]])[1])
        assert [(a["text"], a["probability"]) for a in answers] == [(a["text"], a["probability"]) for a in plain]

    def test_a_model_end_to_end(self, run, checkpoint):
        status, out, err = run("answer", "Who?", "--text", "They do.", "--model", checkpoint, "--json")
        (answer,) = json.loads(out)
        assert (status, err) == (0, "")
        assert answer["text"] == "They do."[answer["start"] : answer["end"]]

    def test_characters_that_the_terminal_lacks(self, stub, monkeypatch):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin1")
        monkeypatch.setattr(sys, "stdout", terminal)
        with pytest.raises(SystemExit) as stopped:
            command.main(["answer", "Who?", "--text", "Zürich 🦦: Ada Lovelace"])
        assert stopped.value.code == 0
        assert b"Z\xfcrich \\U0001f9a6: Ada" in terminal.buffer.getvalue()

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["nowhere.txt"], "error: no file at 'nowhere.txt'; to give the document itself, use --text\n"),
            (["."], "error: . cannot be read: Is a directory\n"),
            (["--text", " "], "error: the document is blank; give text\n"),
            (["--text", "a", "--model", "./nowhere"], "error: no folder at './nowhere'"),
            (["--text", "a", "--device", "nonsense"], "error: device 'nonsense' cannot be used here"),
            ([], "error: give the document as a file, as - for standard input, or with --text: one of them\n"),
            (["a.txt", "--text", "a"], "error: give the document as a file"),
            (["--text", "a", "--top-k", "0"], "error: Invalid value for '--top-k'"),
            (["--text", "a", "--stride", "0"], "error: Invalid value for '--stride'"),
            (["--text", "a", "--dtype", "int4"], "error: Invalid value for '--dtype'"),
            (["--text", "a", "--revision", "r"], "error: --revision needs a --model on the hub"),
        ],
    )
    def test_bad_input(self, run, arguments, message):
        status, out, err = run("answer", "Who?", *arguments)
        assert (status, out) == (2, "")
        assert message in err

    def test_the_document_before_the_question(self, run, stub):
        status, out, err = run("answer", __file__, "Who?")
        assert (status, out) == (2, "")
        assert f"error: {__file__!r} is a file and 'Who?' is none; give the question first" in err

    def test_an_empty_question(self, run, stub):
        assert run("answer", "", "--text", "a") == (2, "", "error: the question is empty; give text\n")
        assert stub.loaded is None

    def test_a_document_that_is_not_utf8(self, run, stub, tmp_path, monkeypatch):
        (tmp_path / "latin1.txt").write_bytes("Zürich".encode("latin1"))
        status, _, err = run("answer", "Where?", str(tmp_path / "latin1.txt"))
        assert status == 2
        assert "latin1.txt is not UTF-8 text: byte 0xfc at offset 1; it seems to be WINDOWS-1252 text: convert" in err
        stdin(monkeypatch, b"abc\xff")
        assert "standard input is not UTF-8 text: byte 0xff at offset 3" in run("answer", "Where?", "-")[2]
        assert stub.loaded is None


class TestSurroundings:
    @pytest.mark.parametrize(
        "document, text, expected",
        [
            ("One. Two three four. Five.", "three", ("Two ", " four.")),
            ("One. Two three.", "Two three.", ("", "")),
            ("One. Two three. Four.", "Two three.", ("", "")),
            ('He said "two three." Then four.', "two", ('He said "', ' three."')),
            ("Heading\n\nTwo three\n\nFour", "Two", ("", " three")),
            ("wrapped two\nthree four", "three", ("wrapped two\n", " four")),
            ("three", "three", ("", "")),
        ],
    )
    def test_the_sentence(self, document, text, expected):
        start = document.index(text)
        assert surroundings(document, start, start + len(text)) == expected

    def test_no_more_than_asked(self):
        document = "lorem " * 100 + "three" + " ipsum" * 100
        before, after = surroundings(document, 600, 605, most=20)
        assert before == "... lorem lorem lorem "
        assert after == " ipsum ipsum ipsum ..."

    def test_nothing_steers_the_terminal(self):
        document = "a\x1b[2J \x07Ada\x1b[0m \tLovelace\nb"
        start, end = document.index("Ada"), document.index("\nb")
        shown = describe(Answer(document[start:end], 0.5, start, end), document)
        assert "\x1b" not in shown.replace("\x1b[1m", "").replace("\x1b[0m", "") and "\x07" not in shown
        assert "Ada [0m Lovelace" in shown


class TestPredict:
    def test_writes_an_answer_for_every_question(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", "Züri is.", "Paul ran.")
        out = tmp_path / "p.json"
        options = ["--batch-tokens", "77", "--max-answer-tokens", "5", "--stride", "6", "--max-length", "8"]
        options += ["--null-threshold", "99.5"]
        status, printed, err = run("predict", file, "-o", str(out), *options)
        assert (status, printed) == (0, "")
        assert err == f"wrote 3 answers to {out}\n"
        assert json.loads(out.read_text(encoding="utf-8")) == {"id0": "Anna", "id1": "Züri", "id2": "Paul"}
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == []
        settings = AnswerSettings(max_answer_tokens=5, stride=6, max_length=8, null_threshold=99.5)
        assert stub.asked == {"batch_tokens": 77, "settings": settings}

    def test_some_of_them(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", "Paul ran.")
        run("predict", file, "-o", str(tmp_path / "p.json"), "--limit", "1")
        assert json.loads((tmp_path / "p.json").read_text()) == {"id0": "Anna"}

    def test_a_failure_leaves_the_old_file(self, run, stub, tmp_path, monkeypatch):
        file = squad_file(tmp_path / "q.json", "Anna sang.")
        (tmp_path / "p.json").write_text("old")
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        status, _, err = run("predict", file, "-o", str(tmp_path / "p.json"))
        assert (status, err) == (2, f"error: {tmp_path / 'p.json'} cannot be written: No space left on device\n")
        assert (tmp_path / "p.json").read_text() == "old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "q.json"]

    def test_a_model_end_to_end(self, run, checkpoint, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang. " * 20, "Paul ran.")
        status, _, err = run("predict", file, "-o", str(tmp_path / "p.json"), "--model", checkpoint)
        assert status == 0, err
        assert set(json.loads((tmp_path / "p.json").read_text())) == {"id0", "id1"}

    @pytest.mark.parametrize(
        "file, output, message",
        [
            ("nowhere.json", "p.json", "error: no file at 'nowhere.json'"),
            ("q.json", "nowhere/p.json", "error: there is no folder 'nowhere' to write p.json into; make it first"),
            ("q.json", "folder", "error: folder is a folder; give a file to write to"),
            ("broken.json", "p.json", "error: broken.json, data[0].paragraphs[0].qas[0]: id '7': context is missing"),
        ],
    )
    def test_bad_input_is_found_before_loading(self, run, stub, tmp_path, monkeypatch, file, output, message):
        monkeypatch.chdir(tmp_path)
        squad_file(tmp_path / "q.json", "Anna sang.")
        (tmp_path / "folder").mkdir()
        (tmp_path / "broken.json").write_text('{"data": [{"paragraphs": [{"qas": [{"id": 7, "question": "Who?"}]}]}]}')
        status, _, err = run("predict", file, "-o", output)
        assert status == 2
        assert message in err
        assert stub.loaded is None

    def test_a_folder_that_may_not_be_written(self, run, stub, tmp_path, monkeypatch):
        file = squad_file(tmp_path / "q.json", "Anna sang.")
        monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not hold root back
        status, _, err = run("predict", file, "-o", str(tmp_path / "p.json"))
        assert status == 2
        assert "cannot be written into; give another place for p.json" in err

    @pytest.mark.parametrize("output", ["q.json", "./q.json", "link.json", "model/config.json"])
    def test_an_input_is_never_overwritten(self, run, stub, tmp_path, monkeypatch, output):
        monkeypatch.chdir(tmp_path)
        squad_file(tmp_path / "q.json", "Anna sang.")
        (tmp_path / "link.json").symlink_to("q.json")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
        status, _, err = run("predict", "q.json", "-o", output, "--model", "model")
        assert status == 2
        assert "is read by this command, and would be overwritten; give another file to write" in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
        assert stub.loaded is None

    def test_to_standard_output(self, checkpoint, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.")
        arguments = ["predict", file, "-o", "/dev/stdout", "--model", checkpoint]
        with (tmp_path / "out.json").open("w") as out:
            done = child(f"from longformer.cli import main; main({arguments!r})", tmp_path, stdout=out.fileno())
        assert done.returncode == 0, done.stderr
        assert set(json.loads((tmp_path / "out.json").read_text())) == {"id0"}

    def test_several_answers_and_null_scores(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", "Paul ran.")
        paths = [str(tmp_path / name) for name in ("p.json", "n.json", "s.json")]
        options = ["-o", paths[0], "--n-best", paths[1], "--n-best-size", "2", "--null-scores", paths[2]]
        assert run("predict", file, *options, "--null-threshold", "9.5")[0] == 0
        predictions, n_best, null_scores = (json.loads(Path(path).read_text()) for path in paths)
        assert predictions == {"id0": "", "id1": "Paul"}
        assert null_scores == {"id0": 10.0, "id1": 9.0}
        assert [found["text"] for found in n_best["id0"]] == ["", "Anna", "Ann"]
        assert n_best["id1"] == [
            {"text": "Paul", "probability": 0.5, "start": 0, "end": 4},
            {"text": "Pau", "probability": 0.4, "start": 0, "end": 3},
        ]
        assert stub.asked["settings"] == AnswerSettings(top_k=2, null_threshold=9.5)

    def test_null_scores_of_a_model_are_what_a_threshold_compares(self, run, checkpoint, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang. " * 20, "Paul ran.", "Mary sat. And more.")
        out, scores = str(tmp_path / "p.json"), str(tmp_path / "s.json")
        common = ["predict", file, "-o", out, "--model", checkpoint]
        assert run(*common, "--null-scores", scores)[0] == 0
        values = json.loads(Path(scores).read_text())
        for threshold in values.values():
            assert run(*common, "--null-threshold", repr(threshold))[0] == 0
            answers = json.loads(Path(out).read_text())
            assert {key for key, text in answers.items() if not text} == {k for k, v in values.items() if v > threshold}

    def test_bad_questions(self, run, stub, tmp_path):
        path = tmp_path / "q.json"
        squad_file(path, "Anna sang.", "Paul ran.", "Mary sat.", "Emma ate.")
        data = json.loads(path.read_text())
        questions = [paragraph["qas"][0] for paragraph in data["data"][0]["paragraphs"]]
        del questions[1]["question"]
        questions[2]["question"] = "Too long?"
        path.write_text(json.dumps(data))
        out = tmp_path / "p.json"
        arguments = ["predict", str(path), "-o", str(out)]
        at = f"{path}, data[0].paragraphs[{{}}].qas[0]: id 'id{{}}': "
        no_question, no_room = at.format(1, 1) + "question is missing", at.format(2, 2) + "leaves no room"
        assert run(*arguments) == (2, "", f"error: {no_question}\n")
        assert stub.loaded is None and not out.exists()
        status, printed, err = run(*arguments, "--skip-bad")
        assert (status, printed) == (0, "")
        assert err == f"left out: {no_question}\nleft out: {no_room}\nwrote 2 answers to {out}, 2 entries left out\n"
        assert json.loads(out.read_text()) == {"id0": "Anna", "id3": "Emma"}

        questions[1]["question"] = "Who?"
        path.write_text(json.dumps(data))
        assert run(*arguments) == (2, "", f"error: {no_room}\n")
        status, printed, err = run("evaluate", str(path), "--skip-bad", "--json")
        assert json.loads(printed)["skipped"] == 1 and scores(printed) == {"exact_match": 75, "f1": 75, "total": 4}
        assert "1 question (id2) without a prediction, scored 0" in err
        for question in questions:
            question["question"] = "Too long?"
        path.write_text(json.dumps(data))
        status, _, err = run(*arguments, "--skip-bad")
        first = f"{at.format(0, 0)}leaves no room"
        assert status == 2 and err.endswith(f"error: none of the 4 questions can be asked; the first is {first}\n")

    def test_a_question_that_a_model_cannot_take(self, run, checkpoint, tmp_path):
        path = tmp_path / "q.jsonl.gz"
        rows = [{"id": i, "question": "Who? " * (1 + 20 * (i == 1)), "context": "Anna sang."} for i in range(3)]
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        arguments = ["predict", str(path), "-o", str(tmp_path / "p.json"), "--model", checkpoint]
        status, _, err = run(*arguments)
        assert status == 2 and err.startswith(f"error: {path}, line 2: id '1': the question 'Who? Who?")
        status, _, err = run(*arguments, "--skip-bad")
        assert status == 0 and err.count("\n") == 2 and "1 entry left out" in err
        assert set(json.loads((tmp_path / "p.json").read_text())) == {"0", "2"}
        status, _, err = run(*arguments, "--skip-bad", "--max-length", "999")
        assert status == 2 and "max_length is 999" in err  # no fault of a question's

    def test_the_form_may_be_said(self, run, stub, tmp_path):
        row = {"id": "1", "question": "Who?", "context": "Anna sang.", "qas": []}
        (tmp_path / "q.json").write_text(json.dumps([row]))
        arguments = ["predict", str(tmp_path / "q.json"), "-o", str(tmp_path / "p.json")]
        assert "its form is not certain; say it with --format" in run(*arguments)[2]
        assert run(*arguments, "--format", "rows")[0] == 0
        assert run(*arguments, "--format", "mrqa")[2] == f"error: {tmp_path / 'q.json'}: holds no questions\n"

    def test_an_option_that_would_do_nothing(self, run):
        status, _, err = run("predict", "q.json", "-o", "p.json", "--n-best-size", "3")
        assert status == 2 and "--n-best-size needs --n-best" in err

    def test_two_outputs_in_one_place(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.")
        out = str(tmp_path / "p.json")
        status, _, err = run("predict", file, "-o", out, "--null-scores", out)
        assert status == 2 and "is written by this command already" in err and stub.loaded is None

    def test_no_output(self, run):
        assert "Missing option '-o'" in run("predict", "q.json")[2]


class TestEvaluate:
    def test_json_and_nothing_else(self, run, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", "Paul ran.", "Mary sat.")
        (tmp_path / "p.json").write_text(json.dumps({"id0": "the Anna!", "id1": "Paul ran", "other": "x"}))
        status, out, err = run("evaluate", file, "--predictions", str(tmp_path / "p.json"), "--json")
        assert status == 0
        assert scores(out) == pytest.approx({"exact_match": 100 / 3, "f1": 500 / 9, "total": 3})
        assert json.loads(out)["interval_over"] == "questions"
        low, high = json.loads(out)["f1_interval"]
        assert low < 500 / 9 < high
        assert err == (
            "1 question (id2) without a prediction, scored 0\n"
            "1 question (other) predicted but not in the file, left out\n"
        )

    def test_for_a_reader(self, run, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", "Paul ran.")
        (tmp_path / "p.json").write_text(json.dumps({"id0": "Anna", "id1": "Paul"}))
        status, out, err = run("evaluate", file, "--predictions", str(tmp_path / "p.json"))
        assert (status, err) == (0, "")
        assert out == (
            "exact match  100.00   95% interval over questions 100.00 to 100.00\n"
            "F1           100.00   95% interval over questions 100.00 to 100.00\n"
            "questions    2\n"
        )

    def test_predicts_first(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", "Paul ran.")
        status, out, _ = run("evaluate", file, "--json", "--stride", "9")
        assert status == 0
        assert scores(out) == {"exact_match": 100.0, "f1": 100.0, "total": 2}
        assert stub.asked == {"batch_tokens": 4096, "settings": AnswerSettings(stride=9)}

    def test_wrong_offsets_are_reported(self, run, stub, tmp_path):
        answers = [{"text": "sang", "answer_start": 4}, {"text": "absent", "answer_start": 0}]
        file = squad_file(tmp_path / "q.json", "Anna sang.", answers=answers)
        status, out, err = run("evaluate", file, "--json")
        assert status == 0 and json.loads(out)["total"] == 1
        assert f"{file}: 2 answers, 2 with a wrong offset: 1 realigned, 1 of no use" in err

    def test_unanswerable_questions_are_mentioned(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.", answers=[], is_impossible=True)
        status, out, err = run("evaluate", file, "--json")
        assert scores(out) == {"exact_match": 0.0, "f1": 0.0, "total": 1}
        assert "1 of 1 questions have no answer; all get one" in err

    def test_real_questions(self, run, data_dir, tmp_path):
        file = data_dir / "xquad-en.json"
        examples = read_squad(file)
        predictions = {example.id: " ".join(example.context.split()[:3]) for example in examples}
        predictions |= {example.id: example.answers[0].text for example in examples[::3]}
        (tmp_path / "p.json").write_text(json.dumps(predictions))
        status, out, _ = run("evaluate", str(file), "--predictions", str(tmp_path / "p.json"), "--json")
        assert status == 0
        assert scores(out) == evaluate(examples, predictions)

    @pytest.mark.parametrize("option", ["--model", "--stride", "--max-answer-tokens", "--batch-tokens", "--device"])
    def test_options_that_would_do_nothing(self, run, tmp_path, option):
        status, _, err = run("evaluate", "q.json", "--predictions", "p.json", option, "1")
        assert status == 2
        assert f"{option} says how to predict, but --predictions has it done" in err

    def test_predictions_that_are_none(self, run, stub, tmp_path):
        file = squad_file(tmp_path / "q.json", "Anna sang.")
        (tmp_path / "p.json").write_text("[]")
        status, out, err = run("evaluate", file, "--predictions", str(tmp_path / "p.json"), "--json")
        assert (status, out) == (2, "")
        assert "holds a list; it must be an object" in err


class TestConvert:
    def test_to_safetensors_in_another_precision(self, run, checkpoint, tmp_path):
        status, out, err = run("convert", checkpoint, str(tmp_path / "half"), "--dtype", "float16")
        assert (status, out) == (0, "")
        assert err == f"wrote {tmp_path / 'half'}\n"
        whole, half = (LongformerForQuestionAnswering.from_pretrained(f) for f in (checkpoint, str(tmp_path / "half")))
        for name, weight in whole.state_dict().items():
            assert half.state_dict()[name].equal(weight.half().float())
        assert run("answer", "Who?", "--text", "They do.", "--model", str(tmp_path / "half"))[0] == 0

    def test_to_long(self, run, monkeypatch):
        seen: list[dict] = []

        def to_long(source, folder, **how):
            seen.append({"source": source, "folder": folder, **how})
            return SimpleNamespace(folder=folder, dropped=["pooler.dense.weight", "pooler.dense.bias"])

        monkeypatch.setattr("longformer.convert.to_long", to_long)
        status, _, err = run("convert", "short", "long", "--to-long")
        assert (status, err) == (0, "wrote long\nleft out: pooler.dense.weight, pooler.dense.bias\n")
        run("convert", "s", "l", "--to-long", "--max-tokens", "99", "--attention-window", "4,8", "--keep", "qa_outputs")
        plain = {"source": "short", "folder": "long", "max_tokens": 4096, "attention_window": 512, "keep": ()}
        plain["positions"] = "copied"
        assert seen[0] == {**plain, "revision": None}
        assert seen[1]["max_tokens"] == 99
        assert seen[1]["attention_window"] == [4, 8]
        assert seen[1]["keep"] == ("qa_outputs",)

    @pytest.mark.parametrize(
        "options, message",
        [
            (["--max-tokens", "9"], "--max-tokens needs --to-long"),
            (["--attention-window", "9"], "--attention-window needs --to-long"),
            (["--keep", "pooler"], "--keep needs --to-long"),
            (["--to-long", "--dtype", "float16"], "--dtype does not go with --to-long"),
            (["--to-long", "--attention-window", "4;8"], "'4;8' is neither a number nor numbers with commas between"),
            ([], "error: no folder at './nowhere'"),
        ],
    )
    def test_bad_input(self, run, options, message):
        status, _, err = run("convert", "./nowhere", "dst", *options)
        assert status == 2
        assert message in err


class TestMain:
    def test_help_and_version(self, run):
        status, out, _ = run("--help")
        assert status == 0
        assert all(name in out for name in ("answer", "predict", "evaluate", "convert"))
        assert run("--version") == (0, f"longformer, version {longformer.__version__}\n", "")

    def test_no_such_command(self, run):
        status, _, err = run("nonsense")
        assert status == 2 and "No such command 'nonsense'" in err

    @pytest.mark.parametrize("error", [LongformerError, CheckpointError])
    def test_bad_input_is_one_line(self, run, stub, monkeypatch, error):
        monkeypatch.setattr(stub, "answer", lambda *_, **__: (_ for _ in ()).throw(error("message")))
        assert run("answer", "Who?", "--text", "a") == (2, "", "error: message\n")

    def test_interrupted(self, run, stub, monkeypatch):
        monkeypatch.setattr(stub, "answer", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        status, out, err = run("answer", "Who?", "--text", "a")
        assert (status, out, err.strip()) == (130, "", "")

    def test_a_defect_shows_where_it_is(self, stub, monkeypatch):
        monkeypatch.setattr(stub, "answer", lambda *_, **__: {}["defect"])
        with pytest.raises(KeyError, match="defect"):
            command.main(["answer", "Who?", "--text", "a"])

    def test_implementations_are_those_of_the_kernels(self):
        assert options.IMPLEMENTATIONS == IMPLEMENTATIONS

    def test_a_reader_that_leaves(self, tmp_path):
        reader, writer = os.pipe()
        os.close(reader)
        done = child("from longformer.cli import main; main(['--help'])", tmp_path, stdout=writer)
        os.close(writer)
        assert done.stderr == b""

    def test_help_imports_nothing_slow(self, tmp_path):
        done = child(
            "import sys; from longformer.cli import cli; cli.main(['--help'], standalone_mode=False); "
            "print({'torch', 'numpy', 'huggingface_hub', 'tokenizers'} & set(sys.modules), file=sys.stderr)",
            tmp_path,
        )
        assert done.stderr.strip() == b"set()"


def child(script: str, folder: Path, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run ``script`` in a process of its own, in an empty ``folder``, with this very package."""
    environment = {**os.environ, "PYTHONPATH": str(Path(longformer.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", script],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
        check=False,
    )


class TestShippedCheckpoint:
    def test_the_demo(self, run, pretrained_dir):
        document = pretrained_dir.parent / "data" / "constitution.txt"
        status, out, _ = run("answer", "How old must a person be to become President?", str(document))
        assert status == 0
        assert "thirty five Years" in out.splitlines()[0]

    def test_its_config(self, pretrained_dir):
        assert LongformerConfig.from_file(pretrained_dir / "config.json").max_tokens == 4096
