"""A small training that ``longformer parity steps`` compares, in one process and in several."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from longformer.parity import Training, trace_steps

STEPS, ROWS = 3, 8


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """(ROWS, 6) and their classes."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(ROWS, 6, generator=generator)
    return x, torch.randint(0, 3, (ROWS,), generator=generator)


def loss(module: nn.Module, step: int) -> Tensor:
    x, classes = batch(step)
    return F.cross_entropy(module(x.to(next(module.parameters()).dtype)), classes)


def make_training() -> Training:
    made = model()
    return Training(made, torch.optim.AdamW(made.parameters(), lr=1e-2), loss, STEPS)


def make_clipped() -> Training:
    training = make_training()
    training.before_step = lambda module: nn.utils.clip_grad_norm_(module.parameters(), 0.5)
    return training


def run_joined(folder: Path) -> None:
    """In one of two processes: train on its half of the rows; and once more without averaging the gradients."""
    dist.init_process_group("gloo")
    for forgets in (False, True):
        train(folder, forgets)
    dist.destroy_process_group()


def train(folder: Path, forgets: bool) -> None:
    """One training of this process, whose trace's name begins with ``rank`` or ``alone``."""
    rank, made, name = dist.get_rank(), model(), "alone" if forgets else "rank"
    joined = made if forgets else DistributedDataParallel(made)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    with trace_steps(joined, optimizer, path=folder / f"{name}{rank}.safetensors") as steps:
        for step in range(STEPS):
            x, classes = (part[half] for part in batch(step))
            found = F.cross_entropy(joined(x), classes)
            optimizer.zero_grad()
            found.backward()
            steps.loss(found)
            optimizer.step()
