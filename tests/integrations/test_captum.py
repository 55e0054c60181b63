"""captum's integrated gradients, through the embeddings, of a padded batch with global tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor, nn

from longformer import LongformerForQuestionAnswering

attr = pytest.importorskip("captum.attr", reason="captum: pip install 'longformer[integrations]'")
MASKED = 4  # id of the token that stands for nothing


@pytest.fixture
def model() -> LongformerForQuestionAnswering:
    return build_class(LongformerForQuestionAnswering)


def attribute(
    model: Any, part: nn.Module, ids: Tensor, mask: Tensor, global_mask: Tensor, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """Attributions (B, S, C) to what ``part`` gives, and the difference (B,) of scores that they explain."""

    def score(ids: Tensor, mask: Tensor, global_mask: Tensor) -> Tensor:
        return model(ids, mask, global_mask).start_logits[:, 5]

    baselines = torch.where(mask > 0, MASKED, ids)
    attributions = attr.LayerIntegratedGradients(score, part).attribute(
        ids, baselines=baselines, additional_forward_args=(mask, global_mask), n_steps=50, **arguments
    )
    with torch.no_grad():
        return attributions, score(ids, mask, global_mask) - score(baselines, mask, global_mask)


@pytest.mark.parametrize("at_once", [None, 40])
@pytest.mark.parametrize("part", ["embeddings", "encoder.layer.0", "encoder.layer.1"])
def test_completeness(model: LongformerForQuestionAnswering, part: str, at_once: int | None) -> None:
    """The attributions add up to what the text changes, and none falls to padding."""
    ids, mask, global_mask = batch()
    module = model.longformer.get_submodule(part)
    attributions, difference = attribute(model, module, ids, mask, global_mask, internal_batch_size=at_once)
    assert attributions.shape == (*ids.shape, model.config.hidden_size)
    assert difference.abs().min() > 0.01
    torch.testing.assert_close(attributions.sum((1, 2)), difference, rtol=1e-4, atol=1e-4)
    assert not attributions[mask == 0].any()


def test_a_row_of_a_batch_has_the_attributions_that_it_has_alone(model: LongformerForQuestionAnswering) -> None:
    inputs, part = batch(), model.longformer.embeddings
    together, _ = attribute(model, part, *inputs)
    for b, length in ((0, 40), (3, 9)):
        alone, _ = attribute(model, part, *(x[b : b + 1, :length] for x in inputs))
        torch.testing.assert_close(together[b, :length], alone[0], rtol=1e-10, atol=1e-10)
