"""An explanation as a still picture, with matplotlib (the extra ``plot``)."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from longformer.errors import LongformerError
from longformer.explain.explanation import Explanation
from longformer.explain.passage import DOCUMENT
from longformer.explain.probabilities import Attention
from longformer.files import write_file

START, END, MARK = "#13794a", "#a3276b", "#c2410c"
BINS = 384  # rows and columns of the picture: with more tokens, neighbours share a square, and the strongest is drawn
NEAR = 14  # tokens on each side of the answer that are drawn one by one


def require_matplotlib() -> None:
    """Raise LongformerError if matplotlib is not installed: to be called before a model is loaded for the picture."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise LongformerError("--png needs matplotlib: pip install matplotlib, or leave --png out") from None


def write_picture(path: str | Path, explanation: Explanation) -> None:
    """Write a PNG: scores along the text, the attention pattern, and where the answer's tokens attend.

    Raises:
        DataError: the file cannot be written.
        LongformerError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(12, 8.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 5])
    left, right = lower.subfigures(1, 2, width_ratios=[5, 6])
    best = explanation.answers[0]
    question = textwrap.shorten(explanation.question.strip(), 110, placeholder=" …")
    answer = textwrap.shorten(best.text, 90, placeholder=" …") or "no answer"
    figure.suptitle(_plain(f"{question}\n{answer}  ({best.probability:.0%})"), fontsize=12)
    _draw_scores(upper, explanation)
    _draw_pattern(left, explanation)
    _draw_answer(right, explanation)

    def put(new: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # drawn as an empty box
            figure.savefig(new, dpi=110, format="png")

    write_file(path, put)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: between dollar signs it would read mathematics."""
    return text.replace("$", r"\$")


def _draw_scores(figure: Any, explanation: Explanation) -> None:
    axes = figure.subplots(2, 1, sharex=True)
    inside = np.array([kind == DOCUMENT for kind in explanation.passage.kinds])
    place = np.flatnonzero(inside)
    curves = ((explanation.start_logits, "start score", START), (explanation.end_logits, "end score", END))
    for side, (panel, (logits, name, colour)) in enumerate(zip(axes, curves, strict=True)):
        panel.plot(place, logits.numpy()[inside], color=colour, linewidth=0.8)
        for answer, span in zip(explanation.answers, explanation.passage.spans, strict=True):
            if span is not None:
                panel.axvline(span[side], color=MARK, alpha=min(1, 0.15 + answer.probability), linewidth=1.5, zorder=0)
        panel.set_ylabel(name, fontsize=9)
        panel.set_xlim(0, len(inside))
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    axes[1].set_xlabel("token (the answers' starts and ends marked)", fontsize=9)


def _draw_pattern(figure: Any, explanation: Explanation) -> None:
    from matplotlib.colors import LogNorm

    axes = figure.subplots()
    seen = sum(pattern_bins(attention, BINS) for attention in explanation.means) / len(explanation.means)
    seq_len = len(explanation.passage.ids)
    drawn = axes.imshow(
        np.ma.masked_less_equal(seen, 0),
        norm=LogNorm(1e-5, 1),
        cmap="magma_r",
        extent=(0, seq_len, seq_len, 0),
        interpolation="nearest",
    )
    figure.colorbar(drawn, ax=axes, shrink=0.75).ax.tick_params(labelsize=8)
    axes.set_title("attention, mean of all layers and heads", fontsize=10)
    axes.set_xlabel("attends to token", fontsize=9)
    axes.set_ylabel("token", fontsize=9)
    axes.tick_params(labelsize=8)


def pattern_bins(attention: Attention, most: int) -> np.ndarray:
    """The S × S attention of a layer as at most ``most`` × ``most`` squares, each with its largest entry."""
    seq_len = len(attention.band)
    size = -(-seq_len // most)
    count = -(-seq_len // size)
    seen = np.zeros((count, count), dtype=np.float32)
    row = np.arange(seq_len)[:, None]
    column = row + attention.offsets.numpy()
    inside = (column >= 0) & (column < seq_len)
    index = attention.global_index.numpy()
    whole = attention.row_index.numpy()
    parts = (
        (np.broadcast_to(row, column.shape)[inside], column[inside], attention.band.numpy()[inside]),
        (np.repeat(row, len(index), axis=1), np.broadcast_to(index, (seq_len, len(index))), attention.columns.numpy()),
        (
            np.repeat(whole[:, None], seq_len, axis=1),
            np.broadcast_to(row.T, (len(whole), seq_len)),
            attention.rows.numpy(),
        ),
    )
    for rows, columns, values in parts:
        np.maximum.at(seen, (rows // size, columns // size), values)
    return seen


def _draw_answer(figure: Any, explanation: Explanation) -> None:
    """Where the best answer's tokens attend in each layer: to the answer's surroundings and to the global tokens."""
    from matplotlib.colors import PowerNorm

    passage = explanation.passage
    number = next((n for n, span in enumerate(passage.spans) if span is not None), 0)
    first, last = passage.spans[number] or (0, 0)
    last = min(last, first + NEAR)
    index = explanation.global_index.tolist()[: 2 * NEAR]
    near = [i for i in range(max(0, first - NEAR), min(len(passage.ids), last + NEAR + 1)) if i not in index]
    shown = np.array(index + near)
    rows = [full_rows(attention, first, last)[shown] for attention in explanation.means]
    rolled = explanation.rollout[-1, number].numpy()[shown]
    values = np.stack([*rows, rolled / max(float(rolled.max()), 1e-12) * max(float(row.max()) for row in rows)])
    axes = figure.subplots()
    drawn = axes.imshow(values.T, norm=PowerNorm(0.5, 0), cmap="magma_r", aspect="auto", interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.75).ax.tick_params(labelsize=8)
    axes.set_xticks(range(len(values)), [*map(str, range(len(values) - 1)), "rollout"], fontsize=8)
    axes.set_xlabel("layer, from 0 (mean of its heads); rollout to the scale of its largest", fontsize=9)
    labels = [_plain(textwrap.shorten(passage.texts[i], 16, placeholder="…") or "·") for i in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    for tick, i in zip(axes.get_yticklabels(), shown.tolist(), strict=True):
        if first <= i <= last:
            tick.set(color=MARK, fontweight="bold")
    axes.axhline(len(index) - 0.5, color="#5aaef0", linewidth=2)
    axes.axvline(len(rows) - 0.5, color="#888888", linewidth=1)
    axes.set_title("where the answer attends: global tokens above the line, its neighbours below", fontsize=10)


def full_rows(attention: Attention, first: int, last: int) -> np.ndarray:
    """Mean of the rows ``first`` to ``last`` of a layer's attention: (S,)."""
    index, whole = attention.global_index.tolist(), attention.row_index.tolist()
    seq_len = len(attention.band)
    total = np.zeros(seq_len)
    for i in range(first, last + 1):
        if i in whole:
            total += attention.rows[whole.index(i)].numpy()
            continue
        columns = i + attention.offsets.numpy()
        inside = (columns >= 0) & (columns < seq_len)
        total[columns[inside]] += attention.band[i].numpy()[inside]
        total[index] += attention.columns[i].numpy()
    return total / (last + 1 - first)
