"""Global tokens that belong to a pattern, beside those that a batch names.

Letters: B batch, S sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Predicate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GlobalTokens:
    """Which tokens a pattern makes global. ``a | b`` makes global what either does.

    Args:
        positions: counted from the first token of a row; what is beyond a row's end does not exist.
        token_ids: every token that has one of these ids.
        every: every n-th token, from the first, for each n here.
        predicates: functions of the ids, (B, S) int64 to (B, S) bool.
        only_these: the tokens that a batch names are not global too. ``GlobalTokens(only_these=True)`` is none at all.

    Raises:
        ValueError: a number is out of range; the message shows it.
    """

    positions: tuple[int, ...] | int = ()
    token_ids: tuple[int, ...] | int = ()
    every: tuple[int, ...] | int = ()
    predicates: tuple[Predicate, ...] | Predicate = ()
    only_these: bool = False

    def __post_init__(self) -> None:
        for name, least in (("positions", 0), ("token_ids", 0), ("every", 1)):
            given = getattr(self, name)
            numbers = tuple(given) if isinstance(given, (tuple, list, range, set)) else (given,)
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in numbers):
                raise ValueError(f"{name} of global tokens is {given!r}; it must be an int >= {least}, or several")
            object.__setattr__(self, name, numbers)
        given = self.predicates
        predicates = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        if not all(callable(predicate) for predicate in predicates):
            raise ValueError(f"predicates of global tokens is {given!r}; it must be a function of ids, or several")
        object.__setattr__(self, "predicates", predicates)

    def __or__(self, other: GlobalTokens) -> GlobalTokens:
        if not isinstance(other, GlobalTokens):
            return NotImplemented
        joined = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)[:-1]}
        return GlobalTokens(**joined, only_these=self.only_these or other.only_these)

    @property
    def asks_ids(self) -> bool:
        """Whether the tokens' ids decide, and not their positions alone."""
        return bool(self.token_ids or self.predicates)

    def mask(self, like: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """(B, S) bool, True at the tokens that are global by this.

        Args:
            like: (B, S), for shape and device.
            input_ids: (B, S) int64; None if nobody knows them.

        Raises:
            ValueError: the ids decide and are not given; or a predicate's result is no bool tensor (B, S).
        """
        position = torch.arange(like.shape[1], device=like.device)
        named = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
        for n in _numbers(self.positions):
            named = named | (position == n)
        for n in _numbers(self.every):
            named = named | (position % n == 0)
        if not self.asks_ids:
            return named
        if input_ids is None:
            raise ValueError("the pattern's global tokens are chosen by ids, and no ids are given; give input_ids")
        for n in _numbers(self.token_ids):
            named = named | (input_ids == n)
        assert isinstance(self.predicates, tuple)
        for predicate in self.predicates:
            found, name = predicate(input_ids), getattr(predicate, "__name__", "")
            if not isinstance(found, Tensor) or found.shape != like.shape or found.dtype != torch.bool:
                what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
                raise ValueError(
                    f"the predicate {name} of global tokens returned {what}; it must return bool of the ids' shape, "
                    f"{tuple(like.shape)}"
                )
            named = named | found
        return named

    def as_entry(self) -> dict[str, object]:
        """The choice as a config keeps it: without its predicates, of which the pattern's entry says the names."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "predicates"}

    def predicate_names(self) -> str:
        """The names of the predicates; "" where there is none."""
        assert isinstance(self.predicates, tuple)
        return " and ".join(getattr(predicate, "__name__", "predicate") for predicate in self.predicates)


def _numbers(given: tuple[int, ...] | int) -> tuple[int, ...]:
    assert isinstance(given, tuple)  # since it was made
    return given
