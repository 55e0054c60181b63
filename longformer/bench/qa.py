"""``bench qa``: questions a second over a SQuAD-format file, from token ids to logits.

Each side forms the batches that suit it best, among those that its users can ask for. Ours puts questions of similar
length together, up to a number of tokens, as ``QuestionAnswerer`` does. transformers' model pads every batch to a
multiple of its window, which is 512 tokens in the base model. So its questions are sorted by length, and only batches
of long ones cost another window. Several sizes of batch are first tried on a few questions, and the fastest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from longformer.answering.answerer import BATCH_TOKENS, group_by_length
from longformer.bench.machine import dtype_name
from longformer.bench.model import TRANSFORMERS, VARIANTS, Models, by_dtype, label, logits
from longformer.bench.problem import read_questions
from longformer.bench.timing import Case, Contender, say, timed
from longformer.config import LongformerConfig
from longformer.errors import DataError
from longformer.tokenizer import LongformerTokenizer

TRIED = 16  # questions on which sizes of batch are tried; larger batches are not


def read_rows(
    data: str | Path, tokenizer: str | Path, config: LongformerConfig, *, limit: int | None = None
) -> list[list[int]]:
    """Token ids of each question and its context, in the file's order.

    Args:
        data: a SQuAD-format file.
        tokenizer: a folder or a name on the hub. Its vocabulary must fit the config's embeddings.
        limit: take this many questions, evenly spaced over the file; None takes all.

    Raises:
        DataError: a file that cannot be read, or a question that does not fit into the model.
        CheckpointError: no such tokenizer.
    """
    examples = read_questions(data, limit)
    tokenize = LongformerTokenizer.from_pretrained(tokenizer)
    rows = []
    for example in examples:
        row: list[int] = tokenize(example.question, example.context, track_offsets=False)["input_ids"]
        if len(row) > config.max_tokens:
            raise DataError(
                f"{data}: {example.place} has {len(row)} tokens and the model positions for {config.max_tokens}; "
                "take a file of shorter contexts, because every question is one row here"
            )
        if max(row) >= config.vocab_size:
            raise DataError(
                f"{tokenizer}: token {max(row)} is beyond the config's vocab_size {config.vocab_size}; "
                "give the tokenizer that belongs to the architecture"
            )
        rows.append(row)
    return rows


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, S) of a batch, padded to its longest row."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


class Reader:
    """Runs a model over all rows, in the given batches."""

    def __init__(
        self, model: nn.Module, rows: Sequence[list[int]], batches: list[list[int]], pad_token_id: int
    ) -> None:
        self.model = model
        self.rows = rows
        self.batches = batches
        self.inputs = [pad([rows[i] for i in batch], pad_token_id) for batch in batches]

    def run(self) -> Sequence[Tensor]:
        """Logits of the tokens of every row, padding left out, in the order of the rows: (2, tokens of all rows)."""
        found: dict[int, Tensor] = {}
        for batch, inputs in zip(self.batches, self.inputs, strict=True):
            both = torch.stack(logits(self.model, **inputs))  # (2, B, S)
            for i, row in enumerate(batch):
                found[row] = both[:, i, : len(self.rows[row])]
        return [torch.cat([found[i] for i in range(len(self.rows))], dim=1)]


def by_count(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Batches of ``count`` rows, sorted by length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + count] for i in range(0, len(order), count)]


def ours(models: Models, variant: str, rows: list[list[int]], batch_tokens: int) -> Contender:
    """Our model, in batches of at most ``batch_tokens`` tokens."""
    batches = group_by_length([len(row) for row in rows], batch_tokens)
    reader = Reader(models.get("longformer", variant), rows, batches, models.config.pad_token_id)
    return Contender(label("longformer", variant), reader.run, tolerance=VARIANTS[variant].tolerance)


def theirs(models: Models, variant: str, rows: list[list[int]], batch_sizes: Sequence[int]) -> Contender:
    """transformers in batches sorted by length, of that size of ``batch_sizes`` that is fastest on a few rows."""
    model = models.get(TRANSFORMERS, variant)
    pad_token_id = models.config.pad_token_id
    name = label(TRANSFORMERS, variant)
    size = batch_sizes[0]
    if len(batch_sizes) > 1:
        few = sorted(rows, key=len)[:: max(1, len(rows) // TRIED)][:TRIED]
        seconds = {}
        for size in batch_sizes:
            reader = Reader(model, few, by_count([len(row) for row in few], size), pad_token_id)
            trial = Contender(name, reader.run)
            seconds[size] = min(timed(trial).seconds for _ in range(2))
            say(f"{name}: {len(few) / seconds[size]:.3g} questions/s in batches of {size}")
        size = min(seconds, key=seconds.__getitem__)
    reader = Reader(model, rows, by_count([len(row) for row in rows], size), pad_token_id)
    return Contender(f"{name}, batches of {size}", reader.run)


def cases(
    config: LongformerConfig,
    rows: list[list[int]],
    *,
    variants: Sequence[str],
    batch_sizes: Sequence[int] = (1, 4, 16),
    batch_tokens: int = BATCH_TOKENS,
) -> list[Case]:
    """All rows once, in each dtype, by our variants and by transformers."""
    models = Models(config)
    lengths = sorted(map(len, rows))
    found = []
    for dtype, names in by_dtype(variants).items():
        name = dtype_name(dtype)
        exact = partial(_exact, models, rows, batch_tokens)
        found.append(
            Case(
                name=f"{len(rows)} questions of {lengths[0]} to {lengths[-1]} tokens, {name}",
                settings={
                    "shape": {"questions": len(rows), "tokens": sum(lengths), "median": lengths[len(lengths) // 2]},
                    "dtype": name,
                    "batch_tokens": batch_tokens,
                    "rival_batch_sizes": list(batch_sizes),
                    "threads": torch.get_num_threads(),
                    "config": config.to_dict(),
                },
                dtype=dtype,
                builders={
                    **{label("longformer", v): partial(ours, models, v, rows, batch_tokens) for v in names},
                    label(TRANSFORMERS, names[0]): partial(theirs, models, names[0], rows, batch_sizes),
                },
                reference=None if names[0] == "float32" else exact,
                items=(len(rows), "questions"),
            )
        )
    return found


def _exact(models: Models, rows: list[list[int]], batch_tokens: int) -> Sequence[Tensor]:
    return ours(models, "float32", rows, batch_tokens).run()
