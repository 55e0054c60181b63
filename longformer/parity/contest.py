"""Two contenders on one model and one input, and the truth that judges them: ``longformer parity compare``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from longformer.checkpoints.folder import read_config
from longformer.errors import DataError, listed
from longformer.parity.comparison import Comparison, check_configs, check_inputs, check_values, compare
from longformer.parity.format import metadata_object
from longformer.parity.layout import TARGETS, effective_inputs
from longformer.parity.recorder import Trace, read_trace
from longformer.parity.rounding import Truth
from longformer.parity.runs import Contender, kind_of, load_ours, model_folder, record, require_loss
from longformer.parity.samples import SUFFIX, Sample, Settings, read_sample
from longformer.parity.shapes import expected_shapes
from longformer.parity.table import GRADIENT, PROBABILITIES


@dataclass(frozen=True)
class Contest:
    """The comparison, and what it was made from: both runs, the truth, the tokens' texts."""

    comparison: Comparison
    a: Trace
    b: Trace
    truth: Truth
    tokens: list[list[str]] | None


@contextmanager
def contest(
    a: str, b: str, source: str | None, model: str | None, settings: Settings, say: Callable[[str], None]
) -> Iterator[Contest]:
    """Run, or read, ``a`` and ``b``, and judge them. Inside, the runs lie in files of a temporary folder.

    Args:
        a, b: each a trace file, or what :meth:`Contender.parse` takes.
        source: the input, see :func:`read_sample`; None is that of the first trace file.
        model: a folder, a name on the hub, or a ``config.json``; None is the one that a trace file names.
        settings: values of a kind that a trace file has are compared without being asked for, and weights are drawn
            from its seed.
        say: told what is being done.

    Raises:
        DataError: anything that is not there, not what it should be, or not of one input and one config.
    """
    names = (a, b) if a != b else (f"{a} (1)", f"{b} (2)")
    files = {name: read_trace(name) for name in (a, b) if name.endswith(SUFFIX)}
    contenders = {name: Contender.parse(name) for name in (a, b) if name not in files}
    source = source or next(iter(files), None)
    if source is None:
        raise DataError("INPUT is missing: give a text, a .json file of input_ids, or a trace file")
    named = {**files, **({source: read_trace(source)} if source.endswith(SUFFIX) else {})}
    chosen = model or _named_model(named)
    settings = replace(
        settings,
        seed=_seed(chosen, named) if settings.seed is None else settings.seed,
        probabilities=settings.probabilities or any(_has_probabilities(file) for file in files.values()),
        gradients=settings.gradients or any(_has_gradients(file) for file in files.values()),
    )
    with ExitStack() as stack:
        folder = stack.enter_context(model_folder(chosen, settings.seed))
        if settings.gradients:
            require_loss(folder)
        sample = read_sample(source, folder, settings)
        _check_files(files, source, sample, folder)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="longformer-parity-")))
        traces = []
        for i, name in enumerate((a, b)):
            if name in contenders:
                say(f"running {name}")
                path = work / f"{i}{SUFFIX}"
                traces.append(record(contenders[name], folder, sample, path, settings, said_model=chosen))
            else:
                traces.append(files[name])
        say("running the truth, in float64")
        truth = Truth(
            load_ours(folder),
            sample.inputs,
            loss=(lambda output: output.loss) if settings.gradients else None,
            probabilities=settings.probabilities,
            folder=work,
        )
        say("judging, by runs moved by one rounding")
        comparison = compare(traces[0], traces[1], truth=truth, names=names, tokens=sample.tokens)
        left_out = kind_of(folder).left_out
        if left_out:
            comparison.notes.append(
                f"the checkpoint has parts that were not run and so not compared: {listed(left_out)}"
            )
        yield Contest(comparison, traces[0], traces[1], truth, sample.tokens)


def _has_probabilities(trace: Trace) -> bool:
    return any(name.endswith(PROBABILITIES) for name in trace)


def _has_gradients(trace: Trace) -> bool:
    """Whether there are gradients of the loss that is known here, by its targets; those of another are not judged."""
    return TARGETS[0] in trace.inputs and any(name.startswith(GRADIENT) for name in trace)


def _check_files(files: dict[str, Trace], source: str, sample: Sample, folder: str) -> None:
    """What ``compare`` would refuse in the end, before anything is run."""
    inputs, config = effective_inputs(sample.inputs), read_config(folder)
    for name, trace in files.items():
        check_inputs(trace.inputs, inputs, name, source if source != name else f"{name}, as the model is given it")
        check_configs(metadata_object(trace.metadata, "config"), config.to_dict(), name, "the model")
    check_values(files, expected_shapes(folder, config, inputs))


def _seed(model: str, traces: dict[str, Trace]) -> int | None:
    """Seed of the weights drawn for ``model``, if one of its traces says so. Raises DataError for no number."""
    for name, trace in traces.items():
        seed = trace.metadata.get("seed")
        if seed is not None and trace.metadata.get("model") == model:
            if not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
                raise DataError(f"{name}: its metadata has seed {seed!r}, which is no whole number; record it again")
            return int(seed)
    return None


def _named_model(traces: dict[str, Trace]) -> str:
    for trace in traces.values():
        named = trace.metadata.get("model")
        if named:
            return named
    raise DataError("--model is missing: the truth is computed from its weights")
