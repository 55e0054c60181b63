"""Changes inside a running model: where they happen, that gradients go through, and that nothing stays behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class
from torch import Tensor, nn

from longformer import LongformerError, LongformerForCausalLM, LongformerModel, edit, trace
from longformer.editing import Edit
from longformer.parity import Table, Value

LOCAL, GLOBAL = "layer.1.local_output", "layer.1.global_rows"


@pytest.fixture
def model() -> LongformerModel:
    return build_class(LongformerModel)


def run(model: nn.Module) -> Tensor:
    ids, mask, global_mask = batch()
    hidden: Tensor = model(ids, mask, global_mask)[0]
    return hidden


def with_hook(model: nn.Module, path: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The same by hand."""
    handle = model.get_submodule(path).register_forward_hook(lambda module, given, out: change(out.clone()))
    try:
        return run(model)
    finally:
        handle.remove()


def zero_head(out: Tensor, head: int) -> Tensor:
    out[..., 8 * head : 8 * head + 8] = 0
    return out


def test_a_head_is_zero(model: LongformerModel) -> None:
    with edit(model) as e:
        e.zero(LOCAL, head=2)
        e.zero(GLOBAL, head=2)
        changed = run(model)
    assert torch.equal(changed, with_hook(model, "encoder.layer.1.attention.self", lambda out: zero_head(out, 2)))
    assert not torch.equal(changed, run(model))


def test_local_and_global_rows_change_apart(model: LongformerModel) -> None:
    ids, mask, global_mask = batch()
    is_global = (global_mask * mask).bool()[:, None, :, None]
    for name, stays in ((LOCAL, is_global), (GLOBAL, ~is_global)):
        with edit(model) as e, trace(model) as changed:
            e.scale(name, 2.0)
            run(model)
        with trace(model) as plain:
            run(model)
        rows = {n: x for n, x in changed.tensors.items() if n in (LOCAL, GLOBAL)}
        other = GLOBAL if name == LOCAL else LOCAL
        assert torch.equal(rows[other], plain[other])
        assert torch.equal(rows[name], 2 * plain[name])
        assert stays.any()


@pytest.mark.parametrize("where", [3, [3], (3,), range(3, 4), slice(3, 4), torch.tensor([3]), -45])
def test_tokens_and_rows_of_the_batch(model: LongformerModel, where: Any) -> None:
    def change(out: Tensor) -> Tensor:
        out[1, 3] += 1
        return out

    with edit(model) as e:
        e.add("layer.0.output", torch.ones(32), tokens=where, batch=1)
        changed = run(model)
    assert torch.equal(changed, with_hook(model, "encoder.layer.0", change))


def test_the_mean_leaves_padding_out(model: LongformerModel) -> None:
    _, mask, _ = batch()

    def change(out: Tensor) -> Tensor:
        return torch.stack([row[keep].mean(0).expand_as(row) for row, keep in zip(out, mask.bool(), strict=True)])

    with edit(model) as e:
        e.mean("embeddings")
        changed = run(model)
    torch.testing.assert_close(changed, with_hook(model, "embeddings", change), rtol=0, atol=1e-13)


