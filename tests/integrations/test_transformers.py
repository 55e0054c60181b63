"""transformers' own models with our attention inside: the same numbers, everything else as it was, and undone again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers_models import (
    ATTENTIONS,
    LEDS,
    LONGFORMERS,
    attentions_of,
    batch_for,
    differentiate,
    outputs_of,
    tiny_transformers,
)

from longformer import LongformerConfig, LongformerError
from longformer import LongformerModel as OurModel
from longformer.integrations.transformers import replace_attention, restore_attention
from longformer.models import packed

BOTH = ("LongformerModel", "LEDModel")


@contextmanager
def counted_engine() -> Iterator[list[Tensor]]:
    """What the packed engine's attention is given, in order."""
    seen: list[Tensor] = []
    run = packed.self_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            packed,
            "self_attention",
            lambda attention, hidden, documents: (seen.append(hidden), run(attention, hidden, documents))[1],
        )
        yield seen


def assert_equal(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(actual) == len(expected)
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def assert_equal_gradients(
    actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float = 1e-10
) -> None:
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        found = actual[name]
        assert (found is None) == (wanted is None), name
        if found is not None and wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance, msg=f"{name}: {{}}".format)


# ---- the same numbers


@pytest.mark.parametrize("name", [*LONGFORMERS, *LEDS])
def test_outputs_gradients_and_what_is_undone(name: str) -> None:
    model, inputs = tiny_transformers(name), batch_for(name)
    weights, kinds = dict(model.named_parameters()), [type(each) for each in attentions_of(model)]
    with torch.no_grad():
        before = outputs_of(model, inputs)
    gradients = differentiate(model, inputs)
    assert replace_attention(model) is model
    with counted_engine() as served, torch.no_grad():
        after = outputs_of(model, inputs)
    assert len(served) == ATTENTIONS and all(len(hidden) < inputs["input_ids"].numel() for hidden in served)
    assert_equal(after, before)
    assert any(not torch.equal(x, y) for x, y in zip(after, before, strict=True))  # ours has really computed it
    assert_equal_gradients(differentiate(model, inputs), gradients)
    now = dict(model.named_parameters())
    assert now.keys() == weights.keys() and all(now[key] is weights[key] for key in weights)
    assert restore_attention(model) is model
    assert [type(each) for each in attentions_of(model)] == kinds
    with torch.no_grad():
        assert all(map(torch.equal, outputs_of(model, inputs), before))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("impl", ["reference", "banded", "blocked", "flex"])
@pytest.mark.slow
def test_every_implementation(name: str, impl: str) -> None:
    dtype, tolerance = (torch.float32, 1e-5) if impl == "flex" else (torch.float64, 1e-12)
    model, inputs = tiny_transformers(name, dtype=dtype), batch_for(name)
    with torch.no_grad():
        before = outputs_of(model, inputs)
        replace_attention(model, impl=impl)
        with counted_engine() as served:
            assert_equal(outputs_of(model, inputs), before, tolerance)
    assert bool(served) == (impl in ("banded", "blocked"))  # the other two are the plain layers'


@pytest.mark.parametrize("name", BOTH)
def test_the_plain_layers_serve_where_the_engine_may_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_transformers(name), batch_for(name)
    with torch.no_grad():
        before = outputs_of(model, inputs)
    gradients = differentiate(model, inputs)
    replace_attention(model)
    monkeypatch.setattr(packed, "may_serve_attention", lambda attention, hidden: False)
    with counted_engine() as served, torch.no_grad():
        assert_equal(outputs_of(model, inputs), before)
    assert_equal_gradients(differentiate(model, inputs), gradients)
    assert not served


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("masks", [(), ("attention_mask",), ("global_attention_mask",)])
def test_without_one_mask_or_the_other(name: str, masks: tuple[str, ...]) -> None:
    model, inputs = tiny_transformers(name), batch_for(name)
    inputs = {key: value for key, value in inputs.items() if not key.endswith("attention_mask") or key in masks}
    with torch.no_grad():
        assert_equal(outputs_of(replace_attention(model), inputs), outputs_of(restore_attention(model), inputs))


