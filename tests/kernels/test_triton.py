"""The GPU's kernels against the specification, by Triton's interpreter where there is no GPU (``conftest.py``)."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kernel_cases
import pytest
import torch
from kernel_cases import random_qkv, run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from longformer import LongformerConfig, LongformerModel, kernels
from longformer.kernels import (
    AttentionPattern,
    Tokens,
    choose,
    dispatch,
    global_attention,
    sliding_window_attention,
)
from longformer.kernels.pattern import global_index
from longformer.kernels.problem import Problem

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
from longformer.kernels import triton_launch

SUPPORT = Path(__file__).parents[1] / "support"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCKS = {"BM": 32, "BN": 16, "num_warps": 4, "num_stages": 1}
# Float32 against float64: a few hundred roundings of 6e-8. One column too many or too few is off by 1e-2.
ROUNDING = 5e-6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that short sequences have whole ones, edges, and ragged ends."""
    monkeypatch.setattr(triton_launch, "_config", lambda *_: BLOCKS)


def set_blocks(monkeypatch: pytest.MonkeyPatch, rows: int, columns: int) -> None:
    monkeypatch.setattr(triton_launch, "_config", lambda *_: {**BLOCKS, "BM": rows, "BN": columns})


def to_device(x: Any) -> Any:
    return x.to(DEVICE) if isinstance(x, Tensor) else x


def assert_equal_to_reference(qkv: list[Tensor], window: tuple[int, int], **arguments: Any) -> Tensor:
    """Output and gradients of float32 inputs within rounding of the reference's in float64. Gives the output."""
    arguments = {name: to_device(x) for name, x in arguments.items()}
    qkv = [x.float().to(DEVICE) for x in qkv]
    grad = torch.randn_like(qkv[0])
    expected = run("reference", [x.double() for x in qkv], grad.double(), window, **arguments)
    found = run("triton", qkv, grad, window, **arguments)
    for actual, exact in zip(found, expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.isfinite(actual).all()
        assert (actual - exact).abs().max() <= ROUNDING * exact.abs().max().clamp(min=1)
    return found[0]


@pytest.mark.parametrize("seq_len", kernel_cases.LENGTHS)
@pytest.mark.parametrize("window", kernel_cases.WINDOWS)
def test_lengths_and_windows(seq_len: int, window: tuple[int, int]) -> None:
    assert_equal_to_reference(random_qkv(1, 1, seq_len, 4), window)


@pytest.mark.parametrize("dilation", kernel_cases.DILATIONS[:-1])
@pytest.mark.parametrize("tokens", kernel_cases.GLOBAL_TOKENS)
def test_global_tokens(dilation: int | tuple[int, ...], tokens: str) -> None:
    """Every dilation and every choice of tokens causal and not, but not every three together.

    Heads that have one dilation are alike, and one is enough.
    """
    causal = (kernel_cases.DILATIONS.index(dilation) + kernel_cases.GLOBAL_TOKENS.index(tokens)) % 2 == 1
    qkv = random_qkv(2, 1 if isinstance(dilation, int) else len(dilation), kernel_cases.GLOBAL_LENGTH, 4)
    globals_ = kernel_cases.global_mask(tokens)
    assert_equal_to_reference(qkv, (6, 0 if causal else 6), dilation=dilation, causal=causal, global_mask=globals_)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["none", "all", "unequal"])
def test_dilation_beyond_the_sequence(tokens: str) -> None:
    """Every token is a class of its own. The interpreter takes seconds for so many programs: one example, two heads."""
    seq_len, causal = 42, tokens == "unequal"
    qkv, globals_ = random_qkv(1, 2, seq_len, 4), kernel_cases.global_mask(tokens)[1:, :seq_len]
    window = (6, 0 if causal else 6)
    assert_equal_to_reference(qkv, window, dilation=(1, seq_len), causal=causal, global_mask=globals_)


