"""``longformer bench``: its subcommands and options. What is slow to import is imported where it is run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from longformer.bench.timing import Record

Command = TypeVar("Command", bound=Callable[..., Any])

POSITIVE = click.IntRange(min=1)


class Numbers(click.ParamType):
    """``1024,2048``: numbers with commas between, each at least ``least``."""

    name = "N[,N...]"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is neither a number nor numbers with commas between", parameter, context)
        if min(numbers) < self.least:
            self.fail(f"{min(numbers)} is too small; give at least {self.least}", parameter, context)
        return numbers


class Names(click.ParamType):
    """``float32,bfloat16``: names with commas between."""

    name = "NAME[,NAME...]"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))


def common(rounds: int) -> Callable[[Command], Command]:
    """Options of every benchmark; ``rounds`` by default."""

    def decorate(command: Command) -> Command:
        for option in (
            click.option("--plot", metavar="FILE.png", help="Draw the result into this file."),
            click.option("--json", "json_file", metavar="FILE.json", help="Write everything measured to this file."),
            click.option(
                "--threads", type=POSITIVE, metavar="N", help="Threads to compute with; torch's choice if not given."
            ),
            click.option(
                "--rounds",
                type=POSITIVE,
                default=rounds,
                show_default=True,
                metavar="N",
                help="How often each contender is measured; medians are reported.",
            ),
        ):
            command = option(command)
        return command

    return decorate


def architecture(command: Command) -> Command:
    """Options that say which model."""
    for option in (
        click.option(
            "--variants",
            type=Names(),
            default="float32,bfloat16",
            show_default=True,
            help="Precisions of our model, each beside transformers in the dtype that is nearest.",
        ),
        click.option(
            "--config", metavar="FILE", help="A config.json; the released base model's architecture if not given."
        ),
    ):
        command = option(command)
    return command


def attention_shape(command: Command) -> Command:
    """Options that say which attention."""
    for option in (
        click.option("--impls", type=Names(), default="auto", show_default=True, help="Our implementations."),
        click.option(
            "--window", type=POSITIVE, default=256, show_default=True, metavar="N", help="Tokens seen on each side."
        ),
        click.option("--head-dim", type=POSITIVE, default=64, show_default=True, metavar="D", help="Size of a head."),
        click.option("--heads", type=POSITIVE, default=12, show_default=True, metavar="H", help="How many heads."),
        click.option("--batch", type=POSITIVE, default=1, show_default=True, metavar="B", help="How many sequences."),
    ):
        command = option(command)
    return command


@click.group()
def bench() -> None:
    """Measure ours against transformers, FlexAttention and dense attention, whichever is installed.

    All run in turns in one process, after a check that they agree on the result. Progress goes to standard error, one
    table to standard output.
    """


@bench.command()
@click.option("--length", type=POSITIVE, default=4096, show_default=True, metavar="S", help="Tokens.")
@click.option("--globals", "global_counts", type=Numbers(0), default="0,64", show_default=True, help="Global tokens.")
@click.option("--dtype", "dtypes", type=Names(), default="float32,bfloat16", show_default=True, help="Precisions.")
@click.option("--backward/--no-backward", default=True, show_default=True, help="Measure forward with backward too.")
@attention_shape
@common(rounds=15)
def attention(
    length: int, global_counts: tuple[int, ...], dtypes: tuple[str, ...], backward: bool, **options: Any
) -> None:
    """One layer's attention, without its projections."""

    def records(rounds: int, impls: tuple[str, ...], **shape: Any) -> list[Record]:
        from longformer.bench import attention, timing

        shapes = [
            attention.Shape(seq_len=length, global_tokens=count, dtype=_dtype(dtype), **shape)
            for dtype in dtypes
            for count in global_counts
        ]
        ours = _ours(impls)
        return [
            timing.measure(case, rounds) for at in shapes for case in attention.cases(at, ours=ours, backward=backward)
        ]

    _run(
        "attention",
        records,
        {"length": length, "globals": global_counts, "dtype": dtypes, "backward": backward},
        options,
    )


