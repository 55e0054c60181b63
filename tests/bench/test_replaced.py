"""``longformer bench transformers``: one model, our attention in and out of it in turns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from longformer import LongformerConfig, LongformerError, cli
from longformer.bench import machine, replaced

TINY = LongformerConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=66,
    attention_window=8,
)


def test_the_contenders_are_one_model_before_and_after() -> None:
    (first, second, led) = replaced.cases(TINY, lengths=(20, 50), global_tokens=3)
    assert [case.settings["shape"] for case in (first, second, led)] == [[1, 20], [1, 50], [1, 50]]
    for case in (first, second, led):
        ours, theirs = (build() for build in case.builders.values())
        results, kinds = [], []
        for contender in (ours, theirs, ours):
            contender.prepare()
            results += contender.run()
            model = contender.prepare.args[0]
            attention = [type(part) for part in model.modules() if type(part).__name__.endswith("SelfAttention")]
            kinds.append({kind.__module__ for kind in attention})
        assert [len(each) for each in kinds] == [1, 1, 1] and kinds[0] == kinds[2] != kinds[1]
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
        assert not torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_led_of_the_released_base_model_is_leds_base() -> None:
    with torch.device("meta"):
        config = replaced.led_encoder(LongformerConfig()).config
    assert (config.encoder_layers, config.attention_window) == (6, [1024] * 6)
    assert (config.d_model, config.encoder_attention_heads, config.encoder_ffn_dim) == (768, 12, 3072)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 16)
    TINY.save(tmp_path / "config.json")
    arguments = ["--config", str(tmp_path / "config.json"), "--lengths", "20", "--globals", "3", "--rounds", "2"]
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "transformers", *arguments, "--json", str(tmp_path / "found.json")])
    torch.set_num_threads(threads)
    said = capsys.readouterr()
    assert not stopped.value.code, said.err
    assert "transformers' LongformerModel, 20 tokens" in said.out and "transformers' LED's encoder, 20" in said.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["benchmark"] == "transformers"
    for case in found["cases"]:
        assert [each["name"] for each in case["results"]] == ["our attention inside", "as it is"]
        assert [len(each["seconds"]) for each in case["results"]] == [2, 2]
        assert case["results"][1]["ratio"] > 0


def test_without_transformers_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LongformerError, match="transformers is not installed"):
        replaced.cases(TINY, lengths=(20,), global_tokens=3)


def test_an_impossible_document_is_refused() -> None:
    with pytest.raises(LongformerError, match="65 tokens are more than the 64"):
        replaced.cases(TINY, lengths=(20, 65), global_tokens=3)
