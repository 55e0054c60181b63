"""``bench gpu``: attention on a GPU by the Triton kernels, against FlexAttention, flash-attention and transformers.

First everything is checked: the kernels' arguments (``checks.py``), ours at each shape against the float64 reference
where that fits and against the blocked kernel in float64 at full length, every contender against ours at full size.
Then forward and backward are timed apart (``device.py`` has the clock), contenders in turns, each over several input
sets so that no run finds its inputs in the cache; medians are reported. One table comes last.

The shapes come in the order of their weight. What does not fit into the time allowed is listed as left out, and a
shape that fails as an error; the others' figures are saved shape by shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.bench import attention, checks, machine, rivals
from longformer.bench.attention import Inputs, Shape
from longformer.bench.device import PRODUCT, Clock, DeviceClock, describe, peaks, products, require_device
from longformer.bench.report import check_outputs, format_table
from longformer.bench.timing import DisagreementError, one_line, say
from longformer.errors import DataError
from longformer.kernels import dispatch, global_attention, sliding_window_attention

IMPL = "triton"  # what is ours here, and nothing that it might fall back to
SETS = 3  # of inputs, taken in turns
CHECKED_TOKENS = 2048  # at most, where the dense reference in float64 is the judge
WARM_UP = 3  # rounds that do not count
# Rounding, and what half of a sum's terms would cost: in float32 of "ieee" products the largest difference over the
# largest value, where one product in TF32 would show, otherwise the norm of the difference over the norm.
ALLOWED = {"float64": 1e-9, "ieee": 1e-5, "tf32": 2e-3, "bfloat16": 2e-2, "float16": 5e-3}
OURS, INDEXED = "longformer", "longformer, index given"
REACH = Shape(seq_len=16384, window=256, head_dim=64, dtype="bfloat16")


def _ours(shape: Shape, inputs: Inputs, *, index_given: bool = False) -> rivals.Attention:
    """As a model calls it, with a mask of global tokens, or with their index made in advance from it."""
    query, key, value = (x.transpose(1, 2) for x in inputs.local)
    window, device = (shape.window, shape.window), query.device
    if inputs.global_ is None:
        return rivals.Attention(lambda: sliding_window_attention(query, key, value, window, impl=IMPL).transpose(1, 2))
    of_rows = [x.transpose(1, 2) for x in inputs.global_]
    mask = torch.zeros(shape.batch, shape.seq_len, dtype=torch.bool, device=device)
    mask[:, : shape.global_tokens] = True
    places = torch.arange(shape.global_tokens, device=device)
    local = partial(sliding_window_attention, window=window, global_mask=mask, impl=IMPL)
    if index_given:
        index = dispatch.global_index(mask, counted=True)
        local = partial(dispatch.attention, impl=IMPL, window=window, index=index, scale=shape.head_dim**-0.5)

    def forward() -> Tensor:
        rows = global_attention(*of_rows, impl=IMPL).transpose(1, 2)
        return local(query, key, value).transpose(1, 2).index_copy(1, places, rows)

    return rivals.Attention(forward)


CONTENDERS: dict[str, Callable[[Shape, Inputs], rivals.Attention]] = {
    OURS: _ours,
    INDEXED: partial(_ours, index_given=True),
    "FlexAttention, compiled": rivals.flex_attention,
    "flash-attention": rivals.flash_attention,
    "transformers": rivals.transformers_attention,
}


@dataclasses.dataclass
class Result:
    """Of one contender at one shape: milliseconds, run by run, or why there are none.

    products: how ours multiplied, which says by what ``difference`` is measured, see ``ALLOWED``.
    waited: the GPU waited for the host in a run, whose time is then in the figures.
    disagrees: it is missing because its result is another than ours.
    """

    shape: Shape
    name: str
    products: str
    forward: list[float] = dataclasses.field(default_factory=list)
    backward: list[float] = dataclasses.field(default_factory=list)
    waited: bool = False
    difference: float | None = None
    missing: str | None = None
    disagrees: bool = False


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


def distance(found: Sequence[Tensor], exact: Sequence[Tensor], kind: str) -> float:
    """The most of the tensors' differences, as ``ALLOWED`` measures ``kind``; infinite where one is not finite."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, exact, strict=True)]
    order = float("inf") if kind == "ieee" else 2.0
    norm = partial(torch.linalg.vector_norm, ord=order)
    far = [float(norm(a - b) / norm(b).clamp(min=1e-30)) for a, b in pairs]
    return max(x if x == x else float("inf") for x in far)


