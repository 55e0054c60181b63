"""opacus' gradients of single examples, taken from one pass over a batch, are those of the examples one by one."""

from __future__ import annotations

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor

from longformer import (
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from longformer.models.packed import may_serve

grad_sample = pytest.importorskip("opacus.grad_sample", reason="opacus: pip install opacus")
WORDS = ("word_embeddings.weight", "position_embeddings.weight")


TARGETS: dict[type, dict[str, Tensor]] = {
    LongformerForQuestionAnswering: {"start_positions": torch.arange(4, 8), "end_positions": torch.arange(4, 8)},
    LongformerForSequenceClassification: {"labels": torch.tensor([0, 1, 1, 0])},
    LongformerForTokenClassification: {"labels": torch.arange(192).view(4, 48) % 2},
}


def loss_of(model: torch.nn.Module, rows: slice, targets: dict[str, Tensor]) -> Tensor:
    inputs = [x[rows] for x in batch()]
    loss: Tensor = model(*inputs, **{key: x[rows] for key, x in targets.items()}).loss
    return loss


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients")  # of embeddings: ids have none
@pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype")  # opacus', of float64
@pytest.mark.parametrize("by_functorch", [False, True])
@pytest.mark.parametrize("cls", TARGETS)
def test_gradients_of_single_examples(cls: type, by_functorch: bool) -> None:
    model = build_class(cls).train()
    one_by_one = []
    for b in range(4):
        model.zero_grad()
        loss_of(model, slice(b, b + 1), TARGETS[cls]).backward()
        one_by_one.append({name: weight.grad for name, weight in model.named_parameters()})
    model.zero_grad()
    sampled = grad_sample.GradSampleModule(model, loss_reduction="mean", force_functorch=by_functorch)
    assert not may_serve(model.longformer, batch()[0])
    loss_of(sampled, slice(None), TARGETS[cls]).backward()
    for name, weight in model.named_parameters():
        for b, gradients in enumerate(one_by_one):
            actual, expected = weight.grad_sample[b], gradients[name]
            if expected is None:  # an example without global tokens leaves their projections out
                assert "_global" in name
                assert not actual.any()
                continue
            if not by_functorch and name.endswith(WORDS):  # opacus' own formula gives the padding's row a gradient
                actual = actual.index_fill(0, torch.tensor(model.config.pad_token_id), 0)
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
