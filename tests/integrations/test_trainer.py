"""transformers' Trainer trains our heads as it trains transformers' own, to checkpoints that both libraries load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_checkpoint import wordpiece_tokenizer
from tiny_heads import HEADS, build_class
from tiny_models import CONFIG

import longformer
from longformer import ConfigError, LongformerError, LongformerForSequenceClassification
from longformer.integrations.trainer import Trainer

pytest.importorskip("accelerate", reason="accelerate: pip install accelerate")
transformers.logging.set_verbosity_error()

pytestmark = pytest.mark.slow

TEXTS = [
    "a cat sat on the mat.",
    "two dogs and a bird.",
    "no",
    "it rained, and it rained!",
    "we met at noon.",
    "ah, well.",
    "one fish swam.",
    "yes",
]
# The name of the argument changed during transformers 5.
FIELDS = transformers.TrainingArguments.__dataclass_fields__
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in FIELDS else "gradient_checkpointing"
NAMES = [cls.__name__ for cls in HEADS]


@dataclass
class Task:
    """What a head is trained on: examples, the collator that makes them a batch, and what the targets are called."""

    examples: list[dict[str, Any]]
    collator: Any
    targets: tuple[str, ...] = ("labels",)

    def without_targets(self, chosen: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch for prediction."""
        batch = self.collator(chosen)
        return {key: x for key, x in batch.items() if key not in ("labels", *self.targets)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    wordpiece_tokenizer(folder)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)


def config_for(tokenizer: Any) -> longformer.LongformerConfig:
    return CONFIG.replace(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )


def pair(tokenizer: Any, question: str, text: str) -> list[int]:
    """``<s> question </s></s> text </s>``, as RoBERTa has it."""
    parts = (tokenizer.encode(each, add_special_tokens=False) for each in (question, text))
    first, second = parts
    separator = [tokenizer.sep_token_id]
    return [tokenizer.cls_token_id, *first, *separator * 2, *second, *separator]


def task_of(name: str, tokenizer: Any) -> Task:
    rows = [{"input_ids": [tokenizer.cls_token_id, *tokenizer.encode(t, add_special_tokens=False)]} for t in TEXTS]
    with_padding = transformers.DataCollatorWithPadding(tokenizer)
    match name:
        case "LongformerForSequenceClassification":
            return Task([{**row, "label": i % 2} for i, row in enumerate(rows)], with_padding, ("label",))
        case "LongformerForTokenClassification":
            labels = [[-100, *(token % 2 for token in row["input_ids"][1:])] for row in rows]
            examples = [{**row, "labels": each} for row, each in zip(rows, labels, strict=True)]
            return Task(examples, transformers.DataCollatorForTokenClassification(tokenizer))
        case "LongformerForMaskedLM":
            masking = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4, seed=3)
            return Task(rows, masking)
        case "LongformerForQuestionAnswering":
            pairs = [{"input_ids": pair(tokenizer, "who?", text)} for text in TEXTS]
            where = ("start_positions", "end_positions")
            answers = [{key: 7 + i % 2 + n for n, key in enumerate(where)} for i in range(len(TEXTS))]
            return Task([{**row, **each} for row, each in zip(pairs, answers, strict=True)], with_padding, where)
        case _:
            choices = [[pair(tokenizer, text, end) for end in ("so", "not so", "never")] for text in TEXTS]
            rows = [{"input_ids": each, "labels": i % 3} for i, each in enumerate(choices)]
            for row in rows:
                row["attention_mask"] = [[1] * len(each) for each in row["input_ids"]]
            return Task(rows, transformers.DataCollatorForMultipleChoice(tokenizer))


def first_logits(evaluated: Any) -> dict[str, float]:
    """A metric of whatever a head gives: how far its numbers are from one another, where there is no padding."""
    logits = evaluated.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"spread": float(np.std(logits[logits != -100]))}


