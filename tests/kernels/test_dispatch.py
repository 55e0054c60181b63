"""Which implementation is chosen, and why; the choice of the kernels on a GPU is in ``test_triton.py``."""

from __future__ import annotations

import pytest
import torch

from longformer.kernels import IMPLEMENTATIONS, choose, compat, sliding_window_attention

QUERY = torch.randn(2, 3, 8, 4)


def with_matrix_units_for(monkeypatch: pytest.MonkeyPatch, *dtypes: torch.dtype) -> None:
    """As if the processor had matrix instructions for small products in these dtypes."""
    monkeypatch.setattr(compat, "has_matrix_units", lambda dtype: dtype in dtypes)


def test_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    query = QUERY
    with_matrix_units_for(monkeypatch, torch.bfloat16)
    assert choose(query).impl == choose(query, backward=True).impl == "blocked"
    assert choose(query.bfloat16(), backward=True).impl == "fused"
    assert choose(query.half()).impl == "blocked"
    assert choose(query.bfloat16(), dropout_p=0.1).impl == "blocked"
    assert "no dropout" in choose(query.bfloat16(), dropout_p=0.1).reason
    assert choose(query.to("meta").bfloat16()).impl == "blocked"
    with pytest.raises(ValueError, match=r'impl is "fused", and .* no dropout'):
        choose(query, impl="fused", dropout_p=0.1)
    assert choose(query, impl="fused") == ("fused", "asked for")
    assert choose(query, impl="banded") == ("banded", "asked for")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_matrix_units_all_is_computed_by_hand(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    with_matrix_units_for(monkeypatch)
    assert choose(QUERY.to(dtype)) == ("blocked", "the fastest and the most exact on this processor")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrix_units_are_what_torch_tells(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    for answer in (True, False):
        monkeypatch.setattr(torch.cpu, compat.MATRIX_UNITS[dtype], lambda answer=answer: answer)
        assert compat.has_matrix_units(dtype) is answer
    monkeypatch.delattr(torch.cpu, compat.MATRIX_UNITS[dtype])
    assert not compat.has_matrix_units(dtype)
    assert not compat.has_matrix_units(torch.float32)


@pytest.mark.parametrize("impl", ["auto", "triton", "blocked"])
def test_the_choice_for_what_no_kernel_takes_is_one_clear_error(impl: str) -> None:
    with pytest.raises(TypeError, match="query is a list, not a tensor"):
        choose([1], impl=impl)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"query has shape \(\); it must be \(B, H, S, D\)"):
        choose(torch.tensor(1.0), impl=impl)
    with pytest.raises(TypeError, match=r"query has dtype torch\.float8_e4m3fn; it must be one of"):
        choose(torch.randn(1, 1, 8, 16).to(torch.float8_e4m3fn), impl=impl)


@pytest.mark.parametrize("impl", ["reference", "banded", "blocked", "fused", "chunked"])
def test_every_name_is_an_implementation(impl: str) -> None:
    assert impl in IMPLEMENTATIONS
    out = sliding_window_attention(QUERY, QUERY, QUERY, (2, 2), impl=impl)
    torch.testing.assert_close(out, sliding_window_attention(QUERY, QUERY, QUERY, (2, 2), impl="reference"))
