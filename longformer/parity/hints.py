"""Known slips: what a value would be if the implementation had made one.

Where a run first departs from the truth, what went into that value is still right. So each slip is tried: the value is
computed again in float64, from the run's own recorded values and the true weights, with that one mistake made on
purpose. A slip is named only if this reproduces the run's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from longformer.parity import attention_slips, head_slips, slips
from longformer.parity.format import Trace
from longformer.parity.rounding import Truth
from longformer.parity.slips import ANOTHER, EPS, LackingError, Scene, Slip
from longformer.parity.table import GRADIENT, PARAMETER, split_name

# How far a slip may be from the run that it explains: this part of the run's distance from the truth. If that distance
# is itself hardly more than rounding, then as far as rounding explains.
REPRODUCED = 0.05
REPRODUCED_ROUNDED = 0.3
ROUNDED = 2.0  # times the noise

SLIPS: dict[str, Callable[[Scene], Iterator[Slip]]] = {
    "embeddings": slips.embeddings,
    "query": slips.projection("query"),
    "key": slips.projection("key"),
    "value": slips.projection("value"),
    "local_output": attention_slips.local_output,
    "global_rows": attention_slips.rows_of_global_tokens,
    "attention_output": slips.sublayer(
        "attention.output.dense", "attention.output.LayerNorm", slips.context, lambda scene: scene.layer_input()
    ),
    "intermediate": slips.intermediate,
    "feed_forward": slips.feed_forward,
    "output": slips.sublayer(
        "output.dense",
        "output.LayerNorm",
        lambda scene: scene.value("feed_forward"),
        lambda scene: scene.value("attention_output"),
    ),
    "pooler_output": head_slips.pooler_output,
    "logits": head_slips.logits,
}


def find_hints(run: Trace, name: str, truth: Truth) -> list[str]:
    """The known slips that reproduce ``run[name]``."""
    if name.startswith(GRADIENT):
        return [_backward(name)]
    layer, part = split_name(name)
    weights = {key.removeprefix("longformer."): weight for key, weight in truth.weights.items()}
    scene = Scene(run, truth.trace, weights, truth.config, 0 if layer is None else layer, truth.trace.inputs)
    if part not in SLIPS:
        return []
    actual, true = run[name].double(), truth.trace[name].double()
    distance = float((actual - true).norm())
    noise = float(truth.noise(run[name].dtype)[name].mean()) ** 0.5 * math.sqrt(actual.numel())
    allowed = max(REPRODUCED * distance, min(REPRODUCED_ROUNDED * distance, ROUNDED * noise))
    found = []
    with torch.no_grad():
        try:
            for text, candidate in SLIPS[part](scene):
                if candidate.shape != actual.shape:
                    continue
                left = float((actual - candidate).norm())
                if left <= allowed:
                    found.append((left, text))
        except LackingError:  # the run lacks what the other slips need
            pass
    closest = min((left for left, _ in found), default=0.0)
    texts = list(dict.fromkeys(text for left, text in found if left <= 4 * closest or ANOTHER in text))
    # Some weight or other explains every mistake in a linear layer: that counts only if nothing else explains it.
    return _merged([text for text in texts if ANOTHER not in text] or texts)


def _backward(name: str) -> str:
    """The hint for a gradient that differs first: the forward pass is right, and so is the backward pass down to it."""
    if name.startswith(PARAMETER):
        return f"only the gradient by {name.removeprefix(PARAMETER)} is wrong: the backward pass of what it belongs to"
    value = name.removeprefix(GRADIENT)
    return f"every value on the way forward is right: the mistake is in the backward pass of what {value} goes into"


def _merged(texts: list[str]) -> list[str]:
    """The texts, with one for all eps if several of them fit."""
    eps = [text for text in texts if text.startswith(EPS)]
    if len(eps) < 2:
        return texts
    others = " and ".join(text.removeprefix(EPS).split()[0] for text in eps[1:])
    return [f"{eps[0]} ({others} would fit as well)", *(text for text in texts if text not in eps)]
