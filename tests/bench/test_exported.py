"""``longformer bench onnx``: exported models beside ours and transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longformer import LongformerConfig
from longformer.bench import machine, memory, peak
from longformer.cli import main

pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime onnxscript")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnx onnxruntime onnxscript")
pytestmark = pytest.mark.slow

TINY = LongformerConfig(
    vocab_size=300,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=130,
    attention_window=16,
    initializer_range=0.1,
)


def test_size_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Peaks are measured here, by the functions that run in processes of their own."""
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 16)
    asked: list[dict[str, Any]] = []

    def in_subprocess(task: dict[str, Any]) -> int:
        asked.append(task)
        return peak.TASKS[task["what"]](**{name: value for name, value in task.items() if name != "what"})

    monkeypatch.setattr(memory, "in_subprocess", in_subprocess)
    TINY.save(tmp_path / "config.json")
    threads = torch.get_num_threads()
    options = ["--rounds", "1", "--threads", "1", "--config", str(tmp_path / "config.json")]
    with pytest.raises(SystemExit) as end:
        main(["bench", "onnx", "--lengths", "20,60", *options, "--json", str(tmp_path / "out.json")])
    torch.set_num_threads(threads)
    assert not end.value.code
    cases = json.loads((tmp_path / "out.json").read_text())["cases"]
    files = ["ONNX Runtime float32", "ONNX Runtime int8"]
    assert [[found["name"] for found in case["results"]] for case in cases] == [
        ["longformer float32", *files],
        *[["longformer float32", *files, "transformers float32"]] * 2,
        *[["longformer float32", "transformers float32", *files]] * 2,
    ]
    assert [task["what"] for task in asked[:4]] == ["model forward"] * 2 + ["exported forward"] * 2
    assert "ONNX Runtime int8" in capsys.readouterr().out
