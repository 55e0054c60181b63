"""Which rows make a step, and how a step is cut for processes and for memory: a pure function of seed and epoch.

So that a run's place in the data is the number of its step, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

RUN = 50  # steps within which rows are sorted by length: alike within a step, random over the whole


class Part(NamedTuple):
    """Rows that one process computes at once.

    counts: False where the part is there only to keep the processes in step; its loss is taken times 0.
    """

    rows: list[int]
    counts: bool


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for each tuple of numbers, such as seed and epoch."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    made = torch.Generator().manual_seed(seed)
    torch.randint(2**62, (8,), generator=made)  # neighbouring seeds start alike
    return made


def steps_of_epoch(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """All rows once, in random order, in steps of ``batch_size`` rows of like length; the last may be smaller.

    Args:
        lengths: tokens of each row.
    """
    draw = generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=draw).tolist()
    steps: list[list[int]] = []
    for i in range(0, len(order), RUN * batch_size):
        run = sorted(order[i : i + RUN * batch_size], key=lambda row: lengths[row])
        steps += [run[j : j + batch_size] for j in range(0, len(run), batch_size)]
    return [steps[i] for i in torch.randperm(len(steps), generator=draw).tolist()]


def parts_of_step(
    rows: Sequence[int], lengths: Sequence[int], batch_tokens: int, *, rank: int, size: int
) -> list[Part]:
    """What process ``rank`` of ``size`` computes of a step, in parts of at most ``batch_tokens`` tokens.

    Every process has the same number of parts, since each may wait for the others in each of them.
    """
    cut = [_cut(rows[r::size], lengths, batch_tokens) for r in range(size)]
    count = max(map(len, cut))
    shortest = min(rows, key=lambda row: lengths[row])
    idle = Part([shortest], counts=False)
    return [Part(part, counts=True) for part in cut[rank]] + [idle] * (count - len(cut[rank]))


def _cut(rows: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    tokens = 0
    for row in rows:
        if not parts or tokens + lengths[row] > batch_tokens:
            parts.append([])
            tokens = 0
        parts[-1].append(row)
        tokens += lengths[row]
    return parts