def check_ours(shape: Shape, device: torch.device | str, kind: str) -> float:
    """Distance of ours, two heads of it, from the dense reference in float64 and, beyond it, from the blocked kernel.

    Raises:
        DisagreementError: it is more than rounding.
    """
    judges = [("reference", min(shape.seq_len, CHECKED_TOKENS))]
    if shape.seq_len > CHECKED_TOKENS:
        judges.append(("blocked", shape.seq_len))
    return max(_distance_from(judge, tokens, shape, device, kind) for judge, tokens in judges)


def _distance_from(judge: str, tokens: int, shape: Shape, device: torch.device | str, kind: str) -> float:
    small = shape.replace(seq_len=tokens, heads=2, global_tokens=min(shape.global_tokens, tokens))
    inputs = make_inputs(small, device, 99, backward=True)

    def widen(projected: Any) -> Any:
        return None if projected is None else tuple(x.detach().double().requires_grad_() for x in projected)

    grad = None if inputs.grad is None else inputs.grad.double()
    wide = Inputs(widen(inputs.local), widen(inputs.global_), grad)
    exact = rivals.Attention(partial(attention._ours, small.replace(dtype="float64"), wide, judge))
    far = distance(results_of(_ours(small, inputs), inputs), results_of(exact, wide), kind)
    if not far <= ALLOWED[kind]:
        raise DisagreementError(
            f"ours is {far:.2g} from the float64 {judge} at {small}, where {ALLOWED[kind]:g} is allowed for {kind} "
            "products; nothing was timed"
        )
    return far


class _Running:
    """A contender that is fit to be timed: built and run once on each set of inputs."""

    def __init__(self, result: Result, made: list[rivals.Attention], sets: list[Inputs]) -> None:
        self.result, self.made, self.sets = result, made, sets
        self.outs = []
        for one in made:
            one.prepare()
            self.outs.append(one.forward())

    def time(self, number: int, clock: Clock) -> None:
        """One run forward and one backward; it counts from number 0."""
        one, inputs, out = self.made[number % SETS], self.sets[number % SETS], self.outs[number % SETS]
        with torch.no_grad():
            one.prepare()
            forward = clock(one.forward, f"{self.result.name} forward")
        run = partial(torch.autograd.grad, out, inputs.leaves, inputs.grad, retain_graph=True)
        backward = clock(run, f"{self.result.name} backward")
        if number >= 0:
            self.result.forward.append(forward.ms)
            self.result.backward.append(backward.ms)
            self.result.waited |= forward.waited or backward.waited

    def leave(self, why: str) -> None:
        """It is out, and holds no memory any more."""
        self.result.missing = why
        self.result.forward, self.result.backward = [], []
        self.made, self.sets, self.outs = [], [], []


