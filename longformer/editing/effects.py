"""What changes inside a model do to a result: heads ablated one by one, values patched from one run into another.

Letters: B batch, S sequence, H heads, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from longformer.editing.changes import Edit, edit
from longformer.errors import LongformerError
from longformer.parity.recorder import trace
from longformer.parity.table import GLOBAL_ROWS

Metric = Callable[[Any], Tensor]


@torch.no_grad()
def ablate_heads(
    model: nn.Module,
    inputs: Mapping[str, Any],
    metric: Metric,
    *,
    by: Literal["zero", "mean"] = "zero",
    progress: bool = True,
) -> Tensor:
    """How a result changes when one attention head is taken out, for each head of each layer.

    A head's output is replaced by 0, or by its mean over the tokens, in the rows of global tokens and in all others.

    Args:
        model: ours or transformers' Longformer.
        inputs: arguments of ``model``.
        metric: of the model's output, a scalar.
        by: what replaces the head's output.
        progress: show a bar on standard error.

    Returns:
        (L, H) float64 on the CPU: the metric with the head taken out, less the metric without a change.

    Raises:
        LongformerError: ``by`` is something else, or the metric gives no scalar.
    """
    if by not in ("zero", "mean"):
        raise LongformerError(f"by is {by!r}; it must be 'zero' or 'mean'")
    config: Any = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    base = _scalar(metric, model(**inputs))
    result = torch.zeros(layers, heads, dtype=torch.float64)
    for layer, head in tqdm([(i, j) for i in range(layers) for j in range(heads)], "heads", disable=not progress):
        with edit(model) as editor:
            for part in ("local_output", GLOBAL_ROWS):
                getattr(editor, by)(f"layer.{layer}.{part}", head=head)
            result[layer, head] = _scalar(metric, model(**inputs)) - base
    return result


@torch.no_grad()
def patch_values(
    model: nn.Module,
    into: Mapping[str, Any],
    source: Mapping[str, Any],
    metric: Metric,
    names: Sequence[str],
    *,
    tokens: Sequence[int] | None = None,
    progress: bool = True,
) -> Tensor:
    """Activation patching: values of one run are put into another, one name and one token at a time.

    With a run that goes wrong as ``into`` and one that goes right as ``source`` it is called denoising: which values
    are enough to bring the right result back? The other way round it is noising: which are needed?

    Args:
        model: ours or transformers' Longformer.
        into: arguments of the run that is changed.
        source: arguments of the run from which values are taken; of the same shapes.
        metric: of the model's output, a scalar.
        names: values to patch, such as ``[f"layer.{i}.output" for i in range(12)]``.
        tokens: positions, one after another; None patches all tokens of a value at once.
        progress: show a bar on standard error.

    Returns:
        (names, tokens), or (names, 1), float64 on the CPU: the metric of the changed run, less that of ``into``.

    Raises:
        LongformerError: a name or a position that is not there, or runs of different shapes.
    """
    wanted = Edit(model)
    for name in names:
        wanted.zero(name, tokens=None if tokens is None else list(tokens))  # says what is not there, before any run
    shapes = [{name: tuple(x.shape) for name, x in run.items() if isinstance(x, Tensor)} for run in (into, source)]
    if shapes[0] != shapes[1]:
        raise LongformerError(f"the runs have inputs of {shapes[0]} and {shapes[1]}; patching needs the same shapes")
    with trace(model, only=list(names), digests=False) as taken:
        model(**source)
    base = _scalar(metric, model(**into))
    places: list[Any] = [None] if tokens is None else list(tokens)
    result = torch.zeros(len(names), len(places), dtype=torch.float64)
    for i, j in tqdm(list(_pairs(len(names), len(places))), "patches", disable=not progress):
        with edit(model) as editor:
            editor.set(names[i], taken[names[i]], tokens=places[j])
            result[i, j] = _scalar(metric, model(**into)) - base
    return result


def _pairs(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(rows) for j in range(columns))


def _scalar(metric: Metric, output: Any) -> float:
    value = metric(output)
    if not isinstance(value, (Tensor, float, int)) or (isinstance(value, Tensor) and value.numel() != 1):
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise LongformerError(f"the metric gives {what}; it must give one number")
    return float(value)
