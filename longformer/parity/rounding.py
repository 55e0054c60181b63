"""What is true, and what rounding costs: a run in float64, and the same run with everything moved by one rounding.

The truth is our model with the same weights in float64 and attention as it is defined (``impl="reference"``). What must
a precision lose? To estimate that, the same float64 model runs a few times more, and every number that it keeps is
moved: each weight and each result of each module is multiplied by 1 + ε·u, where u is uniform in [-1, 1] and ε is one
unit in the last place of that precision at 1. Nothing is moved by less than the precision's smallest number. The query
and key of each token in each head are moved once more, as a whole: if the products that make up a score have one sign,
their roundings do not average out. How far a value then moves, root mean square over the runs, is the *noise* of the
value. It depends on the depth, the weights and the input, and on nothing in the implementations under test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longformer.models.attention import LongformerSelfAttention
from longformer.models.encoder import LongformerModel
from longformer.parity.format import Trace
from longformer.parity.layout import Longformer, choose_layout
from longformer.parity.operations import Rounding
from longformer.parity.recorder import Recorder, trace
from longformer.parity.table import PARAMETER

Inputs = Mapping[str, Tensor]


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
        the mode, whose ``dtype`` may be changed meanwhile.
    """
    mode = Rounding(coarsest([dtypes] if isinstance(dtypes, torch.dtype) else dtypes), generator)
    with sdpa_kernel(SDPBackend.MATH), mode:
        yield mode


def coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Of floating-point dtypes the one with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


RUNS = 4  # perturbed runs: with 64 numbers in a row, 4 runs give its noise to 6%
DENSE = 1024  # tokens up to which the truth's attention is dense: beyond that, S² numbers in float64 are too many


class Truth:
    """The run in float64 and the noise around it.

    Args:
        model: ours. Its weights are the true ones, in whatever precision they are kept.
        inputs: the arguments of its forward, by name.
        loss: makes a loss from what the model gives, for gradients; None is no gradients.
        probabilities: whether attention probabilities are recorded.
        runs: how many perturbed runs the noise comes from.
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
        self._noise: dict[torch.dtype, dict[str, Tensor]] = {}
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

    def noise(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """For each value, how far one rounding of everything moves each row: mean squares of shape[:-1] of the value.

        A row is the last axis of a value: the channels of a token, or of a token in one head.
        """
        if dtype not in self._noise:
            self._noise[dtype] = self._estimate(dtype)
        return self._noise[dtype]

    def _estimate(self, dtype: torch.dtype) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}

        def add(name: str, value: Tensor) -> None:
            square = row_mean_square(value - self.trace[name]) / self.runs
            total[name] = total[name] + square if name in total else square

        generator = torch.Generator().manual_seed(0)
        for _ in range(self.runs):
            # These hooks come before the recorder's, so that it sees what was moved. Kernels cannot be checked then.
            with perturbed(self._model, self.weights, dtype, generator), self._grad_mode():
                recorder = Recorder(self._model, choose_layout(self._model, None), check=False, **self._options())
                recorder.sink = add
                with recorder.attached():
                    self._run(recorder)
        for name, noise in total.items():
            weight = f"{name.removesuffix('bias')}weight"
            if name.startswith(PARAMETER) and name.endswith(".bias") and weight in total:
                # A bias is a weight whose input is 1. Its gradient can be 0 in exact arithmetic: a key's bias moves all
                # scores of a row alike. A computer then gives the rounding of the terms, which is as large as in the
                # weight beside it. The perturbed runs do not show that: what they move are factors of all terms.
                total[name] = torch.maximum(noise, total[weight].mean())
        return total


def row_mean_square(x: Tensor) -> Tensor:
    """Mean square over the last axis, in float64."""
    return x.double().square().mean(dim=-1) if x.dim() else x.double().square()


@contextmanager
def perturbed(
    model: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, generator: torch.Generator
) -> Iterator[None]:
    """While this is open, ``model``'s weights and its modules' results are moved by up to a unit of ``dtype``."""
    info = torch.finfo(dtype)

    def uniform(shape: torch.Size) -> Tensor:
        return torch.empty(shape, dtype=torch.float32).uniform_(-1, 1, generator=generator)

    def move(x: Tensor) -> Tensor:
        # Below the smallest normal number the units do not shrink: small gradients in float16 are such numbers.
        return x + uniform(x.shape) * (x.abs() * info.eps).clamp(min=info.tiny * info.eps)

    def move_heads(x: Tensor, heads: int) -> Tensor:
        split = x.unflatten(-1, (heads, -1))
        return (split + split * info.eps * uniform(split.shape[:-1])[..., None]).flatten(-2)

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        moved = move(output)
        if module in scored:
            moved = move_heads(moved, scored[module])
        if moved.requires_grad:  # the backward pass is rounded too
            moved.register_hook(move)
        return moved

    scored = {
        projection: part.num_heads
        for part in model.modules()
        if isinstance(part, LongformerSelfAttention)
        for projection in (part.query, part.key, part.query_global, part.key_global)
    }
    parameters = dict(model.named_parameters())
    with ExitStack() as stack:
        for part in model.modules():
            stack.callback(part.register_forward_hook(hook).remove)
        stack.callback(_restore, parameters, weights)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.copy_(move(parameter))
        yield


@torch.no_grad()
def _restore(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
