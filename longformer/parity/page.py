"""A comparison as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import html
import json
import math
import re
from importlib.resources import files
from typing import Any

import torch

from longformer.files import write_text
from longformer.parity.chart import chart
from longformer.parity.comparison import Compared, Comparison
from longformer.parity.contest import Contest
from longformer.parity.format import metadata_object
from longformer.parity.measure import row_ratios
from longformer.parity.report import furthest, place, summary
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, PROBABILITIES, split_name

BINS = 512  # columns of a heat map: with more tokens, neighbours share one, and the worst of them is shown
EXAMPLES = 8  # of a batch
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWEST, STEPS = -1.0, 6  # level 0 is a tenth of the noise; this many levels are a factor of ten


def write_page(path: str, contest: Contest) -> None:
    """Write the page, whole or not at all. Raises DataError where that fails."""
    write_text(path, page(contest))


def page(contest: Contest) -> str:
    """The page's text."""
    comparison = contest.comparison
    activations = [value for value in comparison.values if not value.name.startswith(GRADIENT)]
    gradients = [value for value in comparison.values if _is_of_activation(value.name)]
    charts = chart(activations, comparison)
    if gradients:
        charts += f"<h2>Error of gradients, from the last layer to the first</h2>{chart(gradients, comparison)}"
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
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], template)  # in one go: a part may hold such a mark


def _is_of_activation(name: str) -> bool:
    return name.startswith(GRADIENT) and not name.startswith(PARAMETER)


def _data(contest: Contest) -> dict[str, Any]:
    """What the page's script draws maps and text from."""
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
    """JSON inside a script element: a document's own ``</script>`` must not end it."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _heat(value: Compared, contest: Contest) -> list[list[list[str]]] | None:
    """For each run and example, a string a head: a character a token, how many times the noise its error is."""
    truth, part = contest.truth, split_name(value.name.removeprefix(GRADIENT))[1]
    by_token = len(value.shape) in (3, 4) and part not in (GLOBAL_ROWS, PROBABILITIES[2])
    if not by_token or value.name.startswith(PARAMETER) or value.name not in truth.trace:
        return None
    true = truth.trace[value.name]
    maps = []
    for trace in (contest.a, contest.b):
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
            f'<tr class="{kind}" data-value="{i}"><td>{html.escape(value.name)}</td><td>{value.verdict}</td>'
            f"{numbers}</tr>"
        )
    a, b = (html.escape(name) for name in comparison.names)
    over = f'<th colspan="2"></th><th colspan="6">{a} to {b}</th>'
    over += "".join(f'<th colspan="3">{name} to the truth</th>' for name in (a, b))
    heads = ["value", "verdict", "largest", "rms", "relative", "1 - cosine", "ulp", "ulp rms"]
    heads += ["rms", "ulp", "/ noise"] * 2
    return f'<tr class="over">{over}</tr><tr>{"".join(f"<th>{head}</th>" for head in heads)}</tr>{"".join(rows)}'


def _runs(comparison: Comparison) -> str:
    """Metadata of both runs side by side, less what would fill pages."""
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
    return f'<div class="wide"><table class="runs"><tr><th></th>{heads}</tr>{rows}</table></div>{details}'
