"""The model is open: hooks of every kind see each module once, with (B, S, C), and what they return counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class, encoder_of, flat, weighted_sum
from tiny_models import CONFIG, assert_close
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from longformer import LongformerForMaskedLM, LongformerForQuestionAnswering, LongformerModel
from longformer.models.packed import may_serve

LENGTHS = [40, 1025, 2500]  # 1,025 tokens are one more than the packed engine's feed-forward takes at a time
LONG = CONFIG.replace(max_position_embeddings=LENGTHS[-1] + 2, hidden_size=16, intermediate_size=24)
BATCH = 3


def long_batch(seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask, global mask: a whole row, one padded on the left with global tokens, one of padding alone."""
    ids = torch.randint(3, CONFIG.vocab_size, (BATCH, seq_len))
    mask = torch.ones_like(ids)
    mask[1, : seq_len // 3] = mask[2] = 0
    ids = ids.where(mask > 0, CONFIG.pad_token_id)
    global_mask = torch.zeros_like(ids)
    global_mask[0, :3] = global_mask[1, seq_len // 2] = 1
    return ids, mask, global_mask


# ---- every module, once, with (B, S, C)


class Calls:
    """What hooks of one kind saw: the module, its first argument, and the tensors that it gave; or their gradients."""

    def __init__(self) -> None:
        self.seen: list[tuple[nn.Module, list[Tensor], list[Tensor]]] = []
        self.copies: list[Tensor] = []

    def keep(self, part: nn.Module, given: tuple[Any, ...], gave: Any) -> None:
        outputs = gave if isinstance(gave, tuple) else (gave,)
        first, every = ([x for x in values if isinstance(x, Tensor)] for values in (given[:1], outputs))
        self.seen.append((part, first, every))
        self.copies.extend(x.clone() for x in first + every)

    def were_overwritten(self) -> bool:
        kept = [x for _, given, gave in self.seen for x in given + gave]
        return not all(torch.equal(x, copy) for x, copy in zip(kept, self.copies, strict=True))


Keep = Callable[..., None]

ON_MODULES: dict[str, Callable[[nn.Module, Keep], Any]] = {
    "pre-forward": lambda part, keep: part.register_forward_pre_hook(lambda m, given: keep(m, given, ())),
    "forward": lambda part, keep: part.register_forward_hook(lambda m, given, out: keep(m, given, out)),
    "full backward pre": lambda part, keep: part.register_full_backward_pre_hook(lambda m, out: keep(m, (), out)),
    "full backward": lambda part, keep: part.register_full_backward_hook(lambda m, given, out: keep(m, given, out)),
}
GLOBAL: dict[str, Callable[[Keep], Any]] = {
    "global pre-forward": lambda keep: torch_module.register_module_forward_pre_hook(lambda m, x: keep(m, x, ())),
    "global forward": lambda keep: torch_module.register_module_forward_hook(lambda m, x, y: keep(m, x, y)),
    "global full backward": lambda keep: torch_module.register_module_full_backward_hook(lambda m, x, y: keep(m, x, y)),
}


@contextmanager
def hooked(model: nn.Module, kind: str) -> Iterator[Calls]:
    calls = Calls()
    with ExitStack() as handles:
        if kind in GLOBAL:
            handles.callback(GLOBAL[kind](calls.keep).remove)
        else:
            for part in model.modules():
                handles.callback(ON_MODULES[kind](part, calls.keep).remove)
        yield calls


def called_parts(model: nn.Module) -> dict[str, nn.Module]:
    """All modules but the list of layers, which is no computation."""
    return {name: part for name, part in model.named_modules() if not isinstance(part, nn.ModuleList)}


def features(model: nn.Module, name: str, part: nn.Module) -> int:
    """Size of the last dimension of what a module gives."""
    if isinstance(part, nn.Linear):
        return part.out_features
    if name.endswith("intermediate"):
        return model.config.intermediate_size
    return model.config.vocab_size if name == "lm_head" else model.config.hidden_size


def check_shapes(model: nn.Module, calls: Calls, seq_len: int) -> None:
    names = {id(part): name for name, part in model.named_modules()}
    for part, given, gave in calls.seen:
        name = names[id(part)]
        if part is encoder_of(model) or name.startswith("classifier"):  # one gives several, one has its own shapes
            continue
        first_token = (BATCH, model.config.hidden_size)
        assert all(x.shape[:2] == (first_token if name == "pooler.dense" else (BATCH, seq_len)) for x in given), name
        if name.startswith("pooler"):
            assert all(x.shape == first_token for x in gave), name
        elif name:
            assert all(x.shape == (BATCH, seq_len, features(model, name, part)) for x in gave), name


@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients")  # of embeddings: ids have none
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("kind", [*ON_MODULES, *GLOBAL])
def test_each_module_is_seen_once_with_the_whole_batch(kind: str, seq_len: int, cls: type) -> None:
    model = build_class(cls, LONG, dtype=torch.float32)
    inputs = long_batch(seq_len)
    parts = called_parts(model)
    for gradients in (False, True):
        if not gradients and "backward" in kind:
            continue
        with hooked(model, kind) as calls, torch.set_grad_enabled(gradients):
            outputs = model(*inputs)
            if gradients:
                weighted_sum(outputs).backward()
        counts = {name: sum(part is seen for seen, *_ in calls.seen) for name, part in parts.items()}
        expected = {name: 2 if name == "classifier.dropout" else 1 for name in parts}  # before and behind a dense layer
        assert counts == expected
        assert len(calls.seen) == sum(expected.values())
        check_shapes(model, calls, seq_len)
        assert not calls.were_overwritten()


@pytest.mark.parametrize("gradients", [False, True])
def test_modules_are_called_in_the_papers_order(gradients: bool) -> None:
    model = build_class(LongformerForQuestionAnswering)
    names = {id(part): name for name, part in model.named_modules()}
    with hooked(model, "pre-forward") as calls, torch.set_grad_enabled(gradients):
        model(*batch())
    inner = [names[id(part)] for part, *_ in calls.seen if not list(part.children())]
    first = [name.removeprefix("longformer.encoder.layer.0.") for name in inner if ".layer.0." in name]
    assert inner[:4] == [f"longformer.embeddings.{name}_embeddings" for name in ("word", "position", "token_type")] + [
        "longformer.embeddings.LayerNorm"
    ]
    assert first == [
        *[f"attention.self.{name}{which}" for which in ("", "_global") for name in ("query", "key", "value")],
        *[f"attention.output.{name}" for name in ("dense", "dropout", "LayerNorm")],
        "intermediate.dense",
        *[f"output.{name}" for name in ("dense", "dropout", "LayerNorm")],
    ]
    assert inner[-1] == "qa_outputs"


def test_without_global_tokens_their_projections_are_not_called() -> None:
    model = build_class(LongformerModel)
    ids, mask, _ = batch()
    with hooked(model, "forward") as calls:
        model(ids, mask)
    seen = {id(part) for part, *_ in calls.seen}
    silent = {name for name, part in called_parts(model).items() if id(part) not in seen}
    assert silent == {name for name in called_parts(model) if name.endswith("_global")}


def test_a_removed_hook_lets_the_engine_serve_again() -> None:
    model, inputs = build_class(LongformerModel), batch()
    for kind in [*ON_MODULES, *GLOBAL]:
        with hooked(model, kind):
            assert not may_serve(model, inputs[0])
        assert may_serve(model, inputs[0])


# ---- what a hook returns counts

# Parts without weights of their own: to scale what one gives is to scale these.
BY_HAND = {
    "embeddings.dropout": "embeddings.LayerNorm",
    "embeddings": "embeddings.LayerNorm",
    "encoder.layer.0.attention.output.dropout": "encoder.layer.0.attention.output.dense",
    "encoder.layer.0.attention.output": "encoder.layer.0.attention.output.LayerNorm",
    "encoder.layer.0.attention": "encoder.layer.0.attention.output.LayerNorm",
    "encoder.layer.0.output.dropout": "encoder.layer.0.output.dense",
    "encoder.layer.0.output": "encoder.layer.0.output.LayerNorm",
    "encoder.layer.0": "encoder.layer.0.output.LayerNorm",
    "encoder": "encoder.layer.1.output.LayerNorm",
}
BY_THE_NEXT_WEIGHT = {
    "encoder.layer.0.attention.self": "encoder.layer.0.attention.output.dense.weight",
    "encoder.layer.0.intermediate": "encoder.layer.0.output.dense.weight",
}
MODEL = build_class(LongformerModel)
WEIGHTED = [
    name
    for name, part in MODEL.named_modules()
    if list(part.parameters(recurse=False)) and "layer.1" not in name and "pooler" not in name
]
LINEAR = [name for name in WEIGHTED if isinstance(MODEL.get_submodule(name), nn.Linear)]
FACTOR = 1.5


def scaled(value: Tensor) -> Tensor:
    return FACTOR * value


def results(model: nn.Module, *, apart_from: Sequence[str]) -> list[Tensor]:
    """Outputs without and with gradients, and the gradients of all weights but those named."""
    inputs = batch()
    with torch.no_grad():
        inferred = flat(model(*inputs))
    outputs = model(*inputs)
    weighted_sum(outputs).backward()
    gradients = [weight.grad for name, weight in model.named_parameters() if name not in apart_from]
    return [inferred, flat(outputs), *gradients]


def assert_hook_is_change_by_hand(register: Callable[[nn.Module], object], weights: Sequence[str]) -> None:
    watched, changed = build_class(LongformerModel), build_class(LongformerModel)
    register(watched)
    with torch.no_grad():
        for name in weights:
            changed.get_parameter(name).mul_(FACTOR)
    assert not may_serve(watched, batch()[0])
    assert may_serve(changed, batch()[0])
    assert not torch.allclose(flat(watched(*batch())), flat(MODEL(*batch())), atol=1e-3)
    for hooked_result, expected in zip(
        results(watched, apart_from=weights), results(changed, apart_from=weights), strict=True
    ):
        torch.testing.assert_close(hooked_result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [*WEIGHTED, *BY_HAND, *BY_THE_NEXT_WEIGHT])
def test_what_a_forward_hook_returns(name: str) -> None:
    part = BY_HAND.get(name, name)
    weights = [BY_THE_NEXT_WEIGHT.get(name) or f"{part}.weight"]
    if name not in BY_THE_NEXT_WEIGHT and not isinstance(MODEL.get_submodule(part), nn.Embedding):
        weights.append(f"{part}.bias")
    assert_hook_is_change_by_hand(
        lambda model: model.get_submodule(name).register_forward_hook(lambda m, given, out: scaled(out)), weights
    )


@pytest.mark.parametrize("name", LINEAR)
def test_what_a_pre_forward_hook_returns(name: str) -> None:
    assert_hook_is_change_by_hand(
        lambda model: model.get_submodule(name).register_forward_pre_hook(lambda m, given: (scaled(given[0]),)),
        [f"{name}.weight"],
    )


def test_what_a_global_hook_returns() -> None:
    """To double what every LayerNorm gives is to double their weights."""
    watched, changed = build_class(LongformerModel), build_class(LongformerModel)
    norms = [name for name, part in watched.named_modules() if isinstance(part, nn.LayerNorm)]
    weights = [f"{name}.{kind}" for name in norms for kind in ("weight", "bias")]
    with torch.no_grad():
        for name in weights:
            changed.get_parameter(name).mul_(FACTOR)
    handle = torch_module.register_module_forward_hook(
        lambda part, given, out: scaled(out) if isinstance(part, nn.LayerNorm) else None
    )
    with ExitStack() as stack:
        stack.callback(handle.remove)
        actual = results(watched, apart_from=weights)
    for hooked_result, expected in zip(actual, results(changed, apart_from=weights), strict=True):
        torch.testing.assert_close(hooked_result, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["full backward", "full backward pre"])
def test_what_a_backward_hook_returns(kind: str) -> None:
    """It scales the gradients of all that lies below it, and of the layer itself if it comes before that."""
    watched, plain = build_class(LongformerModel), build_class(LongformerModel)
    layer = watched.encoder.layer[1]
    if kind == "full backward":
        layer.register_full_backward_hook(lambda m, given, out: (scaled(given[0]), *given[1:]))
    else:
        layer.register_full_backward_pre_hook(lambda m, out: (scaled(out[0]),))
    for model in (watched, plain):
        model(*batch()).last_hidden_state.square().sum().backward()
    scaled_parts = ("embeddings", "encoder.layer.0") + (("encoder.layer.1",) if "pre" in kind else ())
    for name, weight in watched.named_parameters():
        expected = plain.get_parameter(name).grad
        if expected is None:
            assert weight.grad is None
        else:
            factor = FACTOR if name.startswith(scaled_parts) else 1.0
            torch.testing.assert_close(weight.grad, factor * expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("cls", [LongformerForQuestionAnswering, LongformerForMaskedLM])
def test_what_a_hook_on_a_head_returns(cls: type) -> None:
    model = build_class(cls)
    expected = scaled(flat(model(*batch())))
    model.get_submodule(cls.part).register_forward_hook(lambda m, given, out: scaled(out))
    assert may_serve(encoder_of(model), batch()[0])  # whose layers nobody watches
    assert_close(flat(model(*batch())), expected)
