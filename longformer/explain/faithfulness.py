"""Which attribution names the tokens that an answer's score hangs on: they are taken out, and put in, in its order.

Deletion and insertion curves (Petsiuk et al. 2018, arXiv 1806.07421, §3.2). Deletion takes out the tokens that an
attribution names first: the sooner the score falls, the better. Insertion begins with a row without any of the tokens,
and puts these in first: the sooner the score rises, the better. Tokens in a random order are the measure of both.

Letters: S sequence, N removable tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from longformer.explain.attribution import Probe

POINTS = 5  # parts of a curve: its places are N to the power of 0.2, 0.4, and so on, apart from 0 and N
RANDOM = "random"


@dataclass(frozen=True)
class Curve:
    """An answer's score, start score plus end score, where the first tokens of an order are taken out or put in.

    Args:
        deletion: for each of ``Curves.counts``, the score where so many tokens are taken out.
        insertion: the score where nothing but so many tokens is there.
    """

    deletion: list[float]
    insertion: list[float]

    @property
    def margin(self) -> float:
        """How much higher insertion lies than deletion, the mean over all places: the larger, the better."""
        return sum(b - a for a, b in zip(self.deletion, self.insertion, strict=True)) / len(self.deletion)


@dataclass(frozen=True)
class Curves:
    """The curves of several orders over the same tokens.

    Args:
        counts: places of the curves, how many tokens are taken out or put in, from 0 to N.
        of: by the name of the method; ``"random"`` is a random order.
    """

    counts: list[int]
    of: Mapping[str, Curve]

    @property
    def best(self) -> str:
        """The method with the largest margin, which may be ``"random"``."""
        return max(self.of, key=lambda name: self.of[name].margin)


def places(removable: int) -> list[int]:
    """How many tokens are taken out at each place of a curve, ascending."""
    inner = {round(removable ** (i / POINTS)) for i in range(1, POINTS)}
    return sorted({0, *inner, removable})


def follow_orders(
    probe: Probe, attributions: Mapping[str, Tensor], *, seed: int = 0, progress: bool | None = False
) -> Curves:
    """The curves of each attribution, and those of a random order.

    Args:
        probe: the span's scores.
        attributions: (2, S) each. Tokens come in the order of the sum of both sides, the largest first.
        seed: of the random order.
        progress: show a bar on standard error; None is where that is a terminal.
    """
    removable = probe.removable.nonzero().flatten()
    chance = torch.rand(len(probe.ids), generator=torch.Generator().manual_seed(seed))
    values = {**{name: both.sum(0) for name, both in attributions.items()}, RANDOM: chance}
    counts = places(len(removable))
    rows = [torch.zeros_like(probe.removable), probe.removable]  # nothing taken out; everything
    for value in values.values():
        order = removable[value[removable].argsort(descending=True, stable=True)]
        for count in counts[1:-1]:
            absent = torch.zeros_like(probe.removable)
            absent[order[:count]] = True
            rows += [absent, probe.removable & ~absent]
    scores: list[float] = []
    with tqdm(total=len(rows), desc="deletion, insertion", disable=None if progress is None else not progress) as bar:
        for part in torch.stack(rows).split(probe.batch_rows):
            scores += probe.without(part).sum(1).tolist()
            bar.update(len(part))
    whole, nothing, *inner = scores
    found, each = {}, 2 * (len(counts) - 2)
    for i, name in enumerate(values):
        mine = inner[i * each : (i + 1) * each]
        found[name] = Curve([whole, *mine[::2], nothing], [nothing, *mine[1::2], whole])
    return Curves(counts, found)
