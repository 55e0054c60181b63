"""Patterns of attention, and how far stacked layers see.

Every function takes an :class:`longformer.kernels.AttentionPattern` or a ``MaskPattern``, or the window of a pattern
beside ``dilation`` and ``causal``. A pattern's own global tokens are drawn too. Letters: H heads, S sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import AttentionPattern, MaskPattern
from longformer.kernels.pattern import EVERYTHING, global_columns
from longformer.plotting.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Window = tuple[int, int]
Pattern = AttentionPattern | MaskPattern | Window
Patterns = LongformerConfig | Pattern | Sequence[Pattern]
Run = tuple[Any, range]  # a value, and the neighbours that have it

COLOURS = ("#ffffff", "#7aa6c2", "#d9822b")  # unseen, local, global
UNSEEN, LOCAL, GLOBAL = 0, 1, 2
GRIDDED = 64  # rows up to which lines divide the cells
LONGEST = 4096  # rows of an S × S picture


def attention_kinds(
    seq_len: int,
    pattern: Pattern,
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
) -> Tensor:
    """Which column each row attends to, and why: (H, S, S) int64 of UNSEEN, LOCAL and GLOBAL.

    A pair is GLOBAL if its row or its column is a global token, whether or not it lies in the window too (paper §3.1,
    figure 2d). H is the number of dilations given.

    Args:
        seq_len: S.
        pattern: an AttentionPattern or a MaskPattern, or the window (left, right) of one.
        dilation, causal: of the pattern, if only its window is given, as for
            :func:`longformer.kernels.sliding_window_attention`; a dilation of None is 1.
        global_tokens: positions that see every token and that every token sees; if causal, nothing that is later. The
            pattern's own join them.

    Raises:
        LongformerError: an argument out of range.
    """
    if not is_count(seq_len, 1) or seq_len > LONGEST:
        raise LongformerError(f"seq_len is {seq_len!r}; a picture of all pairs takes an int from 1 to {LONGEST}")
    pattern = as_pattern(pattern, dilation, causal)
    is_global = _global_mask(seq_len, global_tokens, pattern)
    kinds = replace(pattern, global_tokens=None).pairs(seq_len)[0].long()
    # The rows of a global token see all that its column is seen by, turned around.
    everything = replace(EVERYTHING, causal=pattern.causal).pairs(seq_len)[0]
    kinds[(everything & (is_global[:, None] | is_global)).expand_as(kinds)] = GLOBAL
    return kinds


def draw_pattern(
    axes: Axes,
    seq_len: int,
    pattern: Pattern,
    *,
    dilation: int | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
    head: int = 0,
    title: str = "",
) -> AxesImage:
    """Draw which column (key) each row (query) attends to, as figure 2 of the paper does.

    Args:
        axes: matplotlib axes to draw into.
        seq_len, pattern, dilation, causal, global_tokens: as for :func:`attention_kinds`.
        head: which head, of a pattern whose heads differ.
        title: written above.

    Raises:
        LongformerError: an argument out of range.
    """
    from matplotlib.colors import ListedColormap

    pattern = as_pattern(pattern, dilation, causal)
    every = attention_kinds(seq_len, pattern, global_tokens=global_tokens)
    kinds = every[min(head, len(every) - 1)]
    image = axes.imshow(kinds.numpy(), cmap=ListedColormap(COLOURS), vmin=UNSEEN, vmax=GLOBAL, interpolation="nearest")
    if seq_len <= GRIDDED:
        axes.set_xticks([i - 0.5 for i in range(seq_len + 1)], labels=[])
        axes.set_yticks([i - 0.5 for i in range(seq_len + 1)], labels=[])
        axes.tick_params(length=0)
        axes.grid(color="#dddddd", linewidth=0.4)
    if isinstance(pattern, MaskPattern) and pattern.score is not None:
        heads = torch.zeros(1, head + 1, seq_len, seq_len)
        change = pattern.changed_scores(heads)[0, head].detach().masked_fill(kinds == UNSEEN, math.nan)
        most = max(float(change.nan_to_num().abs().max()), 1e-9)
        axes.imshow(change.numpy(), cmap="coolwarm", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    return image


def draw_patterns(
    figure: Figure,
    seq_len: int,
    patterns: Patterns,
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
) -> list[list[Axes]]:
    """Draw a model's patterns: a row of pictures for layers, a column for heads; one row only if all heads are alike.

    Neighbouring layers of one pattern share a picture, and so do neighbouring heads of one dilation.

    Args:
        figure: matplotlib figure to draw into.
        seq_len: S.
        patterns: a model's config; or the patterns of its layers, from the first to the last, or one pattern for all.
            Each is an AttentionPattern, or the window (left, right) of one.
        dilation: for windows or a config: one for all heads, or one for each head, in every layer. None is the
            config's own, and 1 for windows.
        causal: for windows, as for :func:`attention_kinds`; of a config's layers what is not later is drawn.
        global_tokens: as for :func:`attention_kinds`.

    Returns:
        The axes, by layers and heads.

    Raises:
        LongformerError: an argument out of range.
    """
    layers, heads = _pictured(_layers(patterns, dilation, causal))
    grid = figure.subplots(*_grid(layers, heads), squeeze=False)
    panels = grid.T if len(heads) == 1 else grid
    for row, (pattern, which_layers) in zip(panels, layers, strict=True):
        for axes, (_, which_heads) in zip(row, heads, strict=True):
            head = which_heads[0]
            gap = 1 if isinstance(pattern, MaskPattern) else _gaps(pattern)[head]
            names = ["" if len(layers) == 1 else _numbered("layer", which_layers), _window_name(pattern)]
            if len(heads) > 1 or gap > 1:
                names += [_numbered("head", which_heads) if len(heads) > 1 else ""]
                names += [f"dilated by {gap}"] if isinstance(pattern, AttentionPattern) else []
            title = ", ".join(filter(None, names))
            draw_pattern(axes, seq_len, pattern, global_tokens=global_tokens, head=head, title=title)
    for axes in grid[:, 0]:
        axes.set_ylabel("query")
    for axes in grid[-1]:
        axes.set_xlabel("key")
    return [list(row) for row in panels]


def grid_size(patterns: Patterns) -> tuple[int, int]:
    """How many pictures :func:`draw_patterns` puts below each other, and side by side."""
    return _grid(*_pictured(_layers(patterns, None, False)))


def receptive_field(
    seq_len: int,
    patterns: Patterns,
    token: int,
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
) -> Tensor:
    """Which tokens of each layer can change what ``token`` becomes in the last one: (layers + 1, S) bool.

    Row 0 is the embeddings, row n + 1 what layer n gives. Of the last layer there is only ``token`` itself. A layer
    joins what any of its heads sees (paper §3.1, "Sliding Window").

    Args:
        seq_len, global_tokens: as for :func:`attention_kinds`.
        patterns, dilation, causal: as for :func:`draw_patterns`.
        token: 0 <= token < S.

    Raises:
        LongformerError: an argument out of range.
    """
    if not is_count(token, 0) or token >= seq_len:
        raise LongformerError(f"token is {token!r}; it must be a position from 0 to {seq_len - 1}")
    reached = torch.zeros(seq_len, dtype=torch.bool)
    reached[token] = True
    rows = [reached]
    for pattern, layers in reversed(_runs(_layers(patterns, dilation, causal))):
        if isinstance(pattern, AttentionPattern):  # heads of one dilation see the same
            pattern = replace(pattern, dilation=tuple(dict.fromkeys(_gaps(pattern))))
        seen = (attention_kinds(seq_len, pattern, global_tokens=global_tokens) != UNSEEN).any(dim=0)
        for _ in layers:
            rows.append(rows[-1] | seen[rows[-1]].any(dim=0))  # the residual connection keeps a token's own place
    return torch.stack(rows[::-1])


def draw_receptive_field(
    axes: Axes,
    seq_len: int,
    patterns: Patterns,
    token: int,
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
    title: str = "",
) -> AxesImage:
    """Draw :func:`receptive_field`, which takes the same arguments, with the embeddings at the bottom."""
    from matplotlib.colors import ListedColormap

    reached = receptive_field(seq_len, patterns, token, dilation=dilation, causal=causal, global_tokens=global_tokens)
    colours = ListedColormap(COLOURS[:2])
    shown = reached.numpy()
    image = axes.imshow(shown, cmap=colours, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    names = ["embeddings", *(f"layer {n}" for n in range(len(reached) - 1))]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("token")
    axes.set_title(title, fontsize=10)
    return image


def save_patterns(path: str | Path) -> None:
    """Draw full, sliding-window, dilated, and sliding-window with global attention side by side into ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.3), layout="constrained")
    panels = figure.subplots(1, 4)
    draw_pattern(panels[0], 24, EVERYTHING, title="full: S² pairs")
    draw_pattern(panels[1], 24, (3, 3), title="sliding window (3, 3)")
    draw_pattern(panels[2], 24, (3, 3), dilation=2, title="dilated by 2")
    draw_pattern(panels[3], 24, (3, 3), global_tokens=(0, 1, 2), title="window and 3 global tokens")
    panels[0].set_ylabel("query")
    for axes in panels:
        axes.set_xlabel("key")
    write_figure(path, figure, dpi=110)


