"""What users and tools ask of a model: another vocabulary, sizes, device, hooks on the input, layers computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class
from tiny_models import CONFIG
from torch import nn

from longformer import LongformerError, LongformerForMaskedLM, LongformerForQuestionAnswering, LongformerModel


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("rows", [40, 60, 75])
def test_another_vocabulary(cls: type, rows: int, tmp_path: Path) -> None:
    model, old = build_class(cls), build_class(cls)
    embeddings = model.resize_token_embeddings(rows)
    assert embeddings is model.get_input_embeddings() and embeddings.weight.shape == (rows, 32)
    kept = min(rows, 60)
    assert torch.equal(embeddings.weight[:kept], old.get_input_embeddings().weight[:kept])
    assert embeddings.padding_idx == CONFIG.pad_token_id
    assert model.config.vocab_size == model.base_model.config.vocab_size == rows
    ids, mask, global_mask = batch()
    ids = ids.clamp(max=kept - 1)
    for new, before in zip(model(ids, mask, global_mask), old(ids, mask, global_mask), strict=True):
        torch.testing.assert_close(new[..., :kept], before[..., :kept], rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    assert cls.from_pretrained(tmp_path).config.vocab_size == rows


def test_new_rows_have_the_old_ones_mean_and_spread() -> None:
    model = build_class(LongformerForMaskedLM)
    old = model.get_input_embeddings().weight.detach().clone()
    bias = model.lm_head.bias.detach().clone()
    new = model.resize_token_embeddings(60 + 4000).weight[60:]
    torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0, atol=5 * 0.2 / 4000**0.5)
    torch.testing.assert_close(new.std(0), old.std(0, correction=0), rtol=0.1, atol=0)
    torch.testing.assert_close(model.lm_head.bias[60:], bias.mean().expand(4000))
    assert torch.equal(model.lm_head.bias[:60], bias)


def test_new_words_are_scored_and_trained() -> None:
    model = build_class(LongformerForMaskedLM, dtype=torch.float32)
    model.resize_token_embeddings(61, pad_to_multiple_of=8)
    ids = torch.tensor([[0, 63, 5, 2]])
    output = model(ids, labels=ids)
    assert output.logits.shape == (1, 4, 64)
    output.loss.backward()
    assert model.get_input_embeddings().weight.grad[63].abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2,), r"with 2 rows eos_token_id 2, sep_token_id 2 would have none; keep more rows"),
        ((0,), r"new_num_tokens is 0; it must be an int >= 1"),
        ((60.5,), r"new_num_tokens is 60\.5"),
        ((60, -8), r"pad_to_multiple_of is -8"),
    ],
)
def test_sizes_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        build_class(LongformerModel).resize_token_embeddings(*arguments)


def test_other_word_embeddings() -> None:
    model = build_class(LongformerForQuestionAnswering)
    with pytest.raises(LongformerError, match="the word embeddings are a Sequential"):
        model.set_input_embeddings(nn.Sequential(model.get_input_embeddings()))
        model.resize_token_embeddings(70)
    expected = build_class(LongformerForQuestionAnswering)(*batch())
    for new, old in zip(model(*batch()), expected, strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-12)


def test_the_encoder_of_a_head_has_its_config(tmp_path: Path) -> None:
    model = build_class(LongformerForQuestionAnswering)
    model.longformer.resize_token_embeddings(70)
    assert model.config is model.longformer.config and model.config.vocab_size == 70
    model.save_pretrained(tmp_path)
    assert LongformerForQuestionAnswering.from_pretrained(tmp_path).config.vocab_size == 70
    words = build_class(LongformerForMaskedLM)
    words.longformer.resize_token_embeddings(70)
    with pytest.raises(LongformerError, match=r"there are 70 word embeddings and lm_head\.bias has 60 numbers; resize"):
        words(batch()[0])


def test_word_embeddings_of_another_size() -> None:
    model = build_class(LongformerForMaskedLM)
    model.set_input_embeddings(nn.Embedding(72, 32, dtype=torch.float64))
    assert model.config.vocab_size == 72
    assert model(torch.tensor([[0, 71, 2]])).logits.shape == (1, 3, 72)
    for wrong, message in (
        (nn.Embedding(72, 16), r"weight is \(72, 16\); it must be \(rows, 32\)"),
        (None, "are None"),
    ):
        with pytest.raises(LongformerError, match=message):
            model.set_input_embeddings(wrong)  # type: ignore[arg-type]


def test_new_rows_as_for_a_new_model() -> None:
    model = build_class(LongformerModel)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(10)
    new = model.resize_token_embeddings(60 + 500, mean_resizing=False).weight[60:]
    assert new.mean().abs() < 0.1 and 0.1 < new.std() < 0.3


def test_number_of_parameters() -> None:
    model = build_class(LongformerModel)
    everything = sum(x.numel() for x in model.parameters())
    assert model.num_parameters() == everything
    assert model.num_parameters(exclude_embeddings=True) == everything - 32 * (60 + 66 + 2)
    model.embeddings.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == everything - 32 * (60 + 66 + 2) - 64


def test_where_and_what_it_is() -> None:
    model = build_class(LongformerForQuestionAnswering, dtype=torch.bfloat16)
    assert (model.device, model.dtype, model.num_labels) == (torch.device("cpu"), torch.bfloat16, 2)
    assert model.base_model is model.longformer and model.longformer.base_model is model.longformer


def test_fresh_weights() -> None:
    model = build_class(LongformerForQuestionAnswering)
    model.init_weights()
    assert torch.equal(model.qa_outputs.bias, torch.zeros(2, dtype=torch.float64))
    assert torch.equal(model.longformer.encoder.layer[0].output.LayerNorm.weight, torch.ones(32, dtype=torch.float64))
    assert not model.get_input_embeddings().weight[CONFIG.pad_token_id].any()


@pytest.mark.parametrize("cls", CLASSES)
def test_layers_computed_again(cls: type) -> None:
    plain, again = build_class(cls).train(), build_class(cls).train()
    assert not again.is_gradient_checkpointing
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert again.is_gradient_checkpointing
    for model in (plain, again):
        model(*batch())[0].square().sum().backward()
    for x, y in zip(plain.parameters(), again.parameters(), strict=True):
        assert (x.grad is None) == (y.grad is None)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-11)
    again.gradient_checkpointing_disable()
    assert not again.is_gradient_checkpointing
    with pytest.raises(LongformerError, match="'offload'; it may be given use_reentrant alone"):
        again.gradient_checkpointing_enable({"offload": True})


def test_an_input_that_requires_a_gradient() -> None:
    model = build_class(LongformerModel).requires_grad_(False)
    assert not model(*batch()).last_hidden_state.requires_grad
    model.enable_input_require_grads()
    assert model(*batch()).last_hidden_state.requires_grad
    model.disable_input_require_grads()
    model.disable_input_require_grads()
    assert not model(*batch()).last_hidden_state.requires_grad


def test_embeddings_as_input() -> None:
    model = build_class(LongformerModel)
    ids, mask, global_mask = batch()
    positions = torch.arange(2, 50).expand(4, -1)
    expected = model(ids, mask, global_mask, position_ids=positions).last_hidden_state
    words = model.get_input_embeddings()(ids).detach().requires_grad_()
    output = model(None, mask, global_mask, inputs_embeds=words)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=0, atol=1e-12)
    one_row = model(ids, mask, global_mask, position_ids=positions[:1]).last_hidden_state
    assert torch.equal(one_row, expected)
    output.last_hidden_state[mask.bool()].sum().backward()
    assert words.grad[mask.bool()].abs().sum() > 0
    assert not words.grad[~mask.bool()].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give input_ids or inputs_embeds, one of them; neither is given"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.int64), "inputs_embeds": torch.zeros(1, 3, 32)}, "both are given"),
        ({"inputs_embeds": torch.zeros(1, 3, 31)}, r"inputs_embeds has shape \(1, 3, 31\); it must be \(B, S, 32\)"),
        ({"inputs_embeds": torch.zeros(1, 3, 32, dtype=torch.int64)}, "inputs_embeds is torch.int64"),
        ({"inputs_embeds": torch.zeros(1, 3, 32).double()}, "inputs_embeds is torch.float64 and the model torch.float"),
        (
            {"inputs_embeds": torch.zeros(1, 65, 32)},
            "the input has a sequence of 65 tokens; the model has positions for",
        ),
    ],
)
def test_inputs_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        build_class(LongformerModel, dtype=torch.float32)(**given)
