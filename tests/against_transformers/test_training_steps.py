"""Twenty steps of AdamW: our model and transformers', from the same weights over the same batches, stay together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from reference import TINY, build, padded_batch, question_row
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from longformer.training import QAOptions
from longformer.training.optimizer import make_optimizer, set_learning_rate

STEPS = 20


def batches() -> Iterator[dict[str, Tensor]]:
    """Of questions of different length, padded; the answers' places are random."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        lengths = torch.randint(20, 60, (4,), generator=generator).tolist()
        inputs = padded_batch(TINY, [question_row(TINY, 4 + i, length) for i, length in enumerate(lengths)])
        starts = torch.tensor([int(torch.randint(8, length, (), generator=generator)) for length in lengths])
        yield {**inputs, "start_positions": starts, "end_positions": (starts + 2).clamp(max=min(lengths) - 1)}


def losses(model: nn.Module, data: list[dict[str, Tensor]], options: QAOptions) -> list[float]:
    optimizer = make_optimizer(model, options)
    found = []
    for step, inputs in enumerate(data):
        set_learning_rate(optimizer, options, step, STEPS)
        optimizer.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        clip_grad_norm_(model.parameters(), options.max_grad_norm)
        optimizer.step()
        found.append(output.loss.item())
    return found


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_losses_stay_together(layer_decay: float) -> None:
    """To 1e-5 of the loss. Dropout is off, since the two draw it otherwise (``eval`` mode, with gradients)."""
    # Where a gradient is 0 but for rounding, as a key's bias' is, AdamW makes whole steps of the rounding.
    options = QAOptions(source="s", output="o", files=("f",), learning_rate=1e-3, layer_decay=layer_decay)
    ours, reference = build(TINY)
    reference.load_state_dict({name: weight.clone() for name, weight in ours.state_dict().items()}, assign=True)
    data = list(batches())
    mine, theirs = losses(ours, data, options), losses(reference, data, options)
    assert max(theirs) - min(theirs) > 0.1
    assert mine == pytest.approx(theirs, rel=1e-5)
