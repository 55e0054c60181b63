"""Any two models: what each of their modules gives, and the truth in float64 from the first.

``longformer parity compare A.py:make_model B.py:make_model INPUT`` compares them as it compares Longformers: from end
to end, and module by module. A value is a tensor that a module gives. It is called by the module's path; that of the
second call of a module is ``path@2``; of several tensors the others are ``path:1`` or ``path:key``. The model's own are
called ``output``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longformer.errors import DataError, explaining, listed
from longformer.kernels.compat import DispatchMode
from longformer.parity.compiled import is_compiled, uncompiled
from longformer.parity.format import FORMAT, VERSION, Trace, describe_model, digest, metadata_object
from longformer.parity.noise import Moved, Precisions
from longformer.parity.operations import CoarsestSeen, coarsest
from longformer.parity.replay import Replay, visited
from longformer.parity.rounding import RUNS, Truth
from longformer.parity.stages import Stages, in_stages, stages_of
from longformer.parity.table import GRADIENT, PARAMETER

OUTPUT = "output"


@dataclass(frozen=True)
class Call:
    """What a model is called with, which every model gets in its own precision."""

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def named(self) -> dict[str, Tensor]:
        """The tensors, by name; ``argument0`` is the first without one."""
        given = {**{f"argument{i}": value for i, value in enumerate(self.arguments)}, **self.keywords}
        return {name: value for name, value in given.items() if isinstance(value, Tensor)}

    def run(self, model: nn.Module) -> Any:
        """What ``model`` makes of it. Raises DataError where the call fails, or a tensor is on another device."""
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        dtype = torch.float32 if first is None else first.dtype
        for name, value in self.named().items():
            if first is not None and value.device != first.device:
                raise DataError(f"{name} is on {value.device} and the model on {first.device}; give both on one device")

        def fitting(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        device = torch.device("cpu") if first is None else first.device
        before = random_state(device)
        with explaining(DataError, f"{type(model).__name__} cannot be called with this input"), own_buffers(model):
            result = model(*map(fitting, self.arguments), **{name: fitting(x) for name, x in self.keywords.items()})
        if not torch.equal(before, random_state(device)):
            raise DataError(
                f"{type(model).__name__} draws random numbers as it runs, as dropout does that is on, and gives other "
                "values each time; switch that off for the comparison, for example with model.eval()"
            )
        return result


def random_state(device: torch.device) -> Tensor:
    """The state of the random numbers that a model on ``device`` draws."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def own_buffers(model: nn.Module) -> Iterator[None]:
    """While this is open, the model works on copies of its buffers: a count or a running mean stays as it was.

    What is compiled keeps its buffers, since it would be compiled anew for other ones.
    """
    parts = [] if is_compiled(model) else list(model.modules())
    kept = [(part, name, x) for part in parts for name, x in part._buffers.items() if x is not None]
    copies = {id(x): x.clone() for _, _, x in kept}
    for part, name, x in kept:
        part._buffers[name] = copies[id(x)]
    try:
        yield
    finally:
        for part, name, x in kept:
            part._buffers[name] = x


class ModuleNaming:
    """The tensors that each module of any model gives."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Hooks inside what is compiled would be ignored.
        self._paths = [""] if is_compiled(model) else [path for path, _ in model.named_modules()]
        self._calls: dict[str, int] = {}

    def paths(self) -> list[str]:
        return self._paths

    def root(self) -> nn.Module:
        return self.model

    def begin(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._calls = {}

    def split(self, path: str, output: Any) -> dict[str, Tensor]:
        self._calls[path] = self._calls.get(path, 0) + 1
        stem = self._stem(path)
        numbers = ((place, real(x)) for place, x in tensors_of(output))
        return {stem + place: x for place, x in numbers if x.is_floating_point()}

    def join(self, path: str, output: Any, given: Mapping[str, Tensor]) -> Any:
        stem = self._stem(path)
        return replaced(output, {name.removeprefix(stem): tensor for name, tensor in given.items()})

    def counted(self, path: str, name: str, value: Tensor) -> Tensor:
        return value

    def _stem(self, path: str) -> str:
        return (path or OUTPUT) + (f"@{self._calls[path]}" if self._calls[path] > 1 else "")


def tensors_of(output: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a module gives, with their places: nothing for the first of a tuple, ``:1``, ``:key``."""
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_of(value, f"{place}:{key}")
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from tensors_of(value, f"{place}:{i}" if i else place)