def arguments(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    values: dict[str, Any] = {
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "optim": "sgd",  # Adam would turn the rounding of a gradient of 0, such as a key's bias has, into whole steps
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **{**values, **changes})


def trainer_of(model: Any, task: Task, folder: Path, *, kind: Any = transformers.Trainer, **changes: Any) -> Any:
    return kind(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=task.examples,
        eval_dataset=task.examples[:5],
        data_collator=task.collator,
        compute_metrics=first_logits,
    )


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_evaluates_as_transformers_own_model(name: str, tokenizer: Any, tmp_path: Path) -> None:
    ours = build_class(getattr(longformer, name), config_for(tokenizer), dtype=torch.float32)
    ours.save_pretrained(tmp_path / "first")
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "first")
    results = []
    for model in (ours, theirs):
        trainer = trainer_of(model, task_of(name, tokenizer), tmp_path / "out")
        trainer.train()
        assert len(losses(trainer)) == 6 and trainer.state.total_flos > 0
        evaluated = trainer.evaluate()
        task = task_of(name, tokenizer)  # whose collator masks the same words for both
        trainer.data_collator = task.without_targets
        predicted = trainer.predict(task.examples)
        assert predicted.label_ids is None
        numbers = predicted.predictions if isinstance(predicted.predictions, tuple) else (predicted.predictions,)
        results.append((losses(trainer), evaluated, numbers, dict(model.named_parameters())))
    (found, evaluated, numbers, weights), (expected, *others, their_weights) = results
    assert found == pytest.approx(expected, rel=1e-3)
    assert evaluated["eval_loss"] == pytest.approx(others[0]["eval_loss"], rel=1e-3)
    assert evaluated["eval_spread"] == pytest.approx(others[0]["eval_spread"], rel=1e-3)
    for x, y in zip(numbers, others[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    for key, weight in weights.items():
        torch.testing.assert_close(weight, their_weights[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_saves_checkpoints_that_both_libraries_load(name: str, tokenizer: Any, tmp_path: Path) -> None:
    """The best of its checkpoints is what it ends with; a folder of its own is one, too."""
    cls = getattr(longformer, name)
    model = build_class(cls, config_for(tokenizer), dtype=torch.float32)
    task = task_of(name, tokenizer)
    saving = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    best = {"metric_for_best_model": "spread", "greater_is_better": False}
    trainer = trainer_of(model, task, tmp_path, kind=Trainer, **{CHECKPOINTING: True}, **saving, **best)
    trainer.train()
    assert model.is_gradient_checkpointing
    trainer.save_model()
    spreads = [entry["eval_spread"] for entry in trainer.state.log_history if "eval_spread" in entry]
    steps = sorted(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    assert len(steps) == len(spreads) == 2
    assert Path(trainer.state.best_model_checkpoint) == steps[int(np.argmin(spreads))]
    for folder in (*steps, tmp_path):
        own, theirs = cls.from_pretrained(folder), getattr(transformers, name).from_pretrained(folder)
        assert json.loads((folder / "config.json").read_text())["architectures"] == [name]
        for key, weight in theirs.named_parameters():
            assert torch.equal(own.get_parameter(key), weight)
            same = torch.equal(model.get_parameter(key), weight)
            assert same or folder not in (tmp_path, Path(trainer.state.best_model_checkpoint)), key


def test_weights_of_the_plain_trainer_are_loaded_with_the_config(tokenizer: Any, tmp_path: Path) -> None:
    model = build_class(LongformerForSequenceClassification, config_for(tokenizer), dtype=torch.float32)
    trainer = trainer_of(model, task_of(type(model).__name__, tokenizer), tmp_path)
    trainer.save_model()
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(LongformerError, match=r"has no config\.json"):
        LongformerForSequenceClassification.from_pretrained(tmp_path)
    loaded = LongformerForSequenceClassification.from_pretrained(tmp_path, config=model.config)
    for x, y in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", [Trainer, transformers.Trainer])
def test_resumes(kind: Any, tokenizer: Any, tmp_path: Path) -> None:
    """From a checkpoint, with dropout, to the very weights of a run that was not interrupted."""
    finished = []
    for resume in (False, True):
        torch.manual_seed(0)
        dropped = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        model = LongformerForSequenceClassification(config_for(tokenizer).replace(**dropped))
        task = task_of(type(model).__name__, tokenizer)
        trainer = trainer_of(model, task, tmp_path, kind=kind, save_strategy="epoch")
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        assert trainer.state.global_step == 6
        finished.append([weight.detach().clone() for weight in model.parameters()])
    assert all(map(torch.equal, *finished))


def test_accumulated_steps_are_one_step(tokenizer: Any, tmp_path: Path) -> None:
    finished = []
    for changes in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}):
        model = build_class(LongformerForSequenceClassification, config_for(tokenizer), dtype=torch.float32)
        trainer = trainer_of(
            model,
            task_of(type(model).__name__, tokenizer),
            tmp_path,
            **{"per_device_train_batch_size": 4, "max_grad_norm": 0.0, **changes},
        )
        trainer.train()
        assert trainer.state.global_step == 4
        finished.append(list(model.parameters()))
    for x, y in zip(*finished, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_a_tokenizer_and_reports_are_given_what_they_ask_for(tokenizer: Any, tmp_path: Path) -> None:
    """Its special tokens are the config's; a Trainer that has one saves it beside the model."""
    model = build_class(LongformerForSequenceClassification, config_for(tokenizer), dtype=torch.float32)
    task = task_of(type(model).__name__, tokenizer)
    trainer = Trainer(
        model=model, args=arguments(tmp_path, max_steps=1), train_dataset=task.examples, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model()
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    model.eval()
    with torch.no_grad():
        expected = model(**tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)).logits.softmax(-1)
    scores = {each["label"]: each["score"] for each in pipeline(TEXTS[0], top_k=None)}
    assert [scores[f"LABEL_{i}"] for i in range(2)] == pytest.approx(expected[0].tolist(), rel=1e-4)
    assert model.config.to_json_string() == CONFIG.from_file(tmp_path / "config.json").to_json_string()


def test_a_config_that_it_would_have_to_change(tokenizer: Any, tmp_path: Path) -> None:
    model = build_class(LongformerForSequenceClassification, CONFIG, dtype=torch.float32)
    task = task_of(type(model).__name__, tokenizer)
    with pytest.raises(ConfigError, match=r"^use_cache is False, .* leave out use_cache=True$"):
        trainer_of(model, task, tmp_path, use_cache=True)
    trainer = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=task.examples, processing_class=tokenizer
    )  # whose padding is not the model's
    with pytest.raises(ConfigError, match=r"^pad_token_id is 1, .* config\.replace\(pad_token_id=0\)"):
        trainer.train()


@pytest.mark.skipif(CHECKPOINTING != "activation_checkpointing", reason="transformers has no such option yet")
def test_a_way_of_checkpointing_that_there_is_not(tokenizer: Any, tmp_path: Path) -> None:
    model = build_class(LongformerForSequenceClassification, config_for(tokenizer), dtype=torch.float32)
    task = task_of(type(model).__name__, tokenizer)
    for options in ({"every_n_layers": 2}, {"offload": True}):
        trainer = trainer_of(
            model, task, tmp_path, activation_checkpointing=True, activation_checkpointing_kwargs=options
        )
        with pytest.raises(LongformerError, match=r"^checkpointing is given every_n_layers=.*: leave both out$"):
            trainer.train()
    with pytest.raises(LongformerError, match="may be given use_reentrant alone"):
        model.activation_checkpointing_enable({"determinism_check": "none"})
    assert not model.is_gradient_checkpointing
