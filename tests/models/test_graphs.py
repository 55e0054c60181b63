"""Compiled and exported: the kernels' operators, and the whole question-answering model, any batch and length."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import random_qkv
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from longformer import LongformerConfig, LongformerForQuestionAnswering
from longformer.kernels import call, global_attention, sliding_window_attention
from longformer.kernels.pattern import global_index

CONFIG = LongformerConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=140,
    attention_window=8,
    initializer_range=0.3,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # Triton's interpreter runs only where there is no GPU
SHAPES = ((2, 30, (0, 4)), (3, 41, (1, 0, 7)), (1, 20, (0,)), (2, 97, (30, 0)))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def make_model(impl: str = "auto") -> LongformerForQuestionAnswering:
    return LongformerForQuestionAnswering(CONFIG, impl=impl).eval()


def make_batch(batch: int, seq_len: int, padding: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Questions of different lengths, and padding behind the last separator."""
    ids, mask = torch.randint(5, 60, (batch, seq_len)), torch.ones(batch, seq_len, dtype=torch.long)
    for b, padded in enumerate(padding):
        ids[b, 0] = 0
        ids[b, 3 + b : 5 + b] = ids[b, seq_len - padded - 1] = 2
        ids[b, seq_len - padded :] = 1
        mask[b, seq_len - padded :] = 0
    return ids, mask


def gradients(model: torch.nn.Module, run: Callable[..., Any], *batch: Tensor) -> list[Tensor]:
    model.zero_grad()
    weights = torch.Generator().manual_seed(0)
    start, end = run(*batch)
    ((start + 2 * end) * torch.randn(start.shape, generator=weights, dtype=start.dtype)).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("impl", ["auto", "blocked", "triton"])
@pytest.mark.parametrize("window", [True, False])
def test_operators_are_what_torch_wants_of_operators(impl: str, window: bool) -> None:
    """Schema, results known by shape alone, registered gradients, and both together under symbolic shapes."""
    if impl == "triton":
        pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
    query, key, value = (x.float().to(DEVICE).requires_grad_() for x in random_qkv(2, 2, 20, 16))
    place = torch.arange(20, device=DEVICE)[None]
    index = global_index(place % 11 == torch.tensor([[3], [12]], device=DEVICE), counted=False)
    keep = place < torch.tensor([[20], [17]], device=DEVICE)
    columns, rows = (index, None) if window else (None, index)
    arguments = (keep, columns, rows, None, [5, 5] if window else [], [1, 1], False, not window, 0.25, 0.0, impl)
    torch.library.opcheck(torch.ops.longformer.attention.default, (query, key, value, *arguments))


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch has no partial CUDA graphs")
@pytest.mark.parametrize("operator", ["attention", "attention_backward"])
def test_operators_are_kept_out_of_cuda_graphs(operator: str) -> None:
    """They read back from the device."""
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.longformer, operator).default.tags


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@pytest.mark.slow
def test_compiled_kernels(impl: str) -> None:
    if impl == "triton":
        pytest.importorskip("triton", reason="Triton is not installed: pip install triton")

    def function(query: Tensor, key: Tensor, value: Tensor, globals_: Tensor, keep: Tensor) -> Tensor:
        arguments: dict[str, Any] = {"key_mask": keep, "impl": impl}
        local = sliding_window_attention(query, key, value, (5, 3), global_mask=globals_, **arguments)
        return local + global_attention(query, key, value, **arguments)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for seq_len in (20, 37):
        inputs = [x.float().to(DEVICE).requires_grad_() for x in random_qkv(2, 2, seq_len, 16)]
        keep = torch.rand(2, seq_len, device=DEVICE) < 0.8
        globals_ = torch.rand(2, seq_len, device=DEVICE) < 0.2
        results = []
        for run in (function, compiled):
            out = run(*inputs, globals_, keep)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("impl", "dropout_p"), [("blocked", 0.3), ("fused", 0.0)])