def measure(
    shape: Shape,
    device: torch.device | str,
    rounds: int,
    clock: Clock,
    contenders: dict[str, Callable[[Shape, Inputs], rivals.Attention]] | None = None,
    deadline: float = float("inf"),
) -> list[Result]:
    """All contenders at one shape, checked first. In ours a defect is an error; another is then missing.

    Where memory ends in one of ours, the last of the others makes room.

    None is built after ``deadline``, in seconds of ``time.monotonic``, and no second round begun.
    """
    sets = [make_inputs(shape, device, seed, backward=True) for seed in range(SETS)]
    kind = products(sets[0].local[0])
    found: list[Result] = []
    running: list[_Running] = []
    exact: list[Tensor] | None = None
    for name, build in (contenders or CONTENDERS).items():
        if name == INDEXED and not shape.global_tokens:
            continue
        result = Result(shape, name, kind)
        found.append(result)
        if time.monotonic() > deadline:
            result.missing = "no time was left"
            continue
        try:
            made = [build(shape, inputs) for inputs in sets]
            outcome = results_of(made[0], sets[0])
            if exact is None:
                result.difference = check_ours(shape, device, kind)
                exact = outcome
            else:
                result.difference = distance(outcome, exact, kind)
                if not result.difference <= 2 * ALLOWED[kind]:
                    raise DisagreementError(f"differs from ours by {result.difference:.2g}: not timed")
            running.append(_Running(result, made, sets))
        except Exception as error:  # whatever a compiler or a library raises
            if name in (OURS, INDEXED) or not running:
                raise
            result.missing, result.disagrees = one_line(error), isinstance(error, DisagreementError)
    _take_turns(running, rounds, clock, deadline)
    return found


def _take_turns(running: list[_Running], rounds: int, clock: Clock, deadline: float) -> None:
    """Each round starts with another; who fails is out, and if it is one of ours, that is an error."""
    for number in range(-WARM_UP, rounds):
        if not running or (number > 0 and time.monotonic() > deadline):
            break
        turn = number % len(running)
        for one in (*running[turn:], *running[:turn]):
            while one in running:
                try:
                    one.time(number, clock)
                    break
                except Exception as error:
                    out = _who_leaves(one, running, error)
                    if out is None:
                        raise
                    why = "" if out is one else f"made room for {one.result.name}: "
                    out.leave(f"{why}{one_line(error)}")
                    running.remove(out)


def _who_leaves(one: _Running, running: list[_Running], error: Exception) -> _Running | None:
    """Who is out after ``error`` in the turn of ``one``; None if it is one of ours, and is not for want of memory."""
    others = [each for each in running[1:] if each.result.name != INDEXED]
    if one in others:
        return one
    return others[-1] if others and isinstance(error, torch.OutOfMemoryError) else None


def run(
    asked: Sequence[Shape],
    *,
    rounds: int,
    seconds: float,
    save: Callable[[dict[str, Any]], None] = lambda report: None,
) -> dict[str, Any]:
    """Everything measured within ``seconds``, as plain values for :func:`table` and the JSON.

    ``save`` is given the report, as far as it has come, after every shape.
    """
    started = time.monotonic()
    device, clock = require_device(), DeviceClock()
    report: dict[str, Any] = {"machine": describe(device), "peak_tflops": {}, "stopped": None}
    report |= {"results": [], "errors": [], "left_out": [dataclasses.asdict(shape) for shape in asked]}
    try:
        with torch.device(device), _kept_buffers(), _ended_by_signals():
            report["peak_tflops"] = peaks(device, clock)
            say("checking")
            for case in checks.CASES:
                _noting_errors(report, {"case": case.name}, partial(checks.check, case, device, IMPL))
            for shape in asked:
                if time.monotonic() - started > seconds:
                    break
                say(f"{time.monotonic() - started:.0f} s: {_named(shape)}")
                about = {"shape": dataclasses.asdict(shape)}
                measuring = partial(_measure_into, report, shape, device, rounds, clock, started + seconds)
                _noting_errors(report, about, measuring)
                del report["left_out"][0]
                _noting_errors(report, about, partial(save, report))
    except (KeyboardInterrupt, SystemExit) as stop:  # what has been measured is still worth its table
        report["stopped"] = stop.code if isinstance(stop, SystemExit) else 130
        say("stopped")
        _noting_errors(report, {"case": "the end"}, partial(save, report))
    return report


def _measure_into(
    report: dict[str, Any], shape: Shape, device: torch.device, rounds: int, clock: Clock, deadline: float
) -> None:
    _forget()
    results = measure(shape, device, rounds, clock, deadline=deadline)
    report["results"] += [plain(result, report["peak_tflops"]) for result in results]
    for result in results:
        if result.disagrees:  # one of the two is wrong, and it need not be the other
            what = f"DisagreementError: {result.name} {result.missing}"
            report["errors"].append({"shape": dataclasses.asdict(shape), "error": what})


