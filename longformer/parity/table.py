"""Which modules compute the values of a trace, and how their results become values.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from longformer.errors import LongformerError, listed

NUMBER = "{n}"
Kind = Literal["plain", "tokens", "heads", "attention"]


@dataclass(frozen=True)
class Value:
    """A value of a trace.

    Args:
        name: in the trace; ``{n}`` stands for the number that ``{n}`` matched in the module's path.
        kind: its shape. ``"tokens"``: (B, S, C). ``"heads"``: (B, H, S, D), from a module that gives (B, S, H·D).
            ``"attention"``: like heads, but the rows of global tokens are recorded apart. ``"plain"``: as it comes.
        axes: of the module's result: ``"bsc"``, or ``"sbc"`` if it has the sequence first.
    """

    name: str
    kind: Kind = "plain"
    axes: Literal["bsc", "sbc"] = "bsc"


@dataclass(frozen=True)
class Table:
    """Values by the paths of their modules, in the order in which they are computed, which is also the trace's.

    Neighbouring entries that have ``{n}`` are one stack of layers: all values of the first layer, then of the next.

    Args:
        values: ``{n}`` in a path stands for any number. Every path must match at least one module.
        optional: the same, for modules that a model may lack.
        heads: H, needed if a value is of kind ``"heads"``.
    """

    values: Mapping[str, Value]
    optional: Mapping[str, Value] = field(default_factory=dict)
    heads: int | None = None

    def fit(self, model: nn.Module) -> dict[str, Value]:
        """The values by the paths of ``model``'s modules, with ``{n}`` filled in, in order of computation.

        Raises:
            LongformerError: a path matches no module, or two modules give one value.
        """
        paths = [path for path, _ in model.named_modules()]
        placed: dict[str, tuple[tuple[int, int, int], Value]] = {}
        missing = []
        stack, last_numbered = 0, False
        for i, (pattern, value) in enumerate({**self.values, **self.optional}.items()):
            found = _matches(pattern, value, paths)
            if not found and pattern in self.values:
                missing.append(pattern)
            numbered = NUMBER in pattern
            stack = stack if numbered and last_numbered else i
            last_numbered = numbered
            placed |= {path: ((stack, number, i), value) for path, (number, value) in found.items()}
        fitted = {path: value for path, (_, value) in sorted(placed.items(), key=lambda item: item[1][0])}
        if missing:
            raise LongformerError(
                f"the table does not fit {type(model).__name__}: it has no module {listed(missing)}; its modules are "
                f"{listed([path for path in paths if path])}"
            )
        names = [value.name for value in fitted.values()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise LongformerError(
                f"the table gives several modules of {type(model).__name__} one name: {listed(twice)}"
            )
        return fitted


def _matches(pattern: str, value: Value, paths: list[str]) -> dict[str, tuple[int, Value]]:
    """The paths that match, each with the number in it (0 if there is none) and its value."""
    expression = re.compile(re.escape(pattern).replace(r"\{n\}", "([0-9]+)", 1).replace(r"\{n\}", r"\1"))
    found = {}
    for path in paths:
        match = expression.fullmatch(path)
        if match:
            number = match.group(1) if match.groups() else "0"
            found[path] = int(number), Value(value.name.replace(NUMBER, number), value.kind, value.axes)
    return found


# Longformer's, in order of computation. transformers' modules and ours have the same paths, since checkpoints name
# them. The axes are those of transformers' modules; ours always give (B, S, C).
_LAYER = "encoder.layer.{n}."
LONGFORMER = {
    "embeddings": Value("embeddings", "tokens"),
    _LAYER + "attention.self.query": Value("layer.{n}.query", "heads", "sbc"),
    _LAYER + "attention.self.key": Value("layer.{n}.key", "heads", "sbc"),
    _LAYER + "attention.self.value": Value("layer.{n}.value", "heads", "sbc"),
    _LAYER + "attention.self": Value("layer.{n}.local_output", "attention"),  # and layer.{n}.global_rows
    _LAYER + "attention": Value("layer.{n}.attention_output", "tokens"),
    _LAYER + "intermediate.dense": Value("layer.{n}.intermediate", "tokens"),
    _LAYER + "intermediate": Value("layer.{n}.feed_forward", "tokens"),
    _LAYER.removesuffix("."): Value("layer.{n}.output", "tokens"),
}
LONGFORMER_HEADS = {
    "pooler": Value("pooler_output"),
    "qa_outputs": Value("logits", "tokens"),
    "lm_head": Value("logits", "tokens"),
    "classifier": Value("logits"),
}
BASE = "longformer"  # under a head, the attribute that holds the base model; ours and transformers' alike
GLOBAL_ROWS = "global_rows"
GRADIENT = "gradient."  # before a value's name: its gradient
PARAMETER = f"{GRADIENT}parameter."  # before a parameter's
PROBABILITIES = ("band_probabilities", "column_probabilities", "global_probabilities")


def longformer_table(prefix: str, heads: int) -> Table:
    """The table of a Longformer whose base model is at ``prefix`` (``""`` or ``"longformer."``) and has H heads."""
    return Table(
        {prefix + path: value for path, value in LONGFORMER.items()},
        {(prefix if path == "pooler" else "") + path: value for path, value in LONGFORMER_HEADS.items()},
        heads,
    )


_ORDER = [value.name.removeprefix("layer.{n}.") for value in LONGFORMER.values()]
_ORDER.insert(_ORDER.index("local_output"), PROBABILITIES[0])
_ORDER.insert(_ORDER.index("local_output"), PROBABILITIES[1])
_ORDER.insert(_ORDER.index("attention_output"), PROBABILITIES[2])
_ORDER.insert(_ORDER.index("attention_output"), GLOBAL_ROWS)


def split_name(name: str) -> tuple[int | None, str]:
    """``"layer.3.query"`` to (3, ``"query"``); a value outside the layers has None."""
    match = re.fullmatch(r"layer\.([0-9]+)\.(.+)", name)
    return (int(match[1]), match[2]) if match else (None, name)


def order(name: str) -> tuple[int, int, int, str]:
    """Sort key: the order in which a Longformer computes its values, and then its gradients, from the last layer on."""
    if name.startswith(PARAMETER):  # after those of all activations
        return (2, *backward_order(name))
    layer, step = _place(name.removeprefix(GRADIENT))
    return (1, -layer, -step, name) if name.startswith(GRADIENT) else (0, layer, step, name)


def order_of(names: Sequence[str]) -> Callable[[str], tuple[int, int, str]]:
    """A sort key like :func:`order` for a table of one's own, which has its values in the order ``names``."""
    places = {name: i for i, name in enumerate(names)}

    def key(name: str) -> tuple[int, int, str]:
        if name.startswith(PARAMETER):
            return (2, 0, name)
        place = places.get(name.removeprefix(GRADIENT), len(places))
        return (1, -place, name) if name.startswith(GRADIENT) else (0, place, name)

    return key


def _place(name: str) -> tuple[int, int]:
    layer, part = split_name(name)
    if layer is not None:
        return layer, _ORDER.index(part) if part in _ORDER else len(_ORDER)
    if name == "embeddings":
        return -1, 0
    return 10**9, int(name != "pooler_output")  # which multiple choice has before its logits


def backward_order(name: str) -> tuple[int, int, str]:
    """Sort key of gradients by parameters, ``gradient.parameter.<name>``, in the order of the backward pass.

    The head's come first, then those of the last layer, from its output back to its query, and so on to the embeddings.
    """
    path = name.removeprefix(PARAMETER).removeprefix(f"{BASE}.")
    match = re.match(r"encoder\.layer\.([0-9]+)\.(.+)", path)
    if match is None:
        return (2 if path.startswith("embeddings.") else 0, int("LayerNorm" not in path), path)
    step = next((i for i, start in enumerate(_BACKWARD) if match[2].startswith(start)), len(_BACKWARD))
    return 1, -int(match[1]) * 100 + step, path


_BACKWARD = (
    *("output.LayerNorm", "output.dense", "intermediate", "attention.output.LayerNorm", "attention.output.dense"),
    *("attention.self.value", "attention.self.key", "attention.self.query"),
)
