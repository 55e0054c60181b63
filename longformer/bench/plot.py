"""Pictures of a report: bars for each case, or curves against the length of the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longformer.bench import formats
from longformer.bench.report import Report
from longformer.errors import LongformerError
from longformer.plotting.curves import LINES, draw_cost
from longformer.plotting.figures import write_figure


def require_matplotlib() -> None:
    """Raise LongformerError if matplotlib is not installed. It is called before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise LongformerError("--plot needs matplotlib: pip install matplotlib, or leave --plot out") from None


def draw(report: Report, path: str | Path) -> None:
    """Write the picture. The ending of the path, such as .png, sets its format."""
    figure = _against_length(report) if report.benchmark == "scaling" else _bars(report)
    head = report.head().splitlines()
    figure.suptitle(f"longformer bench {report.benchmark}\n{head[0]}\n{head[2]}", fontsize=9)
    write_figure(path, figure, dpi=150)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _bars(report: Report) -> Any:
    counts = [len(record.measurements) for record in report.records]
    everyone = list(dict.fromkeys(m.name for record in report.records for m in record.measurements))
    figure = _figure(8, 1.2 + sum(0.25 * count + 0.6 for count in counts))
    panels = figure.subplots(len(counts), 1, squeeze=False, height_ratios=[count + 1 for count in counts])[:, 0]
    for axes, record in zip(panels, report.records, strict=True):
        names = [measurement.name for measurement in record.measurements]
        unit = formats.UNITS[record.unit]
        medians = [measurement.median * unit.scale for measurement in record.measurements]
        bars = axes.barh(names, medians, color=[_color(name, everyone) for name in names])
        labels = [f" {formats.ratio(record.ratio(m)) or '?'} x  ({unit.show(m.median)})" for m in record.measurements]
        axes.bar_label(bars, labels, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.set_title(f"{record.name} ({unit.name})", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _against_length(report: Report) -> Any:
    figure = _figure(11, 5)
    time, memory = figure.subplots(1, 2)
    draw_cost(time, report.to_dict(), "time")
    draw_cost(memory, report.to_dict(), "memory")
    time.set_title("time of a forward pass", fontsize=9)
    memory.set_title("peak memory above inputs and output", fontsize=9)
    return figure


def _color(name: str, names: list[str]) -> str:
    return LINES[names.index(name) % len(LINES)]
