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
from longformer.plotting.checks import LONGEST, Window, check_dilation, check_window, is_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def dense_probabilities(probabilities: BandProbabilities, window: Window, dilation: int | Sequence[int] = 1) -> Tensor:
    """Probabilities by diagonals and global columns as one matrix: (B, H, S, S), 0 where a row sees nothing.

    Args:
        probabilities: of :func:`longformer.kernels.sliding_window_probabilities`.
        window, dilation: what they were computed with.

    Raises:
        LongformerError: a window or dilations that are not those of ``probabilities``, or more rows than a picture has.
    """
    band, columns, index = probabilities
    seq_len = band.shape[2]
    if seq_len > LONGEST:
        raise LongformerError(f"there are {seq_len} rows; a picture of all pairs takes at most {LONGEST}: cut some out")
    gaps = torch.tensor(_check_band(band, window, dilation))
    offsets = torch.arange(-window[0], window[1] + 1)
    places = torch.arange(seq_len)[:, None] + offsets * gaps[:, None, None]  # (H or 1, S, W)
    places = places.clamp(0, seq_len - 1).to(band.device)  # outside of the sequence there are zeros to be added
    dense = band.new_zeros(*band.shape[:3], seq_len).scatter_add(3, places.expand_as(band), band)
    return dense.scatter_add(3, index.clamp(min=0)[:, None, None].expand_as(columns), columns)


def draw_probabilities(
    axes: Axes,
    probabilities: BandProbabilities,
    window: Window,
    *,
    dilation: int | Sequence[int] = 1,
    batch: int = 0,
    head: int | None = None,
    dense: bool = False,
    title: str = "",
) -> AxesImage:
    """Draw attention probabilities as they are kept, the global columns and then the diagonals, or as S × S.

    Args:
        axes: matplotlib axes to draw into.
        probabilities: of :func:`longformer.kernels.sliding_window_probabilities`.
        window, dilation: what they were computed with.
        batch: which example.
        head: which head; None is the mean of all, which only heads of one dilation have by diagonals.
        dense: draw all S × S pairs, each where it belongs.
        title: written above.

    Raises:
        LongformerError: an argument out of range.
    """
    band, columns, index = probabilities
    gaps = _check_band(band, window, dilation)
    heads = band.shape[1]
    if not is_count(batch, 0) or batch >= band.shape[0]:
        raise LongformerError(f"batch is {batch!r}; it must be an int from 0 to {band.shape[0] - 1}")
    if head is not None and (not is_count(head, 0) or head >= heads):
        raise LongformerError(f"head is {head!r}; it must be an int from 0 to {heads - 1}, or None for the mean of all")
    if dense:
        shown = dense_probabilities(probabilities, window, dilation)[batch]
    elif head is None and len(set(gaps)) > 1:
        raise LongformerError(f"heads are dilated by {gaps} and have no common diagonals; choose a head, or dense=True")
    else:
        beside = columns[batch][..., index[batch] >= 0]
        gap = beside.new_full((*beside.shape[:2], 1 if beside.shape[2] else 0), math.nan)
        shown = torch.cat([beside, gap, band[batch]], dim=-1)
    picture = (shown.mean(dim=0) if head is None else shown[head]).detach().float().cpu().numpy()
    image = axes.imshow(picture, cmap="Blues", vmin=0, aspect="equal" if dense else "auto", interpolation="nearest")
    axes.set_ylabel("query")
    if dense:
        axes.set_xlabel("key")
    else:
        first = picture.shape[1] - band.shape[3]
        ticks = {0: -window[0] * gaps[head or 0], window[0]: 0, band.shape[3] - 1: window[1] * gaps[head or 0]}
        axes.set_xticks([first + at for at in ticks], [f"{offset:+d}" if offset else "0" for offset in ticks.values()])
        axes.set_xlabel("key − query" + (", beside the global columns" if first else ""))
    axes.set_title(title, fontsize=10)
    return image


def _check_band(band: Tensor, window: Window, dilation: int | Sequence[int]) -> tuple[int, ...]:
    """Dilations, one a head."""
    check_window(window)
    if band.shape[3] != window[0] + 1 + window[1]:
        raise LongformerError(
            f"window is {window}, whose band is {window[0] + 1 + window[1]} wide; the probabilities' is "
            f"{band.shape[3]}: give the window that they were computed with"
        )
    gaps = check_dilation(dilation)
    gaps = gaps * band.shape[1] if len(gaps) == 1 else gaps
    if len(gaps) != band.shape[1]:
        raise LongformerError(f"dilation is {dilation!r}; it must be an int, or one for each of {band.shape[1]} heads")
    return gaps
