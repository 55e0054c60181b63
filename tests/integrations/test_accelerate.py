"""accelerate: weights that lie elsewhere and come for the call of their module give what they gave before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class, counted_layers, encoder_of, flat
from torch import nn
from torch.utils.data import DataLoader

from longformer import (
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from longformer.models.packed import may_serve

accelerate = pytest.importorskip("accelerate", reason="accelerate: pip install accelerate")
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


# ---- training, and models that are larger than they may be


def labelled(ids: torch.Tensor) -> dict[type, dict[str, torch.Tensor]]:
    places = torch.arange(ids.numel()).view(ids.shape)
    return {
        LongformerForQuestionAnswering: {"start_positions": torch.arange(4), "end_positions": torch.arange(4, 8)},
        LongformerForMaskedLM: {"labels": places % 60},
        LongformerForSequenceClassification: {"labels": torch.tensor([0, 1, 1, 0])},
        LongformerForTokenClassification: {"labels": places % 2},
    }


@pytest.fixture
def fresh_state() -> Iterator[None]:
    """Its choices of device and precision are kept for the whole process, in which a Trainer may have made others."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_state")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("cls", CLASSES[1:])
def test_a_training_loop_as_its_guide_has_it(cls: Any, precision: str, tmp_path: Path) -> None:
    """Prepared, in mixed precision, with accumulated gradients; unwrapped and saved as in accelerate's examples."""
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    names = ("input_ids", "attention_mask", "global_attention_mask")
    rows = {**dict(zip(names, batch(), strict=True)), **labelled(batch()[0])[cls]}
    loader = DataLoader([{key: x[i] for key, x in rows.items()} for i in range(4)], batch_size=2)
    alone, model = (build_class(cls, dtype=torch.float32).train() for _ in range(2))
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01), loader)
    expected = alone(**rows)
    expected.loss.backward()
    losses = []
    for inputs in loader:
        with accelerator.accumulate(model):
            output = model(**inputs)
            assert type(output) is type(expected) and {x.dtype for x in output} == {torch.float32}
            accelerator.backward(output.loss)
            losses.append(accelerator.gather_for_metrics(output.loss.detach()))
            optimizer.step()
            optimizer.zero_grad()
    tolerance = 1e-4 if precision == "no" else 0.05
    torch.testing.assert_close(torch.stack(losses).mean(), expected.loss.detach(), rtol=tolerance, atol=tolerance)
    for own, weight in zip(alone.parameters(), model.parameters(), strict=True):
        step, wanted = own.detach() - weight, 0.01 * own.grad
        assert (step - wanted).norm() <= 5 * tolerance * wanted.norm() + 1e-5
    accelerator.wait_for_everyone()
    unwrapped = accelerator.unwrap_model(model)
    assert type(unwrapped) is cls
    for is_main, folder in ((False, tmp_path / "other"), (True, tmp_path / "main")):
        unwrapped.save_pretrained(
            folder,
            is_main_process=is_main,
            save_function=accelerator.save,
            state_dict=accelerator.get_state_dict(model),
        )
    assert not (tmp_path / "other").exists()
    for x, y in zip(cls.from_pretrained(tmp_path / "main").parameters(), unwrapped.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("cls", CLASSES)
def test_made_without_memory_and_filled_from_a_checkpoint(cls: Any, tmp_path: Path) -> None:
    model = build_class(cls)
    model.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = cls(model.config)
    assert all(weight.is_meta for weight in empty.parameters())
    device_map = accelerate.infer_auto_device_map(
        empty, {"cpu": "90KB", "disk": "1GB"}, no_split_module_classes=["LongformerLayer"]
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    filled = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model.safetensors"), device_map, offload_folder=tmp_path / "away", dtype=torch.float64
    )
    assert 0 < len(on_meta(filled)) < len(list(filled.parameters()))
    assert_unchanged(filled.eval(), inferred(model))
