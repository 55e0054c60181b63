"""``bench memory``: the most memory that a forward, of attention alone and of the whole model, takes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from longformer.bench import attention, model, training
from longformer.bench.peak import in_subprocess
from longformer.bench.timing import Measurement, Record, UnavailableError, say
from longformer.config import LongformerConfig
from longformer.errors import LongformerError


def measure_peaks(name: str, settings: dict[str, Any], tasks: dict[str, dict[str, Any]], rounds: int) -> Record:
    """Peak memory of each contender, ours first, every time in a fresh process.

    Args:
        name, settings: of the record.
        tasks: contender's name to what :func:`longformer.bench.peak.in_subprocess` takes.
        rounds: processes for each contender.

    Raises:
        LongformerError: ours cannot be measured.
    """
    missing: dict[str, str] = {}
    values: dict[str, list[float]] = {}
    for number in range(rounds):
        for contender, task in tasks.items():
            if contender in missing:
                continue
            say(f"{name}: {contender}: process {number + 1} of {rounds}")
            try:
                values.setdefault(contender, []).append(in_subprocess(task))
            except UnavailableError as error:
                if contender == next(iter(tasks)):
                    raise LongformerError(f"{name}: {contender} could not be measured: {error}") from None
                missing[contender] = str(error)
                values.pop(contender, None)
    return Record(name, settings, [Measurement(c, found) for c, found in values.items()], missing, unit="B")


def attention_peaks(shape: attention.Shape, *, ours: Sequence[str], rounds: int) -> Record:
    """Of attention's forward, above its inputs and its output."""
    name = f"memory of attention, {shape.seq_len} tokens, {shape.global_tokens} global, {shape.dtype}"
    settings = dataclasses.asdict(shape)
    tasks = {
        contender: {"what": "attention forward", "name": contender, "shape": settings}
        for contender in (*ours, *attention.RIVALS)
    }
    return measure_peaks(name, settings, tasks, rounds)


def model_peaks(
    config: LongformerConfig, *, tokens: int, global_tokens: int, variants: Sequence[str], rounds: int
) -> list[Record]:
    """Of the whole model's forward, above its weights, in each dtype."""
    records = []
    for dtype, ours in model.by_dtype(variants).items():
        short = str(dtype).removeprefix("torch.")
        common = {"config": config.to_dict(), "tokens": tokens, "global_tokens": global_tokens}
        tasks = {
            model.label(name, variant): {"what": "model forward", "name": name, "variant": variant, **common}
            for name, variant in (*(("longformer", v) for v in ours), (model.TRANSFORMERS, ours[0]))
        }
        name = f"memory of a model's forward, {tokens} tokens, {short}"
        records.append(measure_peaks(name, {"dtype": short, "shape": [1, tokens], **common}, tasks, rounds))
    return records


def training_peaks(
    config: LongformerConfig, *, tokens: int, global_tokens: int, dropout_p: float, rounds: int
) -> Record:
    """Of a training step, above weights and AdamW's moments."""
    common = {"config": config.to_dict(), "tokens": tokens, "global_tokens": global_tokens, "dropout_p": dropout_p}
    tasks = {name: {"what": "training step", "name": name, **common} for name in (training.OURS, *training.RIVALS)}
    settings = {"dtype": "float32", "shape": [1, tokens], **common}
    return measure_peaks(f"memory of a training step, {tokens} tokens, float32", settings, tasks, rounds)
