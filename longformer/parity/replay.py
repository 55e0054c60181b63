"""Modules one by one: each value computed again, in float64, from what the run itself recorded just before it.

From end to end an error is handed on, so that only the first mistake is seen, and a small one is buried. Here nothing
is handed on. The float64 model runs once more, and whenever one of its modules has given its result, the run's recorded
value is put in its place. So each value is computed from recorded values alone, and its distance from the recorded one
is the error of the operations between them. For gradients the recorded values are leaves of the graph, and the recorded
gradients what the backward pass begins with: each gradient is computed from those of the operations that use its value.

What rounding costs such a step, its local noise, is found in the same way, with every operation rounded by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from longformer.errors import LongformerError
from longformer.parity.layout import Layout
from longformer.parity.local import Spread, Standing, judge
from longformer.parity.noise import Precisions
from longformer.parity.operations import Rounding
from longformer.parity.progress import bar
from longformer.parity.recorder import with_first
from longformer.parity.stages import Stages, in_stages, stages_of
from longformer.parity.table import GRADIENT, PARAMETER

Noise = Mapping[str, Spread]

PARAMETERS = 2.0  # times the noise: their gradients are sums over all tokens, in orders that may be better or worse
VISIBLE = 1e4  # how many times the noise's square a gradient's must be for a factor on it to mean something
RUNS = 2  # with every operation rounded by chance; what they give is pooled


class Naming(Protocol):
    """What a model's modules give, as values with names, and back."""

    def paths(self) -> list[str]:
        """The modules that give values."""

    def begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A run begins with these arguments of the root."""

    def root(self) -> nn.Module:
        """The module whose call begins a run."""

    def split(self, path: str, output: Any) -> dict[str, Tensor]:
        """The values that the module at ``path`` gives with ``output``, by name."""

    def join(self, path: str, output: Any, given: Mapping[str, Tensor]) -> Any:
        """``output`` with the values ``given`` in place of its own."""

    def counted(self, path: str, name: str, value: Tensor) -> Tensor:
        """A value of the module at ``path``, or its gradient, with 0 where it does not count, as at padding."""


class TableNaming:
    """The values of a table, laid out as a model of this kind lays them out."""

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.layout, self.values = layout, layout.table.fit(model)

    def paths(self) -> list[str]:
        return list(self.values)

    def root(self) -> nn.Module:
        return self.layout.root

    def begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.layout.begin(arguments, keywords)

    def split(self, path: str, output: Any) -> dict[str, Tensor]:
        return dict(self.layout.split(self.values[path], self._rows(path, output)))

    def join(self, path: str, output: Any, given: Mapping[str, Tensor]) -> Any:
        value = self.values[path]
        joined = self.layout.join(value, self._rows(path, output), given)
        return with_first(output, self.layout.result(joined, value))

    def counted(self, path: str, name: str, value: Tensor) -> Tensor:
        return self.layout.counted(self.values[path], name, value)

    def _rows(self, path: str, output: Any) -> Tensor:
        return self.layout.rows([output if isinstance(output, Tensor) else output[0]], self.values[path])


@dataclass(frozen=True)
class Step:
    """One value of a run beside what follows from the values that the run recorded before it.

    Args:
        name: of the value; ``gradient.`` before it for gradients.
        standing: where its error stands out most.
        operation: what computes it: a value's module, by its path, or the values whose backward pass gives a gradient.
        factor: by which the recorded value is the right one times a number, if it is; None otherwise.
    """

    name: str
    standing: Standing
    operation: tuple[str, ...]
    factor: float | None = None


@dataclass(frozen=True)
class Birth:
    """Where the first NaN or infinity of a run came from.

    Args:
        name: of the value that has it.
        operation: as of a :class:`Step`.
        sizes: the largest size in each value that it is computed from.
        right: the largest size in float64, where the run has NaN or infinity.
        dtype: of the run's value.
    """

    name: str
    operation: tuple[str, ...]
    sizes: dict[str, float]
    right: float
    dtype: torch.dtype


@dataclass
class Walk:
    """What one run of the float64 model over recorded values gave.

    values: what follows from the recorded values, and gradients where they are asked for.
    modules: for each value, the path of the module that gives it.
    sources: for each value, those that it is computed from, where that was asked for.
    uses: for each gradient, the values whose backward pass it comes from.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    uses: dict[str, list[str]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)


