"""The benchmarks' tables, made from the files that ``longformer bench --json`` wrote. No figure is typed by hand.

Where a page has the line ``<!-- bench: NAME -->``, the table ``TABLES[NAME]`` takes its place. README.md is read as it
stands, so its tables are kept in it: ``python docs/build/bench_tables.py`` writes them, and a test holds them to the
files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longformer.bench import ablation, formats, needle

RESULTS = Path(__file__).resolve().parents[2] / "longformer" / "bench" / "results"
README = RESULTS.parents[2] / "README.md"
FIGURES = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end of figures -->)", flags=re.DOTALL)
PLACE = re.compile(r"^<!-- bench: (\S+) -->$", flags=re.MULTILINE)


def fill(markdown: str) -> str:
    """``markdown`` with its tables. Raises KeyError for an unknown name."""
    return PLACE.sub(lambda place: TABLES[place[1]](), markdown)


def read(name: str) -> dict[str, Any]:
    """The contents of ``results/NAME.json``."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def cases(name: str) -> str:
    """A row for each contender of each case of one file: median, spread, ratio to ours, distance from the reference."""
    rows = []
    for case in read(name)["cases"]:
        for result in case["results"]:
            values, show = result.get("seconds", result.get("bytes")), _shown(result)
            spread = "one run"
            if len(values) > 1:
                spread = f"{show(min(values))} to {show(max(values))} ({len(values)} runs)"
            off = formats.difference(result["difference"])
            rows.append((case["name"], result["name"], show(result["median"]), spread, _ratio(result), off))
        rows += [(case["name"], rival, "none", reason, "", "") for rival, reason in case["missing"].items()]
    return _table(("case", "who", "median", "spread", "times ours", "difference"), rows)


def across(name: str, start: str = "") -> str:
    """A row for each case whose name begins with ``start``, and a column for each contender."""
    found = [case for case in read(name)["cases"] if case["name"].startswith(start)]
    rivals = list(dict.fromkeys(r["name"] for case in found for r in case["results"]))
    rows = []
    for case in found:
        by_name = {result["name"]: result for result in case["results"]}
        cells = [_cell(by_name[rival]) if rival in by_name else _why(case["missing"].get(rival)) for rival in rivals]
        rows.append((case["name"], *cells))
    return _table(("", *rivals), rows)


def against_transformers(name: str, start: str = "") -> str:
    """Ours beside transformers, from a file in which contenders are named after their precision."""
    rows = []
    for case in read(name)["cases"]:
        if not case["name"].startswith(start):
            continue
        ours = next(result for result in case["results"] if result["ratio"] == 1)
        theirs = [result for result in case["results"] if result["name"].startswith("transformers")]
        rows += [(case["name"], _cell(ours), f"{_cell(result)}{_kind(result['name'])}") for result in theirs]
    return _table(("", "longformer", "transformers"), rows)


def versions(name: str = "attention") -> str:
    """The machine and the versions of a benchmark. The other files of its folder are of the same machine."""
    machine = read(name)["machine"]
    return (
        f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads; "
        f"{formats.versions(machine['versions'])}. torch's own matrix product there, in GFLOP/s: "
        f"{formats.speeds(machine['matrix_product_gflops'])}."
    )


def figures(name: str) -> str:
    """The numbers of one file that follow from several of its cases."""
    return _table(("what", "value"), [(what, f"{value:.4g}") for what, value in read(name)["figures"].items()])


def precisions(folder: str) -> str:
    """A row for each precision: the base model's time, and what becomes of the answers of the shipped checkpoint."""
    times, answers = read(f"{folder}model")["cases"], read(f"{folder}precision")
    (asked,) = answers["cases"]
    count = asked["name"].split()[0]
    rows = []
    for result in asked["results"]:
        name = result["name"]
        at = {
            length: next(
                other["median"]
                for case in times
                if case["name"].startswith(f"model forward, {length} tokens")
                for other in case["results"]
                if other["name"] == f"longformer {name}"
            )
            for length in (4096, 170)
        }
        figures = answers["figures"]
        rows.append(
            (
                name,
                formats.seconds(at[4096]),
                formats.seconds(at[170]),
                f"{result['rate']:.1f}",
                f"{figures[f'{name}: weights, MB']:.0f} MB",
                formats.difference(result["difference"]),
                f"{figures[f'{name}: answers changed of {count}']:.0f} of {count}",
            )
        )
    measured = ("questions a second", "weights", "largest logit difference", "answers changed")
    return _table(("", "4,096 tokens", "170 tokens", *measured), rows)


def rows(lines: list[Any]) -> str:
    """What a benchmark makes of its own file: titles, then rows."""
    return _table(lines[0], lines[1:])


