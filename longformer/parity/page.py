"""A comparison as one HTML page that needs no network and no other file."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch

from longformer.files import write_text
from longformer.parity.comparison import Compared, Comparison
from longformer.parity.contest import Contest
from longformer.parity.format import metadata_object
from longformer.parity.measure import MULTIPLE, Error, row_ratios
from longformer.parity.noise import precisions_of
from longformer.parity.places import without_padding
from longformer.parity.report import furthest, place, summary
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, PROBABILITIES, split_name

BINS = 512  # columns of a heat map: with more tokens, neighbours share one, and the worst of them is shown
EXAMPLES = 8  # of a batch that are shown, at most
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWEST, STEPS = -1.0, 6  # level 0 is a tenth of the noise; so many levels are a factor of ten
WIDTH, HEIGHT = 1000, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 24  # margins
LABELS = 12  # layers that are named below the chart, at most


def write_page(path: str, contest: Contest) -> None:
    """Write the page, whole or not at all. Raises DataError where that fails."""
    write_text(path, page(contest))


def page(contest: Contest) -> str:
    """The page's text."""
    comparison = contest.comparison
    activations = [value for value in comparison.values if not value.name.startswith(GRADIENT)]
    gradients = [value for value in comparison.values if _is_of_activation(value.name)]
    charts = _chart(activations, comparison)
    if gradients:
        charts += f"<h2>Error of gradients, from the last layer to the first</h2>{_chart(gradients, comparison)}"
    parts = {
        "TITLE": html.escape(" and ".join(comparison.names)),
        "VERDICT": html.escape(comparison.verdict),
        "SUMMARY": html.escape(summary(comparison)),
        "FINDINGS": _findings(comparison),
        "CHARTS": charts,
        "TABLE": _table(comparison),
        "RUNS": _runs(comparison),
        "DATA": _script(_data(contest)),
    }
    template = (files("longformer.parity") / "page.html").read_text(encoding="utf-8")
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)  # all at once: a part may hold such a mark


def _is_of_activation(name: str) -> bool:
    return name.startswith(GRADIENT) and not name.startswith(PARAMETER)


def _data(contest: Contest) -> dict[str, Any]:
    """The data from which the page's script draws maps and text."""
    comparison, inputs = contest.comparison, contest.truth.trace.inputs
    ids = inputs["input_ids"]
    texts = contest.tokens or [[str(number) for number in row] for row in ids.tolist()]
    is_global, present = inputs["global_attention_mask"] != 0, inputs["attention_mask"] != 0
    departed = [i for i, name in enumerate(comparison.names) if name in comparison.departed]
    return {
        "names": comparison.names,
        "values": [value.name for value in comparison.values],
        "verdicts": [value.verdict for value in comparison.values],
        "shown": comparison.values.index(comparison.first or furthest(comparison)),
        "run": departed[-1] if departed else 0,
        "levels": LEVELS,
        "lowest": LOWEST,
        "steps": STEPS,
        "tokens": [row[: ids.shape[1]] for row in texts[:EXAMPLES]],
        "globals": [row.nonzero().flatten().tolist() for row in is_global[:EXAMPLES]],
        "padding": [(~row).nonzero().flatten().tolist() for row in present[:EXAMPLES]],
        "heat": [_heat(value, contest) for value in comparison.values],
    }


