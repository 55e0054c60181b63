"""``attend`` and ``attend_globally``, by which the model reaches the kernels: eagerly and in graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import random_qkv
from torch import Tensor

from longformer.kernels import IMPLEMENTATIONS, AttentionPattern, Tokens, attend, attend_globally, global_attention
from longformer.kernels import pattern as pattern_module

IMPLS = tuple(impl for impl in IMPLEMENTATIONS if impl != "flex")  # compiled for minutes, see test_flex.py
SEQ_LEN = 40
PATTERNS = (AttentionPattern((5, 3)), AttentionPattern((5, 3), (1, 2), True), AttentionPattern(None))


def case() -> tuple[list[Tensor], Tokens]:
    keep = torch.arange(SEQ_LEN)[None] < torch.tensor([[SEQ_LEN], [29]])
    is_global = torch.arange(SEQ_LEN)[None] % torch.tensor([[13], [20]]) == 2
    return random_qkv(2, 2, SEQ_LEN, 8), Tokens.of(keep, is_global)


def dense(qkv: list[Tensor], pairs: Tensor) -> Tensor:
    scores = qkv[0] @ qkv[1].transpose(-2, -1) / qkv[0].shape[-1] ** 0.5
    return scores.masked_fill(~pairs, float("-inf")).softmax(-1).nan_to_num() @ qkv[2]


def skip_without_triton(impl: str) -> tuple[torch.dtype, float]:
    if impl == "triton":
        pytest.importorskip("triton", reason="Triton is not installed: pip install 'longformer[triton]'")
        if torch.cuda.is_available():
            pytest.skip("the interpreter is not at hand where there is a GPU")
        return torch.float32, 1e-5
    return torch.float64, 1e-12


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_attend_is_the_pattern(impl: str, pattern: AttentionPattern) -> None:
    dtype, atol = skip_without_triton(impl)
    qkv, tokens = case()
    expected = dense(qkv, pattern.pairs(SEQ_LEN, tokens, heads=2))
    qkv = [x.to(dtype) for x in qkv]
    for given in (tokens, tokens.with_index(counted=True)):
        actual = attend(*qkv, pattern, given, impl=impl)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("impl", IMPLS)
def test_global_rows_stand_in_their_places(impl: str) -> None:
    dtype, atol = skip_without_triton(impl)
    qkv, tokens = case()
    qkv = [x.to(dtype).requires_grad_() for x in qkv]
    rows = global_attention(*qkv, key_mask=tokens.keep, impl="reference")
    assert tokens.is_global is not None
    expected = torch.where(tokens.is_global[:, None, :, None], rows, 0.0)
    for given in (tokens, tokens.with_index(counted=True)):
        actual = attend_globally(*qkv, given, impl=impl)
        grads = [torch.autograd.grad(x.square().sum(), qkv, retain_graph=True) for x in (actual, expected)]
        for a, b in zip((actual, *grads[0]), (expected, *grads[1]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=10 * atol)
    assert torch.equal(attend_globally(*qkv, Tokens.of(tokens.keep), impl=impl), torch.zeros_like(qkv[0]))
    none = Tokens.of(None, torch.zeros(2, SEQ_LEN, dtype=torch.bool))
    assert torch.equal(attend_globally(*qkv, none, impl=impl), torch.zeros_like(qkv[0]))


@pytest.mark.parametrize("impl", ["auto", "reference", "triton"])
def test_compiled(impl: str) -> None:
    dtype, atol = skip_without_triton(impl)

    def function(query: Tensor, key: Tensor, value: Tensor, keep: Tensor, is_global: Tensor) -> Tensor:
        tokens = Tokens.of(keep, is_global)
        arguments: dict[str, Any] = {"impl": impl}
        local = attend(query, key, value, PATTERNS[1], tokens, **arguments)
        return local + attend_globally(query, key, value, tokens, **arguments)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    qkv, (keep, is_global, _) = case()
    inputs = [x.to(dtype).requires_grad_() for x in qkv]
    results = []
    for run in (function, compiled):
        out = run(*inputs, keep, is_global)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=100 * atol)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_an_index_that_is_there_is_not_made_again(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, _ = skip_without_triton(impl)
    qkv, tokens = case()
    qkv, tokens = [x.to(dtype) for x in qkv], tokens.with_index(counted=True)
    monkeypatch.setattr(pattern_module, "global_index", lambda *_, **__: pytest.fail("an index was made"))
    attend(*qkv, PATTERNS[0], tokens, impl=impl)
    attend_globally(*qkv, tokens, impl=impl)
