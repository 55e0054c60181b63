"""TextClassifier and ``longformer classify``: what a model says about texts, and how it is printed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoint import byte_level_tokenizer, save_tiny_checkpoint, tiny_model

from longformer import (
    CheckpointError,
    Classification,
    DataError,
    LongformerError,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
    LongformerTokenizer,
    TextClassifier,
)
from longformer import cli as command

TEXTS = ["Ann met Bob.", "Snow", "A red hat. " * 20, "It rains</s> in Rome."]
REGRESSION, SINGLE, SEVERAL = "regression", "single_label_classification", "multi_label_classification"


def save_classifier(folder: Path, cls: type = LongformerForSequenceClassification, **changes: Any) -> Path:
    tokenizer = byte_level_tokenizer(folder)
    config = tiny_model(tokenizer).config.replace(**{"id2label": {0: "no", 1: "yes", 2: "perhaps"}, **changes})
    torch.manual_seed(3)
    cls(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [None, SINGLE, SEVERAL, REGRESSION])
def test_it_says_what_the_model_computes(tmp_path: Path, kind: str | None) -> None:
    folder = save_classifier(tmp_path / "m", problem_type=kind)
    model = LongformerForSequenceClassification.from_pretrained(folder)
    tokenizer = LongformerTokenizer.from_pretrained(folder)
    finished: list[int] = []
    found = TextClassifier(model.train(), tokenizer).classify(TEXTS, batch_tokens=70, progress=finished.append)
    assert model.training and sum(finished) == 4 and len(finished) > 1
    assert [one.is_cut for one in found] == [False, False, True, False]
    for text, one in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, split_special_tokens=True, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            logits = model.eval()(**ids).logits[0].double()
        of_kind = {SEVERAL: logits.sigmoid(), REGRESSION: logits}
        wanted = dict(zip(("no", "yes", "perhaps"), of_kind.get(str(kind), logits.softmax(0)).tolist(), strict=True))
        assert one.scores == pytest.approx(wanted, rel=1e-4)
        best_first = sorted(wanted, key=lambda name: -wanted[name])
        many = tuple(name for name in best_first if wanted[name] > 0.5)
        assert one.labels == {SEVERAL: many, REGRESSION: ()}.get(str(kind), (best_first[0],))


def test_the_end_is_cut_off(tmp_path: Path) -> None:
    classifier = TextClassifier.from_pretrained(save_classifier(tmp_path / "m"))
    (short,) = classifier.classify(["Ann met"])
    (cut,) = classifier.classify(["Ann met Bob."], max_length=9)
    assert cut == Classification(short.labels, cut.scores, is_cut=True)
    assert cut.scores == pytest.approx(short.scores)
    assert classifier.classify([]) == []


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        ("Ann", {}, "texts is one str; give a list of texts"),
        (["a", None], {}, r"texts\[1\] is of type NoneType, not str"),
        (["a", ""], {}, r"texts\[1\] has no tokens"),
        (["a\ud800"], {}, r"texts\[0\] has U\+D800 at character 1"),
        (["a"], {"max_length": 65}, "max_length is 65; the model has positions for 64"),
        (["a"], {"max_length": 2}, "max_length is 2; a text and its two special tokens need at least 3"),
        (["a"], {"batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_bad_input(tmp_path: Path, texts: Any, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        TextClassifier.from_pretrained(save_classifier(tmp_path / "m")).classify(texts, **arguments)


def test_a_model_that_is_damaged(tmp_path: Path) -> None:
    classifier = TextClassifier.from_pretrained(save_classifier(tmp_path / "m"))
    with torch.no_grad():
        classifier.model.classifier.out_proj.bias.fill_(torch.nan)
    with pytest.raises(LongformerError, match="scores are not finite"):
        classifier.classify(["a"])


def test_checkpoints_of_another_kind(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "qa")
    with pytest.raises(CheckpointError, match="qa is a LongformerForQuestionAnswering, not a LongformerForSequence"):
        TextClassifier.from_pretrained(folder)
    folder = save_classifier(tmp_path / "tokens", LongformerForTokenClassification)
    with pytest.raises(CheckpointError, match="tokens is a LongformerForTokenClassification, not a"):
        TextClassifier.from_pretrained(folder)
    LongformerModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="encoder is an encoder without a head, not a"):
        TextClassifier.from_pretrained(tmp_path / "encoder")


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    model = LongformerForSequenceClassification.from_pretrained(save_classifier(tmp_path / "m", sep_token_id=5))
    with pytest.raises(LongformerError, match="sep_token_id is 5 for the model and 2 for the tokenizer"):
        TextClassifier(model, LongformerTokenizer.from_pretrained(tmp_path / "m"))


class TestCommand:
    @pytest.fixture
    def run(self, capsys: pytest.CaptureFixture[str]) -> Any:
        def run(*arguments: str) -> tuple[Any, str, str]:
            with pytest.raises(SystemExit) as stopped:
                command.main(("classify", *arguments))
            return stopped.value.code, *capsys.readouterr()

        return run

    def test_many_texts(self, run: Any, tmp_path: Path) -> None:
        folder = str(save_classifier(tmp_path / "m"))
        (tmp_path / "t.csv").write_text("id,text\n1,Ann met Bob.\n2,Snow\n" + 7 * "3,A hat\n" + f"4,{TEXTS[2]}\n")
        found = TextClassifier.from_pretrained(folder).classify(["Ann met Bob.", "Snow"])
        status, out, err = run(folder, str(tmp_path / "t.csv"))
        assert status == 0 and "cut off at 64 tokens: 1 of 10 texts" in err
        lines = out.splitlines()
        said = [f"{one.labels[0]} {one.scores[one.labels[0]]:.1%}" for one in found]
        assert lines[:2] == [f" 2  {said[0]}", f" 3  {said[1]}"]
        assert lines[9].startswith("11  ")
        status, out, _ = run(folder, str(tmp_path / "t.csv"), "--json", "--batch-tokens", "10")
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["line"] for row in rows] == list(range(2, 12))
        assert rows[0]["labels"] == list(found[0].labels) and rows[0]["scores"] == pytest.approx(found[0].scores)

    def test_one_text(self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = str(save_classifier(tmp_path / "m"))
        (one,) = TextClassifier.from_pretrained(folder).classify(["Snow\n"])
        (tmp_path / "t.txt").write_text("Snow\n")
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"Snow\n")))
        for file in (str(tmp_path / "t.txt"), "-"):
            assert run(folder, file) == (0, f"{one.labels[0]} {one.scores[one.labels[0]]:.1%}\n", "")
        _, out, _ = run(folder, str(tmp_path / "t.txt"), "--json", "--dtype", "float64")
        assert json.loads(out).keys() == {"labels", "scores"}

    def test_numbers_and_several_labels(self, run: Any, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("Snow\n")
        for kind in (REGRESSION, SEVERAL):
            folder = str(save_classifier(tmp_path / kind, problem_type=kind, id2label={0: "value"}))
            (one,) = TextClassifier.from_pretrained(folder).classify(["Snow\n"])
            number = one.scores["value"]
            wanted = (
                f"value {number:.6g}" if kind == REGRESSION else f"value {number:.1%}" if one.labels else "no label"
            )
            assert run(folder, str(tmp_path / "t.txt")) == (0, f"{wanted}\n", "")

    def test_bad_input(self, run: Any, tmp_path: Path) -> None:
        folder = str(save_classifier(tmp_path / "m"))
        (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"tex": "b"}\n')
        assert run(folder, str(tmp_path / "t.jsonl")) == (
            2, "", f"error: {tmp_path}/t.jsonl, line 2: 'text' is missing\n",
        )  # fmt: skip
        (tmp_path / "t.txt").write_text("")
        assert run(folder, str(tmp_path / "t.txt"))[2].startswith("error: the text has no tokens")
        status, _, err = run(folder, str(tmp_path / "none.txt"))
        assert (status, err) == (2, f"error: no file at '{tmp_path}/none.txt'\n")
        status, _, err = run(str(save_tiny_checkpoint(tmp_path / "qa")), str(tmp_path / "t.txt"))
        assert status == 2 and "is a LongformerForQuestionAnswering, not a" in err


def test_texts_without_tokens_are_named(tmp_path: Path) -> None:
    classifier = TextClassifier.from_pretrained(save_classifier(tmp_path / "m"))
    with pytest.raises(DataError, match=r"^a\.csv, line 7 has no tokens"):
        classifier.classify([""], names=["a.csv, line 7"])
