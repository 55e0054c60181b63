"""``longformer bench gpu`` where there is no GPU: what it would run, on fake contenders and a fake clock."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from longformer import cli as command
from longformer import files
from longformer.bench import attention, gpu, gpu_checks, gpu_device, gpu_measure, gpu_report, rivals
from longformer.bench import report as report_files
from longformer.bench.clocks import Time
from longformer.bench.problem import Inputs, Problem, make_inputs
from longformer.bench.timing import DisagreementError, UnavailableError
from longformer.errors import LongformerError
from longformer.kernels import AttentionPattern

PROBLEM = Problem(heads=2, seq_len=64, head_dim=8, window=4, global_tokens=3)


MEASURED = gpu_measure.IMPL


@pytest.fixture(autouse=True)
def on_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("gpu") is None:
        for module in (gpu, gpu_measure):
            monkeypatch.setattr(module, "IMPL", "blocked")


def counting_clock() -> Any:
    """Runs what it is given, and says 1 s, 2 s, 3 s, ...; the host is late only where the name says so."""
    number = iter(range(1, 10_000))

    def clock(run: Any, what: str) -> Time:
        run()
        return Time(float(next(number)), what.startswith("waits"))

    return clock


def ours(impl: str, problem: Problem, inputs: Inputs) -> rivals.Attention:
    return attention.our_attention(problem, inputs, impl)


def wrong(problem: Problem, inputs: Inputs) -> rivals.Attention:
    right = ours("reference", problem, inputs)
    return rivals.Attention(lambda: 2 * right.forward())


def failing_after(runs: int, problem: Problem, inputs: Inputs) -> rivals.Attention:
    """Ours, until it has run so often on its inputs."""
    left = iter(range(runs))
    right = ours("blocked", problem, inputs)

    def forward() -> torch.Tensor:
        if next(left, None) is None:
            raise OSError("the compiler is gone")
        return right.forward()

    return rivals.Attention(forward)


def absent(problem: Problem, inputs: Inputs) -> rivals.Attention:
    raise UnavailableError("is not installed")


def fake_report(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    target = gpu_report.TARGET.replace(seq_len=64, heads=2, window=4, head_dim=8, dtype="float32")
    monkeypatch.setattr(gpu_report, "TARGET", target)
    contenders = {
        "longformer": partial(ours, "blocked"),
        "FlexAttention, compiled": partial(ours, "banded"),
        "transformers": wrong,
        "flash-attention": absent,
    }
    results = gpu_measure.measure(target, "cpu", 4, counting_clock(), contenders)
    peak = {"float32": 1e-3}
    return {
        "machine": {"gpu": "a fake", "versions": {"torch": "2"}},
        "peak_tflops": peak,
        "results": [gpu_report.plain(result, peak) for result in results],
        "errors": [{"shape": PROBLEM.settings(), "error": "RuntimeError: broken"}],
        "left_out": [{}],
        "stopped": None,
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
        (["--shapes", "1x12"], "'1x12' is no shape; give batch, heads and tokens"),
        (["--shapes", "1x0x64"], "'1x0x64' is no shape"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_bad_arguments_are_met_first(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_shape_to_reach_comes_first_and_then_its_neighbours() -> None:
    found = gpu.problems((131072, 4096, 16384), (128, 256), (64, 128), ("bfloat16", "float32"), (0, 64))
    assert len(found) == 48
    assert found[0] == gpu_report.TARGET
    assert [problem.seq_len for problem in found[1:8]] == [4096, 16384, 16384, 16384, 16384, 131072, 4096]


def test_shapes_are_taken_in_their_order() -> None:
    found = gpu.problems((7,), (256,), (64,), ("bfloat16",), (0, 64), ((4, 16, 128), (1, 12, 4096)))
    assert [(p.batch, p.heads, p.seq_len, p.global_tokens) for p in found] == [
        (4, 16, 128, 0), (4, 16, 128, 64), (1, 12, 4096, 0), (1, 12, 4096, 64),
    ]  # fmt: skip


def test_a_rehearsal_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_measure, "CONTENDERS", {"longformer": partial(ours, "blocked")})
    monkeypatch.setattr(gpu_checks, "CASES", ())
    monkeypatch.setattr(gpu_device, "REHEARSAL", 16)
    arguments = "--shapes 2x2x24 --windows 4 --head-dims 8 --dtypes float32 --globals 3 --rounds 1 --device cpu --json"
    for interpreted in ("0", "1"):
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        with pytest.raises(SystemExit) as stopped:
            command.main(["bench", "gpu", *arguments.split(), str(tmp_path / "a.json")])
        out, err = capsys.readouterr()
        if interpreted == "0":
            assert stopped.value.code == 2 and "set TRITON_INTERPRET=1" in err
    assert stopped.value.code == 0, err
    (found,) = json.loads((tmp_path / "a.json").read_text())["results"]
    assert found["shape"]["batch"] == 2 and len(found["forward"]) == 1
    assert "rehearsal" in out and "2 x 2 heads, 24 tokens" in out


def test_the_script_for_a_device_is_one_that_bash_reads() -> None:
    subprocess.run(["bash", "-n", Path(__file__).parents[2] / "scripts" / "gpu.sh"], check=True)


def test_what_agrees_is_timed_in_turns_and_the_rest_is_missing_with_its_reason() -> None:
    contenders = {
        "longformer": partial(ours, "blocked"),
        "waits": partial(ours, "banded"),
        "wrong": wrong,
        "absent": absent,
    }
    results = gpu_measure.measure(PROBLEM, "cpu", 3, counting_clock(), contenders)
    mine, theirs, bad, none = results
    assert [len(r.forward) for r in results] == [len(r.backward) for r in results] == [3, 3, 0, 0]
    # Three rounds of two contenders warm up, twelve clockings; then they start in turns.
    assert (mine.forward, theirs.forward) == ([13.0, 19.0, 21.0], [15.0, 17.0, 23.0])
    assert [r.waited for r in results] == [False, True, False, False]
    assert mine.difference is not None and mine.difference < 1e-6
    assert bad.missing is not None and "differs from ours" in bad.missing and bad.disagrees
    assert not none.disagrees
    assert none.missing == "is not installed"


def test_nothing_is_timed_where_ours_is_wrong() -> None:
    with pytest.raises(DisagreementError, match="from the float64 reference"):
        gpu_measure.measure(PROBLEM, "cpu", 1, lambda *_: pytest.fail("was timed"), {"longformer": wrong})
    with pytest.raises(UnavailableError):
        gpu_measure.measure(PROBLEM, "cpu", 1, counting_clock(), {"longformer": absent})


def test_who_fails_in_its_turn_is_out_and_the_others_go_on() -> None:
    # Each set of inputs is run once before the turns, the first one twice; in the turns each is run every third round.
    contenders = {"longformer": partial(ours, "blocked"), "theirs": partial(failing_after, 3)}
    mine, theirs = gpu_measure.measure(PROBLEM, "cpu", 4, counting_clock(), contenders)
    assert (len(mine.forward), theirs.forward, theirs.missing) == (4, [], "the compiler is gone")
    with pytest.raises(OSError, match="the compiler is gone"):
        gpu_measure.measure(PROBLEM, "cpu", 4, counting_clock(), {"longformer": partial(failing_after, 3)})


def test_nothing_is_built_after_the_deadline() -> None:
    contenders = {"longformer": lambda *_: pytest.fail("was built"), "theirs": lambda *_: pytest.fail("was built")}
    results = gpu_measure.measure(PROBLEM, "cpu", 4, counting_clock(), contenders, deadline=time.monotonic() - 1)
    assert [r.missing for r in results] == ["no time was left"] * 2

    def slow(problem: Problem, inputs: Inputs) -> rivals.Attention:
        time.sleep(0.3)
        return ours("blocked", problem, inputs)

    contenders = {"longformer": slow, "theirs": lambda *_: pytest.fail("was built")}
    mine, theirs = gpu_measure.measure(
        PROBLEM, "cpu", 50, counting_clock(), contenders, deadline=time.monotonic() + 0.3
    )
    assert (len(mine.forward), theirs.missing) == (1, "no time was left")


@pytest.mark.parametrize("global_tokens", [0, 3])
def test_ours_with_its_index_in_advance_is_the_same(global_tokens: int) -> None:
    problem = PROBLEM.replace(global_tokens=global_tokens)
    contenders = {name: gpu_measure.CONTENDERS[name] for name in (gpu_measure.OURS, gpu_measure.INDEXED)}
    results = gpu_measure.measure(problem, "cpu", 1, counting_clock(), contenders)
    assert [r.missing for r in results] == [None] * (2 if global_tokens else 1)
    assert all(r.products == "ieee" and r.difference is not None and r.difference < 1e-5 for r in results)


def test_distance_of_what_is_not_finite_is_infinite() -> None:
    for kind in gpu_checks.ALLOWED:
        assert gpu_checks.distance([torch.tensor([float("nan")])], [torch.ones(1)], kind) == float("inf")


def test_distance_is_by_the_norm_and_in_full_float32_by_the_largest_value() -> None:
    found, exact = [torch.ones(4), torch.tensor([2.0, 3.0, 4.0])], [torch.ones(4), torch.tensor([2.0, 3.0, 6.0])]
    assert gpu_checks.distance(found, exact, "tf32") == pytest.approx(2 / 7)
    assert gpu_checks.distance(found, exact, "ieee") == pytest.approx(2 / 6)


def test_products_in_tf32_do_not_pass_for_full_float32() -> None:
    """Inputs rounded to TF32's ten bits of fraction, as its products round them."""
    inputs = make_inputs(PROBLEM, backward=True)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return ((x.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32).requires_grad_()

    coarse = inputs._replace(local=tuple(map(rounded, inputs.local)))
    exact, found = (gpu_checks.results_of(ours("blocked", PROBLEM, x), x) for x in (inputs, coarse))
    assert gpu_checks.distance(found, exact, "ieee") > 10 * gpu_checks.ALLOWED["ieee"]
    assert gpu_checks.distance(found, exact, "tf32") < gpu_checks.ALLOWED["tf32"]


def test_flash_attention_is_missing_or_has_no_global_columns() -> None:
    inputs = make_inputs(PROBLEM)
    with pytest.raises(UnavailableError, match=r"not installed|no global columns"):
        rivals.flash_attention(PROBLEM, inputs)


def test_table_and_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = fake_report(monkeypatch)
    table = gpu_report.table(report)
    assert table.startswith(
        "a fake\ntorch 2\nmatrix product of 8192, TFLOP/s: float32 0\nleft out because there was no time: 1"
    )
    assert "of the matrix product (aim 45%)" in table
    assert "times FlexAttention, compiled, backward (aim 1.1)" in table
    assert "flash-attention  missing: is not installed" in table
    assert "0 global; products in full float32, difference by the largest value" in table
    assert "error at 1 x 2 heads, 64 tokens, window 4, D 8, float32, 3 global: RuntimeError: broken" in table
    assert gpu_measure.INDEXED not in table and "waited" not in table
    report["results"][2]["difference"] = float("inf")
    report_files.write_json(report, tmp_path / "named.json")
    assert [path.name for path in tmp_path.iterdir()] == ["named.json"]
    saved = json.loads((tmp_path / "named.json").read_text(), parse_constant=pytest.fail)
    assert saved["results"][2]["difference"] == "inf"
    first = saved["results"][0]
    assert first["shape"] == gpu_report.TARGET.settings()
    assert len(first["forward"]) == 4 and first["forward"][0] == 13_000  # the thirteenth clocking, in milliseconds
    assert first["forward_ms"] == sum(sorted(first["forward"])[1:3]) / 2
    flop = gpu_report.TARGET.forward_flop
    assert first["forward_share"] == pytest.approx(flop / (first["forward_ms"] / 1e3) / 1e12 / 1e-3)


def test_json_into_a_link_and_a_pipe(tmp_path: Path) -> None:
    """Neither is replaced by a file."""
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("file")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for path in (link, pipe):
        report_files.write_json({"a": 1}, path)
    assert link.is_symlink() and json.loads((tmp_path / "file").read_text()) == {"a": 1}
    assert pipe.is_fifo() and json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)