@pytest.mark.parametrize("names", [["layer.0.output"], ["embeddings"], [LOCAL, GLOBAL, "layer.1.attention_output"]])
def test_another_runs_values(model: LongformerModel, names: list[str]) -> None:
    """With all of a layer's values from another run, what follows is the other run's."""
    ids, mask, global_mask = batch()
    other = ids.where(mask == 0, 3 + (ids * 7) % 50)
    with trace(model) as taken:
        expected = model(other, mask, global_mask)[0]
    with edit(model) as e:
        for name in names:
            e.set(name, taken[name])
        changed = run(model)
    torch.testing.assert_close(changed[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-12)


def test_another_runs_global_rows(model: LongformerModel) -> None:
    """Each example's own, where others have more: the rows that are missing stand for no token, not for the first."""
    ids, mask, global_mask = batch()
    is_global = (global_mask * mask).bool()
    assert is_global.sum(1).unique().numel() > 2 and is_global[0, 0] and is_global[3, 0]
    taken: list[Tensor] = []
    handle = model.encoder.layer[1].attention.self.register_forward_hook(lambda module, given, out: taken.append(out))
    with trace(model) as other:
        model(ids.where(mask == 0, 3 + (ids * 7) % 50), mask, global_mask)
    handle.remove()
    expected = with_hook(
        model, "encoder.layer.1.attention.self", lambda out: torch.where(is_global[..., None], taken[0], out)
    )
    with edit(model) as e:
        e.set(GLOBAL, other[GLOBAL])
        assert torch.equal(run(model), expected)
    with edit(model) as e:
        e.set(GLOBAL, other[GLOBAL][:1, :, :20])  # of one example, for all
        run(model)


def test_changes_of_one_value_come_in_order(model: LongformerModel) -> None:
    with edit(model) as e:
        e.zero("layer.1.output")
        e.add("layer.1.output", torch.arange(32.0))
        e.apply("layer.1.output", lambda rows: rows**2, tokens=[0, 1])
        changed = run(model)
    assert torch.equal(changed[2, 0], torch.arange(32.0).double() ** 2)
    assert torch.equal(changed[2, 5], torch.arange(32.0).double())


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_go_through(cls: type) -> None:
    model = build_class(cls)
    vector = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with edit(model) as e:
        e.add("layer.0.output", vector, tokens=0)
        output = model(*batch())[0]
    output.square().sum().backward()
    assert vector.grad is not None and vector.grad.abs().sum() > 0
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_nothing_stays_behind(model: LongformerModel) -> None:
    expected = run(model)
    with pytest.raises(ZeroDivisionError), edit(model) as e:
        e.zero("layer.0.output")
        run(model)
        1 / 0  # noqa: B018
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e.zero("layer.1.local_outptu"),
            r"'layer\.1\.local_outptu' is no value .*mean 'layer\.1\.local_output'",
        ),
        (lambda e: e.zero("layer.7.output"), r"'layer\.7\.output' is no value of this model"),
        (lambda e: e.zero("layer.1.output", head=1), r"head is 1, but layer\.1\.output has no heads"),
        (lambda e: e.zero("pooler_output", tokens=1), r"tokens is 1, but pooler_output has no tokens"),
        (lambda e: e.zero(LOCAL, head=4), r"head is 4, but layer\.1\.local_output has 4 of them, 0 to 3"),
        (lambda e: e.mask_heads(torch.ones(3)), r"shape \(3,\); it must be a tensor of shape \(L, H\) = \(2, 4\)"),
        (lambda e: e.mask_heads([1, 1, 1, 0]), r"the mask of heads is \[1, 1, 1, 0\]; it must be a tensor"),
        (lambda e: e.zero(LOCAL, tokens=48), r"tokens is 48, but layer\.1\.local_output has 48 of them"),
        (lambda e: e.zero(LOCAL, batch=[0, 9]), r"batch is \[0, 9\], but layer\.1\.local_output has 4"),
        (lambda e: e.zero(LOCAL, tokens=slice(50, 60)), r"tokens is slice\(50, 60, None\), but .* it chooses none"),
        (lambda e: e.zero(LOCAL, batch=True), r"batch is True, but layer\.1\.local_output has 4"),
        (lambda e: e.apply(LOCAL, lambda rows: None), r"what the function made of layer\.1\.local_output is no tensor"),
        (
            lambda e: e.set("layer.1.output", torch.zeros(7)),
            r"what is put into layer\.1\.output has shape \(7,\), which does not broadcast to its \(4, 48, 32\)$",
        ),
        (lambda e: e.scale(LOCAL, None), r"the factor is None; it must be a number or a tensor"),
        (lambda e: e.scale(LOCAL, torch.ones(7)), r"layer\.1\.local_output has shape \(7,\), which does not broadcast"),
        (lambda e: e.add(LOCAL, torch.ones(5)), r"layer\.1\.local_output has shape \(5,\), which does not broadcast"),
        (lambda e: e.add(LOCAL, "a"), r"the vector is 'a'; it must be a number or a tensor"),
        (lambda e: e.set(LOCAL, None), r"the value is None; it must be a number or a tensor"),
        (lambda e: e.apply(LOCAL, 3), r"the function is 3; it must be one of a tensor to a tensor"),
        (lambda e: e.mean("pooler_output"), r"pooler_output has no tokens of which there could be a mean"),
        (lambda e: e.zero(None), r"'None' is no value of this model"),
        (lambda e: e.mean(3), r"'3' is no value of this model"),
        (
            lambda e: e.zero(LOCAL, head="5"),
            r"head is '5', but layer\.1\.local_output has 4 of them, 0 to 3",
        ),
        (lambda e: e.zero(LOCAL, tokens=batch()[1].bool()), r"tokens is a tensor of shape \(4, 48\), but layer\.1"),
        (lambda e: e.set(LOCAL, torch.zeros(4, 4, 30, 8)), r"shape \(4, 4, 30, 8\), which does not broadcast to"),
        (lambda e: e.set(GLOBAL, torch.zeros(3, 4, 20, 8)), r"shape \(3, 4, 20, 8\), which does not broadcast to"),
        (lambda e: e.set(GLOBAL, torch.zeros(4, 4, 3, 8)), r"the value has 3 global rows, but this run has 20"),
    ],
)
def test_what_is_not_there(model: LongformerModel, change: Callable[[Edit], None], message: str) -> None:
    with pytest.raises(LongformerError, match=message), edit(model) as e:
        change(e)
        run(model)


