"""``bench gpu``: attention on a GPU by the Triton kernels, against FlexAttention, flash-attention and transformers.

First everything is checked: ours against the float64 reference where that fits, every contender against ours at full
size. Then forward and backward are timed apart, with device events, contenders in turns, each over several input sets
so that no run finds its inputs in the cache; medians are reported. One table comes last. What does not fit into the
time allowed is counted as left out: the shapes come in the order of their weight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.bench import attention, machine, rivals
from longformer.bench.attention import Inputs, Shape
from longformer.bench.report import format_table
from longformer.bench.timing import DisagreementError, UnavailableError, one_line, say
from longformer.errors import LongformerError
from longformer.kernels import choose

SETS = 3  # of inputs, taken in turns
CHECKED_TOKENS = 2048  # at most, where the dense reference in float64 is the judge
PRODUCT = 8192  # rows and columns of the matrix product that stands for the machine's peak
# Norm of the difference over the reference's norm: rounding of the dtype, and what half of a sum's terms would cost.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
REACH = Shape(seq_len=16384, window=256, head_dim=64, dtype="bfloat16")


def flash_attention(shape: Shape, inputs: Inputs) -> rivals.Attention:
    """flash-attention's own sliding window, which has no global columns."""
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise UnavailableError(f"flash-attn is not installed ({one_line(error)})") from None
    if inputs.global_ is not None:
        raise UnavailableError("has no global columns")
    window = (shape.window, shape.window)
    return rivals.Attention(lambda: flash_attn_func(*inputs.local, window_size=window))


def _ours(shape: Shape, inputs: Inputs) -> rivals.Attention:
    return rivals.Attention(partial(attention._ours, shape, inputs, "auto"))


CONTENDERS: dict[str, Callable[[Shape, Inputs], rivals.Attention]] = {
    "longformer": _ours,
    "FlexAttention, compiled": rivals.flex_attention,
    "flash-attention": flash_attention,
    "transformers": rivals.transformers_attention,
}


@dataclasses.dataclass
class Result:
    """Of one contender at one shape: milliseconds, run by run, or why there are none."""

    shape: Shape
    name: str
    forward: list[float] = dataclasses.field(default_factory=list)
    backward: list[float] = dataclasses.field(default_factory=list)
    difference: float | None = None
    missing: str | None = None


