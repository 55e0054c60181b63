"""A comparison as a table for the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import click

from longformer.parity.comparison import DIFFERENT, IDENTICAL, NON_FINITE, SUSPICIOUS, Compared, Comparison
from longformer.parity.measure import Error
from longformer.parity.places import Position
from longformer.parity.table import GRADIENT, PARAMETER, split_name

JSON_FORMAT = "longformer-comparison"
JSON_VERSION = 1  # grows where an entry is renamed, or means something else, or goes; a new entry leaves it as it is
MODULES = 12  # wrong modules of which the terminal has a row
COLOURS = {IDENTICAL: "green", "rounding": "green", SUSPICIOUS: "yellow", DIFFERENT: "red", NON_FINITE: "red"}


NAME, ROW = 27, 80  # columns of a value's name, and of a row of the table


def table(comparison: Comparison, *, everything: bool = False) -> str:
    """The verdict, the first value that it is true of, and why; then a row for each value, 80 columns wide.

    The heads are A and B, as the command's help calls the two, because the names of files are often too long.
    """
    lines = [*verdict(comparison), ""]
    lines += [f"{letter}: {name}" for letter, name in zip("AB", comparison.names, strict=True)]
    lines.append(f"{'times the noise':>{ROW}}")
    lines.append(f"{'value':<{NAME}} {'verdict':<10} {'largest':>8} {'relative':>8} {'ulp':>7} {'A':>7} {'B':>7}")
    for value in _shown(comparison, everything):
        if value is None:
            lines.append("...")
            continue
        name = shortened(value.name, ROW)
        if len(name) > NAME:  # in a line of its own: what is cut out of it may be all that tells it from another
            name = f"{name}\n{'':<{NAME}}"
        row = (
            f"{name:<{NAME}} {value.verdict:<10} {value.largest:>8.2g} {value.relative:>8.2g} "
            f"{_number(value.ulp_largest):>7} {_ratio(value.a):>7} {_ratio(value.b):>7}"
        )
        lines.append(click.style(row, fg="red", bold=value is comparison.first) if _wrong(value) else row)
    return "\n".join(lines)


def shortened(name: str, longest: int) -> str:
    """A name in at most ``longest`` characters: beginnings say what it belongs to, and endings which one it is."""
    if len(name) <= longest:
        return name
    front = longest // 3
    return f"{name[:front]}..{name[len(name) - (longest - front - 2) :]}"


def verdict(comparison: Comparison) -> list[str]:
    """The findings in words."""
    lines = [click.style(f"{comparison.verdict}: {summary(comparison)}", fg=COLOURS[comparison.verdict], bold=True)]
    first = comparison.first
    if first is not None:
        lines += [f"  at {place(position)}" for position in first.positions[:3]]
    lines += [f"  hint: {hint}" for hint in comparison.hints]
    lines += [f"  module: {module.sentence}" for module in comparison.modules[:MODULES]]
    if len(comparison.modules) > MODULES:
        lines.append(f"  and {len(comparison.modules) - MODULES} more wrong modules; --json has them all")
    lines += [f"  note: {note}" for note in comparison.notes]
    for name, absent in comparison.missing.items():
        more = ", ..." if len(absent) > 6 else ""
        lines.append(f"  {name} lacks {_values(len(absent))}: {', '.join(absent[:6])}{more}")
    return lines


def summary(comparison: Comparison) -> str:
    """One sentence."""
    a, b = comparison.names
    first, values = comparison.first, _values(len(comparison.values))

    def axes(value: Compared) -> int | None:
        return None if comparison.is_longformer else len(value.shape)

    if comparison.verdict == IDENTICAL:
        return f"{a} and {b} agree in every bit of {values}"
    if first is None:
        worst, left = furthest(comparison), len(comparison.unjudged)
        return (
            f"{a} and {b} differ by no more than rounding in {values}; closest to a limit is {worst.name}"
            f"{''.join(f' ({_how(error, axes(worst))})' for error in [_further(worst)] if error is not None)}"
            f"{f'; {left} more differ and could not be judged' if left else ''}"
        )
    who = " and ".join(comparison.departed)
    if comparison.verdict == NON_FINITE:
        return f"NaN or infinity appears first in {first.name}, in {who}"
    errors = [error for name, error in zip((a, b), (first.a, first.b), strict=True) if name in comparison.departed]
    if not any(errors):
        return f"{a} and {b} have other integers in {first.name}"
    how = _how(max((error for error in errors if error is not None), key=lambda error: error.excess), axes(first))
    alone = len(comparison.departed) == 1
    if comparison.verdict == SUSPICIOUS:
        return f"{who} may depart from the truth in {first.name}, and rounding is not ruled out ({how})"
    return f"{who} {'departs' if alone else 'depart'} from the truth in {first.name} ({how})"


def _values(count: int) -> str:
    return f"{count} value{'' if count == 1 else 's'}"


def _part(part: str, axes: int | None) -> str:
    """A part of a value in words.

    Args:
        axes: how many axes the value has, where nothing is known of their meaning; else None.
    """
    if part == "value":
        return ""
    if part == "number" or axes is None:
        return f" in one {part}"
    if part == "row":
        return f" in one row along axis {axes - 1}"
    if part == "head":
        return " at one index of axis 1"
    return " at one index of axis 1 and one of axis 3" if axes == 4 else f" at one index of axis {axes - 1}"


def _how(error: Error, axes: int | None) -> str:
    """How far, in the part of the value where that says most."""
    part = error.worst
    over_all = "" if part == "value" else f"{error.ratio:.3g} times the noise, and "
    unit = "" if over_all else " the noise"
    return (
        f"{over_all}{error.ratios[part]:.3g} times{unit}{_part(part, axes)}, where {error.limits[part]:.3g} are allowed"
    )


def place(position: Position) -> str:
    """A position in words."""
    parts = []
    for name in ("batch", "head", "token"):
        number = getattr(position, name)
        if number is not None:
            parts.append(f"{name} {number}")
    text = ", ".join(parts) or f"index {list(position.index)}"
    kinds = ", ".join(position.kinds)
    about = " ".join(part for part in (repr(position.text) if position.text is not None else "", kinds) if part)
    difference = "" if math.isnan(position.difference) else f": {position.difference:.3g}"
    return f"{text}{f' ({about})' if about else ''}{difference}"


def _shown(comparison: Comparison, everything: bool) -> list[Compared | None]:
    """All values; or, of many, the results and those around the first divergence, with None where some are left out."""
    values = comparison.values
    if everything or len(values) <= 24:
        return list(values)
    if comparison.first is None:
        keep = {i for i, value in enumerate(values) if value.name.endswith(".output") or not _is_inner(value.name)}
        keep.add(values.index(furthest(comparison)))
    else:
        first = values.index(comparison.first)
        keep = {*range(max(0, first - 4), min(len(values), first + 6)), 0, len(values) - 1}
    shown: list[Compared | None] = []
    for i in sorted(keep):
        if i > 0 and i - 1 not in keep:
            shown.append(None)
        shown.append(values[i])
    return shown if values[-1] is shown[-1] else [*shown, None]


def _is_inner(name: str) -> bool:
    """Whether a value is one of many of its kind: a layer's, or a parameter's gradient."""
    return name.startswith(PARAMETER) or split_name(name.removeprefix(GRADIENT))[0] is not None


def furthest(comparison: Comparison) -> Compared:
    """The value of which a part is furthest from the truth in either run, in multiples of its limit."""
    return max(comparison.values, key=lambda value: _excess(_further(value)))


def _further(value: Compared) -> Error | None:
    """The run's error that is closer to its limit, or beyond it by more."""
    return max((value.a, value.b), key=_excess)


