"""Models that share their weights with transformers' of the same name, made either way round."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers
from reference import double_softmax
from tiny_heads import CLASSES, build_class
from tiny_models import CONFIG
from torch import nn
from transformers_models import batch_for, outputs_of, tiny_transformers

from longformer import LongformerError, LongformerForMaskedLM, LongformerForQuestionAnswering, LongformerModel
from longformer.integrations.transformers import replace_attention
from longformer.models.heads import HEADS


def all_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def assert_same_outputs(ours: Any, theirs: Any) -> None:
    inputs = batch_for(type(theirs).__name__)
    with torch.no_grad(), double_softmax(theirs.dtype):
        expected = theirs(**inputs).to_tuple()
        for x, y in zip(ours(**inputs), expected, strict=False):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", [LongformerModel, *HEADS])
def test_from_transformers_and_back(cls: type) -> None:
    theirs = tiny_transformers(cls.__name__, attention_probs_dropout_prob=0.25).train()
    first = next(theirs.parameters()).requires_grad_(False)
    given = all_parameters(theirs)
    ours = cls.from_transformers(theirs)
    assert type(ours) is cls and ours.training and not first.requires_grad
    assert ours.config.attention_probs_dropout_prob == 0.25 and ours.config.attention_window == (8, 16, 4)
    assert all(parameter is given[name] for name, parameter in ours.named_parameters())
    back = ours.to_transformers()
    assert type(back) is type(theirs) and back.training
    now = all_parameters(back)
    assert now.keys() == given.keys() and all(now[name] is given[name] for name in given)
    assert back.config.to_dict() == theirs.config.to_dict()
    assert ours.eval().to_transformers().training is False
    assert_same_outputs(ours, theirs.eval())
    assert_same_outputs(ours, back.eval())


@pytest.mark.parametrize("cls", CLASSES)
def test_to_transformers_and_back(cls: type) -> None:
    ours = build_class(cls)
    theirs = ours.to_transformers()
    assert not theirs.training and theirs.config.vocab_size == CONFIG.vocab_size
    assert_same_outputs(ours, theirs)
    back = cls.from_transformers(theirs)
    assert back.config == ours.config
    assert dict(back.named_parameters()).items() == dict(ours.named_parameters()).items()


def test_a_step_of_one_is_a_step_of_the_other() -> None:
    theirs = tiny_transformers("LongformerForQuestionAnswering")
    ours = LongformerForQuestionAnswering.from_transformers(theirs)
    inputs, optimizer = batch_for("LongformerForQuestionAnswering"), torch.optim.SGD(theirs.parameters(), lr=0.1)
    positions = torch.tensor([3, 9, 20, 2])
    before = outputs_of(theirs, inputs)
    loss, *_ = ours(**inputs, start_positions=positions, end_positions=positions)
    loss.backward()
    optimizer.step()
    assert not torch.equal(outputs_of(theirs, inputs)[0], before[0])
    assert_same_outputs(ours, theirs)


def test_tied_weights_stay_tied() -> None:
    theirs = build_class(LongformerForMaskedLM).to_transformers()
    assert theirs.lm_head.decoder.weight is theirs.longformer.embeddings.word_embeddings.weight
    assert theirs.lm_head.decoder.bias is theirs.lm_head.bias


@pytest.mark.parametrize("pooler", [False, True])
def test_the_pooler_is_there_if_it_was(pooler: bool) -> None:
    ours = build_class(LongformerModel, add_pooling_layer=pooler)
    theirs = ours.to_transformers()
    assert (theirs.pooler is not None) == pooler
    assert (LongformerModel.from_transformers(theirs).pooler is not None) == pooler


def test_the_implementation_is_the_callers() -> None:
    ours = LongformerModel.from_transformers(tiny_transformers("LongformerModel"), impl="reference")
    assert {layer.attention.self.impl for layer in ours.encoder.layer} == {"reference"}


def test_after_the_attention_was_replaced() -> None:
    theirs = replace_attention(tiny_transformers("LongformerModel"))
    assert_same_outputs(LongformerModel.from_transformers(theirs), theirs)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), build_class(LongformerModel)], ids=["another", "ours"])
def test_another_class_is_refused(model: nn.Module) -> None:
    with pytest.raises(LongformerError, match=f"{type(model).__name__} is not transformers' LongformerModel"):
        LongformerModel.from_transformers(model)


def test_an_adapter_is_refused_by_its_weights() -> None:
    theirs = tiny_transformers("LongformerModel")
    theirs.encoder.layer[0].output.dense = nn.Sequential(theirs.encoder.layer[0].output.dense)
    with pytest.raises(LongformerError, match=r"alone: encoder\.layer\.0\.output\.dense\.0\.bias.*merge adapters"):
        LongformerModel.from_transformers(theirs)


def test_untied_output_embeddings_are_refused() -> None:
    theirs = tiny_transformers("LongformerForMaskedLM")
    theirs.lm_head.decoder.weight = nn.Parameter(theirs.lm_head.decoder.weight.detach().clone())
    with pytest.raises(LongformerError, match=r"alone: lm_head\.decoder\.weight"):
        LongformerForMaskedLM.from_transformers(theirs)


def test_a_shape_that_the_config_does_not_say_is_refused() -> None:
    theirs = tiny_transformers("LongformerModel")
    theirs.embeddings.word_embeddings = nn.Embedding(61, 32)
    with pytest.raises(LongformerError, match=r"\.weight has shape \(61, 32\); by its config it has \(60, 32\)"):
        LongformerModel.from_transformers(theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_dilation": 2}, "attention_dilation is 2; transformers' model has none"),
        ({"attention_window": (8, 7)}, r"attention_window is \(8, 7\); transformers' model needs even windows"),
        ({"attention_window": (8, 12)}, r"\(8, 12\).*the largest, 12, is a multiple"),
    ],
)
def test_what_transformers_cannot_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        build_class(LongformerModel, CONFIG.replace(**changes)).to_transformers()


def test_mixed_precision_is_refused() -> None:
    from longformer.models.precision import use_mixed

    model = build_class(LongformerModel, dtype=torch.float32)
    use_mixed(model)
    with pytest.raises(LongformerError, match=r"torch\.bfloat16 and torch\.float32; .*one precision"):
        model.to_transformers()
    assert_same_outputs(model.to(torch.float64), model.to_transformers())


def test_without_transformers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LongformerError, match=r"transformers cannot be imported .*; pip install transformers"):
        build_class(LongformerModel).to_transformers()


def test_the_config_carries_what_transformers_was_given() -> None:
    config = LongformerModel.from_transformers(tiny_transformers("LongformerModel")).config
    assert (config.pad_token_id, config.sep_token_id, config.num_labels) == (1, 2, 2)
    assert transformers.LongformerConfig.from_dict(config.to_dict()).num_labels == 2
