"""Which value of one model is which of another: by name, by a table, or by what both give in a dry run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from longformer.errors import DataError, unknown_name
from longformer.files import read_json, read_toml
from longformer.parity.table import GRADIENT, NUMBER, PARAMETER

ENOUGH = 0.5  # of the values of the model with fewer: so many names in common, and the rest is taken to be missing
ALIKE = 0.01  # relative difference up to which two values are of the same content
SAMPLE = 256  # numbers of a value by which its content is compared
# Scores of an alignment: of the same content, of the same shape and last name, of the same shape.
CONTENT, NAME, SHAPE = 100, 3, 1


def pair(a: Mapping[str, Tensor], b: Mapping[str, Tensor], table: Mapping[str, str] | None = None) -> dict[str, str]:
    """The names of ``b``'s values by those of ``a``'s, both in the order in which they are computed.

    With a table, what it says; the others by name. Without one by name, if enough names are shared; otherwise by shape
    and content: the values of both are aligned in their order, so that those of the same shape and about the same
    numbers, or where there are none those of the same shape and name, come together.

    Args:
        a, b: values by name; gradients are left out.
        table: names of ``b``'s modules or values by names of ``a``'s; ``{n}`` stands for any number.

    Raises:
        DataError: an entry of the table names nothing, or nothing can be paired.
    """
    mine, theirs = ({name: x for name, x in run.items() if not name.startswith(GRADIENT)} for run in (a, b))
    same = {name: name for name in mine if name in theirs}
    if table is not None:
        given = _by_table(table, list(mine), list(theirs))
        taken = set(given.values())
        return {**{name: other for name, other in same.items() if name not in given and other not in taken}, **given}
    if len(same) >= ENOUGH * min(len(mine), len(theirs)):
        return same
    found = _aligned(mine, theirs)
    if not found:
        raise DataError("no value of one model has the shape of one of the other: give a table of names with --table")
    return found


def read_table(path: str) -> dict[str, str]:
    """A table of names: a ``.json`` or ``.toml`` file of B's names by A's. Raises DataError where it is none."""
    table = read_toml(path) if path.endswith(".toml") else read_json(path, dict)
    if not all(isinstance(value, str) for value in table.values()):
        raise DataError(f'{path} must be a table of names, such as {{"encoder.layer.{{n}}": "blocks.{{n}}"}}')
    return table


def renamed(values: Mapping[str, Tensor], pairs: Mapping[str, str], parameters: Mapping[str, str]) -> dict[str, Tensor]:
    """``values`` of B by A's names, gradients too; those without a pair keep their own.

    Args:
        pairs: B's names of values by A's.
        parameters: B's names of parameters by A's.
    """
    names = {other: name for name, other in pairs.items()}
    of_parameter = {other: name for name, other in parameters.items()}

    def own(name: str) -> str:
        if name.startswith(PARAMETER):
            return PARAMETER + of_parameter.get(name.removeprefix(PARAMETER), name.removeprefix(PARAMETER))
        prefix = GRADIENT if name.startswith(GRADIENT) else ""
        return prefix + names.get(name.removeprefix(prefix), name.removeprefix(prefix))

    return {own(name): value for name, value in values.items()}


def pair_parameters(pairs: Mapping[str, str], a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, str]:
    """B's names of parameters by A's: those of one name within paired modules, of one shape.

    Args:
        pairs: of values, whose names are the modules' paths.
        a, b: parameters by name.
    """
    found = {name: name for name in a if name in b and a[name].shape == b[name].shape}
    for name, other in pairs.items():
        if name != other:
            for key in a:
                if key.startswith(f"{name}.") and (value := other + key.removeprefix(name)) in b:
                    if a[key].shape == b[value].shape:
                        found[key] = value
    return found


def _by_table(table: Mapping[str, str], a: Sequence[str], b: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pattern, other in table.items():
        expression = re.compile(re.escape(pattern).replace(re.escape(NUMBER), "([0-9]+)", 1) + r"(|[:@].*)")
        matches = [match for name in a if (match := expression.fullmatch(name))]
        if not matches:
            raise DataError(unknown_name(pattern, a, "value of A"))
        for match in matches:
            *numbers, rest = match.groups()
            named = other.replace(NUMBER, numbers[0] if numbers else NUMBER) + rest
            if named not in b:
                raise DataError(unknown_name(named, b, "value of B"))
            found[match[0]] = named
    return found


def _aligned(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, str]:
    """The pairs of the best alignment, in which no two pairs cross."""
    mine, theirs = list(a), list(b)
    samples = [{name: _sample(x) for name, x in run.items()} for run in (a, b)]

    def score(name: str, other: str) -> int:
        if a[name].shape != b[other].shape:
            return 0
        x, y = samples[0][name], samples[1][other]
        if float((x - y).norm()) <= ALIKE * float(x.norm()):
            return CONTENT + (NAME if _last(name) == _last(other) else SHAPE)
        return NAME if _last(name) == _last(other) else SHAPE

    best = [[0] * (len(theirs) + 1) for _ in range(len(mine) + 1)]
    for i in reversed(range(len(mine))):
        for j in reversed(range(len(theirs))):
            gain = score(mine[i], theirs[j])
            both = gain + best[i + 1][j + 1] if gain else 0
            best[i][j] = max(both, best[i + 1][j], best[i][j + 1])
    found, i, j = {}, 0, 0
    while i < len(mine) and j < len(theirs):
        gain = score(mine[i], theirs[j])
        if gain and best[i][j] == gain + best[i + 1][j + 1]:
            found[mine[i]] = theirs[j]
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _sample(x: Tensor) -> Tensor:
    """Some numbers of a value, from places that depend on its size alone."""
    flat = x.detach().flatten()
    return (
        flat[torch.linspace(0, len(flat) - 1, min(SAMPLE, len(flat))).long()].double() if len(flat) else flat.double()
    )
