"""``evaluate`` and ``tune-threshold`` on questions without an answer: figures, what is missing, what does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from longformer import cli as command

CONTEXT = "Dan fell in Paris. Ann did not."
ANSWERS = {"a": "Dan", "b": "Paris", "c": "", "d": "", "e": "Ann"}
PREDICTIONS = {"a": "Dan", "b": "in Paris", "c": "Ann", "d": "Dan", "e": "Dan"}
NULL_SCORES = {"a": -3.0, "b": -1.0, "c": 0.5, "d": 2.0, "e": 1.0}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Questions, of which two have no answer, predictions, and null scores."""
    questions = [
        {"id": key, "question": f"Who is {key}?", "answers": [{"text": text}] if text else []}
        for key, text in ANSWERS.items()
    ]
    data = {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}
    contents: dict[str, Any] = {"q": data, "p": PREDICTIONS, "n": NULL_SCORES}
    contents["few"] = {"a": "Dan", "c": ""}
    paths = {}
    for name, content in contents.items():
        paths[name] = str(tmp_path / f"{name}.json")
        Path(paths[name]).write_text(json.dumps(content))
    return paths


class TestEvaluate:
    def test_all_figures_of_the_script(self, run, files) -> None:
        status, out, err = run("evaluate", files["q"], "--predictions", files["p"], "--na-probs", files["n"], "--json")
        found = json.loads(out)
        assert status == 0 and "1 question answered by none, since --na-probs, which are no probabilities" in err
        # "d" scores above 1; of the others "a" is right, "b" half right.
        expected = {"exact": 40, "f1": 100 * (1 + 2 / 3 + 1) / 5, "total": 5, "exact_match": 40}
        expected |= {"HasAns_exact": 100 / 3, "HasAns_f1": 500 / 9, "HasAns_total": 3}
        expected |= {"NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2}
        expected |= {"best_exact": 60, "best_exact_thresh": -3.0, "best_f1": 100 * (3 + 2 / 3) / 5}
        expected |= {"best_f1_thresh": -1.0}
        expected |= {"pr_exact_ap": 100 / 3, "pr_oracle_ap": 100 * (2 / 3 + 3 / 4 / 3)}
        assert {key: found[key] for key in expected} == pytest.approx(expected)

    def test_for_a_reader(self, run, files) -> None:
        out = run("evaluate", files["q"], "--predictions", files["p"], "--na-probs", files["n"])[1]
        assert out.splitlines()[2:] == [
            "questions    5",
            "with an answer     exact match 33.33, F1 55.56, questions 3",
            "without an answer  exact match 50.00, F1 50.00, questions 2",
            "best exact match    60.00   with no answer above -3.0",
            "best F1             73.33   with no answer above -1.0",
            "average precision  exact match 33.33, F1 51.85, oracle 91.67",
        ]

    def test_a_file_of_v1_has_none_of_it(self, run, files, tmp_path) -> None:
        row = {"id": "a", "question": "Who?", "context": CONTEXT, "answers": ["Dan"]}
        (tmp_path / "v1.json").write_text(json.dumps([row]))
        out = run("evaluate", str(tmp_path / "v1.json"), "--predictions", files["few"], "--json")[1]
        assert not any(key.startswith(("HasAns", "NoAns", "best")) or key == "exact" for key in json.loads(out))

    @pytest.mark.parametrize(
        ("missing", "told", "exact", "total"), [("zero", "scored 0", 40.0, 5), ("skip", "left out", 100.0, 2)]
    )
    def test_missing_predictions(self, run, files, missing, told, exact, total) -> None:
        arguments = ("evaluate", files["q"], "--predictions", files["few"], "--missing", missing, "--json")
        status, out, err = run(*arguments)
        found = json.loads(out)
        assert status == 0 and err == f"3 questions (b, d, e) without a prediction, {told}\n"
        assert (found["exact"], found["exact_match"], found["total"]) == (exact, exact, total)
        assert found["HasAns_total"] + found["NoAns_total"] == total
        if missing == "skip":
            Path(files["few"]).write_text("{}")
            assert "there is no prediction for any question" in run(*arguments)[2]

    @pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
    def test_a_picture(self, run, files, tmp_path, suffix) -> None:
        picture = tmp_path / f"curves{suffix}"
        arguments = ("--predictions", files["p"], "--na-probs", files["n"], "--plot", str(picture))
        assert run("evaluate", files["q"], *arguments)[0] == 0
        start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
        assert picture.read_bytes().startswith(start)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--plot", "c.png"], "--plot needs --na-probs, which says what speaks for no answer"),
            (["--na-prob-thresh", "0"], "--na-prob-thresh needs --na-probs"),
            (["--na-probs", "n", "--plot", "c.txt"], "'c.txt' must end in .png, .pdf or .svg"),
            (["--na-probs", "n", "--plot", "nowhere/c.png"], "there is no folder 'nowhere' to write c.png into"),
            (["--na-probs", "few"], "few.json: the value for id 'a' is \"Dan\"; it must be a finite number"),
            (["--against", "p", "--missing", "skip"], "--missing does not go with --against; leave one out"),
            (["--against", "p", "--na-probs", "n"], "--na-probs does not go with --against; leave one out"),
        ],
    )
    def test_what_does_not_fit(self, run, files, options, message) -> None:
        options = [files.get(option, option) for option in options]
        status, out, err = run("evaluate", files["q"], "--predictions", files["p"], *options)
        assert (status, out) == (2, "") and message in err

    @pytest.mark.parametrize("output", ["-", "/dev/stdout"])
    def test_a_picture_on_standard_output_stands_alone(self, run, files, output, monkeypatch, tmp_path) -> None:
        monkeypatch.setattr("longformer.plotting.figures.write_file", lambda path, write: write(tmp_path / "picture"))
        arguments = ("--predictions", files["p"], "--na-probs", files["n"], "--plot", output)
        status, out, err = run("evaluate", files["q"], *arguments)
        assert (status, out) == (0, "") and "average precision" in err
        assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")

    def test_a_picture_is_not_drawn_over_what_the_command_reads(self, run, files, tmp_path) -> None:
        save_tiny_checkpoint(tmp_path / "tiny")
        link = tmp_path / "curves.png"
        for read in ("tiny/model.safetensors", "tiny/config.json", "q.json", "n.json"):
            before = (tmp_path / read).read_bytes()
            link.symlink_to(read)
            arguments = ("--na-probs", files["n"], "--plot", str(link), "--model", str(tmp_path / "tiny"))
            status, out, err = run("evaluate", files["q"], *arguments)
            assert (status, out) == (2, "") and "is read by this command, and would be overwritten" in err
            assert (tmp_path / read).read_bytes() == before
            link.unlink()

    def test_what_is_wrong_is_met_before_a_model_is_loaded(self, run, files, tmp_path) -> None:
        few = tmp_path / "few-scores.json"
        few.write_text('{"a": 1}')
        for options, said in (
            (["--na-probs", "absent.json"], "no file at 'absent.json'"),
            (["--na-probs", files["few"]], "the value for id 'a' is \"Dan\""),
            (["--na-probs", str(few)], "holds no value for id 'b' and 3 more"),
            (["--na-probs", files["n"], "--na-prob-thresh", "nan"], "'nan' is no number; give one such as 0.5"),
            (["--na-probs", "-"], "standard input can be read only once, but it is named 2 times (-, -)"),
        ):
            file = "-" if options[-1] == "-" else files["q"]
            status, out, err = run("evaluate", file, "--model", str(tmp_path / "no model"), *options)
            assert (status, out) == (2, "") and said in err, err

    def test_a_picture_without_matplotlib(self, run, files, monkeypatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        arguments = ("--predictions", files["p"], "--na-probs", files["n"], "--plot", "c.png")
        assert "--plot needs matplotlib: pip install" in run("evaluate", files["q"], *arguments)[2]


class TestTuneThreshold:
    def test_of_one_run(self, run, files) -> None:
        arguments = ("tune-threshold", files["q"], "--predictions", files["p"], "--null-scores", files["n"])
        status, out, err = run(*arguments)
        assert (status, err) == (0, "")
        assert out == (
            "best F1            73.33   --null-threshold -1.0\n"
            "best exact match   60.00   --null-threshold -3.0\n"
            "questions         5\n"
        )
        assert json.loads(run(*arguments, "--json")[1]) == {
            "best_exact": 60.0,
            "best_exact_thresh": -3.0,
            "best_f1": pytest.approx(100 * (3 + 2 / 3) / 5),
            "best_f1_thresh": -1.0,
            "total": 5,
        }

    def test_the_threshold_keeps_its_word(self, run, files, tmp_path) -> None:
        """A model's own run, and one with the threshold that was found."""
        checkpoint = str(save_tiny_checkpoint(tmp_path / "tiny"))
        status, out, _ = run("tune-threshold", files["q"], "--model", checkpoint, "--json")
        found = json.loads(out)
        assert status == 0 and found["total"] == 5
        for name in ("exact", "f1"):
            threshold = repr(found[f"best_{name}_thresh"])
            _, out, _ = run("evaluate", files["q"], "--model", checkpoint, "--null-threshold", threshold, "--json")
            assert json.loads(out)[name] == pytest.approx(found[f"best_{name}"])

    def test_what_has_no_prediction_is_left_out(self, run, files) -> None:
        arguments = ("tune-threshold", files["q"], "--predictions", files["few"], "--null-scores", files["n"], "--json")
        status, out, err = run(*arguments)
        assert status == 0 and err == "3 questions (b, d, e) without a prediction, left out\n"
        assert json.loads(out)["total"] == 2 and json.loads(out)["best_exact"] == 100

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--predictions", "p"], "--predictions and --null-scores are of one run of `predict`; give both"),
            (["--null-scores", "n"], "--predictions and --null-scores are of one run of `predict`; give both"),
            (
                ["--predictions", "p", "--null-scores", "n", "--stride", "9"],
                "--stride says how to predict, but --predictions has it done; leave one out",
            ),
            (["--predictions", "-", "--null-scores", "/dev/stdin"], "it is named 2 times (-, /dev/stdin); give files"),
            (["--null-threshold", "1"], "No such option '--null-threshold'"),
            (["--predictions", "p", "--null-scores", "few"], "it must be a finite number"),
        ],
    )
    def test_what_does_not_fit(self, run, files, options, message) -> None:
        status, out, err = run("tune-threshold", files["q"], *(files.get(option, option) for option in options))
        assert (status, out) == (2, "") and message in err


