"""``bench precision``: what a checkpoint's answers cost, and how many change, in each precision.

Speed is that of answering, from text to text; differences are those of all logits of every window, against float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longformer.answering.answerer import QuestionAnswerer
from longformer.answering.squad import read_squad
from longformer.bench.timing import Contender, Measurement, Record, interleave, say
from longformer.errors import LongformerError
from longformer.models.precision import NAMED

PRECISIONS = ("float32", "bfloat16", "float16", *NAMED)
DEFAULT = ("float32", "bfloat16", "mixed", "int8")
LOGIT_STEP = 25  # every so many questions' logits are compared


def measure(data: str | Path, model: str | None, precisions: Sequence[str], rounds: int, limit: int | None) -> Record:
    """Answer the questions of a SQuAD-format file in each precision, the first of which is float32.

    Raises:
        LongformerError: an unknown precision, or float32 not the first, which the others are compared with.
        DataError, CheckpointError: the file or the checkpoint cannot be read.
    """
    for name in precisions:
        if name not in PRECISIONS:
            raise LongformerError(f"{name!r} is no precision; there are {', '.join(PRECISIONS)}")
    if precisions[0] != "float32":
        raise LongformerError(
            f"the first precision is {precisions[0]!r}; it must be float32, to compare the others with"
        )
    examples = read_squad(data, require_answers=False)
    if limit is not None and limit < len(examples):
        examples = [examples[i * len(examples) // limit] for i in range(limit)]
    pairs = [(example.question, example.context) for example in examples]
    answers: dict[str, list[str]] = {}
    weights: dict[str, int] = {}
    differences: dict[str, float] = {}
    contenders = []
    exact: list[Tensor] = []
    for name in precisions:
        say(f"{name}: answering")
        dtype = name if name in NAMED else getattr(torch, name)
        answerer = QuestionAnswerer.from_pretrained(model, dtype=dtype)
        answers[name] = [found[0].text for found in answerer.answer_batch(pairs)]
        weights[name] = stored_bytes(answerer.model)
        logits = [_logits(answerer, *pair) for pair in pairs[::LOGIT_STEP]]
        exact = exact or logits
        differences[name] = max(float((x - y).abs().max()) for x, y in zip(logits, exact, strict=True))
        contenders.append(Contender(name, lambda answerer=answerer: (answerer.answer_batch(pairs), ())[1]))  # type: ignore[misc]
    seconds = interleave(contenders, rounds)
    return Record(
        f"{len(pairs)} questions answered",
        {
            "shape": {"questions": len(pairs)},
            "weights_bytes": weights,
            "answers_changed": {
                name: sum(x != y for x, y in zip(answers[name], answers["float32"], strict=True)) for name in precisions
            },
            "largest_logit": max(float(x.abs().max()) for x in exact),
            "threads": torch.get_num_threads(),
        },
        [Measurement(name, seconds[name], differences[name]) for name in precisions],
        items=(len(pairs), "questions"),
    )


def figures(records: Sequence[Record]) -> dict[str, float]:
    """Weights and changed answers, for the report's head."""
    settings: dict[str, Any] = records[0].settings
    found: dict[str, float] = {"largest logit": settings["largest_logit"]}
    for name, size in settings["weights_bytes"].items():
        found[f"{name}: weights, MB"] = size / 1e6
        found[f"{name}: answers changed of {settings['shape']['questions']}"] = settings["answers_changed"][name]
    return found


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, packed ones of quantised layers included."""
    plain = {id(x): x.nbytes for x in (*model.parameters(), *model.buffers())}
    packed = 0
    for part in model.modules():
        if isinstance(part, torch.ao.nn.quantized.dynamic.Linear):
            weight, bias = part._weight_bias()
            packed += weight.numel() * weight.element_size() + (0 if bias is None else bias.nbytes)
    return sum(plain.values()) + packed


def _logits(answerer: QuestionAnswerer, question: str, context: str) -> Tensor:
    encoded = answerer.tokenizer(question, context, return_tensors="pt")
    with torch.inference_mode():
        start, end, *_ = answerer.model(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    return torch.cat([start, end]).float()
