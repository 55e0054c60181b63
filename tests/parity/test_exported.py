"""``longformer parity compare`` of a model exported to ONNX: its outputs, and its inner values by ``--trace``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import TINY

from longformer import LongformerModel
from longformer.cli import main
from longformer.exporting import export
from longformer.parity.runs import draw

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime onnxscript")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime onnxscript")
pytestmark = [pytest.mark.xdist_group("parity of exported models"), pytest.mark.slow]

# Torch's exporter takes eight seconds for each layer.
HEAD, BASE = (TINY.replace(num_hidden_layers=n, attention_window=8, attention_dilation=1) for n in (2, 1))
IDS = [[0, 20, 21, 2, 2, 30, 31, 32, 33, 34, 35, 2], [0, 22, 2, 2, 40, 41, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input ``ids.json``; a model with a head, exported with its inner values; one without, exported without."""
    folder = tmp_path_factory.mktemp("exported")
    model = draw(HEAD, seed=0)
    model.save_pretrained(folder / "model")
    export(model, folder / "traced.onnx", inner_values=True, check=False)
    base = LongformerModel(BASE).eval()
    base.save_pretrained(folder / "base")
    export(base, folder / "base.onnx", check=False)
    (folder / "ids.json").write_text(json.dumps({"input_ids": IDS}))
    return folder


@pytest.fixture
def compare(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)

    def run(*arguments: str, model: str = "model") -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["parity", "compare", *arguments, "--model", model])
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


def test_outputs_and_inner_values(compare: Any) -> None:
    status, out, _ = compare("ours", "traced.onnx", "ids.json")
    assert status == 0 and out.startswith("rounding: ours and traced.onnx differ by no more than rounding in 20 values")


def test_outputs_alone_of_a_model_without_a_head(compare: Any) -> None:
    status, out, _ = compare("ours", "base.onnx", "ids.json", model="base")
    assert status == 0 and out.startswith("rounding: ours and base.onnx differ by no more than rounding in 2 values")


def test_the_first_value_that_is_wrong_is_named(compare: Any, folder: Path) -> None:
    proto = onnx.load(folder / "traced.onnx")
    (norm,) = (x for x in proto.graph.initializer if x.name.endswith("layer.1.attention.output.LayerNorm.weight"))
    norm.raw_data = (np.frombuffer(norm.raw_data, np.float32) + np.float32(0.01)).tobytes()
    onnx.save(proto, folder / "wrong.onnx")
    status, out, _ = compare("ours", "wrong.onnx", "ids.json")
    assert status == 1 and "layer.1.attention_output" in out.splitlines()[0]


def test_what_an_exported_model_does_not_have(compare: Any, folder: Path) -> None:
    said = compare("ours", "base.onnx", "ids.json", "--probabilities", model="base")[2]
    assert said.startswith("error: base.onnx has neither gradients nor attention probabilities")
    positions = {"input_ids": IDS[:1], "position_ids": [list(range(2, 14))]}
    (folder / "positions.json").write_text(json.dumps(positions))
    assert "and no position_ids; leave it out" in compare("ours", "base.onnx", "positions.json", model="base")[2]
    LongformerModel(BASE.replace(attention_window=4)).save_pretrained(folder / "other")
    said = compare("ours", "base.onnx", "ids.json", model="other")[2]
    assert "base.onnx was exported from a model of another config than other" in said
    assert "absent.onnx is no file" in compare("ours", "absent.onnx", "ids.json")[2]