def require_device() -> torch.device:
    """The GPU. Raises LongformerError where torch sees none, or where the kernels would not run on it."""
    if not torch.cuda.is_available():
        raise LongformerError(
            f"bench gpu measures on a CUDA or ROCm device, and torch {torch.__version__} sees none here; `longformer "
            "bench attention` measures on a CPU, and TRITON_INTERPRET=1 runs the GPU's kernels there, to test them"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    choice = choose(torch.empty(1, 1, 16, 64, device=device, dtype=torch.bfloat16))
    if choice.impl != "triton":
        raise LongformerError(f"bench gpu measures the Triton kernels, and they do not run here: {choice.reason}")
    return device


def shapes(
    lengths: Sequence[int],
    windows: Sequence[int],
    head_dims: Sequence[int],
    dtypes: Sequence[str],
    globals_: Sequence[int],
) -> list[Shape]:
    """The shape to reach first, then what differs from it in one respect, then in two, and so on; longest last."""
    wanted = [
        REACH.replace(seq_len=s, window=w, head_dim=d, dtype=dtype, global_tokens=g)
        for s in lengths
        for w in windows
        for d in head_dims
        for dtype in dtypes
        for g in globals_
    ]

    def away(shape: Shape) -> tuple[int, int]:
        fields = dataclasses.asdict(REACH)
        return sum(getattr(shape, name) != value for name, value in fields.items()), shape.seq_len

    return sorted(wanted, key=away)


def make_inputs(shape: Shape, device: torch.device | str, seed: int, *, backward: bool) -> Inputs:
    """Normal inputs drawn on the device."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(tokens: int) -> Tensor:
        size = (shape.batch, tokens, shape.heads, shape.head_dim)
        drawn = torch.randn(size, generator=generator, device=device, dtype=torch.float32)
        return drawn.to(shape.torch_dtype).requires_grad_(backward)

    local = (draw(shape.seq_len), draw(shape.seq_len), draw(shape.seq_len))
    global_ = None
    if shape.global_tokens:
        global_ = (draw(shape.global_tokens), draw(shape.seq_len), draw(shape.seq_len))
    return Inputs(local, global_, draw(shape.seq_len).detach() if backward else None)


def results_of(made: rivals.Attention, inputs: Inputs) -> list[Tensor]:
    """Output and gradients of one run."""
    made.prepare()
    out = made.forward()
    return [out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.grad)]


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Largest, over the tensors, norm of the difference over norm; infinite where one is not finite."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, exact, strict=True)]
    far = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs]
    return max(x if x == x else float("inf") for x in far)


def check_ours(shape: Shape, device: torch.device | str) -> float:
    """Distance of ours from the reference in float64, on fewer tokens if it must be.

    Raises:
        DisagreementError: it is more than rounding.
    """
    small = shape.replace(seq_len=min(shape.seq_len, CHECKED_TOKENS), heads=2)
    inputs = make_inputs(small, device, 99, backward=True)

    def widen(projected: Any) -> Any:
        return None if projected is None else tuple(x.detach().double().requires_grad_() for x in projected)

    grad = None if inputs.grad is None else inputs.grad.double()
    wide = Inputs(widen(inputs.local), widen(inputs.global_), grad)
    exact = rivals.Attention(partial(attention._ours, small.replace(dtype="float64"), wide, "reference"))
    far = distance(results_of(_ours(small, inputs), inputs), results_of(exact, wide))
    if not far <= TOLERANCE[shape.torch_dtype]:
        raise DisagreementError(
            f"ours is {far:.2g} from the float64 reference at {small}, where {TOLERANCE[shape.torch_dtype]:g} is "
            "allowed; nothing was timed"
        )
    return far


class DeviceClock:
    """Milliseconds of work on the GPU, by its own events."""

    def __call__(self, run: Callable[[], Any]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        result = run()
        end.record()
        torch.cuda.synchronize()
        del result
        return float(start.elapsed_time(end))


def measure(
    shape: Shape,
    device: torch.device | str,
    rounds: int,
    clock: Callable[[Callable[[], Any]], float],
    contenders: dict[str, Callable[[Shape, Inputs], rivals.Attention]] | None = None,
) -> list[Result]:
    """All contenders at one shape, checked first. In ours a defect is an error; another is then missing."""
    sets = [make_inputs(shape, device, seed, backward=True) for seed in range(SETS)]
    found: list[Result] = []
    running: list[tuple[Result, list[rivals.Attention], list[Tensor]]] = []
    exact: list[Tensor] | None = None
    for name, build in (contenders or CONTENDERS).items():
        result = Result(shape, name)
        found.append(result)
        try:
            made = [build(shape, inputs) for inputs in sets]
            outcome = results_of(made[0], sets[0])
            if exact is None:
                result.difference = check_ours(shape, device)
                exact = outcome
            else:
                result.difference = distance(outcome, exact)
                if not result.difference <= 2 * TOLERANCE[shape.torch_dtype]:
                    raise UnavailableError(f"differs from ours by {result.difference:.2g}: not timed")
            running.append((result, made, [_prepared(one) for one in made]))
        except (UnavailableError, RuntimeError) as error:
            if exact is None:
                raise
            result.missing = one_line(error)
    for number in range(-2, rounds):  # the first two warm up
        turn = number % len(running)
        for result, made, outs in (*running[turn:], *running[:turn]):
            one, inputs, out = made[number % SETS], sets[number % SETS], outs[number % SETS]
            with torch.no_grad():
                one.prepare()
                forward = clock(one.forward)
            backward = clock(partial(torch.autograd.grad, out, inputs.leaves, inputs.grad, retain_graph=True))
            if number >= 0:
                result.forward.append(forward)
                result.backward.append(backward)
    return found


def _prepared(one: rivals.Attention) -> Tensor:
    one.prepare()
    return one.forward()


def peaks(device: torch.device, clock: Callable[[Callable[[], Any]], float]) -> dict[str, float]:
    """TFLOP/s of a large matrix product of random numbers, by dtype; TF32 is off, as torch has it."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=dtype) for _ in range(2))
        times = [clock(partial(torch.mm, a, b)) for _ in range(12)][2:]
        found[machine.name(dtype)] = 2 * PRODUCT**3 / machine.median(times) / 1e9
    return found


def run(asked: Sequence[Shape], *, rounds: int, seconds: float) -> dict[str, Any]:
    """Everything measured within ``seconds``, as plain values for :func:`table` and the JSON."""
    started = time.monotonic()
    device, clock = require_device(), DeviceClock()
    report: dict[str, Any] = {"machine": describe(device), "peak_tflops": peaks(device, clock), "results": []}
    left_out = []
    with torch.device(device), _kept_buffers():
        for shape in asked:
            if time.monotonic() - started > seconds:
                left_out.append(dataclasses.asdict(shape))
                continue
            say(f"{time.monotonic() - started:.0f} s: {_named(shape)}")
            torch.cuda.empty_cache()
            report["results"] += [
                plain(result, report["peak_tflops"]) for result in measure(shape, device, rounds, clock)
            ]
    report["left_out"] = left_out
    return report


@contextlib.contextmanager
def _kept_buffers() -> Iterator[None]:
    """Let a compiled backward pass run again on what the forward pass kept, as timing it alone needs."""
    import torch._functorch.config as config

    with config.patch(donated_buffer=False):
        yield


def describe(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "versions": machine.versions(),
    }


def plain(result: Result, peak: dict[str, float]) -> dict[str, Any]:
    """With medians and shares of the matrix product's speed. Backward is five products, one of them done again."""
    values = dataclasses.asdict(result)
    forward_flop = result.shape.flop(backward=False)
    for name, flop in (("forward", forward_flop), ("backward", 2.5 * forward_flop)):
        times = values[name]
        median = machine.median(times) if times else None
        values[f"{name}_ms"] = median
        speed = peak.get(result.shape.dtype)
        values[f"{name}_share"] = flop / median / 1e9 / speed if median and speed else None
    return values


def _named(shape: Shape) -> str:
    size = f"{shape.seq_len} tokens, window {shape.window}, D {shape.head_dim}"
    return f"{size}, {shape.dtype}, {shape.global_tokens} global"


def table(report: dict[str, Any]) -> str:
    """Hardware, one row a contender, and whether the speed that was aimed at was reached."""
    rows: list[tuple[str, ...] | str] = [("", "forward", "x ours", "of product", "backward", "x ours", "difference")]
    ours: dict[str, Any] = {}
    for result in report["results"]:
        if result["name"] == "longformer":
            ours = result
            rows.append(_named(Shape(**result["shape"])))
        if result["missing"]:
            rows.append(f"  {result['name']}  missing: {result['missing']}")
            continue
        rows.append(
            (
                f"  {result['name']}",
                f"{result['forward_ms']:.3f} ms",
                f"{result['forward_ms'] / ours['forward_ms']:.2f}",
                f"{result['forward_share']:.0%}" if result["forward_share"] else "",
                f"{result['backward_ms']:.3f} ms",
                f"{result['backward_ms'] / ours['backward_ms']:.2f}",
                f"{result['difference']:.0e}",
            )
        )
    peak = ", ".join(f"{name} {speed:.0f}" for name, speed in report["peak_tflops"].items())
    versions = ", ".join(f"{name} {version}" for name, version in report["machine"]["versions"].items() if version)
    head = [report["machine"]["gpu"], versions, f"matrix product of {PRODUCT}, TFLOP/s: {peak}"]
    if report["left_out"]:
        head.append(f"left out for want of time: {len(report['left_out'])} shapes")
    return "\n".join([*head, *reached(report), "", format_table(rows)])


def reached(report: dict[str, Any]) -> list[str]:
    """The aims at 16,384 tokens, window (256, 256), D 64, bfloat16, and what was measured."""
    at = {r["name"]: r for r in report["results"] if r["shape"] == dataclasses.asdict(REACH) and not r["missing"]}
    if "longformer" not in at:
        return []
    ours = at["longformer"]
    lines = [f"forward at {ours['forward_share']:.0%} of the matrix product (aim 45%)"]
    for name, aims in (
        ("FlexAttention, compiled", {"forward": 1.1, "backward": 1.1}),
        ("transformers", {"forward": 10}),
    ):
        for what, aim in aims.items() if name in at else ():
            lines.append(f"{at[name][f'{what}_ms'] / ours[f'{what}_ms']:.2f} times {name}, {what} (aim {aim})")
    return lines


def write(report: dict[str, Any], json_file: str | None) -> None:
    """The JSON, at ``json_file`` and as gpu.json in the folder that OUT names, if it is set."""
    folder = os.environ.get("OUT")
    for path in filter(None, (json_file, str(Path(folder) / "gpu.json") if folder else None)):
        Path(path).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