def test_a_padded_row_is_zero_and_what_stands_there_reaches_nobody() -> None:
    attention = attentions_of(replace_attention(tiny_transformers("LongformerModel")))[1]
    hidden = torch.randn(2, 21, 32, dtype=torch.float64)
    masked, is_global = torch.zeros(2, 21, dtype=torch.bool), torch.zeros(2, 21, dtype=torch.bool)
    masked[0, 13:] = masked[1, [0, 8]] = is_global[0, 2] = True
    arguments = {"is_index_masked": masked, "is_index_global_attn": is_global, "is_global_attn": True}
    (clean,) = attention(hidden, **arguments)
    (poisoned,) = attention(hidden.masked_fill(masked[..., None], torch.nan), **arguments)
    assert clean.shape == hidden.shape and not clean[masked].any() and clean[~masked].all()
    assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_as_near_to_float64_as_before(name: str, dtype: torch.dtype) -> None:
    inputs = batch_for(name)
    with torch.no_grad():
        exact = outputs_of(tiny_transformers(name), inputs)[0]
        model = tiny_transformers(name, dtype=dtype)
        before = outputs_of(model, inputs)[0]
        after = outputs_of(replace_attention(model), inputs)[0]
    assert after.dtype == before.dtype == dtype
    error, allowed = ((x.double() - exact).square().mean().sqrt() for x in (after, before))
    assert 0 < error < 1.2 * allowed