def on_no_device(monkeypatch: pytest.MonkeyPatch, **contenders: Any) -> None:
    monkeypatch.setattr(gpu, "require_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(gpu, "cpu_clock", counting_clock())
    monkeypatch.setattr(gpu_device, "PRODUCT", 16)
    monkeypatch.setattr(gpu, "describe", lambda device: {"gpu": "none", "versions": {}})
    monkeypatch.setattr(gpu_measure, "CONTENDERS", contenders)
    monkeypatch.setattr(gpu_checks, "CASES", ())


def test_run_leaves_out_what_it_has_no_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    on_no_device(monkeypatch, longformer=partial(ours, "blocked"))
    report = gpu.run([PROBLEM, PROBLEM], rounds=1, seconds=1e9)
    assert (len(report["results"]), report["left_out"]) == (2, [])
    report = gpu.run([PROBLEM, PROBLEM], rounds=1, seconds=0)
    assert (len(report["results"]), len(report["left_out"])) == (0, 2)


def test_a_shape_that_fails_is_an_error_and_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken_at_32(problem: Problem, inputs: Inputs) -> rivals.Attention:
        return (wrong if problem.seq_len == 32 else partial(ours, "blocked"))(problem, inputs)

    on_no_device(monkeypatch, longformer=broken_at_32)
    file = tmp_path / "gpu.json"
    saved = []
    write = report_files.write_json
    monkeypatch.setattr(
        report_files, "write_json", lambda *a, **k: (write(*a, **k), saved.append(json.loads(file.read_text())))
    )
    options = "--lengths 64,32,96 --windows 4 --head-dims 8 --dtypes float32 --globals 0 --rounds 1 --json"
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", *options.split(), str(file)])
    assert stopped.value.code == 1
    assert [len(x["results"]) + len(x["errors"]) for x in saved] == [1, 2, 3]  # written after each shape
    assert [len(x["left_out"]) for x in saved] == [2, 1, 0]
    (error,) = saved[-1]["errors"]
    assert error["shape"]["seq_len"] == 32
    assert error["error"].startswith("DisagreementError: ours is ")
    assert (
        "error at 1 x 12 heads, 32 tokens, window 4, D 8, float32, 0 global: DisagreementError"
        in capsys.readouterr().out
    )


def test_a_fault_of_ours_beyond_what_the_dense_reference_holds_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size the others are compared with ours, which must not be its own judge."""
    monkeypatch.setattr(gpu_checks, "DENSE_TOKENS", 32)

    def wrong_when_long(problem: Problem, inputs: Inputs) -> rivals.Attention:
        return (partial(ours, "blocked") if problem.seq_len <= 32 else wrong)(problem, inputs)

    contenders = {"longformer": wrong_when_long, "theirs": partial(ours, "banded")}
    with pytest.raises(DisagreementError, match="from the float64 blocked"):
        gpu_measure.measure(PROBLEM, "cpu", 1, lambda *_: pytest.fail("was timed"), contenders)


def test_who_disagrees_with_ours_is_an_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    on_no_device(monkeypatch, longformer=partial(ours, "blocked"), theirs=wrong)
    report = gpu.run([PROBLEM], rounds=1, seconds=1e9)
    assert [error["error"].startswith("DisagreementError: theirs differs") for error in report["errors"]] == [True]
    assert "theirs differs from ours by" in gpu_report.table(report)


def test_ours_is_the_triton_kernel_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(query: torch.Tensor, *_: Any, impl: str = "auto", **__: Any) -> torch.Tensor:
        seen.append(impl)
        return query

    for name in ("sliding_window_attention", "global_attention", "attend"):
        monkeypatch.setattr(attention, name, watch)
    inputs = make_inputs(PROBLEM)
    for index_given in (False, True):
        gpu_measure._ours(PROBLEM, inputs, index_given=index_given).forward()
    without_globals = PROBLEM.replace(global_tokens=0)
    gpu_measure._ours(without_globals, make_inputs(without_globals)).forward()
    assert seen == [gpu_measure.IMPL] * 5
    assert MEASURED == "triton"


class OutOfMemory:
    """Ours, which finds no memory while another holds some."""

    def __init__(self) -> None:
        self.others, self.error = 0, torch.OutOfMemoryError("memory ends")

    def build(self, problem: Problem, inputs: Inputs) -> rivals.Attention:
        right = ours("blocked", problem, inputs)

        def forward() -> torch.Tensor:
            if self.others > 1:
                self.others -= 1
                raise self.error
            return right.forward()

        return rivals.Attention(forward)

    def count(self, problem: Problem, inputs: Inputs) -> rivals.Attention:
        self.others = 2
        return ours("banded", problem, inputs)


@pytest.mark.parametrize("name", [gpu_measure.OURS, gpu_measure.INDEXED])
def test_where_memory_ends_the_last_rival_makes_room(name: str) -> None:
    memory = OutOfMemory()
    contenders = {
        gpu_measure.OURS: partial(ours, "blocked"),
        gpu_measure.INDEXED: partial(ours, "blocked"),
        name: memory.build,
    }
    results = gpu_measure.measure(
        PROBLEM, "cpu", 3, counting_clock(), {**contenders, "one": memory.count, "two": memory.count}
    )
    assert [len(result.forward) for result in results] == [3, 3, 3, 0]
    assert results[3].missing == f"made room for {name}: memory ends"


def test_a_failure_of_ours_with_its_index_in_advance_is_an_error() -> None:
    for broken in (absent, partial(failing_after, 3)):
        contenders = {gpu_measure.OURS: partial(ours, "blocked"), gpu_measure.INDEXED: broken}
        with pytest.raises((UnavailableError, OSError)):
            gpu_measure.measure(PROBLEM, "cpu", 4, counting_clock(), contenders)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (None, 143)])
def test_what_is_stopped_still_gives_its_table(
    stop: Any, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(problem: Problem, inputs: Inputs) -> rivals.Attention:
        if problem.seq_len == 96:
            if stop is not None:
                raise stop
            signal.raise_signal(signal.SIGTERM)
        return ours("blocked", problem, inputs)

    on_no_device(monkeypatch, longformer=stopping)
    before = signal.getsignal(signal.SIGTERM)
    options = "--lengths 64,96,128 --windows 4 --head-dims 8 --dtypes float32 --globals 0 --rounds 1 --json"
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", *options.split(), str(tmp_path / "gpu.json")])
    assert stopped.value.code == status
    assert signal.getsignal(signal.SIGTERM) == before
    table = capsys.readouterr().out
    assert "stopped before its end" in table and "64 tokens" in table and "96 tokens" not in table
    assert len(json.loads((tmp_path / "gpu.json").read_text())["results"]) == 1


def test_to_standard_output_goes_the_report_alone_and_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_no_device(monkeypatch, longformer=partial(ours, "blocked"))
    options = "--lengths 64,96 --windows 4 --head-dims 8 --dtypes float32 --globals 0 --rounds 1 --json -"
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", *options.split()])
    out, err = capsys.readouterr()
    assert not stopped.value.code and len(json.loads(out)["results"]) == 2
    assert "96 tokens" in err


def test_a_folder_that_cannot_be_written_into_is_met_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_no_device(monkeypatch, longformer=lambda *_: pytest.fail("was built"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # a folder's mode would not stop root
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", "--json", str(tmp_path / "gpu.json")])
    assert stopped.value.code == 2
    assert "cannot be written into; give another place for gpu.json" in capsys.readouterr().err


def test_a_device_is_written_into_wherever_it_lies() -> None:
    files.check_outputs([os.devnull])
    report_files.write_json({"a": 1}, os.devnull)
    assert not Path(os.devnull).is_file()


def test_nothing_but_the_named_file_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the environment names another place."""
    on_no_device(monkeypatch, longformer=partial(ours, "blocked"))
    monkeypatch.setenv("OUT", str(tmp_path))
    options = "--lengths 64 --windows 4 --head-dims 8 --dtypes float32 --globals 0 --rounds 1"
    with pytest.raises(SystemExit) as stopped:
        command.main(["bench", "gpu", *options.split()])
    assert not stopped.value.code and not list(tmp_path.iterdir())


def test_what_cannot_be_saved_costs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(report: Any) -> None:
        raise OSError("the disk is full")

    on_no_device(monkeypatch, longformer=partial(ours, "blocked"))
    report = gpu.run([PROBLEM], rounds=1, seconds=1e9, save=full)
    assert len(report["results"]) == 1
    assert [error["error"] for error in report["errors"]] == ["OSError: the disk is full"]


@pytest.mark.parametrize("case", gpu_checks.CASES, ids=lambda case: case.name)
def test_checks_pass_what_is_right_and_no_wrong_pattern(case: gpu_checks.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "TOKENS", 350)
    gpu_checks.check_case(case, "cpu", "blocked")
    right = gpu_checks.attend

    def mistaken(*arguments: Any, impl: str, **more: Any) -> torch.Tensor:
        query, key, value, pattern, tokens = arguments
        wrong_pattern = dataclasses.replace(pattern, dilation=2) if impl == "blocked" else pattern
        return right(query, key, value, wrong_pattern, tokens, impl=impl, **more)

    def unrepeatable(*inputs: Any, **arguments: Any) -> torch.Tensor:
        torch.seed()
        return right(*inputs, **arguments)

    monkeypatch.setattr(gpu_checks, "attend", unrepeatable if case.dropout_p else mistaken)
    with pytest.raises(DisagreementError):
        gpu_checks.check_case(case, "cpu", "blocked")


def test_a_check_that_fails_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no kernel")

    on_no_device(monkeypatch, longformer=partial(ours, "blocked"))
    monkeypatch.setattr(gpu_checks, "CASES", (gpu_checks.Case("a case", AttentionPattern((1, 1))),))
    monkeypatch.setattr(gpu_checks, "check_case", fail)
    report = gpu.run([PROBLEM], rounds=1, seconds=1e9)
    assert (len(report["results"]), report["errors"][0]["case"]) == (1, "a case")
    assert "error at a case: RuntimeError: no kernel" in gpu_report.table(report)


def test_it_runs_from_a_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longformer", "bench", "gpu", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "The Triton kernels on a GPU" in done.stdout


@pytest.mark.gpu
def test_on_a_device(tmp_path: Path) -> None:
    try:
        gpu_device.require_device()
    except LongformerError as error:
        pytest.skip(str(error))
    asked = [
        gpu_report.TARGET.replace(seq_len=1024, global_tokens=g, dtype=d)
        for g in (0, 5)
        for d in ("bfloat16", "float32")
    ]
    report = gpu.run(asked, rounds=2, seconds=300)
    assert report["errors"] == [] and report["left_out"] == []
    assert not any(r["waited"] for r in report["results"] if r["name"] == gpu_measure.INDEXED)
    assert {r["name"] for r in report["results"] if not r["missing"]} >= {"longformer", "FlexAttention, compiled"}
