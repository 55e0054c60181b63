"""What a pattern takes: pairs, operations, bytes, receptive field by layer; and the time of each kernel that runs it.

Letters: S sequence, H heads, D head dimension, G global tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.bench import formats, machine
from longformer.bench.clocks import GpuClock, cpu_clock
from longformer.bench.plot import require_matplotlib
from longformer.bench.report import format_table
from longformer.bench.timing import Contender, interleave, one_line, say
from longformer.config import LongformerConfig
from longformer.errors import LongformerError, listed, unknown_name
from longformer.kernels import IMPLEMENTATIONS, AttentionPattern, MaskPattern, Tokens, attend, choose
from longformer.kernels.flex import BLOCK
from longformer.kernels.masks import Pattern, of_pairs
from longformer.kernels.pattern import EVERYTHING, global_columns
from longformer.kernels.tiles import ROWS
from longformer.pattern_entries import ITEMS

LONGEST = 8192  # tokens up to which receptive fields are found, by S × S matrices
DRAWN = 256  # tokens in a picture
KERNELS = tuple(impl for impl in IMPLEMENTATIONS if impl != "auto")
SQUARE = ("reference",)  # kernels that compute every pair, whatever the pattern


class Shape(NamedTuple):
    """What is not the pattern: S, H, D, and how many of the first tokens are global beside the pattern's own."""

    seq_len: int
    heads: int
    head_dim: int
    global_tokens: int


class Layers(NamedTuple):
    """Neighbouring layers of one pattern, and what attention of one of them takes.

    pairs: of a row and a column, over heads: of the local rows and of those of global tokens. flops, bytes: 4·D a pair,
    and query, key, value and output, by both projections. reach: of the middle token, behind the last of these layers,
    how many tokens can have changed it; None if nobody counted.
    """

    which: range
    pattern: Pattern
    pairs: int
    flops: int
    bytes: int
    reach: int | None


class KernelTime(NamedTuple):
    """pairs: that the kernel computes. predicted: seconds of its products at the speed of a large matrix product.
    measured: median seconds; None if ``missing`` says why there is none.
    """

    impl: str
    pairs: int
    predicted: float
    measured: float | None
    missing: str = ""


def read_spec(spec: str, layers: int | None, heads: int, head_dim: int) -> tuple[list[Pattern], int, int]:
    """The patterns of the layers that a text, a config.json or a checkpoint names; its heads and their dimension.

    Args:
        spec: a text of :mod:`longformer.pattern_entries`, a file, a folder, or a name on the hub.
        layers, heads, head_dim: of a text, which does not say them; None is as many layers as the text names.

    Raises:
        ConfigError, CheckpointError: there is no such pattern or model.
        LongformerError: the pattern was made with a function.
    """
    path = Path(spec)
    if path.is_file():
        config = LongformerConfig.from_file(path)
    elif not path.exists() and ("=" in spec or spec.replace("/", ",").replace("+", ",").split(",")[0] in ITEMS):
        config = LongformerConfig(
            num_hidden_layers=spec.count("/") + 1 if layers is None else layers,
            num_attention_heads=heads,
            hidden_size=heads * head_dim,
            attention_pattern=spec,
        )
    else:
        config = LongformerConfig.from_pretrained(spec)
    found = [_without_ids(config.pattern(layer)) for layer in range(config.num_hidden_layers)]
    return found, config.num_attention_heads, config.head_dim


def _without_ids(pattern: Pattern) -> Pattern:
    named = pattern.global_tokens
    if named is None or not named.asks_ids:
        return pattern
    say("global tokens that are chosen by their ids are not counted: how many there are, a text decides; see --globals")
    return replace(pattern, global_tokens=replace(named, token_ids=(), predicates=()))


# ---- what it takes


