"""Precision as a choice: what each keeps in which type, how far it may be off, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from longformer import CheckpointError, LongformerConfig, LongformerError, LongformerForQuestionAnswering
from longformer.models.precision import use_int8, use_mixed


@pytest.fixture(scope="module")
def model() -> LongformerForQuestionAnswering:
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=300,
        attention_window=32,
    )
    return LongformerForQuestionAnswering(config).eval()


@pytest.fixture(scope="module")
def input_ids() -> Tensor:
    ids = torch.randint(3, 100, (2, 120), generator=torch.Generator().manual_seed(1))
    ids[:, [9, 10, 119]] = 2
    return ids


@torch.inference_mode()
def test_mixed_and_int8_stay_near_float32(model: LongformerForQuestionAnswering, input_ids: Tensor) -> None:
    expected = model(input_ids).start_logits
    for lower, share in ((use_mixed, 0.02), (use_int8, 0.1)):  # of the logits' own spread
        changed = copy.deepcopy(model)
        lower(changed)
        actual = changed(input_ids).start_logits
        assert actual.dtype == torch.float32
        assert 0 < (actual - expected).abs().max() < share * expected.std() * 4


def test_mixed_keeps_everything_but_matrix_products_in_float32(model: LongformerForQuestionAnswering) -> None:
    mixed = copy.deepcopy(model)
    use_mixed(mixed)
    for name, parameter in mixed.named_parameters():
        in_layer_and_linear = ".layer." in name and "LayerNorm" not in name
        assert parameter.dtype == (torch.bfloat16 if in_layer_and_linear else torch.float32), name


@pytest.mark.parametrize("dtype", ["mixed", "int8", torch.bfloat16])
@torch.inference_mode()
def test_by_name_from_pretrained(
    dtype: str | torch.dtype, model: LongformerForQuestionAnswering, input_ids: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    loaded = LongformerForQuestionAnswering.from_pretrained(tmp_path, dtype=dtype)
    expected = model(input_ids).start_logits
    assert (loaded(input_ids).start_logits - expected).abs().max() < 0.5 * expected.std()


def test_unknown_name_is_refused(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"dtype is 'int4'; it must be .* or 'mixed' or 'int8'"):
        LongformerForQuestionAnswering.from_pretrained(tmp_path, dtype="int4")


def test_int8_is_not_saved(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    quantised = copy.deepcopy(model)
    use_int8(quantised)
    with pytest.raises(CheckpointError, match="a model in int8 cannot be saved"):
        quantised.save_pretrained(tmp_path)


def test_int8_without_an_engine(model: LongformerForQuestionAnswering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(engine="none"))
    with pytest.raises(LongformerError, match="no engine for int8"):
        use_int8(copy.deepcopy(model))
