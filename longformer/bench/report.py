"""A benchmark's result: as JSON with everything that was measured, and as one table for the terminal."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longformer.bench.timing import Measurement, Record
from longformer.errors import DataError


@dataclass
class Report:
    """One run of a benchmark.

    Args:
        benchmark: its name.
        options: what it was asked to do.
        machine: of :func:`longformer.bench.machine.describe`.
        records: what was measured.
        figures: numbers that follow from several records, by what they say.
    """

    benchmark: str
    options: dict[str, Any]
    machine: dict[str, Any]
    records: list[Record]
    figures: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: every single time and peak, with medians, ratios and shares."""
        return {
            "benchmark": self.benchmark,
            "options": self.options,
            "machine": self.machine,
            "figures": self.figures,
            "cases": [_record(record) for record in self.records],
        }

    def write(self, path: str | Path) -> None:
        """Write the JSON."""
        write_json(self.to_dict(), [Path(path)])

    def head(self) -> str:
        """Hardware, versions and speed of matrix products, in lines."""
        versions = ", ".join(f"{name} {version}" for name, version in self.machine["versions"].items() if version)
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in self.machine["matrix_product_gflops"].items())
        lines = [
            f"{self.machine['cpu']} ({self.machine['cpu_capability']}), {self.machine['usable_cores']} cores, "
            f"{self.machine['threads']} threads",
            versions,
            f"matrix product {self.machine['matrix_product']}, GFLOP/s: {speeds}",
        ]
        return "\n".join(lines + [f"{name}: {value:.3f}" for name, value in self.figures.items()])

    def table(self) -> str:
        """One row a contender: median, range, how many times ours it is, rate, share of the product's speed."""
        rows: list[tuple[str, ...] | str] = [("", "median", "from", "to", "x ours", "rate", "of product", "difference")]
        for record in self.records:
            rows.append(record.name)
            rows += [_row(record, measurement) for measurement in record.measurements]
            rows += [f"  {name}  missing: {reason}" for name, reason in record.missing.items()]
        return format_table(rows)


def _record(record: Record) -> dict[str, Any]:
    values = "seconds" if record.unit == "s" else "bytes"
    return {
        "name": record.name,
        "settings": record.settings,
        "useful_gflop": None if record.flop is None else record.flop / 1e9,
        "matrix_product_gflops": record.gflops,
        "items": list(record.items),
        "results": [
            {
                "name": measurement.name,
                values: measurement.values,
                "median": measurement.median,
                "ratio": record.ratio(measurement),
                "rate": record.rate(measurement),
                "share_of_matrix_product": record.share(measurement),
                "difference": measurement.difference,
            }
            for measurement in record.measurements
        ],
        "missing": record.missing,
    }


def _row(record: Record, measurement: Measurement) -> tuple[str, ...]:
    show = seconds if record.unit == "s" else megabytes
    share, rate, ratio = record.share(measurement), record.rate(measurement), record.ratio(measurement)
    return (
        f"  {measurement.name}",
        show(measurement.median),
        show(min(measurement.values)),
        show(max(measurement.values)),
        "" if ratio is None else f"{ratio:.2f}",
        "" if rate is None else f"{rate:,.4g} {record.items[1]}/s",
        "" if share is None else f"{share:.0%}",
        "" if measurement.difference is None else f"{measurement.difference:.0e}",
    )


def seconds(value: float) -> str:
    """``"12.3 ms"`` or ``"4.56 s"``."""
    return f"{value:.2f} s" if value >= 10 else f"{value * 1e3:,.1f} ms"


def megabytes(value: float) -> str:
    """``"12.3 MB"``."""
    return f"{value / 1e6:,.1f} MB"


def format_table(rows: Sequence[tuple[str, ...] | str]) -> str:
    """Rows in columns, the first one to the left, the others to the right; a text is a line of its own."""
    cells = [row for row in rows if isinstance(row, tuple)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in rows:
        if isinstance(row, tuple):
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            row = "  ".join([row[0].ljust(widths[0]), *rest])
        lines.append(row.rstrip())
    return "\n".join(lines)


def check_outputs(*paths: str | None) -> None:
    """Raises DataError where a file cannot be written at one of ``paths``, before hours are spent on what is in it."""
    for path in filter(None, paths):
        folder = Path(path).absolute().parent
        if Path(path).is_dir():
            raise DataError(f"{path} is a folder; give a file to write to")
        if not folder.is_dir():
            raise DataError(f"there is no folder {str(folder)!r} to write {Path(path).name} into; make it first")


def write_json(values: dict[str, Any], paths: Sequence[Path]) -> None:
    """The JSON, a number that is not finite as a text. Each file is whole at any time: what it was, or this."""
    text = json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"
    for path in paths:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing to be replaced
            path.write_text(text, encoding="utf-8")
            continue
        path = path.resolve()  # a link stays one
        new = path.with_name(f".{path.name}.new")
        try:
            new.write_text(text, encoding="utf-8")
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _finite(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
