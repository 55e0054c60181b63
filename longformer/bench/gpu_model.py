"""``bench gpu-model``: the whole question-answering model on a GPU, forward and training step, beside transformers'.

Weights and documents are those of ``bench model``, and a document is repeated to fill a batch. What does not fit into
the device's memory is listed as missing. On a CPU everything runs too, so that a run can be rehearsed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from longformer.bench.clocks import Clock, GpuClock, cpu_clock
from longformer.bench.gpu_device import forget
from longformer.bench.machine import dtype_name
from longformer.bench.model import logits, our_model, reference_model
from longformer.bench.problem import make_training_inputs
from longformer.bench.timing import Case, Contender, Measurement, Record, agree, interleave
from longformer.bench.training import OURS, RIVALS, Step, contender
from longformer.config import LongformerConfig
from longformer.distributed import check_device

TRAINING_TOLERANCE = 0.3  # of gradients in half precision after twelve layers of random weights
WARM_UP = 3  # runs that do not count


class _Models:
    """Both models on the device, with the same weights."""

    def __init__(self, config: LongformerConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype
        self.made: dict[str, nn.Module] = {}

    def get(self, name: str) -> nn.Module:
        """Ours, or transformers' under any other name than ours."""
        name = OURS if name == OURS else "transformers"
        if name not in self.made:
            make = our_model if name == OURS else reference_model
            self.made[name] = make(self.config).to(self.device, self.dtype)
        return self.made[name]


def records(
    config: LongformerConfig,
    *,
    batches: Sequence[int],
    tokens: int,
    global_tokens: int,
    dtype: torch.dtype,
    device: str,
    rounds: int,
) -> Iterator[Record]:
    """A record of the forward pass and one of the training step for each size of batch.

    Raises:
        LongformerError: the device cannot be used, or the model has too few positions.
        DisagreementError: two results differ by more than the dtype allows.
    """
    where = check_device(device)
    clock: Clock = GpuClock() if where.type == "cuda" else cpu_clock
    models = _Models(config, where, dtype)
    document = make_training_inputs(config, tokens, global_tokens)
    for batch in batches:
        inputs = {name: x.expand(batch, *x.shape[1:]).contiguous().to(where) for name, x in document.items()}
        settings = {
            "shape": [batch, tokens],
            "global_tokens": global_tokens,
            "dtype": dtype_name(dtype),
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
            "config": config.to_dict(),
        }
        about = f"{batch} x {tokens} tokens, {global_tokens} global, {dtype_name(dtype)}"
        forward: dict[str, Any] = {
            name: partial(_forward, name, models, inputs["input_ids"]) for name in (OURS, "transformers")
        }
        step: dict[str, Any] = {name: partial(_step, name, models, inputs) for name in (OURS, *RIVALS)}
        for what, builders in (("model forward", forward), ("training step", step)):
            case = Case(f"{what}, {about}", settings, dtype, builders, items=(batch * tokens, "tokens"))
            yield _measure(case, rounds, clock)
            if where.type == "cuda":
                forget()


def _forward(name: str, models: _Models, ids: torch.Tensor) -> Contender:
    return Contender(name, partial(logits, models.get(name).eval(), input_ids=ids))


def _step(name: str, models: _Models, inputs: dict[str, torch.Tensor]) -> Contender:
    step = contender(name, partial(Step, models.get(name), inputs, 0.1))
    step.tolerance = TRAINING_TOLERANCE
    return step


def _measure(case: Case, rounds: int, clock: Clock) -> Record:
    contenders, differences, missing = agree(case)
    for one in contenders:
        for _ in range(WARM_UP):
            one.prepare()
            one.run()
    seconds = interleave(contenders, rounds, clock)
    measurements = [Measurement(name, seconds[name], difference) for name, difference in differences.items()]
    for one in contenders:
        one.prepare()  # which drops a step's gradients
    return Record(case.name, case.settings, measurements, missing, items=case.items)
