"""The experiments' scripts, with stand-ins for the commands that take hours: what was killed half-way is made again."""

from __future__ import annotations

import bz2
import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from longformer import LongformerConfig, LongformerForQuestionAnswering

SCRIPTS = Path(__file__).parents[2] / "scripts"
# Logs its arguments; writes what it is asked to, and is "killed" in the midst of that where the file `kill` names it.
# Folders are then there by half; files are not, since all that makes them makes them whole.
STAND_IN = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
killed() { [ "$(cat kill 2>/dev/null)" = "$1" ]; }
case $1 in
  convert) mkdir -p "$4"; touch "$4/config.json"; ! killed convert || exit 137
    touch "$4/model.safetensors" ;;
  predict) ! killed predict || exit 137
    echo '{}' > "$4" ;;
  */questions.py) [ "$2" != tune ] || mkdir -p "$4"
    ! killed "$2" || exit 137
    case $2 in keep) touch "$3" ;; *) touch "$4" ;; esac ;;
  */squad_data.py) ! killed spans || exit 137
    while [ $# -gt 0 ]; do [ "$1" != -o ] || touch "$2"; shift; done ;;
esac
"""


class Work:
    """A folder from which a script is run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").symlink_to(SCRIPTS)
        (folder / "stand-in").write_text(STAND_IN)
        (folder / "stand-in").chmod(0o755)

    def run(self, script: str, *arguments: str, kill: str = "", **settings: str) -> tuple[int, list[str]]:
        """Exit status, and the commands that were given."""
        (self.folder / "kill").write_text(kill)
        log = self.folder / "log"
        log.write_text("")
        own = {"LONGFORMER": "./stand-in", "PYTHON": "./stand-in", "LOG": str(log), "DATA": "data", "ENCODER": "short"}
        done = subprocess.run(
            ["bash", f"scripts/{script}", *arguments],
            cwd=self.folder, env={**os.environ, **own, **settings}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.said = done.stderr
        return done.returncode, log.read_text().splitlines()


def imported(script: str) -> ModuleType:
    """A script as a module."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(script)
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def of(command: str, given: list[str]) -> list[str]:
    return [line for line in given if line.startswith(command)]


@pytest.mark.parametrize(("moment", "command"), [("convert", "convert"), ("spans", "scripts/squad_data.py spans")])
def test_what_is_half_made_is_made_again(work: Work, moment: str, command: str) -> None:
    status, given = work.run("checkpoint.sh", "w", "plain", kill=moment)
    assert status == 137
    assert not of("train", given)
    status, given = work.run("checkpoint.sh", "w", "plain")
    assert status == 0
    assert len(of(command, given)) == len(of("train qa w/encoder w/plain", given)) == 1
    assert (work.folder / "w" / "encoder" / "model.safetensors").exists()
    assert not list((work.folder / "w").glob("*.part"))
    status, given = work.run("checkpoint.sh", "w", "plain")
    assert status == 0
    assert [line.split()[0] for line in given] == ["train"]


@pytest.mark.parametrize("moment", ["passages", "tune", "write", "predict", "keep"])
def test_questions_that_are_written_are_not_written_again(work: Work, moment: str) -> None:
    settings = {"WRITER": "lm.gguf", "WIKIPEDIA": "wiki.bz2"}
    (work.folder / "w" / "mixed").mkdir(parents=True)
    (work.folder / "w" / "mixed" / "model.safetensors").touch()
    steps = ["passages", "tune", "write", "predict", "keep"]
    done, given = work.run("checkpoint.sh", "w", "written", kill=moment, **settings)
    assert (done, of("train", given)) == (137, [])
    done, given = work.run("checkpoint.sh", "w", "written", **settings)
    assert done == 0
    made = [line.removeprefix("scripts/questions.py ").split()[0] for line in given]
    wanted = ["predict", "keep"] if moment == "keep" else steps[steps.index(moment) :]
    assert [step for step in made if step in steps] == wanted
    first, second = of("train", given)
    assert first.startswith("train qa w/mixed w/written-first w/train.json ")
    assert second.startswith("train qa w/written-first w/written w/train.json ")
    assert not list((work.folder / "w").glob("*.part"))
    _, given = work.run("checkpoint.sh", "w", "written", **settings)
    assert [line.split()[0] for line in given] == ["train", "train"]


def test_a_candidate_over_long_contexts(work: Work) -> None:
    done, given = work.run("checkpoint.sh", "w", "long")
    assert (done, of("train", given), "make mixed first" in work.said) == (2, [], True)
    (work.folder / "w" / "mixed").mkdir()
    (work.folder / "w" / "mixed" / "model.safetensors").touch()
    done, given = work.run("checkpoint.sh", "w", "long")
    assert done == 0
    assert [line.split()[1] for line in given] == ["split", "lengthen", "qa"]
    assert "train qa w/mixed w/long w/train.json w/longer.json w/half.json" in given[-1]


def test_first_weights_are_trained_further_without_an_encoder(work: Work) -> None:
    done, given = work.run("checkpoint.sh", "w", "further")
    assert (done, of("train", given), "FIRST: the checkpoint" in work.said) == (1, [], True)
    (work.folder / "w").mkdir(exist_ok=True)
    for seed in range(2, 6):
        (work.folder / "w" / f"further-{seed}").mkdir()
    done, given = work.run("checkpoint.sh", "w", "further", FIRST="first", DEVICE="cuda")
    assert (done, of("convert", given), len(of("train", given))) == (0, [], 4)
    data = "w/dev-train.json data/squad-v1.1-train-part.json"
    for line, seed in zip(of("train", given), range(2, 6), strict=True):
        assert line.startswith(f"train qa first w/further-{seed} {data} w/longer-all.json w/half.json ")
        assert f" --seed {seed} --device cuda " in line
    assert given[-1] == "scripts/average.py w/further w/further-2 w/further-3 w/further-4 w/further-5"
    done, given = work.run("checkpoint.sh", "w", "further-plain", FIRST="first")
    assert done == 0
    assert [line.startswith(f"train qa first w/further-plain {data} --") for line in given] == [True]


def test_the_mean_of_weights(tmp_path: Path) -> None:
    average = imported("average").main
    config = LongformerConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=20, attention_window=4,
    )  # fmt: skip
    models = [LongformerForQuestionAnswering(config).half() for _ in range(3)]
    folders = [tmp_path / str(i) for i in range(3)]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    (folders[0] / "tokenizer.json").write_text("{}")
    (folders[0] / "checkpoints").mkdir()
    done = CliRunner().invoke(average, [str(x) for x in (tmp_path / "mean", *folders)])
    assert done.exit_code == 0, done.output
    assert {x.name for x in (tmp_path / "mean").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    mean = LongformerForQuestionAnswering.from_pretrained(tmp_path / "mean")
    for name, tensor in mean.state_dict().items():
        expected = torch.stack([model.state_dict()[name].double() for model in models]).mean(0)
        assert torch.equal(tensor, expected.to(torch.float16).to(tensor.dtype)), name
    before = (tmp_path / "mean" / "model.safetensors").stat()
    assert CliRunner().invoke(average, [str(x) for x in (tmp_path / "mean", *folders)]).exit_code == 0
    assert (tmp_path / "mean" / "model.safetensors").stat() == before
    (folders[1] / "training.toml").touch()
    done = CliRunner().invoke(average, [str(x) for x in folders[1:]])
    assert done.exit_code == 1 and f"{folders[1]} is a training run's folder" in done.output
    other = tmp_path / "other"
    LongformerForQuestionAnswering(config.replace(intermediate_size=16)).half().save_pretrained(other)
    done = CliRunner().invoke(average, [str(x) for x in (tmp_path / "mean", folders[0], other)])
    assert done.exit_code == 1
    assert f"{other} is of another architecture than {folders[0]}" in done.output
    models[0].state_dict()["qa_outputs.bias"].fill_(float("inf"))
    models[0].save_pretrained(folders[0])
    done = CliRunner().invoke(average, [str(x) for x in (tmp_path / "new", *folders)])
    assert done.exit_code == 1 and "is not finite" in done.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({}, "WRITER: the language model"), ({"WRITER": "lm.gguf", "WIKIPEDIA": "wiki.bz2"}, "make mixed first")],
)
def test_what_writing_needs_is_asked_for_before_it_begins(work: Work, settings: dict[str, str], said: str) -> None:
    work.run("checkpoint.sh", "w", "plain")
    done, given = work.run("checkpoint.sh", "w", "written", **settings)
    assert done != 0
    assert said in work.said
    assert given == []


def test_answers_that_are_there_are_not_made_again(work: Work) -> None:
    for folder in ("w", "m"):
        (work.folder / folder).mkdir()
    old = [work.folder / "w" / f"{name}.json" for name in ("dev-held", "dev-held-whole", "xquad-held", "covid-held")]
    old.append(work.folder / "m" / "model.safetensors")
    for path in old:
        path.write_text("")
        os.utime(path, (1, 1))
    assert work.run("measure.sh", "m", "w", kill="predict")[0] == 137
    status, given = work.run("measure.sh", "m", "w")
    assert (status, len(of("predict", given)), len(of("evaluate", given))) == (0, 5, 5)
    assert of("predict", given)[-1] == (
        "predict w/covid-held.json -o m/answers-covid-held-512.json --model m --max-length 512"
    )
    assert of("evaluate", given)[0] == "evaluate w/dev-held.json --predictions m/answers-dev-held.json"
    (work.folder / "m" / "answers-xquad-held.json").unlink()
    _, given = work.run("measure.sh", "m", "w")
    assert (len(of("predict w/xquad-held", given)), len(of("predict", given)), len(of("evaluate", given))) == (1, 1, 5)
    _, given = work.run("measure.sh", "m", "w", LIMIT="20")
    assert of("predict", given)[0] == "predict w/dev-held.json -o m/answers-dev-held-20.json --model m --limit 20"
    _, given = work.run("measure.sh", "m", "w", DTYPE="mixed")
    assert of("predict", given)[0] == "predict w/dev-held.json -o m/answers-dev-held-mixed.json --model m --dtype mixed"
    later = (work.folder / "m" / "answers-dev-held.json").stat().st_mtime + 5
    os.utime(work.folder / "m" / "model.safetensors", (later, later))
    assert len(of("predict", work.run("measure.sh", "m", "w")[1])) == 5


@pytest.fixture(scope="module")
def questions() -> ModuleType:
    return imported("questions")


def test_a_written_question_needs_its_answer_in_the_passage(questions: ModuleType) -> None:
    pairs = [("Rome", "Where?"), ("Rom", "Where?"), ("Paris", "Where?"), ("Rome", "Where?")]
    rows = questions._questions("They met in Rome.", pairs, "made")
    assert [(row["id"], row["answers"]) for row in rows] == [("made-0", [{"text": "Rome", "answer_start": 12}])]


@pytest.mark.parametrize(("read_out", "start"), [("in Rome", 20), ("ate", 0), ("the end", None), ("", None)])
def test_a_written_question_is_kept_where_a_reader_finds_its_sentence(
    questions: ModuleType, tmp_path: Path, read_out: str, start: int | None
) -> None:
    context = "Bob ate bread. Then Bob slept in Rome. And that was the end."
    question = {"id": "1", "question": "Who slept?", "answers": [{"text": "Bob", "answer_start": 0}]}
    article = {"title": "a", "paragraphs": [{"context": context, "qas": [question]}]}
    (tmp_path / "in.json").write_text(json.dumps({"data": [article]}))
    (tmp_path / "answers.json").write_text(json.dumps({"1": read_out}))
    arguments = [str(tmp_path / "out.json"), str(tmp_path / "in.json"), "--predictions", str(tmp_path / "answers.json")]
    assert CliRunner().invoke(questions.keep, arguments).exit_code == 0
    kept = json.loads((tmp_path / "out.json").read_text())["data"][0]["paragraphs"]
    assert [row["qas"][0]["answers"][0]["answer_start"] for row in kept] == ([] if start is None else [start])


def test_what_a_writer_learns_is_the_lines_alone(questions: ModuleType) -> None:
    """Its loss is the cross entropy of the lines' tokens, whatever is padding and whatever the passage's own."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=1.0,
    )
    model = transformers.LlamaForCausalLM(config)
    rows = [([3, 4, 5], [6, 7, 2]), ([8, 9, 10, 11, 12], [13, 2])]
    want = 0.0
    for context, lines in rows:
        logits = model(torch.tensor([context + lines])).logits[0].detach().double().log_softmax(-1)
        want -= sum(float(logits[len(context) - 1 + i, token]) for i, token in enumerate(lines))
    assert float(questions._loss(model, rows).detach()) == pytest.approx(want, rel=1e-2)  # one of them is in bfloat16


def test_batches_that_a_writer_learns_from_have_no_more_tokens_than_allowed(questions: ModuleType) -> None:
    rows = [([3] * length, [4, 2]) for length in range(5, 45)]
    steps = questions._steps(rows, random.Random(0), tokens=100)
    assert sorted(row for step in steps for batch in step for row in batch) == sorted(rows)
    batches = [[len(context + lines) for context, lines in batch] for step in steps for batch in step]
    assert max(max(batch) * len(batch) for batch in batches) <= 100
    assert max(map(len, batches)) > 3


def test_long_contexts_are_cut_at_sentences(questions: ModuleType) -> None:
    sentences = [" ".join([word] * 12) + "." for word in "abcde"]
    assert list(questions._pieces(" ".join(sentences), 30)) == [" ".join(sentences[i : i + 2]) for i in (0, 2)]
    assert list(questions._pieces("a " * 40 + "b.", 30)) == []


def test_predictions_that_do_not_cover_the_questions_are_refused(questions: ModuleType, tmp_path: Path) -> None:
    rows = [{"id": name, "question": "?", "answers": [{"text": "a", "answer_start": 0}]} for name in "12"]
    article = {"title": "a", "paragraphs": [{"context": "a b", "qas": rows}]}
    (tmp_path / "in.json").write_text(json.dumps({"data": [article]}))
    (tmp_path / "answers.json").write_text('{"1": "a"}')
    arguments = [str(tmp_path / "out.json"), str(tmp_path / "in.json"), "--predictions", str(tmp_path / "answers.json")]
    result = CliRunner().invoke(questions.keep, arguments)
    assert result.exit_code == 2
    assert "1 of 2 questions are not in --predictions, such as 2" in result.output
    assert not (tmp_path / "out.json").exists()


def test_passages_of_a_dump(questions: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell")
    prose = "The '''aardvark''' ({{IPA|x}}; ) is a [[mammal]]<ref name=\"a/b\"/> of Africa.<ref>No</ref> "
    text = f"{prose}{'It digs. ' * 40}\n=== Notes ===\n{'It eats. ' * 45}\n== References ==\n{'Not this. ' * 50}"
    text = text.replace("<", "&lt;")
    page = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"
    pages = [("Aardvark", 0, ""), ("Doctor Who", 0, ""), ("Help:A", 12, ""), ("B", 0, "<redirect/>")]
    xml = f'<mediawiki xmlns="urn:m">{"".join(page.format(*fields, text) for fields in pages)}</mediawiki>'
    (tmp_path / "dump.bz2").write_bytes(bz2.compress(xml.encode()))
    arguments = [str(tmp_path / "dump.bz2"), str(tmp_path / "out.json"), "--without", "Doctor_Who"]
    assert CliRunner().invoke(questions.passages, arguments, catch_exceptions=False).exit_code == 0
    (article,) = json.loads((tmp_path / "out.json").read_text())["data"]
    first, second = (row["context"] for row in article["paragraphs"])
    assert first.startswith("The aardvark is a mammal of Africa. It digs.")
    assert second == ("It eats. " * 45).strip()


def test_questions_over_whole_articles(tmp_path: Path) -> None:
    paragraphs = [
        {"context": context, "qas": [{"id": context, "question": "?", "answers": [{"text": "b", "answer_start": 2}]}]}
        for context in ("a b", "c bd", "e b")
    ]
    (tmp_path / "in.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    command = [sys.executable, str(SCRIPTS / "squad_data.py"), "whole", "in.json", "out.json", "--every", "2"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (article,) = json.loads((tmp_path / "out.json").read_text())["data"]
    (row,) = article["paragraphs"]
    assert row["context"] == "a b\nc bd\ne b"
    assert [(q["id"], q["answers"][0]["answer_start"]) for q in row["qas"]] == [("a b", 2), ("e b", 11)]
