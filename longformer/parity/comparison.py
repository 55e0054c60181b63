"""``compare``: two traces, value by value, both judged by a third trace in float64.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longformer.checkpoints.names import todays_name
from longformer.config import LongformerConfig
from longformer.errors import DataError, listed
from longformer.parity.format import FLOATING, Trace, digest, headers_of, metadata_object
from longformer.parity.layout import TARGETS
from longformer.parity.measure import Error, largest, measure, rms_of, spacing
from longformer.parity.names import check_names
from longformer.parity.noise import Noise, Precisions, precision_of, precisions_of
from longformer.parity.operations import coarsest
from longformer.parity.places import Places, Position, config_of, without_padding, worst
from longformer.parity.progress import bar
from longformer.parity.rounding import MORE_RUNS, Truth
from longformer.parity.table import GLOBAL_ROWS

if TYPE_CHECKING:
    from longformer.parity.modules import Finding

IDENTICAL, ROUNDING, SUSPICIOUS, DIFFERENT, NON_FINITE = (
    "identical",
    "rounding",
    "suspicious",
    "different",
    "non-finite",
)
# Up to so many times what leaves a doubt a value is judged again, by the noise of more runs. In half precision that is
# further: the first few runs may have missed that a softmax turns.
SECOND_LOOK = 4.0

# Entries of a config that change no number of a forward pass, and so may differ.
HARMLESS = {"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "bos_token_id", "eos_token_id"}
# Inputs that may be left out. The model makes the first two itself, and the embeddings show whether they agree. The
# others belong to the loss, and say nothing where there are no gradients.
OPTIONAL = ("token_type_ids", "position_ids", *TARGETS)
OTHERS = "for another architecture, record a float64 run too, and use assert_parity(a, b, float64_run)"


@dataclass(frozen=True)
class Compared:
    """One value of both runs.

    a, b: the runs' errors; None without a truth, or where the other run alone is not finite.
    """

    name: str
    shape: tuple[int, ...]
    verdict: str
    largest: float
    rms: float
    relative: float
    cosine: float
    ulp_largest: float
    ulp_rms: float
    a: Error | None
    b: Error | None
    positions: tuple[Position, ...]


@dataclass
class Comparison:
    """What a comparison found.

    Args:
        verdict: "identical", "rounding", "suspicious", "different" or "non-finite", over the values that could be
            judged.
        first: the first value with this verdict; None if the verdict is "identical" or "rounding".
        departed: the names of the runs that are away from the truth in this value.
        hints: known slips that reproduce the departed run's numbers, or what else is known of the cause.
        unjudged: values that differ and that the truth does not have.
        modules: wrong by themselves, from the values that their run recorded before them.
        missing: for each run, the values that it alone lacks.
        is_longformer: whether the values' axes are known to be heads, tokens and channels.
    """

    names: tuple[str, str]
    verdict: str
    first: Compared | None
    departed: tuple[str, ...]
    hints: list[str]
    values: list[Compared]
    unjudged: list[str] = field(default_factory=list)
    modules: list[Finding] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    is_longformer: bool = True


def compare(
    a: Trace,
    b: Trace,
    *,
    truth: Truth | None = None,
    names: tuple[str, str] = ("A", "B"),
    tokens: list[list[str]] | None = None,
    partial: bool = False,
    progress: bool = False,
) -> Comparison:
    """Compare two traces of one input.

    A run's error is its distance from the truth. The noise is what rounding must cost in the precision in which the
    run computed, see :mod:`longformer.parity.rounding`. A value is *identical* if both runs have the same bits. It is
    *rounding* if in both runs the error is within LIMITS, multiples of the noise for the whole value, each head, each
    channel, each row and each number. It is *suspicious* if it is beyond a limit by no more than DOUBT, after a second
    look with more runs; *different* if it is further; and *non-finite* if either run has NaN or infinity in it. The
    verdict of the comparison is the worst of its values. Values that differ and that the truth does not have are listed
    as not judged; then the comparison is not identical.

    Args:
        a, b: from :func:`trace` or :func:`read_trace`.
        truth: for the same input; needed unless every value is identical or not finite.
        names: of the two runs, for messages.
        tokens: texts of the tokens, (B, S), for messages.
        partial: a run may lack values whose names look like misspelt ones of its own.
        progress: whether to show progress bars where this takes more than two seconds.

    Raises:
        DataError: a value's name looks misspelt; inputs, shapes or configs differ (the message names them); the runs
            have no value in common; no value can be judged; or there is no truth where one is needed.
    """
    check_inputs(a.inputs, b.inputs, *names)
    check_configs(metadata_object(a.metadata, "config"), metadata_object(b.metadata, "config"), *names)
    if truth is not None:
        for name, run in zip(names, (a, b), strict=True):
            check_inputs(run.inputs, truth.trace.inputs, name, "the truth")
            if truth.config is not None:  # as it is for models that are no Longformer
                check_configs(metadata_object(run.metadata, "config"), truth.config.to_dict(), name, "the truth")
    if not partial:
        check_names(dict(zip(names, (list(a), list(b)), strict=True)), () if truth is None else list(truth.trace))
    common = [name for name in a if name in b]
    if not common:
        raise DataError(f"{names[0]} and {names[1]} have no value in common: {listed(list(a))}; {listed(list(b))}")
    shapes = {} if truth is None else {name: header.shape for name, header in headers_of(truth.trace.tensors).items()}
    check_values(dict(zip(names, (a, b), strict=True)), shapes)
    places = Places(a.inputs, config_of(a) if truth is None else truth.config, tokens)
    precisions = precisions_of(a), precisions_of(b)
    found: dict[str, Compared | None] = {}
    for runs in (None, MORE_RUNS):
        noise = None if truth is None else tuple(truth.noise(each, runs=runs, progress=progress) for each in precisions)
        judged = bar(common, "value by value", "values", shown=progress)
        found = {name: _compare_value(name, (a, b), truth, noise, precisions, places, names) for name in judged}
        wrong = [value for value in found.values() if value is not None and value.verdict in (SUSPICIOUS, DIFFERENT)]
        errors = [error for value in wrong for error in (value.a, value.b)]
        if not any(error is not None and 1 < error.excess <= SECOND_LOOK * error.doubt for error in errors):
            break
    unjudged = [name for name, value in found.items() if value is None]
    if len(unjudged) == len(found):
        raise DataError(
            f"nothing can be judged: {listed(unjudged)} differ between {names[0]} and {names[1]}, and our model, which "
            f"gives the truth, has no such values; {OTHERS}"
        )
    result = _conclude([value for value in found.values() if value is not None], unjudged, names)
    absent = {names[1]: [name for name in a if name not in b], names[0]: [name for name in b if name not in a]}
    result.missing = {name: lost for name, lost in absent.items() if lost}
    if unjudged:
        result.notes.append(
            f"not judged, since our model, which gives the truth, has no such value: {listed(unjudged)}"
        )
    result.is_longformer = truth is None or truth.config is not None
    result.about = {names[0]: dict(a.metadata), names[1]: dict(b.metadata)}
    if result.verdict == SUSPICIOUS:
        result.notes.append(_deciding(result))
    if result.verdict == DIFFERENT and truth is not None and truth.config is not None and result.first is not None:
        from longformer.parity.hints import find_hints

        which = int(names[1] in result.departed)
        of_run = {value.name: (value.a, value.b)[which] for value in result.values if value.verdict == DIFFERENT}
        far = [name for name, error in of_run.items() if error is not None and error.far]
        hints = find_hints((a, b)[which], result.first.name, truth, far)
        result.hints = hints.hints
        result.notes += hints.notes
        for name, run in zip(names, (a, b), strict=True):
            result.notes += _stale_weights(name, run, truth)
    return result


def _deciding(result: Comparison) -> str:
    """What run would decide a suspicion."""
    who = listed(list(result.departed))
    return (
        f"to decide, run {who} in float64: rounding then shrinks by a factor of 10^8 or more, and a mistake does not. "
        "If that cannot be, compare on other and longer texts: a mistake shows again in the same place"
    )


def _stale_weights(name: str, trace: Trace, truth: Truth) -> list[str]:
    """A note of the weights that differ between a run and the truth, if the run's trace has their digests."""
    found, precision = metadata_object(trace.metadata, "weights"), trace.metadata.get("dtype")
    weights = {todays_name(key): weight for key, weight in truth.weights.items()}
    differ = [
        key
        for key, weight in weights.items()
        if key in found and str(weight.dtype) == f"torch.{precision}" and found[key] != digest(weight)
    ]
    return [f"{name} was computed with other weights in {listed(differ)}"] if differ else []


