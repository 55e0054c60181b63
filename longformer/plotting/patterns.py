"""Patterns of attention, and how far stacked layers see.

Letters: H heads, S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import LongformerError
from longformer.kernels import attention_pairs
from longformer.plotting.checks import LONGEST, Window, check_dilation, check_window, is_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = ("#ffffff", "#7aa6c2", "#d9822b")  # unseen, local, global
UNSEEN, LOCAL, GLOBAL = 0, 1, 2
GRIDDED = 64  # rows up to which single cells are told apart by lines


def attention_kinds(
    seq_len: int,
    window: Window,
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
) -> Tensor:
    """Which column each row attends to, and why: (H, S, S) int64 of UNSEEN, LOCAL and GLOBAL.

    A pair is GLOBAL if its row or its column is a global token, whether or not it lies in the window too (paper §3.1,
    figure 2d). H is the number of dilations given.

    Args:
        seq_len: S.
        window, dilation, causal: as for :func:`longformer.kernels.sliding_window_attention`.
        global_tokens: positions that see everything and are seen by everyone; if causal, nothing that is later.

    Raises:
        LongformerError: an argument out of range.
    """
    if not is_count(seq_len, 1) or seq_len > LONGEST:
        raise LongformerError(f"seq_len is {seq_len!r}; a picture of all pairs takes an int from 1 to {LONGEST}")
    check_window(window)
    gaps = check_dilation(dilation)
    is_global = _global_mask(seq_len, global_tokens)
    arguments: dict[str, Any] = {"dilation": gaps, "causal": causal}
    kinds = attention_pairs(seq_len, window, **arguments)[0].long()
    # What a global token sees is what would see a global token, turned around.
    everything = attention_pairs(seq_len, (seq_len, seq_len), causal=causal)[0]
    kinds[(everything & (is_global[:, None] | is_global)).expand_as(kinds)] = GLOBAL
    return kinds


def draw_pattern(
    axes: Axes,
    seq_len: int,
    window: Window,
    *,
    dilation: int = 1,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
    title: str = "",
) -> AxesImage:
    """Draw which column (key) each row (query) attends to, as figure 2 of the paper does.

    Args:
        axes: matplotlib axes to draw into.
        seq_len, window, dilation, causal, global_tokens: as for :func:`attention_kinds`.
        title: written above.

    Raises:
        LongformerError: an argument out of range.
    """
    from matplotlib.colors import ListedColormap

    kinds = attention_kinds(seq_len, window, dilation=(dilation,), causal=causal, global_tokens=global_tokens)[0]
    image = axes.imshow(kinds.numpy(), cmap=ListedColormap(COLOURS), vmin=UNSEEN, vmax=GLOBAL, interpolation="nearest")
    if seq_len <= GRIDDED:
        axes.set_xticks([i - 0.5 for i in range(seq_len + 1)], labels=[])
        axes.set_yticks([i - 0.5 for i in range(seq_len + 1)], labels=[])
        axes.tick_params(length=0)
        axes.grid(color="#dddddd", linewidth=0.4)
    axes.set_title(title, fontsize=10)
    return image


def draw_patterns(
    figure: Figure,
    seq_len: int,
    windows: LongformerConfig | Window | Sequence[Window],
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
) -> list[list[Axes]]:
    """Draw a model's patterns: a row of pictures for layers, a column for heads; where all heads are alike, one row.

    Neighbouring layers of one window and dilation, and neighbouring heads of one dilation, share a picture.

    Args:
        figure: matplotlib figure to draw into.
        seq_len: S.
        windows: a model's config, or (left, right) of the layers from the first to the last, or of all.
        dilation: one for all heads, or one a head, in every layer; None is a config's own, and 1 without a config.
        causal, global_tokens: as for :func:`attention_kinds`.

    Returns:
        The axes, by layers and heads.

    Raises:
        LongformerError: an argument out of range.
    """
    each = _layers(windows, dilation)
    layers, heads = _runs(each), _runs(list(zip(*(gaps for _, gaps in each), strict=True)))
    if len(heads) == 1:
        grid = figure.subplots(1, len(layers), squeeze=False)
        panels = grid.T
    else:
        panels = grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, ((window, gaps), which_layers) in zip(panels, layers, strict=True):
        for axes, (_, which_heads) in zip(row, heads, strict=True):
            gap = gaps[which_heads[0]]
            names = ["" if len(layers) == 1 else _numbered("layer", which_layers), f"window {window}"]
            if len(heads) > 1 or gap > 1:
                names += [_numbered("head", which_heads) if len(heads) > 1 else "", f"dilated by {gap}"]
            draw_pattern(
                axes,
                seq_len,
                window,
                dilation=gap,
                causal=causal,
                global_tokens=global_tokens,
                title=", ".join(filter(None, names)),
            )
    for axes in grid[:, 0]:
        axes.set_ylabel("query")
    for axes in grid[-1]:
        axes.set_xlabel("key")
    return [list(row) for row in panels]


def receptive_field(
    seq_len: int,
    windows: LongformerConfig | Window | Sequence[Window],
    token: int,
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
) -> Tensor:
    """Which tokens of each layer can change what ``token`` becomes in the last one: (layers + 1, S) bool.

    Row 0 is the embeddings, row n what layer n gives, where of the last there is only ``token`` itself. A layer joins
    what any of its heads sees (paper §3.1, "Sliding Window").

    Args:
        seq_len, causal, global_tokens: as for :func:`attention_kinds`.
        windows, dilation: as for :func:`draw_patterns`.
        token: 0 <= token < S.

    Raises:
        LongformerError: an argument out of range.
    """
    if not is_count(token, 0) or token >= seq_len:
        raise LongformerError(f"token is {token!r}; it must be a position from 0 to {seq_len - 1}")
    arguments: dict[str, Any] = {"causal": causal, "global_tokens": global_tokens}
    reached = torch.zeros(seq_len, dtype=torch.bool)
    reached[token] = True
    rows = [reached]
    for (window, gaps), layers in reversed(_runs(_layers(windows, dilation))):
        gaps = tuple(dict.fromkeys(gaps))  # heads of one dilation see the same
        seen = (attention_kinds(seq_len, window, dilation=gaps, **arguments) != UNSEEN).any(dim=0)
        for _ in layers:
            rows.append(rows[-1] | seen[rows[-1]].any(dim=0))  # the residual connection keeps a token's own place
    return torch.stack(rows[::-1])


def draw_receptive_field(
    axes: Axes,
    seq_len: int,
    windows: LongformerConfig | Window | Sequence[Window],
    token: int,
    *,
    dilation: int | Sequence[int] | None = None,
    causal: bool = False,
    global_tokens: Sequence[int] = (),
    title: str = "",
) -> AxesImage:
    """Draw :func:`receptive_field`, whose arguments these are, the embeddings at the bottom."""
    from matplotlib.colors import ListedColormap

    reached = receptive_field(seq_len, windows, token, dilation=dilation, causal=causal, global_tokens=global_tokens)
    colours = ListedColormap(COLOURS[:2])
    shown = reached.numpy()
    image = axes.imshow(shown, cmap=colours, vmin=0, vmax=1, origin="lower", aspect="auto", interpolation="nearest")
    names = ["embeddings", *(f"layer {n}" for n in range(1, len(reached)))]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("token")
    axes.set_title(title, fontsize=10)
    return image


def save_patterns(path: str | Path) -> None:
    """Draw full, sliding-window, dilated, and sliding-window with global attention side by side into ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.3), layout="constrained")
    panels = figure.subplots(1, 4)
    draw_pattern(panels[0], 24, (23, 23), title="full: S² pairs")
    draw_pattern(panels[1], 24, (3, 3), title="sliding window (3, 3)")
    draw_pattern(panels[2], 24, (3, 3), dilation=2, title="dilated by 2")
    draw_pattern(panels[3], 24, (3, 3), global_tokens=(0, 1, 2), title="window and 3 global tokens")
    panels[0].set_ylabel("query")
    for axes in panels:
        axes.set_xlabel("key")
    figure.savefig(path, dpi=110)


