"""``bench scaling``: attention's time and memory against the length of the sequence.

Every length of every contender takes a turn in each round, so that lengths too are compared under the same conditions.
A contender that would take too long or too much memory at some length is left out from there on, and listed with the
reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from longformer.bench import attention, machine
from longformer.bench.formats import gigabytes
from longformer.bench.memory import attention_tasks, measure_peaks
from longformer.bench.problem import Problem
from longformer.bench.timing import Contender, Record, agree, interleave, make_record, matrix_product, say, timed

DENSE = "dense SDPA"  # its cost grows with the square of the length, that of all others in proportion to it
MEMORY_SHARE = 0.5  # a run may be expected to take this share of the free memory


def measure(
    problem: Problem, lengths: Sequence[int], *, ours: Sequence[str], rounds: int, most_seconds: float
) -> tuple[list[Record], list[Record]]:
    """Records of time and of peak memory, one for each length, shortest first.

    Raises:
        LongformerError: a length that does not fit into memory.
        DisagreementError: two contenders differ at some length.
    """
    problems = [problem.replace(seq_len=length) for length in sorted(set(lengths))]
    available = machine.available_memory()
    growth = Growth(most_seconds, None if available is None else MEMORY_SHARE * available)
    names, memory, contenders, times = [*ours, *attention.RIVALS], [], [], []
    missing: dict[str, str] = {}
    for at in problems:
        missing.update(growth.too_much([name for name in names[len(ours) :] if name not in missing], at.seq_len))
        memory.append(_peaks(at, names, missing))
        growth.note_memory(memory[-1])
        # Who failed in a process of its own is not tried in this one, which might not survive it.
        fit = [name for name in names if name not in memory[-1].missing]
        case = attention.make_case(f"attention forward, {at.seq_len} tokens", at, fit)
        agreed, differences, failed = agree(case)
        growth.note_time(at.seq_len, agreed)
        contenders += [dataclasses.replace(c, name=f"{c.name}, {at.seq_len}") for c in agreed]
        times.append((at, case, differences, {**memory[-1].missing, **failed}))
    product = matrix_product(problem.torch_dtype)
    seconds = interleave([product, *contenders], rounds)
    records = []
    for at, case, differences, absent in times:
        own = {name: seconds[f"{name}, {at.seq_len}"] for name in differences}
        records.append(make_record(case, own, differences, absent, seconds[product.name]))
    return records, memory


def per_token(records: Sequence[Record], base: int = 4096) -> dict[str, float]:
    """Each contender's time per token at its longest length, over that at ``base`` tokens or at its shortest length."""
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


def _peaks(problem: Problem, names: Sequence[str], missing: dict[str, str]) -> Record:
    tasks = attention_tasks(problem, [name for name in names if name not in missing])
    record = measure_peaks(f"memory of attention, {problem.seq_len} tokens", problem.settings(), tasks, rounds=1)
    record.missing.update(missing)
    return record


class Growth:
    """What each contender took at the last length, and so what it can be expected to take at the next.

    Args:
        most_seconds: what one run may take.
        most_bytes: what one run may take; None if no limit is known.
    """

    def __init__(self, most_seconds: float, most_bytes: float | None) -> None:
        self.most_seconds = most_seconds
        self.most_bytes = most_bytes
        self.seconds: dict[str, tuple[int, float]] = {}
        self.memory: dict[str, tuple[int, float]] = {}

    def note_time(self, length: int, contenders: Sequence[Contender]) -> None:
        """Time one run of each; the check was the run that warms up."""
        for contender in contenders:
            say(f"{length} tokens: {contender.name}")
            self.seconds[contender.name] = (length, timed(contender).seconds)

    def note_memory(self, record: Record) -> None:
        """Remember each one's peak."""
        for measurement in record.measurements:
            self.memory[measurement.name] = (record.settings["seq_len"], measurement.median)

    def too_much(self, names: Sequence[str], length: int) -> dict[str, str]:
        """Which of ``names`` would exceed the limits at ``length``, and why."""
        found = {}
        for name in names:
            seconds = _expected(self.seconds.get(name), length, name)
            memory = _expected(self.memory.get(name), length, name)
            if seconds > self.most_seconds:
                found[name] = f"would take {seconds:.0f} s a run at {length} tokens, {self.most_seconds:g} s allowed"
            elif self.most_bytes is not None and memory > self.most_bytes:
                found[name] = f"would take {gigabytes(memory)} at {length} tokens, {gigabytes(self.most_bytes)} allowed"
        return found


def _expected(last: tuple[int, float] | None, length: int, name: str) -> float:
    if last is None:
        return 0.0
    return last[1] * (length / last[0]) ** (2 if name == DENSE else 1)