class Replay:
    """A float64 model that goes from recorded value to recorded value.

    Args:
        model: in float64, with the true weights.
        naming: of its values.
        call: runs it on the input and returns what it gives.
        loss: makes a loss of that, for gradients; None is no gradients.
        parameter_name: what a trace calls the gradient of a parameter, without ``gradient.parameter.``.
    """

    def __init__(
        self,
        model: nn.Module,
        naming: Naming,
        call: Callable[[], Any],
        *,
        loss: Callable[[Any], Tensor] | None = None,
        parameter_name: Callable[[str], str] = str,
    ) -> None:
        self.model, self.naming, self.call, self.loss = model, naming, call, loss
        self.parameter_name = parameter_name

    def steps(self, run: Mapping[str, Tensor], noise: Noise) -> Iterator[Step]:
        """Each value of ``run`` judged alone, in the order in which it is computed; gradients in that of the way back.

        Args:
            run: the values by name. A value that it lacks is computed from those before it, and judged nowhere.
            noise: see :meth:`noise`, of this run or of one whose values are about the same.
        """
        walk = self.walk(run)
        names = [name for name in walk.values if name in noise]
        # Kernels sum the gradients of parameters in a low precision or in float32, as they like: no noise covers both.
        is_low = any(value.is_floating_point() and value.element_size() < 4 for value in run.values())
        if is_low or self._lacks_padding(walk, run):
            names = [name for name in names if not name.startswith(PARAMETER)]
        for name in self._ordered(names, walk):
            given, right = self._counted(walk, name, run[name].double()), self._counted(walk, name, walk.values[name])
            variance = self._counted(walk, name, noise[name].variance(run[name])) * (
                PARAMETERS**2 if name.startswith(PARAMETER) else 1.0
            )
            standing = judge(right - given, variance)
            factor = factor_of(given, right, variance) if standing.is_wrong and name.startswith(GRADIENT) else None
            operation = [walk.modules[name]] if name in walk.modules else walk.uses.get(name, [])
            yield Step(name, standing, tuple(operation), factor)

    def noise(
        self, run: Mapping[str, Tensor], precisions: Precisions, *, runs: int = RUNS, progress: bool = False
    ) -> Noise:
        """How far rounding moves each value where it is computed from the values that ``run`` recorded before it.

        Args:
            precisions: in which it was computed, see :func:`longformer.parity.noise.precisions_of`.
            runs: how often every operation is rounded by chance.
            progress: whether to show a progress bar where this takes more than two seconds.
        """
        # In float32, since both runs are near the recorded values: what is kept is small beside them.
        walk = self.walk(run)
        off = {name: (value - run[name].double()).float() for name, value in walk.values.items()}
        stages = stages_of(walk.modules, precisions)
        spreads = {name: Spread(run[name]) for name in off}
        generator = torch.Generator().manual_seed(0)
        with bar(None, "rounding of each module", "values", shown=progress, total=runs * len(off)) as values:
            for done in range(1, runs + 1):
                found = self.walk(run, rounding=(stages, generator), count=values.update).values
                for name, value in found.items():
                    spreads[name].add(value - run[name].double() - off[name], run[name])
                values.update(done * len(off) - values.n)  # no gradient is counted by itself
        return spreads

    def _counted(self, walk: Walk, name: str, value: Tensor) -> Tensor:
        if name.startswith(PARAMETER):
            return value
        return self.naming.counted(walk.modules[name.removeprefix(GRADIENT)], name, value)

    def _lacks_padding(self, walk: Walk, run: Mapping[str, Tensor]) -> bool:
        """Whether ``run`` has 0 where padding has a part in the loss, and so in the gradients of parameters."""
        for name, uses in walk.uses.items():
            if "the loss" in uses and not name.startswith(PARAMETER) and name in walk.values:
                given, right = run[name], walk.values[name]
                at_padding = [float((x - self._counted(walk, name, x)).abs().sum()) for x in (given, right)]
                if at_padding[0] == 0 != at_padding[1]:
                    return True
        return False

    def birth(self, run: Mapping[str, Tensor]) -> Birth | None:
        """Where the first NaN or infinity of ``run`` comes from; None where every value is finite."""
        walk = self.walk(run, graph=True)
        for name in self._ordered(list(walk.values), walk):
            given = self._counted(walk, name, run[name])
            if bool(torch.isfinite(given).all()):
                continue
            uses = walk.uses.get(name, [])
            sources = [GRADIENT + use for use in uses] if name.startswith(GRADIENT) else walk.sources.get(name, [])
            sizes = {source: float(run[source].abs().max()) for source in sources if source in run}
            right = walk.values[name][~torch.isfinite(given)].abs()
            operation = (walk.modules[name],) if name in walk.modules else tuple(uses)
            return Birth(name, operation, sizes, float(right.max()), given.dtype)
        return None

    def walk(
        self,
        given: Mapping[str, Tensor],
        *,
        rounding: tuple[Stages, torch.Generator] | None = None,
        graph: bool = False,
        count: Callable[[int], object] | None = None,
    ) -> Walk:
        """Run the model once over the recorded values ``given``.

        Args:
            rounding: the precisions in which every operation is rounded, by chance; None is float64 as it is.
            graph: whether to find out which values each one is computed from, also without gradients.
            count: called with the number of values that were computed since its last call.
        """
        result, leaves, computed = Walk(), dict[str, Tensor](), dict[str, Tensor]()
        graded = graph or self.loss is not None

        mode: Rounding | None = None

        def visit(path: str, output: Any) -> Any:
            if rounding is not None and mode is not None:
                mode.dtype = rounding[0].after.get(path, rounding[0].rest)
            own = self.naming.split(path, output)
            taken = {}
            for name, value in own.items():
                result.modules[name] = path
                if name in leaves or name not in given or not given[name].is_floating_point():
                    continue
                if given[name].shape == value.shape:
                    computed[name] = value if graded else value.detach()
                    leaf = given[name].detach().to(value.device, value.dtype)
                    leaf = leaf if bool(leaf.isfinite().all()) else self.naming.counted(path, name, leaf)
                    taken[name] = leaves[name] = leaf.requires_grad_(graded)
            if not taken:
                return None
            if count is not None:
                count(len(taken))
            # A copy of the leaf, since the model may go on to change its result in place.
            copies = {name: leaf.clone() if graded else leaf.clone().detach() for name, leaf in taken.items()}
            return self.naming.join(path, output, copies)

        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(graded))
            stack.enter_context(visited(self.model, self.naming, visit))
            if rounding is not None:
                mode = stack.enter_context(in_stages(self.model, *rounding))
            output = self.call()
            if graded:
                named = {id(leaf): name for name, leaf in leaves.items()}
                for name, value in computed.items():
                    found = leaves_of(value) if value.requires_grad else set()
                    result.sources[name] = [named[leaf] for leaf in found if leaf in named]
            if self.loss is not None:
                self._backward(self.loss(output), given, leaves, computed, result)
        result.values.update({name: value.detach() for name, value in computed.items()})
        return result

    def _backward(
        self,
        loss: Tensor,
        given: Mapping[str, Tensor],
        leaves: Mapping[str, Tensor],
        computed: Mapping[str, Tensor],
        result: Walk,
    ) -> None:
        """Add the gradients: each from the recorded gradients of the values that it goes into."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        ends = {"the loss": (loss, torch.ones_like(loss))} if loss.requires_grad else {}
        for name, value in computed.items():
            if value.requires_grad and GRADIENT + name in given:
                ends[name] = (value, given[GRADIENT + name].to(value.device, value.dtype))
        # Only where all that a value goes into has a recorded gradient is its own one known.
        sources = {GRADIENT + name: leaf for name, leaf in leaves.items()}
        sources |= {PARAMETER + self.parameter_name(name): p for name, p in parameters.items()}
        unknown: set[int] = set()
        names = {id(tensor): name for name, tensor in sources.items()}
        for name, value in {"the loss": loss, **computed}.items():
            if not value.requires_grad:
                continue
            reached = leaves_of(value)
            if name not in ends:
                unknown |= reached
            for source in reached:
                if source in names:
                    result.uses.setdefault(names[source], []).append(name)
        wanted = {name: tensor for name, tensor in sources.items() if name in given and id(tensor) not in unknown}
        if not ends or not wanted:
            return
        outputs, gradients = zip(*ends.values(), strict=True)
        found = torch.autograd.grad(outputs, list(wanted.values()), gradients, allow_unused=True)
        for (name, tensor), gradient in zip(wanted.items(), found, strict=True):
            result.values[name] = torch.zeros_like(tensor) if gradient is None else gradient

    def _ordered(self, names: list[str], walk: Walk) -> list[str]:
        """Values as they are computed, then gradients from the last to the first, a parameter's with its module."""
        places = {name: i for i, name in enumerate(walk.modules)}
        of_path = {path: places[name] for name, path in walk.modules.items()}
        of_parameter = {}
        for name, _ in self.model.named_parameters():  # the innermost module that gives a value has it
            holders = [path for path in of_path if path == "" or name.startswith(f"{path}.")]
            of_parameter[self.parameter_name(name)] = of_path[max(holders, key=len)] if holders else len(places)

        def place(name: str) -> tuple[bool, float]:
            if name.startswith(PARAMETER):
                return True, -of_parameter[name.removeprefix(PARAMETER)] + 0.5
            value = places[name.removeprefix(GRADIENT)]
            return (True, -value) if name.startswith(GRADIENT) else (False, value)

        return sorted(names, key=place)


