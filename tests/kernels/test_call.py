"""``attend`` and ``attend_globally``, by which the model reaches the kernels: eagerly and in graphs."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import dense, random_qkv, setting
from torch import Tensor

from longformer.kernels import (
    IMPLEMENTATIONS,
    AttentionPattern,
    Tokens,
    attend,
    attend_globally,
    call,
    global_attention,
    sliding_window_attention,
)
from longformer.kernels import pattern as pattern_module

IMPLS = tuple(impl for impl in IMPLEMENTATIONS if impl != "flex")  # compiled for minutes, see test_flex.py
SEQ_LEN = 40
PATTERNS = (AttentionPattern((5, 3)), AttentionPattern((5, 0), (1, 2), True), AttentionPattern(None))


def case(impl: str) -> tuple[list[Tensor], Tokens, float]:
    """Query, key and value, padding and global tokens of two examples, and how far off results may be."""
    device, dtype, atol = setting(impl)
    keep = torch.arange(SEQ_LEN)[None] < torch.tensor([[SEQ_LEN], [29]])
    is_global = torch.arange(SEQ_LEN)[None] % torch.tensor([[13], [20]]) == 2
    qkv = [x.to(device, dtype) for x in random_qkv(2, 2, SEQ_LEN, 8)]
    return qkv, Tokens.of(keep.to(device), is_global.to(device)), atol


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_attend_is_the_pattern(impl: str, pattern: AttentionPattern) -> None:
    qkv, tokens, atol = case(impl)
    expected, _ = dense([x.double() for x in qkv], pattern, tokens)
    for given in (tokens, tokens.with_index(counted=True), tokens.with_index(counted=False)):
        actual = attend(*qkv, pattern, given, impl=impl)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("impl", IMPLS)
def test_global_rows_stand_in_their_places(impl: str) -> None:
    qkv, tokens, atol = case(impl)
    leaves = [x.requires_grad_() for x in qkv]
    assert tokens.is_global is not None
    rows = global_attention(*leaves, key_mask=tokens.keep, impl="reference")
    expected = rows.masked_fill(~tokens.is_global[:, None, :, None], 0.0)
    for given in (tokens, tokens.with_index(counted=True), tokens.with_index(counted=False)):
        actual = attend_globally(*leaves, given, impl=impl)
        grads = [torch.autograd.grad(x.square().sum(), leaves, retain_graph=True) for x in (actual, expected)]
        for found, exact in zip((actual, *grads[0]), (expected, *grads[1]), strict=True):
            torch.testing.assert_close(found, exact, rtol=0, atol=10 * atol)
    none = Tokens.of(None, torch.zeros_like(tokens.is_global))
    for without in (Tokens.of(tokens.keep), none, none.with_index(counted=True)):
        assert torch.equal(attend_globally(*qkv, without, impl=impl), torch.zeros_like(qkv[0]))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["auto", "reference", "triton"])
def test_compiled(impl: str) -> None:
    """In one graph with any length; a pattern is a constant of it."""

    def function(query: Tensor, key: Tensor, value: Tensor, keep: Tensor, is_global: Tensor) -> Tensor:
        tokens = Tokens.of(keep, is_global)
        local = attend(query, key, value, PATTERNS[1], tokens, impl=impl)
        everywhere = attend(query, key, value, AttentionPattern(None, causal=True), tokens, impl=impl)
        return local + everywhere + attend_globally(query, key, value, tokens, impl=impl)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    qkv, (keep, is_global, _), atol = case(impl)
    for length in (SEQ_LEN, 31):
        leaves = [x[:, :, :length].detach().requires_grad_() for x in qkv]
        results = []
        for run in (function, compiled):
            out = run(*leaves, keep[:, :length], is_global[:, :length])
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=100 * atol)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_an_index_that_is_there_is_not_made_again(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, tokens, _ = case(impl)
    tokens = tokens.with_index(counted=True)
    monkeypatch.setattr(pattern_module, "global_index", lambda *_, **__: pytest.fail("an index was made"))
    attend(*qkv, PATTERNS[0], tokens, impl=impl)
    attend_globally(*qkv, tokens, impl=impl)


@pytest.mark.parametrize("impl", ["auto", "blocked", "fused", "triton"])
def test_without_gradients_there_is_no_autograd(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short inputs notice what it costs."""
    qkv, tokens, _ = case(impl)
    monkeypatch.setattr(call._Attention, "apply", lambda *_: pytest.fail("autograd was used"))
    attend(*qkv, PATTERNS[0], tokens, impl=impl)
    attend_globally(*qkv, tokens, impl=impl)
    with torch.no_grad():
        out = attend(*(x.requires_grad_() for x in qkv), PATTERNS[0], tokens, impl=impl)
    assert not out.requires_grad


@pytest.mark.parametrize("impl", ["blocked", "fused", "triton"])
def test_what_has_no_derivative_says_so(impl: str) -> None:
    (query, key, value), _, _ = case(impl)

    def loss(query: Tensor, kernel: str = impl) -> Tensor:
        return sliding_window_attention(query, key, value, (2, 2), impl=kernel).square().sum()

    def refused(what: str) -> pytest.RaisesExc:
        return pytest.raises(RuntimeError, match=f'impl="{impl}" {what}; use impl="reference"')

    torch.testing.assert_close(torch.func.grad(loss)(query), torch.func.grad(loss)(query, "reference"))
    with refused(r"does not work under torch\.func\.vmap"):
        torch.func.vmap(loss)(query[None])
    with refused("has no derivative in forward mode"):
        torch.func.jvp(loss, (query,), (query,))
    (grad,) = torch.autograd.grad(loss(query.requires_grad_()), query, create_graph=True)
    with refused("has no second derivative"):
        grad.sum().backward()
    arguments = (None, None, None, None, [2, 2], [1, 1], False, False, 0.3, 0.0, impl)
    with refused(r"does not work under torch\.func\.vmap"):
        torch.func.vmap(lambda q: torch.ops.longformer.attention(q, key, value, *arguments)[0])(query.detach()[None])


def test_masks_that_a_kernel_reads_again_may_not_change() -> None:
    """The kernels on a GPU make no copy of padding; autograd says what happened."""
    qkv, tokens, _ = case("triton")
    out = attend(*(x.requires_grad_() for x in qkv), PATTERNS[0], tokens, impl="triton")
    assert tokens.keep is not None
    tokens.keep.fill_(True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
