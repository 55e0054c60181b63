"""``compare``: two traces, value by value, judged by a third in float64.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longformer.checkpoint import todays_name
from longformer.errors import DataError
from longformer.parity.format import digest
from longformer.parity.recorder import Trace
from longformer.parity.rounding import Truth, row_mean_square
from longformer.parity.table import split_name
from longformer.weights import some

IDENTICAL, ROUNDING, DIFFERENT, NON_FINITE = "identical", "rounding", "different", "non-finite"

# Times the noise that a value may be off. Correct implementations were measured to be off by up to 3 times the noise
# over a value and 10 in a row, in every precision and size of model; the least of the known slips by 6.6.
MULTIPLE = 5.0  # root mean square over the whole value
ROW_MULTIPLE = 16.0  # over any one row: the worst of thousands, of few numbers each
GRADIENTS = 4.0  # times as much again for gradients: sums over all tokens that largely cancel (measured: up to 5.3)
POSITIONS = 8  # that differ most, listed

# Entries of a config that change no number of a forward pass, and so may differ.
HARMLESS = {"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "bos_token_id", "eos_token_id"}


@dataclass(frozen=True)
class Position:
    """A place in a value where two runs differ: ``head`` and ``token`` are None where the value has no such axis."""

    index: tuple[int, ...]
    difference: float
    batch: int | None = None
    head: int | None = None
    token: int | None = None
    kinds: tuple[str, ...] = ()  # "padding", "global", "window edge"
    text: str | None = None


@dataclass(frozen=True)
class Error:
    """How far one run's value is from the truth.

    largest, rms: absolute. ulp: the largest, in units in the last place of the run's precision. noise: what rounding
    must cost, rms. ratio: rms over noise. row_ratio: the same for the row where it is largest. far: whether that is
    too much.
    """

    largest: float
    rms: float
    ulp: float
    noise: float
    ratio: float
    row_ratio: float
    far: bool


@dataclass(frozen=True)
class Compared:
    """One value of both runs. ``a`` and ``b`` are their errors; None without a truth, or where not finite."""

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
    """The whole of it.

    verdict: "identical", "rounding", "different" or "non-finite".
    first: the value at which that begins, None for the first two.
    departed: which of the runs is away from the truth there: their names.
    hints: known slips that reproduce the departed run's numbers, or what else is known of the cause.
    """

    names: tuple[str, str]
    verdict: str
    first: Compared | None
    departed: tuple[str, ...]
    hints: list[str]
    values: list[Compared]
    missing: dict[str, list[str]] = field(default_factory=dict)  # run to values that it alone lacks
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def compare(
    a: Trace,
    b: Trace,
    *,
    truth: Truth | None = None,
    names: tuple[str, str] = ("A", "B"),
    tokens: list[list[str]] | None = None,
) -> Comparison:
    """Compare two traces of one input.

    A value is *identical* if every bit is. It is *rounding* if neither run's error, its distance from the truth, is
    more than MULTIPLE times the noise (see :mod:`longformer.parity.rounding`), nor more than ROW_MULTIPLE times in any
    row, for gradients GRADIENTS times that; else it is *different*. *Non-finite* is a value with NaN or infinity in
    either run. The verdict of all is the worst, in the order non-finite, different, rounding, identical.

    Args:
        a, b: as :func:`trace` recorded or :func:`read_trace` read them.
        truth: of the same input; needed unless every value is identical or not finite.
        names: of the two runs, for messages.
        tokens: texts of the tokens, (B, S), for messages.

    Raises:
        DataError: different inputs, shapes or configs (named), no value in common, or no truth where one is needed.
    """
    check_comparable(a, b, names)
    if truth is not None:
        _check_inputs(a.inputs, _as_inputs(truth), names[0], "the truth")
    places = Places(a, tokens)
    common = [name for name in a if name in b]
    if not common:
        raise DataError(f"{names[0]} and {names[1]} have no value in common: {some(list(a))}; {some(list(b))}")
    values = [_compare_value(name, a[name], b[name], truth, places, names) for name in common]
    missing = {
        names[1]: [name for name in a if name not in b],
        names[0]: [name for name in b if name not in a],
    }
    result = _conclude(values, names)
    result.missing = {name: absent for name, absent in missing.items() if absent}
    result.about = {names[0]: dict(a.metadata), names[1]: dict(b.metadata)}
    if result.verdict == DIFFERENT and truth is not None and result.first is not None:
        from longformer.parity.hints import find_hints

        run = b if names[1] in result.departed else a
        result.hints = find_hints(run, result.first.name, truth)
        true_weights = {todays_name(name): weight for name, weight in truth.weights.items()}
        for name, trace in zip(names, (a, b), strict=True):
            result.notes += _stale_weights(name, trace, true_weights)
    return result


def _stale_weights(name: str, trace: Trace, weights: Mapping[str, Tensor]) -> list[str]:
    """Which weights of a run are not those that the truth was computed from, where its trace has their digests."""
    found = json.loads(trace.metadata.get("weights", "{}"))
    precision = trace.metadata.get("dtype")
    differ = [
        key
        for key, weight in weights.items()
        if key in found and str(weight.dtype) == f"torch.{precision}" and found[key] != digest(weight)
    ]
    return [f"{name} was computed with other weights in {some(differ)}"] if differ else []


def _conclude(values: list[Compared], names: tuple[str, str]) -> Comparison:
    for verdict in (NON_FINITE, DIFFERENT):
        found = [value for value in values if value.verdict == verdict]
        if found:
            first = found[0]
            departed = tuple(
                name
                for name, error in zip(names, (first.a, first.b), strict=True)
                if error is not None and (error.far or not math.isfinite(error.rms))
            )
            return Comparison(names, verdict, first, departed, [], values)
    same = all(value.verdict == IDENTICAL for value in values)
    return Comparison(names, IDENTICAL if same else ROUNDING, None, (), [], values)


def check_comparable(a: Trace, b: Trace, names: tuple[str, str]) -> None:
    """Raise DataError, saying what differs, unless both are of one input and one config."""
    _check_inputs(a.inputs, b.inputs, *names)
    configs = [json.loads(trace.metadata.get("config", "null")) or {} for trace in (a, b)]
    shared = sorted((configs[0].keys() & configs[1].keys() & _defining()) - HARMLESS)
    wrong = [
        f"{key} is {configs[0][key]} and {configs[1][key]}"
        for key in shared
        if _plain(configs[0][key], configs[0]) != _plain(configs[1][key], configs[1])
    ]
    if wrong:
        raise DataError(f"{names[0]} and {names[1]} are of different configs: {some(wrong, separator='; ')}")


def _defining() -> set[str]:
    import dataclasses

    from longformer.config import LongformerConfig

    return {entry.name for entry in dataclasses.fields(LongformerConfig)}


def _plain(value: Any, config: Mapping[str, Any]) -> Any:
    layers = config.get("num_hidden_layers")
    return value * layers if isinstance(value, list) and len(value) == 1 and isinstance(layers, int) else value


def _as_inputs(truth: Truth) -> Mapping[str, Tensor]:
    return truth.trace.inputs


def _check_inputs(a: Mapping[str, Tensor], b: Mapping[str, Tensor], name_a: str, name_b: str) -> None:
    for key in sorted(a.keys() | b.keys()):
        if key in ("token_type_ids", "position_ids") and (key not in a or key not in b):
            continue  # left to the model in one of them: what comes of it is compared as the embeddings
        if key not in a or key not in b:
            raise DataError(f"{name_b if key in a else name_a} was recorded without {key}, which the other has")
        if a[key].shape != b[key].shape:
            raise DataError(
                f"the inputs differ: {key} is {tuple(a[key].shape)} in {name_a}, {tuple(b[key].shape)} in {name_b}"
            )
        off = (a[key] != b[key]).nonzero()
        if len(off):
            place = tuple(off[0].tolist())
            raise DataError(
                f"the inputs differ: {key}{list(place)} is {a[key][place].item()} in {name_a} and "
                f"{b[key][place].item()} in {name_b}; record both from one input"
            )


class Places:
    """What is known about the positions of an input."""

    def __init__(self, trace: Trace, tokens: list[list[str]] | None) -> None:
        mask = trace.inputs.get("attention_mask")
        global_mask = trace.inputs.get("global_attention_mask")
        self.key_mask = None if mask is None else mask != 0
        self.global_mask = None if global_mask is None else global_mask != 0
        self.tokens = tokens
        config = json.loads(trace.metadata.get("config", "null")) or {}
        windows, layers = config.get("attention_window"), config.get("num_hidden_layers") or 0
        self.windows: list[int] = windows if isinstance(windows, list) else [windows or 0] * layers

    def describe(self, name: str, shape: tuple[int, ...], index: tuple[int, ...], difference: float) -> Position:
        """``index`` into a value of ``shape``: which batch entry, head and token it is."""
        name = name.removeprefix("gradient.")
        layer, part = split_name(name)
        if name.startswith("parameter.") or self.key_mask is None or len(shape) < 3:
            return Position(index, difference)
        batch, head = index[0], index[1] if len(shape) == 4 else None
        token = index[-2]
        if part in ("global_rows", "global_probabilities") and self.global_mask is not None:
            found = self.global_mask[batch].nonzero().flatten()
            if token >= len(found):
                return Position(index, difference, batch, head)
            token = int(found[token])
        if token >= self.key_mask.shape[1]:
            return Position(index, difference, batch, head)
        text = self.tokens[batch][token] if self.tokens and token < len(self.tokens[batch]) else None
        return Position(index, difference, batch, head, token, self._kinds(batch, token, layer), text)

    def _kinds(self, batch: int, token: int, layer: int | None) -> tuple[str, ...]:
        assert self.key_mask is not None
        if not self.key_mask[batch, token]:
            return ("padding",)
        kinds = ["global"] if self.global_mask is not None and self.global_mask[batch, token] else []
        if layer is not None and layer < len(self.windows):
            present = self.key_mask[batch].nonzero().flatten()
            half = self.windows[layer] // 2
            if token - int(present[0]) < half or int(present[-1]) - token < half:
                kinds.append("window edge")
        return tuple(kinds)


def _compare_value(
    name: str, a: Tensor, b: Tensor, truth: Truth | None, places: Places, names: tuple[str, str]
) -> Compared:
    if a.shape != b.shape:
        raise DataError(f"{name} has shape {tuple(a.shape)} in {names[0]} and {tuple(b.shape)} in {names[1]}")
    x, y = a.double(), b.double()
    finite = bool(torch.isfinite(x).all()), bool(torch.isfinite(y).all())
    if not all(finite):
        return _non_finite(name, x, y, finite, places)
    coarse = max((a.dtype, b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    same = a.dtype == b.dtype and torch.equal(a, b)
    difference = (x - y).abs()
    errors: tuple[Error | None, Error | None] = (None, None)
    true: Tensor | None = None
    if truth is not None and name in truth.trace:
        true = truth.trace[name]
        if true.shape != x.shape:
            raise DataError(f"{name} has shape {tuple(a.shape)}; by the model's config it is {tuple(true.shape)}")
        errors = (
            _error(name, x, true, truth.noise(a.dtype)[name], a.dtype),
            _error(name, y, true, truth.noise(b.dtype)[name], b.dtype),
        )
    elif not same:
        raise DataError(f"{name} differs between {names[0]} and {names[1]}, and there is no truth to judge it by")
    far = any(error is not None and error.far for error in errors)
    ulps = difference / spacing(y if true is None else true, coarse)
    norms = float(x.norm() * y.norm())
    return Compared(
        name,
        tuple(a.shape),
        IDENTICAL if same else DIFFERENT if far else ROUNDING,
        _largest(difference),
        _rms(difference),
        float(difference.norm() / y.norm()) if float(y.norm()) else float(difference.norm() > 0),
        float((x * y).sum()) / norms if norms else 1.0,
        _largest(ulps),
        _rms(ulps),
        *errors,
        () if same else _worst(name, difference, places),
    )


def _non_finite(name: str, x: Tensor, y: Tensor, finite: tuple[bool, bool], places: Places) -> Compared:
    nan = math.nan
    bad = ~(torch.isfinite(x) & torch.isfinite(y))
    index = tuple(bad.nonzero()[0].tolist())
    position = places.describe(name, tuple(x.shape), index, nan)
    broken = Error(nan, nan, nan, nan, nan, nan, True)
    errors = (None if finite[0] else broken, None if finite[1] else broken)
    return Compared(name, tuple(x.shape), NON_FINITE, nan, nan, nan, nan, nan, nan, *errors, (position,))


def _error(name: str, x: Tensor, true: Tensor, noise: Tensor, dtype: torch.dtype) -> Error:
    off = x - true
    whole = float(noise.mean())
    rms = _rms(off)
    ratio = _ratio(rms, math.sqrt(whole))
    row_ratio = _largest(row_ratios(off, true, noise))
    factor = GRADIENTS if name.startswith("gradient.") else 1.0
    far = ratio > factor * MULTIPLE or row_ratio > factor * ROW_MULTIPLE
    ulp = _largest(off.abs() / spacing(true, dtype))
    return Error(_largest(off.abs()), rms, ulp, math.sqrt(whole), ratio, row_ratio, far)


def row_ratios(off: Tensor, true: Tensor, noise: Tensor) -> Tensor:
    """Of an error, shape (..., width), each row's root mean square over its noise: (...).

    A row's noise is known from few numbers, and might by chance be next to nothing. The whole value's is the least that
    is expected of it, and in a row of large numbers as much more as they are larger.
    """
    whole, size = float(noise.mean()), row_mean_square(true)
    relative = whole / float(size.mean()) if bool(size.any()) else 0.0
    expected = torch.maximum(noise, size * relative).clamp(min=whole)
    rows = row_mean_square(off)
    return torch.where(rows > 0, (rows / expected).sqrt(), 0.0)


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A unit in the last place of ``dtype`` at each element of ``x``, or at its row's root mean square if larger.

    Near 0 the units shrink without end, and a sum that cancels is not wrong by millions of them in any useful sense.
    """
    size = torch.maximum(x.abs(), row_mean_square(x).sqrt()[..., None] if x.dim() else x.abs())
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(size.clamp(min=info.tiny)))) * info.eps


def _worst(name: str, difference: Tensor, places: Places) -> tuple[Position, ...]:
    """Rows that differ most, the largest difference of each."""
    rows = difference.amax(dim=-1) if difference.dim() else difference
    flat = rows.flatten()
    found = torch.topk(flat, min(POSITIONS, len(flat)))
    worst = []
    for value, place in zip(found.values.tolist(), found.indices.tolist(), strict=True):
        if value == 0:
            break
        row = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), rows.shape)) if rows.dim() else ()
        last = (int(difference[row].argmax()),) if difference.dim() else ()
        worst.append(places.describe(name, tuple(difference.shape), (*row, *last), value))
    return tuple(worst)


def _ratio(x: float, y: float) -> float:
    return x / y if y else (0.0 if x == 0 else math.inf)


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