def _wrong(value: Compared) -> bool:
    return value.verdict in (SUSPICIOUS, DIFFERENT, NON_FINITE)


def _excess(error: Error | None) -> float:
    return error.excess if error is not None else 0.0


def _ratio(error: Error | None) -> str:
    return "-" if error is None else _number(error.ratio)


def _number(number: float) -> str:
    """A number in at most seven characters: three digits, or two where it is so large or small that it has a power."""
    three = f"{number:.3g}"
    return three if len(three) <= 7 else f"{number:.2g}"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for JSON, by the schema ``docs/comparison.schema.json``: NaN and infinity are null."""
    first = comparison.first
    return {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "verdict": comparison.verdict,
        "summary": summary(comparison),
        "names": list(comparison.names),
        "first": None if first is None else first.name,
        "departed": list(comparison.departed),
        "hints": comparison.hints,
        "modules": [module.as_json() for module in comparison.modules],
        "notes": comparison.notes,
        "unjudged": comparison.unjudged,
        "missing": comparison.missing,
        "values": [_value(value) for value in comparison.values],
        "about": comparison.about,
    }


def _value(value: Compared) -> dict[str, Any]:
    return {
        "name": value.name,
        "shape": list(value.shape),
        "verdict": value.verdict,
        "largest": _finite(value.largest),
        "rms": _finite(value.rms),
        "relative": _finite(value.relative),
        "cosine": _finite(value.cosine),
        "ulp_largest": _finite(value.ulp_largest),
        "ulp_rms": _finite(value.ulp_rms),
        "a": _error(value.a),
        "b": _error(value.b),
        "positions": [
            {
                "index": list(position.index),
                "difference": _finite(position.difference),
                "batch": position.batch,
                "head": position.head,
                "token": position.token,
                "kinds": list(position.kinds),
                "text": position.text,
            }
            for position in value.positions
        ],
    }


def _error(error: Error | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {
        "largest": _finite(error.largest),
        "rms": _finite(error.rms),
        "ulp": _finite(error.ulp),
        "noise": _finite(error.noise),
        "ratio": _finite(error.ratio),
        "limits": error.limits,
        "ratios": {part: _finite(ratio) for part, ratio in error.ratios.items()},
        "far": error.far,
        "doubtful": error.doubtful,
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def dumps(value: Any) -> str:
    """JSON that every reader takes: no NaN, no infinity."""
    return json.dumps(value, indent=1, allow_nan=False)
