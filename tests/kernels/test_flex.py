"""FlexAttention under the pattern's mask_mod. Each case is compiled for some seconds on a CPU: there are few."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import torch
from kernel_cases import dense, random_qkv
from torch import Tensor

from longformer.kernels import (
    AttentionPattern,
    Tokens,
    attend,
    attend_globally,
    choose,
    flex,
    global_attention,
    sliding_window_attention,
)

needs_compiler = pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="FlexAttention on a CPU is compiled by a C++ compiler, and there is none",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEQ_LEN = 150  # more than one of its blocks of 128
PLACE = torch.arange(SEQ_LEN, device=DEVICE)
KEEP = torch.stack([PLACE < 101, PLACE % 5 > 0])
IS_GLOBAL = torch.stack([PLACE == 3, PLACE % 40 == 17])


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.to(DEVICE, dtype) for x in random_qkv(2, 2, SEQ_LEN, 16)]


@needs_compiler
@pytest.mark.parametrize(
    ("pattern", "tokens"),
    [
        (AttentionPattern((9, 5), (1, 3)), Tokens.of(KEEP, IS_GLOBAL)),
        (AttentionPattern((140, 0), causal=True), Tokens.of(None, IS_GLOBAL)),
        (AttentionPattern(None), Tokens.of(KEEP)),
    ],
)
def test_it_is_the_pattern(pattern: AttentionPattern, tokens: Tokens) -> None:
    """NaN at padding reaches nobody, and padding is 0."""
    qkv = inputs()
    expected, _ = dense([x.double() for x in qkv], pattern, tokens)
    hidden = [x if tokens.keep is None else x.masked_fill(~tokens.keep[:, None, :, None], float("nan")) for x in qkv]
    with torch.no_grad():
        out = attend(*hidden, pattern, tokens, impl="flex")
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
        if tokens.keep is not None:
            assert (out.transpose(1, 2)[~tokens.keep] == 0).all()
        # Another batch of the same kind is not compiled again.
        with torch.compiler.set_stance("fail_on_recompile"):
            attend(*inputs(), pattern, Tokens(*(None if x is None else x.flip(1) for x in tokens)), impl="flex")


@needs_compiler
def test_global_rows() -> None:
    query, key, value = inputs()
    keep = KEEP.clone()
    keep[0] = False
    with torch.no_grad():
        out = global_attention(query[:, :, :7], key, value, key_mask=keep, impl="flex")
        expected = global_attention(query[:, :, :7], key, value, key_mask=keep, impl="reference")
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
        tokens = Tokens.of(None, IS_GLOBAL)
        out, expected = (attend_globally(query, key, value, tokens, impl=impl) for impl in ("flex", "reference"))
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [128, 150])
def test_blocks_are_those_that_torch_would_find(rows: int) -> None:
    query, key, _ = (torch.empty(2, 2, n, 16) for n in (rows, 300, 300))
    keep, is_global = torch.rand(2, 300) < 0.9, torch.rand(2, 300) < 0.01
    keep[:, 130:260] = True
    mask_mod = AttentionPattern((200, 30), (1, 2)).mask_mod(Tokens.of(keep, is_global), heads=2)
    ours = flex.block_mask(mask_mod, query, key)
    theirs = flex.flex.create_block_mask(mask_mod, 2, 2, rows, 300, device="cpu")
    assert ours.shape == theirs.shape == (2, 2, rows, 300)
    for kind in ("kv", "full_kv"):
        counts, places = (getattr(ours, f"{kind}_{what}") for what in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(theirs, f"{kind}_num_blocks"))
        used = torch.arange(places.shape[-1]) < counts[..., None]
        assert torch.equal(places[used], getattr(theirs, f"{kind}_indices")[used])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_device_gradients_and_log_sum_exp(dtype: torch.dtype) -> None:
    from longformer.kernels.problem import Problem

    pattern, tokens = AttentionPattern((9, 5), (1, 3)), Tokens.of(KEEP, IS_GLOBAL)
    qkv = inputs(dtype)
    grad = torch.randn_like(qkv[0])
    atol = 1e-2 if dtype == torch.bfloat16 else 1e-4
    results = []
    for exact in (True, False):
        leaves = [(x.double() if exact else x).detach().requires_grad_() for x in qkv]
        out, lse = dense(leaves, pattern, tokens) if exact else flex.forward(*leaves, Problem(pattern, tokens, 0.25))
        assert lse is not None
        results.append([out, lse, *torch.autograd.grad(out, leaves, grad.to(out.dtype))])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=atol, atol=atol)


# ---- what it does not do

QUERY = torch.randn(1, 1, 8, 16)


@pytest.mark.parametrize(
    ("query", "more", "message"),
    [
        (
            QUERY.double(),
            {},
            r"FlexAttention knows torch\.float32, torch\.bfloat16, torch\.float16, and not torch\.float64",
        ),
        (QUERY, {"dropout_p": 0.1}, "FlexAttention has no dropout"),
        (QUERY, {"backward": True}, "FlexAttention has no gradients on a CPU"),
        (QUERY.to("meta"), {}, "serves on a GPU or a CPU, and this tensor is on meta"),
    ],
)
def test_refusals_say_why(query: Tensor, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f'impl is "flex", and .*{message}.*; "auto" takes the next that works'):
        choose(query, impl="flex", **more)


def test_gradients_on_a_cpu_are_refused_by_the_call() -> None:
    with pytest.raises(ValueError, match="has no gradients on a CPU"):
        sliding_window_attention(QUERY.clone().requires_grad_(), QUERY, QUERY, (2, 2), impl="flex")


def test_a_transform_and_a_graph_are_refused() -> None:
    def function(query: Tensor) -> Tensor:
        return sliding_window_attention(query, QUERY, QUERY, (2, 2), impl="flex")

    with pytest.raises(ValueError, match=r"compiled by itself here, and cannot stand under torch\.func"):
        torch.func.vmap(function)(QUERY[None])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compiled by itself and cannot stand in another graph"):
        torch.compile(function, fullgraph=True, backend="eager")(QUERY)


def test_without_a_compiler_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler on a CPU, and there is no 'no-such-compiler'"):
        choose(QUERY, impl="flex")


def test_what_cannot_be_compiled_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fails(*_: Any, **__: Any) -> None:
        raise TorchDynamoException("C++ compile error\nand more")

    monkeypatch.setattr(flex, "_compiled", lambda _: fails)
    with pytest.raises(
        ValueError, match=r'FlexAttention could not be compiled here \(C\+\+ compile error\); use "auto"'
    ):
        sliding_window_attention(QUERY, QUERY, QUERY, (2, 2), impl="flex")


def test_a_torch_without_it_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "ABSENT", "No module named 'torch.nn.attention.flex_attention'")
    with pytest.raises(ValueError, match=r"this torch has no FlexAttention \(No module named"):
        choose(QUERY, impl="flex")


def test_auto_never_takes_it() -> None:
    for query in (QUERY, QUERY.double(), QUERY.bfloat16(), QUERY.to("meta")):
        for backward in (False, True):
            assert choose(query, backward=backward).impl != "flex"
