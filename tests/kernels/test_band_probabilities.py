"""Attention probabilities by diagonals: their two ways to keep a global column, held to the dense softmax."""

from __future__ import annotations

import pytest
import torch

from longformer.kernels import AttentionPattern, BandProbabilities, Tokens, sliding_window_probabilities
from longformer.kernels.softmax import masked_softmax


def dense(found: BandProbabilities, pattern: AttentionPattern) -> torch.Tensor:
    """(B, H, S, S), one entry after the other."""
    assert pattern.window is not None
    batch, heads, seq_len, _ = found.band.shape
    matrix = torch.zeros(batch, heads, seq_len, seq_len, dtype=found.band.dtype)
    gaps = pattern.gaps(heads)
    for b, h, i, c in found.band.nonzero().tolist():
        matrix[b, h, i, i + (c - pattern.window[0]) * gaps[h]] += found.band[b, h, i, c]
    for b, h, i, g in found.columns.nonzero().tolist():
        matrix[b, h, i, found.column_index[b, g]] += found.columns[b, h, i, g]
    return matrix


@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern((3, 2)),
        AttentionPattern((2, 3), dilation=(1, 3)),
        AttentionPattern((4, 0), dilation=2, causal=True),
        AttentionPattern((40, 0)),
    ],
)
def test_global_columns_apart(pattern: AttentionPattern) -> None:
    query, key = torch.randn(2, 2, 2, 17, 4, dtype=torch.float64)
    is_global, keep = torch.zeros(2, 17, dtype=torch.bool), torch.ones(2, 17, dtype=torch.bool)
    is_global[0, [0, 5, 6, 16]], is_global[1, 9] = True, True  # in the second example three places are filled up
    keep[1, 13:] = False
    assert pattern.window is not None
    found = sliding_window_probabilities(
        query,
        key,
        pattern.window,
        dilation=pattern.dilation,
        causal=pattern.causal,
        key_mask=keep,
        global_mask=is_global,
    )
    pairs = pattern.pairs(17, Tokens.of(keep, is_global), heads=2)
    expected = masked_softmax(query @ key.mT / 2, pairs)
    apart = found.with_global_columns_apart(pattern)
    torch.testing.assert_close(dense(found, pattern), expected)
    torch.testing.assert_close(dense(apart, pattern), expected)
    in_columns = torch.zeros_like(expected).scatter_add(
        3, apart.column_index.clamp(min=0)[:, None, None].expand_as(apart.columns), apart.columns
    )
    torch.testing.assert_close(in_columns, expected.masked_fill(~is_global[:, None, None], 0))
    assert apart.band.shape == found.band.shape


def test_without_global_tokens_nothing_moves() -> None:
    query, key = torch.randn(2, 1, 2, 9, 4)
    found = sliding_window_probabilities(query, key, (2, 1))
    apart = found.with_global_columns_apart(AttentionPattern((2, 1)))
    assert torch.equal(apart.band, found.band) and apart.columns.shape == (1, 2, 9, 0)


def test_the_mask_of_every_token_has_the_shape_of_any_other() -> None:
    assert AttentionPattern(None).pairs(5).shape == AttentionPattern((1, 1)).pairs(5).shape == (1, 1, 5, 5)
    assert AttentionPattern(None, causal=True).pairs(5).shape == (1, 1, 5, 5)
