"""The implementation for a GPU: this module launches the fused forward and backward kernels.

:mod:`longformer.kernels.triton_kernels` contains the kernels and explains them. This module decides how many programs
run, and on which block sizes. It is imported only if it is asked for, or when a tensor on a GPU arrives.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    raise ImportError(f"Triton {triton.__version__} is installed, and these kernels want 3.6 or later")

from triton.runtime.interpreter import InterpretedFunction

from . import triton_kernels as kernels
from .problem import LOG2_E, Problem

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_HEAD_DIM = 256
LEAST_CAPABILITY = (8, 0)  # NVIDIA's first compute capability with bfloat16 and TF32
PROGRAMS = 512  # so many programs keep a device busy; if there are too few rows, the columns are split as well
LONGEST_SIDE = 2**31 - 1  # of a window: the largest 32-bit number, more than any sequence's length
CHUNK = 256  # columns or rows are split into multiples of this, for every block size
INTERPRETED = isinstance(kernels.forward, InterpretedFunction)  # TRITON_INTERPRET=1: the kernels run on the CPU


def refusal(query: Tensor) -> str | None:
    """Why these kernels cannot serve such a tensor; None if they can."""
    device, dtype, head_dim = query.device.type, query.dtype, query.shape[-1]
    if device != "cuda" and not (device == "cpu" and INTERPRETED):  # ROCm's devices are called cuda too
        return f"its kernels want a tensor on a GPU, and this one is on {device}"
    if device == "cuda" and INTERPRETED:
        return "TRITON_INTERPRET is set, under which its kernels run on the CPU only"
    if dtype not in DTYPES:
        return f"its kernels know {', '.join(map(str, DTYPES))}, and not {dtype}"
    if head_dim > MOST_HEAD_DIM:
        return f"its kernels take heads of up to {MOST_HEAD_DIM} dimensions, and this one has {head_dim}"
    return _unfit(query.device) if device == "cuda" else None


@functools.cache
def _unfit(device: torch.device) -> str | None:
    """Why Triton cannot work on this GPU; None if it can. This is checked before any kernel is chosen."""
    if not torch.version.hip and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        least, found = (".".join(map(str, x)) for x in (LEAST_CAPABILITY, torch.cuda.get_device_capability(device)))
        return f"its kernels want a GPU of compute capability {least} or later, and this one has {found}"
    try:
        _shared_memory(device)
    except Exception as error:  # the driver raises various errors if a C compiler or Python.h is missing
        first = str(error).strip().partition("\n")[0]
        return f"Triton fails to reach the GPU, for which it needs a C compiler and Python.h ({first})"
    return None


def forward(query: Tensor, key: Tensor, value: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp in float32, see ``problem.py``.

    The problem's tokens hold ``global_index``. Its width is the largest number of global tokens in an example.
    """
    batch, heads, rows, head_dim = query.shape
    out = _new(query, query.dtype)
    lse = query.new_empty(batch, heads, rows, dtype=torch.float32)
    window = _window(problem)
    parts = _parts(batch * heads * -(-rows // 64), key.shape[2]) if window is None else 1
    to, to_lse = out, lse
    if parts > 1:
        to = query.new_empty(parts, batch, heads, rows, head_dim, dtype=torch.float32)
        to_lse = lse.new_empty(parts, batch, heads, rows)
    for run in _runs(query, key, problem):
        q, k, v, o = (x[..., run.heads, :, :] for x in (query, key, value, to))
        _launch(
            kernels.forward,
            lambda meta, run=run: (run.programs(rows, meta["BM"]), parts),
            _config("forward", query, window),
            **run.arguments,
            **_strided(query=q, key=k, value=v, out=o),
            lse=to_lse,
            out_part=to.stride(0) if parts > 1 else 0,
            lse_part=lse.numel(),
            chunk=_chunk(key.shape[2], parts),
            PARTIAL=parts > 1,
            WIDE=_wide(q, k, v, o),
        )
    if parts > 1:
        lines = lse.numel()
        _launch(
            kernels.merge,
            lambda meta: (-(-lines // meta["BM"]),),
            {"BM": 16, "num_warps": 4, "num_stages": 2},
            parts_out=to,
            parts_lse=to_lse,
            out=out,
            lse=lse,
            parts=parts,
            lines=lines,
            rows=rows,
            heads=heads,
            D=head_dim,
            BD=_padded(head_dim),
            PRECISION=precision(query),
        )
    return out, lse


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    problem: Problem,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the gradient of ``out`` (B, H, R, D).

    The other arguments are those of :func:`forward` and its results.
    """
    batch, heads, rows, head_dim = query.shape
    columns = key.shape[2]
    grad_query, grad_key, grad_value = (_new(x, x.dtype) for x in (query, key, value))
    delta = torch.empty_like(lse)
    window = _window(problem)
    parts = _parts(batch * heads * -(-rows // 64), columns) if window is None else 1
    to = grad_query
    if parts > 1:
        to = query.new_empty(parts, batch, heads, rows, head_dim, dtype=torch.float32)
    for run in _runs(query, key, problem):
        q, k, v, o, do, dq = (x[..., run.heads, :, :] for x in (query, key, value, out, grad_out, to))
        _launch(
            kernels.backward_query,
            lambda meta, run=run: (run.programs(rows, meta["BM"]), parts),
            _config("backward_query", query, window),
            **run.arguments,
            **_strided(query=q, key=k, value=v, out=o, grad_out=do, grad_query=dq),
            lse=lse,
            delta=delta,
            grad_part=to.stride(0) if parts > 1 else 0,
            chunk=_chunk(columns, parts),
            grad_scale=problem.scale,
            WIDE=_wide(q, k, v, o, do, dq),
        )
        dk, dv = (x[:, run.heads] for x in (grad_key, grad_value))
        _backward_columns(run, (q, k, v, do, dk, dv), lse, delta, problem)
    if parts > 1:
        grad_query.copy_(to.sum(0))
    return grad_query, grad_key, grad_value


def _backward_columns(run: _Run, tensors: tuple[Tensor, ...], lse: Tensor, delta: Tensor, problem: Problem) -> None:
    """Gradients of key and value. Those of global columns from rows whose band does not contain them come first."""
    q, k, v, do, dk, dv = tensors
    batch, heads, rows, head_dim = q.shape
    columns, index = k.shape[2], _columns_beside(problem)
    slots, parts, width = None, 1, 0
    beside: tuple[Tensor | None, ...] = (None, None)
    if index is not None:
        width = index.shape[1]
        parts = min(_parts(batch * heads * -(-width // 64), rows), max(1, rows // width))  # no more memory than dk
        beside = tuple(q.new_empty(parts, batch, heads, width, head_dim, dtype=torch.float32) for _ in range(2))
        places = torch.arange(width, dtype=torch.int32, device=q.device).expand(batch, width)
        slots = torch.full((batch, columns + 1), -1, dtype=torch.int32, device=q.device)
        slots = slots.scatter_(1, torch.where(index < 0, columns, index).long(), places)[:, :-1].contiguous()
    arguments: dict[str, Any] = {
        **run.arguments,
        **_strided(query=q, key=k, value=v, grad_out=do, grad_key=dk, grad_value=dv),
        "slots": slots,
        "lse": lse,
        "delta": delta,
        "beside_key": beside[0],
        "beside_value": beside[1],
        "batch": batch,
        "parts": parts,
        "chunk": _chunk(rows, parts),
        "grad_scale": problem.scale,
        "WIDE": _wide(*tensors),
    }
    config = _config("backward_key_value", q, _window(problem))
    if index is not None:
        grid = functools.partial(_grid, batch * heads, width, 1, parts)
        _launch(kernels.backward_key_value, grid, config, **arguments, BESIDE=True)
    grid = functools.partial(_grid, batch * heads, columns, run.gap, 1)
    _launch(kernels.backward_key_value, grid, config, **arguments, BESIDE=False)


# ---- how the work is cut


class _Run(NamedTuple):
    """Neighbouring heads of equal dilation. One launch computes them all."""

    batch: int
    heads: slice
    gap: int
    arguments: dict[str, Any]

    def programs(self, rows: int, block: int) -> int:
        return _grid(self.batch * (self.heads.stop - self.heads.start), rows, self.gap, 1, {"BN": block})[0]


def _grid(lines: int, tokens: int, gap: int, parts: int, meta: dict[str, int]) -> tuple[int, int]:
    """Number of programs for the tokens of ``lines`` heads. Each residue class modulo ``gap`` has its own blocks."""
    return lines * gap * math.ceil(math.ceil(tokens / gap) / meta["BN"]), parts


def _runs(query: Tensor, key: Tensor, problem: Problem) -> Iterator[_Run]:
    """The runs of heads, each with the arguments that all kernels take."""
    batch, heads, rows, head_dim = query.shape
    columns, pattern, mask, index = key.shape[2], problem.pattern, problem.tokens.keep, _columns_beside(problem)
    dropped = min(round(problem.dropout_p * 2**31), 2**31 - 1)
    left, right = _window(problem) or (LONGEST_SIDE, LONGEST_SIDE)
    common = {
        "key_mask": None if mask is None else mask.contiguous().view(torch.uint8),
        "index": None if index is None else index.to(torch.int32).contiguous(),
        "count": None if index is None else (index >= 0).sum(1, dtype=torch.int32),
        "seed": problem.seed if dropped else None,
        "left": left,
        "right": 0 if pattern.causal else right,  # also if there is no window
        "rows": rows,
        "columns": columns,
        "all_heads": heads,
        "width": 0 if index is None else index.shape[1],
        "causal": int(pattern.causal),
        "scale": problem.scale * LOG2_E,
        "keep_scale": 1 / (1 - dropped / 2**31),
        "draws": 2 if pattern.window is None else 0,
        "dropped": dropped,
        "D": head_dim,
        "BD": _padded(head_dim),
        "PADDED_ROWS": mask is not None and not problem.gathered,
        "PRECISION": precision(query),
    }
    for run, gap in pattern.head_runs(heads):
        cut = {"heads": run.stop - run.start, "first_head": run.start, "gap": min(gap, columns)}
        yield _Run(batch, run, cut["gap"], {**common, **cut})


def _window(problem: Problem) -> tuple[int, int] | None:
    """(left, right), with right 0 if causal. None means that every token is seen.

    It is not cut to the sequence's length, because autotuning depends on it. The kernels cut it themselves.
    """
    if problem.pattern.window is None:
        return None
    left, right = (min(side, LONGEST_SIDE) for side in problem.pattern.window)
    return left, 0 if problem.pattern.causal else right


def _columns_beside(problem: Problem) -> Tensor | None:
    """(B, width) positions of the global columns; None if there are none, or if the band contains every column."""
    return None if problem.pattern.window is None else problem.tokens.global_index


def _parts(programs: int, tokens: int) -> int:
    """Into how many parts ``tokens`` are split. Without the split, ``programs`` programs would run."""
    return max(1, min(PROGRAMS // programs, -(-tokens // CHUNK)))


def _chunk(tokens: int, parts: int) -> int:
    return -(-tokens // (parts * CHUNK)) * CHUNK


def _padded(head_dim: int) -> int:
    """The next power of two, and at least 16, the smallest side of a matrix product on a GPU."""
    return max(16, 1 << (head_dim - 1).bit_length())


def precision(query: Tensor) -> str:
    """How products are rounded. Those of float32 use TF32 if torch is allowed to use it for its own products."""
    if INTERPRETED and query.dtype == torch.bfloat16:
        return "interpreted"
    products = torch.backends.cuda.matmul
    allowed = products.fp32_precision == "tf32" if hasattr(products, "fp32_precision") else products.allow_tf32
    return "tf32" if allowed and query.dtype == torch.float32 and not torch.version.hip else "ieee"


def _wide(*tensors: Tensor) -> bool:
    """Whether an offset within a head may be too large for 32 bits."""
    return any((x.shape[-2] - 1) * x.stride(-2) + (x.shape[-1] - 1) * x.stride(-1) >= 2**31 for x in tensors)


def _new(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A new (B, H, S, D) tensor that lies in memory as (B, S, H, D), the layout that the model's next layer reads."""
    batch, heads, seq_len, head_dim = x.shape
    return x.new_empty(batch, seq_len, heads, head_dim, dtype=dtype).transpose(1, 2)


def _strided(**tensors: Tensor) -> dict[str, Any]:
    """The tensors, and the strides of their last four dimensions, under the kernels' names for them."""
    strides = {f"{name}_strides": tuple(x.stride()[-4:]) for name, x in tensors.items()}
    return {**tensors, **strides}


# ---- launching


# By head dimension: rows BM and columns BN of a block, warps, stages. They fit into a program's registers on an H100.
CONFIGS = {
    (2, "forward"): {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 64, 8, 2)},
    (2, "backward_query"): {64: (64, 64, 4, 3), 128: (64, 64, 4, 2), 256: (64, 32, 8, 2)},
    (2, "backward_key_value"): {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
    (4, "forward"): {64: (128, 64, 8, 3), 128: (32, 32, 8, 2), 256: (32, 32, 8, 1)},
    (4, "backward_query"): {64: (64, 32, 8, 2), 128: (32, 32, 8, 2), 256: (32, 32, 8, 2)},
    (4, "backward_key_value"): {64: (32, 64, 8, 2), 128: (32, 32, 8, 2), 256: (16, 32, 8, 1)},
}


def _config(kernel: str, query: Tensor, window: tuple[int, int] | None) -> dict[str, int]:
    """Block size, warps and stages. If the window is narrow, blocks are small, so that less lies outside the band."""
    config = dict(_configs(kernel, query.element_size(), query.shape[-1])[0])
    owned, other = ("BN", "BM") if kernel == "backward_key_value" else ("BM", "BN")
    if window is not None and owned == "BM" and sum(min(w, query.shape[2]) for w in window) < 2 * config["BM"]:
        config["BM"] = max(config["BM"] // 2, 16)
    row_bytes, most = _padded(query.shape[-1]) * query.element_size(), _shared_memory(query.device)
    # Shared memory holds rows of two tensors on each side. On the side over which the kernel loops, it holds them once
    # for each stage.
    while 2 * row_bytes * (config[owned] + config["num_stages"] * config[other]) + 2048 > most:
        least = "num_stages" if config["num_stages"] > 1 else max((owned, other), key=lambda side: config[side])
        if config[least] == 16:
            break
        config[least] = config[least] - 1 if least == "num_stages" else config[least] // 2
    return config


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may use."""
    if INTERPRETED:
        return 227 * 1024
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)
    return int(properties["max_shared_mem"])


def _configs(kernel: str, itemsize: int, head_dim: int) -> list[dict[str, int]]:
    """The default configuration, followed by those that autotuning tries as well."""
    table = CONFIGS[itemsize, kernel]
    rows, columns, warps, stages = table[min(size for size in table if size >= head_dim)]
    tried = [
        (rows, columns, warps, stages),
        (rows, columns, 12 - warps, stages),
        (rows, columns, warps, stages + 1),
        (max(16, rows // 2), columns, 4, stages),
        (rows, max(16, columns // 2), warps, stages),
        (rows, 2 * columns, 8, 2),
    ]
    return [{"BM": m, "BN": n, "num_warps": w, "num_stages": s} for m, n, w, s in tried]


def _launch(kernel: Any, grid: Any, config: dict[str, int], **arguments: Any) -> None:
    known = {name: x for name, x in arguments.items() if name in kernel.arg_names}
    if "BN" in kernel.arg_names and os.environ.get("LONGFORMER_AUTOTUNE") == "1" and not INTERPRETED:
        kernel, config = _tuned(kernel, known["query"].element_size(), known["D"]), {}
    device = next(x.device for x in known.values() if isinstance(x, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else torch.no_grad():
        kernel[grid](**known, **config)


@functools.cache
def _tuned(kernel: Any, itemsize: int, head_dim: int) -> Any:
    """``kernel`` with its best configuration for each kind of work. It is measured once and kept on disk."""
    tried = _configs(kernel.fn.__name__, itemsize, head_dim)
    configs = [
        triton.Config({"BM": c["BM"], "BN": c["BN"]}, num_warps=c["num_warps"], num_stages=c["num_stages"])
        for c in tried
    ]
    # Sums beside the band and sums over parts of the columns are other work than a band's, even if the window and the
    # head dimension are equal.
    kinds = [name for name in ("left", "right", "D", "BESIDE", "PARTIAL", "PRECISION") if name in kernel.arg_names]
    return triton.autotune(configs, key=kinds, cache_results=True)(kernel)
