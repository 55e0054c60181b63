"""``bench memory``: the most memory in use at once in a forward pass, of attention alone and of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from longformer.bench import attention, machine, model, training
from longformer.bench.peak import in_subprocess
from longformer.bench.problem import Problem
from longformer.bench.timing import Measurement, Record, UnavailableError, say
from longformer.config import LongformerConfig
from longformer.errors import LongformerError


def measure_peaks(name: str, settings: dict[str, Any], tasks: dict[str, dict[str, Any]], rounds: int) -> Record:
    """Peak memory of each contender, ours first, in a new process each time.

    Args:
        name, settings: of the record.
        tasks: a contender's name to what :func:`longformer.bench.peak.in_subprocess` takes.
        rounds: how many processes each contender gets.

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


def attention_peaks(problem: Problem, *, ours: Sequence[str], rounds: int) -> Record:
    """Of attention's forward pass, above its inputs and its output."""
    name = f"memory of attention, {problem.seq_len} tokens, {problem.global_tokens} global, {problem.dtype}"
    return measure_peaks(name, problem.settings(), attention_tasks(problem, (*ours, *attention.RIVALS)), rounds)


def attention_tasks(problem: Problem, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a process of its own is asked to measure for each of the contenders ``names``."""
    return {name: {"what": "attention forward", "name": name, "problem": problem.settings()} for name in names}


def model_peaks(
    config: LongformerConfig, *, tokens: int, global_tokens: int, variants: Sequence[str], rounds: int
) -> Iterator[Record]:
    """Of the whole model's forward pass, above its weights, in each dtype."""
    for dtype, ours in model.by_dtype(variants).items():
        short = machine.dtype_name(dtype)
        common = {"config": config.to_dict(), "tokens": tokens, "global_tokens": global_tokens}
        tasks = {
            model.label(name, variant): {"what": "model forward", "name": name, "variant": variant, **common}
            for name, variant in (*(("longformer", v) for v in ours), (model.TRANSFORMERS, ours[0]))
        }
        name = f"memory of a model's forward, {tokens} tokens, {short}"
        yield measure_peaks(name, {"dtype": short, "shape": [1, tokens], **common}, tasks, rounds)


def training_peaks(
    config: LongformerConfig, *, tokens: int, global_tokens: int, dropout_p: float, rounds: int
) -> Record:
    """Of a training step, above weights and AdamW's moments."""
    common = {"config": config.to_dict(), "tokens": tokens, "global_tokens": global_tokens, "dropout_p": dropout_p}
    tasks = {name: {"what": "training step", "name": name, **common} for name in (training.OURS, *training.RIVALS)}
    settings = {"dtype": "float32", "shape": [1, tokens], **common}
    return measure_peaks(f"memory of a training step, {tokens} tokens, float32", settings, tasks, rounds)
