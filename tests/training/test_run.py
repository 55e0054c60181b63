"""Whole runs on a small model: they learn, keep the best, and refuse what cannot be before anything is computed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint
from training_runs import QUESTIONS, qa_options, run, squad_file

import longformer.cli
from longformer import (
    CheckpointError,
    DataError,
    LongformerError,
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerModel,
    LongformerTokenizer,
    QuestionAnswerer,
)
from longformer.answering.scores import evaluate
from longformer.answering.squad import read_squad
from longformer.training import MLMOptions, QAOptions
from longformer.training.log import read_log

STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
LEARNING = {"epochs": 150, "batch_size": 6, "learning_rate": 1e-2, "evaluate_every": 50, **STILL}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "tiny")


def answers(folder: Path, file: str, **settings: Any) -> dict[str, str]:
    answerer = QuestionAnswerer.from_pretrained(folder)
    return {e.id: answerer.answer(e.question, e.context, **settings)[0].text for e in read_squad(file)}


@pytest.mark.slow
def test_it_learns_what_it_is_shown(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained further on what it knows by heart, it cannot become better, and a line says why."""
    file = squad_file(tmp_path / "squad.json")
    run(qa_options(source, tmp_path / "out", file, **LEARNING, evaluate_on=(file,)))
    assert evaluate(read_squad(file), answers(tmp_path / "out", file))["exact_match"] == 100
    assert "training did not help" not in capsys.readouterr().err
    run(qa_options(tmp_path / "out", tmp_path / "on", file, evaluate_on=(file,), **{**LEARNING, "epochs": 1}))
    assert "f1 was 100 before it" in (told := capsys.readouterr().err)
    assert "nothing is better than 100: measure on harder examples" in told and "another learning rate" not in told


@pytest.mark.slow
def test_it_learns_that_there_is_no_answer(source: Path, tmp_path: Path) -> None:
    """SQuAD v2: where there is none, "" is the answer that scores, in training and afterwards."""
    file = squad_file(tmp_path / "squad.json", [*QUESTIONS[:3], ("Who sang?", "Ann met Bob.", None)])
    run(qa_options(source, tmp_path / "out", file, **LEARNING, evaluate_on=(file,)))
    best = max((line for line in read_log(tmp_path / "out") if "f1" in line), key=lambda line: line["f1"])
    found = answers(tmp_path / "out", file, null_threshold=0.0)
    assert found["q3"] == ""
    assert evaluate(read_squad(file), found)["f1"] == pytest.approx(best["f1"]) == 100
    assert answers(tmp_path / "out", file)["q3"] != ""