def costs(patterns: Sequence[Pattern], shape: Shape) -> list[Layers]:
    """What the layers take, from the first to the last."""
    reaches = _reaches(patterns, shape) if shape.seq_len <= LONGEST else [None] * len(patterns)
    found: list[Layers] = []
    for layer, pattern in enumerate(patterns):
        if found and found[-1].pattern == pattern:
            found[-1] = found[-1]._replace(which=range(found[-1].which.start, layer + 1), reach=reaches[layer])
            continue
        columns = _columns(pattern, shape)
        local = pattern.cost(shape.seq_len, columns.tolist(), shape.head_dim, heads=shape.heads)
        rows = int((columns + 1).sum()) if pattern.causal else len(columns) * shape.seq_len
        of_global = 4 * shape.heads * shape.head_dim * 2 * (len(columns) + shape.seq_len) if len(columns) else 0
        pairs = local.pairs + rows * shape.heads
        found.append(
            Layers(
                range(layer, layer + 1),
                pattern,
                pairs,
                4 * shape.head_dim * pairs,
                local.bytes + of_global,
                reaches[layer],
            )
        )
    return found


def _columns(pattern: Pattern, shape: Shape) -> Tensor:
    """(G,) positions of the global tokens. Raises LongformerError where there are more than tokens."""
    asked = getattr(pattern.global_tokens, "positions", ())
    beyond = [position for position in (asked if isinstance(asked, tuple) else (asked,)) if position >= shape.seq_len]
    if beyond:
        raise LongformerError(
            f"global token {beyond[0]} lies beyond the {shape.seq_len} tokens, of which the first is 0; give --length "
            f"{max(beyond) + 1} or more"
        )
    try:
        return global_columns(pattern.global_tokens, shape.seq_len, shape.global_tokens)
    except ValueError as error:
        raise LongformerError(str(error)) from None


