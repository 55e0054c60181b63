"""Classification: whole runs on a small model, and on real questions; what is refused before anything is computed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import byte_level_tokenizer, save_tiny_checkpoint
from training_runs import TEXTS, assert_same_bits, classification_options, labelled_file, last_state, run, start

from longformer import (
    DataError,
    LongformerError,
    LongformerForSequenceClassification,
    TextClassifier,
)
from longformer.cli import main
from longformer.training.classification import ClassificationTask, read_data
from longformer.training.log import read_log
from longformer.training.loop import Trainer

LEARNING = {
    "epochs": 40, "batch_size": 6, "learning_rate": 1e-2, "evaluate_every": 10, "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}  # fmt: skip
SEVERAL = [(text, [label] if i % 3 else [label, "short"]) for i, (text, label) in enumerate(TEXTS)]
NUMBERS = [(text, len(text) / 10) for text, _ in TEXTS]
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "squad_data.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("rows", "kind", "names", "scores"),
    [
        (TEXTS, "single_label_classification", ("people", "things", "weather"), {"accuracy", "macro_f1"}),
        (SEVERAL, "multi_label_classification", ("people", "short", "things", "weather"),
         {"accuracy", "macro_f1", "micro_f1"}),
        (NUMBERS, "regression", ("value",), {"mean_squared_error", "pearson", "spearman"}),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_it_learns_what_it_is_shown(
    source: Path, tmp_path: Path, rows: list[tuple[str, Any]], kind: str, names: tuple[str, ...], scores: set[str]
) -> None:
    file = labelled_file(tmp_path / "t.jsonl", rows)
    run(classification_options(source, tmp_path / "out", file, **LEARNING, evaluate_on=(file,)))
    lines = [line for line in read_log(tmp_path / "out") if "loss" not in line]
    assert all(line.keys() == {"step"} | scores for line in lines)
    classifier = TextClassifier.from_pretrained(tmp_path / "out")
    assert (classifier.model.config.problem_type, classifier.model.config.label_names) == (kind, names)
    found = classifier.classify([text for text, _ in rows])
    if kind == "regression":
        errors = [(one.scores["value"] - number) ** 2 for one, (_, number) in zip(found, rows, strict=True)]
        best = min(line["mean_squared_error"] for line in lines)
        assert sum(errors) / len(errors) == pytest.approx(best, rel=1e-3)
        assert best < 0.02 < lines[0]["mean_squared_error"]
    else:
        wanted = [{label} if isinstance(label, str) else set(label) for _, label in rows]
        assert [set(one.labels) for one in found] == wanted
        assert max(line["macro_f1"] for line in lines) == 100


@pytest.mark.slow
def test_killed_and_resumed_to_the_same_bits(source: Path, tmp_path: Path) -> None:
    """Weights, moments, random states and the best weights; dropout is on."""
    setting = {"hold_out": 0.34, "checkpoint_every": 1, "evaluate_every": 3, "epochs": 15}
    file = labelled_file(tmp_path / "t.jsonl")
    whole, killed = (classification_options(source, tmp_path / name, file, **setting) for name in ("whole", "killed"))
    process = start(whole, resume=False)
    process.join()
    assert process.exitcode == 0
    process = start(killed, resume=False)
    while process.exitcode is None and not list((tmp_path / "killed").glob("checkpoints/step-*")):
        process.join(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process = start(killed, resume=True)
    process.join()
    assert process.exitcode == 0
    assert_same_bits(last_state(tmp_path / "killed"), last_state(tmp_path / "whole"))
    results = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert results[0] == results[1]


def test_resuming_with_other_labels(source: Path, tmp_path: Path) -> None:
    options = classification_options(source, tmp_path / "out", labelled_file(tmp_path / "t.jsonl"), max_steps=2)
    run(options)
    rows = [(text, "weather" if i == 0 else label) for i, (text, label) in enumerate(TEXTS)]
    labelled_file(tmp_path / "t.jsonl", rows)
    with pytest.raises(LongformerError, match="the files hold other data now"):
        run(options, resume=True)
    labelled_file(tmp_path / "t.jsonl", [(text, {"people": "men"}.get(label, label)) for text, label in TEXTS])
    with pytest.raises(LongformerError, match="has other weights or another config now"):
        run(options, resume=True)


def test_a_share_is_held_out(source: Path, tmp_path: Path) -> None:
    """Every text is trained on or measured on, which of the two depends on the seed."""
    file = labelled_file(tmp_path / "t.jsonl")
    held_out = set()
    for seed in range(4):
        data = read_data(classification_options(source, tmp_path / "out", file, hold_out=0.34, seed=seed), None)
        assert len(data.held_out) == 2
        assert (
            sorted([*data.train, *data.held_out], key=lambda row: row.text.line)
            == read_data(classification_options(source, tmp_path / "out", file), None).train
        )
        assert data.labels.names == ("people", "things", "weather")
        held_out.add(tuple(row.text.line for row in data.held_out))
    assert len(held_out) > 1


def test_a_loss_depends_on_its_own_rows_alone(source: Path, tmp_path: Path) -> None:
    """So that parts of a step add up, for each kind of label."""
    tokenizer = byte_level_tokenizer(tmp_path / "tokenizer")
    for rows in (TEXTS, SEVERAL, NUMBERS):
        options = classification_options(source, tmp_path / "out", labelled_file(tmp_path / "t.jsonl", rows))
        data = read_data(options, None)
        task = ClassificationTask(data, tokenizer, options)
        model = LongformerForSequenceClassification.from_pretrained(
            source, id2label=dict(enumerate(data.labels.names)), problem_type=data.labels.problem_type, new_head=True
        )
        parts = [task.collate(part, 0) for part in ([0, 1, 2, 3, 4, 5], [1, 4], [0, 2, 3, 5])]
        whole, *rest = [task.loss(model, inputs).item() * count for inputs, count in parts]
        assert sum(rest) == pytest.approx(whole, rel=1e-5)


def test_a_head_keeps_its_labels(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = labelled_file(tmp_path / "t.jsonl")
    run(classification_options(source, tmp_path / "one", file, max_steps=1))
    assert "tiny has no head classifier: a new one is drawn at random" in capsys.readouterr().err
    fewer = labelled_file(tmp_path / "fewer.jsonl", TEXTS[:4])
    run(classification_options(tmp_path / "one", tmp_path / "two", fewer, max_steps=1))
    assert "drawn at random" not in capsys.readouterr().err
    model = LongformerForSequenceClassification.from_pretrained(tmp_path / "two")
    assert model.config.label_names == ("people", "things", "weather")
    other = labelled_file(tmp_path / "other.jsonl", [*TEXTS, ("Rain", "rain")])
    with pytest.raises(DataError, match=r"other\.jsonl, line 7: the label 'rain' is unknown; there are 'people', 'thi"):
        run(classification_options(tmp_path / "one", tmp_path / "three", other))
    run(classification_options(tmp_path / "one", tmp_path / "three", other, max_steps=1, new_head=True))
    assert "the head of" in capsys.readouterr().err
    model = LongformerForSequenceClassification.from_pretrained(tmp_path / "three")
    assert model.config.label_names == ("people", "rain", "things", "weather")


def test_transformers_reads_what_was_trained(source: Path, tmp_path: Path) -> None:
    import transformers

    run(classification_options(source, tmp_path / "out", labelled_file(tmp_path / "t.jsonl", SEVERAL), max_steps=1))
    theirs, info = transformers.LongformerForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.config.id2label == {0: "people", 1: "short", 2: "things", 3: "weather"}
    assert theirs.config.problem_type == "multi_label_classification"
    ours = TextClassifier.from_pretrained(tmp_path / "out")
    ids = ours.tokenizer("Ann met Bob.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = theirs.eval()(ids, global_attention_mask=(ids == 0).long()).logits[0].sigmoid()
    (found,) = ours.classify(["Ann met Bob."])
    assert list(found.scores.values()) == pytest.approx(wanted.tolist(), rel=1e-4)


def test_what_cannot_be_is_refused_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, status 2, and nothing is computed or written."""
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("it was computed"))
    good = labelled_file(tmp_path / "good.jsonl")
    one = labelled_file(tmp_path / "one.jsonl", [("a", "x"), ("b", "x")])
    unknown = labelled_file(tmp_path / "unknown.jsonl", [("a", "people"), ("b", "x")])
    empty = labelled_file(tmp_path / "empty.jsonl", [("a", "x"), (" ", "y")])
    for arguments, message in [
        ((str(tmp_path / "none.csv"),), f"error: no file at '{tmp_path}/none.csv'"),
        ((one,), f"error: {one}: all 2 texts have the same label (x); give texts of others too"),
        ((empty,), f"error: {empty}, line 2: 'text' is empty"),
        ((good, "--evaluate-on", unknown), f"error: {unknown}, line 2: the label 'x' is unknown; there are 'people', "),
        ((good, "--evaluate-on", good, "--hold-out", "0.5"), "error: hold_out and evaluate_on both say what"),
        ((good, "--hold-out", "0.01"), "error: hold_out is 0.01; of 6 texts that leaves nothing to measure on"),
        ((good, "--hold-out", "0.99"), "error: hold_out is 0.99; of 6 texts that leaves nothing to train on"),
        ((good, "--problem-type", "regression"), f"error: {good}, line 1: the label is 'people'; for regression"),
        ((good, "--max-length", "65"), "error: max_length is 65; the model has positions for 64 tokens"),
        ((good, "--batch-tokens", "8"), "error: batch_tokens is 8, and the longest row has 19 tokens, which cannot"),
    ]:  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main(("train", "classification", str(source), str(tmp_path / "out"), "--max-length", "48", *arguments))
        assert stopped.value.code == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith(message), said
        assert all("drawn at random" in line for line in said[:-1])
    assert not (tmp_path / "out").exists()


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in TEXTS))
    arguments = ["train", "classification", str(source), str(tmp_path / "out"), str(tmp_path / "t.csv")]
    arguments += ["--evaluate-on", str(tmp_path / "t.csv"), "--max-length", "10", "--epochs", "1", "--plot"]
    again = ["train", "classification", "--config", str(tmp_path / "out" / "training.toml"), "--resume"]
    for words in (arguments, again):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert not stopped.value.code
    err = capsys.readouterr().err
    assert "6 texts to train on, 6 to measure on; single_label_classification, 3 labels: people, things, weather" in err
    assert "cut off at 10 tokens: 12 texts" in err
    assert "best macro_f1" in err
    assert {"curves.png", "log.jsonl", "training.toml"} <= {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(SystemExit) as stopped:
        main(["classify", str(tmp_path / "out"), str(tmp_path / "t.csv"), "--json"])
    assert not stopped.value.code
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["line"] for row in rows] == [2, 3, 4, 5, 6, 7]


@pytest.mark.slow
def test_real_questions_by_article(tmp_path: Path, data_dir: Path, pretrained_dir: Path) -> None:
    """A new head on the shipped checkpoint's encoder. Held out are the questions about every third paragraph."""
    made = (str(tmp_path / "train.csv"), str(tmp_path / "held.csv"))
    words = [str(data_dir / "squad-v1.1-dev-part.json"), *made, "--title", "Force", "--title", "Pharmacy"]
    subprocess.run([sys.executable, str(SCRIPT), "labels", *words], check=True, capture_output=True)
    options = classification_options(
        pretrained_dir, tmp_path / "out", made[0], evaluate_on=(made[1],), epochs=1, batch_size=16, learning_rate=2e-4,
        max_length=64,
    )  # fmt: skip
    run(options)
    before, scores = [line for line in read_log(tmp_path / "out") if "accuracy" in line]
    assert before["step"] == 0 and before["accuracy"] < scores["accuracy"]
    assert scores["accuracy"] > 85  # the larger of the two articles has 62 % of the questions