def test_global_rows_of_a_run_without_any(model: LongformerModel) -> None:
    ids, mask, _ = batch()
    with edit(model) as e, pytest.raises(LongformerError, match="no token of this run is global"):
        e.zero(GLOBAL)
        model(ids, mask)
    with edit(model) as e:
        e.mask_heads(torch.ones(4))  # of all rows that there are
        model(ids, mask)


def test_global_tokens_of_the_pattern(model: LongformerModel) -> None:
    """A layer whose pattern has global tokens of its own has rows of global tokens, whatever the batch names."""
    torch.manual_seed(0)
    own = LongformerModel(model.config, attention={1: "window=8,global=2:5"}).double().eval()
    ids, mask, _ = batch()
    for name, changed in ((LOCAL, False), (GLOBAL, True)):
        with edit(own) as e, trace(own) as t:
            e.zero(name)
            own(ids, mask)
        assert (t[GLOBAL].abs().sum() == 0) == changed and (t[LOCAL].abs().sum() == 0) != changed
    with edit(own) as e, pytest.raises(LongformerError, match=r"layer\.0\.global_rows is to be changed, but no token"):
        e.zero("layer.0.global_rows")
        own(ids, mask)


def test_a_function_may_change_what_it_is_given(model: LongformerModel) -> None:
    def in_place(rows: Tensor) -> Tensor:
        rows[:] = 0
        return rows

    for grad in (True, False):
        with torch.set_grad_enabled(grad), edit(model) as e:
            e.apply(LOCAL, in_place, head=2)
            e.apply(GLOBAL, in_place, head=2)
            changed = run(model)
        assert torch.equal(changed, with_hook(model, "encoder.layer.1.attention.self", lambda out: zero_head(out, 2)))


def test_text_is_made_with_the_changes() -> None:
    """Token by token as in the whole text, also behind a run with padding, of which it knows nothing."""
    model = build_class(LongformerForCausalLM)
    ids, mask, _ = batch()
    prompt = ids[:1, :9]
    plain = model.generate(prompt, max_new_tokens=12, temperature=0)
    for name in ("layer.0.output", "layer.1.local_output", "layer.0.attention_output"):
        with edit(model) as e, torch.no_grad():
            e.add(name, 3 * torch.arange(-1, 1, 2 / (8 if name.endswith("local_output") else 32)).double())
            model(ids, mask)
            made = model.generate(prompt, max_new_tokens=12, temperature=0)
            logits = model(made)[0][0, 8:-1].clone()
        logits[:, model.config.pad_token_id] = -torch.inf
        assert torch.equal(made[0, 9:], logits.argmax(1)) and not torch.equal(made, plain)
    assert torch.equal(model.generate(prompt, max_new_tokens=12, temperature=0), plain)


def test_several_threads_run_the_model(model: LongformerModel) -> None:
    """Each run has its own global tokens and padding, whatever another thread has begun meanwhile."""
    ids, mask, _ = batch()

    def hidden(row: int) -> Tensor:
        global_mask = torch.zeros(1, 48)
        global_mask[:, [row, row + 4]] = 1
        with torch.no_grad():
            return model(ids[row : row + 1], mask[row : row + 1], global_mask)[0]  # type: ignore[no-any-return]

    with edit(model) as e:
        e.mean(LOCAL)
        e.scale("layer.0.global_rows", 3.0)
        expected = [hidden(row) for row in (0, 2)]
        both_began = threading.Barrier(2)
        handle = model.embeddings.register_forward_hook(lambda *given: [None, both_began.wait(timeout=60)][0])
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(hidden, (0, 2)))
        handle.remove()
    assert all(map(torch.equal, found, expected))


def test_a_mean_has_room_for_the_sum() -> None:
    model = build_class(LongformerModel, dtype=torch.float16)
    with torch.no_grad(), edit(model) as e, trace(model) as t:
        e.add("layer.0.output", torch.tensor(3000.0))
        e.mean("layer.0.output")
        model(*batch())
    assert torch.isfinite(t["layer.0.output"]).all() and t["layer.0.output"].dtype == torch.float16


def test_a_model_that_looks_back_has_no_global_rows() -> None:
    model = build_class(LongformerForCausalLM)
    assert Edit(model).names[4:6] == ["layer.0.local_output", "layer.0.attention_output"]
    ids = batch()[0][:1, :20]
    with edit(model) as e, pytest.raises(LongformerError, match=r"'layer\.1\.global_rows' is no value of this model"):
        e.zero(GLOBAL)
    expected = with_hook_on(model, ids)
    for take_out in (
        lambda e: e.take_out_head(1, 2),
        lambda e: e.mask_heads(torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 1]])),
    ):
        with torch.no_grad(), edit(model) as e:
            take_out(e)
            assert torch.equal(model(ids)[0], expected)