@pytest.mark.slow
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("padding", kernel_cases.PADDINGS)
def test_padding(dilation: int, padding: str) -> None:
    keep = kernel_cases.key_mask(padding)
    globals_ = torch.rand(keep.shape) < 0.1
    qkv = random_qkv(3, 1, kernel_cases.PADDED_LENGTH, 4)
    arguments: dict[str, Any] = {"dilation": dilation, "key_mask": keep, "global_mask": globals_}
    out = assert_equal_to_reference(qkv, (7, 4), **arguments)
    assert (out.transpose(1, 2)[~keep.to(DEVICE)] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [(16, 16), (16, 64), (64, 16), (64, 64)])
def test_blocks_of_any_size(blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch, *blocks)
    globals_ = torch.rand(1, 150) < 0.1
    for window in ((40, 25), (0, 70)):
        assert_equal_to_reference(random_qkv(1, 1, 150, 8), window, global_mask=globals_)


def test_global_columns_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients are summed by several programs, over chunks of the rows."""
    monkeypatch.setattr(triton_launch, "CHUNK", 32)
    globals_ = torch.zeros(1, 140, dtype=torch.bool)
    globals_[0, [0, 1, 77, 139]] = True
    assert_equal_to_reference(random_qkv(1, 2, 140, 8), (10, 10), global_mask=globals_, dilation=(1, 2))


@pytest.mark.parametrize("head_dim", [1, 16, 24, 64, 80, 128, 200, 256])
def test_head_dimensions(head_dim: int) -> None:
    assert_equal_to_reference(random_qkv(1, 1, 45, head_dim), (9, 9), global_mask=torch.arange(45)[None] == 40)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_loses_no_more_than_a_plain_softmax(dtype: torch.dtype) -> None:
    """Distance from float64, of outputs and gradients, within twice that of the dense formula in the same precision."""
    arguments = {"global_mask": torch.arange(150, device=DEVICE)[None] < 4}
    qkv = [x.to(DEVICE, dtype) for x in random_qkv(1, 2, 150, 32)]
    grad = torch.randn_like(qkv[0])
    truth = run("reference", [x.double() for x in qkv], grad.double(), (32, 32), **arguments)
    plain = kernel_cases.run_plain(qkv, grad, (32, 32), **arguments)
    for actual, usual, exact in zip(run("triton", qkv, grad, (32, 32), **arguments), plain, truth, strict=True):
        assert actual.dtype == dtype
        assert (actual - exact).norm() <= 2 * (usual - exact).norm()
        assert (actual - exact).abs().max() <= 2 * (usual - exact).abs().max()


def test_huge_and_equal_scores_and_any_scale() -> None:
    query, key, value = (x.float().to(DEVICE) for x in random_qkv(1, 1, 40, 4))
    for factor, scale in ((0.0, None), (1e4, None), (1.0, -0.7), (1.0, 0.0)):
        arguments: dict[str, Any] = {"window": (5, 5), "scale": scale}
        out = sliding_window_attention(query * factor, key * factor, value, impl="triton", **arguments)
        expected = sliding_window_attention(query * factor, key * factor, value, impl="reference", **arguments)
        torch.testing.assert_close(out, expected)


def test_any_strides() -> None:
    contiguous = [x.float().to(DEVICE) for x in random_qkv(2, 3, 40, 8)]
    expected = run("reference", contiguous, torch.ones_like(contiguous[0]), (9, 9))
    packed = torch.stack([x.transpose(1, 2) for x in contiguous], dim=2)  # (B, S, 3, H, D), as one product gives them
    views = [x.transpose(1, 2) for x in packed.unbind(dim=2)]
    odd = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in contiguous]
    broadcast = [x[:1].expand(2, -1, -1, -1) for x in contiguous]
    for qkv in (views, odd):
        inputs = [x.detach().requires_grad_() for x in qkv]
        out = sliding_window_attention(*inputs, (9, 9), impl="triton")
        grads = torch.autograd.grad(out, inputs, out.new_ones(()).expand_as(out))
        for actual, exact in zip((out, *grads), expected, strict=True):
            torch.testing.assert_close(actual, exact, rtol=0, atol=ROUNDING)
    out = sliding_window_attention(*broadcast, (9, 9), impl="triton")
    torch.testing.assert_close(out[0], out[1], rtol=0, atol=0)


def test_offsets_beyond_32_bits() -> None:
    """Rows so far apart that the last ones are 2³¹ numbers and more from the first; nothing between them is touched."""
    seq_len, head_dim, gap = 40, 16, 2**31 // 35
    key = torch.empty(seq_len * gap, dtype=torch.float16, device=DEVICE).as_strided(
        (1, 1, seq_len, head_dim), (0, 0, gap, 1)
    )
    query, near, value = (x.to(DEVICE, torch.float16) for x in random_qkv(1, 1, seq_len, head_dim))
    key.copy_(near)
    grad = torch.randn_like(query)
    problem = Problem(AttentionPattern((9, 9)), Tokens(), 0.25)
    near_out, far_out = (triton_launch.forward(query, x, value, problem)[0] for x in (near, key))
    assert torch.equal(near_out, far_out)
    out, lse = triton_launch.forward(query, near, value, problem)
    near_grads, far_grads = (triton_launch.backward(grad, query, x, value, out, lse, problem) for x in (near, key))
    for a, b in zip(near_grads, far_grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_windows_of_more_steps_than_there_are_do_not_overflow() -> None:
    """Steps times gap is computed in 32 bits; globals stand inside such a window and outside."""
    globals_ = torch.arange(50)[None] % 7 == 3
    for window in ((49, 49), (17, 1), (16, 49), (2**40, 2**30), (1, 2**31)):
        assert_equal_to_reference(random_qkv(1, 2, 50, 4), window, dilation=(3, 30), global_mask=globals_)


def test_memory_that_was_used_before_is_not_read() -> None:
    keep = torch.arange(60)[None] < torch.tensor([[60], [33]])
    globals_ = torch.arange(60)[None].expand(2, 60) == 5
    before = torch.utils.deterministic.fill_uninitialized_memory
    # Only that torch.empty is filled is wanted; on a GPU not all that the reference calls is deterministic.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # torch.empty gives NaN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.empty(3, device=DEVICE).isnan().all()
            assert_equal_to_reference(random_qkv(2, 2, 60, 20), (8, 8), key_mask=keep, global_mask=globals_)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


# ---- dropout


def dropout_case(seed: int, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Probabilities (1, H, S, S), before and after dropout: the values are unit vectors."""
    set_blocks(monkeypatch, *blocks)
    torch.manual_seed(1)
    seq_len = 48
    query, key, _ = (x.float().to(DEVICE) for x in random_qkv(1, 3, seq_len, seq_len))
    value = torch.eye(seq_len, device=DEVICE).expand(1, 3, seq_len, seq_len)
    arguments: dict[str, Any] = {
        "window": (9, 6),
        "dilation": (1, 1, 2),
        "global_mask": torch.arange(seq_len, device=DEVICE)[None] % 20 == 3,
        "impl": "triton",
    }
    probs = sliding_window_attention(query, key, value, **arguments)
    torch.manual_seed(seed)
    return probs, sliding_window_attention(query, key, value, dropout_p=0.3, **arguments)


