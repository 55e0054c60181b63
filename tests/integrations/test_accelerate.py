"""accelerate: weights that lie elsewhere and come for the call of their module give what they gave before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class, counted_layers, encoder_of, flat
from torch import nn

from longformer import LongformerForMaskedLM
from longformer.models.packed import may_serve

accelerate = pytest.importorskip("accelerate", reason="accelerate: pip install 'longformer[integrations]'")
CPU = torch.device("cpu")


def inferred(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return flat(model(*batch()))


def on_meta(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.is_meta}


def assert_unchanged(model: Any, expected: torch.Tensor) -> None:
    assert not may_serve(encoder_of(model), batch()[0])
    with counted_layers() as layers:
        for _ in range(2):
            torch.testing.assert_close(inferred(model), expected, rtol=1e-12, atol=1e-12)
    assert not layers


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_cpu_offload(cls: type, impl: str) -> None:
    model = build_class(cls, impl=impl)
    expected = inferred(model)
    accelerate.cpu_offload(model, execution_device=CPU)
    assert on_meta(model) == {name for name, _ in model.named_parameters()}
    assert_unchanged(model, expected)
    assert on_meta(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("cls", CLASSES)
def test_disk_offload(cls: type, tmp_path: Path) -> None:
    model = build_class(cls)
    expected = inferred(model)
    accelerate.disk_offload(model, tmp_path, execution_device=CPU)
    assert on_meta(model) == {name for name, _ in model.named_parameters()}
    assert_unchanged(model, expected)


def parts(model: nn.Module) -> list[str]:
    """What a device map speaks of: the embeddings, each layer, and the head or pooler."""
    names = [name for name, part in model.named_modules() if type(part).__name__ == "LongformerLayer"]
    others = ("embeddings", "pooler", "longformer.embeddings", "qa_outputs", "lm_head", "classifier")
    return names + [name for name, _ in model.named_modules() if name in others]


@pytest.mark.parametrize("on_disk", ["embeddings", "layers", "last", "all", "none"])
@pytest.mark.parametrize("cls", CLASSES)
def test_dispatch_model(cls: type, on_disk: str, tmp_path: Path) -> None:
    model = build_class(cls)
    expected = inferred(model)
    kinds = dict.fromkeys(parts(model), "last")
    kinds.update({name: "layers" for name in kinds if ".layer." in name})
    kinds.update({name: "embeddings" for name in kinds if name.endswith("embeddings")})
    offloaded = [name for name, kind in kinds.items() if on_disk in ("all", kind)]
    device_map = {name: "disk" if name in offloaded else "cpu" for name in kinds}
    accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert on_meta(model) == {name for name, _ in model.named_parameters() if name.startswith(tuple(offloaded))}
    assert_unchanged(model, expected)


def test_tied_words_are_the_embeddings_own_while_they_are_away() -> None:
    """The masked language model's loss, which scores some tokens alone, from offloaded embeddings."""
    model = build_class(LongformerForMaskedLM)
    ids, mask, global_mask = batch()
    labels = ids.where((mask > 0) & (torch.arange(ids.shape[1]) % 5 == 0), -100)
    with torch.no_grad():
        expected = model(ids, mask, global_mask, labels=labels)
        accelerate.cpu_offload(model, execution_device=CPU)
        actual = model(ids, mask, global_mask, labels=labels)
    torch.testing.assert_close(flat(actual[:1]), flat(expected[:1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-12, atol=1e-12)