def with_hook_on(model: nn.Module, ids: Tensor) -> Tensor:
    attention = next(part for name, part in model.named_modules() if name.endswith("layer.1.attention.self"))
    handle = attention.register_forward_hook(lambda module, given, out: zero_head(out.clone(), 2))
    with torch.no_grad():
        logits: Tensor = model(ids)[0]
    handle.remove()
    return logits


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def a_layer(model: Any) -> nn.Module:
    model.encoder.layer[1] = torch.compile(model.encoder.layer[1], backend="eager")
    return model  # type: ignore[no-any-return]


def a_layer_in_place(model: Any) -> nn.Module:
    model.encoder.layer[1].compile(backend="eager")
    return model  # type: ignore[no-any-return]


def a_function(model: Any) -> nn.Module:
    model.encoder.layer[1].forward = torch.compile(model.encoder.layer[1].forward, backend="eager")
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("compiled", [whole, in_place, a_layer, a_layer_in_place, a_function])
def test_what_is_compiled_runs_as_written(model: LongformerModel, compiled: Callable[[nn.Module], nn.Module]) -> None:
    """Also where it ran before; behind it, it is compiled as before. A trace without an edit cannot see inside."""
    with torch.no_grad(), edit(model) as e:
        e.zero(LOCAL, head=2)
        expected, before = run(model), dict(model.named_parameters())
    made = compiled(model)
    names = [name for name, _ in made.named_modules()]
    with torch.no_grad():
        plain = run(made)
        with edit(made) as e, trace(made) as changed:
            e.zero(LOCAL, head=2)
            assert torch.equal(run(made), expected)
        assert not changed[LOCAL][:, 2].any() and changed[LOCAL].any() and "layer.1.query" in changed
        assert torch.equal(run(made), plain) and not torch.equal(plain, expected)
    assert [name for name, _ in made.named_modules()] == names
    assert {id(x) for x in made.parameters()} == {id(x) for x in before.values()}
    if compiled is not whole:  # of which the values of whole parts are recorded
        with pytest.raises(LongformerError, match="was compiled by itself, so that nobody sees the values inside it"):
            with trace(made):
                run(made)


def test_a_change_after_the_end(model: LongformerModel) -> None:
    with edit(model) as e:
        pass
    with pytest.raises(LongformerError, match=r"the block of this edit is over, so layer\.1\.local_output cannot"):
        e.zero(LOCAL)


def test_a_wrong_head_is_said_before_the_model_runs(model: LongformerModel) -> None:
    with edit(model) as e, pytest.raises(LongformerError, match="head is -5"):
        e.zero(LOCAL, head=-5)


def test_a_mask_of_heads(model: LongformerModel) -> None:
    """0 takes a head out, 1 leaves it, and the gradient is that of the head's part in the result."""
    mask = torch.ones(2, 4)
    mask[1, 2] = 0
    with edit(model) as e:
        e.mask_heads(mask)
        changed = run(model)
    assert torch.equal(changed, with_hook(model, "encoder.layer.1.attention.self", lambda out: zero_head(out, 2)))
    with edit(model) as e:
        e.mask_heads(torch.tensor([1.0, 1, 1, 0]))  # of all layers
        every = run(model)
        e.mask_heads(torch.tensor([1.0, 1, 1, 0]))
        assert torch.equal(run(model), every)
    worth = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    with edit(model) as e:
        e.mask_heads(worth)
        run(model).square().sum().backward()
    assert worth.grad is not None
    step = 1e-6
    with torch.no_grad(), edit(model) as e:
        e.mask_heads(torch.ones(2, 4, dtype=torch.float64) + step * torch.eye(2, 4))
        difference = run(model).square().sum()
    with torch.no_grad():
        difference = (difference - run(model).square().sum()) / step
    torch.testing.assert_close(worth.grad[[0, 1], [0, 1]].sum(), difference, rtol=1e-4, atol=0)


def test_a_module_with_a_table_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with edit(model, table=Table({"0": Value("first"), "1": Value("second")})) as e:
        with pytest.raises(LongformerError, match="there are no heads to mask"):
            e.mask_heads(torch.ones(1))
    with edit(model, table=Table({"0": Value("first"), "1": Value("second")})) as e:
        e.zero("first")
        assert torch.equal(model(torch.randn(5, 3)), model[1].bias.expand(5, 2))
