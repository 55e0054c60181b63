"""from_pretrained's keywords, wrapped checkpoints, and what is drawn where a checkpoint lacks a head."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_heads import HEADS, build_class
from tiny_models import CONFIG
from torch import Tensor

from longformer import (
    CheckpointError,
    ConfigError,
    LongformerError,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
)


def saved(cls: type, folder: Path, **changes: Any) -> Any:
    model = build_class(cls, CONFIG.replace(**changes), dtype=torch.float32)
    model.save_pretrained(folder)
    return model


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, other[name]), name


# ---- of one head into another


@pytest.mark.parametrize("target", [LongformerModel, *HEADS])
@pytest.mark.parametrize("source", [LongformerModel, *HEADS])
def test_a_checkpoint_of_one_head_under_another(
    source: type, target: type, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The encoder stays; what both have stays; what only the new one has is drawn, and named."""
    model = saved(source, tmp_path)
    if {source, target} == {
        LongformerForTokenClassification,
        LongformerForMultipleChoice,
    }:  # of one name, not one shape
        with pytest.raises(CheckpointError, match=r"classifier\.weight is \[\d, 32\], not \[\d, 32\]"):
            target.from_pretrained(tmp_path)
        return
    with caplog.at_level(logging.WARNING):
        loaded, info = target.from_pretrained(tmp_path, output_loading_info=True)
    assert_same(
        {name: x for name, x in loaded.base_model.state_dict().items() if not name.startswith("pooler")},
        {name: x for name, x in model.base_model.state_dict().items() if not name.startswith("pooler")},
    )
    missing = sorted(loaded.state_dict().keys() - _names_under(target, model))
    assert info["missing_keys"] == missing
    assert info["mismatched_keys"] == info["error_msgs"] == []
    if missing:
        assert f"drawn at random, and to be trained before use: {', '.join(missing)}" in caplog.text
        with pytest.raises(CheckpointError, match=rf"missing .*{missing[0]}"):
            target.from_pretrained(tmp_path, new_head=False)
    else:
        assert caplog.text == ""


def _names_under(target: type, model: Any) -> set[str]:
    """Names that a class gives to the weights of a model: a base model's have no prefix."""
    names = set(model.state_dict())
    full = names if isinstance(model, tuple(HEADS)) else {f"longformer.{name}" for name in names}
    return {name.removeprefix("longformer.") for name in full} if target is LongformerModel else full


def test_a_damaged_head_is_not_drawn(tmp_path: Path) -> None:
    model = saved(LongformerForSequenceClassification, tmp_path)
    state = model.state_dict()
    del state["classifier.out_proj.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing classifier\.out_proj\.bias"):
        LongformerForSequenceClassification.from_pretrained(tmp_path)


def test_a_damaged_encoder_is_never_drawn(tmp_path: Path) -> None:
    model = saved(LongformerForMaskedLM, tmp_path)
    state = model.state_dict()
    del state["longformer.encoder.layer.0.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing longformer\.encoder\.layer\.0\.output\.dense\.weight"):
        LongformerForQuestionAnswering.from_pretrained(tmp_path)


def test_another_number_of_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(LongformerForSequenceClassification, tmp_path)
    with pytest.raises(CheckpointError, match=r"classifier\.out_proj\.weight is \[2, 32\], not \[5, 32\]"):
        LongformerForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    loaded, info = LongformerForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {(name, tuple(old), tuple(new)) for name, old, new in info["mismatched_keys"]} == {
        ("classifier.out_proj.weight", (2, 32), (5, 32)),
        ("classifier.out_proj.bias", (2,), (5,)),
    }
    assert "classifier.out_proj.weight" in caplog.text
    assert torch.equal(loaded.classifier.dense.weight, model.classifier.dense.weight)
    assert loaded.classifier.out_proj.weight.shape == (5, 32)
    assert LongformerForSequenceClassification.from_pretrained(tmp_path, num_labels=3, new_head=True).num_labels == 3


def test_question_answering_from_a_classifier_has_two_outputs(tmp_path: Path) -> None:
    saved(LongformerForTokenClassification, tmp_path, num_labels=7)
    with pytest.raises(ConfigError, match="num_labels is 5; question answering has 2"):
        LongformerForQuestionAnswering.from_pretrained(tmp_path, num_labels=5)
    assert LongformerForQuestionAnswering.from_pretrained(tmp_path).config.num_labels == 2


def test_choices_from_a_checkpoint_with_pooler_keep_it(tmp_path: Path) -> None:
    model = saved(LongformerModel, tmp_path)
    loaded = LongformerForMultipleChoice.from_pretrained(tmp_path)
    assert torch.equal(loaded.longformer.pooler.dense.weight, model.pooler.dense.weight)


# ---- keywords


def test_changes_of_the_config(tmp_path: Path) -> None:
    saved(LongformerForSequenceClassification, tmp_path, num_labels=3)
    names = {0: "no", 1: "yes", 2: "perhaps"}
    loaded = LongformerForSequenceClassification.from_pretrained(
        tmp_path,
        attention_window=4,
        id2label=names,
        problem_type="single_label_classification",
        hidden_dropout_prob=0.5,
    )
    assert loaded.config.attention_window == (4, 4)
    assert loaded.config.id2label == names and loaded.config.label2id["perhaps"] == 2
    assert loaded.classifier.dropout.p == 0.5
    loaded.save_pretrained(tmp_path / "again")
    assert LongformerForSequenceClassification.from_pretrained(tmp_path / "again").config == loaded.config
    by_name = LongformerForSequenceClassification.from_pretrained(tmp_path, label2id={"a": 2, "b": 1, "c": 0})
    assert by_name.config.label_names == ("c", "b", "a")