def _conclude(values: list[Compared], unjudged: list[str], names: tuple[str, str]) -> Comparison:
    for verdict in (NON_FINITE, DIFFERENT, SUSPICIOUS):
        found = [value for value in values if value.verdict == verdict]
        if found:
            first = found[0]
            departed = tuple(
                name
                for name, error in zip(names, (first.a, first.b), strict=True)
                if error is not None and (error.far or error.doubtful)
            )
            return Comparison(names, verdict, first, departed, [], values, unjudged)
    same = not unjudged and all(value.verdict == IDENTICAL for value in values)
    return Comparison(names, IDENTICAL if same else ROUNDING, None, (), [], values, unjudged)


def check_configs(a: Mapping[str, Any], b: Mapping[str, Any], name_a: str, name_b: str) -> None:
    """Raise DataError, which says what differs, where two configs both have an entry and do not agree on it."""
    defining = {entry.name for entry in dataclasses.fields(LongformerConfig)} - HARMLESS
    a, b = ({"attention_dilation": 1, **config} if config else config for config in (a, b))  # often left out
    wrong = [
        f"{key} is {a[key]} and {b[key]}"
        for key in sorted(a.keys() & b.keys() & defining)
        if _plain(key, a) != _plain(key, b)
    ]
    if wrong:
        raise DataError(f"{name_a} and {name_b} are of different configs: {listed(wrong, separator='; ')}")


