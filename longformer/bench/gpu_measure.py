"""One problem of ``bench gpu``: all contenders are built and checked, then their passes are timed in turns.

Each contender runs on several sets of inputs in turn, so that no run finds its inputs in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from longformer.bench import rivals
from longformer.bench.attention import our_attention
from longformer.bench.clocks import Clock
from longformer.bench.gpu_checks import ALLOWED, Build, check_ours, distance, results_of
from longformer.bench.gpu_device import products
from longformer.bench.problem import Inputs, Problem, make_inputs
from longformer.bench.timing import Contender, DisagreementError, one_line, timed, turns

IMPL = "triton"  # ours is this alone, and nothing to fall back on
SETS = 3  # of inputs
WARM_UP = 3  # rounds that do not count
OURS, INDEXED = "longformer", "longformer, index given"


def _ours(problem: Problem, inputs: Inputs, *, index_given: bool = False) -> rivals.Attention:
    return our_attention(problem, inputs, IMPL, index_given=index_given)


CONTENDERS: dict[str, Build] = {
    OURS: _ours,
    INDEXED: partial(_ours, index_given=True),
    "FlexAttention, compiled": rivals.flex_attention,
    "flash-attention": rivals.flash_attention,
    "transformers": rivals.transformers_attention,
}


@dataclass
class Result:
    """What was measured of one contender at one problem.

    Args:
        products: how our kernels multiply. It decides how ``difference`` is measured, see ``gpu_checks.ALLOWED``.
        forward, backward: seconds of each run.
        waited: in some run the GPU waited for the host, and that time is in the figures.
        difference: its distance from ours, and for ours its distance from float64.
        missing: why there are no figures.
        disagrees: it has no figures because its result differs from ours.
    """

    problem: Problem
    name: str
    products: str
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    waited: bool = False
    difference: float | None = None
    missing: str | None = None
    disagrees: bool = False


class _Running:
    """A contender that is ready to be timed: built for each set of inputs, and run once on each."""

    def __init__(self, result: Result, built: Sequence[rivals.Attention], sets: Sequence[Inputs]) -> None:
        self.result = result
        self.passes = [self._make_passes(one, inputs) for one, inputs in zip(built, sets, strict=True)]

    def _make_passes(self, attention: rivals.Attention, inputs: Inputs) -> tuple[Contender, Contender]:
        """The forward pass, and the backward pass of an output that is made here."""
        attention.prepare()
        out = attention.forward()
        backward = partial(torch.autograd.grad, out, inputs.leaves, inputs.grad, retain_graph=True)
        return (
            Contender(f"{self.result.name} forward", lambda: [attention.forward()], attention.prepare),
            Contender(f"{self.result.name} backward", backward),
        )

    def time(self, number: int, clock: Clock) -> None:
        """Time one forward and one backward pass. They count if ``number`` is 0 or more."""
        forward, backward = self.passes[number % SETS]
        with torch.no_grad():
            of_forward = timed(forward, clock)
        of_backward = timed(backward, clock)
        if number >= 0:
            self.result.forward.append(of_forward.seconds)
            self.result.backward.append(of_backward.seconds)
            self.result.waited |= of_forward.waited or of_backward.waited

    def leave(self, why: str) -> None:
        """Take no further part, and hold no memory."""
        self.result.missing = why
        self.result.forward, self.result.backward, self.passes = [], [], []


def measure(
    problem: Problem,
    device: torch.device | str,
    rounds: int,
    clock: Clock,
    contenders: dict[str, Build] | None = None,
    deadline: float = float("inf"),
) -> list[Result]:
    """Check all contenders at one problem, then time them. If memory runs out for ours, the last rival makes room.

    Args:
        deadline: in seconds of ``time.monotonic``. After it no contender is built, and no second round begins.

    Raises:
        Exception: whatever stopped ours. A rival that fails is listed as missing.
    """
    sets = [make_inputs(problem, backward=True, device=device, seed=seed) for seed in range(SETS)]
    kind = products(sets[0].local[0])
    found: list[Result] = []
    running: list[_Running] = []
    exact: list[Tensor] | None = None
    for name, build in (contenders or CONTENDERS).items():
        if name == INDEXED and not problem.global_tokens:
            continue
        result = Result(problem, name, kind)
        found.append(result)
        if time.monotonic() > deadline:
            result.missing = "no time was left"
            continue
        try:
            built = [build(problem, inputs) for inputs in sets]
            outcome = results_of(built[0], sets[0])
            if exact is None:
                result.difference = check_ours(build, problem, device, kind)
                exact = outcome
            else:
                result.difference = distance(outcome, exact, kind)
                if result.difference > 2 * ALLOWED[kind]:
                    raise DisagreementError(f"differs from ours by {result.difference:.2g}: not timed")
            running.append(_Running(result, built, sets))
        except Exception as error:  # whatever a compiler or a library raises
            if name in (OURS, INDEXED) or not running:
                raise
            result.missing, result.disagrees = one_line(error), isinstance(error, DisagreementError)
    _take_turns(running, rounds, clock, deadline)
    return found


def _take_turns(running: list[_Running], rounds: int, clock: Clock, deadline: float) -> None:
    """Time all in turns. A rival that fails leaves. A failure of ours is an error, unless a rival can make room."""
    for number, order in turns(running, rounds, warm_up=WARM_UP, deadline=deadline):
        for one in order:
            while one in running:
                try:
                    one.time(number, clock)
                    break
                except Exception as error:
                    leaving = _who_leaves(one, running, error)
                    if leaving is None:
                        raise
                    why = "" if leaving is one else f"made room for {one.result.name}: "
                    leaving.leave(f"{why}{one_line(error)}")
                    running.remove(leaving)


def _who_leaves(one: _Running, running: list[_Running], error: Exception) -> _Running | None:
    """Who leaves after ``error`` in the turn of ``one``; None if nobody can, as ``error`` is a failure of ours."""
    others = [each for each in running[1:] if each.result.name != INDEXED]
    if one in others:
        return one
    return others[-1] if others and isinstance(error, torch.OutOfMemoryError) else None
