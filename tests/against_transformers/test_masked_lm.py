"""Masked language modelling beside transformers' LongformerForMaskedLM: scores, loss, gradients, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from reference import TINY, global_mask, padded_batch, question_row, reference_config
from tolerances import FLOAT32, GRADIENT
from torch import Tensor

from longformer import CheckpointError, LongformerError, LongformerForMaskedLM
from longformer.checkpoints.names import TIED
from longformer.models.heads import IGNORED


@pytest.fixture
def reference() -> torch.nn.Module:
    model = transformers.LongformerForMaskedLM(reference_config(TINY)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=TINY.initializer_range if weight.dim() > 1 else 0.1)
            if "norm.weight" in name.lower():
                weight.add_(1)
    return model


@pytest.fixture
def ours(reference: torch.nn.Module) -> LongformerForMaskedLM:
    model = LongformerForMaskedLM(TINY).eval()
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items() if name not in TIED}
    model.load_state_dict(state)
    return model


def batch() -> dict[str, Tensor]:
    inputs = padded_batch(TINY, [question_row(TINY, q, n) for q, n in ((1, 23), (6, 40), (14, 37))])
    labels = inputs["input_ids"].clone()
    labels[torch.rand(labels.shape) > 0.3] = IGNORED
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("is_global", [False, True])
def test_scores_loss_and_gradients(reference: torch.nn.Module, ours: LongformerForMaskedLM, is_global: bool) -> None:
    inputs = batch()
    if is_global:
        inputs["global_attention_mask"] = global_mask(inputs["input_ids"], [0, 3], [1], [])
    labels = inputs.pop("labels")
    torch.testing.assert_close(ours(**inputs).logits, reference(**inputs).logits, rtol=1e-4, atol=10 * FLOAT32)
    loss, logits = ours(**inputs, labels=labels)
    theirs = reference(**inputs, labels=labels)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, theirs.logits, rtol=1e-4, atol=10 * FLOAT32)
    fewer = ours(**inputs, labels=labels, only_targets=True)
    torch.testing.assert_close(fewer.loss, theirs.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fewer.logits, theirs.logits[labels != IGNORED], rtol=1e-4, atol=10 * FLOAT32)
    loss.backward()
    theirs.loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        grad = expected[name].grad
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None and parameter.grad is not None and not name.endswith(("key.bias", "key_global.bias")):
            assert float((parameter.grad - grad).norm()) <= 2 * GRADIENT * float(grad.norm()) + 1e-9, name


def test_files_go_either_way(reference: torch.nn.Module, ours: LongformerForMaskedLM, tmp_path: Path) -> None:
    inputs = {name: x for name, x in batch().items() if name != "labels"}
    want = reference(**inputs).logits
    reference.save_pretrained(tmp_path / "theirs")
    loaded = LongformerForMaskedLM.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(loaded(**inputs).logits, want, rtol=1e-4, atol=10 * FLOAT32)
    ours.save_pretrained(tmp_path / "ours")
    back, report = transformers.LongformerForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    torch.testing.assert_close(back(**inputs).logits, want, rtol=1e-5, atol=FLOAT32)
    # As released in 2020: a pickle with every name, tied ones included.
    state = {name.replace("longformer.", "roberta."): tensor for name, tensor in reference.state_dict().items()}
    assert "lm_head.decoder.weight" in state
    (tmp_path / "ours" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "ours" / "pytorch_model.bin")
    old = LongformerForMaskedLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(old(**inputs).logits, want, rtol=1e-4, atol=10 * FLOAT32)
    state["lm_head.decoder.weight"] = state["lm_head.decoder.weight"] + 1
    torch.save(state, tmp_path / "ours" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"lm_head\.decoder\.weight is not .*word_embeddings"):
        LongformerForMaskedLM.from_pretrained(tmp_path / "ours")


def test_the_matrix_is_shared(ours: LongformerForMaskedLM) -> None:
    loss = ours(**batch()).loss
    loss.backward()
    assert not any("decoder" in name for name in ours.state_dict())
    before = ours(batch()["input_ids"]).logits
    with torch.no_grad():
        ours.longformer.embeddings.word_embeddings.weight.zero_()
    assert not torch.equal(ours(batch()["input_ids"]).logits, before)


def test_labels_that_are_none(ours: LongformerForMaskedLM) -> None:
    ids = batch()["input_ids"]
    assert ours(ids, labels=torch.full_like(ids, IGNORED)).loss.item() == 0
    with pytest.raises(LongformerError, match=r"labels is torch.float32"):
        ours(ids, labels=ids.float())
    with pytest.raises(LongformerError, match=r"labels holds 60; it may hold -100"):
        ours(ids, labels=torch.full_like(ids, 60))
