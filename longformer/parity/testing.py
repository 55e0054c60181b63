"""For tests: assertions whose messages say where two computations differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from longformer.errors import DataError, listed
from longformer.parity.comparison import DIFFERENT, NON_FINITE, compare
from longformer.parity.format import Trace
from longformer.parity.measure import MULTIPLE, measure, spacing
from longformer.parity.noise import Moved, row_mean_square
from longformer.parity.operations import round_by_chance
from longformer.parity.report import table
from longformer.parity.rounding import MORE_RUNS, Truth, stochastic_rounding

UNITS = 5.0  # in the last place: how far the actual value may be off without a truth
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
    counts as the truth, and ``actual`` may be off by UNITS units in the last place of its precision. That is right
    for single operations, but not for what has gone through layers. Infinity must be in all at the same place. NaN is
    refused everywhere.

    Tensors may be numpy arrays.

    Raises:
        AssertionError: they do not agree; the message names the value, the place and the size.
        DataError: the truth lacks a value.
        TypeError: something is not floating point, or the truth is not float64.
    """
    if isinstance(actual, Trace) and isinstance(expected, Trace) and isinstance(truth, Truth):
        result = compare(actual, expected, truth=truth, names=("actual", "expected"))
        if result.verdict in (DIFFERENT, NON_FINITE):
            raise AssertionError(click.unstyle(table(result)))
        return
    if isinstance(truth, Truth):
        raise TypeError("a Truth judges traces; give two of them, or tensors and a float64 tensor")
    ours, theirs = _named(actual, "actual"), _named(expected, "expected")
    true = None if truth is None else _named(truth, "the truth")
    coarse = [name for name, x in (true or {}).items() if x.dtype != torch.float64]
    if true is not None and coarse:
        kind = str(true[coarse[0]].dtype).removeprefix("torch.")
        raise TypeError(
            f"the truth is {kind} in {listed(coarse)}; it must be float64, since it has to be right where float32 is "
            "not: compute it from arguments in float64"
        )
    if ours.keys() != theirs.keys():
        raise AssertionError(f"values differ: {sorted(ours.keys() ^ theirs.keys())} are in one of the two only")
    lacking = [name for name in ours if true is not None and name not in true]
    if lacking:
        raise DataError(
            f"the truth lacks {listed(lacking)}, so that nothing can judge it; the truth has {listed(list(true or {}))}"
        )
    for name in ours:  # in the given order, which in a trace is that of computation
        _assert_tensor(name, ours[name], theirs[name], None if true is None else true[name], factor)


def _named(given: Any, what: str) -> Mapping[str, Tensor]:
    """Tensors by name. Raises TypeError where there is something that is not floating point."""
    if not isinstance(given, Mapping):
        return {"value": _floating(what, given)}
    if isinstance(given, Trace):  # read one value at a time
        return given
    return {name: _floating(f"{what}[{name!r}]", x) for name, x in given.items()}


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
        if not bool((units <= UNITS).all()):
            raise AssertionError(
                f"{name}: {_where(units)} differs by {float(off.flatten()[units.argmax()]):.3g}, "
                f"{float(units.max()):.3g} units in the last place of {str(coarse).removeprefix('torch.')}, where "
                f"{UNITS:g} are allowed; a truth in float64 would allow what rounding must cost"
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
    actual: Tensor | np.ndarray[Any, Any],
    function: Callable[..., Tensor],
    *arguments: Any,
    multiple: float = MULTIPLE,
    runs: int = MORE_RUNS,
    **keywords: Any,
) -> None:
    """Assert that ``actual`` is ``function(*arguments, **keywords)`` up to what rounding of its precision must cost.

    The truth is ``function`` of the arguments in float64. What rounding costs is how far this result moves when every
    operation in ``function`` is rounded up or down by chance, and sums have the error of adding their terms one after
    another, see :func:`longformer.parity.rounding.stochastic_rounding`.

        assert_within_rounding(fast_softmax(x), torch.softmax, x, dim=-1)

    Args:
        actual: a tensor or an array, in the precision that is judged.
        function: the right formula, in plain torch.
        arguments, keywords: its arguments, from which ``actual`` was computed. Arrays are given to it as tensors.
        multiple: how many times this noise is allowed over the whole value; the limits for a row, a channel and a
            number are in proportion.
        runs: how often it is computed with rounding.

    Raises:
        AssertionError: it is further; the message says by how much and where.
        TypeError: ``actual`` is not floating point, or ``function`` does not give a tensor.
    """
    actual = _floating("actual", actual)

    def wide(x: Any) -> Any:
        x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        return x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x

    generator = torch.Generator().manual_seed(0)

    def rounded(x: Any) -> Any:
        is_number = isinstance(x, Tensor) and x.is_floating_point()
        return round_by_chance(x, actual.dtype, generator) if is_number else x

    given, named = [wide(x) for x in arguments], {name: wide(x) for name, x in keywords.items()}
    moved = Moved()
    with torch.no_grad():
        truth = function(*given, **named)
        if not isinstance(truth, Tensor):
            raise TypeError(f"function gives a {type(truth).__name__}; it must give one tensor")
        truth = truth.double()
        _check_shape("actual", actual, truth)
        infinite = ~torch.isfinite(truth)
        result, truth = _finite("actual", actual.detach(), {"the truth": truth})
        for _ in range(runs):
            inputs = [rounded(x) for x in given], {name: rounded(x) for name, x in named.items()}
            with stochastic_rounding(actual.dtype, generator):
                once = function(*inputs[0], **inputs[1])
            moved.add(once.masked_fill(infinite, 0) - truth)
    if not truth.numel():
        return
    noise = moved.noise()
    if not math.isfinite(float(noise.mean())):
        raise AssertionError("with rounding, the function is not finite: nothing can be judged")
    off = result.double() - truth
    error = measure(result.double(), truth, noise, actual.dtype)
    allowed = error.limits[error.worst] * multiple / MULTIPLE
    if not error.ratios[error.worst] <= allowed:
        part = "" if error.worst == "value" else f", and {error.ratios[error.worst]:.3g} times in one {error.worst}"
        raise AssertionError(
            f"actual is {error.rms:.3g} from the truth, {error.ratio:.3g} times what rounding costs "
            f"({error.noise:.3g}){part}, where {allowed:.3g} are allowed. "
            f"Largest at {_where(off.abs())}: {error.largest:.3g}"
        )


def _floating(name: str, x: Any) -> Tensor:
    """``x`` as a tensor. Raises TypeError where it is none, or holds no floating-point numbers."""
    tensor = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; give a tensor or a numpy array")
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name} is {kind}, which is not rounded; compare such values with torch.equal")
    return tensor.cpu()


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
