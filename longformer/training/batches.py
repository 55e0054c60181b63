"""Which rows make a step, and how a step is cut into parts: for each process, and to limit the memory of one part.

Which rows make a step depends on the seed and the epoch alone. So the number of a step says where a run stands in the
data, for any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

SORTED_STEPS = 50  # so many steps are sorted by length at a time: like lengths within a step, random order overall


class Part(NamedTuple):
    """Rows that one process computes at once.

    counts: False if the part only keeps the processes in step. Then its loss is multiplied by 0.
    """

    rows: list[int]
    counts: bool


def generator(*numbers: int) -> torch.Generator:
    """A generator that belongs to these numbers, such as seed and epoch, and to no others."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (2**63 - 1)
    draw = torch.Generator().manual_seed(seed)
    torch.randint(2**62, (8,), generator=draw)  # the first draws of neighbouring seeds are alike
    return draw


def steps_of_epoch(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Every row once, in random order, in steps of ``batch_size`` rows of similar length. One step may be smaller.

    Args:
        lengths: tokens of each row.
    """
    draw = generator(seed, epoch)
    order = torch.randperm(len(lengths), generator=draw).tolist()
    steps: list[list[int]] = []
    for i in range(0, len(order), SORTED_STEPS * batch_size):
        rows = sorted(order[i : i + SORTED_STEPS * batch_size], key=lambda row: lengths[row])
        steps += [rows[j : j + batch_size] for j in range(0, len(rows), batch_size)]
    return [steps[i] for i in torch.randperm(len(steps), generator=draw).tolist()]


def parts_of_step(
    rows: Sequence[int], lengths: Sequence[int], batch_tokens: int, *, rank: int, size: int
) -> list[Part]:
    """What process ``rank`` of ``size`` computes of a step, in parts of at most ``batch_tokens`` tokens.

    Every process has the same number of parts, because the processes may wait for each other in every part.
    """
    by_rank = [_cut_by_tokens(rows[r::size], lengths, batch_tokens) for r in range(size)]
    count = max(map(len, by_rank))
    shortest = min(rows, key=lambda row: lengths[row])
    idle = Part([shortest], counts=False)
    return [Part(part, counts=True) for part in by_rank[rank]] + [idle] * (count - len(by_rank[rank]))


def _cut_by_tokens(rows: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    parts: list[list[int]] = []
    tokens = 0
    for row in rows:
        if not parts or tokens + lengths[row] > batch_tokens:
            parts.append([])
            tokens = 0
        parts[-1].append(row)
        tokens += lengths[row]
    return parts