def _plain(key: str, config: Mapping[str, Any]) -> Any:
    """A config's entry, with a window for all layers written as one for each layer."""
    value, layers = config[key], config.get("num_hidden_layers")
    if key != "attention_window" or not isinstance(layers, int):
        return value
    each = value if isinstance(value, list) else [value]
    return each * layers if len(each) == 1 else each


def check_inputs(a: Mapping[str, Tensor], b: Mapping[str, Tensor], name_a: str, name_b: str) -> None:
    """Raise DataError, which says where they differ, unless both inputs are the same."""
    for key in sorted(a.keys() | b.keys()):
        if key in OPTIONAL and (key not in a or key not in b):
            continue
        if key not in a or key not in b:
            raise DataError(f"{name_b if key in a else name_a} was recorded without {key}, which the other has")
        if a[key].shape != b[key].shape:
            raise DataError(
                f"the inputs differ: {key} is {tuple(a[key].shape)} in {name_a}, {tuple(b[key].shape)} in {name_b}"
            )
        x, y = a[key], b[key]
        if x.is_floating_point() and y.is_floating_point():  # labels; a run in low precision was given them in that
            coarse = max((x.dtype, y.dtype), key=lambda dtype: torch.finfo(dtype).eps)
            x, y = x.to(coarse), y.to(coarse)
        off = (x != y).nonzero()
        if len(off):
            place = tuple(off[0].tolist())
            raise DataError(
                f"the inputs differ: {key}{list(place)} is {a[key][place].item()} in {name_a} and "
                f"{b[key][place].item()} in {name_b}; record both from one input"
            )


