"""A comparison as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.errors import DataError
from longformer.parity.comparison import MULTIPLE, Compared, Comparison, row_ratios
from longformer.parity.recorder import Trace
from longformer.parity.report import as_json, place, summary
from longformer.parity.rounding import Truth
from longformer.parity.table import GLOBAL_ROWS, PROBABILITIES, split_name
from longformer.weights import replace_file

BINS = 256  # columns of a heat map: with more tokens, neighbours share one, and the worst of them is shown
EXAMPLES = 8  # of a batch
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWEST, STEPS = -1.0, 6  # level 0 is a tenth of the noise; this many levels are a factor of ten


def write_page(
    path: str, comparison: Comparison, a: Trace, b: Trace, truth: Truth, tokens: list[list[str]] | None
) -> None:
    """Write the page. Raises DataError where that fails."""
    text = page(comparison, a, b, truth, tokens)

    def put(new: Path) -> None:
        new.write_text(text, encoding="utf-8")

    try:
        replace_file(Path(path), put)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def page(comparison: Comparison, a: Trace, b: Trace, truth: Truth, tokens: list[list[str]] | None) -> str:
    """The page's text."""
    ids = truth.trace.inputs["input_ids"]
    texts = tokens or [[str(number) for number in row] for row in ids.tolist()]
    data = {
        "names": comparison.names,
        "values": [value.name for value in comparison.values],
        "verdicts": [value.verdict for value in comparison.values],
        "first": comparison.values.index(comparison.first) if comparison.first else None,
        "levels": LEVELS,
        "lowest": LOWEST,
        "steps": STEPS,
        "tokens": [row[: ids.shape[1]] for row in texts[:EXAMPLES]],
        "globals": [row.nonzero().flatten().tolist() for row in _mask(truth, "global_attention_mask")[:EXAMPLES]],
        "padding": [(~row).nonzero().flatten().tolist() for row in _mask(truth, "attention_mask")[:EXAMPLES]],
        "heat": [_heat(value, a, b, truth) for value in comparison.values],
    }
    parts = {
        "TITLE": html.escape(f"{comparison.names[0]} and {comparison.names[1]}: {comparison.verdict}"),
        "VERDICT": html.escape(comparison.verdict),
        "SUMMARY": html.escape(summary(comparison)),
        "FINDINGS": _findings(comparison),
        "CHART": chart(comparison),
        "TABLE": _table(comparison),
        "ABOUT": html.escape(json.dumps(_about(comparison), indent=1, ensure_ascii=False)),
        "DATA": _script(data),
    }
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], TEMPLATE)  # in one go: a part may hold such a mark


def _mask(truth: Truth, name: str) -> Tensor:
    inputs = truth.trace.inputs
    return inputs[name] != 0 if name in inputs else torch.ones_like(inputs["input_ids"], dtype=torch.bool)


