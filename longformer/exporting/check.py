"""A written file against the model that it was made from.

Letters: B batch, S sequence, W width of the window.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.errors import LongformerError, in_one_line
from longformer.exporting.packages import load
from longformer.exporting.runtime import OnnxModel
from longformer.models.heads import LongformerForMultipleChoice

LENGTHS = (1, 2, 511, 512, 513, 1000, 2048, 4096)  # and around the window
# Of the largest number that an output has in any batch. In one batch a score may be the small rest of large numbers.
# Two orders of summing differ by about 1e-6 in each of a dozen layers.
CLOSE = 1e-4


def check(path: Path, model: Any, *, exact: bool = True) -> None:
    """Let onnx check the file, and compare what ONNX Runtime makes of it with the model, at awkward lengths.

    Args:
        model: what the file was made from.
        exact: whether the numbers must be the model's. Those of a quantised file only must be finite.

    Raises:
        LongformerError: onnx or ONNX Runtime cannot read the file, or the numbers differ by more than rounding.
    """
    onnx = load("onnx")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise LongformerError(f"{path} is not what onnx takes for a model: {in_one_line(error)}") from None
    exported = OnnxModel(path)
    largest: dict[str, float] = {}
    worst: dict[str, tuple[float, tuple[int, ...]]] = {}
    for ids, mask, global_mask in batches(model):
        with torch.no_grad():
            expected = model(ids, mask, global_mask)
        for name, actual in exported(ids, mask, global_mask).items():
            largest[name] = max(largest.get(name, 0.0), float(expected[name].abs().max()))
            differences = (actual - expected[name]).abs().where(actual.isfinite(), math.inf)
            worst[name] = max(worst.get(name, (0.0, ())), (float(differences.max()), tuple(actual.shape)))
    for name, (difference, shape) in worst.items():
        if not difference <= (CLOSE * largest[name] if exact else sys.float_info.max):
            raise LongformerError(
                f"{path} was written, but ONNX Runtime makes other numbers of it than the model: {name} of shape "
                f"{shape} is off by {difference:.1e}, its largest number is {largest[name]:.1e}; do not use the file"
            )


def batches(model: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids and both masks, (2, S) each or (2, 1, S): no, one, and many global tokens, and padding behind the second."""
    config = model.config
    # Of the patterns, which may have other windows than ``attention_window``. A full one has none.
    windows = [config.pattern(layer).window or (0, 0) for layer in range(config.num_hidden_layers)]
    window = max(map(sum, windows))
    lengths = {*LENGTHS, window - 1, window, window + 1}
    draw = torch.Generator().manual_seed(0)
    real = [i for i in range(config.vocab_size) if i not in (config.pad_token_id, config.sep_token_id)] or [0]
    for n, length in enumerate(sorted(length for length in lengths if 1 <= length <= config.max_tokens)):
        ids = torch.tensor(real)[torch.randint(len(real), (2, length), generator=draw)]
        mask = torch.ones_like(ids)
        behind = length - length // 3
        ids[1, behind:], mask[1, behind:] = config.pad_token_id, 0
        global_mask = torch.zeros_like(ids)
        match n % 3:
            case 1:
                global_mask[:, length // 2] = 1
            case 2:
                global_mask[:, : min(length, 20)] = global_mask[0, -1] = 1
        if isinstance(model, LongformerForMultipleChoice):
            ids, mask, global_mask = (x[:, None] for x in (ids, mask, global_mask))
        yield ids, mask, global_mask