@pytest.mark.parametrize("given", ["float16", torch.float16, "auto"])
def test_precision(tmp_path: Path, given: Any) -> None:
    saved(LongformerForMaskedLM, tmp_path).half().save_pretrained(tmp_path)
    assert LongformerForMaskedLM.from_pretrained(tmp_path, torch_dtype=given).dtype == torch.float16
    assert LongformerForMaskedLM.from_pretrained(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("given", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_one_device(tmp_path: Path, given: Any) -> None:
    saved(LongformerForMaskedLM, tmp_path)
    assert LongformerForMaskedLM.from_pretrained(tmp_path, device_map=given).device == torch.device("cpu")


def test_weights_and_config_instead_of_a_checkpoints(tmp_path: Path) -> None:
    model = saved(LongformerForQuestionAnswering, tmp_path)
    other = {name: x + 1 for name, x in model.state_dict().items()}
    assert_same(LongformerForQuestionAnswering.from_pretrained(tmp_path, state_dict=other).state_dict(), other)
    wrapped = LongformerForQuestionAnswering.from_pretrained(tmp_path, state_dict={"state_dict": other})
    assert_same(wrapped.state_dict(), other)
    for config in (tmp_path, model.config.to_dict()):
        assert LongformerForQuestionAnswering.from_pretrained(tmp_path, config=config).config == model.config
    alone = LongformerForQuestionAnswering.from_pretrained(None, config=model.config, state_dict=other)
    assert_same(alone.state_dict(), other)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"atention_window": 4},
            LongformerError,
            r"'atention_window' is no keyword .* did you mean 'attention_window'",
        ),
        ({"torch_dtyp": "auto"}, LongformerError, r"did you mean 'torch_dtype'"),
        ({"dtype": torch.float16, "torch_dtype": torch.float16}, LongformerError, r"dtype .* and torch_dtype .*; give"),
        ({"device": "cpu", "device_map": "cpu"}, LongformerError, r"device is 'cpu' and device_map 'cpu'; give one"),
        ({"device_map": {"a": 0, "b": "cpu"}}, LongformerError, r"device_map has 'a', 'b'; .* on one device"),
        ({"output_attentions": True}, LongformerError, "no keyword 'output_attentions': give it to the model when you"),
        ({"use_auth_token": "x"}, LongformerError, "it is called token"),
        ({"device": "foo"}, LongformerError, "device 'foo' cannot be used here"),
        ({"config": 3}, LongformerError, "config is a int; it must be a LongformerConfig, or a path to one"),
        ({"state_dict": [1]}, CheckpointError, "state_dict is no state dict: it must map names to tensors"),
        ({"num_labels": 0}, ConfigError, r"num_labels is 0; it must be an int >= 1"),
        ({"id2label": {1: "a"}}, ConfigError, r"id2label is \{1: 'a'\}; it must give a name to each number from 0"),
        ({"id2label": {0: "a", 1: "a"}}, ConfigError, r"label_names has 'a' twice"),
        ({"id2label": {0: "a"}, "num_labels": 2}, ConfigError, r"must be one name for each of num_labels"),
        ({"problem_type": "ranking"}, ConfigError, r"problem_type is 'ranking'; it must be None or one of regression"),
    ],
)
def test_keywords_that_cannot_be_met(
    tmp_path: Path, keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    saved(LongformerForSequenceClassification, tmp_path)
    with pytest.raises(error, match=message):
        LongformerForSequenceClassification.from_pretrained(tmp_path, **keywords)


def test_neither_a_checkpoint_nor_weights() -> None:
    with pytest.raises(LongformerError, match="both config and state_dict must be given"):
        LongformerModel.from_pretrained(None, config=CONFIG)


def test_keywords_of_saving(tmp_path: Path) -> None:
    model = saved(LongformerForMaskedLM, tmp_path)
    model.save_pretrained(tmp_path, safe_serialization=True, max_shard_size="5GB", push_to_hub=False)
    with pytest.raises(LongformerError, match="it cannot do push_to_hub=True"):
        model.save_pretrained(tmp_path, push_to_hub=True)


# ---- what wraps a checkpoint


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model."])
def test_a_prefix_that_all_names_share(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(LongformerForQuestionAnswering, tmp_path)
    save_file({prefix + name: x for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    assert_same(LongformerForQuestionAnswering.from_pretrained(tmp_path).state_dict(), model.state_dict())
    assert f"every name begins with {prefix}, which is left out" in caplog.text


def test_a_prefix_of_some_names_is_no_wrapper(tmp_path: Path) -> None:
    state = saved(LongformerForQuestionAnswering, tmp_path).state_dict()
    state = {name if "qa_" in name else f"module.{name}": x for name, x in state.items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected module\.longformer"):
        LongformerForQuestionAnswering.from_pretrained(tmp_path)


@pytest.mark.parametrize("level", ["state_dict", "model", "model_state_dict"])
def test_weights_one_level_down(tmp_path: Path, level: str, caplog: pytest.LogCaptureFixture) -> None:
    model = saved(LongformerForQuestionAnswering, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    wrapped = {f"model.{name}": x for name, x in model.state_dict().items()}
    torch.save({"epoch": 3, level: wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "pytorch_model.bin")
    assert_same(LongformerForQuestionAnswering.from_pretrained(tmp_path).state_dict(), model.state_dict())
    assert f"the weights are what it holds as {level}; the rest is not read" in caplog.text
