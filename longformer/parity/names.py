"""Names of values that look misspelt: a comparison that quietly leaves such a value out would say too much."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

from longformer.errors import DataError
from longformer.parity.table import GRADIENT, PARAMETER, split_name

ALIKE = 0.6  # of two parts of one layer: how alike they must be for one to be a misspelling of the other
ALIKE_WHOLE = 0.8  # of two whole names


def check_names(runs: Mapping[str, Collection[str]], known: Collection[str] = ()) -> None:
    """Raise DataError for a value that looks like a misspelling of one that its run lacks.

    It is one that no other run has, and that is not known, while there is a value of nearly this name that others have
    or that is known, and that this run lacks.

    Args:
        runs: names of the values by run.
        known: names of values that a run may have.
    """
    for name, mine in runs.items():
        others = {value for other, values in runs.items() if other != name for value in values} | set(known)
        lacking = sorted(others - set(mine))
        for value in mine:
            meant = None if value in others else nearest(value, lacking)
            if meant is not None:
                raise DataError(
                    f"{name} has {value!r} and lacks {meant!r}: if that is a misspelling, rename it; if it is missing "
                    "on purpose, compare with --partial (in Python partial=True)"
                )


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that ``name`` is probably a misspelling of; None if it looks like none.

    Numbers in both must be the same: ``layer.1.key`` is no misspelling of ``layer.0.key``.
    """
    best: dict[str, float] = {}
    for other in known:
        if re.findall(r"\d+", name) == re.findall(r"\d+", other) and name.startswith(PARAMETER) == other.startswith(
            PARAMETER
        ):
            alike = _alike(name, other)
            if alike > 0:
                best[other] = alike
    return max(best, key=lambda other: best[other], default=None)


def _alike(name: str, other: str) -> float:
    """How alike two names are, from 0, which is not enough, to 1."""
    (layer, part), (other_layer, other_part) = (split_name(x.removeprefix(GRADIENT)) for x in (name, other))
    if name.startswith(GRADIENT) == other.startswith(GRADIENT) and layer == other_layer and layer is not None:
        ratio = difflib.SequenceMatcher(None, part.lower(), other_part.lower()).ratio()
        return ratio if ratio >= ALIKE or other_part.startswith(part) or part.startswith(other_part) else 0.0
    ratio = difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
    return ratio if ratio >= ALIKE_WHOLE else 0.0