@pytest.mark.slow
def test_ten_real_questions_to_the_last(tmp_path: Path, data_dir: Path, pretrained_dir: Path) -> None:
    """Of short paragraphs, with answers that begin and end where words do; by the shipped encoder and a new head."""
    encoder = tmp_path / "encoder"
    LongformerModel.from_pretrained(pretrained_dir, add_pooling_layer=False).save_pretrained(encoder)
    LongformerTokenizer.from_pretrained(pretrained_dir).save_pretrained(encoder)
    document = json.loads((data_dir / "squad-v1.1-train-part.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
    data = []
    for paragraph in sorted(paragraphs, key=lambda paragraph: len(paragraph["context"])):
        answer = paragraph["qas"][0]["answers"][0]["text"]
        if re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", paragraph["context"]) and len(data) < 10:
            data.append({"title": str(len(data)), "paragraphs": [{**paragraph, "qas": paragraph["qas"][:1]}]})
    file = tmp_path / "ten.json"
    file.write_text(json.dumps({"data": data}), encoding="utf-8")
    options = QAOptions(
        source=str(encoder), output=str(tmp_path / "out"), files=(str(file),), epochs=20, batch_size=10,
        learning_rate=5e-4, warmup=0.2, hidden_dropout=0.0, attention_dropout=0.0, max_length=128,
    )  # fmt: skip
    run(options)
    after = evaluate(read_squad(file), answers(tmp_path / "out", str(file)))
    assert (after["exact_match"], after["f1"]) == (100, 100)


def test_bfloat16(source: Path, tmp_path: Path) -> None:
    """Weights stay float32, products are coarser: another loss than in float32, but not far from it."""
    file = squad_file(tmp_path / "squad.json")
    found = {}
    for precision in ("float32", "bfloat16"):
        run(qa_options(source, tmp_path / precision, file, precision=precision, max_steps=1, **STILL))
        (found[precision],) = [line["loss"] for line in read_log(tmp_path / precision)]
        weights = LongformerForQuestionAnswering.from_pretrained(tmp_path / precision).state_dict()
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.05)


@pytest.mark.slow
def test_the_best_is_kept(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a rate that destroys what was learnt; what lies in the folder scores as the best line of the log says.

    The model that training began with is measured too. It was better, and a line says so.
    """
    file = squad_file(tmp_path / "squad.json")
    run(qa_options(source, tmp_path / "a", file, **{**LEARNING, "evaluate_every": None}))
    options = qa_options(
        tmp_path / "a",
        tmp_path / "b",
        file,
        evaluate_on=(file,),
        learning_rate=0.5,
        warmup=0.0,
        evaluate_every=1,
        epochs=8,
    )
    run(options)
    before, *scores = [line["f1"] for line in read_log(tmp_path / "b") if "f1" in line]
    assert before == pytest.approx(evaluate(read_squad(file), answers(tmp_path / "a", file))["f1"])
    assert scores[-1] < max(scores) < before
    told = capsys.readouterr().err
    assert f"before training: exact {before:.4g}" in told or f"f1 {before:.4g}" in told
    assert re.search(
        r"^step \d+ of \d+: loss [\d.]+, [\d,]+ tokens/s$", told, flags=re.MULTILINE
    )  # no terminal, no bar
    assert f"training did not help: f1 was {before:.4g} before it and {max(scores):.4g} at best" in told
    assert evaluate(read_squad(file), answers(tmp_path / "b", file))["f1"] == pytest.approx(max(scores))


def test_patience(source: Path, tmp_path: Path) -> None:
    file = squad_file(tmp_path / "squad.json")
    options = qa_options(
        source, tmp_path / "out", file, evaluate_on=(file,), learning_rate=1e-9, evaluate_every=1, patience=2
    )
    run(options)
    assert [line["step"] for line in read_log(tmp_path / "out") if "f1" in line] == [0, 1, 2, 3]


@pytest.mark.parametrize("freeze", ["none", "positions", "embeddings"])
def test_what_is_frozen_stays_as_it_is(source: Path, tmp_path: Path, freeze: str) -> None:
    file = squad_file(tmp_path / "squad.json")
    run(qa_options(source, tmp_path / "out", file, freeze=freeze, max_steps=2))
    before, after = (
        LongformerForQuestionAnswering.from_pretrained(folder).longformer.embeddings
        for folder in (source, tmp_path / "out")
    )
    same = {name: torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items()}
    assert same["position_embeddings.weight"] == (freeze != "none")
    assert same["word_embeddings.weight"] == (freeze == "embeddings")


def test_gradient_checkpointing_and_accumulation_change_nothing(source: Path, tmp_path: Path) -> None:
    """Not even dropout's draws, for the former; but for rounding, without dropout, for the latter."""
    file = squad_file(tmp_path / "squad.json")
    still = {**STILL, "adam_epsilon": 1e-3, "batch_size": 6}
    weights = {}
    for name, changes in {
        "plain": {},
        "again": {"gradient_checkpointing": True},
        "whole": still,
        "parts": {**still, "batch_tokens": 30},
    }.items():
        run(qa_options(source, tmp_path / name, file, max_steps=3, **changes))
        model = LongformerForQuestionAnswering.from_pretrained(tmp_path / name)
        weights[name] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.equal(weights["plain"], weights["again"])
    torch.testing.assert_close(weights["parts"], weights["whole"], rtol=1e-4, atol=1e-5)


def test_masked_language_modelling(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(40 * "Ann met Bob. Dan fell down. ", encoding="utf-8")
    text = (str(tmp_path / "text.txt"),)
    options = MLMOptions(
        source=str(source), output=str(tmp_path / "out"), files=text, evaluate_on=text, epochs=12, batch_size=4,
        max_length=64, learning_rate=1e-2, store="float16", plot=True,
    )  # fmt: skip
    run(options)
    bits = [line["bits_per_token"] for line in read_log(tmp_path / "out") if "bits_per_token" in line]
    assert min(bits) < 0.6 * bits[0]
    LongformerForMaskedLM.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_steps_in_which_nothing_is_masked(source: Path, tmp_path: Path) -> None:
    """They train nothing, and spoil nothing."""
    (tmp_path / "text.txt").write_text(9 * "Ann met Bob. Dan fell down. ", encoding="utf-8")
    options = MLMOptions(
        source=str(source), output=str(tmp_path / "out"), files=(str(tmp_path / "text.txt"),), max_length=64,
        max_steps=2, log_every=1, mask_probability=1e-9, weight_decay=0.0,
    )  # fmt: skip
    run(options)
    assert [(line["loss"], line["grad_norm"]) for line in read_log(tmp_path / "out")] == [(0, 0)]
    before, after = (LongformerModel.from_pretrained(x, add_pooling_layer=False) for x in (source, tmp_path / "out"))
    assert all(torch.equal(x, y) for x, y in zip(before.parameters(), after.parameters(), strict=True))


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        longformer.cli.main(arguments)
    return int(stopped.value.code or 0)


def test_the_command_and_its_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = squad_file(tmp_path / "squad.json")
    arguments = ["train", "qa", str(source), str(tmp_path / "out"), file, "--hold-out", "last", "--max-length", "48"]
    assert command(*arguments, "--epochs", "2", "--plot", "--log-every", "1") == 0
    err = capsys.readouterr().err
    assert "5 questions to train on, 5 windows; 1 to measure on" in err
    assert "best f1" in err
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.toml", "log.jsonl", "curves.png"} <= names
    for line in read_log(out):
        if "loss" in line:
            assert line.keys() == {
                "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"
            }  # fmt: skip
    assert command("train", "qa", "--config", str(out / "training.toml"), "--resume") == 0
    assert command(*arguments) == 2
    assert "already holds another run (training.toml); continue it with --resume" in capsys.readouterr().err


def test_offsets_that_are_wrong_are_counted(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One text stands elsewhere, and once: it is realigned. One stands nowhere: it is dropped. Both are said."""
    path = Path(squad_file(tmp_path / "squad.json", [*QUESTIONS, ("Who?", "Nobody is here.", "Zoe")]))
    document = json.loads(path.read_text())
    document["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 3
    path.write_text(json.dumps(document))
    run(qa_options(source, tmp_path / "out", str(path), max_steps=1))
    err = capsys.readouterr().err
    assert "7 answers, 2 with a wrong offset: 1 realigned, 1 of no use for training (data[1]" in err
    assert "7 questions to train on, 6 windows, 1 questions left out" in err


def test_what_cannot_be_is_refused_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = squad_file(tmp_path / "squad.json")

    def refuse(error: type[Exception], message: str, **changes: Any) -> None:
        values: dict[str, Any] = {"source": source, "output": tmp_path / "out", "file": file, **changes}
        with pytest.raises(error, match=message):
            run(qa_options(**values))

    refuse(DataError, "no file at", file=str(tmp_path / "absent.json"))
    refuse(DataError, "no file has an article of that title", hold_out=("other",))
    refuse(DataError, "leaves nothing to train on", hold_out=("many", "last"))
    refuse(CheckpointError, "no folder at", source=tmp_path / "nothing")
    refuse(LongformerError, "max_length is 65; the model has positions for 64", max_length=65)
    refuse(LongformerError, "start them with torchrun", parallel="fsdp")
    refuse(LongformerError, "device 'nowhere' cannot be used|device 'nowhere'", device="nowhere")
    refuse(LongformerError, "is the checkpoint to start from", output=source)
    refuse(LongformerError, "is a file; give a folder", output=Path(file))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse(LongformerError, r"plot needs matplotlib, .* `pip install matplotlib`", plot=True)
    monkeypatch.undo()
    (tmp_path / "bad.json").write_text('{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "q"}]}]}]}')
    refuse(
        DataError,
        r"bad.json, data\[0\].paragraphs\[0\].qas\[0\]: id 'q': question is missing",
        file=str(tmp_path / "bad.json"),
    )
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_measured_on_is_refused_first(source: Path, tmp_path: Path) -> None:
    """Not after an epoch: a question too long to be asked, and an id that stands for two questions of two files."""
    file = squad_file(tmp_path / "squad.json")
    long = squad_file(tmp_path / "long.json", [*QUESTIONS, (60 * "Who ", "Ann met Bob.", "Ann")])
    with pytest.raises(DataError, match=r"long.json, data\[1\].paragraphs\[0\].qas\[0\]: id 'q6': the question 'Who"):
        run(qa_options(source, tmp_path / "out", file, evaluate_on=(file, long), max_length=48))
    other = squad_file(tmp_path / "other.json", QUESTIONS[1:])
    with pytest.raises(
        DataError, match=r"other.json, data\[0\].*: id 'q0': this is also the id .* at .*squad.json, data"
    ):
        run(qa_options(source, tmp_path / "out", file, evaluate_on=(file, other)))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_checkpoint_in_it(source: Path, tmp_path: Path) -> None:
    other = save_tiny_checkpoint(tmp_path / "other")
    with pytest.raises(LongformerError, match="already holds a checkpoint"):
        run(qa_options(source, other, squad_file(tmp_path / "squad.json")))
    before = (other / "model.safetensors").read_bytes()
    with pytest.raises(LongformerError, match=r"holds model.safetensors but no training.toml, so the run cannot"):
        run(qa_options(source, other, squad_file(tmp_path / "squad.json")), resume=True)
    assert (other / "model.safetensors").read_bytes() == before
    assert not (other / "training.toml").exists()


def test_a_tokenizer_that_is_not_the_model_s(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "sep_token_id": 5}))
    LongformerTokenizer.from_pretrained(source)
    with pytest.raises(CheckpointError, match="sep_token_id is 5 for the model and 2 for the tokenizer"):
        run(qa_options(source, tmp_path / "out", squad_file(tmp_path / "squad.json")))


def test_a_classifier_is_an_encoder_too(source: Path, tmp_path: Path) -> None:
    """Its number of labels is that of a head which is not loaded. A head for answers with another number is refused."""
    weights = {name: tensor.clone() for name, tensor in load_file(source / "model.safetensors").items()}
    config = json.loads((source / "config.json").read_text())
    file = squad_file(tmp_path / "squad.json")
    three = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    (source / "config.json").write_text(json.dumps({**config, **three}))
    with pytest.raises(
        LongformerError, match=r"tiny: num_labels is 3; question answering has 2, .* If qa_outputs has two"
    ):
        run(qa_options(source, tmp_path / "out", file))
    rows = {name: torch.zeros(3, *tensor.shape[1:]) for name, tensor in weights.items() if "qa_outputs" in name}
    (source / "config.json").write_text(json.dumps(config))
    save_file({**weights, **rows}, source / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"qa_outputs.weight is \[3, 16\], not \[2, 16\].*new_head=True or ignore",
    ):
        run(qa_options(source, tmp_path / "out", file))
    (source / "config.json").write_text(json.dumps({**config, **three}))
    encoder = {name: tensor for name, tensor in weights.items() if "qa_outputs" not in name}
    save_file({**encoder, "classifier.weight": torch.zeros(3, 16)}, source / "model.safetensors")
    run(qa_options(source, tmp_path / "out", file, max_steps=1))
    assert LongformerForQuestionAnswering.from_pretrained(tmp_path / "out").config.num_labels == 2