README_ROWS = (  # what the README calls it, file, case
    ("attention, float32", "attention", "attention forward, 4096 tokens, 0 global, float32"),
    ("the same, forward and backward", "attention", "attention forward + backward, 4096 tokens, 0 global, float32"),
    ("attention, bfloat16", "attention", "attention forward, 4096 tokens, 0 global, bfloat16"),
    ("base model, float32", "model", "model forward, 4096 tokens, 14 global, float32"),
    ("base model, 170 tokens, float32", "model", "model forward, 170 tokens, 14 global, float32"),
    ("base model, bfloat16", "model", "model forward, 4096 tokens, 14 global, bfloat16"),
    ("training step, float32", "training", "training step, 4096 tokens, 14 global, float32"),
    ("memory of the base model, float32", "memory", "memory of a model's forward, 4096 tokens, float32"),
)


def readme() -> str:
    """The README's table: ours, transformers, and FlexAttention where attention alone is measured."""
    rows = []
    for title, file, name in README_ROWS:
        case = next(case for case in read(file)["cases"] if case["name"] == name)
        results = {result["name"].partition(" ")[0].rstrip(","): result for result in reversed(case["results"])}
        rivals = [results.get(rival) for rival in ("transformers", "FlexAttention")]
        ours = next(result for result in case["results"] if result["ratio"] == 1)
        rows.append((title, _cell(ours), *("" if result is None else _cell(result) for result in rivals)))
    return _table(("", "longformer", "transformers", "FlexAttention"), rows)


EXPORTED_ROWS = (  # what the README calls them, how their names begin
    ("size", "size"),
    ("time at 170, 512 and 4,096 tokens", "exported model"),
    ("memory at these lengths", "memory"),
)


def exported() -> str:
    """The README's table of exported models: size, time and memory in ONNX Runtime, ours and transformers'."""
    names = ("longformer float32", "ONNX Runtime float32", "ONNX Runtime int8", "transformers float32")
    rows = []
    for title, start in EXPORTED_ROWS:
        found = [case["results"] for case in read("onnx")["cases"] if case["name"].startswith(start)]
        by_name = [{result["name"]: _shown(result)(result["median"]) for result in results} for results in found]
        rows.append((title, *(", ".join(each[name] for each in by_name if name in each) for name in names)))
    return _table(("", "longformer", "ONNX Runtime", "ONNX Runtime, int8", "transformers"), rows)


README_TABLES = {"speed": readme, "export": exported}


def with_figures(markdown: str) -> str:
    """The README's text with its tables made anew."""
    return FIGURES.sub(lambda found: f"{found[1]}{README_TABLES[found[2]]()}\n{found[3]}", markdown)


def _cell(result: dict[str, Any]) -> str:
    return _shown(result)(result["median"]) + ("" if result["ratio"] in (1, None) else f" ({_ratio(result)})")


def _why(reason: str | None) -> str:
    """Why a contender has no figure, in a few words. The table of all cases has the full reason."""
    if reason is None:
        return "not measured"
    return "too slow" if "would take" in reason else "none"


def _kind(name: str) -> str:
    """What a contender's name says after its package and its precision."""
    rest = name.partition(", ")[2]
    return f", {rest}" if rest else ""


def _shown(result: dict[str, Any]) -> Callable[[float], str]:
    return formats.seconds if "seconds" in result else formats.megabytes


def _ratio(result: dict[str, Any]) -> str:
    """One decimal: the machine's noise is larger than what a second one would say."""
    ratio = result["ratio"]
    return "" if ratio is None else f"{ratio:.1f}×" if ratio >= 0.95 else f"{ratio:.2g}×"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES = {
    "attention": lambda: across("attention"),
    "attention-memory": lambda: across("memory", "memory of attention"),
    "model-memory": lambda: against_transformers("memory", "memory of a model"),
    "model-rivals": lambda: against_transformers("model"),
    "versions": versions,
    "needle": lambda: rows(needle.rows(read("needle"))),
    "patterns": lambda: rows(ablation.rows(read("patterns"))),
    "precisions": lambda: precisions(""),
    "precisions-amx": lambda: precisions("amx/"),
    "versions-amx": lambda: versions("amx/attention"),
    "attention-amx": lambda: across("amx/attention"),
    "model-rivals-amx": lambda: against_transformers("amx/model"),
    "precision-figures": lambda: figures("precision"),
    "scaling-figures": lambda: figures("scaling"),
    "scaling-memory": lambda: across("scaling", "memory of"),
    "scaling-times": lambda: across("scaling", "attention forward"),
    "training-rivals": lambda: against_transformers("training"),
    **{
        f"{name}-cases": lambda name=name: cases(name)
        for name in ("attention", "memory", "model", "onnx", "precision", "qa", "scaling", "training")
    },
}


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
