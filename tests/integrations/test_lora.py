"""LoRA, in each of the ways in which it is done, is the model with merged weights: in every linear layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import (
    CLASSES,
    batch,
    build_class,
    counted_layers,
    encoder_of,
    flat,
    linear_names,
    weighted_sum,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from longformer import LongformerForMaskedLM, LongformerForQuestionAnswering, LongformerModel
from longformer.models.packed import may_serve

RANK = 3
Updates = dict[str, tuple[nn.Parameter, nn.Parameter]]  # of each layer: A (RANK, in), B (out, RANK)


def draw_updates(model: nn.Module, names: list[str]) -> Updates:
    updates = {}
    for name in names:
        weight = model.get_submodule(name).weight
        shapes = ((RANK, weight.shape[1]), (weight.shape[0], RANK))
        updates[name] = tuple(nn.Parameter(0.3 * torch.randn(shape, dtype=weight.dtype)) for shape in shapes)
    return updates


# ---- four ways


def by_replaced_forward(model: nn.Module, updates: Updates) -> Updates:
    for name, (a, b) in updates.items():
        part = model.get_submodule(name)
        part.forward = lambda x, forward=part.forward, a=a, b=b: forward(x) + x @ a.T @ b.T
    return updates


class Adapted(nn.Module):
    def __init__(self, layer: nn.Module, a: nn.Parameter, b: nn.Parameter) -> None:
        super().__init__()
        self.layer, self.a, self.b = layer, a, b

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.a.T @ self.b.T


def by_replaced_module(model: nn.Module, updates: Updates) -> Updates:
    for name, update in updates.items():
        model.set_submodule(name, Adapted(model.get_submodule(name), *update))
    return updates


class LowRank(nn.Module):
    def __init__(self, a: nn.Parameter, b: nn.Parameter) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def by_parametrisation(model: nn.Module, updates: Updates) -> Updates:
    for name, update in updates.items():
        parametrize.register_parametrization(model.get_submodule(name), "weight", LowRank(*update))
    return updates


def by_peft(model: nn.Module, updates: Updates) -> Updates:
    peft = pytest.importorskip("peft", reason="peft: pip install peft")
    targets = {"target_modules": list(updates), "lora_alpha": RANK}
    peft.get_peft_model(model, peft.LoraConfig(r=RANK, init_lora_weights=False, **targets))
    model.to(torch.float64)
    installed = {}
    for name, update in updates.items():
        layer = model.get_submodule(name)
        own = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        with torch.no_grad():
            for parameter, values in zip(own, update, strict=True):
                parameter.copy_(values)
        installed[name] = own
    return installed


WAYS: dict[str, Callable[[nn.Module, Updates], Updates]] = {
    "replaced forward": by_replaced_forward,
    "replaced module": by_replaced_module,
    "parametrisation": by_parametrisation,
    "peft": by_peft,
}
SERVED = ("replaced module", "peft")  # by the packed engine, which calls these modules


# ---- each is the merged model


def assert_merged(way: str, cls: type, names: list[str]) -> None:
    """Outputs without and with gradients, gradients of all weights, and those of A and B by the chain rule."""
    adapted, merged = build_class(cls), build_class(cls)
    before = flat(merged(*batch()))
    updates = draw_updates(merged, names)
    weights = dict(adapted.named_parameters())  # which keep their names here, however they are wrapped below
    installed = WAYS[way](adapted, updates)
    with torch.no_grad():
        for name, (a, b) in updates.items():
            merged.get_submodule(name).weight += b @ a
    results = []
    for model in (adapted, merged):
        model.requires_grad_(True)
        with torch.no_grad():
            inferred = flat(model(*batch()))
        outputs = model(*batch())
        weighted_sum(outputs).backward()
        results.append([inferred, flat(outputs).detach()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        assert (expected - before).abs().max() > 1e-3
    for name, parameter in merged.named_parameters():
        assert (parameter.grad is None) == (weights[name].grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(weights[name].grad, parameter.grad, rtol=1e-10, atol=1e-9)
    for name, (a, b) in installed.items():
        grad = merged.get_submodule(name).weight.grad
        torch.testing.assert_close(a.grad, b.detach().T @ grad, rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(b.grad, grad @ a.detach().T, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("way", WAYS)
def test_in_all_linear_layers_at_once(way: str, cls: type) -> None:
    assert_merged(way, cls, linear_names(build_class(cls)))


@pytest.mark.parametrize("name", linear_names(build_class(LongformerForQuestionAnswering)))
@pytest.mark.parametrize("way", WAYS)
def test_in_one_linear_layer(way: str, name: str) -> None:
    assert_merged(way, LongformerForQuestionAnswering, [name])


@pytest.mark.parametrize("way", WAYS)
def test_the_packed_engine_serves_where_a_module_is_merely_another(way: str) -> None:
    model = build_class(LongformerForQuestionAnswering)
    names = linear_names(model)
    WAYS[way](model, draw_updates(model, names))
    calls: dict[str, int] = {}
    if way in SERVED:
        for name in names:
            counting(model.get_submodule(name), name, calls)
    with counted_layers() as layers, torch.no_grad():
        assert may_serve(encoder_of(model), batch()[0]) == (way in SERVED)
        model(*batch())
    assert len(layers) == (model.config.num_hidden_layers if way in SERVED else 0)
    assert set(calls) == (set(names) if way in SERVED else set())


def counting(module: nn.Module, name: str, calls: dict[str, int]) -> None:
    """Let the class of a module, and not the instance, which the engine would not serve, count its calls."""

    class Counting(type(module)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            calls[name] = calls.get(name, 0) + 1
            return super().forward(*arguments, **named)

    module.__class__ = Counting


# ---- what else peft does


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft: pip install peft")


def adapt(peft: Any, model: nn.Module, **arguments: Any) -> Any:
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False, **arguments)
    return peft.get_peft_model(model, config).to(torch.float64).eval()


@pytest.mark.parametrize("cls", CLASSES)
def test_all_linear_finds_them_all_and_merging_gives_a_plain_model_back(peft: Any, cls: type) -> None:
    model = build_class(cls)
    names, before = linear_names(model), flat(model(*batch()))
    adapted = adapt(peft, model)
    found = {name for name, part in model.named_modules() if hasattr(part, "lora_A") and hasattr(part, "base_layer")}
    assert found == set(names)
    with torch.no_grad():
        expected = flat(adapted(*batch()))
        assert (expected - before).abs().max() > 1e-3
        merged = adapted.merge_and_unload()
        assert type(merged) is cls
        assert may_serve(encoder_of(merged), batch()[0])
        torch.testing.assert_close(flat(merged(*batch())), expected, rtol=1e-10, atol=1e-10)
    assert merged.state_dict().keys() == build_class(cls).state_dict().keys()


def test_an_adapter_can_be_disabled(peft: Any) -> None:
    model = build_class(LongformerModel)
    before = flat(model(*batch()))
    adapted = adapt(peft, model)
    with adapted.disable_adapter():
        torch.testing.assert_close(flat(adapted(*batch())), before, rtol=1e-12, atol=1e-12)


def test_training_moves_the_adapters_and_the_head_alone(peft: Any) -> None:
    model = build_class(LongformerForQuestionAnswering)
    adapted = adapt(peft, model, modules_to_save=["qa_outputs"], exclude_modules=["qa_outputs"]).train()
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.1)
    positions = torch.tensor([3, 9, 4, 2])
    losses = []
    for _ in range(4):
        loss = adapted(*batch(), start_positions=positions, end_positions=positions).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])}
    trained = {name for name in before if "lora_" in name or "qa_outputs.modules_to_save" in name}
    assert trained - moved == {name for name in trained if name.endswith("bias")}  # which shifts all scores alike
    assert moved <= trained


@pytest.mark.parametrize("cls", [LongformerForQuestionAnswering, LongformerForMaskedLM])
def test_an_adapter_is_saved_and_loaded(peft: Any, cls: type, tmp_path: Path) -> None:
    adapted = adapt(peft, build_class(cls))
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build_class(cls), tmp_path).to(torch.float64).eval()
    torch.testing.assert_close(flat(loaded(*batch())), flat(adapted(*batch())), rtol=1e-12, atol=1e-12)