def _reaches(patterns: Sequence[Pattern], shape: Shape) -> list[int | None]:
    """Behind each layer: how many tokens of the input can have changed the middle token."""
    seen: dict[Pattern, Tensor] = {}
    found: list[int | None] = []
    for top in range(len(patterns)):
        reached = torch.zeros(shape.seq_len, dtype=torch.bool)
        reached[shape.seq_len // 2] = True
        for pattern in patterns[top::-1]:
            if pattern not in seen:
                seen[pattern] = _seen_by_any_head(pattern, shape)
            reached = reached | seen[pattern][reached].any(dim=0)
        found.append(int(reached.sum()))
    return found


def _seen_by_any_head(pattern: Pattern, shape: Shape) -> Tensor:
    """(S, S) bool on the CPU, the rows of global tokens too."""
    columns = _columns(pattern, shape)
    seen = _asked(pattern, shape, columns).any(dim=0)
    rows = replace(EVERYTHING, causal=pattern.causal).pairs(shape.seq_len)[0, 0]
    seen[columns] = rows[columns]
    return seen


def _asked(pattern: Pattern, shape: Shape, columns: Tensor) -> Tensor:
    """(heads that differ, S, S) bool, without the rows of global tokens."""
    is_global = torch.zeros(1, shape.seq_len, dtype=torch.bool)
    is_global[0, columns] = True
    if isinstance(pattern, AttentionPattern):
        pattern = replace(pattern, dilation=tuple(dict.fromkeys(pattern.gaps(shape.heads))))
        return replace(pattern, global_tokens=None).pairs(shape.seq_len, Tokens(None, is_global))[0]
    mask = of_pairs(pattern.mask_mod(Tokens(None, is_global), heads=shape.heads), pattern.name)
    h, place = torch.arange(shape.heads), torch.arange(shape.seq_len)
    first = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    parts = [mask(first, h[:, None, None], rows[:, None], place)[0] for rows in place.split(BLOCK)]
    return torch.cat(parts, dim=1)


# ---- how long it takes


def computed_pairs(impl: str, pattern: Pattern, shape: Shape) -> int:
    """How many pairs a kernel computes for the local rows, those that it masks included."""
    if impl in SQUARE:
        return shape.heads * shape.seq_len**2
    columns = _columns(pattern, shape)
    if impl == "flex":
        count = -(-shape.seq_len // BLOCK)
        asked = _asked(pattern, shape, columns)
        heads = shape.heads // len(asked)
        padded = torch.nn.functional.pad(asked, (0, count * BLOCK - shape.seq_len, 0, count * BLOCK - shape.seq_len))
        blocks = padded.unflatten(2, (count, BLOCK)).unflatten(1, (count, BLOCK)).any(4).any(2)
        return int(blocks.sum()) * BLOCK**2 * heads
    assert isinstance(pattern, AttentionPattern)
    # Tiles of T rows and the columns of their band: T - 1 more than a row has.
    width = min(shape.seq_len, sum(pattern.sides(shape.seq_len)) + ROWS)
    return shape.heads * shape.seq_len * min(shape.seq_len, width + len(columns))


def times(
    pattern: Pattern, shape: Shape, *, dtype: torch.dtype, device: str, rounds: int, kernels: Sequence[str]
) -> list[KernelTime]:
    """Predicted and measured time of each kernel for the local rows of one layer, forward, on random inputs.

    Args:
        kernels: those to measure; the others are left out.
    """
    needed, free = 5 * shape.heads * shape.seq_len * shape.head_dim * dtype.itemsize, machine.available_memory()
    if free is not None and needed > free and device == "cpu":
        raise LongformerError(
            f"query, key, value and output take {formats.gigabytes(needed)}, and {formats.gigabytes(free)} are free; "
            "take fewer heads or tokens, or --no-measure"
        )
    generator = torch.Generator(device=device).manual_seed(0)
    size = (1, shape.heads, shape.seq_len, shape.head_dim)
    query, key, value = (torch.randn(size, generator=generator, device=device).to(dtype) for _ in range(3))
    columns = _columns(pattern, shape)
    is_global = torch.zeros(1, shape.seq_len, dtype=torch.bool, device=device)
    is_global[0, columns] = True
    tokens = Tokens.of(None, is_global if len(columns) else None).with_index(counted=True)
    plain = replace(pattern, global_tokens=None)
    clock = cpu_clock if device == "cpu" else GpuClock()
    speed = machine.product_speed(dtype, clock, device=device) * 1e9
    missing: dict[str, str] = {}
    contenders = []
    for impl in kernels:
        run = partial(attend, query, key, value, plain, tokens, impl=impl)
        try:
            choose(query, impl=impl, pattern=plain)
            if impl in SQUARE and device == "cpu":
                _check_memory(shape)
            say(f"{impl}: first run")
            with torch.no_grad():
                run()
            contenders.append(Contender(impl, _timed(run)))
        except (ValueError, RuntimeError, MemoryError) as error:
            missing[impl] = one_line(error)
    seconds = interleave(contenders, rounds, clock) if contenders else {}
    found = []
    for impl in kernels:
        if impl in missing and not (isinstance(pattern, AttentionPattern) or impl in ("reference", "flex")):
            found.append(KernelTime(impl, 0, 0.0, None, missing[impl]))
            continue
        pairs = computed_pairs(impl, pattern, shape)
        measured = machine.median(seconds[impl]) if impl in seconds else None
        found.append(KernelTime(impl, pairs, 4 * shape.head_dim * pairs / speed, measured, missing.get(impl, "")))
    return found


def _timed(run: Any) -> Any:
    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [run()]

    return forward


def _check_memory(shape: Shape) -> None:
    needed, free = (
        4 * 4 * shape.heads * shape.seq_len**2,
        machine.available_memory(),
    )  # scores, and copies
    if free is not None and needed > free:
        raise ValueError(f"would take {formats.gigabytes(needed)}, and {formats.gigabytes(free)} are free")


# ---- how it is written


def cost_table(found: Sequence[Layers], shape: Shape) -> str:
    """One line for each run of layers of one pattern."""
    rows: list[tuple[str, ...] | str] = [("layers", "pairs", "of all", "GFLOP", "MB", "receptive field")]
    for layers in found:
        first, last = layers.which[0], layers.which[-1]
        rows.append(
            (
                f"{first}" if first == last else f"{first} to {last}",
                formats.thousands(layers.pairs),
                f"{layers.pairs / (shape.heads * shape.seq_len**2):.2%}",
                f"{layers.flops / 1e9:,.3f}",
                f"{layers.bytes / 1e6:,.1f}",
                "" if layers.reach is None else formats.thousands(layers.reach),
            )
        )
        rows.append(f"  {described(layers.pattern)}")
    return format_table(rows)


def time_table(found: Sequence[KernelTime]) -> str:
    """One line for each kernel, the fastest first."""
    rows: list[tuple[str, ...] | str] = [("kernel", "pairs", "predicted", "measured")]
    for each in sorted(found, key=lambda each: (each.measured is None, each.measured or 0.0)):
        if each.measured is None:
            rows.append(f"{each.impl}: {each.missing}")
        else:
            times = (formats.seconds(each.predicted), formats.seconds(each.measured))
            rows.append((each.impl, formats.thousands(each.pairs), *times))
    return format_table(rows)


def described(pattern: Pattern) -> str:
    """A pattern in a few words."""
    if isinstance(pattern, MaskPattern):
        bands = [described(part) if isinstance(part, AttentionPattern) else "a function" for part in pattern.parts]
        words = [" or ".join(bands)]
    else:
        words = ["every token" if pattern.window is None else "{} before and {} behind".format(*pattern.window)]
        gaps = (pattern.dilation,) if isinstance(pattern.dilation, int) else tuple(pattern.dilation)
        if set(gaps) != {1} and pattern.window is not None:
            words.append("dilated by " + ", ".join(map(str, gaps if len(set(gaps)) > 1 else gaps[:1])))
        if pattern.causal:
            words.append("causal")
    named = pattern.global_tokens
    if named is not None:
        words += [f"global: {', '.join(map(str, named.positions))}"] if named.positions else []  # type: ignore[arg-type]
        words += [f"every {n}th token global" for n in named.every]  # type: ignore[union-attr]
        words += ["no other global tokens"] if named.only_these else []
    return "; ".join(words)


def as_json(shape: Shape, layers: Sequence[Layers], kernels: dict[str, list[KernelTime]]) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "shape": shape._asdict(),
        "layers": [
            {
                **each._asdict(),
                "which": [each.which[0], each.which[-1]],
                "pattern": described(each.pattern),
            }
            for each in layers
        ],
        "kernels": {name: [each._asdict() for each in found] for name, found in kernels.items()},
    }


def check_kernels(names: Sequence[str] | None, device: str) -> Sequence[str]:
    """The kernels to time. Raises LongformerError for a name that is none, or for a GPU that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise LongformerError("device is cuda, and there is no GPU here; leave --device out")
    for name in names or ():
        if name not in KERNELS:
            raise LongformerError(unknown_name(name, KERNELS, "kernel"))
    return KERNELS if names is None else names


def check_asked(
    names: Sequence[str], patterns: Sequence[Pattern], shape: Shape, dtype: torch.dtype, device: str
) -> None:
    """Raise LongformerError where a kernel that was asked for by name cannot run one of the patterns here."""
    query = torch.empty(1, shape.heads, 1, shape.head_dim, dtype=dtype, device=device)
    for pattern in dict.fromkeys(patterns):
        refusals = {impl: _refusal(query, impl, pattern) for impl in KERNELS}
        for name in names:
            if refusals[name]:
                can = [impl for impl, refusal in refusals.items() if not refusal]
                raise LongformerError(f"{refusals[name]}; what can run ({described(pattern)}) here: {listed(can)}")


def _refusal(query: Tensor, impl: str, pattern: Pattern) -> str:
    """Why a kernel cannot run a pattern on tensors such as ``query``; "" if it can."""
    try:
        choose(query, impl=impl, pattern=pattern)
    except (ValueError, RuntimeError) as error:
        return one_line(error).partition("; ")[0]
    return ""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of this name, which is known."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def draw(path: str, patterns: Sequence[Pattern], shape: Shape) -> None:
    """Draw the layers, over at most 256 of the tokens, into ``path``.

    Raises:
        LongformerError: matplotlib is not installed, or has no such format.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    from longformer.plotting.figures import check_format, write_figure
    from longformer.plotting.patterns import draw_patterns, grid_size

    check_format(path)
    shown = min(shape.seq_len, DRAWN)
    rows, columns = grid_size(patterns)
    figure = Figure(figsize=(min(24, 4.2 * columns), min(48, 4.6 * rows)), layout="constrained")
    draw_patterns(figure, shown, patterns, global_tokens=range(min(shown, shape.global_tokens)))
    if shown < shape.seq_len:
        figure.suptitle(f"the first {shown} of {shape.seq_len:,} tokens", fontsize=10)
    write_figure(path, figure, dpi=110)
    say(f"wrote {path}")
