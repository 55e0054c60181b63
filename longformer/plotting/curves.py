"""Curves: error against depth, cost against length, precision against recall, found against place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longformer.errors import DataError, LongformerError
from longformer.files import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from longformer.parity import Comparison

LINES = ("#1b6ca8", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#4a4a4a")


def draw_depth(axes: Axes, comparison: Comparison, *, gradients: bool = False) -> None:
    """Draw how far both runs of a parity comparison are from the truth, value by value, in order of computation.

    A line is each run's root mean square error, an area is what rounding may cost, and a cross is a value that is
    farther off than that. Errors that are 0, or not finite, are left out.

    Args:
        axes: matplotlib axes to draw into.
        comparison: of :func:`longformer.parity.compare` with a truth.
        gradients: draw the gradients instead of the activations.

    Raises:
        LongformerError: no value was measured against a truth.
    """
    from longformer.parity.measure import MULTIPLE
    from longformer.parity.table import GRADIENT, split_name

    values = [
        value
        for value in comparison.values
        if value.a is not None and value.b is not None and value.name.startswith(GRADIENT) == gradients
    ]
    if not values:
        kind = "gradient" if gradients else "activation"
        raise LongformerError(
            f"no {kind} was measured against a truth; give compare() one, and record {kind}s in both runs"
        )
    places = range(len(values))
    noise = [max(value.a.noise, value.b.noise) for value in values if value.a and value.b]
    axes.fill_between(places, noise, [MULTIPLE * x for x in noise], color="#dddddd", label="what rounding may cost")
    for name, side, colour in zip(comparison.names, "ab", LINES, strict=False):
        errors = [getattr(value, side) for value in values]
        rms = [error.rms if math.isfinite(error.rms) and error.rms > 0 else math.nan for error in errors]
        axes.plot(places, rms, color=colour, marker=".", linewidth=1, label=name)
        far = [i for i, error in enumerate(errors) if error.far and not math.isnan(rms[i])]
        axes.plot(far, [rms[i] for i in far], "x", color=colour, markersize=8)
    layers = [split_name(value.name.removeprefix(GRADIENT))[0] for value in values]
    starts = {layer: layers.index(layer) for layer in layers if layer is not None}
    axes.set_xticks(list(starts.values()), [f"layer {layer}" for layer in starts], rotation=45, fontsize=8)
    axes.set(yscale="log", ylabel="distance from float64, rms")
    axes.legend(fontsize=8)


def draw_cost(axes: Axes, report: Mapping[str, Any] | str | Path, quantity: str = "time") -> None:
    """Draw time or memory against the length of the sequence, both on logarithmic scales.

    Args:
        axes: matplotlib axes to draw into.
        report: of ``longformer bench scaling``: the JSON file that it wrote, or what that file holds.
        quantity: "time" of a forward pass in milliseconds, or peak "memory" beside inputs and output in megabytes.

    Raises:
        LongformerError: the quantity is another one, the file cannot be read, or the report lacks the measurement.
    """
    if quantity not in ("time", "memory"):
        raise LongformerError(f'quantity is {quantity!r}; it must be "time" or "memory"')
    values, label, scale = ("seconds", "ms", 1e3) if quantity == "time" else ("bytes", "MB", 1e-6)
    points: dict[str, list[tuple[int, float]]] = {}
    floor = []
    for case in _cases(report):
        length = case["settings"].get("seq_len")
        measured = [result for result in case["results"] if values in result]
        for result in measured if length else ():
            points.setdefault(result["name"], []).append((length, result["median"] * scale))
        if length and quantity == "time" and measured and case["useful_gflop"] and case["matrix_product_gflops"]:
            floor.append((length, case["useful_gflop"] / case["matrix_product_gflops"] * scale))
    if not points:
        raise LongformerError(f"the report has no {quantity} by length; `longformer bench scaling --json` writes one")
    for i, (name, line) in enumerate(points.items()):
        axes.plot(*zip(*line, strict=True), "o-", label=name, color=LINES[i % len(LINES)])
    if floor:
        axes.plot(*zip(*floor, strict=True), "k--", label="the band's arithmetic at matrix-product speed")
    lengths = sorted({length for line in points.values() for length, _ in line})
    axes.set(xlabel="tokens", ylabel=label, yscale="log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def draw_precision_recall(axes: Axes, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draw precision against recall in steps.

    Args:
        axes: matplotlib axes to draw into.
        curves: by name as many recalls as precisions, in [0, 1], the recalls rising.
    """
    for (name, (recall, precision)), colour in zip(curves.items(), LINES, strict=False):
        axes.step(recall, precision, where="post", color=colour, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.05), ylim=(0, 1.05))
    if curves:
        axes.legend(fontsize=8)


def draw_values_by_kind(axes: Axes, with_answer: Sequence[float], without: Sequence[float]) -> None:
    """Draw how often each value for no answer is given to questions with an answer and to those without, in 20 bins.

    Args:
        axes: matplotlib axes to draw into.
        with_answer, without: probabilities of no answer, or scores, of the questions of each kind; either may be empty.
    """
    every = [*with_answer, *without]
    for values, name, colour in ((with_answer, "with an answer", LINES[0]), (without, "without", LINES[1])):
        if values:
            share = [1 / len(values)] * len(values)
            axes.hist(
                values, bins=20, range=(min(every), max(every)), weights=share, alpha=0.5, color=colour, label=name
            )
    axes.set(xlabel="value for no answer", ylabel="share of questions")
    if every:
        axes.legend(fontsize=8)


def _cases(report: Mapping[str, Any] | str | Path) -> list[dict[str, Any]]:
    if isinstance(report, (str, Path)):
        try:
            report = read_json(report)
        except DataError as error:
            raise LongformerError(f"{error}; `longformer bench scaling --json` writes a report") from None
    cases = report.get("cases") if isinstance(report, Mapping) else None
    if not isinstance(cases, list):
        raise LongformerError("this is no report; `longformer bench scaling --json FILE` writes one")
    return cases


def draw_needle(axes: Axes, result: Mapping[str, Any]) -> None:
    """Draw how often each pattern finds the needle, against its place in the document.

    Args:
        axes: matplotlib axes to draw into.
        result: of :func:`longformer.bench.needle.run`, or the contents of its JSON file.
    """
    dashes = ("solid", (0, (6, 3)), (0, (1, 2)))  # so that lines that coincide are all seen
    for (name, shares), colour, dash in zip(result["found"].items(), LINES, dashes, strict=False):
        axes.plot(result["places"], shares, color=colour, linestyle=dash, linewidth=1.8, label=name)
    axes.axvline(result["reach"], color="#999999", linestyle="--", linewidth=1)
    axes.text(result["reach"], 0.02, " the windows' reach", fontsize=8, color="#666666")
    axes.axhline(result["chance"], color="#999999", linestyle=":", linewidth=1)
    axes.text(result["places"][-1], result["chance"], "chance", fontsize=8, color="#666666", ha="right", va="bottom")
    axes.set(xlabel="place of the needle, tokens from the first", ylabel="share found", ylim=(0, 1.05))
    axes.legend()
