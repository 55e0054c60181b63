"""Contenders for one task: first they must agree on its result, then they take turns, round after round.

Any clock of :mod:`longformer.bench.clocks` serves: the CPU's benchmarks and the GPU's take their turns here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

from longformer.bench import machine
from longformer.bench.clocks import Clock, Time, cpu_clock
from longformer.errors import LongformerError

Player = TypeVar("Player")

# Largest difference from the reference, as a share of the reference's largest value. A result in low precision is
# compared with one in float32. After twelve layers 1 % to 3 % is normal for bfloat16. A mistake in the mathematics
# gives a difference of about 1, and in float32 it shows much earlier.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}


class UnavailableError(Exception):
    """A contender cannot take part. The message says why, and the report lists it as missing for that reason."""


class DisagreementError(LongformerError):
    """Two contenders compute different things, so it would mean nothing to compare their speed."""


@dataclass
class Contender:
    """One way to do a task.

    Args:
        name: its name in the report.
        run: what is timed. It returns the tensors that must agree.
        prepare: called before each run, outside its time.
        check: returns the tensors that must agree, if ``run`` does not, as in training with dropout.
        tolerance: used instead of the case's, for a contender that is known to round more.
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
        name: its name in the report.
        settings: shapes, dtype and everything else that defines it, for the JSON.
        dtype: its precision. It sets the tolerance, and the matrix product to compare the speed with.
        builders: name to a function that makes the contender, whose own name may say more. Ours is the first, and any
            failure of it is an error. Another may raise ``UnavailableError``, or RuntimeError in its check, and is then
            listed as missing.
        reference: returns the result in float32; None takes the first contender's result.
        flop: floating-point operations that one run needs; None if they are not counted.
        items: how many of what one run handles, for a rate: ``(4096, "tokens")``.
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
    """What was measured of one contender: seconds or bytes of each round, and its difference from the reference."""

    name: str
    values: list[float]
    difference: float | None = None

    @property
    def median(self) -> float:
        return machine.median(self.values)


@dataclass
class Record:
    """What was measured of a case. ``unit`` is "s" or "B"; ``gflops`` a matrix product's speed in the same rounds."""

    name: str
    settings: dict[str, Any]
    measurements: list[Measurement]
    missing: dict[str, str] = field(default_factory=dict)
    unit: str = "s"
    flop: float | None = None
    gflops: float | None = None
    items: tuple[int, str] = (1, "runs")

    def ratio(self, measurement: Measurement) -> float | None:
        """This contender's median over the first one's; None if the first one's is 0 bytes."""
        first = self.measurements[0].median
        return measurement.median / first if first else None

    def share(self, measurement: Measurement) -> float | None:
        """Speed of the operations that the case needs, as a share of the matrix product's speed."""
        if self.flop is None or self.gflops is None:
            return None
        return self.flop / measurement.median / 1e9 / self.gflops

    def rate(self, measurement: Measurement) -> float | None:
        """Items a second."""
        return self.items[0] / measurement.median if self.unit == "s" and measurement.median else None


def measure(case: Case, rounds: int) -> Record:
    """Build a case's contenders, check that they agree, and time them in turns with a matrix product in its dtype.

    Raises:
        DisagreementError: two results differ by more than the dtype allows.
    """
    contenders, differences, missing = agree(case)
    product = matrix_product(case.dtype)
    seconds = interleave([product, *contenders], rounds)
    return make_record(case, seconds, differences, missing, seconds[product.name])


def make_record(
    case: Case,
    seconds: Mapping[str, list[float]],
    differences: Mapping[str, float],
    missing: dict[str, str],
    product_seconds: list[float],
) -> Record:
    """The record of a case from the seconds of its contenders and of a matrix product, in the same rounds."""
    return Record(
        case.name,
        case.settings,
        [Measurement(name, seconds[name], difference) for name, difference in differences.items()],
        missing,
        flop=case.flop,
        gflops=machine.product_gflop() / machine.median(product_seconds),
        items=case.items,
    )


def matrix_product(dtype: torch.dtype) -> Contender:
    """The machine's matrix product as a contender. It has run once, like those whose results were checked."""
    product = Contender("matrix product", machine.product(dtype))
    product.run()
    return product


def agree(case: Case) -> tuple[list[Contender], dict[str, float], dict[str, str]]:
    """The contenders that can take part, the difference of each from the reference, and why the others cannot.

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
                raise  # ours has failed: a defect, and nothing is left to compare with
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
                f"largest value, and {tolerance:g} is allowed: they do not compute the same, so nothing was timed"
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


def interleave(contenders: Sequence[Contender], rounds: int, clock: Clock = cpu_clock) -> dict[str, list[float]]:
    """Seconds of each contender's runs, by its name. All run once a round."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number, order in turns(contenders, rounds):
        say(f"round {number + 1} of {rounds}")
        for contender in order:
            seconds[contender.name].append(timed(contender, clock).seconds)
    return seconds


def turns(
    players: Sequence[Player], rounds: int, *, warm_up: int = 0, deadline: float = float("inf")
) -> Iterator[tuple[int, tuple[Player, ...]]]:
    """The number of each round, from 0 on, and the order in which everyone takes a turn in it.

    Each round starts with another player. So whatever slows the machine for a while slows everyone alike, and nobody
    always comes after the same other player.

    Args:
        players: everyone who takes turns. The caller may remove some from this list meanwhile.
        warm_up: so many rounds come first, with negative numbers.
        deadline: in seconds of ``time.monotonic``. After it only the first round and those before it begin.
    """
    for number in range(-warm_up, rounds):
        if not players or (number > 0 and time.monotonic() > deadline):
            return
        first = number % len(players)
        yield number, (*players[first:], *players[:first])


def timed(contender: Contender, clock: Clock = cpu_clock) -> Time:
    """Prepare one run, and time it."""
    contender.prepare()
    return clock(contender.run, contender.name)


def one_line(error: BaseException) -> str:
    """An exception's message as one line of at most 200 letters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def say(text: str) -> None:
    """Progress, on standard error."""
    click.echo(text, err=True)
