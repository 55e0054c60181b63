"""What is true, and what rounding costs: a run in float64, and the same run in arithmetic of few digits.

The truth is our model with the same weights in float64 and attention as it is defined (``impl="reference"``). What must
a precision lose? To estimate that, the same float64 model runs a few times more. Each time every operation's result is
rounded up or down by chance to the precision in which the judged run computed, and every sum gets the error of adding
its terms one after another (:mod:`longformer.parity.operations`). How far a value then moves, root mean square over the
runs, is the *noise* of the value. It depends on the depth, the weights and the input, and on nothing in the
implementations under test but their precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longformer.models.attention import AttentionProbabilities, LongformerSelfAttention, attention_probabilities
from longformer.models.encoder import LongformerModel
from longformer.parity.format import Trace
from longformer.parity.layout import Longformer, choose_layout
from longformer.parity.noise import Moved, Noise, Precisions, precision_of
from longformer.parity.operations import ROUNDING, Rounding, coarsest, round_by_chance
from longformer.parity.places import without_padding
from longformer.parity.progress import bar
from longformer.parity.recorder import Recorder, trace
from longformer.parity.table import Value

Inputs = Mapping[str, Tensor]

RUNS = 4  # rounded runs: with 64 numbers in a row, 4 runs give its noise to 6%
MORE_RUNS = 16  # where 4 leave a doubt
DENSE = 1024  # tokens up to which the truth's attention is dense: beyond that, S² numbers in float64 are too many


@contextmanager
def stochastic_rounding(dtypes: torch.dtype | Iterable[torch.dtype], generator: torch.Generator) -> Iterator[Rounding]:
    """While this is open, what is computed in float64 is rounded, operation by operation, as a coarser dtype would.

    Each result is rounded up or down by chance, and sums get the error of adding their terms one after another: see
    :mod:`longformer.parity.operations`. A model in float64 whose weights and inputs are rounded too then computes what
    a clean implementation in that precision might. Several such runs show how far rounding moves each value.

        with stochastic_rounding(torch.float32, generator):
            output = module(*inputs)  # module and inputs in float64

    Args:
        dtypes: the precision, or several, such as those of a module's inputs and output: the coarsest counts.
        generator: of the random numbers.

    Yields:
        the mode, whose ``dtype`` may be changed meanwhile, and in whose ``paused()`` nothing is rounded.
    """
    mode = Rounding(coarsest([dtypes] if isinstance(dtypes, torch.dtype) else dtypes), generator)
    with sdpa_kernel(SDPBackend.MATH), mode:
        yield mode


class Truth:
    """The run in float64 and the noise around it.

    Args:
        model: ours. Its weights are the true ones, in whatever precision they are kept.
        inputs: the arguments of its forward, by name.
        loss: makes a loss from what the model gives, for gradients; None is no gradients.
        probabilities: whether attention probabilities are recorded.
        runs: how many rounded runs the noise comes from at first.
        folder: where the run is written as a trace file, layer by layer; None holds it in memory.
    """

    def __init__(
        self,
        model: Longformer,
        inputs: Inputs,
        *,
        loss: Callable[[Any], Tensor] | None = None,
        probabilities: bool = False,
        runs: int = RUNS,
        folder: Path | None = None,
    ) -> None:
        self.inputs, self.loss, self.probabilities, self.runs = dict(inputs), loss, probabilities, runs
        self.weights = {name: weight.detach() for name, weight in model.state_dict().items()}
        self.config = model.config
        dense = self.inputs["input_ids"].shape[-1] <= DENSE
        self.kernel = "reference" if dense else "blocked"
        self._model = self._in_double(model)
        self._moved: dict[Any, tuple[torch.Generator, dict[str, Moved]]] = {}
        path = None if folder is None else folder / "truth.safetensors"
        with self._grad_mode(), trace(self._model, path=path, digests=False, **self._options()) as self.trace:
            self._run(self.trace)

    def _options(self) -> dict[str, Any]:
        return {"probabilities": self.probabilities, "gradients": self.loss is not None}

    def _grad_mode(self) -> Any:
        return torch.enable_grad() if self.loss is not None else torch.no_grad()

    def _run(self, recorded: Trace | Recorder) -> None:
        output = self._model(**self.inputs)
        if self.loss is not None:
            recorded.backward(self.loss(output))

    def _in_double(self, model: Longformer) -> Longformer:
        arguments = {"add_pooling_layer": model.pooler is not None} if isinstance(model, LongformerModel) else {}
        with torch.device("meta"):
            double = type(model)(model.config, impl=self.kernel, **arguments)
        double.load_state_dict({name: weight.cpu().double() for name, weight in self.weights.items()}, assign=True)
        return double.eval()

    def noise(self, precisions: Precisions, *, runs: int | None = None, progress: bool = False) -> dict[str, Noise]:
        """For each value, how far rounding moves it.

        Args:
            precisions: a dtype, or dtypes by value, see :func:`longformer.parity.noise.precisions_of`.
            runs: how many runs it must come from at least; None is as many as there are, or else ``self.runs``.
            progress: whether to show a progress bar where this takes more than two seconds.
        """
        key = precisions if isinstance(precisions, torch.dtype) else tuple(precisions.items())
        if key not in self._moved:
            self._moved[key] = torch.Generator().manual_seed(0), {}
        generator, moved = self._moved[key]
        done = next((each.runs for each in moved.values()), 0)
        missing = max(runs or 0, done or self.runs) - done
        with bar(None, "rounding by chance", "values", shown=progress, total=missing * len(self.trace)) as values:
            for run in range(1, missing + 1):
                self._add_run(precisions, generator, moved, values.update)
                values.update(run * len(self.trace) - values.n)  # not every gradient is counted by itself
        return {name: each.noise() for name, each in moved.items()}

    def _add_run(
        self,
        precisions: Precisions,
        generator: torch.Generator,
        moved: dict[str, Moved],
        count: Callable[[int], object],
    ) -> None:
        model, keep = self._model, self.trace.inputs["attention_mask"] != 0
        with ExitStack() as stack:
            stack.enter_context(self._grad_mode())
            recorder = Recorder(model, choose_layout(model, None), check=False, **self._options())
            stack.enter_context(_rounded_weights(model, self.weights, recorder.values, precisions, generator))
            for part in model.modules():  # the same formula without an S × S tensor, in operations that can be seen
                if isinstance(part, LongformerSelfAttention):
                    stack.callback(setattr, part, "impl", part.impl)
                    part.impl = "chunked"
            mode = stack.enter_context(stochastic_rounding(torch.float64, generator))

            def add(name: str, value: Tensor) -> None:
                with mode.paused():
                    off = without_padding(name, value - self.trace[name], keep)
                    moved.setdefault(name, Moved()).add(off)
                count(1)

            recorder.sink = add
            recorder.probabilities_of = _RoundedProbabilities(mode)
            # The recorder's hooks come between these two kinds of hooks.
            stages = _Stages(model, recorder.values, precisions, mode)
            stack.enter_context(recorder.attached())
            stack.enter_context(stages.attached())
            self._run(recorder)


class _RoundedProbabilities:
    """Attention probabilities with the noise of their arithmetic.

    Their formula goes through a band diagonal by diagonal, which would take long operation by operation. So what a
    score and the sum of a softmax lose is put into their arguments and results.
    """

    def __init__(self, mode: Rounding) -> None:
        self.mode = mode

    def __call__(
        self, query: Tensor, key: Tensor, pattern: Any, tokens: Any, *globally: Tensor
    ) -> AttentionProbabilities:
        with self.mode.paused():
            moved = [self._moved(x) for x in globally]
            found = attention_probabilities(self._moved(query), self._moved(key), pattern, tokens, *moved)
            columns, rows = (None if x is None else self._summed(x) for x in found[1:])
            return AttentionProbabilities(self._summed(found.band), columns, rows)

    def _summed(self, x: Tensor) -> Tensor:
        """Probabilities (..., W) over the sum of a softmax, and stored."""
        moved = x * (1 + self._by_chance(x[..., :1], x.shape[-1]))
        return round_by_chance(moved, self.mode.dtype, self.mode.generator)

    def _moved(self, x: Tensor) -> Tensor:
        """(..., D), moved by as much as moves its products as a sum of D rounded terms moves them."""
        terms = x.shape[-1]
        return x * (1 + self._by_chance(x, terms) + self._by_chance(x[..., :1], terms))

    def _by_chance(self, like: Tensor, terms: int) -> Tensor:
        size = torch.finfo(self.mode.dtype).eps * (terms * ROUNDING / 2) ** 0.5
        return size * torch.randn(like.shape, dtype=torch.float64, generator=self.mode.generator)


class _Stages:
    """Sets the precision of a rounded run: up to each value's module, the one in which that value is computed."""

    def __init__(self, model: nn.Module, values: Mapping[str, Value], precisions: Precisions, mode: Rounding) -> None:
        self.model, self.values, self.mode = model, values, mode
        self.dtypes = [precision_of(precisions, value.name) for value in values.values()]
        # What is behind the last value, and the way back.
        rest = precisions if isinstance(precisions, torch.dtype) else coarsest(precisions.values())
        self.dtypes.append(rest)
        mode.dtype = self.dtypes[0]

    @contextmanager
    def attached(self) -> Iterator[None]:
        modules = dict(self.model.named_modules())
        with ExitStack() as stack:
            for path, following in zip(self.values, self.dtypes[1:], strict=True):
                stack.callback(modules[path].register_forward_hook(self._hook(following)).remove)
            yield

    def _hook(self, following: torch.dtype) -> Callable[..., None]:
        def turn(module: nn.Module, arguments: Any, output: Any) -> None:
            self.mode.dtype = following

        return turn


@contextmanager
def _rounded_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    values: Mapping[str, Value],
    precisions: Precisions,
    generator: torch.Generator,
) -> Iterator[None]:
    """While this is open, ``model``'s weights are rounded to the precision of the value that they serve."""
    changed = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # A module's value is computed by what is in it, save by what another value in it comes from.
            served = next((value.name for path, value in values.items() if name.startswith(f"{path}.")), "")
            dtype = precision_of(precisions, served)
            if coarsest([dtype, weights[name].dtype]) == weights[name].dtype:
                continue  # it has all digits of this weight
            parameter.copy_(round_by_chance(parameter, dtype, generator))
            changed.append((name, parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in changed:
                parameter.copy_(weights[name])
