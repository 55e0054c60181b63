"""``bench precision``: how fast a checkpoint answers in each precision, and how many of its answers change.

Speed is that of answering, from text to text. A precision's difference is the largest that a logit has from float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longformer.answering.answerer import QuestionAnswerer
from longformer.bench.problem import read_questions
from longformer.bench.timing import Contender, Measurement, Record, interleave, say
from longformer.errors import LongformerError
from longformer.models.precision import NAMED

PRECISIONS = ("float32", "bfloat16", "float16", *NAMED)
DEFAULT = ("float32", "bfloat16", "mixed", "int8")
LOGIT_STEP = 25  # the logits of every 25th question are compared


def measure(
    data: str | Path,
    model: str | None,
    precisions: Sequence[str],
    rounds: int,
    limit: int | None,
    tokenizer: str | None = None,
) -> Record:
    """Answer the questions of a SQuAD-format file in each precision. The first one is float32.

    Raises:
        LongformerError: an unknown precision, or the first one is not float32, which the others are compared with.
        DataError, CheckpointError: the file or the checkpoint cannot be read.
    """
    _check_names(precisions)
    pairs = [(example.question, example.context) for example in read_questions(data, limit)]
    answers: dict[str, list[str]] = {}
    weights: dict[str, int] = {}
    differences: dict[str, float] = {}
    contenders = []
    exact: list[Tensor] = []
    for name in precisions:
        say(f"{name}: answering")
        number_type = name if name in NAMED else getattr(torch, name)
        answerer = QuestionAnswerer.from_pretrained(model, tokenizer=tokenizer, dtype=number_type)
        answers[name] = [found[0].text for found in answerer.answer_batch(pairs)]
        weights[name] = stored_bytes(answerer.model)
        logits = [_logits(answerer, *pair) for pair in pairs[::LOGIT_STEP]]
        exact = exact or logits
        differences[name] = max(float((x - y).abs().max()) for x, y in zip(logits, exact, strict=True))
        contenders.append(_contender(name, answerer, pairs))
    seconds = interleave(contenders, rounds)
    return Record(
        f"{len(pairs)} questions answered",
        {
            "shape": {"questions": len(pairs)},
            "weights_bytes": weights,
            "answers_changed": {
                name: sum(x != y for x, y in zip(found, answers["float32"], strict=True))
                for name, found in answers.items()
            },
            "largest_logit": max(float(x.abs().max()) for x in exact),
            "threads": torch.get_num_threads(),
        },
        [Measurement(name, seconds[name], differences[name]) for name in precisions],
        items=(len(pairs), "questions"),
    )


def _check_names(precisions: Sequence[str]) -> None:
    for name in precisions:
        if name not in PRECISIONS:
            raise LongformerError(f"{name!r} is no precision; there are {', '.join(PRECISIONS)}")
    if precisions[0] != "float32":
        raise LongformerError(
            f"the first precision is {precisions[0]!r}; it must be float32, to compare the others with"
        )


def _contender(name: str, answerer: QuestionAnswerer, pairs: list[tuple[str, str]]) -> Contender:
    def run() -> Sequence[Tensor]:
        answerer.answer_batch(pairs)
        return ()

    return Contender(name, run)


def figures(records: Sequence[Record]) -> dict[str, float]:
    """Sizes of the weights and numbers of changed answers, for the report's head."""
    settings: dict[str, Any] = records[0].settings
    found: dict[str, float] = {"largest logit": settings["largest_logit"]}
    for name, size in settings["weights_bytes"].items():
        found[f"{name}: weights, MB"] = size / 1e6
        found[f"{name}: answers changed of {settings['shape']['questions']}"] = settings["answers_changed"][name]
    return found


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, also those that quantised layers have packed."""
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
