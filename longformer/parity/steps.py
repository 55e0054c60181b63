"""Whole training steps: loss, gradients, the optimiser's state and the new weights, each judged alone.

Over several steps every rounding grows, so that two right trainings drift apart. So nothing is compared from end to
end. Each step is computed again, in float64, from the weights and the state that the run recorded before it; the update
of the weights from the gradients that the run gave its optimiser. Noise comes from the same steps with every operation
rounded by chance.
"""

from __future__ import annotations

import copy
import glob
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from longformer.errors import DataError, listed
from longformer.parity.any_model import AllDouble
from longformer.parity.code_files import is_code, load
from longformer.parity.comparison import DIFFERENT, IDENTICAL, NON_FINITE, ROUNDING
from longformer.parity.format import FORMAT, VERSION, Trace, describe_model, read_trace
from longformer.parity.local import Spread, judge
from longformer.parity.modules import Finding, number
from longformer.parity.progress import bar
from longformer.parity.replay import Step, factor_of
from longformer.parity.rounding import stochastic_rounding

START, LOSS, GRADIENT, STATE, WEIGHT = "start", "loss", "gradient", "state", "weight"
RUNS = 3  # with every operation rounded by chance
WRAPPED = "module."  # before the names of a model under DistributedDataParallel


@dataclass
class Training:
    """A training whose steps can be computed again.

    Args:
        model, optimizer: as they are before the first step.
        loss: of a model at a step, counted from 0: it runs the model on that step's whole batch.
        steps: how many there are.
        before_step: what is done to the model's gradients before each step, such as clipping.
        lr: the learning rate of each step; None leaves the optimiser's own.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[nn.Module, int], Tensor]
    steps: int
    before_step: Callable[[nn.Module], Any] | None = None
    lr: Callable[[int], float] | None = None

    def backward(self, step: int) -> Tensor:
        """Compute the gradients of a step, as the optimiser is given them, and return the loss."""
        for group in self.optimizer.param_groups if self.lr is not None else ():
            group["lr"] = self.lr(step) if self.lr is not None else group["lr"]
        self.optimizer.zero_grad()
        loss = self.loss(self.model, step)
        loss.backward()
        if self.before_step is not None:
            self.before_step(self.model)
        return loss.detach()


class StepTrace(Trace):
    """What was recorded of a training: see :func:`trace_steps`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}

    def loss(self, loss: Tensor) -> None:
        """Record the loss of the step that comes."""
        self.tensors[f"step.{self.steps}.{LOSS}"] = loss.detach().clone().cpu()


@contextmanager
def trace_steps(model: nn.Module, optimizer: Optimizer, *, path: str | Path | None = None) -> Iterator[StepTrace]:
    """Record every step that ``optimizer`` takes inside.

        with trace_steps(model, optimizer, path=f"rank{rank}.safetensors") as steps:
            for batch in batches:
                loss = model(**batch).loss
                loss.backward()
                steps.loss(loss)
                optimizer.step()
                optimizer.zero_grad()

    Values: ``start.weight.<parameter>``; of each step ``step.<n>.loss``, ``step.<n>.gradient.<parameter>`` as the
    optimiser was given it, ``step.<n>.state.<parameter>.<name>`` and ``step.<n>.weight.<parameter>`` behind it.

    Args:
        model: that the optimiser trains; it may be wrapped in DistributedDataParallel.
        optimizer: any of torch's.
        path: a trace file that is written behind the last step.

    Raises:
        DataError: the optimiser took no step inside.
    """
    trace = StepTrace()
    names = {id(parameter): name.removeprefix(WRAPPED) for name, parameter in model.named_parameters()}
    parameters = {name.removeprefix(WRAPPED): parameter for name, parameter in model.named_parameters()}

    def record(prefix: str, tensors: Mapping[str, Tensor]) -> None:
        trace.tensors.update({f"{prefix}.{name}": x.detach().clone().cpu() for name, x in tensors.items()})

    def before(*_: Any) -> None:
        given = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        record(f"step.{trace.steps}.{GRADIENT}", given)

    def after(*_: Any) -> None:
        record(f"step.{trace.steps}.{STATE}", _state_of(optimizer, names))
        record(f"step.{trace.steps}.{WEIGHT}", parameters)
        trace.steps += 1

    record(f"{START}.{WEIGHT}", parameters)
    record(f"{START}.{STATE}", _state_of(optimizer, names))
    handles = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
    if not trace.steps:
        raise DataError("the optimiser took no step inside trace_steps(): nothing is recorded")
    about = describe_model(model, digests=False)
    trace.metadata = {"format": FORMAT, "version": str(VERSION), **about, "steps": str(trace.steps)}
    trace.metadata["order"] = json.dumps(list(trace.tensors))
    if path is not None:
        trace.save(path)


