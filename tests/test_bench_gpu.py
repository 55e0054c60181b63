"""``longformer bench gpu`` where there is no GPU: what it would run, on fake contenders and a fake clock."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longformer import cli as command
from longformer.bench import attention, gpu, rivals
from longformer.bench.attention import Shape
from longformer.bench.timing import DisagreementError, UnavailableError
from longformer.errors import LongformerError

SHAPE = Shape(heads=2, seq_len=64, head_dim=8, window=4, global_tokens=3)


def counting_clock() -> Any:
    """Runs what it is given, and says 1 ms, 2 ms, 3 ms, ..."""
    number = iter(range(1, 10_000))

    def clock(run: Any) -> float:
        run()
        return float(next(number))

    return clock


def ours(impl: str, shape: Shape, inputs: Any) -> rivals.Attention:
    return rivals.Attention(partial(attention._ours, shape, inputs, impl))


def wrong(shape: Shape, inputs: Any) -> rivals.Attention:
    return rivals.Attention(lambda: 2 * attention._ours(shape, inputs, "reference"))


def absent(shape: Shape, inputs: Any) -> rivals.Attention:
    raise UnavailableError("is not installed")


def fake_report(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    reach = gpu.REACH.replace(seq_len=64, heads=2, window=4, head_dim=8, dtype="float32")
    monkeypatch.setattr(gpu, "REACH", reach)
    contenders = {
        "longformer": partial(ours, "blocked"),
        "FlexAttention, compiled": partial(ours, "banded"),
        "transformers": wrong,
        "flash-attention": absent,
    }
    results = gpu.measure(reach, "cpu", 4, counting_clock(), contenders)
    peak = {"float32": 1e-3}
    return {
        "machine": {"gpu": "a fake", "versions": {"torch": "2"}},
        "peak_tflops": peak,
        "results": [gpu.plain(result, peak) for result in results],
        "left_out": [{}],
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu"])
    assert stopped.value.code == 2
    assert "bench gpu measures on a CUDA or ROCm device, and torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "0"], "0 is too small"),
        (["--dtypes", "int8"], "'int8' is no dtype of the kernels"),
        (["--seconds", "-1"], "--seconds"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_bad_arguments_are_met_first(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_shape_to_reach_comes_first_and_then_its_neighbours() -> None:
    found = gpu.shapes((131072, 4096, 16384), (128, 256), (64, 128), ("bfloat16", "float32"), (0, 64))
    assert len(found) == 48
    assert found[0] == gpu.REACH
    assert [shape.seq_len for shape in found[1:8]] == [4096, 16384, 16384, 16384, 16384, 131072, 4096]


def test_what_agrees_is_timed_in_turns_and_the_rest_is_missing_with_its_reason() -> None:
    contenders = {
        "longformer": partial(ours, "blocked"),
        "theirs": partial(ours, "banded"),
        "wrong": wrong,
        "absent": absent,
    }
    results = gpu.measure(SHAPE, "cpu", 3, counting_clock(), contenders)
    mine, theirs, bad, none = results
    assert [len(r.forward) for r in results] == [len(r.backward) for r in results] == [3, 3, 0, 0]
    # Two rounds of two contenders warm up, eight clockings; then they start in turns.
    assert (mine.forward, theirs.forward) == ([9.0, 15.0, 17.0], [11.0, 13.0, 19.0])
    assert mine.difference is not None and mine.difference < 1e-6
    assert bad.missing is not None and "differs from ours" in bad.missing
    assert none.missing == "is not installed"


def test_nothing_is_timed_where_ours_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_ours", wrong)
    with pytest.raises(DisagreementError, match="from the float64 reference"):
        gpu.measure(SHAPE, "cpu", 1, lambda run: pytest.fail("was timed"), {"longformer": wrong})
    with pytest.raises(UnavailableError):
        gpu.measure(SHAPE, "cpu", 1, counting_clock(), {"longformer": absent})


def test_distance_of_what_is_not_finite_is_infinite() -> None:
    assert gpu.distance([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")
    assert gpu.distance([torch.ones(4), torch.ones(1)], [torch.ones(4), torch.full((1,), 2.0)]) == 0.5


def test_flash_attention_is_missing_or_has_no_global_columns() -> None:
    inputs = gpu.make_inputs(SHAPE, "cpu", 0, backward=False)
    with pytest.raises(UnavailableError, match=r"not installed|no global columns"):
        gpu.flash_attention(SHAPE, inputs)


def test_table_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = fake_report(monkeypatch)
    table = gpu.table(report)
    assert table.startswith("a fake\ntorch 2\nmatrix product of 8192, TFLOP/s: float32 0\nleft out for want of time: 1")
    assert "of the matrix product (aim 45%)" in table
    assert "times FlexAttention, compiled, backward (aim 1.1)" in table
    assert "flash-attention  missing: is not installed" in table
    monkeypatch.setenv("OUT", str(tmp_path))
    gpu.write(report, str(tmp_path / "named.json"))
    for name in ("gpu.json", "named.json"):
        saved = json.loads((tmp_path / name).read_text())
        assert saved["results"][0]["forward_ms"] == report["results"][0]["forward_ms"]
        assert len(saved["results"][0]["forward"]) == 4


def test_run_leaves_out_what_it_has_no_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "require_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(gpu, "DeviceClock", counting_clock)
    monkeypatch.setattr(gpu, "PRODUCT", 16)
    monkeypatch.setattr(gpu, "describe", lambda device: {"gpu": "none", "versions": {}})
    monkeypatch.setattr(gpu, "CONTENDERS", {"longformer": partial(ours, "blocked")})
    report = gpu.run([SHAPE, SHAPE], rounds=1, seconds=1e9)
    assert (len(report["results"]), report["left_out"]) == (2, [])
    report = gpu.run([SHAPE, SHAPE], rounds=1, seconds=0)
    assert (len(report["results"]), len(report["left_out"])) == (0, 2)


@pytest.mark.gpu
def test_on_a_device(tmp_path: Path) -> None:
    try:
        report = gpu.run([gpu.REACH.replace(seq_len=1024, global_tokens=g) for g in (0, 5)], rounds=2, seconds=300)
    except LongformerError as error:
        pytest.skip(str(error))
    assert {r["name"] for r in report["results"] if not r["missing"]} >= {"longformer", "FlexAttention, compiled"}
