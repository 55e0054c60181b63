"""A gallery: patterns that the literature knows, side by side, each with its cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from longformer.kernels.known import GALLERY
from longformer.kernels.masks import Pattern
from longformer.plotting.figures import write_figure
from longformer.plotting.patterns import draw_pattern

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


def draw_gallery(figure: Figure, seq_len: int = 48, patterns: Mapping[str, Pattern] = GALLERY) -> list[Axes]:
    """Draw patterns by their names, with the share of all S² pairs of query and key that one head has.

    Pairs of the rows of global tokens, which see everything, are not counted in the share.

    Args:
        figure: matplotlib figure to draw into.
        seq_len: S.
        patterns: by name; by default ``longformer.kernels.known.GALLERY``.

    Returns:
        The axes, one for each pattern.
    """
    rows = -(-len(patterns) // COLUMNS)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    panels = list(grid.flat)
    for axes in panels[len(patterns) :]:
        axes.set_axis_off()
    for axes, (name, pattern) in zip(panels, patterns.items(), strict=False):
        pairs = pattern.cost(seq_len, heads=1).pairs
        draw_pattern(axes, seq_len, pattern, title=f"{name}: {pairs / seq_len**2:.0%} of all pairs")
    return panels[: len(patterns)]


def save_gallery(path: str | Path) -> None:
    """Draw :func:`draw_gallery` into ``path``.

    Raises:
        LongformerError, DataError: as :func:`longformer.plotting.figures.write_figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 12.6), layout="constrained")
    draw_gallery(figure)
    write_figure(path, figure, dpi=80)
