"""Options: from flags or a file, checked once, written so that they are read again; and the optimiser they describe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny_checkpoint import byte_level_tokenizer, tiny_model

from longformer import LongformerError
from longformer.cli import cli
from longformer.training import ClassificationOptions, LMOptions, MLMOptions, QAOptions
from longformer.training.optimizer import make_optimizer, set_learning_rate

PLACES: dict[str, Any] = {"source": "s", "output": "o", "files": ("f",)}


def test_toml_there_and_back(tmp_path: Path) -> None:
    options = QAOptions(
        **{**PLACES, "files": ('a "b"\\c\n.json', "é.json")}, learning_rate=1e-5, plot=True, patience=2, hold_out=("T",)
    )
    (tmp_path / "o.toml").write_text(options.to_toml(), encoding="utf-8")
    assert QAOptions.read(tmp_path / "o.toml") == options
    assert QAOptions.read(tmp_path / "o.toml", epochs=7) != options
    assert QAOptions.read(tmp_path / "o.toml", epochs=7).epochs == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
        ({"epochs": True}, "epochs is True; it must be a whole number"),
        ({"warmup": 1.0}, "warmup is 1.0; it must be less than 1"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; it must be finite"),
        ({"layer_decay": 1.1}, "layer_decay is 1.1; it must be at most 1"),
        ({"precision": "int8"}, "precision is 'int8'; it must be one of float32, bfloat16"),
        ({"files": "x"}, "files is 'x'; it must be a list of strings"),
        ({"files": ()}, "files is missing"),
        ({"source": ""}, "source is missing"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be at most 9223372036854775807"),
        ({"patience": 1}, "patience stops by evaluations"),
        ({"evaluate_every": 5}, "evaluate_every is given, but there is nothing"),
        ({"hold_out": ["T"], "evaluate_on": ["f"]}, "hold_out and evaluate_on both"),
    ],
)
def test_values_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        QAOptions(**{**PLACES, **change})


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    with pytest.raises(LongformerError, match="no file at"):
        QAOptions.read(path)
    path.write_text("epochs = = 1")
    with pytest.raises(LongformerError, match="not valid TOML"):
        QAOptions.read(path)
    path.write_text("epoch = 1")
    with pytest.raises(LongformerError, match="there is no option 'epoch'; there are adam_beta1"):
        MLMOptions.read(path)


def test_differences_are_those_that_decide_the_weights() -> None:
    one = QAOptions(**PLACES)
    other = QAOptions(**{**PLACES, "output": "elsewhere", "epochs": 4}, plot=True, checkpoint_every=3)
    assert one.differences(other) == ["epochs (3, 4)"]


def test_every_field_is_an_option_of_the_command() -> None:
    kinds = {"qa": QAOptions, "classification": ClassificationOptions, "lm": LMOptions, "mlm": MLMOptions}
    for command, kind in kinds.items():
        text = CliRunner().invoke(cli, ["train", command, "--help"]).output
        names = {entry.name for entry in dataclasses.fields(kind)} - {"source", "output", "files"}
        for name in names:
            assert (f"--{name.replace('_', '-')}" in text) == (name not in kind.unused), name
        assert "[default: 0]" in text[text.index("--seed") :].split("--evaluate-every")[0]


def test_the_command_without_its_arguments() -> None:
    result = CliRunner().invoke(cli, ["train", "qa", "source"])
    assert result.exit_code == 2
    assert "give SRC, DST and at least one FILE" in result.output


# --- the optimiser --------------------------------------------------------------------------------------------------


def test_groups_of_parameters(tmp_path: Path) -> None:
    """Weight decay is for matrices; the learning rate falls by layers from the head down to the embeddings."""
    model = tiny_model(byte_level_tokenizer(tmp_path))
    optimizer = make_optimizer(model, QAOptions(**PLACES, layer_decay=0.5, weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[parameter]] = group["weight_decay"], group["scale"]
    assert seen.keys() == set(names.values())
    for name, (decay, scale) in seen.items():
        assert decay == (0.0 if name.endswith(".bias") or "LayerNorm" in name else 0.1), name
        depth = 0 if "qa_outputs" in name else 3 if "embeddings" in name else 2 if "layer.0" in name else 1
        assert scale == 0.5**depth, name


def test_the_learning_rate_rises_and_falls() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    options = QAOptions(**PLACES, learning_rate=1.0, warmup=0.25)
    optimizer = torch.optim.AdamW([{"params": [parameter], "scale": 0.5}])
    rates = [set_learning_rate(optimizer, options, step, 12) for step in range(12)]
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, *[(12 - step) / 9 for step in range(3, 12)]])
    assert optimizer.param_groups[0]["lr"] == rates[-1] / 2
