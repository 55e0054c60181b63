"""The result of a benchmark: JSON with everything that was measured, and one table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longformer import files
from longformer.bench import formats
from longformer.bench.timing import Measurement, Record


@dataclass
class Report:
    """One run of a benchmark.

    Args:
        benchmark: its name.
        options: what it was asked to do.
        machine: what :func:`longformer.bench.machine.describe` returned.
        records: what was measured.
        figures: numbers that follow from several records, each under what it says.
    """

    benchmark: str
    options: dict[str, Any]
    machine: dict[str, Any]
    records: list[Record]
    figures: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As plain values: every single time and peak, with medians, ratios and shares."""
        return {
            "benchmark": self.benchmark,
            "options": self.options,
            "machine": self.machine,
            "figures": self.figures,
            "cases": [_record(record) for record in self.records],
        }

    def write(self, path: str | Path) -> None:
        """Write the JSON."""
        write_json(self.to_dict(), path)

    def head(self) -> str:
        """Hardware, versions, speed of matrix products, and figures, one a line."""
        lines = [
            f"{self.machine['cpu']} ({self.machine['cpu_capability']}), {self.machine['usable_cores']} cores, "
            f"{self.machine['threads']} threads",
            formats.versions(self.machine["versions"]),
            f"matrix product {self.machine['matrix_product']}, GFLOP/s: "
            f"{formats.speeds(self.machine['matrix_product_gflops'])}",
        ]
        return "\n".join(lines + [f"{name}: {value:.3f}" for name, value in self.figures.items()])

    def table(self, records: Sequence[Record] | None = None) -> str:
        """One row for each contender: its times or peaks, and how they compare with ours and with a matrix product.

        Args:
            records: those to show; all if not given.
        """
        rows: list[tuple[str, ...] | str] = [("", "median", "from", "to", "x ours", "rate", "of product", "difference")]
        for record in self.records if records is None else records:
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
    show = formats.UNITS[record.unit].show
    return (
        f"  {measurement.name}",
        show(measurement.median),
        show(min(measurement.values)),
        show(max(measurement.values)),
        formats.ratio(record.ratio(measurement)),
        formats.rate(record.rate(measurement), record.items[1]),
        formats.share(record.share(measurement)),
        formats.difference(measurement.difference),
    )


def format_table(rows: Sequence[tuple[str, ...] | str]) -> str:
    """Lines with the rows' cells in columns. The first column is set to the left, the others to the right.

    A row that is a text becomes a line of its own.
    """
    cells = [row for row in rows if isinstance(row, tuple)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in rows:
        if isinstance(row, tuple):
            rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            row = "  ".join([row[0].ljust(widths[0]), *rest])
        lines.append(row.rstrip())
    return "\n".join(lines)


def write_json(values: dict[str, Any], path: str | Path) -> None:
    """Write JSON in which numbers that are not finite are texts. At any time the file is whole, the old or the new."""
    files.write_json(path, _finite(values))


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _finite(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(value) for value in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x