def _layers(
    windows: LongformerConfig | Window | Sequence[Window], dilation: int | Sequence[int] | None
) -> list[tuple[Window, tuple[int, ...]]]:
    """Of each layer its window, and the dilations of its heads."""
    if isinstance(windows, LongformerConfig) and dilation is None:
        return [(windows.window(layer), windows.dilation(layer)) for layer in range(windows.num_hidden_layers)]
    gaps = check_dilation(1 if dilation is None else dilation)
    return [(window, gaps) for window in _windows(windows)]


def _windows(windows: LongformerConfig | Window | Sequence[Window]) -> list[Window]:
    if isinstance(windows, LongformerConfig):
        return [windows.window(layer) for layer in range(windows.num_hidden_layers)]
    each: list[Any] = [windows] if len(windows) == 2 and is_count(windows[0], 0) else list(windows)
    if not each:
        raise LongformerError("there are no windows; give (left, right) of at least one layer")
    for window in each:
        check_window(window)
    return [tuple(window) for window in each]


def _runs(values: Sequence[Any]) -> list[tuple[Any, range]]:
    """Neighbours that are equal: the value, and which places have it."""
    found, start = [], 0
    for value, run in groupby(values):
        stop = start + len(list(run))
        found.append((value, range(start, stop)))
        start = stop
    return found


def _numbered(what: str, which: range) -> str:
    return f"{what} {which[0] + 1}" if len(which) == 1 else f"{what}s {which[0] + 1} to {which[-1] + 1}"


def _global_mask(seq_len: int, tokens: Sequence[int]) -> Tensor:
    mask = torch.zeros(seq_len, dtype=torch.bool)
    for token in tokens:
        if not is_count(token, 0) or token >= seq_len:
            raise LongformerError(f"global_tokens has {token!r}; each must be a position from 0 to {seq_len - 1}")
        mask[token] = True
    return mask
