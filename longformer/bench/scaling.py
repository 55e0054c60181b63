"""``bench scaling``: attention's time and memory against the length of the sequence.

Every length of every contender takes its turn in each round, so that lengths are compared under the same conditions
too. A contender is left out from the length on at which it would take too long or too much memory, and listed so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from longformer.bench import attention, machine
from longformer.bench.memory import measure_peaks
from longformer.bench.timing import Case, Contender, Measurement, Record, agree, interleave, matrix_product, say, timed

DENSE = "dense SDPA"  # grows with the square of the length, all others in proportion to it
MEMORY_SHARE = 0.5  # of what is free, that a run may be expected to take


@dataclass
class Limits:
    """What a contender may take in one run: seconds, and bytes (None: no limit known)."""

    seconds: float
    memory: float | None


def measure(
    shape: attention.Shape, lengths: Sequence[int], *, ours: Sequence[str], rounds: int, most_seconds: float
) -> tuple[list[Record], list[Record]]:
    """Records of time and of peak memory, one a length, shortest first.

    Raises:
        LongformerError: a length that does not fit into memory.
        DisagreementError: two contenders differ at some length.
    """
    shapes = [shape.replace(seq_len=length) for length in sorted(set(lengths))]
    available = machine.available_memory()
    limits = Limits(most_seconds, None if available is None else MEMORY_SHARE * available)
    growth = Growth(limits)
    names, memory, turns, times = [*ours, *attention.RIVALS], [], [], []
    missing: dict[str, str] = {}
    for at in shapes:
        missing.update(growth.too_much([name for name in names[len(ours) :] if name not in missing], at.seq_len))
        memory.append(_peaks(at, names, missing))
        growth.note_memory(memory[-1])
        # What failed in a process of its own is not tried in this one, which might not survive it.
        case = _case(at, [name for name in names if name not in memory[-1].missing])
        contenders, differences, failed = agree(case)
        growth.note_time(at.seq_len, contenders)
        turns += [dataclasses.replace(c, name=f"{c.name}, {at.seq_len}") for c in contenders]
        times.append((at, case, differences, {**memory[-1].missing, **failed}))
    product = matrix_product(shape.torch_dtype)
    seconds = interleave([product, *turns], rounds)
    gflops = machine.product_gflop() / machine.median(seconds[product.name])
    records = [
        Record(
            case.name,
            case.settings,
            [Measurement(name, seconds[f"{name}, {at.seq_len}"], found) for name, found in differences.items()],
            absent,
            flop=case.flop,
            gflops=gflops,
            items=case.items,
        )
        for at, case, differences, absent in times
    ]
    return records, memory


def per_token(records: Sequence[Record], base: int = 4096) -> dict[str, float]:
    """Each contender's time per token at its longest, over that at ``base`` tokens, or at its shortest if not there."""
    by_name: dict[str, dict[int, float]] = {}
    for record in records:
        if record.unit == "s":
            for measurement in record.measurements:
                length = record.settings["seq_len"]
                by_name.setdefault(measurement.name, {})[length] = measurement.median / length
    figures = {}
    for name, each in by_name.items():
        first, last = base if base in each else min(each), max(each)
        if first < last:
            figures[f"{name}: time per token at {last:,} tokens over that at {first:,}"] = each[last] / each[first]
    return figures


def _case(shape: attention.Shape, names: Sequence[str]) -> Case:
    inputs = attention.make_inputs(shape)
    builders = {name: partial(attention.contender, name, shape, inputs) for name in names}
    return Case(
        name=f"attention forward, {shape.seq_len} tokens",
        settings={**dataclasses.asdict(shape), "threads": torch.get_num_threads()},
        dtype=shape.torch_dtype,
        builders=builders,
        flop=shape.flop(backward=False),
        items=(shape.batch * shape.seq_len, "tokens"),
    )


def _peaks(shape: attention.Shape, names: Sequence[str], missing: dict[str, str]) -> Record:
    settings = dataclasses.asdict(shape)
    tasks = {
        name: {"what": "attention forward", "name": name, "shape": settings} for name in names if name not in missing
    }
    record = measure_peaks(f"memory of attention, {shape.seq_len} tokens", settings, tasks, rounds=1)
    record.missing.update(missing)
    return record


class Growth:
    """What each contender took at the last length, and so what it will take at the next."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.seconds: dict[str, tuple[int, float]] = {}
        self.memory: dict[str, tuple[int, float]] = {}

    def note_time(self, length: int, contenders: Sequence[Contender]) -> None:
        """Time a run of each, after the one that was checked."""
        for contender in contenders:
            say(f"{length} tokens: {contender.name}")
            self.seconds[contender.name] = (length, timed(contender))

    def note_memory(self, record: Record) -> None:
        """Keep each one's peak."""
        for measurement in record.measurements:
            self.memory[measurement.name] = (record.settings["seq_len"], measurement.median)

    def too_much(self, names: Sequence[str], length: int) -> dict[str, str]:
        """Which of ``names`` would exceed the limits at ``length``, and why."""
        found = {}
        for name in names:
            seconds = _expected(self.seconds.get(name), length, name)
            memory = _expected(self.memory.get(name), length, name)
            most = self.limits.memory
            if seconds > self.limits.seconds:
                found[name] = f"would take {seconds:.0f} s a run at {length} tokens, {self.limits.seconds:g} allowed"
            elif most is not None and memory > most:
                found[name] = f"would take {memory / 1e9:.1f} GB at {length} tokens, {most / 1e9:.1f} allowed"
        return found


def _expected(last: tuple[int, float] | None, length: int, name: str) -> float:
    if last is None:
        return 0.0
    return last[1] * (length / last[0]) ** (2 if name == DENSE else 1)