def check_values(runs: Mapping[str, Trace], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise DataError for a value that cannot be compared because of its dtype or shape.

    No value is read: the headers of files say enough.

    Args:
        runs: by name: both, or only one if the other has yet to run. The other will then have the model's values.
        shapes: by value: the shapes that follow from the model's config.
    """
    headers = {name: headers_of(trace.tensors) for name, trace in runs.items()}
    for name, trace in runs.items():
        for value in trace:
            mine = headers[name][value]
            others = {other: headers[other][value] for other in runs if other != name and value in headers[other]}
            if not others and (len(runs) > 1 or value not in shapes):
                continue  # nothing is compared with it
            if mine.dtype not in FLOATING:
                raise DataError(f"{value} is {mine.dtype} in {name}; values are floating point")
            for other, header in others.items():
                if header.shape != mine.shape:
                    raise DataError(
                        f"{value} has shape {mine.shape} in {name} and {header.shape} in {other}{_shape_rule(value)}"
                    )
            if mine.shape != shapes.get(value, mine.shape):
                raise DataError(
                    f"{value} has shape {mine.shape} in {name}; by the model's config and input it is "
                    f"{shapes[value]}{_shape_rule(value)}"
                )


def _shape_rule(value: str) -> str:
    """What an error about a value's shape says of a value that has another shape than one expects."""
    return "; it has a row for each global token, and none for others" if value.endswith(f".{GLOBAL_ROWS}") else ""


def _compare_value(
    name: str,
    runs: tuple[Trace, Trace],
    truth: Truth | None,
    noise: tuple[Mapping[str, Noise], ...] | None,
    precisions: tuple[Precisions, Precisions],
    places: Places,
    names: tuple[str, str],
) -> Compared | None:
    """Judge one value. None if the two differ and the truth has no such value, so that nothing says by how much.

    noise, precisions: of either run.
    """
    a, b = (without_padding(name, run[name], places.keep) for run in runs)
    x, y = a.double(), b.double()
    finite = bool(torch.isfinite(x).all()), bool(torch.isfinite(y).all())
    if not all(finite):
        return _non_finite(name, x, y, finite, places)
    same = a.dtype == b.dtype and torch.equal(a, b)
    dtypes = [precision_of(precision, name) for precision in precisions]
    errors: tuple[Error | None, ...] = (None, None)
    true: Tensor | None = None
    if truth is not None and noise is not None and name in truth.trace:
        true = without_padding(name, truth.trace[name], places.keep)
        errors = tuple(measure(z, true, of[name], dtype) for z, of, dtype in zip((x, y), noise, dtypes, strict=True))
    elif not same:
        if truth is not None:
            return None
        raise DataError(
            f"{name} differs between {names[0]} and {names[1]}, and there is no truth to judge it by. For a "
            f"Longformer, give Truth(model, inputs); {OTHERS}"
        )
    difference = (x - y).abs()
    ulps = difference / spacing(y if true is None else true, coarsest(dtypes))
    norms = float(x.norm() * y.norm())
    return Compared(
        name,
        tuple(a.shape),
        _verdict(same, errors),
        largest(difference),
        rms_of(difference),
        float(difference.norm() / y.norm()) if float(y.norm()) else float(difference.norm() > 0),
        float((x * y).sum()) / norms if norms and not same else 1.0,
        largest(ulps),
        rms_of(ulps),
        a=errors[0],
        b=errors[1],
        positions=() if same else worst(name, difference, places),
    )


def _verdict(same: bool, errors: Sequence[Error | None]) -> str:
    """Of a value, from the errors of both runs. The same bits are the same, however far from the truth."""
    judged = [] if same else [error for error in errors if error is not None]
    if any(error.far for error in judged):
        return DIFFERENT
    if any(error.doubtful for error in judged):
        return SUSPICIOUS
    return IDENTICAL if same else ROUNDING


def _non_finite(name: str, x: Tensor, y: Tensor, finite: tuple[bool, bool], places: Places) -> Compared:
    nan = math.nan
    bad = ~(torch.isfinite(x) & torch.isfinite(y))
    index = tuple(bad.nonzero()[0].tolist())
    position = places.describe(name, tuple(x.shape), index, nan)
    broken = Error(nan, nan, nan, nan)
    errors = (None if finite[0] else broken, None if finite[1] else broken)
    return Compared(name, tuple(x.shape), NON_FINITE, nan, nan, nan, nan, nan, nan, *errors, (position,))
