"""The wrong modules of a run, one by one: what :mod:`longformer.parity.replay` finds, for a comparison and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from longformer.checkpoints.names import todays_name
from longformer.errors import listed
from longformer.parity.comparison import DIFFERENT, IDENTICAL, NON_FINITE, Comparison
from longformer.parity.format import Trace
from longformer.parity.hints import find_hints
from longformer.parity.layout import choose_layout
from longformer.parity.measure import rms_of
from longformer.parity.noise import precisions_of
from longformer.parity.progress import bar
from longformer.parity.replay import Birth, Noise, Replay, Step, TableNaming
from longformer.parity.rounding import Truth
from longformer.parity.table import GRADIENT, PARAMETER

ALIKE = 0.05  # relative difference of two runs up to which they share their local noise


@dataclass(frozen=True)
class Finding:
    """A wrong module of one run.

    Args:
        run: its name.
        step: the value that departs from what follows from the values before it.
        shape: of the value.
        axes: names of its axes; none where they are not known.
    """

    run: str
    step: Step
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What is wrong, where, and by how much."""
        standing, name = self.step.standing, self.step.name
        operations = listed(self.step.operation, most=3)
        backward = name.startswith(GRADIENT)
        what = f"the backward pass of {operations}" if backward else operations or "the model itself"
        factor = (
            "" if self.step.factor is None else f"; all of it is {number(self.step.factor)} times what it should be"
        )
        return (
            f"{self.run}: {name}, by {what}: {standing.ratio:.3g} times its own noise "
            f"in {_pool(standing.pool, standing.index, self.axes or _axes(len(self.shape)))}{factor}"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, for JSON."""
        standing = self.step.standing
        return {
            "run": self.run,
            "value": self.step.name,
            "operation": list(self.step.operation),
            "ratio": standing.ratio if math.isfinite(standing.ratio) else None,
            "limit": standing.limit,
            "pool": standing.pool,
            "index": list(standing.index),
            "factor": self.step.factor,
        }


def judge_modules(comparison: Comparison, a: Trace, b: Trace, truth: Truth, *, progress: bool = False) -> None:
    """Judge each module of both runs alone, and put what is found into ``comparison``.

    A wrong module makes a verdict *different* that was *rounding* from end to end. Runs that are identical are left.
    """
    if comparison.verdict == IDENTICAL:
        return
    replay = of_truth(truth)
    add_findings(comparison, {comparison.names[0]: a, comparison.names[1]: b}, replay, progress=progress)
    if comparison.verdict == DIFFERENT and comparison.first is not None and not comparison.hints:
        run = b if comparison.names[1] in comparison.departed else a
        found = find_hints(run, comparison.first.name, truth, [comparison.first.name])
        comparison.hints = found.hints


def of_truth(truth: Truth) -> Replay:
    """The replay of a Longformer."""
    model = truth._model
    return Replay(
        model,
        TableNaming(model, choose_layout(model, None)),
        lambda: model(**truth.inputs),
        loss=truth.loss,
        parameter_name=todays_name,
    )


def add_findings(comparison: Comparison, runs: Mapping[str, Trace], replay: Replay, *, progress: bool = False) -> None:
    """Replay both runs and put the findings into ``comparison``.

    Args:
        runs: by name.
        replay: of the model that gives the truth.
        progress: whether to show a progress bar where this takes more than two seconds.
    """
    held = {name: _floats(run) for name, run in runs.items()}
    shared: Noise | None = None
    for name, run in held.items():
        if comparison.verdict == NON_FINITE:
            birth = replay.birth(run)
            comparison.notes += [] if birth is None else [born(name, birth)]
            continue
        if shared is None or not _alike(*held.values()):
            shared = replay.noise(run, precisions_of(runs[name]), progress=progress)
        judged = bar(replay.steps(run, shared), f"modules of {name}", "values", shown=progress, total=len(shared))
        wrong = [step for step in judged if step.standing.is_wrong]
        for each in wrong:
            shape = tuple(run[each.name].shape)
            axes = axes_of_longformer(each.name, len(shape)) if isinstance(replay.naming, TableNaming) else ()
            comparison.modules.append(Finding(name, each, shape, axes))
        comparison.notes += common_factor(name, wrong, run)
        _revise(comparison, name, wrong)


def _revise(comparison: Comparison, run: str, wrong: Sequence[Step]) -> None:
    """Let a verdict that was rounding be different where a module is wrong."""
    compared = {value.name: value for value in comparison.values}
    found = [compared[step.name] for step in wrong if step.name in compared]
    if found and comparison.verdict not in (DIFFERENT, NON_FINITE):
        comparison.verdict, comparison.first, comparison.departed = DIFFERENT, found[0], (run,)


def _floats(run: Trace) -> dict[str, Tensor]:
    return {name: value for name in run if (value := run[name]).is_floating_point()}


def _alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two runs' values are so near each other that rounding moves both alike."""
    if a.keys() != b.keys() or {name: x.dtype for name, x in a.items()} != {name: x.dtype for name, x in b.items()}:
        return False
    return all(rms_of(a[name].double() - b[name].double()) <= ALIKE * rms_of(a[name].double()) for name in a)


def common_factor(run: str, wrong: Sequence[Step], values: Mapping[str, Tensor]) -> list[str]:
    """A note where all that is wrong with the gradients is one factor."""
    steps = [step for step in wrong if step.name.startswith(GRADIENT)]
    factors = [step.factor for step in steps if step.factor is not None]
    if not steps or len(factors) < len(steps) or max(factors) - min(factors) > 1e-3 * abs(factors[0]):
        return []
    factor = number(factors[0])
    parameters = [name for name in values if name.startswith(PARAMETER)]
    if all("the loss" in step.operation for step in steps):
        return [
            f"a factor on all gradients of {run}: the loss's is {factor} times what it should be, and the steps behind "
            "it are right, as where a loss is scaled, or is a mean over the wrong count"
        ]
    if len(steps) > len(parameters) // 2 and all(step.name.startswith(PARAMETER) for step in steps):
        return [
            f"a factor on all gradients of {run}'s parameters, and on none of its activations: they are {factor} times "
            "what they should be, as where gradients are clipped, scaled, or averaged over the wrong count"
        ]
    return []


def number(factor: float) -> str:
    """A factor, as a fraction where it is one of small numbers."""
    fraction = Fraction(factor).limit_denominator(64)
    is_fraction = fraction.denominator > 1 and abs(float(fraction) - factor) <= 1e-5 * abs(factor)
    return f"{factor:.6g}" + (f" ({fraction})" if is_fraction else "")


def born(run: str, birth: Birth) -> str:
    """Where a NaN or infinity comes from, in a sentence."""
    backward = birth.name.startswith(GRADIENT)
    operations = listed(birth.operation, most=3) or ("the loss" if backward else "the model itself")
    where = f"the backward pass of {operations}" if backward else operations
    sizes = [f"{source} (at most {size:.3g})" for source, size in birth.sizes.items()]
    finite = all(map(math.isfinite, birth.sizes.values()))
    sources = f"from {listed(sizes)}" if sizes else "from the input and the weights"
    highest = torch.finfo(birth.dtype).max
    dtype = str(birth.dtype).removeprefix("torch.")
    if not math.isfinite(birth.right):
        right = "in float64 it is not finite either"
    elif birth.right > highest:
        right = f"in float64 it is {birth.right:.3g} there, and {dtype} ends at {highest:.3g}"
    else:
        right = f"in float64 it is at most {birth.right:.3g} there, which {dtype} has"
    verb = "is born" if finite else "first shows"
    return f"in {run}, NaN or infinity {verb} in {birth.name}, by {where}, {sources}; {right}"


def _axes(count: int) -> tuple[str, ...]:
    return tuple(f"axis {i} index" for i in range(count))


def axes_of_longformer(name: str, count: int) -> tuple[str, ...]:
    names = {3: ("batch", "token", "channel"), 4: ("batch", "head", "token", "channel")}
    return () if name.startswith(PARAMETER) else names.get(count, ())


def _pool(pool: str, index: tuple[int, ...], axes: tuple[str, ...]) -> str:
    """A pool of numbers, in words."""
    if pool == "all":
        return "all numbers together"
    if pool == "channel":
        return f"{axes[1]} {index[0]}, {axes[3]} {index[1]}"
    if pool == "token":
        return f"{axes[0]} {index[0]}, {axes[2]} {index[1]}"
    if pool.startswith("axis"):
        return f"{axes[int(pool.split()[1])]} {index[0]}"
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, index, strict=False))
    return f"{'the row at' if pool == 'row' else 'one number,'} {place}"
