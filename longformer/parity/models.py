"""``longformer parity compare A.py:make_model B.py:make_model INPUT``: two models of any architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from longformer.errors import DataError, listed
from longformer.parity.any_model import (
    Call,
    ModelTruth,
    check_outputs_alike,
    integers_of,
    record_model,
)
from longformer.parity.code_files import is_code, load_model, read_call
from longformer.parity.comparison import DIFFERENT, IDENTICAL, ROUNDING, SUSPICIOUS, Compared, Comparison, compare
from longformer.parity.compiled import is_compiled
from longformer.parity.format import Trace, read_trace
from longformer.parity.modules import add_findings
from longformer.parity.pairing import pair, pair_parameters, read_table, renamed
from longformer.parity.progress import bar
from longformer.parity.samples import SUFFIX

STEPS = ("A", "B", "the truth", "from end to end", "modules one by one")


def compare_files(
    a: str, b: str, source: str | None, *, table: str | None = None, gradients: bool = False, progress: bool = True
) -> Comparison:
    """Compare what two files' functions make, or one with a trace file.

    Args:
        a: ``A.py:make_model``, whose model gives the truth.
        b: the same of another, or a trace file.
        source: see :func:`~longformer.parity.code_files.read_call`.
        table: a file of names, see :func:`~longformer.parity.pairing.read_table`.
        gradients: of :func:`~longformer.parity.any_model.loss_of` too.
        progress: whether to show a progress bar where this takes more than two seconds.

    Raises:
        DataError: a file or an input is not what it must be, the outputs differ in structure, or nothing can be paired.
    """
    if not is_code(a):
        raise DataError(f"{a} is no model: the first of the two gives the truth, and must be FILE.py:FUNCTION")
    if source is None:
        raise DataError("INPUT is missing: give a .json or .safetensors file of arguments, or FILE.py:make_input")
    call = read_call(source)
    other = load_model(b) if is_code(b) else read_trace(b) if b.endswith(SUFFIX) else None
    if other is None:
        raise DataError(f"{b} is neither FILE.py:FUNCTION nor a trace file ({SUFFIX})")
    names = (a, b) if a != b else (f"{a} (1)", f"{b} (2)")
    return compare_models(
        load_model(a),
        other,
        call,
        names=names,
        table=None if table is None else read_table(table),
        gradients=gradients,
        progress=progress,
    )


def compare_models(
    a: nn.Module,
    b: nn.Module | Trace,
    call: Call,
    *,
    names: tuple[str, str] = ("A", "B"),
    table: Mapping[str, str] | None = None,
    gradients: bool = False,
    progress: bool = False,
) -> Comparison:
    """Compare two models of any architecture, or a model and a trace: from end to end, and module by module.

    The truth is ``a`` in float64. Values are matched by :func:`~longformer.parity.pairing.pair`. Of a model that
    torch.compile made, the results alone are compared, since nothing can be recorded inside it.

    Args:
        a, b: the models, on the devices that they run on, or the trace of one that ran elsewhere.
        call: what both are called with.
        names: of the two, for messages.
        table: B's names by A's, see :func:`~longformer.parity.pairing.pair`.
        gradients: of :func:`~longformer.parity.any_model.loss_of` too.
        progress: whether to show a progress bar where this takes more than two seconds.

    Raises:
        DataError: a model cannot be called so, the outputs differ in structure, or nothing can be paired.
    """
    with bar(None, STEPS[0], "steps", shown=progress, total=len(STEPS)) as steps:

        def step(name: str) -> None:
            steps.update()
            steps.set_description(name)

        mine = record_model(a, call, gradients=gradients)
        step(STEPS[1])
        theirs = b if isinstance(b, Trace) else record_model(b, call, gradients=gradients)
        theirs.inputs = theirs.inputs or mine.inputs
        check_outputs_alike(names, mine, theirs)
        theirs, paired = _matched(mine, theirs, a, b, table)
        step(STEPS[2])
        truth = ModelTruth(a, call, gradients=gradients)
        step(STEPS[3])
        result = compare(mine, theirs, truth=truth, names=names, partial=True, progress=progress)
        step(STEPS[4])
        add_findings(result, dict(zip(names, (mine, theirs), strict=True)), truth.replay, progress=progress)
    for name, model in zip(names, (a, b), strict=True):
        if isinstance(model, nn.Module) and is_compiled(model):
            result.notes.append(
                f"{name} is compiled: its results are compared, and nothing inside, which does not show"
            )
    if paired and table is None:
        result.notes.append(f"matched by shape and content: {listed(paired)}")
    _add_integers(result, integers_of(mine), integers_of(theirs))
    return result


def _add_integers(result: Comparison, mine: Mapping[str, list[Any]], theirs: Mapping[str, list[Any]]) -> None:
    """Let other integers be different, or suspicious where what they are made of differs by rounding."""
    if mine:
        result.notes.append(f"{listed(list(mine))} is in integers, and so what it is made of is compared")
    for name, (_, shape, digest) in mine.items():
        if name not in theirs or digest == theirs[name][2] or result.verdict not in (IDENTICAL, ROUNDING, SUSPICIOUS):
            continue
        verdict = DIFFERENT if result.verdict == IDENTICAL else SUSPICIOUS
        nan = math.nan
        value = Compared(name, tuple(shape), verdict, nan, nan, nan, nan, nan, nan, None, None, ())
        result.values.append(value)
        result.verdict, result.first, result.departed = verdict, value, (result.names[1],)
        result.notes.append(
            f"{name} has other integers: "
            + (
                f"what {result.names[0]} and {result.names[1]} make them of is the same, so they are made otherwise"
                if verdict == DIFFERENT
                else "rounding can do that, but only where two numbers are almost equal; look at them"
            )
        )


def _matched(
    mine: Trace, theirs: Trace, a: nn.Module, b: nn.Module | Trace, table: Mapping[str, str] | None
) -> tuple[Trace, list[str]]:
    """The trace of B by A's names, and which are other ones."""
    pairs = pair(dict(mine), dict(theirs), table)
    changed = [f"{name} with {other}" for name, other in pairs.items() if name != other]
    if not changed:
        return theirs, []
    parameters = (
        {} if isinstance(b, Trace) else pair_parameters(pairs, dict(a.named_parameters()), dict(b.named_parameters()))
    )
    found = Trace()
    found.inputs, found.tensors = theirs.inputs, renamed(dict(theirs), pairs, parameters)
    of_other = {other: name for name, other in pairs.items()}
    found.metadata = dict(theirs.metadata)
    for key in ("order", "precisions"):
        held = json.loads(theirs.metadata.get(key, "null"))
        if isinstance(held, list):
            found.metadata[key] = json.dumps([of_other.get(name, name) for name in held])
        elif isinstance(held, dict):
            found.metadata[key] = json.dumps({of_other.get(name, name): value for name, value in held.items()})
    return found, changed
