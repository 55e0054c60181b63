"""Patterns that are no window: unions of windows, and any mask and any score that a function states.

A function is one of FlexAttention's: ``mask_mod(example, head, row, column)`` says whether the row sees the column, and
``score_mod(score, example, head, row, column)`` gives the score that takes the place of ``score``. It is written for
one pair, of which each argument is a tensor without dimensions. So it may index tables, and may not use Python's
``if``, ``and`` and ``not``, but ``torch.where``, ``&`` and ``~``. Tables must be on the device of the tensors.

Two implementations compute such patterns: ``flex`` and ``reference``.

Letters: B batch, H heads, S sequence, R rows, D head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import compat
from .global_tokens import GlobalTokens
from .pattern import EVERYTHING, AttentionPattern, Cost, MaskMod, Tokens, global_columns, own_tokens

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
ROWS = 128  # of a mask that is only counted, at a time


@dataclass(frozen=True)
class MaskPattern:
    """A row sees what any of the parts says that it sees, and the global columns. A score may be changed by a function.

    Args:
        parts: windows, or functions of FlexAttention's form ``mask_mod``, of this pattern.
        score: a function of FlexAttention's form ``score_mod``, for the scaled scores of local and global columns. The
            rows of global tokens, which have projections of their own, are not changed.
        causal: no row sees a later column, global columns included. A union of causal windows is causal.
        global_tokens: as for :class:`AttentionPattern`; those of the parts join them.

    Raises:
        ValueError: a part or the score is none of these; the message shows it.
    """

    parts: tuple[AttentionPattern | MaskMod, ...] = (EVERYTHING,)
    score: ScoreMod | None = None
    causal: bool = False
    global_tokens: GlobalTokens | None = None

    is_band: ClassVar[bool] = False
    window: ClassVar[None] = None  # its diagonals are those of a window that holds everything
    dilation: ClassVar[int] = 1

    def __post_init__(self) -> None:
        parts: list[Any] = []
        named = self.global_tokens
        given: Any = self.parts
        for part in given if isinstance(given, (tuple, list)) else (given,):
            if isinstance(part, MaskPattern) and part.score is not None:
                raise ValueError("a part of a union has a score of its own; give the union one score")
            own = getattr(part, "global_tokens", None)
            named = own if named is None else named if own is None else named | own
            if isinstance(part, MaskPattern):
                parts += part._cut_parts()
            elif isinstance(part, AttentionPattern):
                parts.append(replace(part, global_tokens=None))
            else:
                check_function(part, 4)
                parts.append(part)
        if not parts:
            raise ValueError("parts is empty; a pattern needs a window or a function")
        if self.score is not None:
            check_function(self.score, 5)
        if not isinstance(self.causal, bool):
            raise ValueError(f"causal is {self.causal!r}; it must be True or False")
        causal = self.causal or all(isinstance(part, AttentionPattern) and part.causal for part in parts)
        for name, value in (("parts", tuple(parts)), ("causal", causal), ("global_tokens", named)):
            object.__setattr__(self, name, value)

    def _cut_parts(self) -> tuple[AttentionPattern | MaskMod, ...]:
        """The parts as they stand in another union, which may not be causal."""
        if not self.causal:
            return self.parts
        return tuple(
            part.looking_back() if isinstance(part, AttentionPattern) else _never_later(part) for part in self.parts
        )

    def __or__(self, other: AttentionPattern | MaskPattern) -> MaskPattern:
        if not isinstance(other, (AttentionPattern, MaskPattern)):
            return NotImplemented
        return MaskPattern((self, other))  # type: ignore[arg-type]

    __ror__ = __or__

    @property
    def name(self) -> str:
        """Of its functions, for messages; "union" where there is none."""
        return " and ".join(name_of(function) for function in self._functions()) or "union"

    def _functions(self) -> list[Any]:
        masks: list[Any] = [part for part in self.parts if not isinstance(part, AttentionPattern)]
        return masks if self.score is None else [*masks, self.score]

    def gaps(self, heads: int) -> tuple[int, ...]:
        """1 for each head. Raises ValueError where a part has dilations for another number of heads."""
        for part in self.parts:
            if isinstance(part, AttentionPattern):
                part.gaps(heads)
        return (1,) * heads

    def of_head(self, head: int, heads: int) -> MaskPattern:
        """The pattern of one of H heads, for that head alone, whose functions are still asked by its number."""
        parts: list[Any] = [
            part.of_head(head, heads)
            if isinstance(part, AttentionPattern)
            else lambda b, h, row, column, part=part: part(b, h + head, row, column)
            for part in self.parts
        ]
        score = self.score
        if score is not None:
            return replace(self, parts=tuple(parts), score=lambda s, b, h, i, j: score(s, b, h + head, i, j))
        return replace(self, parts=tuple(parts))

    def in_band(self, distance: Tensor, gap: int | Tensor) -> Tensor:
        """As of a window that holds everything: its diagonals have a place for every column."""
        return torch.ones_like(distance, dtype=torch.bool)

    def mask_mod(
        self, tokens: Tokens | None = None, *, heads: int | None = None, device: torch.device | None = None
    ) -> MaskMod:
        """The pattern as one function of (example, head, row, column), each of them a tensor without dimensions."""
        keep, is_global, _ = tokens or Tokens()
        heads = self._heads() if heads is None else heads
        mods = [
            part.mask_mod(heads=heads, device=device) if isinstance(part, AttentionPattern) else part
            for part in self.parts
        ]
        first, others = mods[0], mods[1:]

        def sees(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            seen = first(b, h, row, column)
            for mod in others:
                seen = seen | mod(b, h, row, column)
            if is_global is not None:
                seen = seen | is_global[b, column]
            if self.causal:
                seen = seen & (column <= row)
            return seen if keep is None else seen & keep[b, column] & keep[b, row]

        return sees

    def pairs(
        self,
        seq_len: int,
        tokens: Tokens | None = None,
        *,
        heads: int | None = None,
        device: torch.device | str | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Which column each row sees: (B, H, S, S) bool, as :meth:`AttentionPattern.pairs`.

        Args:
            seq_len, tokens, heads, device: as there.
            batch: B, where no tokens say it; None is 1.
        """
        tokens = own_tokens(self.global_tokens, tokens, torch.empty(1, seq_len, device=device))
        masks = [mask for mask in tokens or () if mask is not None]
        device = torch.device(masks[0].device if masks else "cpu" if device is None else device)
        heads = self._heads() if heads is None else heads
        count = len(masks[0]) if masks else 1 if batch is None else batch
        b, h, row = (torch.arange(n, device=device) for n in (count, heads, seq_len))
        mask = of_pairs(self.mask_mod(tokens, heads=heads, device=device), self.name)
        return mask(b[:, None, None, None], h[:, None, None], row[:, None], row)

    def changed_scores(self, scores: Tensor, *, first_row: int = 0, first_column: int = 0) -> Tensor:
        """``scores`` (B, H, R, S), which are scaled, after the score's function.

        ``first_row``, ``first_column``: places in the sequence of the first of the rows and of the columns.
        """
        if self.score is None:
            return scores
        b, h, row, column = (torch.arange(n, device=scores.device) for n in scores.shape)
        changed = _mapped(self.score, 5, self.name)(scores, b, h, row + first_row, column + first_column)
        return changed.to(scores.dtype)

    def cost(
        self,
        seq_len: int,
        global_tokens: int | Sequence[int] = 0,
        head_dim: int = 64,
        *,
        heads: int | None = None,
        itemsize: int = 4,
    ) -> Cost:
        """What attention over one sequence takes by this pattern; arguments as for :meth:`AttentionPattern.cost`.

        Pairs are counted one by one, O(S²) time. What a score's function costs is not counted.
        """
        is_global = torch.zeros(1, seq_len, dtype=torch.bool)
        is_global[0, global_columns(self.global_tokens, seq_len, global_tokens)] = True
        tokens = Tokens(None, is_global)
        heads = self._heads() if heads is None else heads
        mask = of_pairs(self.mask_mod(tokens, heads=heads), self.name)
        b, h, column = torch.zeros(1, dtype=torch.int64), torch.arange(heads), torch.arange(seq_len)
        at = (b[:, None, None, None], h[:, None, None])
        total = sum(int(mask(*at, row[:, None], column).sum()) for row in column.split(ROWS))
        return Cost(total, 4 * head_dim * total, 4 * seq_len * head_dim * heads * itemsize)

    def _heads(self) -> int:
        """How many heads the windows' dilations are for; 1 if all have one."""
        given = [part.dilation for part in self.parts if isinstance(part, AttentionPattern)]
        return max((len(gaps) for gaps in given if not isinstance(gaps, int)), default=1)

    def as_entry(self) -> dict[str, Any]:
        """The pattern as a config keeps it: of a function only the name."""
        windows = [part.as_entry() for part in self.parts if isinstance(part, AttentionPattern)]
        entry: dict[str, Any] = {"union": windows}
        if len(windows) < len(self.parts):  # what a mask sees, no config can say
            entry = {}
        elif len(windows) == 1:
            (entry,) = windows
        names = [name_of(function) for function in self._functions()]
        if self.global_tokens is not None:
            entry["global_tokens"] = self.global_tokens.as_entry()
            names += filter(None, [self.global_tokens.predicate_names()])
        return {**entry, "function": " and ".join(names)} if names else entry


