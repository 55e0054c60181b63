"""Answers from a model exported to ONNX: those of the checkpoint that it was made from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint, wordpiece_tokenizer

from longformer import CheckpointError, LongformerError, QuestionAnswerer
from longformer.cli import main
from longformer.explain import explain

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime onnxscript")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime onnxscript")
pytestmark = [pytest.mark.xdist_group("answers of exported models"), pytest.mark.slow]

ONE_LAYER = {"num_hidden_layers": 1, "attention_window": 8, "attention_dilation": 1}
PAIRS = [
    ("Who?", "Ada wrote it in London. " * 9),
    ("Where was it, then?", "In a town."),
    ("How?", "By hand, at night. " * 3),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Of one layer: torch's exporter takes eight seconds for each.
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), **ONE_LAYER)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command writes."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.raises(SystemExit) as end:
        main(["export", str(checkpoint), str(folder / "model.onnx")])
    assert end.value.code == 0
    return folder


def test_the_same_answers(checkpoint: Path, exported: Path) -> None:
    """Documents of one window and of several, and several in a batch."""
    ours, theirs = QuestionAnswerer.from_pretrained(checkpoint), QuestionAnswerer.from_onnx(exported, threads=1)
    for expected, actual in zip(ours.answer_batch(PAIRS, top_k=3), theirs.answer_batch(PAIRS, top_k=3), strict=True):
        assert [(a.text, a.start, a.end) for a in actual] == [(a.text, a.start, a.end) for a in expected]
        for a, b in zip(actual, expected, strict=True):
            assert abs(a.probability - b.probability) < 1e-5


def test_global_tokens_of_ones_own(checkpoint: Path, exported: Path) -> None:
    def first(ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(ids.shape[1]).expand_as(ids) == 0

    ours = QuestionAnswerer.from_pretrained(checkpoint, global_mask=first)
    theirs = QuestionAnswerer.from_onnx(exported / "model.onnx", global_mask=first)
    (expected,), (actual,) = (answerer.answer(*PAIRS[0]) for answerer in (ours, theirs))
    assert (actual.start, actual.end) == (expected.start, expected.end)
    assert abs(actual.probability - expected.probability) < 1e-5


def test_the_same_errors(exported: Path) -> None:
    answerer = QuestionAnswerer.from_onnx(exported)
    with pytest.raises(LongformerError, match="question"):
        answerer.answer("  ", "A text.")
    with pytest.raises(LongformerError, match="max_length"):
        answerer.answer("Who?", "A text.", max_length=65)


def test_the_command(checkpoint: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for model in (checkpoint, exported, exported / "model.onnx"):
        with pytest.raises(SystemExit) as end:
            main(["answer", PAIRS[0][0], "--text", PAIRS[0][1], "--json", "--model", str(model)])
        assert end.value.code == 0
        found.append([(a["text"], a["start"]) for a in json.loads(capsys.readouterr().out)])
    assert found[0] == found[1] == found[2]
    with pytest.raises(SystemExit):
        main(["answer", "Who?", "--text", "Ada.", "--model", str(exported), "--dtype", "bfloat16"])
    assert "--dtype does not go with an exported --model" in capsys.readouterr().err


def test_a_file_of_questions(
    checkpoint: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``predict`` writes the same answers, and ``evaluate`` gives the same scores."""
    asked = [
        {
            "context": context,
            "qas": [{"id": str(n), "question": question, "answers": [{"text": context[:3], "answer_start": 0}]}],
        }
        for n, (question, context) in enumerate(PAIRS)
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": asked}]}))
    answers, scores = [], []
    for name, model in (("ours", checkpoint), ("theirs", exported)):
        for command in (["predict", "squad.json", "-o", f"{name}.json"], ["evaluate", "squad.json", "--json"]):
            files = [str(tmp_path / each) if each.endswith(".json") else each for each in command]
            with pytest.raises(SystemExit) as end:
                main([*files, "--model", str(model)])
            assert end.value.code == 0
        answers.append(json.loads((tmp_path / f"{name}.json").read_text()))
        scores.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] and len(answers[0]) == len(PAIRS)
    assert scores[0] == scores[1]


def test_an_exported_model_cannot_be_explained(exported: Path) -> None:
    with pytest.raises(LongformerError, match="an exported model has no attention to show; explain the model"):
        explain(QuestionAnswerer.from_onnx(exported), *PAIRS[0])


def test_folders_that_do_not_answer(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no \.onnx file; write one with longformer export"):
        QuestionAnswerer.from_onnx(checkpoint)
    (tmp_path / "model.onnx").write_bytes((exported / "model.onnx").read_bytes())
    with pytest.raises(CheckpointError, match="tokenizer"):
        QuestionAnswerer.from_onnx(tmp_path)
    wordpiece_tokenizer(tmp_path)
    proto = onnx.load(exported / "model.onnx")
    (kind,) = (about for about in proto.metadata_props if about.key == "longformer.class")
    kind.value = "LongformerForTokenClassification"
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="is a LongformerForTokenClassification, which answers no questions"):
        QuestionAnswerer.from_onnx(tmp_path)


# ---- the checkpoint that the package ships

PEAK = """
import resource, sys, torch
from longformer.exporting import OnnxModel
model = OnnxModel(sys.argv[1], threads=1)
ids = torch.full((1, int(sys.argv[2])), 2000)
ids[0, 0], ids[0, [12, 13, -1]] = 101, 102
def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
before = status("VmRSS")
model(ids)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from longformer.hub import PRETRAINED

    folder = tmp_path_factory.mktemp("shipped")
    with pytest.raises(SystemExit) as end:
        main(["export", str(PRETRAINED), str(folder / "model.onnx"), "--dtype", "float16", "--no-check"])
    assert end.value.code == 0
    return folder


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_grows_with_the_length_and_not_with_its_square(shipped: Path) -> None:
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", PEAK, str(shipped / "model.onnx"), str(length)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for length in (2048, 4096)
    ]
    assert peaks[1] <= 2.3 * peaks[0]


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_all_758_answers_of_xquad_are_the_same(shipped: Path, data_dir: Path) -> None:
    from longformer.answering.squad import read_squad

    pairs = [(example.question, example.context) for example in read_squad(data_dir / "xquad-en.json")]
    assert len(pairs) == 758
    ours, theirs = QuestionAnswerer.from_pretrained(), QuestionAnswerer.from_onnx(shipped)
    expected, actual = ours.answer_batch(pairs), theirs.answer_batch(pairs)
    assert [(a.text, a.start) for (a,) in actual] == [(a.text, a.start) for (a,) in expected]