@bench.command()
@click.option("--lengths", type=Numbers(5), default=None, help="Tokens of each document.  [default: 4096,170]")
@click.option(
    "--globals", "global_tokens", type=POSITIVE, default=14, show_default=True, metavar="G", help="Global tokens."
)
@click.option("--training", is_flag=True, help="Measure training steps (4096 tokens, float32) instead of forwards.")
@click.option(
    "--dropout",
    "dropout_p",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    metavar="P",
    help="With --training.",
)
@architecture
@common(rounds=5)
def model(
    lengths: tuple[int, ...] | None, global_tokens: int, training: bool, dropout_p: float, **options: Any
) -> None:
    """The whole question-answering model, with random weights."""

    def records(rounds: int, config: str | None, variants: tuple[str, ...]) -> list[Record]:
        from longformer.bench import model, timing
        from longformer.bench import training as steps

        architecture = model.read_config(config)
        if training:
            found = steps.cases(
                architecture, lengths=lengths or (4096,), global_tokens=global_tokens, dropout_p=dropout_p
            )
        else:
            found = model.cases(
                architecture, lengths=lengths or (4096, 170), global_tokens=global_tokens, variants=variants
            )
        return [timing.measure(case, rounds) for case in found]

    asked = {"lengths": lengths, "globals": global_tokens, "training": training, "dropout": dropout_p}
    _run("model", records, asked, options)


@bench.command()
@click.argument("data")
@click.option("--tokenizer", required=True, metavar="NAME", help="Folder, or name on the hub, of the tokenizer.")
@click.option("--limit", type=POSITIVE, metavar="N", help="Take N questions, evenly spaced over the file.")
@click.option(
    "--rival-batches",
    type=Numbers(1),
    default="1,4,16",
    show_default=True,
    help="Batch sizes tried for transformers, of which the fastest is taken.",
)
@architecture
@common(rounds=3)
def qa(data: str, tokenizer: str, limit: int | None, rival_batches: tuple[int, ...], **options: Any) -> None:
    """Questions a second over the SQuAD-format file DATA, from token ids to logits."""

    def records(rounds: int, config: str | None, variants: tuple[str, ...]) -> list[Record]:
        from longformer.bench import model, qa, timing

        architecture = model.read_config(config)
        rows = qa.read_rows(data, tokenizer, architecture, limit=limit)
        found = qa.cases(architecture, rows, variants=variants, batch_sizes=rival_batches)
        return [timing.measure(case, rounds) for case in found]

    _run("qa", records, {"data": Path(data).name, "limit": limit, "rival_batches": rival_batches}, options)


@bench.command()
@click.option(
    "--lengths", type=Numbers(1), default="1024,2048,4096,8192,16384,32768,65536", show_default=True, help="Tokens."
)
@click.option("--dtype", default="float32", show_default=True, metavar="NAME", help="Precision.")
@click.option(
    "--most-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="T",
    help="Leave a rival out from the length on at which one run would take longer.",
)
@attention_shape
@common(rounds=5)
def scaling(lengths: tuple[int, ...], dtype: str, most_seconds: float, **options: Any) -> None:
    """Attention's time and memory against length."""

    def records(rounds: int, impls: tuple[str, ...], **shape: Any) -> list[Record]:
        from longformer.bench import attention, scaling

        times, peaks = scaling.measure(
            attention.Shape(seq_len=max(lengths), dtype=_dtype(dtype), **shape),
            lengths,
            ours=_ours(impls),
            rounds=rounds,
            most_seconds=most_seconds,
        )
        return [*times, *peaks]

    def figures(records: list[Record]) -> dict[str, float]:
        from longformer.bench import scaling

        return scaling.per_token(records)

    asked = {"lengths": lengths, "dtype": dtype, "most_seconds": most_seconds}
    _run("scaling", records, asked, options, figures)


@bench.command()
@click.argument("data")
@click.option(
    "--model", metavar="NAME", help="Checkpoint: a folder or a name on the hub; the package's own if not given."
)
@click.option("--limit", type=POSITIVE, metavar="N", help="Take N questions, evenly spaced over the file.")
@click.option(
    "--precisions",
    type=Names(),
    default="float32,bfloat16,mixed,int8",
    show_default=True,
    help="What to compare, float32 first.",
)
@common(rounds=3)
def precision(data: str, model: str | None, limit: int | None, precisions: tuple[str, ...], **options: Any) -> None:
    """Speed, weights, logits and changed answers over the SQuAD-format file DATA, in each precision."""

    def records(rounds: int) -> list[Record]:
        from longformer.bench import precision

        return [precision.measure(data, model, precisions, rounds, limit)]

    def figures(records: list[Record]) -> dict[str, float]:
        from longformer.bench import precision

        return precision.figures(records)

    asked = {"data": Path(data).name, "model": model, "limit": limit, "precisions": precisions}
    _run("precision", records, asked, options, figures)


