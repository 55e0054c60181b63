"""For tests: assertions whose messages say where two computations differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import click
import torch
from torch import Tensor

from longformer.errors import DataError, listed
from longformer.parity.comparison import DIFFERENT, NON_FINITE, compare
from longformer.parity.format import Trace
from longformer.parity.measure import MULTIPLE, ROW_MULTIPLE, row_ratios, spacing
from longformer.parity.report import table
from longformer.parity.rounding import RUNS, Truth, row_mean_square

FACTOR = 2.0  # how many times further from the truth than the expected value the actual one may be


def assert_parity(
    actual: Trace | Mapping[str, Tensor] | Tensor,
    expected: Trace | Mapping[str, Tensor] | Tensor,
    truth: Truth | Mapping[str, Tensor] | Tensor | None = None,
    *,
    factor: float = FACTOR,
) -> None:
    """Assert that two computations agree up to rounding.

    With traces and a :class:`Truth` this is :func:`compare`, and the message is its report. With tensors, or mappings
    of tensors, the truth is a float64 result. Then ``actual`` may be ``factor`` times as far from it as ``expected``
    is, root mean square over the whole value, and in any row eight times as far as that. Without a truth, ``expected``
    counts as the truth, and ``actual`` may be off by MULTIPLE units in the last place of its precision. That is right
    for single operations, but not for what has gone through layers. Infinity must be in all at the same place. NaN is
    refused everywhere.

    Raises:
        AssertionError: they do not agree; the message names the value, the place and the size.
        DataError: the truth lacks a value.
    """
    if isinstance(actual, Trace) and isinstance(expected, Trace) and isinstance(truth, Truth):
        result = compare(actual, expected, truth=truth, names=("actual", "expected"))
        if result.verdict in (DIFFERENT, NON_FINITE):
            raise AssertionError(click.unstyle(table(result)))
        return
    if isinstance(truth, Truth):
        raise TypeError("a Truth judges traces; give two of them, or tensors and a float64 tensor")
    ours, theirs = _named(actual), _named(expected)
    true = None if truth is None else _named(truth)
    if ours.keys() != theirs.keys():
        raise AssertionError(f"values differ: {sorted(ours.keys() ^ theirs.keys())} are in one of the two only")
    lacking = [name for name in ours if true is not None and name not in true]
    if lacking:
        raise DataError(
            f"the truth lacks {listed(lacking)}, so that nothing can judge it; the truth has {listed(list(true or {}))}"
        )
    for name in ours:  # in the given order, which in a trace is that of computation
        _assert_tensor(name, ours[name], theirs[name], None if true is None else true[name], factor)


def _named(given: Mapping[str, Tensor] | Tensor) -> Mapping[str, Tensor]:
    return {"value": given} if isinstance(given, Tensor) else given


def _assert_tensor(name: str, actual: Tensor, expected: Tensor, truth: Tensor | None, factor: float) -> None:
    _check_shape(name, actual, expected)
    if truth is not None:
        _check_shape(name, actual, truth)
    others = {"expected": expected} if truth is None else {"expected": expected, "the truth": truth}
    actual, expected, *rest = _finite(name, actual, others)
    if not actual.numel():
        return
    if truth is None:
        coarse = max(actual.dtype, expected.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        off = (actual.double() - expected.double()).abs()
        units = off / spacing(expected.double(), coarse)
        if not bool((units <= MULTIPLE).all()):
            raise AssertionError(
                f"{name}: {_where(units)} differs by {float(off.flatten()[units.argmax()]):.3g}, "
                f"{float(units.max()):.3g} units in the last place of {str(coarse).removeprefix('torch.')}, where "
                f"{MULTIPLE:g} are allowed; a truth in float64 would allow what rounding must cost"
            )
        return
    truth = rest[0]
    ours, theirs = actual.double() - truth.double(), expected.double() - truth.double()
    # Any result is off by at least one rounding. An expected one that happens to be exact measures nothing.
    least = spacing(truth.double(), actual.dtype).square().mean() / 12
    allowed = factor * float((theirs.square().mean() + least).sqrt())
    if not _rms(ours) <= allowed:
        raise AssertionError(
            f"{name}: actual is {_rms(ours):.3g} from the truth, expected {_rms(theirs):.3g}; "
            f"{allowed:.3g} is allowed. Largest at {_where(ours.abs())}: {float(ours.abs().max()):.3g}"
        )
    rows = row_mean_square(ours).sqrt()
    if not float(rows.max()) <= 8 * max(allowed, factor * float(row_mean_square(theirs).sqrt().max())):
        raise AssertionError(
            f"{name}: one row of actual is far from the truth, {float(rows.max()):.3g} where all are "
            f"{_rms(ours):.3g} on average; largest at {_where(ours.abs())}"
        )


def assert_within_rounding(
    actual: Tensor, function: Callable[..., Tensor], *arguments: Any, multiple: float = MULTIPLE, runs: int = RUNS
) -> None:
    """Assert that ``actual`` is ``function(*arguments)`` up to what rounding of its precision must cost.

    The truth is ``function`` of the arguments in float64. What rounding costs is how far this result moves when every
    floating-point tensor among the arguments is moved by up to a unit in the last place of ``actual``'s precision.

        assert_within_rounding(fast_softmax(x), torch.softmax, x, -1)

    Args:
        actual: in the precision that is judged.
        function: the right formula, in plain torch.
        arguments: its arguments, from which ``actual`` was computed.
        multiple: how many times this noise is allowed over the whole value; in a row (the last axis) about three times
            as many.
        runs: how often the arguments are moved.

    Raises:
        AssertionError: it is further; the message says by how much and where.
    """

    def wide(x: Any) -> Any:
        return x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x

    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(actual.dtype).eps

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x * (1 + torch.empty(x.shape, dtype=x.dtype).uniform_(-eps, eps, generator=generator).to(x.device))

    doubles = [wide(x) for x in arguments]
    with torch.no_grad():
        truth = function(*doubles)
        _check_shape("actual", actual, truth)
        infinite = ~torch.isfinite(truth)
        result, truth = _finite("actual", actual.detach(), {"the truth": truth})
        moves = [function(*(moved(x) for x in doubles)).masked_fill(infinite, 0) - truth for _ in range(runs)]
    # The result itself is rounded once. A function that does not move, such as a maximum of equal numbers, lacks that.
    own = row_mean_square(spacing(truth, actual.dtype)) / 12
    noise = own + torch.stack([row_mean_square(move) for move in moves]).mean(dim=0)
    off = result.double() - truth
    expected = float(noise.mean().sqrt()) if noise.numel() else 0.0
    if not math.isfinite(expected):
        raise AssertionError(
            "when its arguments are moved by one rounding, the function is not finite: nothing can be judged"
        )
    ratio = _rms(off) / expected if expected else (math.inf if _rms(off) else 0.0)
    row_ratio = float(row_ratios(off, truth, noise).max()) if off.numel() else 0.0
    in_row = multiple * ROW_MULTIPLE / MULTIPLE
    if not (ratio <= multiple and row_ratio <= in_row):
        raise AssertionError(
            f"actual is {_rms(off):.3g} from the truth, {ratio:.3g} times what rounding costs ({expected:.3g}), and in "
            f"one row {row_ratio:.3g} times, where {multiple:g} and {in_row:g} are allowed. "
            f"Largest at {_where(off.abs())}: {float(off.abs().max()):.3g}"
        )


def _check_shape(name: str, x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise AssertionError(f"{name} has shape {tuple(x.shape)}, and {tuple(y.shape)} was expected")


def _finite(name: str, actual: Tensor, others: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors, with 0 where all have the same infinity. Raises AssertionError for others that are not finite."""
    tensors = [actual, *others.values()]
    infinite = torch.stack([~torch.isfinite(x) for x in tensors]).any(dim=0)
    same = torch.stack([x == actual for x in tensors]).all(dim=0)  # NaN equals nothing
    bad = infinite & ~same
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        rest = ", ".join(f"{other} {float(x[place])}" for other, x in others.items())
        raise AssertionError(f"{name}{list(place)} is {float(actual[place])}, {rest}; {int(bad.sum())} are not finite")
    return [x.masked_fill(infinite, 0) for x in tensors]


def _where(size: Tensor) -> str:
    return str([int(i) for i in torch.unravel_index(size.flatten().argmax(), size.shape)])


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
