"""Progress bars on standard error, where that is a terminal and the work takes longer than ``DELAY``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY = 2.0  # seconds


def bar(items: Iterable[Any] | None, what: str, unit: str, *, shown: bool, total: int | None = None) -> Any:
    """tqdm's bar over ``items``, or of ``total`` steps that its ``update`` counts.

    Args:
        what: is being done, in words.
        unit: of what is counted.
        shown: False shows no bar anywhere.
    """
    # disable=None: tqdm itself asks whether standard error is a terminal.
    return tqdm(items, what, total, unit=f" {unit}", delay=DELAY, leave=False, disable=None if shown else True)
