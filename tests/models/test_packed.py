"""The packed engine: the plain model's numbers and gradients, and out of the way where anything watches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kernel_cases import EVERY_DTYPE
from tiny_models import CONFIG, NO_DROPOUT, assert_close, build, padded, random_ids, states
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from longformer import LongformerConfig, LongformerModel
from longformer.kernels import Tokens, compat
from longformer.models import linear, packed
from longformer.models.batch import Document
from longformer.models.layers import LongformerLayer
from longformer.models.linear import Linear
from longformer.models.packed import may_serve, self_attention

IDS = random_ids(1, 8)


@contextmanager
def plain() -> Iterator[None]:
    """The plain model, whoever could serve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "may_serve", lambda *_: False)
        yield


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the engine's layers are given, in order."""
    seen: list[Tensor] = []
    run = packed._layer
    monkeypatch.setattr(
        packed, "_layer", lambda layer, hidden, docs: (seen.append(hidden), run(layer, hidden, docs))[1]
    )
    return seen


# ---- the same numbers


@pytest.mark.parametrize("impl", [impl for impl in EVERY_DTYPE if impl not in packed.PLAIN])
@pytest.mark.parametrize("globals_", [(), (0, 0), (3, 3), (1, 0), (20, 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients(impl: str, globals_: tuple[int, ...], checkpointing: bool, layers: list[Tensor]) -> None:
    """Of a batch with holes, padding on both sides, and a row of padding only."""
    ids, mask = padded([random_ids(20), random_ids(17), random_ids(0)], [0, 3, 0], 24)
    mask[0, 12] = 0
    for b, count in enumerate(globals_):
        mask[b].masked_fill_((mask[b] > 0) & (mask[b].cumsum(0) <= count), 2)
    dilated = CONFIG.replace(**NO_DROPOUT, attention_dilation=[1, (1, 2, 3, 4)])
    results = []
    for watched in (False, True):
        model = build(dilated, impl=impl)
        model.encoder.gradient_checkpointing = checkpointing
        model.train(checkpointing)
        if watched:
            model.encoder.layer[0].register_forward_hook(lambda *_: None)
        calls = len(layers)
        with torch.no_grad():
            inferred = model(ids, mask).last_hidden_state
        out = model(ids, mask).last_hidden_state
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        assert (len(layers) == calls) == watched
        results.append([inferred, out, *(weight.grad for weight in model.parameters())])
    for engine, whole in zip(*results, strict=True):
        assert (engine is None) == (whole is None)
        if engine is not None:
            torch.testing.assert_close(engine, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 10, 16, 17, 64])
def test_lengths_around_the_window(length: int) -> None:
    model, ids = build(), random_ids(2, length)
    mask = torch.ones_like(ids)
    mask[0, 0] = mask[1, length // 2] = 2
    engine = states(model, ids, mask)
    with plain():
        assert_close(engine, states(model, ids, mask))


def test_padding_of_one_kind_is_one_row(layers: list[Tensor]) -> None:
    model = build()
    ids, mask = padded([random_ids(10), random_ids(3)], [0, 0], 40)
    padding = states(model, ids, mask)[mask == 0]
    assert [tuple(hidden.shape) for hidden in layers] == 2 * [(10 + 3 + 1, 32)]
    assert torch.isfinite(padding).all()
    assert bool((padding == padding[0]).all())


@pytest.mark.parametrize("lengths", [[9, 4, 7], [6, 6], [7, 7], [1]])
def test_rows_that_round_their_number_change_nothing(
    lengths: list[int], layers: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(len(lengths), max(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    results = []
    for multiple in (1, 7):
        model = build()
        monkeypatch.setattr(packed, "_multiple", lambda _, value=multiple: value)
        out = model(ids, mask.long(), (torch.arange(max(lengths)) < 1).expand_as(ids)).last_hidden_state
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        assert len(layers[-1]) % multiple == 0
        results.append([out, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for exact, rounded in zip(*results, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("training", "autocast", "dtype", "rows"),
    [
        (True, True, torch.float32, 64),
        (True, False, torch.bfloat16, 64),
        (True, False, torch.float32, 9),
        (False, True, torch.float32, 9),
    ],
)
def test_the_number_of_rows_is_rounded_where_training_compiles_products_for_it(
    training: bool, autocast: bool, dtype: torch.dtype, rows: int, layers: list[Tensor]
) -> None:
    model = build(dtype=dtype).train(training)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(random_ids(1, 9)).last_hidden_state
    assert [len(hidden) for hidden in layers] == 2 * [rows]
    assert out.shape == (1, 9, CONFIG.hidden_size)


def test_the_feed_forward_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(), random_ids(2, 30)
    seen: list[int] = []
    whole, gelu = states(model, ids), packed.linear_gelu
    monkeypatch.setattr(packed, "FEED_FORWARD_ROWS", 7)
    monkeypatch.setattr(packed, "linear_gelu", lambda x, *layer: seen.append(len(x)) or gelu(x, *layer))
    assert_close(states(model, ids), whole)
    assert seen == CONFIG.num_hidden_layers * [*8 * [7], 4]


def test_short_documents_are_projected_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their outputs and gradients are those of documents taken one by one, whatever else is in the batch."""
    attention = build().encoder.layer[0].attention.self
    documents = [
        Document.of(7, None, torch.tensor([0, 3])),
        Document.of(0, None, None),
        Document.of(9, torch.arange(9) != 4, torch.tensor([8])),
        Document.of(5, None, None),
        Document.of(1, None, torch.tensor([0])),
    ]
    hidden = torch.randn(25, 32, dtype=torch.float64)  # the last three rows are padding
    grad = torch.randn_like(hidden)
    projections = [attention.query_global, attention.key_global, attention.value_global]
    results, linear = [], packed._linear
    calls: list[int] = []

    def counted(part: nn.Module, x: Tensor) -> Tensor:
        if part is attention.key_global:
            calls.append(len(x))
        return linear(part, x)

    monkeypatch.setattr(packed, "_linear", counted)
    for short in (0, 9, 10):
        monkeypatch.setattr(packed, "SHORT", {8: short})
        monkeypatch.setattr(packed, "mkl_is_slow", lambda: False)
        calls.clear()
        given = hidden.clone().requires_grad_()
        out = self_attention(attention, given, documents)
        assert calls == {0: [], 9: [8], 10: [17]}[short]  # tokens that are projected
        attention.zero_grad()
        out.backward(grad)
        results.append([out.detach(), given.grad, *(p.grad for layer in projections for p in layer.parameters())])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [0, 2, 20], ids=["local", "global", "many global"])
@pytest.mark.parametrize("engine", [True, False], ids=["engine", "plain"])
def test_attention_dropout_changes_nothing_on_average(engine: bool, count: int) -> None:
    """Also where keys and values are not projected, whose biases must then be dropped in part."""
    attention = build(CONFIG.replace(attention_probs_dropout_prob=0.5)).encoder.layer[0].attention.self
    hidden = torch.randn(30, 32, dtype=torch.float64)
    index = torch.arange(count) if count else None

    def run() -> Tensor:
        document = Document.of(30, None, index)
        return self_attention(attention, hidden, [document]) if engine else attention(hidden[None], document.tokens)[0]

    with torch.no_grad():
        expected = run()
        attention.train()
        draws = torch.stack([run() for _ in range(400)])
    error = draws.mean(dim=0) - expected
    deviation = draws.std(dim=0) / 20  # of the mean of 400
    assert bool((deviation > 0).all())
    assert float((error / deviation).abs().max()) < 5.5  # of 960 draws of a normal deviation


def test_dropout_of_a_global_row_with_and_without_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways have the same spread, not the mean alone."""
    attention = build(CONFIG.replace(attention_probs_dropout_prob=0.5)).encoder.layer[0].attention.self.train()
    hidden, document = torch.randn(30, 32, dtype=torch.float64), Document.of(30, None, torch.tensor([4, 9]))
    found = []
    for is_carried in (True, False):
        monkeypatch.setattr(packed, "_is_carried", lambda *_, is_carried=is_carried: is_carried)
        with torch.no_grad():
            found.append(torch.stack([packed._global_rows(attention, hidden, document) for _ in range(2000)]))
    torch.testing.assert_close(found[0].std(dim=0), found[1].std(dim=0), rtol=0.15, atol=0)


def test_global_rows_carried_projected_and_projected_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ways to the same numbers and gradients, for two documents."""
    index = (torch.tensor([0, 7]), torch.tensor([1, 2, 19]))
    found, hidden = [], torch.randn(50, 32, dtype=torch.float64)
    for is_carried, together in ((True, 512), (False, 512), (False, 0)):
        attention = build(CONFIG).encoder.layer[0].attention.self
        monkeypatch.setattr(packed, "_is_carried", lambda *_, is_carried=is_carried: is_carried)
        monkeypatch.setattr(packed, "TOGETHER", together)
        out = self_attention(attention, hidden, [Document.of(30, None, index[0]), Document.of(20, None, index[1])])
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        found.append([out, *(weight.grad for weight in attention.parameters())])
    for other in found[1:]:
        for mine, first in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, first, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("processor", "dtype", "few"),
    [("EPYC", torch.float32, {170: 29, 1024: 36, 4096: 36}), ("EPYC", torch.bfloat16, {170: 10, 512: 12, 4096: 16}),
     ("Xeon with AMX", torch.float32, {4096: 69}), ("Xeon with AMX", torch.bfloat16, {4096: 69})],
)  # fmt: skip
def test_how_many_global_rows_are_few(
    monkeypatch: pytest.MonkeyPatch, processor: str, dtype: torch.dtype, few: dict[int, int]
) -> None:
    """Of the base architecture: up to how many are carried, by length and by what the processor is fast at."""
    for module in (packed, linear):
        monkeypatch.setattr(module, "mkl_is_slow", lambda: processor == "EPYC")
    monkeypatch.setattr(compat, "has_matrix_units", lambda dtype: "AMX" in processor and dtype == torch.bfloat16)
    monkeypatch.setattr(compat, "has_bf16_products", lambda: True)
    with torch.device("meta"):
        attention = build(LongformerConfig(num_hidden_layers=1)).encoder.layer[0].attention.self.to(dtype)
        hidden = torch.empty(1, 768, dtype=dtype)

    def is_carried(length: int, count: int) -> bool:
        return packed._is_carried(attention, Document.of(length, None, torch.arange(count)), hidden)

    for length, most in few.items():
        assert [is_carried(length, count) for count in (most, most + 1)] == [True, False]
    monkeypatch.setattr(packed, "SHORT", {2: 101, 4: 101})
    assert is_carried(100, 1) is (processor == "EPYC")


# ---- when it may serve


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Subclass(Tensor):
    pass


class AnotherLayer(LongformerLayer):
    pass


def hook_on(part: str, kind: str) -> Callable[[LongformerModel], object]:
    def change(model: LongformerModel) -> object:
        return getattr(model.get_submodule(part), kind)(lambda *_: None)

    return change


def replaced_forward(model: LongformerModel) -> None:
    part = model.encoder.layer[1].attention.self.key_global
    part.forward = lambda x, forward=part.forward: forward(x)  # type: ignore[method-assign]


def another_class(model: LongformerModel) -> None:
    model.encoder.layer[0].__class__ = AnotherLayer


def another_attention(model: LongformerModel) -> None:
    model.encoder.layer[0].attention.self = nn.Identity()  # type: ignore[assignment]


def another_encoder(model: LongformerModel) -> None:
    model.encoder = nn.Identity()  # type: ignore[assignment]


def parametrised(model: LongformerModel) -> None:
    parametrize.register_parametrization(model.encoder.layer[0].output.dense, "weight", Scaled())


def compiled(model: LongformerModel) -> None:
    model.encoder.layer[1].compile(backend="eager")


def subclassed(model: LongformerModel) -> None:
    weight = model.encoder.layer[0].output.dense.weight
    model.encoder.layer[0].output.dense.weight = nn.Parameter(weight.detach().as_subclass(Subclass))


CHANGES: dict[str, Callable[[LongformerModel], object]] = {
    "forward hook": hook_on("encoder.layer.1.intermediate.dense", "register_forward_hook"),
    "pre-forward hook": hook_on("encoder.layer.0.attention.self.value", "register_forward_pre_hook"),
    "backward hook": hook_on("encoder.layer.0.output.LayerNorm", "register_full_backward_hook"),
    "pre-backward hook": hook_on("encoder.layer.0", "register_full_backward_pre_hook"),
    "hook on dropout": hook_on("encoder.layer.0.output.dropout", "register_forward_hook"),
    "hook on the embeddings": hook_on("embeddings.word_embeddings", "register_forward_hook"),
    "hook on the model": hook_on("", "register_forward_hook"),
    "forward of an instance": replaced_forward,
    "another class": another_class,
    "another self-attention": another_attention,
    "another encoder": another_encoder,
    "parametrisation": parametrised,
    "compiled": compiled,
    "subclass of tensor": subclassed,
    "meta": lambda model: model.encoder.layer[1].to("meta"),
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_it_may_not_serve_a_model_that_is_watched_or_changed(change: str) -> None:
    model = build()
    assert may_serve(model, IDS)
    CHANGES[change](model)
    assert not may_serve(model, IDS)


@pytest.mark.parametrize("impl", packed.PLAIN)
def test_it_may_not_serve_these_implementations(impl: str) -> None:
    assert not may_serve(build(impl=impl), IDS)


def test_it_may_not_serve_while_something_sees_every_module_or_operator() -> None:
    model, seen = build(), []
    handle = register_module_forward_hook(lambda *_: None)
    seen.append(may_serve(model, IDS))
    handle.remove()
    with FlopCounterMode(display=False):
        seen.append(may_serve(model, IDS))
    torch.func.vmap(lambda x: (seen.append(may_serve(model, IDS)), x)[1])(torch.zeros(2))
    torch.func.grad(lambda x: (seen.append(may_serve(model, IDS)), x)[1])(torch.zeros(()))
    with torch.autograd.forward_ad.dual_level():
        seen.append(may_serve(model, IDS))
    assert seen == 5 * [False]
    assert may_serve(model, IDS)


def test_a_classs_own_forward_on_the_instance_changes_nothing() -> None:
    model = build()
    part = model.encoder.layer[1].attention.self.key_global
    part.forward = part.forward  # type: ignore[method-assign]
    assert may_serve(model, IDS)


def test_it_may_not_serve_a_class_whose_forward_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    for kind, own in packed.FORWARDS.items():
        with monkeypatch.context() as patch:
            patch.setattr(kind, "forward", lambda *given, own=own: own(*given))
            assert not may_serve(model, IDS)
    assert may_serve(model, IDS)


def test_flops_are_counted_as_of_the_plain_model() -> None:
    model, ids = build(dtype=torch.float32), random_ids(1, 40)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    linear = 4 * 32 * 32 + 2 * 32 * 48  # multiplications a token and layer, attention apart
    assert counter.get_total_flops() >= 2 * 2 * 40 * linear


def test_an_adapter_is_called_on_packed_rows_and_the_rest_stays(layers: list[Tensor]) -> None:
    class Doubled(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            return 2 * self.layer(x)

    ids, mask = padded([random_ids(30), random_ids(13)], [0, 0], 30)
    mask[:, 3] = 2
    for name in ("query", "value", "query_global", "key_global", "value_global"):
        doubled, adapted = build(), build()
        attention = adapted.encoder.layer[1].attention.self
        seen: list[Any] = []
        setattr(attention, name, Doubled(getattr(attention, name)))
        with torch.no_grad():
            for weight in getattr(doubled.encoder.layer[1].attention.self, name).parameters():
                weight.mul_(2)
        calls = len(layers)
        assert_close(states(adapted, ids, mask), states(doubled, ids, mask))
        assert len(layers) == calls + 4
        assert seen
        assert all(len(shape) == 2 for shape in seen)


def test_a_layer_of_ours_in_another_precision_is_served(layers: list[Tensor]) -> None:
    model = build(dtype=torch.float32)
    mixed = copy.deepcopy(model)
    layer = mixed.encoder.layer[0]
    for part in (layer.intermediate, layer.output):
        part.dense = Linear.sharing(part.dense).to(torch.bfloat16)
    ids = random_ids(1, 20)
    torch.testing.assert_close(states(mixed, ids), states(model, ids), rtol=0.1, atol=0.1)
    assert len(layers) == 4


def test_dilation_in_a_graph_and_outside() -> None:
    config = CONFIG.replace(attention_dilation=[1, (1, 2, 3, 4)])
    for impl in ("auto", "banded"):
        attention = build(config, impl=impl).encoder.layer[1].attention.self
        hidden = torch.randn(30, 32, dtype=torch.float64)
        globals_ = torch.tensor([0, 1, 17])
        mask = torch.zeros(1, 30, dtype=torch.bool).index_fill_(1, globals_, True)
        with torch.no_grad():
            rows = self_attention(attention, hidden, [Document.of(30, None, globals_)])
            assert_close(rows, attention(hidden[None], Tokens.of(None, mask))[0])


@pytest.mark.parametrize("name", ["key_global", "value_global", "query", "query_global"])
def test_layers_without_a_bias(name: str, layers: list[Tensor]) -> None:
    ids = random_ids(1, 40)
    mask = torch.ones_like(ids)
    mask[:, :2] = 2
    results = []
    for watched in (False, True):
        model = build()
        attention = model.encoder.layer[1].attention.self
        getattr(attention, name).bias = None
        if watched:
            attention.register_forward_hook(lambda *_: None)
        out = model(ids, mask).last_hidden_state
        out.square().sum().backward()
        results.append([out, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    assert len(layers) == 2
    for engine, whole in zip(*results, strict=True):
        torch.testing.assert_close(engine, whole, rtol=1e-10, atol=1e-10)


class Keeping(nn.Module):
    """Takes another module's place, and keeps what it is given and gives."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.part(x)
        self.seen += [(x, x.clone()), (out, out.clone())]
        return out


@pytest.mark.parametrize("name", ["output.dropout", "output.dense", "output.LayerNorm", "intermediate.dense"])
def test_a_replaced_part_is_called_once_and_its_tensors_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "FEED_FORWARD_ROWS", 7)
    model = build()
    layer, ids = model.encoder.layer[0], random_ids(1, 40)
    expected = states(model, ids)
    keeping = Keeping(layer.get_submodule(name))
    layer.set_submodule(name, keeping)
    assert may_serve(model, IDS)
    assert_close(states(model, ids), expected)
    assert len(keeping.seen) == 2
    assert all(torch.equal(kept, copy) for kept, copy in keeping.seen)


def test_a_wrapped_word_embedding() -> None:
    model, ids = build(), random_ids(1, 20)
    expected = states(model, ids)
    model.embeddings.word_embeddings = Keeping(model.embeddings.word_embeddings)  # type: ignore[assignment]
    assert_close(states(model, ids), expected)


def test_another_precision_is_refused_as_by_the_plain_model() -> None:
    model, ids = build(dtype=torch.float32), random_ids(1, 40)
    model.encoder.layer[0].attention.self.value.bfloat16()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="dtype"):
            states(model, ids)
        model.register_forward_hook(lambda *_: None)