def as_pattern(
    pattern: Pattern, dilation: int | Sequence[int] | None = None, causal: bool = False
) -> AttentionPattern | MaskPattern:
    """The pattern that is given, or that of a window, dilation and causality. Raises LongformerError for neither."""
    if isinstance(pattern, (AttentionPattern, MaskPattern)):
        if dilation is not None or causal:
            given = f"dilation={dilation!r}" if dilation is not None else "causal=True"
            raise LongformerError(f"{given} is given beside {pattern}, which says it itself: leave it out")
        return pattern
    if pattern is None:
        raise LongformerError("window is None; it must be (left, right), or pass AttentionPattern(None) for everything")
    try:
        gaps = 1 if dilation is None else dilation if isinstance(dilation, int) else tuple(dilation)
        return AttentionPattern(pattern, gaps, causal)
    except ValueError as error:
        raise LongformerError(str(error)) from None


def is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _layers(
    patterns: Patterns, dilation: int | Sequence[int] | None, causal: bool
) -> list[AttentionPattern | MaskPattern]:
    """The pattern of each layer, all with as many dilations as the model has heads, or as are known of them."""
    if isinstance(patterns, LongformerConfig):
        each = [patterns.pattern(layer) for layer in range(patterns.num_hidden_layers)]
        if dilation is not None or causal:
            each = [_changed(pattern, dilation, causal) for pattern in each]
    else:
        is_one = isinstance(patterns, (AttentionPattern, MaskPattern))
        layers: list[Any] = [patterns] if is_one else list(patterns)  # type: ignore[arg-type]
        if len(layers) == 2 and is_count(layers[0], 0):
            layers = [tuple(layers)]  # one window
        if not layers:
            raise LongformerError("there are no windows; give (left, right), or a pattern, of at least one layer")
        each = [as_pattern(layer, dilation, causal) for layer in layers]
    heads = max(len(_heads(pattern)) for pattern in each)
    try:
        return [_with_heads(pattern, heads) for pattern in each]
    except ValueError as error:
        raise LongformerError(f"the layers' patterns are not of one number of heads: {error}") from None


