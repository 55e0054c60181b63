"""The chart of a page: an SVG of both runs' error against depth."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from longformer.parity.comparison import Compared, Comparison
from longformer.parity.measure import GRADIENTS, MULTIPLE, Error
from longformer.parity.table import GRADIENT, split_name

WIDTH, HEIGHT = 1000, 300
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 24  # margins
LABELS = 12  # layers that are named below the chart, at most


class Axes:
    """Where a value, by its number, and an error, on a logarithmic scale, lie."""

    def __init__(self, count: int, numbers: Sequence[float]) -> None:
        self.low, self.high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
        self.high = max(self.high, self.low + 1)
        self.across = (WIDTH - LEFT - RIGHT) / max(1, count - 1)

    def x(self, i: int) -> str:
        """From the left."""
        return f"{LEFT + i * self.across:.1f}"

    def y(self, number: float) -> str:
        """From the top; what is 0 or not finite lies at an edge."""
        power = self.low if number <= 0 else self.high if not math.isfinite(number) else math.log10(number)
        power = min(max(power, self.low), self.high)
        return f"{TOP + (HEIGHT - TOP - BOTTOM) * (self.high - power) / (self.high - self.low):.1f}"


def chart(values: Sequence[Compared], comparison: Comparison) -> str:
    """Root mean square error of each of ``values`` in both runs, over what rounding may cost, and a legend."""
    pairs = [(value, value.a, value.b) for value in values if value.a is not None and value.b is not None]
    errors = [error for _, a, b in pairs for error in (a, b)]
    factor = MULTIPLE * (GRADIENTS if pairs and pairs[0][0].name.startswith(GRADIENT) else 1.0)
    numbers = [x for error in errors for x in (error.rms, error.noise, factor * error.noise)]
    numbers = [x for x in numbers if math.isfinite(x) and x > 0]
    if not numbers:
        return "<p>No value could be measured against the truth.</p>"
    axes = Axes(len(pairs), numbers)
    runs = {"a": [a for _, a, _ in pairs], "b": [b for _, _, b in pairs]}
    alike = [error.noise for error in runs["a"]] == [error.noise for error in runs["b"]]
    allowed = {"both": runs["a"]} if alike else runs
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="error against depth">']
    parts += [_band(kind, run, factor, axes) for kind, run in allowed.items()]
    parts += _grid(axes, [value.name for value, _, _ in pairs])
    for kind, run in runs.items():
        points = " ".join(f"{axes.x(i)},{axes.y(error.rms)}" for i, error in enumerate(run))
        parts.append(f'<polyline class="line {kind}" points="{points}"/>')
    for i, (value, a, b) in enumerate(pairs):
        number = comparison.values.index(value)
        for j, (kind, error) in enumerate((("a", a), ("b", b))):
            parts.append(
                f'<circle class="point {kind}{" far" if error.far else ""}" cx="{axes.x(i)}" cy="{axes.y(error.rms)}" '
                f'r="3.5" data-value="{number}" data-run="{j}"><title>{html.escape(comparison.names[j])}, '
                f"{html.escape(value.name)}: {error.rms:.3g}, {error.ratio:.3g} times the noise</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts) + _legend(comparison.names, list(allowed), factor)


def _band(kind: str, run: Sequence[Error], factor: float, axes: Axes) -> str:
    """The area from the noise to as many times that as are allowed."""
    low = [f"{axes.x(i)},{axes.y(error.noise)}" for i, error in enumerate(run)]
    high = [f"{axes.x(i)},{axes.y(factor * error.noise)}" for i, error in enumerate(run)]
    return f'<polygon class="allowed {kind}" points="{" ".join([*low, *reversed(high)])}"/>'


def _grid(axes: Axes, names: Sequence[str]) -> list[str]:
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


def _legend(names: tuple[str, str], allowed: Sequence[str], factor: float) -> str:
    lines = "".join(
        f'<span><i class="{kind}"></i>{html.escape(name)}</span>' for kind, name in zip("ab", names, strict=True)
    )
    bands = "".join(f'<i class="allowed {kind}"></i>' for kind in allowed)
    return (
        f'<p class="soft legend">{lines}<span>{bands}what rounding costs, up to the {factor:g} times that are allowed'
        "</span>Distance from the float64 run, root mean square. Click a point for its map.</p>"
    )
