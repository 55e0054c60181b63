"""What the public operators refuse: one clear error that names the argument, its value and what it must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longformer.kernels import attention_pairs, global_attention, sliding_window_attention, sliding_window_probabilities

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


HUGE = 10**5000  # of more digits than Python writes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": "no"}, "causal is 'no'; it must be True or False"),
        ({"causal": torch.tensor(True)}, r"causal is a tensor of shape \(\); it must be True or False"),
        ({"window": torch.tensor([2, 2])}, r"window is a tensor of shape \(2,\); it must be \(left, right\)"),
        ({"window": (torch.tensor(2), 2)}, r"window is \(tensor\(2\), 2\); it must be"),
        ({"window": (HUGE, -HUGE)}, r"window is a value \(tuple\) with an integer of thousands of digits; it must be"),
        ({"dilation": torch.tensor([1, 2])}, r"dilation is a tensor of shape \(2,\); it must be"),
        ({"dilation": -HUGE}, "dilation is a value .* with an integer of thousands of digits; it must be"),
        ({"scale": torch.tensor(1.0)}, r"scale is a tensor of shape \(\); it must be a finite number"),
        ({"scale": HUGE}, "scale is a value .* with an integer of thousands of digits; it must be a finite number"),
        ({"scale": 1e200}, r"scale is 1e\+200; it must be a finite number below 2\*\*63"),
        ({"dropout_p": torch.tensor(0.1)}, r"dropout_p is a tensor of shape \(\); it must be a number"),
    ],
)
def test_what_is_no_number(changes: dict[str, Any], message: str) -> None:
    query = torch.randn(1, 2, 8, 4)
    with pytest.raises(ValueError, match=message):
        sliding_window_attention(query, query, query, **{"window": (2, 2), **changes})


@pytest.mark.parametrize("sides", [(HUGE, HUGE), (2**63, 2**64)], ids=["digits", "bits"])
def test_windows_and_dilations_beyond_every_sequence(sides: tuple[int, int]) -> None:
    query = torch.randn(1, 2, 8, 4)
    everything = sliding_window_attention(query, query, query, None)
    assert torch.equal(sliding_window_attention(query, query, query, sides), everything)
    itself = sliding_window_attention(query, query, query, (0, 0))
    assert torch.equal(sliding_window_attention(query, query, query, (3, 3), dilation=sides[0]), itself)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to_sparse(), r"is of layout torch.sparse_coo; it must be an ordinary tensor \(for a sparse one"),
        (lambda x: x.to("meta"), "is on the meta device, where tensors have shapes but no numbers"),
    ],
)
@pytest.mark.parametrize("name", ["query", "key", "value", "key_mask", "global_mask"])
def test_tensors_without_numbers(name: str, change: Any, message: str) -> None:
    arguments = dict.fromkeys(("query", "key", "value"), torch.randn(1, 2, 8, 4))
    arguments |= dict.fromkeys(("key_mask", "global_mask"), torch.ones(1, 8, dtype=torch.bool))
    arguments[name] = change(arguments[name])
    if message.startswith("is on the meta") and name in ("key", "value"):
        message = "on meta and query .* on cpu|is on the meta device"
    with pytest.raises(TypeError, match=message):
        sliding_window_attention(window=(2, 2), **arguments)


@pytest.mark.parametrize(
    "seq_len", [0, -1, True, 2**40, HUGE, "8", torch.tensor(8)], ids=lambda value: type(value).__name__
)
def test_lengths_that_are_none(seq_len: Any) -> None:
    with pytest.raises(ValueError, match=r"seq_len is .*; it must be an int >= 1"):
        attention_pairs(seq_len, (2, 2))
