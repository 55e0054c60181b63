"""Fine-tuning on question answering: features, batches of like length, AdamW, warm-up and linear decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from longformer.errors import DataError, LongformerError
from longformer.heads import LongformerForQuestionAnswering
from longformer.squad import Example
from longformer.tokenizer import LongformerTokenizer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Choices of a fine-tuning run.

    Args:
        epochs: passes over the data.
        batch_size: questions a step.
        learning_rate: peak, reached after the warm-up and left linearly towards 0.
        warmup: share of all steps that the learning rate takes to rise to its peak.
        weight_decay: AdamW's, on matrices only (not on biases and LayerNorms).
        max_grad_norm: the gradient is scaled down to this norm where it is larger.
        max_length: tokens of question and context together; longer ones are left out and counted.
        freeze_embeddings: leave the embeddings as they are. In a model made long, positions beyond the training texts'
            are copies of earlier ones, and stay so only if those do not move.
        precision: "float32", or "bfloat16" for matrix products in bfloat16 with float32 weights.
        seed: of the order of the data and of dropout.

    Raises:
        LongformerError: a value out of range.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 512
    freeze_embeddings: bool = True
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise LongformerError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.warmup < 1:
            raise LongformerError(f"warmup is {self.warmup}; it must be in [0, 1)")
        if self.precision not in ("float32", "bfloat16"):
            raise LongformerError(f"precision is {self.precision!r}; it must be 'float32' or 'bfloat16'")


class Feature(NamedTuple):
    """One training question: token ids, and the token positions of its answer's first and last token."""

    input_ids: list[int]
    start: int
    end: int


def make_features(
    examples: Iterable[Example], tokenizer: LongformerTokenizer, *, max_length: int
) -> tuple[list[Feature], int]:
    """Questions as token ids with their first answer's token positions, and how many had to be left out.

    Left out are answers without a certain place in their context, and examples of more than ``max_length`` tokens.
    An unanswerable question points at the first token, ``<s>``.
    """
    features, dropped = [], 0
    for example in examples:
        encoding = tokenizer(example.question, example.context, split_special_tokens=True)  # as when it answers
        ids, span = encoding["input_ids"], (0, 0)
        if not example.is_impossible:
            answer = next((a for a in example.answers if a.start is not None), None)
            if answer is None or answer.start is None:
                dropped += 1
                continue
            inside = [
                t
                for t, (sequence, (start, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True))
                if sequence == 1 and start < answer.start + len(answer.text) and end > answer.start
            ]
            span = (inside[0], inside[-1]) if inside else (0, 0)
        if len(ids) > max_length:
            dropped += 1
            continue
        features.append(Feature(ids, *span))
    return features, dropped


def make_batches(features: Sequence[Feature], batch_size: int, generator: torch.Generator) -> Iterator[list[Feature]]:
    """All features once, in random order, in batches of like length.

    The order is random over the whole; only within runs of 50 batches are features sorted by length.
    """
    order = torch.randperm(len(features), generator=generator).tolist()
    batches = []
    for i in range(0, len(order), 50 * batch_size):
        run = sorted(order[i : i + 50 * batch_size], key=lambda n: len(features[n].input_ids))
        batches += [run[j : j + batch_size] for j in range(0, len(run), batch_size)]
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield [features[n] for n in batches[i]]


def collate(batch: Sequence[Feature], pad_token_id: int) -> dict[str, Tensor]:
    """Features as the model's arguments: input_ids and attention_mask (B, S), start_ and end_positions (B,)."""
    longest = max(len(feature.input_ids) for feature in batch)
    ids = torch.full((len(batch), longest), pad_token_id)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, feature in enumerate(batch):
        ids[row, : len(feature.input_ids)] = torch.tensor(feature.input_ids)
        mask[row, : len(feature.input_ids)] = 1
    starts, ends = (torch.tensor([feature[i] for feature in batch]) for i in (1, 2))
    return {"input_ids": ids, "attention_mask": mask, "start_positions": starts, "end_positions": ends}


def finetune_qa(
    model: LongformerForQuestionAnswering,
    tokenizer: LongformerTokenizer,
    examples: Sequence[Example],
    recipe: Recipe,
    *,
    after_epoch: Callable[[int], None] | None = None,
    progress: bool = True,
) -> None:
    """Train ``model`` in place on ``examples``.

    Args:
        model: on the device and in the precision in which its weights shall be kept (float32).
        tokenizer: the one that belongs to it.
        examples: of :func:`longformer.squad.read_squad`.
        recipe: the choices.
        after_epoch: called with the number of each finished epoch, from 1.
        progress: whether to show a bar on standard error.

    Raises:
        DataError: no usable question.
        LongformerError: the loss is no longer finite.
    """
    torch.manual_seed(recipe.seed)
    features, dropped = make_features(examples, tokenizer, max_length=recipe.max_length)
    if not features:
        raise DataError(f"none of the {len(examples)} questions has an answer that can be used")
    model.longformer.embeddings.requires_grad_(not recipe.freeze_embeddings)
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = recipe.epochs * -(-len(features) // recipe.batch_size)
    warmup = int(recipe.warmup * steps)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))
    )
    device = next(model.parameters()).device
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16")
    model.train()
    step, average = 0, 0.0
    with tqdm(total=steps, desc=f"{len(features)} questions ({dropped} left out)", disable=not progress) as bar:
        for epoch in range(1, recipe.epochs + 1):
            for batch in make_batches(features, recipe.batch_size, generator):
                inputs = {name: x.to(device) for name, x in collate(batch, tokenizer.pad_token_id).items()}
                with mixed:
                    loss = model(**inputs)[0]
                if not torch.isfinite(loss):
                    raise LongformerError(f"the loss is {loss.item()} at step {step}; try a lower learning_rate")
                optimizer.zero_grad()
                loss.backward()
                clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
                optimizer.step()
                schedule.step()
                step += 1
                average = 0.98 * average + 0.02 * loss.item()
                bar.update()
                bar.set_postfix(loss=f"{average / (1 - 0.98**step):.3f}")
            if after_epoch is not None:
                model.eval()
                after_epoch(epoch)
                model.train()
    model.requires_grad_(True).eval()


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
