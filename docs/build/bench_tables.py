"""The benchmarks' tables, from the files that ``longformer bench --json`` wrote. No figure of them is typed by hand.

A page has a line ``<!-- bench: NAME -->`` where the table of ``TABLES[NAME]`` belongs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "longformer" / "bench" / "results"
PLACE = re.compile(r"^<!-- bench: (\S+) -->$", flags=re.MULTILINE)


def fill(markdown: str) -> str:
    """``markdown`` with each place filled in. An unknown name is a KeyError."""
    return PLACE.sub(lambda place: TABLES[place[1]](), markdown)


def read(name: str) -> dict[str, Any]:
    """What ``results/NAME.json`` holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def cases(name: str) -> str:
    """Every contender of every case of one file: median, spread, ratio to ours, and distance from the reference."""
    rows = []
    for case in read(name)["cases"]:
        for result in case["results"]:
            values = result.get("seconds", result.get("bytes"))
            show = _seconds if "seconds" in result else _bytes
            spread = (
                "one run" if len(values) == 1 else f"{show(min(values))} to {show(max(values))} ({len(values)} runs)"
            )
            rows.append((case["name"], result["name"], show(result["median"]), spread, _ratio(result), _off(result)))
        rows += [(case["name"], rival, "none", reason, "", "") for rival, reason in case["missing"].items()]
    return _table(("case", "who", "median", "spread", "times ours", "difference"), rows)


def across(name: str, start: str = "") -> str:
    """One row a case of those whose name begins with ``start``, one column a contender."""
    found = [case for case in read(name)["cases"] if case["name"].startswith(start)]
    rivals = list(dict.fromkeys(r["name"] for case in found for r in case["results"]))
    rows = []
    for case in found:
        by_name = {result["name"]: result for result in case["results"]}
        cells = [_cell(by_name[rival]) if rival in by_name else _why(case["missing"].get(rival)) for rival in rivals]
        rows.append((case["name"], *cells))
    return _table(("", *rivals), rows)


def against_transformers(name: str, start: str = "") -> str:
    """Ours and transformers in a file whose contenders are named by their precision."""
    rows = []
    for case in read(name)["cases"]:
        if not case["name"].startswith(start):
            continue
        ours = next(result for result in case["results"] if result["ratio"] == 1)
        theirs = [result for result in case["results"] if result["name"].startswith("transformers")]
        rows += [(case["name"], _cell(ours), f"{_cell(result)}{_kind(result['name'])}") for result in theirs]
    return _table(("", "longformer", "transformers"), rows)


def versions() -> str:
    """What the attention benchmark ran on; the other files are of the same machine, or say otherwise."""
    machine = read("attention")["machine"]
    installed = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    speed = ", ".join(f"{name} {gflops:,.0f}" for name, gflops in machine["matrix_product_gflops"].items())
    return (
        f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads; {installed}. torch's own "
        f"matrix product there, in GFLOP/s: {speed}."
    )


def figures(name: str) -> str:
    """The numbers that follow from several cases of one file."""
    return _table(("what", "value"), [(what, f"{value:.4g}") for what, value in read(name)["figures"].items()])


def _cell(result: dict[str, Any]) -> str:
    show = _seconds if "seconds" in result else _bytes
    return show(result["median"]) + ("" if result["ratio"] in (1, None) else f" ({_ratio(result)})")


def _why(reason: str | None) -> str:
    """Why a contender has no figure, in a word; the table of all cases has the reason in full."""
    if reason is None:
        return "not measured"
    return "too slow" if "would take" in reason else "none"


def _kind(name: str) -> str:
    """What a contender's name says beyond who it is and in which precision."""
    rest = name.partition(", ")[2]
    return f", {rest}" if rest else ""


def _seconds(value: float) -> str:
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.1f} ms"


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB"


def _ratio(result: dict[str, Any]) -> str:
    ratio = result["ratio"]
    return "" if ratio is None else f"{ratio:.1f}×" if ratio >= 0.95 else f"{ratio:.2g}×"


def _off(result: dict[str, Any]) -> str:
    return "" if result["difference"] is None else f"{result['difference']:.1e}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES = {
    "attention": lambda: across("attention"),
    "attention-memory": lambda: across("memory", "memory of attention"),
    "model-memory": lambda: against_transformers("memory", "memory of a model"),
    "model-rivals": lambda: against_transformers("model"),
    "versions": versions,
    "precision-figures": lambda: figures("precision"),
    "scaling-figures": lambda: figures("scaling"),
    "scaling-memory": lambda: across("scaling", "memory of"),
    "scaling-times": lambda: across("scaling", "attention forward"),
    "training-rivals": lambda: against_transformers("training"),
    **{
        f"{name}-cases": lambda name=name: cases(name)
        for name in ("attention", "memory", "model", "precision", "qa", "scaling", "training")
    },
}
