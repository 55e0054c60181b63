"""Arguments that several pictures take, checked: the message names the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from longformer.errors import LongformerError

LONGEST = 4096  # rows of an S × S picture

Window = tuple[int, int]


def check_window(window: object) -> None:
    if not isinstance(window, (tuple, list)) or len(window) != 2 or not all(is_count(side, 0) for side in window):
        raise LongformerError(f"window is {window!r}; it must be (left, right), two ints >= 0")


def check_dilation(dilation: int | Sequence[int]) -> tuple[int, ...]:
    gaps = tuple(dilation) if isinstance(dilation, Sequence) else (dilation,)
    if not gaps or not all(is_count(gap, 1) for gap in gaps):
        raise LongformerError(f"dilation is {dilation!r}; it must be an int >= 1, or one for each head")
    return gaps


def is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
