"""Attention probabilities, by diagonals or pair by pair.

Letters: B batch, H heads, S sequence, W width of the band, G global tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longformer.errors import LongformerError
from longformer.kernels import BandProbabilities
from longformer.plotting.patterns import LONGEST, Pattern, Window, as_pattern, is_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def dense_probabilities(
    probabilities: BandProbabilities, pattern: Pattern, dilation: int | Sequence[int] | None = None
) -> Tensor:
    """Probabilities by diagonals and global columns as one matrix: (B, H, S, S), 0 where a row sees nothing.

    Args:
        probabilities: of :func:`longformer.kernels.sliding_window_probabilities`.
        pattern, dilation: what they were computed with: an AttentionPattern, or the window (left, right) of one and
            its dilation, where None is 1.

    Raises:
        LongformerError: a pattern that is not that of ``probabilities``, or more rows than a picture has.
    """
    seq_len = probabilities.band.shape[2]
    if seq_len > LONGEST:
        raise LongformerError(f"there are {seq_len} rows; a picture of all pairs takes at most {LONGEST}: cut some out")
    _band_of(probabilities.band, pattern, dilation)
    return probabilities.dense(as_pattern(pattern, dilation))


def draw_probabilities(
    axes: Axes,
    probabilities: BandProbabilities,
    pattern: Pattern,
    *,
    dilation: int | Sequence[int] | None = None,
    batch: int = 0,
    head: int | None = None,
    dense: bool = False,
    title: str = "",
) -> AxesImage:
    """Draw attention probabilities as they are kept, the global columns and then the diagonals, or as S × S.

    Args:
        axes: matplotlib axes to draw into.
        probabilities, pattern, dilation: as for :func:`dense_probabilities`.
        batch: which example.
        head: which head. None is the mean of all heads; by diagonals, only heads of one dilation have a mean.
        dense: draw all S × S pairs, each in its place.
        title: written above.

    Raises:
        LongformerError: an argument out of range.
    """
    band, columns, index = probabilities
    (left, right), gaps = _band_of(band, pattern, dilation)
    heads = band.shape[1]
    if not is_count(batch, 0) or batch >= band.shape[0]:
        raise LongformerError(f"batch is {batch!r}; it must be an int from 0 to {band.shape[0] - 1}")
    if head is not None and (not is_count(head, 0) or head >= heads):
        raise LongformerError(f"head is {head!r}; it must be an int from 0 to {heads - 1}, or None for the mean of all")
    if dense:
        shown = dense_probabilities(probabilities, pattern, dilation)[batch]
    elif head is None and len(set(gaps)) > 1:
        raise LongformerError(f"heads are dilated by {gaps} and have no common diagonals; choose a head, or dense=True")
    else:
        global_columns = columns[batch][..., index[batch] >= 0]
        blank = global_columns.new_full((*global_columns.shape[:2], 1 if global_columns.shape[2] else 0), math.nan)
        shown = torch.cat([global_columns, blank, band[batch]], dim=-1)
    picture = (shown.mean(dim=0) if head is None else shown[head]).detach().float().cpu().numpy()
    image = axes.imshow(picture, cmap="Blues", vmin=0, aspect="equal" if dense else "auto", interpolation="nearest")
    axes.set_ylabel("query")
    if dense:
        axes.set_xlabel("key")
    else:
        first = picture.shape[1] - band.shape[3]
        ticks = {0: -left * gaps[head or 0], left: 0, band.shape[3] - 1: right * gaps[head or 0]}
        axes.set_xticks([first + at for at in ticks], [f"{offset:+d}" if offset else "0" for offset in ticks.values()])
        axes.set_xlabel("key − query" + (", beside the global columns" if first else ""))
    axes.set_title(title, fontsize=10)
    return image


def _band_of(band: Tensor, pattern: Pattern, dilation: int | Sequence[int] | None) -> tuple[Window, tuple[int, ...]]:
    """The window of a band (B, H, S, W), and each head's dilation. Raises LongformerError if they do not fit it."""
    pattern = as_pattern(pattern, dilation)
    heads, seq_len, width = band.shape[1:]
    left, right = (seq_len - 1, seq_len - 1) if pattern.window is None else pattern.window
    if width != left + 1 + right:
        raise LongformerError(
            f"window is {pattern.window}, whose band is {left + 1 + right} wide; the probabilities' is {width}: give "
            "the window that they were computed with"
        )
    try:
        return (left, right), pattern.gaps(heads)
    except ValueError as error:
        raise LongformerError(str(error)) from None