def _gaps(pattern: AttentionPattern) -> tuple[int, ...]:
    """The dilations that a pattern names."""
    return (pattern.dilation,) if isinstance(pattern.dilation, int) else tuple(pattern.dilation)


def _changed(
    pattern: AttentionPattern | MaskPattern, dilation: int | Sequence[int] | None, causal: bool
) -> AttentionPattern:
    """A pattern of a config with another dilation, if there is one, and looking back only if ``causal``."""
    if isinstance(pattern, MaskPattern):
        raise LongformerError(f"the pattern {pattern.name} has no dilation and causality of its own: leave them out")
    pattern = pattern.looking_back() if causal else pattern
    try:
        return pattern if dilation is None else replace(pattern, dilation=dilation)
    except ValueError as error:
        raise LongformerError(str(error)) from None


def _with_heads(pattern: AttentionPattern | MaskPattern, heads: int) -> AttentionPattern | MaskPattern:
    """The same with a dilation for each head."""
    if isinstance(pattern, AttentionPattern):
        return replace(pattern, dilation=pattern.gaps(heads))
    parts = (replace(p, dilation=p.gaps(heads)) if isinstance(p, AttentionPattern) else p for p in pattern.parts)
    return replace(pattern, parts=tuple(parts))


def _heads(pattern: AttentionPattern | MaskPattern) -> tuple[Any, ...]:
    """What makes heads differ, for each of them: their dilations."""
    if isinstance(pattern, AttentionPattern):
        return _gaps(pattern)
    parts = [_gaps(part) for part in pattern.parts if isinstance(part, AttentionPattern)]
    heads = max(map(len, parts), default=1)
    return tuple(tuple(gaps[min(head, len(gaps) - 1)] for gaps in parts) for head in range(heads))


def _window_name(pattern: AttentionPattern | MaskPattern) -> str:
    if isinstance(pattern, MaskPattern):
        return pattern.name
    return "every token" if pattern.window is None else f"window {pattern.window}"


def _runs(values: Sequence[Any]) -> list[Run]:
    """Neighbours that are equal: the value, and which places have it."""
    found, start = [], 0
    for value, run in groupby(values):
        stop = start + len(list(run))
        found.append((value, range(start, stop)))
        start = stop
    return found


def _pictured(layers: Sequence[AttentionPattern | MaskPattern]) -> tuple[list[Run], list[Run]]:
    """Layers and heads that share a picture."""
    return _runs(layers), _runs(list(zip(*map(_heads, layers), strict=True)))


def _grid(layers: list[Run], heads: list[Run]) -> tuple[int, int]:
    return (1, len(layers)) if len(heads) == 1 else (len(layers), len(heads))


def _numbered(what: str, which: range) -> str:
    """Counted from 0, as in the names of values and in the tables of experiments."""
    return f"{what} {which[0]}" if len(which) == 1 else f"{what}s {which[0]} to {which[-1]}"


def _global_mask(seq_len: int, tokens: Sequence[int], pattern: AttentionPattern | MaskPattern) -> Tensor:
    for token in tokens:
        if not is_count(token, 0) or token >= seq_len:
            raise LongformerError(f"global_tokens has {token!r}; each must be a position from 0 to {seq_len - 1}")
    mask = torch.zeros(seq_len, dtype=torch.bool)
    try:
        mask[global_columns(pattern.global_tokens, seq_len, tokens)] = True
    except ValueError as error:
        raise LongformerError(f"{error}; in a picture, give positions as global_tokens") from None
    return mask