@bench.command()
@click.option("--length", type=POSITIVE, default=4096, show_default=True, metavar="S", help="Tokens.")
@click.option(
    "--globals",
    "global_tokens",
    type=POSITIVE,
    default=14,
    show_default=True,
    metavar="G",
    help="Global tokens of the model's document.",
)
@click.option("--training", is_flag=True, help="Measure a training step too.")
@attention_shape
@architecture
@common(rounds=3)
def memory(length: int, global_tokens: int, training: bool, **options: Any) -> None:
    """Peak memory of attention alone and of the whole model, each in a process of its own."""

    def records(
        rounds: int, impls: tuple[str, ...], config: str | None, variants: tuple[str, ...], **shape: Any
    ) -> list[Record]:
        from longformer.bench import attention, memory, model

        architecture = model.read_config(config)
        model.make_pair(architecture, length, global_tokens)  # refuses what is impossible before any process starts
        groups = model.by_dtype(variants)
        found = []
        for dtype in groups:
            at = attention.Shape(seq_len=length, dtype=str(dtype).removeprefix("torch."), **shape)
            found.append(memory.attention_peaks(at, ours=_ours(impls), rounds=rounds))
        asked = {"tokens": length, "global_tokens": global_tokens, "rounds": rounds}
        found += memory.model_peaks(architecture, variants=variants, **asked)
        if training:
            found.append(memory.training_peaks(architecture, dropout_p=0.1, **asked))
        return found

    _run("memory", records, {"length": length, "globals": global_tokens, "training": training}, options)


@bench.command()
@click.option("--lengths", type=Numbers(1), default="16384,4096,65536,131072", show_default=True, help="Tokens.")
@click.option("--windows", type=Numbers(0), default="256,128,512,1024", show_default=True, help="Seen on each side.")
@click.option("--head-dims", type=Numbers(1), default="64,128", show_default=True, help="Sizes of a head.")
@click.option("--dtypes", type=Names(), default="bfloat16,float32", show_default=True, help="Precisions.")
@click.option("--globals", "globals_", type=Numbers(0), default="0,64", show_default=True, help="Global tokens.")
@click.option(
    "--rounds", type=POSITIVE, default=20, show_default=True, metavar="N", help="Runs of each contender; medians count."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=400,
    show_default=True,
    metavar="T",
    help="Begin nothing further after so long. Shapes come in the order of their weight.",
)
@click.option("--json", "json_file", metavar="FILE.json", help="Write everything measured to this file.")
def gpu(rounds: int, seconds: float, json_file: str | None, dtypes: tuple[str, ...], **axes: Any) -> int:
    """The Triton kernels on a GPU, against FlexAttention, flash-attention and transformers.

    Checks first, then measures. With OUT set to a folder the JSON is written there too, as gpu.json; it is written
    anew after each shape. What fails or disagrees is listed with its error, and the exit status is then 1. Ctrl-C and
    SIGTERM end it with the table of what has been measured.
    """
    from longformer.bench import gpu, report

    asked = gpu.shapes(dtypes=[_dtype(name) for name in dtypes], **axes)
    paths = gpu.outputs(json_file)
    measured = gpu.run(asked, rounds=rounds, seconds=seconds, save=partial(report.write_json, paths=paths))
    click.echo(gpu.table(measured))
    return measured["stopped"] or (1 if measured["errors"] else 0)


def _run(
    name: str,
    records: Callable[..., list[Record]],
    asked: dict[str, Any],
    options: dict[str, Any],
    figures: Callable[[list[Record]], dict[str, float]] = lambda records: {},
) -> None:
    """Measure the machine, then ``records``; then write the files and, last of all, print the table."""
    import torch

    from longformer.bench import machine, plot, report
    from longformer.bench.timing import say

    threads, json_file, picture = (options.pop(key) for key in ("threads", "json_file", "plot"))
    report.check_outputs(json_file, picture)
    if picture is not None:
        plot.require_matplotlib()
    if threads is not None:
        torch.set_num_threads(threads)
    say("measuring the machine's matrix products")
    described = machine.describe()
    measured = records(**options)
    found = report.Report(name, {**asked, **options}, described, measured, figures(measured))
    if json_file is not None:
        found.write(json_file)
    if picture is not None:
        plot.draw(found, picture)
    click.echo(f"{found.head()}\n\n{found.table()}")


def _ours(impls: tuple[str, ...]) -> tuple[str, ...]:
    """Our contenders' names; "auto" is what users get, so it has no addition."""
    from longformer.errors import LongformerError
    from longformer.kernels.api import IMPLEMENTATIONS

    for impl in impls:
        if impl not in IMPLEMENTATIONS:
            raise LongformerError(f"{impl!r} is no implementation; there are {', '.join(IMPLEMENTATIONS)}")
    return tuple("longformer" if impl == "auto" else f"longformer ({impl})" for impl in impls)


def _dtype(name: str) -> str:
    from longformer.errors import LongformerError
    from longformer.kernels.api import DTYPES

    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    if name not in names:
        raise LongformerError(f"{name!r} is no dtype of the kernels; there are {', '.join(names)}")
    return name