Pattern = AttentionPattern | MaskPattern


def of_pairs(mod: MaskMod, name: str) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """A function of one pair as a function of many: of (B, 1, 1, 1), (H, 1, 1), (R, 1), (S,) indices to (B, H, R, S).

    ``name`` is for messages.

    Raises (when it is called):
        ValueError: ``mod`` cannot be asked so, or its result is no bool.
    """
    mapped = _mapped(mod, 4, name)

    def mask(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        seen = mapped(b.flatten(), h.flatten(), row.flatten(), column)
        if seen.dtype != torch.bool:
            raise ValueError(f"the mask {name} returns {seen.dtype}; it must return bool for each pair")
        return seen

    return mask


def _mapped(mod: Any, count: int, name: str) -> Callable[..., Tensor]:
    """``mod`` over all examples, heads, rows and columns. ``count``: its arguments; the first of 5 is a score."""
    mapped = mod
    for n in reversed(range(4)):
        dims = tuple(0 if place == n else None for place in range(4))
        mapped = torch.vmap(mapped, in_dims=dims if count == 4 else (0, *dims))

    def over_all(*arguments: Tensor) -> Tensor:
        try:
            with compat.indexing_under_vmap():
                result: Tensor = mapped(*arguments)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            first = " ".join(str(error).split())
            raise ValueError(
                f"the function {name} cannot be asked about a pair ({first[:200]}); it is given tensors of no "
                "dimension, and returns such a tensor: use &, |, ~ and torch.where in place of and, or, not and if"
            ) from error
        shape = tuple(len(x) for x in arguments[-4:])
        if result.shape != shape:
            raise ValueError(
                f"the function {name} returns a tensor of shape {tuple(result.shape[4:])} for a pair; it must "
                "return one of no dimension"
            )
        return result

    return over_all


def check_function(function: object, count: int) -> None:
    """Raise ValueError where ``function`` is no function of ``count`` arguments."""
    kind = "mask_mod(example, head, row, column)" if count == 4 else "score_mod(score, example, head, row, column)"
    if not callable(function) or arguments_of(function) not in (count, None):
        raise ValueError(f"{function!r} is no function of FlexAttention's form {kind}")


def arguments_of(function: Any) -> int | None:
    """How many arguments a function must be given by position; None if that cannot be known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters)


def _never_later(mod: MaskMod) -> MaskMod:
    return lambda b, h, row, column: mod(b, h, row, column) & (column <= row)


def name_of(function: object) -> str:
    """Of a function, for messages."""
    return getattr(function, "__name__", type(function).__name__)
