"""opacus' gradients of single examples, taken from one pass over a batch, are those of the examples one by one."""

from __future__ import annotations

import pytest
import torch
from tiny_heads import batch, build_class
from torch import Tensor

from longformer import LongformerForQuestionAnswering
from longformer.models.packed import may_serve

grad_sample = pytest.importorskip("opacus.grad_sample", reason="opacus: pip install 'longformer[integrations]'")
WORDS = ("word_embeddings.weight", "position_embeddings.weight")


def loss_of(model: torch.nn.Module, *inputs: Tensor) -> Tensor:
    ids, mask, global_mask, positions = inputs
    loss: Tensor = model(ids, mask, global_mask, start_positions=positions, end_positions=positions).loss
    return loss


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients")  # of embeddings: ids have none
@pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype")  # opacus', of float64
@pytest.mark.parametrize("by_functorch", [False, True])
def test_gradients_of_single_examples(by_functorch: bool) -> None:
    model = build_class(LongformerForQuestionAnswering).train()
    inputs = (*batch(), torch.tensor([4, 5, 6, 7]))
    one_by_one = []
    for b in range(4):
        model.zero_grad()
        loss_of(model, *(x[b : b + 1] for x in inputs)).backward()
        one_by_one.append({name: weight.grad for name, weight in model.named_parameters()})
    model.zero_grad()
    sampled = grad_sample.GradSampleModule(model, loss_reduction="mean", force_functorch=by_functorch)
    assert not may_serve(model.longformer, inputs[0])
    loss_of(sampled, *inputs).backward()
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