def test_dropout_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    probs, dropped = dropout_case(5, (16, 16), monkeypatch)
    for blocks in ((32, 16), (16, 64)):
        _, again = dropout_case(5, blocks, monkeypatch)
        assert torch.equal(dropped == 0, again == 0)
    _, other = dropout_case(6, (16, 16), monkeypatch)
    assert not torch.equal(dropped == 0, other == 0)
    seen = probs > 0
    assert abs((dropped[seen] == 0).float().mean() - 0.3) < 0.03
    heads = (dropped == 0)[:, 0][seen[:, 0]], (dropped == 0)[:, 1][seen[:, 0]]
    assert 0.35 < (heads[0] == heads[1]).float().mean() < 0.8  # 0.58 if independent
    torch.testing.assert_close(dropped[dropped > 0], (probs / 0.7)[dropped > 0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("blocks", [(16, 32), (32, 16)])
def test_dropout_of_forward_and_backward_is_the_same(blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients against the dense formula with the mask that the forward pass showed."""
    set_blocks(monkeypatch, *blocks)
    seq_len, p = 48, 0.4
    window, globals_ = (9, 6), (torch.arange(seq_len, device=DEVICE)[None] % 20 == 3)
    query, key, value = (x.float().to(DEVICE) for x in random_qkv(1, 2, seq_len, 8))
    tokens = Tokens.of(None, globals_).with_index(counted=True)
    seed = torch.tensor([1234567890123], device=DEVICE)
    problem = Problem(AttentionPattern(window, (1, 2)), tokens, 0.5, p, seed)
    eye = torch.eye(seq_len, device=DEVICE).expand(1, 2, seq_len, seq_len).contiguous()
    wide = [torch.nn.functional.pad(x, (0, seq_len - 8)) for x in (query, key)]
    dropped, _ = triton_launch.forward(*wide, eye, problem)
    pairs = kernels.attention_pairs(seq_len, window, dilation=(1, 2), global_mask=globals_, device=DEVICE)
    kept = (dropped != 0).double() / (1 - p)
    exact = [x.double().requires_grad_() for x in (query, key, value)]
    scores = 0.5 * exact[0] @ exact[1].transpose(2, 3)
    expected = (scores.masked_fill(~pairs, float("-inf")).softmax(-1) * kept) @ exact[2]
    grad = torch.randn_like(query)
    expected.backward(grad.double())
    out, lse = triton_launch.forward(query, key, value, problem)
    grads = triton_launch.backward(grad, query, key, value, out, lse, problem)
    for actual, wanted in zip((out, *grads), (expected, *(x.grad for x in exact)), strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5)


def test_same_bits_again() -> None:
    qkv = [x.float().to(DEVICE) for x in random_qkv(1, 2, 70, 8)]
    globals_ = torch.rand(1, 70, device=DEVICE) < 0.1
    grad = torch.randn_like(qkv[0])

    def results() -> list[Tensor]:
        torch.manual_seed(3)
        return run("triton", qkv, grad, (9, 9), global_mask=globals_, dropout_p=0.2)

    for first, again in zip(results(), results(), strict=True):
        assert torch.equal(first, again)


# ---- global attention


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize(("seq_len", "chunk"), [(1, 256), (40, 256), (300, 256), (300, 64)])
@pytest.mark.parametrize("padding", [False, True])
def test_global_attention(rows: int, seq_len: int, padding: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split along the keys into chunks, of which some hold padding alone."""
    monkeypatch.setattr(triton_launch, "CHUNK", chunk)
    query = torch.randn(2, 1, rows, 4, device=DEVICE)
    _, key, value = (x.float().to(DEVICE) for x in random_qkv(2, 1, seq_len, 4))
    keep = None
    if padding:
        keep = torch.rand(2, seq_len, device=DEVICE) < 0.5
        keep[:, 64:128] = False
        keep[1, seq_len // 2 :] = False
    grad = torch.randn_like(query)
    results = []
    for impl, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
        out = global_attention(*inputs, key_mask=keep, impl=impl)
        out.backward(grad.to(dtype))
        results.append([out.detach(), *(x.grad for x in inputs)])
    for exact, actual in zip(*results, strict=True):
        assert (actual - exact).abs().max() <= ROUNDING * exact.abs().max().clamp(min=1)


def test_global_attention_without_any_key_is_0() -> None:
    query, key, value = (x.float().to(DEVICE).requires_grad_() for x in random_qkv(1, 2, 5, 4))
    keep = torch.zeros(1, 5, dtype=torch.bool, device=DEVICE)
    out = global_attention(query, key, value, key_mask=keep, impl="triton")
    grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert all((x == 0).all() for x in (out, *grads))


def test_an_eager_model_hands_its_index_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks the device once how many tokens are global, and no layer does. The result is the reference's."""
    config = LongformerConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=140, attention_window=8, initializer_range=0.3,
    )  # fmt: skip
    models = [LongformerModel(config, impl=impl).eval().to(DEVICE) for impl in ("triton", "reference")]
    models[1].load_state_dict(models[0].state_dict())
    ids, mask = torch.randint(5, 60, (2, 30), device=DEVICE), torch.ones(2, 30, dtype=torch.long, device=DEVICE)
    mask[:, [0, 3, 17]], mask[1, 20:] = 2, 0
    made = []
    monkeypatch.setattr(
        kernels.pattern, "global_index", lambda *a, **named: (made.append(named), global_index(*a, **named))[1]
    )
    with torch.no_grad():
        actual, expected = (model(ids, mask)[0] for model in models)
    assert len(made) <= len(models)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- the choice, and what is refused


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 1, 8, 16, device=DEVICE)
    with pytest.raises(ValueError, match=r'impl is "triton", and .*not torch\.float64; "auto" takes the next'):
        choose(query.double(), impl="triton")
    with pytest.raises(ValueError, match="up to 256 dimensions, and this one has 257"):
        sliding_window_attention(*[torch.randn(1, 1, 8, 257, device=DEVICE)] * 3, (2, 2), impl="triton")
    with pytest.raises(ValueError, match="tensor on a GPU, and this one is on meta"):
        choose(query.to("meta"), impl="triton")
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    with pytest.raises(ValueError, match="tensor on a GPU, and this one is on cpu"):
        choose(query.cpu(), impl="triton")


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, probe: Any, capability: tuple[int, int] = (9, 0)) -> Tensor:
    """A tensor that says that it is on one, where Triton and torch answer so."""
    monkeypatch.setattr(triton_launch, "INTERPRETED", False)
    monkeypatch.setattr(triton_launch, "_shared_memory", probe)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    triton_launch._unfit.cache_clear()
    with FakeTensorMode():
        return torch.empty(1, 1, 8, 16, device="cuda")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    yield
    triton_launch._unfit.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_a_gpu_that_triton_cannot_reach_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """And "auto" takes the next: nothing fails inside Triton."""

    def no_compiler(device: torch.device) -> int:
        raise RuntimeError("Failed to find C compiler. Please specify via CC.\nand more")

    query = on_a_gpu(monkeypatch, no_compiler)
    choice = choose(query)
    assert choice.impl == "blocked"
    assert choice.reason.endswith("needs a C compiler and Python.h (Failed to find C compiler. Please specify via CC.)")
    with pytest.raises(ValueError, match='impl is "triton", and Triton fails to reach the GPU'):
        choose(query, impl="triton")
    query = on_a_gpu(monkeypatch, lambda device: 65536, (7, 5))
    assert choose(query).impl == "blocked"
    assert "compute capability 8.0 or later, and this one has 7.5" in choose(query).reason
    assert choose(on_a_gpu(monkeypatch, lambda device: 65536, (8, 0))) == ("triton", "fused kernels on a GPU")


@pytest.mark.parametrize("version", ["3.2.0", "3.5.1+git"])
def test_an_old_triton_has_a_reason(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch.triton, "__version__", version)
    monkeypatch.delitem(sys.modules, triton_launch.__name__)
    with FakeTensorMode():
        query = torch.empty(1, 1, 8, 16, device="cuda")
    assert choose(query).impl == "blocked"
    assert f"Triton {version} is installed, and these kernels want 3.6 or later" in choose(query).reason
    with pytest.raises(ValueError, match=r"want 3\.6 or later"):
        choose(torch.randn(1, 1, 8, 16), impl="triton")


def test_a_graphs_index_is_cut_to_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the sequence it would leave the global columns' sums to one program a head."""
    widths = []
    columns = triton_launch._backward_columns
    monkeypatch.setattr(
        triton_launch,
        "_backward_columns",
        lambda *a: (widths.append(a[-1].tokens.global_index.shape[1]), columns(*a))[1],
    )
    qkv = [x.float().to(DEVICE).requires_grad_() for x in random_qkv(2, 1, 40, 4)]
    mask = torch.arange(40, device=DEVICE)[None] % torch.tensor([[13], [20]], device=DEVICE) == 2
    results = []

    def attention(index: Tensor | None) -> Tensor:
        arguments = (None, index, None, None, [3, 3], [1], False, False, 0.5, 0.0, "triton")
        return torch.ops.longformer.attention(*qkv, *arguments)[0]

    for counted in (False, True):
        out = attention(global_index(mask, counted=counted))
        results.append([out, *torch.autograd.grad(out.sum(), qkv)])
    assert widths == [3, 3]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    none = global_index(torch.zeros_like(mask), counted=False)
    assert torch.equal(attention(none), attention(None))


@pytest.mark.slow
def test_documents_of_many_lengths_share_kernels_and_what_was_tuned(tmp_path: Path) -> None:
    """Compiled for a number's being 1 or divisible by 16, or tuned for a length, each document would wait anew."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    for tuned in ("0", "1"):
        environment["LONGFORMER_AUTOTUNE"] = tuned
        command = [sys.executable, str(SUPPORT / "launches.py")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        if tuned == "0":
            assert report["compiled"][-1] <= 14 and report["tuned"][-1] == 0
        else:
            # Of the last ones the window is another.
            assert report["tuned"][0] > 0 and len(set(report["tuned"][:-1])) == 1
            assert report["tuned"][-1] > report["tuned"][0]


def test_without_triton_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: str) -> None:
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(dispatch.importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"No module named 'triton'\); pip install triton"):
        choose(torch.randn(1, 1, 8, 16), impl="triton")
    assert choose(torch.randn(1, 1, 8, 16)).impl in ("fused", "blocked")


def test_it_is_not_loaded_unasked() -> None:
    code = "import sys, torch, longformer.kernels as k; q = torch.randn(1, 1, 8, 16)\n"
    code += "k.sliding_window_attention(q, q, q, (2, 2)); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


H100, A100, MI300 = ("cuda", "90"), ("cuda", "80"), ("hip", "gfx942")
REST = {
    "bfloat16": "bfloat16-64 bfloat16-128 bfloat16-256 bfloat16-128-causal bfloat16-64-global float16-80-causal",
    "float32": "float32-64 float32-128 float32-256 float32-64-causal float32-256-global",
    "tf32": "float32-64-tf32 float32-128-tf32 float32-256-tf32",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "cases"),
    [
        (H100, "bfloat16-64 bfloat16-128-causal float32-64-tf32 bfloat16-64-padded"),
        (H100, "float32-128-plain bfloat16-256-plain float16-80-narrow float32-16-global"),
        (A100, "float32-64-plain"),
        (MI300, "bfloat16-64-plain"),
        *(
            pytest.param(target, cases, marks=pytest.mark.exhaustive)
            for target in (H100, A100, MI300)
            for cases in REST.values()
        ),
    ],
)
def test_they_compile_for_a_gpu_that_is_not_here(target: tuple[str, str], cases: str, tmp_path: Path) -> None:
    """Launched as they would be, they come out of the compiler, in no more shared memory than the device has."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(SUPPORT / "compile_for_gpu.py"), *target, *cases.split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    merged = {"merge"} if "global" in cases else set()
    assert set(done.stdout.split()) == {"forward", "backward_query", "backward_key_value"} | merged


# ---- on a real device


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
def test_on_a_device_with_its_own_blocks(dtype: torch.dtype, head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    keep = torch.arange(1500, device="cuda")[None] < torch.tensor([[1500], [1201]], device="cuda")
    arguments: dict[str, Any] = {"global_mask": torch.arange(1500, device="cuda")[None].expand(2, -1) % 500 == 7}
    qkv = [x.to("cuda", dtype) for x in random_qkv(2, 2, 1500, head_dim)]
    grad = torch.randn_like(qkv[0])
    for more in ({}, {"key_mask": keep}, {"dilation": (1, 3)}, {"causal": True}):
        arguments = {**arguments, **more}
        truth = run("reference", [x.double() for x in qkv], grad.double(), (256, 256), **arguments)
        plain = kernel_cases.run_plain(qkv, grad, (256, 256), **arguments)
        for actual, usual, exact in zip(run("auto", qkv, grad, (256, 256), **arguments), plain, truth, strict=True):
            assert (actual - exact).norm() <= 2 * (usual - exact).norm()
    assert choose(qkv[0]) == ("triton", "fused kernels on a GPU")


@pytest.mark.gpu
def test_on_a_device_same_bits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    qkv = [x.to("cuda", torch.bfloat16) for x in random_qkv(2, 4, 3000, 64)]
    globals_ = torch.arange(3000, device="cuda")[None].expand(2, -1) < 40
    grad = torch.randn_like(qkv[0])

    def results() -> list[Tensor]:
        torch.manual_seed(3)
        return run("triton", qkv, grad, (256, 256), global_mask=globals_, dropout_p=0.1)

    for first, again in itertools.product([results()], [results() for _ in range(3)]):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_on_a_device_tf32_is_as_torch_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    qkv = [x.to("cuda", torch.float32) for x in random_qkv(1, 2, 1000, 64)]
    truth = sliding_window_attention(*(x.double() for x in qkv), (64, 64), impl="reference")
    before = torch.get_float32_matmul_precision()
    errors = []
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            errors.append(
                float((sliding_window_attention(*qkv, (64, 64), impl="triton") - truth).norm() / truth.norm())
            )
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors[0] < 1e-5 < errors[1] < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(("device", "seq_len"), [("cpu", 40), pytest.param("cuda", 600, marks=pytest.mark.gpu)])
def test_a_model_by_these_kernels_computes_what_it_does_by_a_cpus(
    device: str, seq_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and all gradients in float32, a batch at once, and compiled; and exported."""
    if device == "cuda":
        monkeypatch.undo()
    elif DEVICE == "cuda":
        pytest.skip("the interpreter is not at hand where there is a GPU")
    config = LongformerConfig(
        vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=700, attention_window=seq_len // 10, initializer_range=0.1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ids, mask = torch.randint(5, 60, (2, seq_len)), torch.ones(2, seq_len, dtype=torch.long)
    mask[:, :5], mask[1, 2 * seq_len // 3 :] = 2, 0
    usual = LongformerModel(config, add_pooling_layer=False)  # a graph gives a gradient to what nothing uses, too
    model = LongformerModel(config, add_pooling_layer=False, impl="triton")
    model.load_state_dict(usual.state_dict())
    model, batch = model.to(device), [ids.to(device), mask.to(device)]
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    weights = torch.randn(2, seq_len, 64)  # a plain sum of squares after LayerNorm is constant
    results = []
    for run_, inputs in ((usual, (ids, mask)), (model, batch), (compiled, batch)):
        model.zero_grad()
        out = run_(*inputs)[0]
        (out * weights.to(out.device)).sum().backward()
        parameters = (usual if run_ is usual else model).parameters()
        results.append([out.detach().cpu(), *(x.grad.cpu() for x in parameters)])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert (actual - expected).norm() <= 1e-4 * expected.norm().clamp(min=1)
    with torch.no_grad():
        exported = torch.export.export(model.eval(), tuple(batch)).module()
        torch.testing.assert_close(exported(*batch)[0].cpu(), results[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_on_a_device_what_is_tuned_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("LONGFORMER_AUTOTUNE", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert_equal_to_reference(random_qkv(1, 2, 1000, 64), (64, 64), global_mask=torch.arange(1000)[None] < 5)
    assert list(tmp_path.rglob("*.autotune.json"))