def _script(data: Any) -> str:
    """JSON inside a script element: a document's own ``</script>`` must not end it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _about(comparison: Comparison) -> dict[str, Any]:
    """Metadata of the runs, less what would fill pages."""
    return {
        name: {key: value for key, value in metadata.items() if key not in ("weights", "tokens")}
        for name, metadata in as_json(comparison)["about"].items()
    }


def _heat(value: Compared, a: Trace, b: Trace, truth: Truth) -> list[list[list[str]]] | None:
    """For each run and example, a string a head: a character a token, how many times the noise its error is."""
    part = split_name(value.name)[1]
    by_token = len(value.shape) in (3, 4) and part not in (GLOBAL_ROWS, PROBABILITIES[2])
    if not by_token or value.name.startswith("gradient.") or value.name not in truth.trace:
        return None
    true = truth.trace[value.name]
    maps = []
    for trace in (a, b):
        mine = trace[value.name]
        ratios = row_ratios(mine.double() - true, true, truth.noise(mine.dtype)[value.name])[:EXAMPLES]
        ratios = ratios[:, None] if ratios.dim() == 2 else ratios  # (B, H or 1, S)
        step = math.ceil(ratios.shape[2] / BINS)
        if step > 1:
            ratios = torch.nn.functional.max_pool1d(ratios, step, ceil_mode=True)
        levels = ((ratios.clamp(min=1e-30).log10() - LOWEST) * STEPS).round().nan_to_num(len(LEVELS) - 1)
        levels = levels.clamp(0, len(LEVELS) - 1).int()
        maps.append([["".join(LEVELS[i] for i in row) for row in example] for example in levels.tolist()])
    return maps


def _findings(comparison: Comparison) -> str:
    items = [f"<b>hint:</b> {html.escape(hint)}" for hint in comparison.hints]
    if comparison.first is not None:
        items += [f"at {html.escape(place(position))}" for position in comparison.first.positions]
    items += [html.escape(note) for note in comparison.notes]
    items += [f"{html.escape(name)} lacks {html.escape(', '.join(lost))}" for name, lost in comparison.missing.items()]
    return "".join(f"<li>{item}</li>" for item in items)


def chart(comparison: Comparison) -> str:
    """An SVG: root mean square error of both runs against depth, and the noise of each, on a logarithmic scale."""
    values = [value for value in comparison.values if value.a is not None and value.b is not None]
    lines: dict[str, list[float]] = {"a": [], "b": [], "noise-a": [], "noise-b": []}
    for value in values:
        assert value.a is not None and value.b is not None
        for key, number in (
            ("a", value.a.rms),
            ("b", value.b.rms),
            ("noise-a", value.a.noise),
            ("noise-b", value.b.noise),
        ):
            lines[key].append(number)
    numbers = [x for line in lines.values() for x in line if math.isfinite(x) and x > 0]
    if not numbers:
        return "<p>No value could be measured against the truth.</p>"
    low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    high = max(high, low + 1)
    width, height, left, bottom = 1000, 320, 60, 40
    across = (width - left - 10) / max(1, len(values) - 1)

    def x(i: int) -> float:
        return left + i * across

    def y(number: float) -> float:
        if not math.isfinite(number) or number <= 0:
            return float(height - bottom)
        return 10 + (height - bottom - 10) * (high - math.log10(number)) / (high - low)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="error against depth">']
    for power in range(low, high + 1):
        level = y(10.0**power)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{level + 4:.1f}" text-anchor="end">1e{power}</text>')
    layers: dict[int, int] = {}
    for i, value in enumerate(values):
        layer = split_name(value.name)[0]
        if layer is not None:
            layers.setdefault(layer, i)
    for layer, i in layers.items():
        parts.append(f'<line class="grid" x1="{x(i):.1f}" x2="{x(i):.1f}" y1="10" y2="{height - bottom}"/>')
        parts.append(f'<text x="{x(i) + 2:.1f}" y="{height - bottom + 14}">layer {layer}</text>')
    for key, line in lines.items():
        points = " ".join(f"{x(i):.1f},{y(number):.1f}" for i, number in enumerate(line))
        parts.append(f'<polyline class="{key}" points="{points}"/>')
    for i, value in enumerate(values):
        place_of = comparison.values.index(value)
        for key in ("a", "b"):
            parts.append(
                f'<circle class="{key} {value.verdict}" cx="{x(i):.1f}" cy="{y(lines[key][i]):.1f}" r="3.5" '
                f'data-value="{place_of}"><title>{html.escape(value.name)}: {lines[key][i]:.3g}</title></circle>'
            )
    parts.append("</svg>")
    a, b = (html.escape(name) for name in comparison.names)
    legend = (
        f'<p class="legend"><i class="a"></i>{a} <i class="b"></i>{b} <i class="noise-a"></i>noise of {a}\'s precision '
        f'<i class="noise-b"></i>of {b}\'s: up to {MULTIPLE:g} times it is rounding. '
        "Root mean square distance from the float64 run; click a point for its map.</p>"
    )
    return "".join(parts) + legend


def _table(comparison: Comparison) -> str:
    rows = []
    for i, value in enumerate(comparison.values):
        cells = [value.largest, value.rms, value.relative, max(0.0, 1 - value.cosine), value.ulp_largest]
        cells += [math.nan if error is None else error.ratio for error in (value.a, value.b)]
        numbers = "".join(f"<td>{cell:.3g}</td>" if math.isfinite(cell) else "<td></td>" for cell in cells)
        rows.append(
            f'<tr class="{value.verdict}" data-value="{i}"><td>{html.escape(value.name)}</td>'
            f"<td>{value.verdict}</td>{numbers}</tr>"
        )
    names = [html.escape(f"{name} / noise") for name in comparison.names]
    heads = ["value", "verdict", "largest", "rms", "relative", "1 - cosine", "ulp", *names]
    return f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}"


TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@@TITLE@@</title>
<style>
:root { --a: #2563eb; --b: #d97706; --grid: #ddd; --text: #222; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --grid: #444; --text: #ddd; --back: #181818; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em;
  color: var(--text); background: var(--back); }
svg { width: 100%; } svg text { font-size: 11px; fill: var(--text); } .grid { stroke: var(--grid); }
polyline { fill: none; stroke-width: 1.5; } polyline.a, polyline.noise-a { stroke: var(--a); }
polyline.b, polyline.noise-b { stroke: var(--b); } polyline.noise-a, polyline.noise-b { stroke-dasharray: 3 4; }
circle { cursor: pointer; } circle.a { fill: var(--a); } circle.b { fill: var(--b); }
circle.different, circle.non-finite { stroke: #dc2626; stroke-width: 3; }
.legend i { display: inline-block; width: 1.5em; border-top: 3px solid; margin: 0 .3em .25em 1em; }
.legend .a, .legend .noise-a { border-color: var(--a); } .legend .b, .legend .noise-b { border-color: var(--b); }
.legend .noise-a, .legend .noise-b { border-top-style: dotted; }
.verdict { font-weight: bold; } .verdict.different, .verdict.non-finite { color: #dc2626; }
.verdict.identical, .verdict.rounding { color: #16a34a; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
td, th { padding: 1px 9px; text-align: right; } td:first-child, th:first-child { text-align: left; }
tr[data-value] { cursor: pointer; } tr[data-value]:hover { outline: 1px solid var(--a); }
tr.different td, tr.non-finite td { color: #dc2626; }
canvas { width: 100%; image-rendering: pixelated; display: block; border: 1px solid var(--grid); cursor: crosshair; }
#text { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 22em;
  overflow: auto; border: 1px solid var(--grid); padding: .5em; }
#text span { color: #111; border-radius: 2px; padding: 1px; cursor: default; }
#text .global { text-decoration: underline; } #text .padding { opacity: .5; }
pre { overflow: auto; font-size: 12px; }
</style>
</head>
<body>
<h1>Parity</h1>
<p><span class="verdict @@VERDICT@@">@@VERDICT@@</span>: @@SUMMARY@@</p>
<ul>@@FINDINGS@@</ul>
<h2>Error against depth</h2>
@@CHART@@
<h2>Where: tokens and heads</h2>
<p><select id="value"></select> <select id="run"></select> <select id="example"></select>
<span id="under"></span></p>
<canvas id="map" height="10"></canvas>
<p class="legend">Tokens from left to right, heads from top to bottom. White is below a tenth of the noise, yellow about
the noise, red a hundred times and more.</p>
<div id="text"></div>
<h2>Values</h2>
<table>@@TABLE@@</table>
<h2>Runs</h2>
<pre>@@ABOUT@@</pre>
<script type="application/json" id="data">@@DATA@@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id);
const option = (select, text, value) => {
  const entry = document.createElement("option");
  entry.textContent = text; entry.value = value; select.append(entry);
};
data.values.forEach((name, i) => { if (data.heat[i]) option(get("value"), name + " (" + data.verdicts[i] + ")", i); });
data.names.forEach((name, i) => option(get("run"), name, i));
data.tokens.forEach((row, i) => option(get("example"), "batch " + i, i));
const ratio = level => Math.pow(10, data.lowest + level / data.steps);
const colour = level => {
  const depth = Math.min(1, level / (3 * data.steps));
  return depth < 0.34 ? [255, 255, Math.round(255 - 255 * depth / 0.34)]
    : [Math.round(255 - 60 * Math.max(0, depth - 0.8) * 5), Math.round(255 * (1 - (depth - 0.34) / 0.66)), 0];
};
function rows() {
  const maps = data.heat[get("value").value];
  return maps ? maps[get("run").value][get("example").value] : [];
}
function draw() {
  const heads = rows(), canvas = get("map"), pen = canvas.getContext("2d");
  if (!heads.length) return;
  canvas.width = heads[0].length; canvas.height = heads.length;
  canvas.style.height = Math.max(24, heads.length * 14) + "px";
  const image = pen.createImageData(canvas.width, canvas.height);
  heads.forEach((row, y) => [...row].forEach((letter, x) => {
    image.data.set([...colour(data.levels.indexOf(letter)), 255], 4 * (y * canvas.width + x));
  }));
  pen.putImageData(image, 0, 0);
  const example = +get("example").value, tokens = data.tokens[example];
  const step = Math.ceil(tokens.length / heads[0].length);
  const global = new Set(data.globals[example]), padding = new Set(data.padding[example]), box = get("text");
  box.replaceChildren();
  tokens.forEach((token, i) => {
    const piece = document.createElement("span");
    const level = Math.max(...heads.map(row => data.levels.indexOf(row[Math.floor(i / step)])));
    piece.textContent = token.replace(/^[\\u0120\\u2581]/, " ");
    piece.title = "token " + i + ": " + ratio(level).toPrecision(2) + " times the noise";
    piece.style.background = "rgb(" + colour(level).join() + ")";
    piece.className = (global.has(i) ? "global " : "") + (padding.has(i) ? "padding" : "");
    box.append(piece, " ");
  });
}
get("map").addEventListener("mousemove", event => {
  const heads = rows(), canvas = get("map"), tokens = data.tokens[get("example").value];
  if (!heads.length) return;
  const x = Math.min(canvas.width - 1, Math.floor(event.offsetX / canvas.clientWidth * canvas.width));
  const y = Math.min(canvas.height - 1, Math.floor(event.offsetY / canvas.clientHeight * canvas.height));
  const step = Math.ceil(tokens.length / canvas.width);
  const texts = tokens.slice(x * step, (x + 1) * step).join(" ");
  get("under").textContent = "head " + y + ", token " + x * step + " " + texts + ": "
    + ratio(data.levels.indexOf(heads[y][x])).toPrecision(2) + " times the noise";
});
for (const id of ["value", "run", "example"]) get(id).addEventListener("change", draw);
document.querySelectorAll("[data-value]").forEach(part => part.addEventListener("click", () => {
  if (data.heat[part.dataset.value]) { get("value").value = part.dataset.value; draw(); }
}));
if (data.first !== null && data.heat[data.first]) get("value").value = data.first;
if (data.first !== null) get("run").value = 1;
draw();
</script>
</body>
</html>
"""
