"""How the benchmarks write numbers in tables, pictures and messages. A value that does not exist becomes ``""``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


def seconds(value: float) -> str:
    """A time in seconds: ``"12.3 ms"`` or ``"1.23 s"``."""
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.1f} ms"


def milliseconds(value: float) -> str:
    """A short time in milliseconds, such as a kernel's on a GPU: ``"0.123 ms"``."""
    return f"{value:,.3f} ms"


def megabytes(size: float) -> str:
    """A number of bytes: ``"12.3 MB"``."""
    return f"{size / 1e6:,.1f} MB"


def gigabytes(size: float) -> str:
    """A number of bytes: ``"1.2 GB"``."""
    return f"{size / 1e9:,.1f} GB"


def thousands(count: float) -> str:
    """A whole number: ``"16,384"``."""
    return f"{count:,.0f}"


def ratio(value: float | None) -> str:
    """One contender's time or memory over another's: ``"1.23"``."""
    return "" if value is None else f"{value:,.2f}"


def share(value: float | None) -> str:
    """A part of the whole: ``"45%"``."""
    return "" if value is None else f"{value:.0%}"


def difference(value: float | None) -> str:
    """A distance between two results: ``"1.2e-07"``."""
    return "" if value is None else f"{value:.1e}"


def rate(value: float | None, items: str) -> str:
    """Items in a second: ``"97,420 tokens/s"``, ``"1.53 questions/s"``."""
    return "" if value is None else f"{thousands(value) if value >= 100 else f'{value:.3g}'} {items}/s"


def speeds(by_dtype: Mapping[str, float]) -> str:
    """Speeds of a matrix product, all in GFLOP/s or all in TFLOP/s: ``"float32 433, bfloat16 2,603"``."""
    return ", ".join(f"{dtype} {thousands(speed)}" for dtype, speed in by_dtype.items())


def versions(by_package: Mapping[str, str | None]) -> str:
    """Versions of the packages that are installed: ``"python 3.11.7, torch 2.13.0"``."""
    return ", ".join(f"{package} {version}" for package, version in by_package.items() if version)


class Unit(NamedTuple):
    """For values in seconds or bytes: ``show`` writes one, and an axis shows value · scale in the unit ``name``."""

    show: Callable[[float], str]
    name: str
    scale: float


UNITS = {"s": Unit(seconds, "ms", 1e3), "B": Unit(megabytes, "MB", 1e-6)}
