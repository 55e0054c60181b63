"""peft by task type: adapters of every head are trained, merged, saved, loaded; and prompts that are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import batch, build_class, encoder_of, flat
from torch import Tensor

import longformer
from longformer.models.packed import may_serve

peft = pytest.importorskip("peft", reason="peft: pip install peft")

# Of each head: the task type, the modules that peft trains beside the adapters, and the targets.
TASKS: dict[str, tuple[str | None, tuple[str, ...], dict[str, Tensor]]] = {
    "LongformerModel": ("FEATURE_EXTRACTION", (), {}),
    "LongformerForSequenceClassification": ("SEQ_CLS", ("classifier",), {"labels": torch.tensor([0, 1, 1, 0])}),
    "LongformerForTokenClassification": ("TOKEN_CLS", ("classifier",), {"labels": torch.arange(192).view(4, 48) % 2}),
    "LongformerForQuestionAnswering": (
        "QUESTION_ANS",
        ("qa_outputs",),
        {"start_positions": torch.tensor([4, 5, 6, 7]), "end_positions": torch.tensor([5, 9, 6, 8])},
    ),
    "LongformerForMaskedLM": (None, (), {"labels": torch.arange(192).view(4, 48) % 60}),
}


def inputs() -> dict[str, Tensor]:
    return dict(zip(("input_ids", "attention_mask", "global_attention_mask"), batch(), strict=True))


def lora(task: str | None, **changes: Any) -> Any:
    values = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value", "query_global"], "task_type": task}
    return peft.LoraConfig(**{**values, **changes})


def inferred(model: Any) -> Tensor:
    with torch.no_grad():
        return flat(model(**inputs()))


def trained(name: str, folder: Path) -> Any:
    """A model with an adapter after two steps, from a checkpoint in ``folder``."""
    build_class(getattr(longformer, name), dtype=torch.float32).save_pretrained(folder)
    model = getattr(longformer, name).from_pretrained(folder)
    task, _, targets = TASKS[name]
    adapted = peft.get_peft_model(model, lora(task)).train()
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        output = adapted(**inputs(), **targets)
        (output.loss if targets else output.last_hidden_state[:, 0].square().mean()).backward()
        optimizer.step()
    return adapted.eval()


@pytest.mark.parametrize("name", TASKS)
def test_trained_merged_saved_and_loaded(name: str, tmp_path: Path) -> None:
    cls, parts = getattr(longformer, name), TASKS[name][1]
    adapted = trained(name, tmp_path / "base")
    before = dict(cls.from_pretrained(tmp_path / "base").named_parameters())
    assert {key for key, weight in adapted.named_parameters() if weight.requires_grad} == {
        key
        for key, _ in adapted.named_parameters()
        if "lora_" in key or any(f".{part}.modules_to_save." in key for part in parts)
    }
    expected = inferred(adapted)
    assert (expected - inferred(cls.from_pretrained(tmp_path / "base"))).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path / "adapter")
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == str(tmp_path / "base")

    loaded = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(inferred(loaded), expected, rtol=0, atol=0)

    merged = loaded.merge_and_unload()
    assert type(merged) is cls and may_serve(encoder_of(merged), batch()[0])
    torch.testing.assert_close(inferred(merged), expected, rtol=1e-3, atol=1e-4)
    changed = {key.split(".")[0] for key, weight in merged.named_parameters() if not torch.equal(weight, before[key])}
    assert changed == ({*parts, "longformer"} if name != "LongformerModel" else {"encoder"})
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(inferred(cls.from_pretrained(tmp_path / "merged")), inferred(merged), rtol=0, atol=0)


def test_found_by_its_own_class(tmp_path: Path) -> None:
    """Without a task type an adapter says which class its base model has."""
    adapted = trained("LongformerForMaskedLM", tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["longformer"])
    assert type(loaded.get_base_model()) is longformer.LongformerForMaskedLM
    torch.testing.assert_close(inferred(loaded), inferred(adapted), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name, (task, *_) in TASKS.items() if task])
def test_an_adapter_of_ours_in_transformers(name: str, tmp_path: Path) -> None:
    """With a task type, peft finds transformers' class for it, which takes the same adapter."""
    pytest.importorskip("transformers", reason="transformers: pip install transformers")
    adapted = trained(name, tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = getattr(peft, f"Auto{type(adapted).__name__}").from_pretrained(tmp_path / "adapter").eval()
    assert type(loaded.get_base_model()).__module__.startswith("transformers.")
    with torch.no_grad():
        theirs = loaded(**inputs())
        ours = adapted(**inputs())
    kept = inputs()["attention_mask"] > 0
    for key, x in ours.items():
        y = theirs[key]
        x, y = (x[kept], y[kept]) if x.shape[:2] == kept.shape else (x, y)
        torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-3)


# ---- learned prompts, which stand before the text and come as inputs_embeds


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
@pytest.mark.parametrize("name", ["LongformerForSequenceClassification", "LongformerModel"])
def test_learned_prompts(kind: str, name: str, tmp_path: Path) -> None:
    task, _, targets = TASKS[name]
    model = build_class(getattr(longformer, name), dtype=torch.float32)
    prompted = peft.get_peft_model(model, getattr(peft, kind)(task_type=task, num_virtual_tokens=5))
    ids, mask, _ = batch()
    output = prompted(input_ids=ids, attention_mask=mask, **targets)
    score = output.loss if targets else output.last_hidden_state.square().mean()
    score.backward()
    trained = {key for key, weight in prompted.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any("prompt_encoder" in key for key in trained)
    assert not any("longformer" in key or "encoder.layer" in key for key in trained)
    prompts = prompted.get_prompt(batch_size=4)
    words = torch.cat([prompts, model.get_input_embeddings()(ids)], 1)
    seen = torch.cat([mask.new_ones(4, 5), mask], 1)
    with torch.no_grad():
        expected = model(inputs_embeds=words, attention_mask=seen)
        prompted.eval()
        torch.testing.assert_close(flat(prompted(input_ids=ids, attention_mask=mask)), flat(expected))


def test_a_resized_vocabulary_is_saved_with_the_adapter(tmp_path: Path) -> None:
    build_class(longformer.LongformerForMaskedLM, dtype=torch.float32).save_pretrained(tmp_path / "base")
    model = longformer.LongformerForMaskedLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(63)
    adapted = peft.get_peft_model(model, lora(None, init_lora_weights=False)).eval()
    expected = inferred(adapted)
    with pytest.warns(UserWarning, match="has been resized"):
        adapted.save_pretrained(tmp_path / "adapter")
    again = longformer.LongformerForMaskedLM.from_pretrained(tmp_path / "base")
    again.resize_token_embeddings(63)
    with torch.no_grad():
        again.lm_head.bias.copy_(model.lm_head.bias)  # which is no part of an adapter
    loaded = peft.PeftModel.from_pretrained(again, tmp_path / "adapter")
    torch.testing.assert_close(inferred(loaded), expected, rtol=0, atol=0)