@pytest.mark.parametrize("name", BOTH)
def test_autocast(name: str) -> None:
    model, inputs = tiny_transformers(name, dtype=torch.float32), batch_for(name)
    exact = outputs_of(model, inputs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        before = outputs_of(model, inputs)[0]
        after = outputs_of(replace_attention(model), inputs)[0]
        differentiate(model, inputs)
    assert after.dtype == before.dtype
    assert (after - exact).square().mean() < 1.5 * (before - exact).square().mean()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(name: str, use_reentrant: bool) -> None:
    model, inputs = tiny_transformers(name).train(), batch_for(name)
    expected = differentiate(model, inputs)
    replace_attention(model).gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    with counted_engine() as served:
        assert_equal_gradients(differentiate(model, inputs), expected)
    assert len(served) == 2 * ATTENTIONS


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_transformers(name, dtype=torch.float32), batch_for(name)
    with torch.no_grad():
        expected = outputs_of(model, inputs)
    gradients = differentiate(model, inputs)
    replace_attention(model).compile(backend="aot_eager")
    monkeypatch.setattr(attentions_of(model)[0].replaces, "forward", None)  # which nobody needs
    assert_equal_gradients(differentiate(model, inputs), gradients, 1e-4)
    with torch.no_grad():
        assert_equal(outputs_of(model, inputs), expected, 1e-5)


def test_dropout_is_of_the_same_distribution_and_obeys_the_module() -> None:
    model = tiny_transformers("LongformerModel", attention_probs_dropout_prob=0.3)
    attention = attentions_of(model)[1].train()
    draws = 600
    hidden = torch.randn(1, 16, 32, dtype=torch.float64).expand(draws, -1, -1)
    nothing = torch.zeros(draws, 16, dtype=torch.bool)
    is_global = torch.arange(16).expand(draws, -1) == 3
    arguments = [hidden, is_global.double(), nothing, is_global, True]
    with torch.no_grad():
        theirs = attention(*arguments)[0]
        replace_attention(model)
        ours = attention(*arguments)[0]
        attention.dropout = 0.0
        exact = attention(*arguments)[0]
        attention.dropout = 0.3
        assert_equal([attention.eval()(*arguments)[0]], [exact])
    assert (exact - exact[:1]).abs().max() < 1e-12 and ours.std(0).min() > 0
    # A mean over n draws is uncertain by their spread over sqrt(n); of 512 means none is beyond five of that.
    assert ((ours.mean(0) - exact[0]) / (ours.std(0) / draws**0.5)).abs().max() < 5
    spread = ours.std(0) / theirs.std(0)
    assert 0.8 < spread.min() and spread.max() < 1.25
    assert abs(spread.log().mean()) < 0.02


# ---- what ours does not compute is computed as before


@pytest.mark.parametrize("name", BOTH)
def test_the_probabilities_are_those_of_transformers(name: str) -> None:
    model, inputs = tiny_transformers(name), batch_for(name)
    with torch.no_grad():
        before = outputs_of(model, inputs, output_attentions=True)
        after = outputs_of(replace_attention(model), inputs, output_attentions=True)
    assert len(before) > 2 * ATTENTIONS
    assert all(map(torch.equal, after, before))


@pytest.mark.parametrize("part", ["query", "value_global"])
def test_a_hook_inside_sees_what_it_saw_before(part: str) -> None:
    model, inputs = tiny_transformers("LongformerModel"), batch_for("LongformerModel")
    seen: list[Tensor] = []
    handle = (
        attentions_of(model)[1].get_submodule(part).register_forward_hook(lambda *given: seen.append(given[2].clone()))
    )
    with torch.no_grad():
        outputs_of(model, inputs)
        replace_attention(model)
        with counted_engine() as served:
            outputs_of(model, inputs)
            assert len(served) == ATTENTIONS - 1
            handle.remove()
            outputs_of(model, inputs)
        assert len(served) == 2 * ATTENTIONS - 1
    assert len(seen) == 2
    torch.testing.assert_close(*seen, rtol=1e-12, atol=1e-12)


def test_a_counter_of_operators_counts_what_it_counted_before() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = tiny_transformers("LongformerModel"), batch_for("LongformerModel")
    counts = []
    for change in (restore_attention, replace_attention):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            change(model)(**inputs)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_an_argument_of_another_release_goes_to_transformers() -> None:
    attention = attentions_of(replace_attention(tiny_transformers("LongformerModel")))[0]
    with pytest.raises(TypeError, match="layer_head_mask"):
        attention(torch.randn(1, 8, 32), layer_head_mask=None)


# ---- everything else goes on


@pytest.mark.parametrize("name", BOTH)
def test_a_checkpoint_says_nothing_of_it(name: str, tmp_path: Path) -> None:
    model, inputs = tiny_transformers(name), batch_for(name)
    keys = list(model.state_dict())
    replace_attention(model).save_pretrained(tmp_path)
    assert list(model.state_dict()) == keys
    loaded = getattr(transformers, name).from_pretrained(tmp_path, dtype=torch.float64)
    assert all(type(each).__module__.startswith("transformers.") for each in attentions_of(loaded))
    with torch.no_grad():
        assert_equal(outputs_of(loaded, inputs), outputs_of(model, inputs))


def test_copies_and_pickles_keep_it() -> None:
    model, inputs = replace_attention(tiny_transformers("LEDModel")), batch_for("LEDModel")
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(each) for each in attentions_of(copied)] == [type(each) for each in attentions_of(model)]
        with torch.no_grad():
            assert all(map(torch.equal, outputs_of(copied, inputs), outputs_of(model, inputs)))


@pytest.mark.parametrize("name", BOTH)
def test_lora_put_in_before_or_after(name: str) -> None:
    peft = pytest.importorskip("peft", reason="peft: pip install peft")
    inputs, results = batch_for(name), []
    for replaced in (None, "before", "after"):
        model = tiny_transformers(name)
        if replaced == "before":
            replace_attention(model)
        torch.manual_seed(0)
        targets = ["query", "value", "key_global", "value_global"]
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        adapted.to(torch.float64).eval()
        if replaced == "after":
            replace_attention(adapted)
        with counted_engine() as served:
            results.append((outputs_of(adapted, inputs), differentiate(adapted, inputs)))
        assert bool(served) == bool(replaced)
    for outputs, gradients in results[1:]:
        assert_equal(outputs, results[0][0])
        assert_equal_gradients(gradients, results[0][1])