def _script(data: Any) -> str:
    """JSON for a script element, escaped: a ``</script>`` in the document must not end that element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _heat(value: Compared, contest: Contest) -> list[list[list[str]]] | None:
    """For each run, example and head, a string: one character a token says how many times the noise the error is."""
    truth, part = contest.truth, split_name(value.name.removeprefix(GRADIENT))[1]
    by_token = len(value.shape) in (3, 4) and part not in (GLOBAL_ROWS, PROBABILITIES[2])
    if not by_token or value.name.startswith(PARAMETER) or value.name not in truth.trace:
        return None
    true, keep = truth.trace[value.name], truth.trace.inputs["attention_mask"] != 0
    maps = []
    for trace in (contest.a, contest.b):
        noise = truth.noise(precisions_of(trace))[value.name]
        off = without_padding(value.name, trace[value.name].double() - true, keep)
        ratios = row_ratios(off, noise)[:EXAMPLES]
        ratios = ratios[:, None] if ratios.dim() == 2 else ratios  # (B, H or 1, S)
        step = math.ceil(ratios.shape[2] / BINS)
        if step > 1:
            ratios = torch.nn.functional.max_pool1d(ratios, step, ceil_mode=True)
        levels = ((ratios.clamp(min=1e-30).log10() - LOWEST) * STEPS).round().nan_to_num(len(LEVELS) - 1)
        levels = levels.clamp(0, len(LEVELS) - 1).int()
        maps.append([["".join(LEVELS[i] for i in row) for row in example] for example in levels.tolist()])
    return maps


class _Axes:
    """Where things lie in the chart: a value by its number, an error on a logarithmic scale."""

    def __init__(self, count: int, numbers: Sequence[float]) -> None:
        self.low, self.high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
        self.high = max(self.high, self.low + 1)
        self.across = (WIDTH - LEFT - RIGHT) / max(1, count - 1)

    def x(self, i: int) -> str:
        """From the left."""
        return f"{LEFT + i * self.across:.1f}"

    def y(self, number: float) -> str:
        """From the top. What is 0 or not finite lies at an edge."""
        power = self.low if number <= 0 else self.high if not math.isfinite(number) else math.log10(number)
        power = min(max(power, self.low), self.high)
        return f"{TOP + (HEIGHT - TOP - BOTTOM) * (self.high - power) / (self.high - self.low):.1f}"


def _chart(values: Sequence[Compared], comparison: Comparison) -> str:
    """An SVG of the error of each value in both runs, root mean square, with what rounding may cost, and a legend."""
    pairs = [(value, value.a, value.b) for value in values if value.a is not None and value.b is not None]
    errors = [error for _, a, b in pairs for error in (a, b)]
    numbers = [x for error in errors for x in (error.rms, error.noise, MULTIPLE * error.noise)]
    numbers = [x for x in numbers if math.isfinite(x) and x > 0]
    if not numbers:
        return "<p>No value could be measured against the truth.</p>"
    axes = _Axes(len(pairs), numbers)
    runs = {"a": [a for _, a, _ in pairs], "b": [b for _, _, b in pairs]}
    alike = [error.noise for error in runs["a"]] == [error.noise for error in runs["b"]]
    allowed = {"both": runs["a"]} if alike else runs
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="error against depth, a point for each value">'
    ]
    parts += [_band(kind, run, axes) for kind, run in allowed.items()]
    parts += _grid(axes, [value.name for value, _, _ in pairs])
    for kind, run in runs.items():
        points = " ".join(f"{axes.x(i)},{axes.y(error.rms)}" for i, error in enumerate(run))
        parts.append(f'<polyline class="line {kind}" points="{points}"/>')
    for i, (value, a, b) in enumerate(pairs):
        number = comparison.values.index(value)
        for j, (kind, error) in enumerate((("a", a), ("b", b))):
            says = html.escape(
                f"{comparison.names[j]}, {value.name}: {error.rms:.3g}, {error.ratio:.3g} times the noise"
            )
            parts.append(
                f'<circle class="point {kind}{" far" if error.far else ""}" cx="{axes.x(i)}" cy="{axes.y(error.rms)}" '
                f'r="3.5" data-value="{number}" data-run="{j}" role="button" aria-label="{says}"><title>{says}</title>'
                "</circle>"
            )
    parts.append("</svg>")
    return f'<div class="wide">{"".join(parts)}</div>' + _legend(comparison.names, list(allowed))


def _band(kind: str, run: Sequence[Error], axes: _Axes) -> str:
    """The area from the noise to the largest error that is allowed."""
    low = [f"{axes.x(i)},{axes.y(error.noise)}" for i, error in enumerate(run)]
    high = [f"{axes.x(i)},{axes.y(MULTIPLE * error.noise)}" for i, error in enumerate(run)]
    return f'<polygon class="allowed {kind}" points="{" ".join([*low, *reversed(high)])}"/>'


def _grid(axes: _Axes, names: Sequence[str]) -> list[str]:
    parts = []
    for power in range(axes.low, axes.high + 1):
        y = axes.y(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">1e{power}</text>')
    starts: dict[int, int] = {}
    for i, name in enumerate(names):
        layer = split_name(name.removeprefix(GRADIENT))[0]
        if layer is not None:
            starts.setdefault(layer, i)
    for count, (layer, i) in enumerate(starts.items()):
        x = axes.x(i)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        if count % math.ceil(len(starts) / LABELS) == 0:
            parts.append(f'<text x="{float(x) + 2:.1f}" y="{HEIGHT - BOTTOM + 14}">layer {layer}</text>')
    return parts


def _legend(names: tuple[str, str], allowed: Sequence[str]) -> str:
    lines = "".join(
        f'<span><i class="{kind}"></i>{html.escape(name)}</span>' for kind, name in zip("ab", names, strict=True)
    )
    bands = "".join(f'<i class="allowed {kind}"></i>' for kind in allowed)
    return (
        f'<p class="soft legend">{lines}<span>{bands}what rounding costs, up to the {MULTIPLE:g} times that are allowed'
        '</span><span><i class="far"></i>further away than rounding explains</span>'
        "Distance from the float64 run, root mean square. Choose a point for its map.</p>"
    )


def _findings(comparison: Comparison) -> str:
    items = [f"<strong>hint:</strong> {html.escape(hint)}" for hint in comparison.hints]
    if comparison.first is not None:
        items += [f"at {html.escape(place(position))}" for position in comparison.first.positions]
    items += [html.escape(note) for note in comparison.notes]
    items += [f"{html.escape(name)} lacks {html.escape(', '.join(lost))}" for name, lost in comparison.missing.items()]
    return "".join(f"<li>{item}</li>" for item in items)


def _table(comparison: Comparison) -> str:
    rows = []
    for i, value in enumerate(comparison.values):
        cells = [value.largest, value.rms, value.relative, max(0.0, 1 - value.cosine), value.ulp_largest, value.ulp_rms]
        for error in (value.a, value.b):
            cells += [math.nan] * 3 if error is None else [error.rms, error.ulp, error.ratio]
        numbers = "".join(f"<td>{cell:.3g}</td>" if math.isfinite(cell) else "<td></td>" for cell in cells)
        kind = f"{value.verdict} first" if value is comparison.first else value.verdict
        rows.append(
            f'<tr class="{kind}"><td><button type="button" data-value="{i}">{html.escape(value.name)}</button></td>'
            f"<td>{value.verdict}</td>{numbers}</tr>"
        )
    a, b = (html.escape(name) for name in comparison.names)
    over = f'<th colspan="2"></th><th colspan="6">{a} to {b}</th>'
    over += "".join(f'<th colspan="3">{name} to the truth</th>' for name in (a, b))
    heads = ["value", "verdict", "largest", "rms", "relative", "1 - cosine", "ulp", "ulp rms"]
    heads += ["rms", "ulp", "/ noise"] * 2
    return f'<tr class="over">{over}</tr><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{"".join(rows)}'


def _runs(comparison: Comparison) -> str:
    """Metadata of both runs side by side, without what would fill pages."""
    runs = [comparison.about[name] for name in comparison.names]
    keys = dict.fromkeys(key for run in runs for key in run if key not in ("weights", "tokens", "config"))
    rows = ""
    for key in keys:
        cells = "".join(f"<td>{html.escape(run.get(key, ''))}</td>" for run in runs)
        rows += f"<tr><th>{html.escape(key)}</th>{cells}</tr>"
    configs = [json.dumps(metadata_object(run, "config"), indent=1, ensure_ascii=False) for run in runs]
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in comparison.names)
    details = "".join(
        f"<details><summary>config of {html.escape(name)}</summary><pre>{html.escape(config)}</pre></details>"
        for name, config in zip(comparison.names, configs, strict=True)
    )
    table = f'<table class="runs"><tr><th></th>{heads}</tr>{rows}</table>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="Runs">{table}</div>{details}'
