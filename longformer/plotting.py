"""Pictures of attention patterns, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longformer.kernels import attention_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#ffffff", "#7aa6c2", "#d9822b")  # unseen, local, global


def draw_pattern(
    axes: Axes,
    seq_len: int,
    window: tuple[int, int],
    *,
    dilation: int = 1,
    global_tokens: tuple[int, ...] = (),
    title: str = "",
) -> None:
    """Draw which column (key) each row (query) attends to, as figure 2 of the paper does.

    Args:
        axes: matplotlib axes to draw into.
        seq_len: S, rows and columns.
        window, dilation: as for the kernels.
        global_tokens: positions that see everything and are seen by everyone.
        title: written above.
    """
    from matplotlib.colors import ListedColormap

    local = attention_pairs(seq_len, window, dilation=(dilation,))[0, 0]
    globals_ = torch.zeros(seq_len, dtype=torch.bool)
    globals_[list(global_tokens)] = True
    kinds: Tensor = local.long()
    kinds[globals_[:, None] | globals_[None, :]] = 2
    axes.imshow(kinds, cmap=ListedColormap(COLOURS), vmin=0, vmax=2, interpolation="nearest")
    axes.set_xticks([i - 0.5 for i in range(seq_len + 1)], labels=[])
    axes.set_yticks([i - 0.5 for i in range(seq_len + 1)], labels=[])
    axes.tick_params(length=0)
    axes.grid(color="#dddddd", linewidth=0.4)
    axes.set_title(title, fontsize=10)


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
