"""Contenders at one task: first they must agree on its result, then they take turns, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import torch
from torch import Tensor

from longformer.bench import machine
from longformer.errors import LongformerError

# Largest difference from the reference, as a share of the reference's largest value. A result in low precision is
# compared with one in float32: after twelve layers 1 % to 3 % is ordinary for bfloat16, while a mistake in the
# mathematics gives differences of order 1, and shows in float32 long before.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}


class UnavailableError(Exception):
    """A contender cannot take part; says why. It is listed as missing, with that reason."""


class DisagreementError(LongformerError):
    """Two contenders compute different things, so that comparing their speed would mean nothing."""


@dataclass
class Contender:
    """One way to do a task.

    Args:
        name: as the report calls it.
        run: what is timed; gives the tensors that must agree.
        prepare: done before each run, untimed.
        check: gives the tensors that must agree where ``run`` does not, as in training with dropout.
        tolerance: instead of the case's, where this one is known to round more.
    """

    name: str
    run: Callable[[], Sequence[Tensor]]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[], Sequence[Tensor]] | None = None
    tolerance: float | None = None


@dataclass
class Case:
    """One task.

    Args:
        name: as the report calls it.
        settings: shapes, dtype and whatever else defines it, for the JSON.
        dtype: its precision, which sets the tolerance and the matrix product that it is measured by.
        builders: name to what makes the contender, whose own name may say more; ours first, and in it any defect is
            an error. Another may raise ``UnavailableError``, or RuntimeError in its check, and is listed as missing.
        reference: gives the result in float32; None takes the first contender's.
        flop: useful arithmetic of one run, in floating-point operations; None if it is not counted.
        items: how many of what one run does, for a rate: ``(4096, "tokens")``.
    """

    name: str
    settings: dict[str, Any]
    dtype: torch.dtype
    builders: Mapping[str, Callable[[], Contender]]
    reference: Callable[[], Sequence[Tensor]] | None = None
    flop: float | None = None
    items: tuple[int, str] = (1, "runs")


@dataclass
class Measurement:
    """What was measured of one contender: seconds or bytes, round by round, and its difference from the reference."""

    name: str
    values: list[float]
    difference: float | None = None

    @property
    def median(self) -> float:
        return machine.median(self.values)


@dataclass
class Record:
    """What was measured of a case. ``unit`` is "s" or "B"; ``gflops`` the matrix product's speed in the same rounds."""

    name: str
    settings: dict[str, Any]
    measurements: list[Measurement]
    missing: dict[str, str] = field(default_factory=dict)
    unit: str = "s"
    flop: float | None = None
    gflops: float | None = None
    items: tuple[int, str] = (1, "runs")

    def ratio(self, measurement: Measurement) -> float | None:
        """How many times the first contender's median this one's is; None where that is 0 bytes."""
        first = self.measurements[0].median
        return measurement.median / first if first else None

    def share(self, measurement: Measurement) -> float | None:
        """Useful arithmetic over time, as a share of the matrix product's speed."""
        if self.flop is None or self.gflops is None:
            return None
        return self.flop / measurement.median / 1e9 / self.gflops

    def rate(self, measurement: Measurement) -> float | None:
        """Items a second."""
        return self.items[0] / measurement.median if self.unit == "s" and measurement.median else None


def measure(case: Case, rounds: int) -> Record:
    """Build a case's contenders, check that they agree, and time them in turns with a matrix product of its dtype.

    Raises:
        DisagreementError: two results differ by more than the dtype allows.
    """
    contenders, differences, missing = agree(case)
    product = matrix_product(case.dtype)
    seconds = interleave([product, *contenders], rounds)
    return Record(
        case.name,
        case.settings,
        [Measurement(c.name, seconds[c.name], differences[c.name]) for c in contenders],
        missing,
        flop=case.flop,
        gflops=machine.product_gflop() / machine.median(seconds[product.name]),
        items=case.items,
    )


def matrix_product(dtype: torch.dtype) -> Contender:
    """The machine's matrix product as a contender that has run once, like those whose results were checked."""
    product = Contender("matrix product", machine.product(dtype))
    product.run()
    return product


def agree(case: Case) -> tuple[list[Contender], dict[str, float], dict[str, str]]:
    """Contenders that can take part, each one's difference from the reference, and why the others cannot.

    Raises:
        DisagreementError: a result differs by more than the dtype allows.
    """
    contenders: list[Contender] = []
    differences: dict[str, float] = {}
    missing: dict[str, str] = {}
    reference = None if case.reference is None else [t.detach() for t in case.reference()]
    for name, build in case.builders.items():
        say(f"{case.name}: {name}: checking its result")
        try:
            contender = build()
            contender.prepare()
            result = (contender.check or contender.run)()
        except (UnavailableError, RuntimeError) as error:
            if not contenders:
                raise  # ours: nothing to compare with, and a defect
            missing[name] = one_line(error)
            say(f"{case.name}: {name}: missing: {missing[name]}")
            continue
        if reference is None:
            reference = [t.detach().clone() for t in result]
        difference = _difference(result, reference, case.name, name)
        tolerance = TOLERANCE[case.dtype] if contender.tolerance is None else contender.tolerance
        if difference > tolerance:
            raise DisagreementError(
                f"{case.name}: the result of {name} differs from the reference by {difference:.2g} of its "
                f"largest value, where {tolerance:g} is allowed: they do not compute the same, so nothing was timed"
            )
        contenders.append(contender)
        differences[contender.name] = difference
    return contenders, differences, missing


def _difference(result: Sequence[Tensor], reference: Sequence[Tensor], case: str, name: str) -> float:
    """Largest difference over all tensors, each as a share of its reference's largest value. NaN counts as infinite."""
    shapes, wanted = ([tuple(t.shape) for t in tensors] for tensors in (result, reference))
    if shapes != wanted:
        raise DisagreementError(f"{case}: the result of {name} has shapes {shapes}, the reference {wanted}")
    shares = []
    for found, exact in zip(result, reference, strict=True):
        wide = torch.promote_types(torch.promote_types(found.dtype, exact.dtype), torch.float32)
        largest = exact.to(wide).abs().max().clamp(min=torch.finfo(wide).tiny)
        distance = (found.detach().to(wide) - exact.to(wide)).abs().max() / largest
        shares.append(float(distance.nan_to_num(float("inf"))))
    return max(shares)


def interleave(contenders: Sequence[Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender's runs. All run once a round, each round starting with another of them.

    Whatever slows the machine for a while slows all alike, and nobody always follows the same one.
    """
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            seconds[contender.name].append(timed(contender))
    return seconds


def timed(contender: Contender) -> float:
    """Seconds of one run."""
    contender.prepare()
    start = time.perf_counter()
    result = contender.run()
    elapsed = time.perf_counter() - start
    del result  # freed after the clock has stopped, and before the next one starts
    return elapsed


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of bearable length."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def say(text: str) -> None:
    """Progress, on standard error."""
    click.echo(text, err=True)
