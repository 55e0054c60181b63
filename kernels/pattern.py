"""Who attends to whom: the one statement of it, which every kernel, picture, trace and cost follows.

:class:`AttentionPattern` is what holds for every input: window, dilation, causality. :class:`Tokens` is what differs
from batch to batch: which tokens are padding, and which are global. Together they say for every pair of a row (a
query) and a column (a key) whether the row sees the column (Longformer, arXiv 2004.05150, §3.1, figure 2):

    row i of a head with gap d sees column j  if  j = i + c·d with -left <= c <= right   (the band)
                                              or  j is global                            (counted once),
    unless the pattern is causal and j > i, or one of the two is padding.

:meth:`AttentionPattern.pairs` says it as a dense mask, :meth:`AttentionPattern.mask_mod` as a function of four indices.
A fast kernel keeps an arithmetic of its own, built on :meth:`AttentionPattern.in_band` and
:meth:`AttentionPattern.beside_band`; the tests hold it to ``pairs``.

Letters: B batch, H heads, S sequence, D head dimension, G global tokens, W = left + 1 + right width of the band.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .global_tokens import GlobalTokens

if TYPE_CHECKING:
    from .masks import MaskPattern

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

COUNTED = 64  # global columns at a time
FARTHEST = 2**31  # longer than any sequence; a longer window or dilation is cut to it, so that products fit into int64


class Tokens(NamedTuple):
    """What is particular to a batch. Make one with :meth:`of`, which lets padding win over global.

    keep: (B, S) bool, False at padding; None if there is no padding.
    is_global: (B, S) bool, True at global tokens, none of which is padding; None if no token is global.
    global_index: (B, width) int64, positions of the global tokens in ascending order, -1 behind the last; None until
        somebody needs it, see :func:`global_index`.
    """

    keep: Tensor | None = None
    is_global: Tensor | None = None
    global_index: Tensor | None = None

    @classmethod
    def of(cls, keep: Tensor | None = None, is_global: Tensor | None = None) -> Tokens:
        """From two (B, S) bool masks, or None for either."""
        if keep is not None and is_global is not None:
            is_global = is_global & keep
        return cls(keep, is_global)

    def without_padding(self, x: Tensor) -> Tensor:
        """``x`` (B, H, S, D) with zeros at padding, so that nothing that stands there, NaN included, reaches a sum."""
        return x if self.keep is None else x.masked_fill(~self.keep[:, None, :, None], 0.0)

    def with_index(self, *, counted: bool) -> Tokens:
        """The same with ``global_index``, so that several layers share it; without global tokens if the data have none.

        Args:
            counted: whether the number of global tokens is read back from the data, see :func:`global_index`.
        """
        if self.is_global is None or self.global_index is not None:
            return self
        index = global_index(self.is_global, counted=counted)
        return self._replace(global_index=index, is_global=None if index is None else self.is_global)


class Cost(NamedTuple):
    """What attention over one sequence takes, summed over heads.

    pairs: of a row and a column that it sees.
    flops: of the two products of the forward pass, a multiplication and an addition each: 4·D a pair.
    bytes: of query, key, value and output, each moved once.
    """

    pairs: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class AttentionPattern:
    """Window, dilation and causality: who attends to whom in any batch. ``a | b`` is what either sees.

    Args:
        window: (left, right), tokens that a row sees on each side; None is every token. Of a causal pattern right is 0.
        dilation: gap between the tokens of the window: one for all heads, or one for each head. Without a window it
            is 1.
        causal: no row sees a later column, global columns included.
        global_tokens: tokens that are global beside those that a batch names; None is no others.

    Raises:
        ValueError: an argument is not of that form, or contradicts another one; the message shows it.
    """

    window: tuple[int, int] | None
    dilation: int | Sequence[int] = 1
    causal: bool = False
    global_tokens: GlobalTokens | None = None

    is_band: ClassVar[bool] = True  # of a MaskPattern it is False

    def __post_init__(self) -> None:
        window, dilation = self.window, self.dilation
        if window is not None:
            if not isinstance(window, (tuple, list)) or len(window) != 2 or not all(_is_count(w, 0) for w in window):
                raise ValueError(f"window is {shown(window)}; it must be (left, right), two ints >= 0, or None")
            object.__setattr__(self, "window", tuple(min(side, FARTHEST) for side in window))
        gaps = dilation if isinstance(dilation, Sequence) else (dilation,)
        if not gaps or not all(_is_count(gap, 1) for gap in gaps):
            raise ValueError(f"dilation is {shown(dilation)}; it must be an int >= 1, or one such int for each head")
        gaps = tuple(min(gap, FARTHEST) for gap in gaps)
        object.__setattr__(self, "dilation", gaps[0] if isinstance(dilation, int) else gaps)
        if not isinstance(self.causal, bool):
            raise ValueError(f"causal is {shown(self.causal)}; it must be True or False")
        if self.global_tokens is not None and not isinstance(self.global_tokens, GlobalTokens):
            raise ValueError(f"global_tokens is {shown(self.global_tokens)}; it must be GlobalTokens, or None")
        if self.causal and self.window is not None and self.window[1]:
            raise ValueError(
                f"window is {shown(window)} and causal is True, but a causal row sees no later column; give the window "
                f"({shown(self.window[0])}, 0), or leave causal out"
            )
        if self.window is None and set(gaps) != {1}:
            raise ValueError(f"dilation is {shown(dilation)} without a window; give a window, or leave dilation out")

    def looking_back(self) -> AttentionPattern:
        """The causal pattern that sees of this one what is not later."""
        window = None if self.window is None else (self.window[0], 0)
        return replace(self, window=window, causal=True)

    def __or__(self, other: AttentionPattern) -> MaskPattern:
        if not isinstance(other, AttentionPattern):
            return NotImplemented
        masks = importlib.import_module(".masks", __package__)  # which knows this file
        union: MaskPattern = masks.MaskPattern((self, other))
        return union

    def sides(self, seq_len: int) -> tuple[int, int]:
        """(left, right) of the band in a sequence of S tokens, as short as they can be said; right is 0 if causal."""
        left, right = (seq_len, 0 if self.causal else seq_len) if self.window is None else self.window
        return min(left, seq_len - 1), min(right, seq_len - 1)

    def gaps(self, heads: int) -> tuple[int, ...]:
        """The dilation of each head. Raises ValueError where the pattern has dilations for another number of heads."""
        if self.window is None:  # every token: there is nothing to dilate
            return (1,) * heads
        if isinstance(self.dilation, int):
            return (self.dilation,) * heads
        if len(self.dilation) != heads:
            raise ValueError(
                f"dilation is {self.dilation!r}; it must be an int >= 1, or one for each of the {heads} heads"
            )
        return tuple(self.dilation)

    def of_head(self, head: int, heads: int) -> AttentionPattern:
        """The pattern of one of H heads, for that head alone."""
        return replace(self, dilation=self.gaps(heads)[head])

    def head_runs(self, heads: int) -> list[tuple[slice, int]]:
        """Neighbouring heads of one dilation, as slices, each with its dilation."""
        gaps, runs, first = self.gaps(heads), [], 0
        for head in range(1, heads + 1):
            if head == heads or gaps[head] != gaps[first]:
                runs.append((slice(first, head), gaps[first]))
                first = head
        return runs

    def in_band(self, distance: Tensor, gap: int | Tensor) -> Tensor:
        """Whether a row sees, by its window, the column that stands ``distance`` behind it: bool of that shape.

        Args:
            distance: column minus row.
            gap: the head's dilation, or of several heads what broadcasts with ``distance``.
        """
        if self.window is None:
            return distance <= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        left, right = self.window
        inside = (distance >= -left * gap) & (distance <= right * gap)
        return inside if isinstance(gap, int) and gap == 1 else inside & (distance % gap == 0)

    def beside_band(self, distance: Tensor, gap: int | Tensor) -> Tensor:
        """Whether a global column counts for a row beside its band: it is not in it, and not later if causal."""
        outside = ~self.in_band(distance, gap)
        return outside & (distance <= 0) if self.causal else outside

    def pairs(
        self,
        seq_len: int,
        tokens: Tokens | None = None,
        *,
        heads: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Which column each row sees: (B or 1, H or 1, S, S) bool, True where row i sees column j.

        Args:
            seq_len: S.
            tokens: padding and global tokens; None is neither.
            heads: H; None is as many as the pattern has dilations.
            device: where to make it, if no tokens say so.
        """
        tokens = own_tokens(self.global_tokens, tokens, torch.empty(1, seq_len, device=device))
        masks = [mask for mask in tokens or () if mask is not None]
        device = masks[0].device if masks else device
        position = torch.arange(seq_len, device=device)
        row, column = position[:, None], position[None, :]
        gap = self._gap_of_heads(heads, device)[:, None, None]
        seen = self.in_band((column - row)[None], gap)[None]  # (1, H or 1, S, S)
        if tokens is not None and tokens.is_global is not None:
            seen = seen | tokens.is_global[:, None, None, :]
        if self.causal:
            seen = seen & (column <= row)
        if tokens is not None and tokens.keep is not None:
            seen = seen & tokens.keep[:, None, None, :] & tokens.keep[:, None, :, None]
        return seen

    def mask_mod(
        self, tokens: Tokens | None = None, *, heads: int | None = None, device: torch.device | None = None
    ) -> MaskMod:
        """The same as a function of (example, head, row, column), as ``torch.nn.attention.flex_attention`` wants it."""
        keep, is_global, _ = tokens or Tokens()
        gaps = self._gap_of_heads(heads, next((m.device for m in (keep, is_global) if m is not None), device))
        alike = 1 if self.window is None else self.dilation if isinstance(self.dilation, int) else None

        def sees(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
            seen = self.in_band(column - row, gaps[h] if alike is None else alike)
            if is_global is not None:
                seen = seen | is_global[b, column]
            if self.causal:
                seen = seen & (column <= row)
            return seen if keep is None else seen & keep[b, column] & keep[b, row]

        return sees

    def cost(
        self,
        seq_len: int,
        global_tokens: int | Sequence[int] = 0,
        head_dim: int = 64,
        *,
        heads: int | None = None,
        itemsize: int = 4,
    ) -> Cost:
        """What attention over one sequence takes by this pattern, exactly, without making a mask.

        Args:
            seq_len: S.
            global_tokens: positions of the global tokens; a number G is the first G, as a question's are. The pattern's
                own join them.
            head_dim: D.
            heads: H; None is as many as the pattern has dilations.
            itemsize: bytes a number.

        Raises:
            ValueError: a global token is no position of the sequence; or the pattern chooses them by ids.
        """
        columns = global_columns(self.global_tokens, seq_len, global_tokens)
        gaps = self._gap_of_heads(heads, None)[:, None]  # (H, 1)
        row = torch.arange(seq_len)
        left, right = self.sides(seq_len)
        before, behind = (row // gaps).clamp(max=left), ((seq_len - 1 - row) // gaps).clamp(max=right)
        total = int((before + 1 + behind).sum())
        for some in columns.split(COUNTED):
            total += int(self.beside_band(some - row[:, None], gaps[..., None]).sum())
        total *= 1 if heads is None or len(gaps) == heads else heads
        count = len(gaps) if heads is None else heads
        return Cost(total, 4 * head_dim * total, 4 * seq_len * head_dim * count * itemsize)

    def as_entry(self) -> dict[str, Any]:
        """The pattern as a config keeps it, see :mod:`longformer.pattern_entries`."""
        entry: dict[str, Any] = {"window": "full" if self.window is None else self.window, "causal": self.causal}
        if self.dilation != 1:
            entry["dilation"] = self.dilation
        if self.global_tokens is not None:
            entry["global_tokens"] = self.global_tokens.as_entry()
            if names := self.global_tokens.predicate_names():
                entry["function"] = names
        return entry

    def _gap_of_heads(self, heads: int | None, device: torch.device | str | None) -> Tensor:
        """(H,) dilations, or (1,) where all heads have the same."""
        if self.window is None:
            return torch.ones(1, dtype=torch.int64, device=device)
        if heads is not None:
            self.gaps(heads)  # which says where they are of another number
        each = (self.dilation,) if isinstance(self.dilation, int) else self.dilation
        return torch.tensor(each, device=device)


def own_tokens(own: GlobalTokens | None, tokens: Tokens | None, like: Tensor) -> Tokens | None:
    """``tokens``, with the global tokens of a pattern's own. Raises ValueError where their ids decide.

    Args:
        own: of the pattern.
        tokens: of the batch.
        like: (B, S), for shape and device, if the tokens have no mask that says them.
    """
    if own is None:
        return tokens
    keep, is_global, _ = tokens or Tokens()
    named = own.mask(next((mask for mask in (keep, is_global) if mask is not None), like))
    return Tokens.of(keep, named if is_global is None or own.only_these else named | is_global)


def global_columns(own: GlobalTokens | None, seq_len: int, named: int | Sequence[int]) -> Tensor:
    """(G,) positions of the global tokens of one sequence: a pattern's own, and the first so many, or those named."""
    positions = list(range(named)) if isinstance(named, int) else list(named)
    if (isinstance(named, int) and named < 0) or any(not 0 <= position < seq_len for position in positions):
        raise ValueError(f"global_tokens is {shown(named)}; it must be 0 to seq_len, which is {seq_len}, or positions")
    is_global = torch.zeros(1, seq_len, dtype=torch.bool)
    is_global[0, positions] = True
    tokens = own_tokens(own, Tokens(None, is_global), is_global)
    assert tokens is not None and tokens.is_global is not None
    return tokens.is_global[0].nonzero().squeeze(1)


def global_index(is_global: Tensor, *, counted: bool) -> Tensor | None:
    """Positions of the global tokens in ascending order, -1 behind the last: (B, width) int64 from (B, S) bool.

    Args:
        counted: the width is the most global tokens that an example has, which is read back from the data, and the
            result None where there is no global token. In a graph it is a size that the graph's data decide, and may be
            0. Otherwise the width is S, and the data are asked nothing.
    """
    batch, seq_len = is_global.shape
    in_graph = torch.compiler.is_compiling()
    width = int(is_global.sum(1).max()) if counted and not in_graph else seq_len
    if not width:
        return None
    place = torch.where(is_global, is_global.cumsum(1) - 1, width)
    positions = torch.arange(seq_len, device=is_global.device).expand(batch, seq_len)
    index = torch.full((batch, width + 1), -1, device=is_global.device, dtype=torch.int64)
    index = index.scatter(1, place, positions)[:, :width]
    return index[:, (index >= 0).any(0).nonzero().squeeze(1)] if counted and in_graph else index


def shown(value: object) -> str:
    """A value in a message. Python writes no integer of thousands of digits, and a tensor may be large."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except ValueError:
        return f"a value ({type(value).__name__}) with an integer of thousands of digits"
    return text if len(text) <= 200 else f"{text[:150]} ... {text[-40:]}"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


EVERYTHING = AttentionPattern(None)
"""Every row sees every column, as the rows of global tokens do."""