def test_a_compiled_step_computes_the_forward_pass_once(
    impl: str, dropout_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its results and gradients are those of eager mode, by the same seed."""
    calls = []
    once = call._forward
    monkeypatch.setattr(call, "_forward", lambda *a: (calls.append(impl), once(*a))[1])
    inputs = [x.requires_grad_() for x in random_qkv(2, 2, 60, 8)]
    keep = torch.arange(60)[None] < torch.tensor([[60], [41]])
    globals_ = torch.arange(60)[None].expand(2, 60) % 40 == 3
    arguments: dict[str, Any] = {"global_mask": globals_, "key_mask": keep, "dropout_p": dropout_p, "impl": impl}

    def function(*qkv: Tensor) -> Tensor:
        return sliding_window_attention(*qkv, (5, 3), **arguments)

    grad = torch.randn(2, 2, 60, 8, dtype=torch.float64)
    results = []
    for run in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        torch.manual_seed(4)
        out = run(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, grad)])
        assert calls == [impl] * len(results)
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_compiled_dropout_is_drawn_anew_and_repeated_by_a_seed() -> None:
    query, key, value = (x.float() for x in random_qkv(1, 2, 30, 8))
    compiled = torch.compile(
        lambda q: sliding_window_attention(q, key, value, (5, 5), dropout_p=0.5), fullgraph=True, backend="aot_eager"
    )
    torch.manual_seed(1)
    first, second = compiled(query), compiled(query)
    torch.manual_seed(1)
    assert torch.equal(first, compiled(query))
    assert not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_compiled_model_equals_eager_at_any_batch_and_length(impl: str) -> None:
    """Outputs and the gradients of all parameters, from one graph for every shape."""
    model = make_model(impl).double()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for shape in SHAPES:
            batch = make_batch(*shape)
            for actual, expected in zip(compiled(*batch), model(*batch), strict=True):
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    # fullgraph raises at a break. Batches of one are a graph of their own, as everywhere in torch.compile.
    assert counter.frame_count <= 2
    for shape in SHAPES[:2]:
        batch = make_batch(*shape)
        for actual, expected in zip(gradients(model, compiled, *batch), gradients(model, model, *batch), strict=True):
            assert (actual - expected).norm() <= 1e-11 * expected.norm().clamp(min=1)


@pytest.mark.slow
def test_model_compiled_by_inductor() -> None:
    model = make_model().double()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    batch = make_batch(2, 30, (0, 4))
    try:
        actual = gradients(model, compiled, *batch)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"torch cannot compile here: {str(error).splitlines()[0]}")
    for grad, expected in zip(actual, gradients(model, model, *batch), strict=True):
        assert (grad - expected).norm() <= 1e-11 * expected.norm().clamp(min=1)


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_model_equals_eager_at_any_batch_and_length(strict: bool) -> None:
    """And again after it has been saved and loaded; global tokens stand in the graph as a padded index."""
    model = make_model()
    dims = {0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=138)}
    with torch.no_grad():
        program = torch.export.export(model, make_batch(*SHAPES[0]), dynamic_shapes=(dims, dims), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for shape in SHAPES:
            batch = make_batch(*shape)
            for actual, expected in zip(loaded(*batch), model(*batch), strict=True):
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    attentions = [node for node in program.graph.nodes if node.target is torch.ops.longformer.attention.default]
    assert len(attentions) == 2 * CONFIG.num_hidden_layers  # local and global, each layer
    assert not any(node.op == "call_function" and "cond" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
def test_a_graph_still_refuses_bad_input() -> None:
    compiled = torch.compile(make_model(), fullgraph=True, dynamic=True, backend="aot_eager")
    ids, mask = make_batch(2, 30, (0, 4))
    with torch.no_grad():
        compiled(ids, mask)
        with pytest.raises(RuntimeError, match="three separators"):
            compiled(ids.masked_fill(ids == 2, 7), mask)
        with pytest.raises(RuntimeError, match="input_ids out of range"):
            compiled(ids.index_fill(1, torch.tensor([9]), 60), mask)
        with pytest.raises(RuntimeError, match="attention_mask may hold 0"):
            compiled(ids, mask * 3)