def _state_of(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    return {
        f"{names[id(parameter)]}.{key}": value
        for parameter, state in optimizer.state.items()
        if id(parameter) in names
        for key, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def run_training(training: Training) -> Trace:
    """The trace of a training that is run here, on copies of its model and optimiser."""
    copied = _copied(training)
    with trace_steps(copied.model, copied.optimizer) as trace:
        for step in range(copied.steps):
            trace.loss(copied.backward(step))
            copied.optimizer.step()
    return trace


def _copied(training: Training) -> Training:
    model, optimizer = copy.deepcopy((training.model, training.optimizer))  # together: the optimiser has its parameters
    return Training(model, optimizer, training.loss, training.steps, training.before_step, training.lr)


def read_ranks(pattern: str) -> tuple[Trace, list[str]]:
    """The trace of a training under torchrun, from the files that its processes wrote, and what these disagree in.

    Gradients, state and weights must be the same in all processes, to the bit; the loss is the mean of theirs.

    Args:
        pattern: of the files' names, such as ``rank*.safetensors``; or one file.

    Raises:
        DataError: there is no such file, or they are no traces of the same steps.
    """
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise DataError(f"no file at {pattern!r}; trace_steps(model, optimizer, path=...) writes one for each process")
    ranks = [read_trace(path) for path in paths]
    for path, rank in zip(paths, ranks, strict=True):
        if "steps" not in rank.metadata:
            raise DataError(f"{path} is no trace of training steps; trace_steps(model, optimizer, path=...) writes one")
        if list(rank) != list(ranks[0]):
            raise DataError(f"{path} and {paths[0]} have other values: they are no processes of one training")
    joined, notes = Trace(), list[str]()
    tensors: dict[str, Tensor] = {}
    for name in ranks[0]:
        values = [rank[name] for rank in ranks]
        tensors[name] = values[0]
        if name.endswith(f".{LOSS}"):
            tensors[name] = torch.stack(values).mean(dim=0)
        elif not notes:
            other = next((path for path, x in zip(paths, values, strict=True) if not torch.equal(x, values[0])), None)
            if other is not None:
                notes.append(f"{other} and {paths[0]} disagree first in {name}: the processes have drifted apart")
    joined.tensors, joined.metadata = tensors, ranks[0].metadata
    return joined, notes


@dataclass
class StepsComparison:
    """What a comparison of two trainings found.

    Args:
        verdict: "identical", "rounding", "different" or "non-finite".
        findings: what is wrong by itself, of either run, in the order of the steps.
    """

    names: tuple[str, str]
    verdict: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self, most: int = 12) -> str:
        """In words, for the terminal."""
        a, b = self.names
        said = {
            IDENTICAL: f"{a} and {b} agree in every bit of every step",
            ROUNDING: f"every step of {a} and {b} follows from the one before, up to rounding",
        }
        lines = [f"{self.verdict}: {said.get(self.verdict) or f'the first is {self.findings[0].step.name}'}"]
        lines += [f"  step: {finding.sentence}" for finding in self.findings[:most]]
        if len(self.findings) > most:
            lines.append(f"  and {len(self.findings) - most} more; --json has them all")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def as_json(self) -> dict[str, Any]:
        """Everything, for JSON."""
        findings = [finding.as_json() for finding in self.findings]
        return {"verdict": self.verdict, "names": list(self.names), "findings": findings, "notes": self.notes}


def compare_files(a: str, b: str, *, progress: bool = True) -> StepsComparison:
    """Compare a training with another, or with the traces that the processes of torchrun wrote of it.

    Args:
        a: ``FILE.py:FUNCTION``, which returns a :class:`Training`: the truth, and a run in one process.
        b: the same of another, a trace file, or a pattern of several ranks' such as ``rank*.safetensors``.
        progress: whether to show a progress bar where this takes more than two seconds.

    Raises:
        DataError: one of them is not what it must be.
    """
    names, notes = (a, b) if a != b else (f"{a} (1)", f"{b} (2)"), list[str]()
    training = _load_training(a)
    if is_code(b):
        theirs = run_training(_load_training(b))
    else:
        theirs, notes = read_ranks(b)
    check_steps(training, b, theirs)
    runs = dict(zip(names, (run_training(training), theirs), strict=True))
    return compare_steps(training, runs, notes=notes, progress=progress)


def _load_training(name: str) -> Training:
    training = load(name)
    if not isinstance(training, Training):
        raise DataError(f"{name} returned a {type(training).__name__}; it must return a longformer.parity.Training")
    return training


def compare_steps(
    training: Training, runs: Mapping[str, Trace], *, notes: list[str] | None = None, progress: bool = False
) -> StepsComparison:
    """Judge two trainings, step by step, each from what it recorded itself.

    Args:
        training: gives the truth, in float64.
        runs: two traces of :func:`trace_steps`, by name.
        notes: that are known already, such as of processes that disagree; then the verdict is "different".
        progress: whether to show a progress bar where this takes more than two seconds.

    Raises:
        DataError: a trace has other parameters than the training's model, or another number of steps.
    """
    (name_a, a), (name_b, b) = runs.items()
    result = StepsComparison((name_a, name_b), ROUNDING, notes=list(notes or []))
    same = list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
    total = 0 if same else len(runs) * training.steps
    with bar(None, "step by step", "steps", shown=progress, total=total) as judged:
        for name, run in {} if same else runs.items():
            check_steps(training, name, run)
            for step in range(training.steps):
                wrong = _judge_step(training, run, step)
                result.findings += [Finding(name, each, tuple(run[each.name].shape)) for each in wrong]
                result.notes += _common_factor(name, step, wrong, run)
                judged.update()
    if any(not bool(run[name].isfinite().all()) for run in runs.values() for name in run):
        first = [(key, name) for key, run in runs.items() for name in run if not bool(run[name].isfinite().all())]
        result.notes.append(f"NaN or infinity appears first in {first[0][1]}, in {first[0][0]}")
        result.verdict = NON_FINITE
    elif result.findings or notes or _begin_apart(result, a, b):
        result.verdict = DIFFERENT
    elif same:
        result.verdict = IDENTICAL
    return result


def _begin_apart(result: StepsComparison, a: Trace, b: Trace) -> bool:
    """Whether the two begin with other weights, of which each step that follows knows nothing; with a note of which."""
    apart = []
    for name in a:
        if name.startswith(f"{START}.{WEIGHT}.") and name in b:
            unit = max(torch.finfo(run[name].dtype).eps for run in (a, b))
            x, y = a[name].double(), b[name].double()
            if bool(((x - y).abs() > unit * torch.maximum(x.abs(), y.abs())).any()):
                apart.append(name)
    if apart:
        result.notes.append(f"{result.names[0]} and {result.names[1]} begin with other weights: {listed(apart)}")
    return bool(apart)


def check_steps(training: Training, name: str, run: Trace) -> None:
    """Raise DataError where ``run`` is not of this training's model and number of steps."""
    mine = {f"{START}.{WEIGHT}.{key}": tuple(p.shape) for key, p in training.model.named_parameters()}
    theirs = {key: tuple(run[key].shape) for key in run if key.startswith(f"{START}.{WEIGHT}.")}
    if mine != theirs:
        differ = sorted(set(mine.items()) ^ set(theirs.items()))
        raise DataError(f"{name} is of a model with other parameters: {listed([key for key, _ in differ])}")
    if run.metadata.get("steps") != str(training.steps):
        raise DataError(f"{name} has {run.metadata.get('steps')} steps, and the training {training.steps}")


def _judge_step(training: Training, run: Trace, step: int) -> list[Step]:
    """What is wrong with one step, in the order in which it is computed."""
    given = {name: run[name] for name in run if name.startswith(f"step.{step}.")}
    right = {name: x for name, x in _replay(training, run, step, None).items() if name in given}
    dtype = next(iter(training.model.parameters())).dtype
    spreads, generator = {name: Spread(given[name]) for name in right}, torch.Generator().manual_seed(step)
    for _ in range(RUNS):
        for name, moved in _replay(training, run, step, (dtype, generator)).items():
            if name in right:
                spreads[name].add(moved - right[name], given[name])
    found = []
    for name, x in right.items():
        variance, value = spreads[name].variance(given[name]), given[name].double()
        variance = variance * (4.0 if f".{GRADIENT}." in name else 1.0)  # sums in orders that may be better or worse
        standing = judge(x - value, variance)
        if standing.is_wrong:
            found.append(Step(name, standing, (_operation(name),), factor_of(value, x, variance)))
    return found


def _operation(name: str) -> str:
    kind = name.split(".")[2]
    return {LOSS: "the forward pass", GRADIENT: "the backward pass", STATE: "the optimiser's state"}.get(
        kind, "the optimiser's step"
    )


Rounded = tuple[torch.dtype, torch.Generator]


def _replay(training: Training, run: Trace, step: int, rounding: Rounded | None) -> dict[str, Tensor]:
    """One step in float64 from what ``run`` recorded before it; the update from the gradients that it recorded."""
    double = _copied(training)
    double.model.double()
    parameters = dict(double.model.named_parameters())
    _restore(double, run, START if step == 0 else f"step.{step - 1}", rounding)
    prefix, found = f"step.{step}", dict[str, Tensor]()
    with stochastic_rounding(*rounding) if rounding is not None else nullcontext(), AllDouble():
        found[f"{prefix}.{LOSS}"] = double.backward(step).double()
        for name, parameter in parameters.items():
            recorded = f"{prefix}.{GRADIENT}.{name}"
            if parameter.grad is not None:
                found[recorded] = parameter.grad.clone()
            parameter.grad = _moved(run[recorded].double(), rounding) if recorded in run else None
        double.optimizer.step()
    state = _state_of(double.optimizer, {id(parameter): name for name, parameter in parameters.items()})
    found |= {f"{prefix}.{STATE}.{key}": x.double().clone() for key, x in state.items()}
    return found | {f"{prefix}.{WEIGHT}.{name}": p.detach().clone() for name, p in parameters.items()}


def _restore(double: Training, run: Trace, before: str, rounding: Rounded | None) -> None:
    """Bring a copy of the training, in float64, to where ``run`` was at ``before``."""
    parameters = dict(double.model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(run[f"{before}.{WEIGHT}.{name}"])
    for group in double.optimizer.param_groups:  # one tensor after another: of several at once none can be rounded
        group.update({key: False for key in ("foreach", "fused") if key in group})
    double.optimizer.state.clear()
    prefix = f"{before}.{STATE}."
    for name in run:
        if name.startswith(prefix):
            owner, _, key = name.removeprefix(prefix).rpartition(".")
            kept = run[name].clone() if key == "step" else _moved(run[name].double(), rounding)
            double.optimizer.state[parameters[owner]][key] = kept


def _moved(x: Tensor, rounding: Rounded | None) -> Tensor:
    """Within its rounding: the optimiser takes differences, whose rounding is that of what they are taken of."""
    if rounding is None:
        return x.clone()
    dtype, generator = rounding
    return x + x * (torch.rand(x.shape, dtype=x.dtype, generator=generator) - 0.5) * torch.finfo(dtype).eps


def _common_factor(run: str, step: int, wrong: list[Step], values: Trace) -> list[str]:
    """A note where all gradients of a step are the right ones times one number."""
    prefix = f"step.{step}.{GRADIENT}."
    steps = [each for each in wrong if each.name.startswith(prefix)]
    factors = [each.factor for each in steps if each.factor is not None]
    count = sum(name.startswith(prefix) for name in values)
    if not factors or len(factors) < max(len(steps), count / 2) or max(factors) - min(factors) > 1e-3 * abs(factors[0]):
        return []
    return [
        f"a factor on all gradients of step {step} in {run}: they are {number(factors[0])} times what they should be, "
        "as where they are clipped, scaled, or averaged over the wrong count"
    ]
