"""Hints: the known slips that, replayed, give a run's numbers.

Where a run departs from the truth, what went into that value is still right in that run. So each known slip is
replayed: the value is computed again in float64, from the run's own recorded values and the true weights, with that
one mistake made on purpose. A slip is named only if this gives the run's value to within rounding. No hint is better
than a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longformer.parity import attention_slips, head_slips, linear_slips, slips
from longformer.parity.attention_replay import DENSE, OTHER_PATTERN
from longformer.parity.format import Trace
from longformer.parity.measure import measure
from longformer.parity.noise import Moved, precision_of, precisions_of
from longformer.parity.places import without_padding
from longformer.parity.rounding import Truth
from longformer.parity.scene import LackingError, Scene, Slip
from longformer.parity.sites import right_value
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, backward_order, split_name

SLIPS: tuple[Slip, ...] = (*slips.SLIPS, *linear_slips.SLIPS, *attention_slips.SLIPS, *head_slips.SLIPS)

PART = 0.3  # a slip must leave at most this part of the run's distance from the right value
RUNS = 4  # replays with everything moved by one rounding
NEAREST = 4.0  # of several slips that fit, those are named that leave at most so many times what the nearest leaves
SAME = "with this slip our {name} is theirs to within rounding"
# The value that is computed from each: where it is right, so was what it was computed from.
BEHIND = {
    "query": "local_output",
    "key": "local_output",
    "value": "local_output",
    "local_output": "attention_output",
    "global_rows": "attention_output",
    "attention_output": "intermediate",
    "intermediate": "feed_forward",
    "feed_forward": "output",
}


class Hints(NamedTuple):
    """hints: the slips that explain a value. notes: what else must be said, such as that none does."""

    hints: list[str]
    notes: list[str]


class _Fit(NamedTuple):
    """A slip that gives the run's value, and how far it is from that, root mean square over the whole value."""

    slip: Slip
    text: str
    left: float


def find_hints(run: Trace, name: str, truth: Truth, wrong: Sequence[str] = ()) -> Hints:
    """What is known of the cause by which ``run[name]`` departs from the truth.

    Args:
        run: the trace that departs.
        name: of the first value in which it does.
        truth: for the same input.
        wrong: the names of all values in which it departs.
    """
    if name.startswith(GRADIENT):
        return Hints([_backward(name, wrong)], [])
    scene = _scene(run, name, truth)
    tried = [slip for slip in SLIPS if scene.part in slip.parts]
    if not tried:
        return Hints([], [])
    with torch.no_grad():
        try:
            right = right_value(scene)
        except LackingError as lacking:
            return Hints([], [_not_replayed(scene, name, str(lacking))])
        judge = _Judge(run, name, truth)
        if judge.within_noise(right):
            return Hints([], [f"{name} is right for what {_theirs(run)} computed it from, which departs"])
        fits = [fit for slip in tried for fit in _replay(slip, scene, judge, right)]
        if not fits and _differs_at_global_tokens_alone(scene, judge, right):
            rows = name.replace("local_output", GLOBAL_ROWS)
            text = f"{name} must be 0 at the global tokens, whose rows are in {rows}; elsewhere it is right"
            return Hints([text], [])
    if not fits:
        few = linear_slips.too_few_tokens(scene)
        return Hints([], [f"none of the {len(tried)} known slips explains {name}", *([few] if few else [])])
    return Hints(_named(fits, name, _behind(run, name, truth, scene, right)), [])


def _scene(run: Trace, name: str, truth: Truth) -> Scene:
    layer, part = split_name(name)
    weights = {key.removeprefix("longformer."): weight for key, weight in truth.weights.items()}
    inputs = truth.trace.inputs
    return Scene(
        run, truth.trace, weights, truth.config, layer or 0, part, inputs, precision_of(precisions_of(run), name)
    )


class _Judge:
    """Whether a replay gives the run's value to within rounding.

    What rounding costs is the noise of the value or, for slips that magnify it, how far the replay itself moves when
    all that goes into it is moved by one rounding.
    """

    def __init__(self, run: Trace, name: str, truth: Truth) -> None:
        precisions = precisions_of(run)
        self.name, self.dtype = name, precision_of(precisions, name)
        self._keep = truth.trace.inputs["attention_mask"] != 0
        self.actual, self.noise = self._real(run[name].double()), truth.noise(precisions)[name]

    def _real(self, x: Tensor) -> Tensor:
        return without_padding(self.name, x, self._keep)

    def left(self, candidate: Tensor) -> float:
        """How far the run is from a replay."""
        return float((self.actual - self._real(candidate)).square().mean().sqrt())

    def within_noise(self, candidate: Tensor, moved: Sequence[Tensor] = ()) -> bool:
        """Whether rounding explains how far the run is from a replay.

        This is the only place where hints ask what rounding costs.

        Args:
            candidate: the replay.
            moved: the same replay, several times, with all that goes into it moved by one rounding.
        """
        candidate, noises = self._real(candidate), [self.noise]
        if not bool(torch.isfinite(candidate).all()):
            return False
        if moved:
            of_replay = Moved()
            for replay in moved:
                of_replay.add(self._real(replay) - candidate)
            noises.append(of_replay.noise())
        return any(not measure(self.actual, candidate, noise, self.dtype).far for noise in noises)


