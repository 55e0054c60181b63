"""Steps of training with and without DistributedDataParallel, in functions that another process can import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny_heads import batch, build_class
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import longformer

# Of each step, how many tokens are global in the rows of either process.
STEPS = {"none": [(0, 0)] * 3, "one process": [(3, 0)] * 2 + [(0, 5)], "unequal": [(2, 20), (1, 4), (0, 0), (7, 2)]}
TARGETS: dict[str, dict[str, Tensor]] = {
    "LongformerForQuestionAnswering": {"start_positions": torch.arange(4), "end_positions": torch.arange(4, 8)},
    "LongformerForMaskedLM": {"labels": torch.arange(192).view(4, 48) % 60},
    "LongformerForSequenceClassification": {"labels": torch.tensor([0, 1, 1, 0])},
    "LongformerForTokenClassification": {"labels": torch.arange(192).view(4, 48) % 2},
}


def part_of(name: str, rank: int, global_tokens: int) -> dict[str, Tensor]:
    """The two rows of a process."""
    ids, mask, _ = batch()
    where = torch.arange(48).expand(4, -1)
    rows = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": (where < global_tokens) & (mask > 0)}
    return {key: x[2 * rank : 2 * rank + 2] for key, x in {**rows, **TARGETS[name]}.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy, since the next step's are added in place; zeros where there are none."""
    return {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
    }


def run_joined(cases: Sequence[tuple[str, bool]], folder: Path) -> None:
    """In one of two processes: write the gradients of every step of each model into ``folder``.

    Args:
        cases: a model's class, and whether its layers are computed again in the backward pass.
    """
    dist.init_process_group("gloo")
    for name, again in cases:
        found = {case: _steps_joined(name, again, steps) for case, steps in STEPS.items()}
        torch.save(found, folder / f"{name}-{again}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


def _steps_joined(name: str, again: bool, steps: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    model = build_class(getattr(longformer, name)).train()
    if again:
        model.gradient_checkpointing_enable()
    copied = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for numbers in steps:
        optimizer.zero_grad()
        output: Any = copied(**part_of(name, dist.get_rank(), numbers[dist.get_rank()]))
        output.loss.backward()
        found.append(gradients(model))
        optimizer.step()
    return found


def run_alone(name: str) -> dict[str, list[dict[str, Tensor]]]:
    """The same in one process, by the mean of both losses."""
    found: dict[str, list[dict[str, Tensor]]] = {}
    for case, steps in STEPS.items():
        model = build_class(getattr(longformer, name)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found[case] = []
        for numbers in steps:
            optimizer.zero_grad()
            for rank, number in enumerate(numbers):
                (model(**part_of(name, rank, number)).loss / 2).backward()
            found[case].append(gradients(model))
            optimizer.step()
    return found
