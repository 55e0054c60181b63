"""``longformer evaluate-mlm``: the figure that a training shows, by itself, and with an interval."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint, tiny_model
from training_runs import command, in_processes, printed, run

from longformer import LongformerError, LongformerForMaskedLM, LongformerTokenizer
from longformer.answering.scores import bootstrap_interval, bootstrap_ratio_interval
from longformer.training import MLMOptions
from longformer.training.log import read_log
from longformer.training.measure import describe, measure_mlm, summary


@pytest.fixture
def text(tmp_path: Path) -> str:
    lines = [json.dumps({"text": f"Ann met {name}, who fell over a hat. " * 4}) for name in ("Bob", "Dan", "Eve")]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(tmp_path / "text.jsonl")


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = save_tiny_checkpoint(tmp_path / "tiny")
    torch.manual_seed(1)
    LongformerForMaskedLM(tiny_model(LongformerTokenizer.from_pretrained(folder)).config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_it_is_what_a_training_measures(model: str, text: str, tmp_path: Path) -> None:
    """Of the weights that this leaves, by the command; and over two processes."""
    options = MLMOptions(
        source=model, output=str(tmp_path / "out"), files=(text,), evaluate_on=(text,), max_length=48, max_steps=1,
        mask_probability=0.3, seed=3,
    )  # fmt: skip
    run(options)
    _, logged = [line["bits_per_token"] for line in read_log(tmp_path / "out") if "bits_per_token" in line]
    arguments = ("evaluate-mlm", str(tmp_path / "out"), text, "--max-length", "48", "--mask-probability", "0.3")
    arguments += ("--seed", "3", "--json")
    status, out = printed(*arguments)
    found = json.loads(out)
    assert status == 0
    assert found["bits_per_token"] == pytest.approx(logged, rel=1e-5)
    low, high = found["bits_per_token_interval"]
    assert low < found["bits_per_token"] < high
    assert found["max_length"] == 48
    first, second = in_processes(printed, [arguments, arguments])
    assert second == (0, "")
    assert json.loads(first[1])["bits_per_token"] == pytest.approx(found["bits_per_token"], rel=1e-5)
    assert json.loads(first[1])["bits_per_token_interval"] == pytest.approx([low, high], rel=1e-5)


def test_by_hand() -> None:
    """Two rows drawn of two are with a chance of a quarter each twice the first, and twice the second."""
    found = summary([(6.0, 2), (0.0, 0), (2.0, 2)])
    assert found == {"bits_per_token": 2.0, "bits_per_token_interval": (1.0, 3.0), "tokens": 4}
    shown = describe({**found, "rows": 3, "max_length": 64})
    assert shown == (
        "bits per token  2.0000   95% interval over rows 1.0000 to 3.0000\nmasked tokens   4, in 3 rows of 64"
    )
    assert "one row: no interval" in describe({**summary([(6.0, 2)]), "rows": 1, "max_length": 64})


def test_an_interval_of_ratios() -> None:
    """With equal counts it is that of a mean."""
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    assert bootstrap_ratio_interval(values, [1] * 5) == bootstrap_interval(values)
    for totals, counts in (([], []), ([1.0], [1, 2]), ([1.0], [0]), ([float("nan")], [1])):
        with pytest.raises(LongformerError, match="totals"):
            bootstrap_ratio_interval(totals, counts)


def test_rows_are_as_long_as_the_model_reads_unless_told(model: str, text: str) -> None:
    found = measure_mlm(model, [text])
    assert found is not None
    assert (found["max_length"], found["rows"]) == (64, 6)
    with pytest.raises(LongformerError, match="max_length is 65; the model has positions for 64"):
        measure_mlm(model, [text], max_length=65)


def test_what_cannot_be_measured(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("ab")
    assert command("evaluate-mlm", model, str(tmp_path / "short.txt"), "--mask-probability", "0.001") == 2
    assert "short.txt is drawn to be predicted" in capsys.readouterr().err
    assert command("evaluate-mlm", model, str(tmp_path / "absent.txt")) == 2
    assert re.search(r"no file at '.*absent\.txt'", capsys.readouterr().err)
    other = save_tiny_checkpoint(tmp_path / "answers")
    assert command("evaluate-mlm", str(other), str(tmp_path / "short.txt")) == 2
    assert "lm_head" in capsys.readouterr().err


def test_an_added_token_without_a_row(model: str, text: str) -> None:
    tokenizer = LongformerTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<ent>"])
    tokenizer.save_pretrained(model)
    with pytest.raises(LongformerError, match=r"the tokenizer has '<ent>' \(id 261\)"):
        measure_mlm(model, [text], max_length=48)