def _noting_errors(report: dict[str, Any], about: dict[str, Any], do: Callable[[], Any]) -> None:
    """A failure here need not be one elsewhere, and costs no other result."""
    try:
        do()
    except Exception as error:
        say(f"error: {one_line(error)}")
        report["errors"].append({**about, "error": f"{type(error).__name__}: {one_line(error)}"})


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does, with the status that shells give it; only the main thread hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _forget() -> None:
    """Free what the shape before held: memory, and graphs, of which torch compiles a function only so many."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def _kept_buffers() -> Iterator[None]:
    """Let a compiled backward pass run again on what the forward pass kept, as timing it alone needs."""
    import torch._functorch.config as config

    with config.patch(donated_buffer=False):
        yield


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


def _judged(kind: str) -> str:
    """What a difference is, in words."""
    if kind == "ieee":
        return "products in full float32, difference by the largest value"
    return f"{'products in TF32, ' if kind == 'tf32' else ''}difference by the norm"


def table(report: dict[str, Any]) -> str:
    """Hardware, one row a contender, and whether the speed that was aimed at was reached."""
    rows: list[tuple[str, ...] | str] = [("", "forward", "x ours", "of product", "backward", "x ours", "difference")]
    ours: dict[str, Any] = {}
    for result in report["results"]:
        if result["name"] == OURS:
            ours = result
            rows.append(f"{_named(Shape(**result['shape']))}; {_judged(result['products'])}")
        if result["missing"]:
            rows.append(f"  {result['name']}  missing: {result['missing']}")
            continue
        rows.append(
            (
                f"  {result['name']}{'*' if result['waited'] else ''}",
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
    if report["stopped"]:
        head.append("stopped before its end")
    head += [
        f"error at {_named(Shape(**e['shape'])) if 'shape' in e else e['case']}: {e['error']}" for e in report["errors"]
    ]
    notes = []
    if any(result["name"] == INDEXED for result in report["results"]):
        notes.append(
            f"{OURS} makes the index of global columns from their mask in its time, and reads their number back; "
            f'"{INDEXED}" has it in advance, as FlexAttention has its block mask'
        )
    if any(result["waited"] for result in report["results"]):
        notes.append("* the GPU waited for the host in some run, and that time is in the figures")
    return "\n".join([*head, *reached(report), "", format_table(rows), *notes])


def reached(report: dict[str, Any]) -> list[str]:
    """The aims at 16,384 tokens, window (256, 256), D 64, bfloat16, and what was measured."""
    at = {r["name"]: r for r in report["results"] if r["shape"] == dataclasses.asdict(REACH) and not r["missing"]}
    if OURS not in at:
        return []
    ours = at[OURS]
    lines = [f"forward at {ours['forward_share']:.0%} of the matrix product (aim 45%)"]
    for name, aims in (
        ("FlexAttention, compiled", {"forward": 1.1, "backward": 1.1}),
        ("transformers", {"forward": 10}),
    ):
        for what, aim in aims.items() if name in at else ():
            lines.append(f"{at[name][f'{what}_ms'] / ours[f'{what}_ms']:.2f} times {name}, {what} (aim {aim})")
    return lines


def outputs(json_file: str | None) -> list[Path]:
    """Where the JSON goes: ``json_file``, and gpu.json in the folder that OUT names, if it is set; that is made.

    Raises:
        DataError: nothing can be written there.
    """
    found = [Path(json_file)] if json_file else []
    folder = os.environ.get("OUT")
    if folder:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"OUT names {folder!r}, and no folder can be made there: {error.strerror}") from None
        found.append(Path(folder) / "gpu.json")
    check_outputs(*map(str, found))
    for path in found:
        if (path.is_file() or not path.exists()) and not os.access(path.absolute().parent, os.W_OK):
            raise DataError(f"{path.absolute().parent} cannot be written to; give another folder for {path.name}")
    return found
