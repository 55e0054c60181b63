"""``longformer pattern``: figures that a hand can count, kernels that can and cannot, a picture, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longformer import LongformerConfig
from longformer import cli as command
from longformer.bench import machine
from longformer.bench import pattern as patterns
from longformer.kernels import AttentionPattern, MaskPattern, known

SMALL = ("--heads", "2", "--head-dim", "4")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process: exit status, standard output, standard error. No product takes time."""
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 16)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command.main(["pattern", *map(str, arguments)])
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return run


def test_figures_that_a_hand_can_count(run, tmp_path: Path) -> None:
    """20 tokens, of which a row sees 3; then all, of which one is global; two layers reach further than one."""
    file = tmp_path / "out.json"
    text = "window=2/full,causal,global=4/window=2,dilation=3"
    code, out, _ = run(text, "--length", "20", *SMALL, "--no-measure", "--json", file)
    assert code == 0
    first, second, third = json.loads(file.read_text())["layers"]
    assert (first["pairs"], first["flops"], first["bytes"]) == (2 * 58, 2 * 58 * 16, 4 * 20 * 8 * 4)
    assert first["reach"] == 3 and first["pattern"] == "1 before and 1 behind"
    assert second["pairs"] == 2 * (210 + 5) and second["bytes"] == 4 * 20 * 8 * 4 + 2 * (1 + 20) * 8 * 4
    assert second["reach"] == 12, "of those up to the middle one, at 10, the first layer sees one more"
    assert third["pairs"] == 2 * (60 - 6) and third["reach"] == 15, "up to 13, and one more"
    assert "every token; causal; global: 4" in out and "1 before and 1 behind; dilated by 3" in out


def test_times_of_the_kernels_that_can(run) -> None:
    code, out, _ = run("window=4", "--length", "40", *SMALL, "--rounds", "1", "--kernels", "reference,fused")
    assert code == 0
    (reference,) = (line.split() for line in out.splitlines() if line.startswith("reference"))
    assert reference[1] == f"{2 * 40 * 40:,}" and reference[3] == reference[5] == "ms"
    assert any(line.startswith("fused ") for line in out.splitlines())
    found = patterns.times(
        AttentionPattern((2, 2)) | AttentionPattern((1, 1), 5),
        patterns.Shape(40, 2, 4, 0),
        dtype=torch.float32,
        device="cpu",
        rounds=1,
        kernels=("banded", "reference"),
    )
    assert found[0].missing.startswith('impl is "banded", which computes windows') and found[0].measured is None
    assert found[1].measured and not found[1].missing


def test_blocks_of_flex_are_counted() -> None:
    shape = patterns.Shape(512, 2, 8, 0)
    assert patterns.computed_pairs("flex", known.in_blocks(128), shape) == 2 * 4 * 128**2
    assert patterns.computed_pairs("flex", AttentionPattern((1, 0), (1, 200)), shape) == (7 + 4 + 2 + 3) * 128**2
    assert patterns.computed_pairs("reference", known.in_blocks(128), shape) == 2 * 512**2
    layers = patterns.costs([MaskPattern((known.in_blocks(128),))], shape)
    assert layers[0].pairs == 2 * 4 * 128**2 and layers[0].reach == 128


def test_a_config_and_a_picture(run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, the extra plot")
    config = LongformerConfig(
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_size=8,
        attention_window=[8, 8, 4],
        attention_pattern="causal,global-ids=3",
    )
    config.save(tmp_path / "config.json")
    asked = ("--length", "30", "--no-measure", "--draw", tmp_path / "out.png")
    code, out, err = run(tmp_path / "config.json", *asked)
    assert code == 0 and "0 to 1" in out and "2 heads of 4 dimensions" in out
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "global tokens that are chosen by their ids are not counted" in err


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        ("window=4,global=0:300/full", (1, 2)),  # the picture is of 256 tokens
        ("window=4,dilation=1:1:2/window=4", (2, 2)),
        ("window=4+window=2,dilation=1:2:3/full/full", (2, 3)),
    ],
)
def test_every_pattern_is_drawn_in_a_picture_that_has_room(
    run, tmp_path: Path, spec: str, grid: tuple[int, int]
) -> None:
    size = pytest.importorskip("matplotlib.image", reason="pictures need matplotlib, the extra plot").imread
    asked = ("--heads", "3", "--length", "301", "--no-measure", "--draw", tmp_path / "out.png")
    code, out, _ = run(spec, *asked)
    assert code == 0 and "receptive field" in out
    height, width = size(tmp_path / "out.png").shape[:2]
    assert height == pytest.approx(grid[0] * 4.6 * 110, abs=2) and width == pytest.approx(grid[1] * 4.2 * 110, abs=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("widow=4",), "'widow' is no item of a pattern; did you mean 'window'"),
        (("window=4:1,causal",), "window is (4, 1) and causal is true"),
        (("full", "--kernels", "fuse"), "'fuse' is no kernel; did you mean 'fused'"),
        (
            ("window=4/window=4+window=2", "--kernels", "reference,fused"),
            'impl is "fused", which computes windows, and the pattern is a mask, a score or a union; what can run (2 '
            "before and 2 behind or 1 before and 1 behind) here: reference",
        ),
        (("full", "--dtype", "float31"), "float31"),
        (("full", "--length", "3", "--globals", "4"), "global_tokens is 4; it must be 0 to seq_len, which is 3"),
        (("window=4,global=0:50", "--length", "40"), "global token 50 lies beyond the 40 tokens, of which the first"),
        (("full/full", "--layers", "1"), "lists 2 layers for num_hidden_layers 1"),
    ],
)
def test_bad_input(run, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(run) -> None:
    code, _, err = run("full", "--device", "cuda")
    assert code == 2 and "there is no GPU here; leave --device out" in err
