"""``longformer parity compare``: two contenders on one model and one input, and the truth that judges them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from longformer.checkpoints.folder import files_of
from longformer.checkpoints.names import todays_name
from longformer.checkpoints.weights import find_weights, read_tensors
from longformer.config import LongformerConfig
from longformer.errors import DataError, listed
from longformer.files import check_overwrites
from longformer.models.heads import Head
from longformer.models.kinds import kind_of
from longformer.parity.comparison import Comparison, check_configs, check_inputs, check_values, compare
from longformer.parity.format import Trace, metadata_object, read_trace
from longformer.parity.layout import TARGETS, effective_inputs
from longformer.parity.modules import judge_modules
from longformer.parity.names import check_names
from longformer.parity.rounding import Truth
from longformer.parity.runs import Contender, load_ours, model_folder, record, require_loss
from longformer.parity.samples import SUFFIX, Sample, Settings, read_sample
from longformer.parity.table import GLOBAL_ROWS, GRADIENT, PARAMETER, PROBABILITIES
from longformer.parity.targets import as_arguments

Shape = tuple[int, ...]


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
    a: str,
    b: str,
    source: str | None,
    model: str | None,
    settings: Settings,
    say: Callable[[str], None],
    *,
    outputs: Sequence[str] = (),
) -> Iterator[Contest]:
    """Run or read ``a`` and ``b``, and judge them. While this is open, the runs are files in a temporary folder.

    Args:
        a, b: each a trace file, or what :meth:`Contender.parse` takes.
        source: the input, see :func:`read_sample`; None is the input of the first trace file.
        model: a folder, a name on the hub, or a ``config.json``; None is the one that a trace file names.
        settings: if a trace file has probabilities or gradients, they are compared without being asked for. Without a
            seed, weights are drawn from the trace file's.
        say: is told what is being done.
        outputs: files that are written afterwards; none may be one of the model's, or the input.

    Raises:
        DataError: something is missing or not what it should be, or the runs have different inputs or configs.
    """
    names = (a, b) if a != b else (f"{a} (1)", f"{b} (2)")
    files = {name: read_trace(name) for name in (a, b) if name.endswith(SUFFIX)}
    contenders = {name: Contender.parse(name) for name in (a, b) if name not in files}
    source = source or next(iter(files), None)
    if source is None:
        raise DataError("INPUT is missing: give a text, a .json file of input_ids, or a trace file")
    for name, file in files.items():
        if settings.gradients and not settings.partial and not _has_gradients(file):
            raise DataError(f"{name} has no gradients of the loss; record it with --gradients, or compare without them")
    named = {**files, **({source: read_trace(source)} if source.endswith(SUFFIX) else {})}
    chosen = model or _named_model(named)
    check_overwrites(outputs, [source, *files_of(chosen)])
    settings = replace(
        settings,
        seed=_seed(chosen, named) if settings.seed is None else settings.seed,
        probabilities=settings.probabilities or any(_has_probabilities(file) for file in files.values()),
        gradients=settings.gradients or any(_has_gradients(file) for file in files.values()),
    )
    for contender in contenders.values():
        contender.check(settings)
    with ExitStack() as stack:
        folder = stack.enter_context(model_folder(chosen, settings.seed))
        if settings.gradients:
            require_loss(folder)
        kind, _, left_out = kind_of(folder)
        sample = read_sample(source, folder, kind, settings)
        _check_files(files, source, sample, folder, partial=settings.partial)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="longformer-parity-")))
        traces = []
        for i, name in enumerate((a, b)):
            if name in contenders:
                say(f"running {name}")
                path = work / f"{i}{SUFFIX}"
                traces.append(record(contenders[name], folder, sample, path, settings, model_name=chosen))
            else:
                traces.append(files[name])
        say("running the truth, in float64")
        truth = Truth(
            load_ours(folder),
            as_arguments(kind, sample.inputs),
            loss=(lambda output: output.loss) if settings.gradients else None,
            probabilities=settings.probabilities,
            folder=work,
        )
        say(f"measuring what rounding costs, in {truth.runs} runs that round by chance")
        comparison = compare(
            traces[0],
            traces[1],
            truth=truth,
            names=names,
            tokens=sample.tokens,
            partial=settings.partial,
            progress=True,
        )
        say("judging each module by itself")
        judge_modules(comparison, traces[0], traces[1], truth, progress=True)
        if left_out:
            comparison.notes.append(f"the checkpoint has parts that were not run and not compared: {listed(left_out)}")
        yield Contest(comparison, traces[0], traces[1], truth, sample.tokens)


def _has_probabilities(trace: Trace) -> bool:
    return any(name.endswith(PROBABILITIES) for name in trace)


def _has_gradients(trace: Trace) -> bool:
    """Whether there are gradients of the loss that is known here. Its targets show it; other losses are not judged."""
    return any(name in trace.inputs for name in TARGETS) and any(name.startswith(GRADIENT) for name in trace)


def _check_files(files: dict[str, Trace], source: str, sample: Sample, folder: str, *, partial: bool) -> None:
    """Refuse, before anything runs, what ``compare`` would refuse in the end."""
    inputs, config = effective_inputs(sample.inputs), LongformerConfig.from_pretrained(folder)
    for name, trace in files.items():
        check_inputs(trace.inputs, inputs, name, source if source != name else f"{name}, as the model is given it")
        check_configs(metadata_object(trace.metadata, "config"), config.to_dict(), name, "the model")
    shapes = expected_shapes(folder, config, inputs)
    if not partial:
        check_names({name: list(file) for name, file in files.items()}, shapes)
    check_values(files, shapes)


def expected_shapes(folder: str, config: LongformerConfig, inputs: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of each value, from the config and the input alone: nothing is run.

    Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.

    Args:
        folder: of the checkpoint, whose heads say which results there are.
        config: the checkpoint's.
        inputs: as a trace has them.
    """
    batch, seq_len = inputs["input_ids"].shape
    global_tokens = int((inputs["global_attention_mask"] != 0).sum(dim=1).max())
    states, heads = (batch, seq_len, config.hidden_size), (batch, config.num_attention_heads)
    by_heads, inner = (*heads, seq_len, config.head_dim), (batch, seq_len, config.intermediate_size)
    shapes: dict[str, Shape] = {"embeddings": states}
    for layer in range(config.num_hidden_layers):
        left, right = config.window(layer)
        own = config.attention_pattern is not None  # whose band and global tokens may be other ones in each layer
        parts: dict[str, Shape] = {
            **dict.fromkeys(("query", "key", "value", "local_output"), by_heads),
            **dict.fromkeys(("attention_output", "output"), states),
            **dict.fromkeys(("intermediate", "feed_forward"), inner),
        }
        if not own:
            parts[PROBABILITIES[0]] = (*heads, seq_len, left + 1 + right)
        if global_tokens and not own:
            parts[GLOBAL_ROWS] = (*heads, global_tokens, config.head_dim)
            parts[PROBABILITIES[1]] = (*heads, seq_len, global_tokens)
            parts[PROBABILITIES[2]] = (*heads, global_tokens, seq_len)
        shapes |= {f"layer.{layer}.{part}": shape for part, shape in parts.items()}
    kind = kind_of(folder).model
    if not issubclass(kind, Head) or "longformer.pooler.dense.weight" in kind.weights:
        shapes["pooler_output"] = (batch, config.hidden_size)
    if issubclass(kind, Head):
        shapes["logits"] = kind.logits_shape(config, batch, seq_len)
    weights = read_tensors(find_weights(folder))
    return {
        **shapes,
        **{GRADIENT + name: shape for name, shape in shapes.items()},
        **{PARAMETER + todays_name(name): tuple(weight.shape) for name, weight in weights.items()},
    }


def _seed(model: str, traces: dict[str, Trace]) -> int | None:
    """The seed that a trace gives for the weights of ``model``, if one does. Raises DataError where it is no number."""
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
