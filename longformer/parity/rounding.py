"""What is true, and what rounding costs: a run in float64, and the same run with everything moved by one rounding.

The truth is our model over the same weights in float64, its attention by definition (``impl="reference"``). What a
precision must lose is estimated by moving every number that the model keeps: each weight, and each result of each
module, is multiplied by 1 + ε·u, with u uniform in [-1, 1] and ε one unit in the last place of that precision at 1, in
a few runs of the same float64 model; nothing is moved by less than the precision's smallest number. A head's query and
key are moved once more, each token's as a whole: where the products that make up a score are of one sign, its roundings
do not average out among them. How far a value moves then, root mean square over the runs, is the *noise* of the value:
it knows the depth, the weights and the input, and takes nothing from the implementations under test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longformer.models.attention import LongformerSelfAttention
from longformer.models.encoder import LongformerModel
from longformer.parity.format import Trace
from longformer.parity.layout import Longformer, choose_layout
from longformer.parity.recorder import Recorder, trace
from longformer.parity.table import PARAMETER

Inputs = Mapping[str, Tensor]

RUNS = 4  # perturbed runs: a noise of 64 numbers a row and 4 runs is known to 6%
DENSE = 1024  # tokens up to which the truth's attention is dense: beyond, S² numbers in float64 are too many


class Truth:
    """The run in float64 and the noise around it.

    Args:
        model: ours; its weights are the true ones, in whatever precision they are kept.
        inputs: arguments of its forward, by name.
        loss: of what the model gives, for gradients; None is no gradients.
        probabilities: whether attention probabilities are recorded.
        runs: perturbed runs for each noise.
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
        dense = self.inputs["input_ids"].shape[1] <= DENSE
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
        """By value: the mean square of what one rounding of everything moves, for each row, shape[:-1] of the value.

        A value's row is its last axis: the channels of a token, or of a token in one head.
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
            # Its hooks come before the recorder's, which so sees what was moved. Kernels cannot be checked then.
            with perturbed(self._model, self.weights, dtype, generator), self._grad_mode():
                recorder = Recorder(self._model, choose_layout(self._model, None), check=False, **self._options())
                recorder.sink = add
                with recorder.attached():
                    self._run(recorder)
        for name, noise in total.items():
            weight = f"{name.removesuffix('bias')}weight"
            if name.startswith(PARAMETER) and name.endswith(".bias") and weight in total:
                # A bias is a weight whose input is 1. Its gradient may be 0 in exact arithmetic, as a key's is, since
                # it moves all scores of a row alike; what a computer then gives is the rounding of its terms, as large
                # as in the weight beside it, though moving the terms' common factors leaves it 0.
                total[name] = torch.maximum(noise, total[weight].mean())
        return total


def row_mean_square(x: Tensor) -> Tensor:
    """Mean square over the last axis, in float64."""
    return x.double().square().mean(dim=-1) if x.dim() else x.double().square()


@contextmanager
def perturbed(
    model: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, generator: torch.Generator
) -> Iterator[None]:
    """Inside: ``model``'s weights, and what its modules give, moved by up to a unit of ``dtype``. Then as before."""
    info = torch.finfo(dtype)

    def uniform(shape: torch.Size) -> Tensor:
        return torch.empty(shape, dtype=torch.float32).uniform_(-1, 1, generator=generator)

    def move(x: Tensor) -> Tensor:
        # Below the smallest normal number the units shrink no more: what float16 makes of small gradients.
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
        if moved.requires_grad:  # the way back is rounded too
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