def _differs_at_global_tokens_alone(scene: Scene, judge: _Judge, right: Tensor) -> bool:
    """Whether the run's local output is right once the rows of global tokens, which a trace has as 0, are left out."""
    is_global = scene.tokens.is_global
    if scene.part != "local_output" or is_global is None:
        return False
    return judge.within_noise(torch.where(is_global[:, None, :, None], scene.run[judge.name].to(right.dtype), right))


def _replay(slip: Slip, scene: Scene, judge: _Judge, right: Tensor) -> list[_Fit]:
    """The forms of a slip that give the run's value."""
    distance, found, near = judge.left(right), [], []
    try:
        for i, (text, candidate) in enumerate(slip.replay(scene)):
            if candidate.shape != right.shape or not (left := judge.left(candidate)) <= PART * distance:
                continue
            if judge.within_noise(candidate):
                found.append(_Fit(slip, text, left))
            else:
                near.append((i, text, candidate, left))
        if near:  # some slips magnify rounding, such as a scale that is left out
            eps = torch.finfo(scene.dtype).eps
            again = [list(slip.replay(scene.moved(eps, seed))) for seed in range(RUNS)]
            for i, text, candidate, left in near:
                moved = [replays[i][1] for replays in again if len(replays) > i and replays[i][0] == text]
                if len(moved) == RUNS and judge.within_noise(candidate, moved):
                    found.append(_Fit(slip, text, left))
    except LackingError:  # the run lacks what this slip needs
        pass
    return found


def _named(fits: list[_Fit], name: str, behind: str | None) -> list[str]:
    """The hints: of the fits with the lowest rank those that are nearest, in the order of the table."""
    rank = min(fit.slip.rank for fit in fits)
    fits = [fit for fit in fits if fit.slip.rank == rank]
    nearest = min(fit.left for fit in fits)
    best: dict[str, list[str]] = {}
    for fit in fits:
        if fit.left <= NEAREST * nearest:
            texts = best.setdefault(fit.slip.name, [])
            if fit.text not in texts:
                texts.append(fit.text)
    hints = []
    recorded = {fit.slip.name: fit.slip.recorded for fit in fits}
    for slip, texts in best.items():
        text = _either(texts)
        if behind is not None:
            how = recorded[slip]
            what = f"it was recorded {how}" if how else text
            text = f"only the recording of {name} is wrong, since {behind} behind it is right: {what}"
        hints.append(f"{text}; {SAME.format(name=name)}")
    return hints


def _either(texts: list[str]) -> str:
    """Several texts as one: those that differ in a single word are said once, with all of these words."""
    words = [text.split() for text in texts]
    if len({len(each) for each in words}) == 1:
        columns = [list(dict.fromkeys(column)) for column in zip(*words, strict=True)]
        if sum(len(column) > 1 for column in columns) <= 1:
            return " ".join(" or ".join(column) for column in columns)
    return "; or ".join(texts)


def _behind(run: Trace, name: str, truth: Truth, scene: Scene, right: Tensor) -> str | None:
    """The value computed from this one if it is right: then the model has used the right numbers."""
    layer, part = split_name(name)
    if part == "embeddings":
        later = "layer.0.query"
    elif part == "output" and layer is not None:
        last = layer + 1 == truth.config.num_hidden_layers
        later = "logits" if last else f"layer.{layer + 1}.query"
    elif part in BEHIND:
        later = f"layer.{layer}.{BEHIND[part]}"
    else:
        return None
    padding = scene.inputs["attention_mask"] == 0
    if part == "local_output" and bool(padding.any()):
        off = (run[name].double() - right).square().sum(dim=(1, 3))
        if float(off[padding].max()) > NEAREST * float(off[~padding].max()):
            return None  # nothing behind depends on padding
    if later not in run or later not in truth.trace or run[later].shape != truth.trace[later].shape:
        return None
    judge = _Judge(run, later, truth)
    return later if judge.within_noise(truth.trace[later]) else None


def _not_replayed(scene: Scene, name: str, lacking: str) -> str:
    length = scene.inputs["input_ids"].shape[1]
    if scene.part == "local_output" and length > DENSE:
        return (
            f"slips of attention were not tried on {name}: they are replayed up to {DENSE:,} tokens, and these are "
            f"{length:,}; compare a shorter input (--max-tokens {DENSE})"
        )
    if lacking == OTHER_PATTERN:
        return f"slips of attention were not tried on {name}: they are of windows, which this layer has not"
    return f"known slips were not tried on {name}: the trace lacks {lacking}, from which it is computed"


def _theirs(run: Trace) -> str:
    return run.metadata.get("implementation") or "the run"


def _backward(name: str, wrong: Sequence[str]) -> str:
    """The hint for a gradient that differs first: the forward pass is right, and so is the backward pass down to it."""
    if not name.startswith(PARAMETER):
        value = name.removeprefix(GRADIENT)
        return f"every value on the way forward is right: the mistake is in the backward pass of what {value} goes into"
    found = sorted({name, *(other for other in wrong if other.startswith(PARAMETER))}, key=backward_order)
    first = found[0].removeprefix(PARAMETER)
    if len(found) == 1:
        return f"only the gradient by {first} is wrong: the mistake is in the backward pass of what it belongs to"
    return (
        f"the gradients by {len(found)} parameters are wrong, and those by all recorded values are right; the backward "
        f"pass comes to {first} first"
    )
