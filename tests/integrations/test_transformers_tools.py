"""transformers' pipelines, Trainer and generation over a model with our attention inside: before, after, and undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_checkpoint import wordpiece_tokenizer
from transformers_models import attentions_of, batch_for, tiny_transformers

from longformer.integrations.transformers import replace_attention, restore_attention

TEXTS = ["a cat sat on the mat.", "two dogs, three birds and one fish swim in a very deep and cold lake!", "no"]
PIPELINES = {
    "text-classification": ("LongformerForSequenceClassification", TEXTS, {"top_k": None}),
    "token-classification": ("LongformerForTokenClassification", TEXTS, {}),
    "fill-mask": ("LongformerForMaskedLM", [f"{text[:12]} [MASK] {text[12:]}" for text in TEXTS], {"top_k": 9}),
    "feature-extraction": ("LongformerModel", TEXTS, {}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    wordpiece_tokenizer(folder)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)


def numbers(results: Any) -> np.ndarray:
    """All numbers of a pipeline's results, in order."""
    if isinstance(results, dict):
        results = [value for value in results.values() if not isinstance(value, str)]
    if isinstance(results, list):
        return np.concatenate([numbers(each) for each in results] or [np.zeros(0)])
    return np.array([results], dtype=np.float64)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("task", PIPELINES)
def test_pipeline(task: str, batch_size: int, tokenizer: Any) -> None:
    name, texts, options = PIPELINES[task]
    # These special tokens' ids are the tokenizer's.
    ids = {"pad_token_id": tokenizer.pad_token_id, "sep_token_id": tokenizer.sep_token_id}
    model = tiny_transformers(name, dtype=torch.float32, vocab_size=len(tokenizer), **ids)
    pipeline = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **options)
    before = numbers(pipeline(texts, batch_size=batch_size))
    assert replace_attention(pipeline.model) is model
    np.testing.assert_allclose(numbers(pipeline(texts, batch_size=batch_size)), before, rtol=1e-4, atol=1e-5)
    restore_attention(pipeline.model)
    assert np.array_equal(numbers(pipeline(texts, batch_size=batch_size)), before)


def train(model: Any, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of six steps of transformers' Trainer, and the weights behind them."""
    generator = torch.Generator().manual_seed(0)
    lengths = [9, 43, 20, 33, 12, 27, 40, 16]
    rows = [torch.randint(3, 60, (length,), generator=generator).tolist() for length in lengths]

    def collate(chosen: list[int]) -> dict[str, torch.Tensor]:
        longest = max(lengths[i] for i in chosen)
        ids = torch.tensor([rows[i] + [1] * (longest - lengths[i]) for i in chosen])
        return {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": torch.tensor(chosen) % 2}

    pytest.importorskip("accelerate", reason="accelerate: pip install accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        learning_rate=1e-2,
        optim="sgd",  # Adam would turn the rounding of a gradient of 0, such as a key's bias has, into whole steps
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=list(range(len(rows))), data_collator=collate
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.slow
def test_trainer(tmp_path: Path) -> None:
    changes: list[Callable[[Any], Any]] = [lambda model: model, replace_attention]
    results = []
    for change in changes:
        model = change(tiny_transformers("LongformerForSequenceClassification", dtype=torch.float32))
        results.append(train(model, tmp_path))
    (before, expected), (after, weights) = results
    assert len(before) == 6 and before[-1] < before[0]
    assert after == pytest.approx(before, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "trained")
    loaded = transformers.LongformerForSequenceClassification.from_pretrained(tmp_path / "trained").eval()
    inputs = batch_for("LongformerForSequenceClassification")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_led_generates(options: dict[str, Any]) -> None:
    model = tiny_transformers("LEDForConditionalGeneration", dtype=torch.float32)
    inputs = {key: value for key, value in batch_for("LEDModel").items() if not key.startswith("decoder")}

    def generate() -> Any:
        asked = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return model.generate(**inputs, **asked, **options)

    before = generate()
    kinds = [type(each) for each in attentions_of(model)]
    replace_attention(model)
    after = generate()
    assert torch.equal(after.sequences, before.sequences) and before.sequences.shape[1] > 3
    for x, y in zip(after.logits, before.logits, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    restore_attention(model)
    assert [type(each) for each in attentions_of(model)] == kinds
    assert all(map(torch.equal, generate().logits, before.logits))
