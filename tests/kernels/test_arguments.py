"""What the public operators refuse: one clear error that names the argument, its value and what it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longformer.kernels import global_attention, sliding_window_attention, sliding_window_probabilities

GOOD: dict[str, Any] = {
    "query": torch.randn(2, 3, 8, 4),
    "key": torch.randn(2, 3, 8, 4),
    "value": torch.randn(2, 3, 8, 4),
}
BOOL = torch.ones(2, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [1.0]}, TypeError, "query is a list"),
        ({"query": torch.randn(3, 8, 4)}, ValueError, r"query has shape \(3, 8, 4\); it must be \(B, H, S, D\)"),
        ({"value": torch.randn(2, 3, 0, 4)}, ValueError, "each at least 1"),
        ({"query": torch.ones(2, 3, 8, 4, dtype=torch.int64)}, TypeError, "query has dtype torch.int64"),
        ({"key": torch.randn(2, 3, 8, 4).double()}, TypeError, "key is torch.float64 .* and query torch.float32"),
        ({"value": torch.randn(2, 3, 9, 4)}, ValueError, r"value \(2, 3, 9, 4\)"),
        ({"query": torch.randn(2, 3, 7, 4)}, ValueError, r"query has shape \(2, 3, 7, 4\)"),
        ({"window": 4}, ValueError, r"window is 4; it must be \(left, right\)"),
        ({"window": (-1, 2)}, ValueError, "two ints >= 0"),
        ({"window": (1.5, 2)}, ValueError, "two ints >= 0"),
        ({"dilation": 0}, ValueError, "dilation is 0"),
        ({"dilation": (1, 2)}, ValueError, "one for each of the 3 heads"),
        ({"key_mask": BOOL.long()}, TypeError, r"key_mask is torch.int64; it must be a bool tensor \(for a 0/1 mask"),
        ({"key_mask": BOOL[:, :7]}, ValueError, r"key_mask has shape \(2, 7\); it must be \(B, S\) = \(2, 8\)"),
        ({"global_mask": [True]}, TypeError, "global_mask is list"),
        ({"scale": float("nan")}, ValueError, "scale is nan"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0"),
        ({"dropout_p": -0.1}, ValueError, r"must be a number in \[0, 1\)"),
        ({"dilation": 2.0}, ValueError, "dilation is 2.0; it must be an int >= 1"),
        ({"impl": "fast"}, ValueError, "impl is 'fast'; it must be one of 'auto', 'reference'"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sliding_window_attention(**{**GOOD, "window": (2, 2), **change})


def test_global_attention_refuses_unlike_heads() -> None:
    with pytest.raises(ValueError, match="they must agree in B, H and D"):
        global_attention(torch.randn(1, 2, 3, 4), torch.randn(1, 3, 8, 4), torch.randn(1, 3, 8, 4))


def test_probabilities_refuse_unlike_lengths() -> None:
    with pytest.raises(ValueError, match="a sliding window needs them equal"):
        sliding_window_probabilities(torch.randn(1, 2, 8, 4), torch.randn(1, 2, 9, 4), (2, 2))