# ---- what cannot be replaced


def test_a_model_without_such_attention_is_named() -> None:
    bert = transformers.BertModel(
        transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    ours = OurModel(LongformerConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    for model in (bert, ours, nn.Linear(2, 2)):
        with pytest.raises(LongformerError, match=f"{type(model).__name__} has no self-attention that can be replaced"):
            replace_attention(model)
        assert restore_attention(model) is model


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(LongformerError, match="impl is 'fast'; it must be one of auto"):
        replace_attention(tiny_transformers("LongformerModel"), impl="fast")


def test_twice_is_as_good_as_once() -> None:
    model = replace_attention(replace_attention(tiny_transformers("LongformerModel")), impl="banded")
    kinds = [type(each) for each in attentions_of(model)]
    assert all(each.impl == "banded" for each in attentions_of(model))
    assert restore_attention(restore_attention(model)) is model
    assert kinds != [type(each) for each in attentions_of(model)]
    assert not any("impl" in each.__dict__ for each in attentions_of(model))


def test_a_subclass_keeps_its_own_work() -> None:
    model = tiny_transformers("LongformerModel")
    last = attentions_of(model)[-1]
    last.__class__ = own = type("Own", (type(last),), {})
    replace_attention(model)
    assert [isinstance(each, own) for each in attentions_of(model)] == [False, False, True]
    assert type(last) is own


def test_a_forward_on_a_module_is_refused_and_nothing_is_changed() -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate: pip install accelerate")
    model, inputs = tiny_transformers("LongformerModel"), batch_for("LongformerModel")
    kinds = [type(each) for each in attentions_of(model)]
    hooks.add_hook_to_module(attentions_of(model)[1], hooks.ModelHook())
    with pytest.raises(LongformerError, match=r"encoder\.layer\.1\.attention\.self has a forward of its own"):
        replace_attention(model)
    assert [type(each) for each in attentions_of(model)] == kinds
    hooks.remove_hook_from_submodules(model)  # which leaves the class's own forward on the module
    replace_attention(model)
    with counted_engine() as served, torch.no_grad():
        outputs_of(model, inputs)
    assert len(served) == ATTENTIONS
    hooks.add_hook_to_module(attentions_of(model)[1], hooks.ModelHook())
    with pytest.raises(LongformerError, match="has a forward of its own"):
        restore_attention(model)
    with counted_engine() as served, torch.no_grad():
        outputs_of(model, inputs)
    assert len(served) == ATTENTIONS


def test_a_dispatched_model_computes_as_before() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate: pip install accelerate")
    model, inputs = tiny_transformers("LongformerModel"), batch_for("LongformerModel")
    with torch.no_grad():
        expected = outputs_of(model, inputs)
    accelerate.cpu_offload(replace_attention(model), torch.device("cpu"))
    with torch.no_grad():
        assert_equal(outputs_of(model, inputs), expected)


def test_second_derivatives_by_the_implementation_that_has_them() -> None:
    inputs: Any = {"inputs_embeds": torch.randn(1, 16, 32, dtype=torch.float64, requires_grad=True)}
    model, results = tiny_transformers("LongformerModel"), []
    for change in (restore_attention, lambda model: replace_attention(model, impl="banded")):
        first = outputs_of(change(model), inputs)[0].square().sum()
        (slope,) = torch.autograd.grad(first, inputs["inputs_embeds"], create_graph=True)
        results += torch.autograd.grad(slope.square().sum(), inputs["inputs_embeds"])
    assert_equal([results[1]], [results[0]], 1e-9)