def leaves_of(value: Tensor) -> set[int]:
    """The ids of the leaves of the graph that ``value`` depends on."""
    if value.grad_fn is None:
        return {id(value)}
    seen, stack, found = set(), [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack += [before for before, _ in node.next_functions if before is not None]
    return found


def factor_of(given: Tensor, right: Tensor, variance: Tensor) -> float | None:
    """The number c for which ``given`` is ``c · right`` up to rounding; None if there is none."""
    size = float(right.square().sum())
    factor = float((given * right).sum()) / size if size > VISIBLE * float(variance.sum()) else 1.0
    if abs(factor - 1) < 1e-4 or judge(given - factor * right, variance * (1 + factor**2)).is_wrong:
        return None
    return factor


@contextmanager
def visited(model: nn.Module, naming: Naming, visit: Callable[[str, Any], Any]) -> Iterator[None]:
    """While this is open, ``visit`` is told of each module's result, and may return another one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    with ExitStack() as stack:

        def begin(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            naming.begin(arguments, keywords)

        stack.callback(naming.root().register_forward_pre_hook(begin, with_kwargs=True).remove)
        for path in naming.paths():

            def hook(module: nn.Module, arguments: Any, output: Any, path: str = path) -> Any:
                return visit(path, output)

            if path not in modules:
                raise LongformerError(f"the model has no module {path}")
            stack.callback(modules[path].register_forward_hook(hook).remove)
        yield
