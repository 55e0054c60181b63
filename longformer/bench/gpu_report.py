"""The report of ``bench gpu``: results as plain values for the JSON, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longformer.bench import formats, machine
from longformer.bench.gpu_device import PRODUCT
from longformer.bench.gpu_measure import INDEXED, OURS, Result
from longformer.bench.problem import Problem
from longformer.bench.report import format_table

TARGET = Problem(seq_len=16384, window=256, head_dim=64, dtype="bfloat16")  # for this problem there are aims
AIMS: dict[str, dict[str, float]] = {
    "FlexAttention, compiled": {"forward": 1.1, "backward": 1.1},
    "transformers": {"forward": 10},
}


def plain(result: Result, peak_tflops: dict[str, float]) -> dict[str, Any]:
    """A result as plain values: times in milliseconds, their medians, and the share of a matrix product's speed."""
    problem, speed = result.problem, peak_tflops.get(result.problem.dtype)
    values: dict[str, Any] = {"shape": problem.settings()}
    for name in ("name", "products", "waited", "difference", "missing", "disagrees"):
        values[name] = getattr(result, name)
    for name, seconds, flop in (
        ("forward", result.forward, problem.forward_flop),
        ("backward", result.backward, problem.backward_flop),
    ):
        median = machine.median(seconds) if seconds else None
        values[name] = [1e3 * each for each in seconds]
        values[f"{name}_ms"] = 1e3 * median if median else None
        values[f"{name}_share"] = flop / median / 1e12 / speed if median and speed else None
    return values


def table(report: dict[str, Any]) -> str:
    """Hardware, errors, the aims at ``TARGET``, and one row for each contender at each problem."""
    results = report["results"]
    lines = [*_head(report), *reached(results), "", format_table(_rows(results))]
    if any(result["name"] == INDEXED for result in results):
        lines.append(
            f"{OURS} makes the index of the global columns from their mask in its time, and reads their number back; "
            f'"{INDEXED}" has it in advance, as FlexAttention has its block mask'
        )
    if any(result["waited"] for result in results):
        lines.append("* the GPU waited for the host in some run, and that time is in the figures")
    return "\n".join(lines)


def _head(report: dict[str, Any]) -> list[str]:
    lines = [
        report["machine"]["gpu"],
        formats.versions(report["machine"]["versions"]),
        f"matrix product of {PRODUCT}, TFLOP/s: {formats.speeds(report['peak_tflops'])}",
    ]
    if report["left_out"]:
        lines.append(f"left out because there was no time: {len(report['left_out'])} shapes")
    if report["stopped"]:
        lines.append("stopped before its end")
    for error in report["errors"]:
        place = Problem(**error["shape"]) if "shape" in error else error["case"]
        lines.append(f"error at {place}: {error['error']}")
    return lines


def _rows(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...] | str]:
    rows: list[tuple[str, ...] | str] = [("", "forward", "x ours", "of product", "backward", "x ours", "difference")]
    ours: dict[str, Any] = {}
    for result in results:
        if result["name"] == OURS:
            ours = result
            rows.append(f"{Problem(**result['shape'])}; {_measured_by(result['products'])}")
        if result["missing"]:
            rows.append(f"  {result['name']}  missing: {result['missing']}")
            continue
        rows.append(
            (
                f"  {result['name']}{'*' if result['waited'] else ''}",
                formats.milliseconds(result["forward_ms"]),
                formats.ratio(result["forward_ms"] / ours["forward_ms"]),
                formats.share(result["forward_share"]),
                formats.milliseconds(result["backward_ms"]),
                formats.ratio(result["backward_ms"] / ours["backward_ms"]),
                formats.difference(result["difference"]),
            )
        )
    return rows


def _measured_by(products: str) -> str:
    """How differences are measured, in words."""
    if products == "ieee":
        return "products in full float32, difference by the largest value"
    return f"{'products in TF32, ' if products == 'tf32' else ''}difference by the norm"


def reached(results: Sequence[dict[str, Any]]) -> list[str]:
    """The aims at ``TARGET`` and what was measured there, in lines; none if it was not measured."""
    there = {r["name"]: r for r in results if r["shape"] == TARGET.settings() and not r["missing"]}
    if OURS not in there:
        return []
    ours = there[OURS]
    lines = [f"forward at {formats.share(ours['forward_share'])} of the matrix product (aim 45%)"]
    for name, aims in AIMS.items():
        for what, aim in aims.items() if name in there else ():
            times = formats.ratio(there[name][f"{what}_ms"] / ours[f"{what}_ms"])
            lines.append(f"{times} times {name}, {what} (aim {aim})")
    return lines