class TestOddValues:
    def test_no_prediction_at_all(self, run, files, tmp_path) -> None:
        (tmp_path / "none.json").write_text("{}")
        status, _, err = run(
            "evaluate", files["q"], "--predictions", str(tmp_path / "none.json"), "--na-probs", files["n"]
        )
        assert status == 2 and "none of the questions has a prediction" in err

    @pytest.mark.parametrize("value", ["1" + 400 * "0", "1e300", "-1e300", "-1.79e308", "NaN", "true"])
    def test_values_that_cannot_be_summed(self, run, files, tmp_path, value: str) -> None:
        (tmp_path / "n.json").write_text(json.dumps(NULL_SCORES).replace("0.5", value))
        for command_name, option in (("evaluate", "--na-probs"), ("tune-threshold", "--null-scores")):
            status, _, err = run(
                command_name, files["q"], "--predictions", files["p"], option, str(tmp_path / "n.json")
            )
            assert status == 2 and err.count("\n") == 1
            assert re.search(r"the value for id 'c' is .*; it must be a finite number from -1e\+100 to 1e\+100", err)

    def test_values_as_large_as_they_may_be(self, run, files, tmp_path) -> None:
        """A threshold below the least value is a finite number too."""
        scores = dict.fromkeys(NULL_SCORES, -1e100)
        (tmp_path / "n.json").write_text(json.dumps(scores))
        arguments = ("--predictions", files["p"], "--null-scores", str(tmp_path / "n.json"), "--json")
        found = json.loads(run("tune-threshold", files["q"], *arguments)[1])
        assert -1.1e100 < found["best_exact_thresh"] <= -1e100

    def test_the_help_offers_what_there_is(self, run) -> None:
        assert "--null-threshold X" in run("evaluate", "--help")[1]
        assert "--null-threshold X" not in run("tune-threshold", "--help")[1]