def real(x: Tensor) -> Tensor:
    """A tensor of complex numbers with an axis of two, the real and the imaginary part; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def replaced(output: Any, given: Mapping[str, Tensor], place: str = "") -> Any:
    """``output`` with the tensors ``given``, by their places, in place of its own."""
    if isinstance(output, Tensor):
        found = given.get(place, output)
        return torch.view_as_complex(found.contiguous()) if output.is_complex() and found is not output else found
    if isinstance(output, Mapping):
        other = copy.copy(output)
        for key, value in output.items():
            other[key] = replaced(value, given, f"{place}:{key}")  # type: ignore[index]
        return other
    if isinstance(output, (tuple, list)):
        items = [replaced(value, given, f"{place}:{i}" if i else place) for i, value in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def loss_of(output: Any) -> Tensor:
    """The loss whose gradients are compared: the model's own, or else the mean square of all numbers that it gives."""
    found = dict(tensors_of(output))
    if ":loss" in found:
        return found[":loss"]
    numbers = [x for x in map(real, found.values()) if x.is_floating_point()]
    if not numbers:
        raise DataError("the model gives no numbers of floating point, of which a loss could be made")
    return torch.stack([x.square().mean() for x in numbers]).sum()


Loss = Callable[[Any], Tensor]


def run_values(
    model: nn.Module,
    call: Callable[[], Any],
    loss: Loss | None,
    *,
    see: Callable[[str, str, Tensor], None] | None = None,
    integers: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a model once and return each tensor that its modules give, and gradients if there is a ``loss``.

    Args:
        see: is told the path, the name and the tensor as each comes.
        integers: is given the model's own outputs that are none of floating point.

    Raises:
        DataError: the loss depends on no parameter.
    """
    values: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    naming = ModuleNaming(model)

    def visit(path: str, output: Any) -> Any:
        own = naming.split(path, output)
        if not path and integers is not None:
            others = ((place, x) for place, x in tensors_of(output) if not real(x).is_floating_point())
            integers.update({OUTPUT + place: x.detach().clone().cpu() for place, x in others})
        # At once, since the model may go on to change them in place.
        values.update({name: value.detach().clone().cpu() for name, value in own.items()})
        if see is not None:
            for name, value in own.items():
                see(path, name, value)
        copies = {name: value.clone() for name, value in own.items() if loss is not None and value.requires_grad}
        for name, value in copies.items():  # a hook, since it sees the gradient by what stands there now
            value.register_hook(lambda gradient, name=name: gradients.update({GRADIENT + name: gradient.clone().cpu()}))
        return naming.join(path, output, copies) if copies else None

    with torch.set_grad_enabled(loss is not None), visited(model, naming, visit):
        output = call()
        if loss is not None:
            named = {PARAMETER + name: p for name, p in model.named_parameters() if p.requires_grad}
            end = loss(output)
            if not end.requires_grad:
                raise DataError(
                    f"the loss of {type(model).__name__} depends on nothing that has a gradient, as where all runs "
                    "under torch.no_grad() or requires_grad is off; compare without gradients"
                )
            if named:
                found = torch.autograd.grad(end, list(named.values()), allow_unused=True)
                pairs = zip(named, found, strict=True)
                gradients.update({name: g.detach().cpu() for name, g in pairs if g is not None})
    return values | gradients


def record_model(model: nn.Module, call: Call, *, gradients: bool = False) -> Trace:
    """The trace of any model: every tensor that its modules give.

    Args:
        gradients: of :func:`loss_of` too, by each of these tensors and each parameter.

    Raises:
        DataError: the model cannot be called so, is in training mode with dropout, or gives nothing.
    """
    check_quiet(model)
    precisions: dict[str, str] = {}
    integers: dict[str, Tensor] = {}
    with CoarsestSeen() as seen:

        def see(path: str, name: str, value: Tensor) -> None:
            found = coarsest([value.dtype, *seen.take()])
            if found != value.dtype:
                precisions[name] = str(found).removeprefix("torch.")

        values = run_values(model, lambda: call.run(model), loss_of if gradients else None, see=see, integers=integers)
    if not values:
        raise DataError(
            f"{type(model).__name__} has no module that gives a tensor of floating point: there is nothing to compare"
        )
    trace = Trace()
    trace.tensors = values
    trace.inputs = {name: value.detach().cpu() for name, value in call.named().items()}
    order = [name for name in values if not name.startswith(GRADIENT)]
    about = describe_model(model, digests=False)
    trace.metadata = {"format": FORMAT, "version": str(VERSION), **about, "order": json.dumps(order)}
    trace.metadata |= {"implementation": type(model).__qualname__, "precisions": json.dumps(precisions)}
    found = {name: [str(x.dtype).removeprefix("torch."), list(x.shape), digest(x)] for name, x in integers.items()}
    trace.metadata["integers"] = json.dumps(found)
    return trace


def check_quiet(model: nn.Module) -> None:
    """Raise DataError for a model whose results are random."""
    for path, part in model.named_modules():
        p = getattr(part, "p", 0.0)
        if part.training and "Dropout" in type(part).__name__ and isinstance(p, float) and p > 0:
            raise DataError(f"{path} drops out at random, since the model is in training mode; return model.eval()")


class ModelTruth(Truth):
    """The truth of any model: a copy of it in float64, and the noise around it.

    Args:
        model: whose weights are the true ones. It is left as it is.
        call: what it is called with.
        gradients: of :func:`loss_of` too.
        runs: how many rounded runs the noise comes from at first.
    """

    config: Any = None  # that of a Longformer alone is known

    def __init__(self, model: nn.Module, call: Call, *, gradients: bool = False, runs: int = RUNS) -> None:
        with explaining(DataError, f"{type(model).__name__} cannot be copied to float64"):
            self._model: Any = copy.deepcopy(uncompiled(model)).double()
        self.inputs, self.runs, self.loss = call.named(), runs, loss_of if gradients else None
        self.weights = {}
        self._moved: dict[Any, tuple[torch.Generator, dict[str, Moved]]] = {}

        def run() -> Any:
            with AllDouble():
                return call.run(self._model)

        self._call = run
        self.replay = Replay(self._model, ModuleNaming(self._model), run, loss=self.loss)
        self.trace = Trace()
        self._stages: dict[str, str] = {}
        tensors = run_values(self._model, run, self.loss, see=lambda path, name, value: self._note(path, name))
        self.trace.tensors = tensors
        self.trace.inputs = {name: value.cpu() for name, value in self.inputs.items()}
        order = [name for name in tensors if not name.startswith(GRADIENT)]
        self.trace.metadata = {"order": json.dumps(order)}

    def _note(self, path: str, name: str) -> None:
        self._stages[name] = path

    def _add_run(
        self,
        precisions: Precisions,
        generator: torch.Generator,
        moved: dict[str, Moved],
        count: Callable[[int], object],
    ) -> None:
        stages: Stages = stages_of(self._stages, precisions)
        with ExitStack() as stack:
            mode = stack.enter_context(in_stages(self._model, stages, generator))

            def see(path: str, name: str, value: Tensor) -> None:
                mode.dtype = stages.after.get(path, stages.rest)  # and the copies above have no digits to lose
                count(name in self.trace)

            values = run_values(self._model, self._call, self.loss, see=see)
        for name, value in values.items():
            if name in self.trace:
                moved.setdefault(name, Moved()).add(value - self.trace[name])


class AllDouble(DispatchMode):
    """While this is open, what a model would convert to a lower precision stays in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in (torch.float32, torch.bfloat16, torch.float16):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def integers_of(run: Trace) -> dict[str, list[Any]]:
    """A model's outputs that are none of floating point, and so no values: dtype, shape and digest of each.

    Raises:
        DataError: the metadata says something else.
    """
    found = metadata_object(run.metadata, "integers")
    for name, about in found.items():
        if not (isinstance(about, list) and len(about) == 3 and isinstance(about[1], list)):
            raise DataError(
                f"a trace's metadata has 'integers' with {about!r} for {name}; give [dtype, shape, SHA-256]"
            )
    return found


def check_outputs_alike(names: tuple[str, str], a: Trace, b: Trace) -> None:
    """Raise DataError where two models' outputs differ in structure, by the values ``output...``."""

    def described(run: Trace) -> list[str]:
        own = [f"{name} {tuple(run[name].shape)}" for name in run if name.partition(":")[0] == OUTPUT]
        return own + [f"{name} {tuple(shape)} of {dtype}" for name, (dtype, shape, _) in integers_of(run).items()]

    mine, theirs = described(a), described(b)
    if sorted(mine) != sorted(theirs):
        raise DataError(
            f"the outputs differ in structure: {names[0]} gives {listed(mine)}, and {names[1]} {listed(theirs)}; "
            "return the same from both"
        )
