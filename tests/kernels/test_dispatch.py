"""Which implementation is chosen, and why; the choice of the kernels on a GPU is in ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch

from longformer.kernels import IMPLEMENTATIONS, choose, sliding_window_attention

QUERY = torch.randn(2, 3, 8, 4)


def test_choice_is_told() -> None:
    query = QUERY
    assert choose(query).impl == "fused"
    assert choose(query, backward=True).impl == "blocked"
    assert choose(query.bfloat16(), backward=True).impl == "fused"
    assert choose(query.bfloat16(), dropout_p=0.1).impl == "blocked"
    assert "no dropout" in choose(query.bfloat16(), dropout_p=0.1).reason
    assert choose(query.to("meta").bfloat16()).impl == "blocked"
    with pytest.raises(ValueError, match=r'impl is "fused", and .* no dropout'):
        choose(query, impl="fused", dropout_p=0.1)
    assert choose(query, impl="fused") == ("fused", "asked for")
    assert choose(query, impl="banded") == ("banded", "asked for")


@pytest.mark.parametrize("impl", ["auto", "triton", "blocked"])
def test_the_choice_for_what_no_kernel_takes_is_one_clear_error(impl: str) -> None:
    with pytest.raises(TypeError, match="query is a list, not a tensor"):
        choose([1], impl=impl)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"query has shape \(\); it must be \(B, H, S, D\)"):
        choose(torch.tensor(1.0), impl=impl)
    with pytest.raises(TypeError, match=r"query has dtype torch\.float8_e4m3fn; it must be one of"):
        choose(torch.randn(1, 1, 8, 16).to(torch.float8_e4m3fn), impl=impl)


def test_wide_heads_are_computed_by_hand_in_float32() -> None:
    """As global rows are that were carried to the hidden states."""
    wide = torch.randn(1, 1, 3, 257)
    assert choose(wide) == ("blocked", "the fastest for heads of more than 256 dimensions")
    assert choose(wide[..., 1:]).impl == choose(wide.bfloat16()).impl == choose(wide, impl="fused").impl == "fused"


@pytest.mark.parametrize("impl", ["reference", "banded", "blocked", "fused", "chunked"])
def test_every_name_is_an_implementation(impl: str) -> None:
    assert impl in IMPLEMENTATIONS
    out = sliding_window_attention(QUERY, QUERY, QUERY, (2, 2), impl=impl)
    torch.testing.assert_close(out, sliding_window_attention(QUERY, QUERY, QUERY, (2, 2), impl="reference"))
