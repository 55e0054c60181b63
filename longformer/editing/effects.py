"""What changes inside a model do to a result: heads ablated one by one, values patched from one run into another.

Letters: B batch, S sequence, H heads, L layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from longformer.answering.mode import evaluating
from longformer.editing.changes import Edit, edit
from longformer.errors import LongformerError
from longformer.parity.recorder import trace

Metric = Callable[[Any], Tensor]
Place = int | Sequence[int] | slice | Tensor
DIRECTIONS = ("denoising", "noising")
LABELS = 32  # most labels along a side of the picture


@dataclass(frozen=True)
class Effects:
    """What each of many changes did to a result, as a table that can be printed and drawn.

    Args:
        table: (rows, columns) float64 on the CPU: the metric with the change, less the metric without.
        rows, columns: names of both sides.
        before: the metric without a change.
        other: of patching, the metric of the run from which values were taken; None of ablation.
        title: what was done.
    """

    table: Tensor
    rows: list[str]
    columns: list[str]
    before: float
    other: float | None
    title: str

    @property
    def share(self) -> Tensor:
        """Of patching: how much of the difference between the two runs each patch makes, in the shape of ``table``.

        0 is no effect; with 1 the changed run gives what the other run gives.

        Raises:
            LongformerError: there is no other run, or the two runs give the same.
        """
        if self.other is None:
            raise LongformerError("an ablation has no other run of which a share could be taken; use table")
        if self.other == self.before:
            raise LongformerError(f"both runs give {self.before:g}, so there is no difference to take a share of")
        return self.table / (self.other - self.before)

    def largest(self, count: int = 5) -> list[tuple[str, str, float]]:
        """The changes with the largest effect either way, the largest first: row, column, effect."""
        order = self.table.flatten().abs().argsort(descending=True, stable=True)[:count].tolist()
        places = [divmod(i, len(self.columns)) for i in order]
        return [(self.rows[i], self.columns[j], float(self.table[i, j])) for i, j in places]

    def __str__(self) -> str:
        """The title, the metric without a change, and the ten largest effects."""
        lines = [f"{self.title}; without a change {self.before:.4g}"]
        if self.other is not None:
            lines.append(f"the other run {self.other:.4g}")
        lines += [f"{effect:+12.4g}  {row}, {column}" for row, column, effect in self.largest(10)]
        return "\n".join(lines)

    def draw(self, axes: Any) -> Any:
        """Draw the table into matplotlib's ``axes``: red raises the metric, blue lowers it. Returns the image."""
        most = float(self.table.abs().max()) or 1.0
        image = axes.imshow(
            self.table.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest"
        )
        for labels, put in ((self.columns, axes.set_xticks), (self.rows, axes.set_yticks)):
            shown = range(0, len(labels), -(-len(labels) // LABELS))
            put(shown, [labels[i] for i in shown], fontsize=8)
        if max(map(len, self.columns)) > 3:
            axes.tick_params(axis="x", rotation=90)
        axes.set_title(self.title, fontsize=10)
        axes.figure.colorbar(image, ax=axes, label="change of the metric")
        return image

    def save(self, path: str | Path) -> None:
        """Draw the table into a file, whose ending, such as ``.png``, sets its format.

        Raises:
            LongformerError: matplotlib is not installed, or has no such format.
            DataError: the file cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise LongformerError("a picture needs matplotlib: pip install matplotlib") from None
        from longformer.plotting.figures import write_figure

        size = (2.5 + 0.25 * min(len(self.columns), LABELS), 1.8 + 0.25 * min(len(self.rows), LABELS))
        figure: Any = Figure(figsize=(max(5.0, size[0]), max(3.0, size[1])), layout="constrained")
        self.draw(figure.subplots())
        write_figure(path, figure, dpi=110)


@torch.no_grad()
def ablate_heads(
    model: nn.Module,
    inputs: Mapping[str, Any],
    metric: Metric,
    *,
    by: Literal["zero", "mean"] = "zero",
    progress: bool = True,
) -> Effects:
    """How a result changes when one attention head is taken out, for each head of each layer.

    A head's output is replaced by 0, or by its mean over the tokens, in the rows of global tokens and in all others.

    Args:
        model: ours or transformers' Longformer. It computes as in ``eval()`` mode.
        inputs: arguments of ``model``.
        metric: of the model's output, a scalar.
        by: what replaces the head's output.
        progress: show a bar on standard error.

    Returns:
        A table (L, H): rows are layers, columns are heads, both counted from 0.

    Raises:
        LongformerError: ``by`` is something else, the inputs are no mapping, or the metric gives no scalar.
    """
    if by not in ("zero", "mean"):
        raise LongformerError(f"by is {by!r}; it must be 'zero' or 'mean'")
    Edit(model)  # says which models have values, before any run
    _check_inputs("inputs", inputs)
    config: Any = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    table = torch.zeros(layers, heads, dtype=torch.float64)
    with evaluating(model) as model:
        before = _scalar(metric, model(**inputs))
        for layer, head in tqdm([*itertools.product(range(layers), range(heads))], "heads", disable=not progress):
            with edit(model) as editor:
                editor.take_out_head(layer, head, by=by)
                table[layer, head] = _scalar(metric, model(**inputs)) - before
    title = f"each head {'set to 0' if by == 'zero' else 'set to its mean'}"
    rows, columns = [f"layer {i}" for i in range(layers)], [f"head {i}" for i in range(heads)]
    return Effects(table, rows, columns, before, None, title)


@torch.no_grad()
def patch_values(
    model: nn.Module,
    clean: Mapping[str, Any],
    corrupted: Mapping[str, Any],
    metric: Metric,
    names: Sequence[str] | str,
    *,
    direction: Literal["denoising", "noising"] = "denoising",
    tokens: Sequence[Place] | None = None,
    progress: bool = True,
) -> Effects:
    """Activation patching: values of one run are put into another, one name and one place at a time.

    Denoising puts values of the clean run into the corrupted one: which of them are enough to bring the clean result
    back? Noising puts values of the corrupted run into the clean one: which of them does the clean result need?

    Args:
        model: ours or transformers' Longformer. It computes as in ``eval()`` mode.
        clean: arguments of the run that goes right.
        corrupted: arguments of the run that goes wrong; of the same shapes.
        metric: of the model's output, a scalar.
        names: values to patch, such as ``[f"layer.{i}.output" for i in range(12)]``; a text is one.
        direction: ``"denoising"`` or ``"noising"``.
        tokens: places that are patched one after another: each a position, or several, such as the tokens of a word,
            as a list, a slice or a tensor. None patches all tokens of a value at once.
        progress: show a bar on standard error.

    Returns:
        A table (names, places), or (names, 1). ``share`` has it as a share of the difference between the two runs.

    Raises:
        LongformerError: a direction, name or position that is not there, or runs of different shapes.
    """
    if direction not in DIRECTIONS:
        raise LongformerError(f"direction is {direction!r}; it must be 'denoising' or 'noising'")
    names = [names] if isinstance(names, str) else list(names)
    for what, run in (("clean", clean), ("corrupted", corrupted)):
        _check_inputs(what, run)
    into, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    places: list[Any] = [None] if tokens is None else list(tokens)
    if not names or not places:
        raise LongformerError("there is nothing to patch; give at least one name, and at least one place if any")
    wanted = Edit(model)
    for name in names:
        wanted.zero(name, tokens=places[0])  # says what is not there, before any run
    shapes = [{name: tuple(x.shape) for name, x in run.items() if isinstance(x, Tensor)} for run in (clean, corrupted)]
    if shapes[0] != shapes[1]:
        raise LongformerError(f"the runs have inputs of {shapes[0]} and {shapes[1]}; patching needs the same shapes")
    table = torch.zeros(len(names), len(places), dtype=torch.float64)
    with evaluating(model) as model:
        with trace(model, only=names, digests=False) as taken:
            other = _scalar(metric, model(**source))
        before = _scalar(metric, model(**into))
        for i, j in tqdm([*itertools.product(range(len(names)), range(len(places)))], "patches", disable=not progress):
            with edit(model) as editor:
                editor.set(names[i], taken[names[i]], tokens=places[j])
                table[i, j] = _scalar(metric, model(**into)) - before
    columns = ["all tokens"] if tokens is None else [_label(place) for place in places]
    return Effects(table, names, columns, before, other, f"{direction}, one value after another")


def _label(place: Any) -> str:
    if isinstance(place, slice):
        return f"{'' if place.start is None else place.start}:{'' if place.stop is None else place.stop}"
    place = place.tolist() if isinstance(place, Tensor) else place
    return ", ".join(map(str, place)) if isinstance(place, Sequence) else str(int(place))


def _check_inputs(what: str, given: object) -> None:
    if not isinstance(given, Mapping):
        raise LongformerError(
            f"{what} is a {type(given).__name__}; it must be a mapping of the model's arguments, such as "
            "{'input_ids': ids}"
        )


def _scalar(metric: Metric, output: Any) -> float:
    value = metric(output)
    if not isinstance(value, (Tensor, float, int)) or (isinstance(value, Tensor) and value.numel() != 1):
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise LongformerError(f"the metric gives {what}; it must give one number")
    return float(value)
