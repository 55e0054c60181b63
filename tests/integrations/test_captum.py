"""captum's integrated gradients, through the embeddings, of a padded batch with global tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor, nn

from longformer import (
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)

attr = pytest.importorskip("captum.attr", reason="captum: pip install captum")
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


def test_word_embeddings_and_embeddings_as_input_agree(model: LongformerForQuestionAnswering) -> None:
    """Attributed to the word embeddings' module, and to the vectors that stand in its place."""
    ids, mask, global_mask = batch()
    words = model.get_input_embeddings()
    by_layer, difference = attribute(model, words, ids, mask, global_mask)
    torch.testing.assert_close(by_layer.sum((1, 2)), difference, rtol=1e-4, atol=1e-4)

    def score(vectors: Tensor, mask: Tensor, global_mask: Tensor, positions: Tensor) -> Tensor:
        output = model(None, mask, global_mask, position_ids=positions, inputs_embeds=vectors)
        return output.start_logits[:, 5]

    # By the ids, padding has the padding's position, and the text counts from behind that.
    positions = torch.where(mask > 0, mask.cumsum(1), 0) + model.config.pad_token_id
    baselines = torch.where(mask > 0, MASKED, ids)
    by_input = attr.IntegratedGradients(score).attribute(
        words(ids).detach(),
        baselines=words(baselines).detach(),
        additional_forward_args=(mask, global_mask, positions),
        n_steps=50,
    )
    torch.testing.assert_close(by_input, by_layer, rtol=1e-9, atol=1e-9)


def test_classes_of_texts_and_of_tokens() -> None:
    ids, mask, global_mask = batch()
    baselines = torch.where(mask > 0, MASKED, ids)
    for cls, target in ((LongformerForSequenceClassification, 1), (LongformerForTokenClassification, (5, 1))):
        model = build_class(cls)

        def logits(ids: Tensor, mask: Tensor, global_mask: Tensor, model: Any = model) -> Tensor:
            return model(ids, mask, global_mask).logits

        found, error = attr.LayerIntegratedGradients(logits, model.get_input_embeddings()).attribute(
            ids,
            baselines=baselines,
            target=target,
            additional_forward_args=(mask, global_mask),
            n_steps=50,
            return_convergence_delta=True,
        )
        assert found.shape == (*ids.shape, model.config.hidden_size) and found.abs().max() > 1e-4
        assert error.abs().max() < 1e-3
