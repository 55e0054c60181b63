"""A NaN or an infinity at a real token: the rows that see it are NaN, and how many more is bounded."""

from __future__ import annotations

import math
import os
import shutil

import pytest
import torch
from kernel_cases import random_qkv, setting
from torch import Tensor

from longformer.kernels import (
    IMPLEMENTATIONS,
    AttentionPattern,
    Tokens,
    attend,
    global_attention,
)

SEQ_LEN = 450
# By implementation, how many rows more a NaN in a key and one in a value may reach on each side, as the README says.
FURTHER = {
    "reference": (0, SEQ_LEN),
    "banded": (0, 127),
    "blocked": (63, 63),
    "fused": (63, 63),
    "chunked": (0, 63 + 60),  # and the window
    "triton": (0, 255),
    "flex": (0, 255),
}


def inputs(impl: str) -> list[Tensor]:
    if impl == "flex" and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("FlexAttention on a CPU is compiled by a C++ compiler, and there is none")
    device, dtype, _ = setting(impl)
    return [x.to(device, torch.float32 if impl == "flex" else dtype) for x in random_qkv(2, 2, SEQ_LEN, 8)]


def reached(out: Tensor) -> Tensor:
    """(B, H, S) bool, rows with a number that is not finite."""
    return (~out.isfinite().all(-1)).cpu()


def test_each_implementation_has_its_bound() -> None:
    assert FURTHER.keys() == {*IMPLEMENTATIONS} - {"auto"}


CASES = [((4, 4), 0), ((0, 9), 201), ((30, 30), SEQ_LEN - 1), ((30, 30), 130)]
SLOW = ("flex", "triton")  # one is compiled for each window, the other interpreted


@pytest.mark.parametrize(
    ("impl", "window", "place"),
    [
        pytest.param(impl, *case, marks=[pytest.mark.exhaustive] if impl in SLOW and case != CASES[-1] else [])
        for impl in FURTHER
        for case in CASES
    ],
)
def test_a_fault_in_one_token(impl: str, window: tuple[int, int], place: int) -> None:
    query, key, value = (x[:1] for x in inputs(impl))
    pattern = AttentionPattern(window)
    sees = pattern.pairs(SEQ_LEN)[0, 0, :, place]
    rows = torch.arange(SEQ_LEN)
    first, last = int(sees.nonzero().min()), int(sees.nonzero().max())

    def attended(which: int, fault: float = math.nan) -> Tensor:
        given = [x.clone() for x in (query, key, value)]
        given[which][0, 0, place] = fault
        with torch.no_grad():
            found = reached(attend(*given, pattern, Tokens(), impl=impl))
        assert not found[0, 1].any()
        return found[0, 0]

    assert torch.equal(attended(0), rows == place) and torch.equal(attended(1, math.inf), attended(1))
    for which, further in zip((1, 2), FURTHER[impl], strict=True):
        found = attended(which)
        near = (rows >= first - further) & (rows <= last + further)
        assert found[sees].all() and not found[~near].any(), (which, found.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "impl", [pytest.param(impl, marks=[pytest.mark.exhaustive] if impl in SLOW else []) for impl in FURTHER]
)
def test_a_fault_in_a_global_token_and_for_rows_of_their_own(impl: str) -> None:
    """Every row sees it, except in another example, and except padding."""
    query, key, value = inputs(impl)
    place = torch.arange(SEQ_LEN)
    tokens = Tokens.of(torch.stack([place >= 0, place < 400]).to(key.device), (place == 7).expand(2, -1).to(key.device))
    key[1, :, 7] = math.nan
    with torch.no_grad():
        found = reached(attend(query, key, value, AttentionPattern((4, 4)), tokens, impl=impl))
        assert torch.equal(found, torch.stack([place < 0, place < 400])[:, None].expand(2, 2, -1))
        found = reached(global_attention(query[:, :, :5], key, value, key_mask=tokens.keep, impl=impl))
    assert not found[0].any() and found[1].all()
