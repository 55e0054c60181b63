"""``bench gpu``: attention on a GPU by our Triton kernels, beside FlexAttention, flash-attention and transformers.

Everything is checked first (``gpu_checks``): arguments of the kernels, ours at each problem, and every contender
against ours. Then forward and backward passes are timed apart, and contenders take turns (``gpu_measure``). One table
of the medians comes last (``gpu_report``).

The most important problems come first. Those for which no time is left are listed as left out. A problem that fails is
listed as an error, and the others go on. The report can be saved after each problem.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from longformer.bench import gpu_checks
from longformer.bench.clocks import Clock, GpuClock, cpu_clock
from longformer.bench.gpu_device import describe, forget, peaks, require_device
from longformer.bench.gpu_measure import IMPL, measure
from longformer.bench.gpu_report import TARGET, plain
from longformer.bench.problem import Problem
from longformer.bench.timing import one_line, say
from longformer.kernels.compat import kept_buffers


def problems(
    lengths: Sequence[int],
    windows: Sequence[int],
    head_dims: Sequence[int],
    dtypes: Sequence[str],
    globals_: Sequence[int],
    shapes: Sequence[tuple[int, int, int]] = (),
) -> list[Problem]:
    """All combinations: ``TARGET`` first, then those that differ from it in one respect, in two, and so on.

    Of those that differ in as many respects, longer ones come later. ``shapes``, each batch, heads and tokens, take the
    place of ``lengths``, and their order is kept.
    """
    if shapes:
        return [
            Problem(
                batch=batch, heads=heads, seq_len=seq_len, window=window, head_dim=head_dim, dtype=dtype,
                global_tokens=count,
            )
            for dtype in dtypes
            for window in windows
            for head_dim in head_dims
            for batch, heads, seq_len in shapes
            for count in globals_
        ]  # fmt: skip
    wanted = [
        TARGET.replace(seq_len=seq_len, window=window, head_dim=head_dim, dtype=dtype, global_tokens=count)
        for seq_len in lengths
        for window in windows
        for head_dim in head_dims
        for dtype in dtypes
        for count in globals_
    ]

    def order(problem: Problem) -> tuple[int, int]:
        return sum(getattr(problem, name) != value for name, value in TARGET.settings().items()), problem.seq_len

    return sorted(wanted, key=order)


def run(
    asked: Sequence[Problem],
    *,
    rounds: int,
    seconds: float,
    device_name: str = "cuda",
    save: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """The report of everything that could be measured in ``seconds``, in plain values.

    Args:
        device_name: "cuda", or "cpu" to rehearse, see :func:`longformer.bench.gpu_device.require_device`.
        save: is given the report after each problem, as far as it has come.
    """
    started = time.monotonic()
    device = require_device(device_name)
    clock: Clock = GpuClock() if device.type == "cuda" else cpu_clock
    report: dict[str, Any] = {"machine": describe(device), "peak_tflops": {}, "stopped": None}
    report |= {"results": [], "errors": [], "left_out": [problem.settings() for problem in asked]}
    try:
        with torch.device(device), kept_buffers(), _ended_by_signals():
            report["peak_tflops"] = peaks(device, clock)
            say("checking")
            for case in gpu_checks.CASES:
                _noting_errors(report, {"case": case.name}, partial(gpu_checks.check_case, case, device, IMPL))
            for problem in asked:
                if time.monotonic() - started > seconds:
                    break
                say(f"{time.monotonic() - started:.0f} s: {problem}")
                about = {"shape": problem.settings()}
                measuring = partial(_measure_into, report, problem, device, rounds, clock, started + seconds)
                _noting_errors(report, about, measuring)
                del report["left_out"][0]
                _noting_errors(report, about, partial(save, report))
    except (KeyboardInterrupt, SystemExit) as stop:  # what has been measured is still worth its table
        report["stopped"] = stop.code if isinstance(stop, SystemExit) else 130
        say("stopped")
        _noting_errors(report, {"case": "the end"}, partial(save, report))
    return report


def _measure_into(
    report: dict[str, Any], problem: Problem, device: torch.device, rounds: int, clock: Clock, deadline: float
) -> None:
    forget()
    results = measure(problem, device, rounds, clock, deadline=deadline)
    report["results"] += [plain(result, report["peak_tflops"]) for result in results]
    for result in results:
        if result.disagrees:  # one of the two is wrong, and that may be ours
            what = f"DisagreementError: {result.name} {result.missing}"
            report["errors"].append({"shape": problem.settings(), "error": what})


def _noting_errors(report: dict[str, Any], about: dict[str, Any], do: Callable[[], Any]) -> None:
    """Call ``do``. If it fails, the report lists the error, and what comes next is still measured."""
    try:
        do()
    except Exception as error:
        say(f"error: {one_line(error)}")
        report["errors"].append({**about, "error": f"{type(error).__name__}: {one_line(error)}"})


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, with the exit status that shells give it.

    Python allows this in the main thread only; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
