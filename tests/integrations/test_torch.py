"""What torch itself does to a model: pruning, its functional transforms, tracing, and shapes without numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_heads import (
    CLASSES,
    SEQ_LEN,
    batch,
    build_class,
    counted_layers,
    encoder_of,
    flat,
    linear_names,
    weighted_sum,
)
from tiny_models import CONFIG, random_ids
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import longformer.models.linear
from longformer import LongformerError, LongformerForMaskedLM, LongformerForQuestionAnswering, LongformerModel
from longformer.models.packed import may_serve

# ---- pruning


@pytest.mark.parametrize("cls", CLASSES)
def test_pruned_weights_are_zeros(cls: type) -> None:
    """While they are masked at every call, and once the masks are made permanent: as in a model with zeros."""
    pruned, zeroed = build_class(cls), build_class(cls)
    before = flat(zeroed(*batch()))
    for name in linear_names(pruned):
        part = pruned.get_submodule(name)
        prune.l1_unstructured(part, "weight", amount=0.3)
        zeroed.get_submodule(name).weight.data *= part.weight_mask
    assert not may_serve(encoder_of(pruned), batch()[0])
    expected = flat(zeroed(*batch()))
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(flat(pruned(*batch())), expected, rtol=1e-11, atol=1e-11)
    weighted_sum(pruned(*batch())).backward()
    weighted_sum(zeroed(*batch())).backward()
    for name in linear_names(pruned):
        part = pruned.get_submodule(name)
        masked = zeroed.get_submodule(name).weight.grad * part.weight_mask
        torch.testing.assert_close(part.weight_orig.grad, masked, rtol=1e-10, atol=1e-10)
        prune.remove(part, "weight")
    with counted_layers() as layers:
        torch.testing.assert_close(flat(pruned(*batch())), expected, rtol=1e-11, atol=1e-11)
    assert len(layers) == 2


# ---- torch.func


def question_loss(model: nn.Module, weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    ids, mask, global_mask, position = inputs
    positions = {"start_positions": position, "end_positions": position}
    loss: Tensor = functional_call(model, weights, (ids, mask, global_mask), positions).loss
    return loss


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_functional_call_uses_the_weights_that_it_is_given(impl: str) -> None:
    model, other = (build_class(LongformerForQuestionAnswering, impl=impl) for _ in range(2))
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.2)
        expected = flat(other(*batch()))
        given = {name: weight.detach().clone() for name, weight in other.named_parameters()}
        torch.testing.assert_close(flat(functional_call(model, given, batch())), expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(flat(model(*batch())), expected, atol=1e-3)


@pytest.mark.parametrize("impl", ["auto", "reference", "banded"])
def test_grad_is_backward(impl: str) -> None:
    model = build_class(LongformerForQuestionAnswering, impl=impl)
    inputs = (*batch(), torch.tensor([4, 5, 6, 7]))
    weights = dict(model.named_parameters())
    actual = grad(lambda weights: question_loss(model, weights, *inputs))(weights)
    question_loss(model, weights, *inputs).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(actual[name], weight.grad, rtol=1e-10, atol=1e-11)


def test_a_derivative_in_forward_mode_is_the_gradients() -> None:
    model = build_class(LongformerForQuestionAnswering, impl="reference")
    inputs = (*batch(), torch.tensor([4, 5, 6, 7]))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    directions = {name: torch.randn_like(weight) for name, weight in weights.items()}
    for table in ("word", "position"):  # torch gives the padding's row no gradient, but a derivative in forward mode
        directions[f"longformer.embeddings.{table}_embeddings.weight"][CONFIG.pad_token_id] = 0
    _, derivative = jvp(lambda weights: question_loss(model, weights, *inputs), (weights,), (directions,))
    gradients = grad(lambda weights: question_loss(model, weights, *inputs))(weights)
    expected = sum((gradients[name] * directions[name]).sum() for name in weights)
    torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-10)


def test_vmap_of_grad_is_a_loop_over_the_examples() -> None:
    model = build_class(LongformerForQuestionAnswering, impl="reference")
    inputs = (*batch(), torch.tensor([4, 5, 6, 7]))
    weights = dict(model.named_parameters())

    def example_loss(weights: dict[str, Tensor], *example: Tensor) -> Tensor:
        return question_loss(model, weights, *(x[None] for x in example))

    together = vmap(grad(example_loss), in_dims=(None, 0, 0, 0, 0))(weights, *inputs)
    for b in range(4):
        model.zero_grad()
        question_loss(model, weights, *(x[b : b + 1] for x in inputs)).backward()
        for name, weight in weights.items():
            if weight.grad is None:  # an example without global tokens leaves their projections out
                assert "_global" in name
                assert not together[name][b].any()
            else:
                torch.testing.assert_close(together[name][b], weight.grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cls", CLASSES)
def test_vmap_over_examples_is_a_batch(cls: type) -> None:
    model = build_class(cls, impl="reference")
    with torch.no_grad():
        mapped = vmap(lambda *example: tuple(model(*(x[None] for x in example))))(*batch())
        for actual, expected in zip(mapped, model(*batch()), strict=True):
            torch.testing.assert_close(actual.squeeze(1), expected, rtol=1e-11, atol=1e-11)


# ---- tracing, shapes, and counting


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of torch.jit
@pytest.mark.parametrize("cls", CLASSES)
def test_jit_trace_is_refused_in_a_sentence_that_says_what_to_do(cls: type) -> None:
    with pytest.raises(LongformerError, match=r"^torch\.jit\.trace [^\n]*torch\.export[^\n]*$"):
        torch.jit.trace(build_class(cls), batch())


@pytest.mark.parametrize("cls", CLASSES)
def test_shapes_without_numbers(cls: type) -> None:
    """A model that holds no memory says what its outputs and gradients would be."""
    expected = [x.shape for x in build_class(cls)(*batch())]
    with FakeTensorMode() as mode:
        model = cls(CONFIG, impl="reference")
        outputs = model(*(mode.from_tensor(x) for x in batch()))
        weighted_sum(outputs).backward()
    assert [x.shape for x in outputs] == expected
    assert all(isinstance(weight.grad, FakeTensor) for weight in model.parameters())


@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
def test_the_products_of_heads_are_counted(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longformer.models.linear, "mkl_is_slow", lambda: library == "oneDNN")
    wide = CONFIG.hidden_size
    products: dict[type, Any] = {
        LongformerModel: ("pooler", 2 * wide * wide),
        LongformerForQuestionAnswering: ("qa_outputs", 2 * SEQ_LEN * wide * 2),
        LongformerForMaskedLM: ("lm_head", 2 * SEQ_LEN * wide * (wide + CONFIG.vocab_size)),
    }
    for cls, (part, flops) in products.items():
        model = build_class(cls, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(random_ids(1, SEQ_LEN), global_attention_mask=torch.zeros(1, SEQ_LEN))
        assert sum(counter.get_flop_counts()[f"{cls.__name__}.{part}"].values()) == flops
