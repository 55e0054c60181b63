"""``longformer bench`` and its subcommands. Each imports what is slow to import only when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from longformer.bench.experiments_cli import needle, patterns
from longformer.bench.options import (
    POSITIVE,
    Names,
    Numbers,
    Shapes,
    architecture,
    attention_shape,
    common,
    known_dtype,
    our_names,
)
from longformer.files import check_outputs, is_stream
from longformer.options import Real, show_result, tokenizer_option

if TYPE_CHECKING:
    from longformer.bench.timing import Record


@click.group()
def bench() -> None:
    """Measure ours beside transformers, FlexAttention and dense attention, as far as they are installed.

    First all must agree on the result. Then they take turns in one process. Progress goes to standard error, and one
    table to standard output. `needle` and `patterns` train small models to see what attention patterns do to them.
    """


@bench.command()
@click.option("--length", type=POSITIVE, default=4096, show_default=True, metavar="S", help="Tokens.")
@click.option("--globals", "global_counts", type=Numbers(0), default="0,64", show_default=True, help="Global tokens.")
@click.option("--dtype", "dtypes", type=Names(), default="float32,bfloat16", show_default=True, help="Precisions.")
@click.option(
    "--backward/--no-backward", default=True, show_default=True, help="Measure forward and backward together too."
)
@attention_shape
@common(rounds=15)
def attention(
    length: int, global_counts: tuple[int, ...], dtypes: tuple[str, ...], backward: bool, **options: Any
) -> None:
    """One layer's attention, without its projections."""

    def records(rounds: int, impls: tuple[str, ...], **shape: Any) -> Iterator[Record]:
        from longformer.bench import attention, timing
        from longformer.bench.problem import Problem

        problems = [
            Problem(seq_len=length, global_tokens=count, dtype=known_dtype(dtype), **shape)
            for dtype in dtypes
            for count in global_counts
        ]
        ours = our_names(impls)
        for problem in problems:
            for case in attention.cases(problem, ours=ours, backward=backward):
                yield timing.measure(case, rounds)

    asked = {"length": length, "globals": global_counts, "dtype": dtypes, "backward": backward}
    _run("attention", records, asked, options)


@bench.command()
@click.option("--lengths", type=Numbers(5), default=None, help="Tokens of each document.  [default: 4096,170]")
@click.option(
    "--globals", "global_tokens", type=POSITIVE, default=14, show_default=True, metavar="G", help="Global tokens."
)
@click.option("--training", is_flag=True, help="Measure training steps (4096 tokens, float32), not forward passes.")
@click.option(
    "--dropout",
    "dropout_p",
    type=Real(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    metavar="P",
    help="Dropout of a training step.",
)
@architecture
@common(rounds=5)
def model(
    lengths: tuple[int, ...] | None, global_tokens: int, training: bool, dropout_p: float, **options: Any
) -> None:
    """The whole question-answering model, with random weights."""

    def records(rounds: int, config: str | None, variants: tuple[str, ...]) -> Iterator[Record]:
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
        for case in found:
            yield timing.measure(case, rounds)

    asked = {"lengths": lengths, "globals": global_tokens, "training": training, "dropout": dropout_p}
    _run("model", records, asked, options)


@bench.command()
@click.option("--lengths", type=Numbers(5), default="512,4096", show_default=True, help="Tokens of each document.")
@click.option(
    "--globals", "global_tokens", type=POSITIVE, default=14, show_default=True, metavar="G", help="Global tokens."
)
@click.option("--config", metavar="FILE", help="A config.json; by default the architecture of the released base model.")
@common(rounds=5)
def transformers(lengths: tuple[int, ...], global_tokens: int, **options: Any) -> None:
    """transformers' own models with our attention inside and without: Longformer, and at the longest LED's encoder."""

    def records(rounds: int, config: str | None) -> Iterator[Record]:
        from longformer.bench import model, replaced, timing

        found = replaced.cases(model.read_config(config), lengths=lengths, global_tokens=global_tokens)
        for case in found:
            yield timing.measure(case, rounds)

    _run("transformers", records, {"lengths": lengths, "globals": global_tokens}, options)


@bench.command()
@click.option("--lengths", type=Numbers(5), default="170,512,4096", show_default=True, help="Tokens of each document.")
@click.option(
    "--globals", "global_tokens", type=POSITIVE, default=14, show_default=True, metavar="G", help="Global tokens."
)
@click.option("--config", metavar="FILE", help="A config.json; by default the architecture of the released base model.")
@common(rounds=5)
def onnx(lengths: tuple[int, ...], global_tokens: int, **options: Any) -> None:
    """A model exported to ONNX, in ONNX Runtime, beside ours and transformers': size, time and memory."""

    def records(rounds: int, config: str | None) -> Iterator[Record]:
        import tempfile

        from longformer.bench import exported, model, timing

        architecture = model.read_config(config)
        with tempfile.TemporaryDirectory() as folder:
            files = exported.write(architecture, Path(folder))
            yield exported.sizes(architecture, files)
            for case in exported.cases(architecture, files, lengths=lengths, global_tokens=global_tokens):
                yield timing.measure(case, rounds)
            for tokens in lengths:
                asked = {"tokens": tokens, "global_tokens": global_tokens, "rounds": rounds}
                yield exported.peaks(architecture, files, **asked)

    _run("onnx", records, {"lengths": lengths, "globals": global_tokens}, options)


@bench.command()
@click.argument("data")
@click.option("--tokenizer", required=True, metavar="NAME", help="Folder, or name on the hub, of the tokenizer.")
@click.option("--limit", type=POSITIVE, metavar="N", help="Take N questions, evenly spaced over the file.")
@click.option(
    "--rival-batches",
    type=Numbers(1),
    default="1,4,16",
    show_default=True,
    help="Sizes of batch to try for transformers; the fastest counts.",
)
@architecture
@common(rounds=3)
def qa(data: str, tokenizer: str, limit: int | None, rival_batches: tuple[int, ...], **options: Any) -> None:
    """Questions a second over the SQuAD-format file DATA, from token ids to logits."""

    def records(rounds: int, config: str | None, variants: tuple[str, ...]) -> Iterator[Record]:
        from longformer.bench import model, qa, timing

        architecture = model.read_config(config)
        rows = qa.read_rows(data, tokenizer, architecture, limit=limit)
        found = qa.cases(architecture, rows, variants=variants, batch_sizes=rival_batches)
        for case in found:
            yield timing.measure(case, rounds)

    asked = {"data": Path(data).name, "limit": limit, "rival_batches": rival_batches}
    _run("qa", records, asked, options, inputs=[data, tokenizer])


@bench.command()
@click.option(
    "--lengths", type=Numbers(1), default="1024,2048,4096,8192,16384,32768,65536", show_default=True, help="Tokens."
)
@click.option("--dtype", default="float32", show_default=True, metavar="NAME", help="Precision.")
@click.option(
    "--most-seconds",
    type=Real(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="T",
    help="Leave a rival out where one run would take longer.",
)
@attention_shape
@common(rounds=5)
def scaling(lengths: tuple[int, ...], dtype: str, most_seconds: float, **options: Any) -> None:
    """Attention's time and memory against length."""

    def records(rounds: int, impls: tuple[str, ...], **shape: Any) -> Iterator[Record]:
        from longformer.bench import scaling
        from longformer.bench.problem import Problem

        times, peaks = scaling.measure(
            Problem(seq_len=max(lengths), dtype=known_dtype(dtype), **shape),
            lengths,
            ours=our_names(impls),
            rounds=rounds,
            most_seconds=most_seconds,
        )
        yield from (*times, *peaks)

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
@tokenizer_option
@click.option("--limit", type=POSITIVE, metavar="N", help="Take N questions, evenly spaced over the file.")
@click.option(
    "--precisions",
    type=Names(),
    default="float32,bfloat16,mixed,int8",
    show_default=True,
    help="Precisions to compare; the first must be float32.",
)
@common(rounds=3)
def precision(
    data: str,
    model: str | None,
    tokenizer: str | None,
    limit: int | None,
    precisions: tuple[str, ...],
    **options: Any,
) -> None:
    """Speed, size of weights, logits and changed answers in each precision, over the SQuAD-format file DATA."""

    def records(rounds: int) -> Iterator[Record]:
        from longformer.bench import precision

        yield precision.measure(data, model, precisions, rounds, limit, tokenizer)

    def figures(records: list[Record]) -> dict[str, float]:
        from longformer.bench import precision

        return precision.figures(records)

    asked = {"data": Path(data).name, "model": model, "limit": limit, "precisions": precisions}
    _run("precision", records, asked, options, figures, inputs=[data, model, tokenizer])


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
    ) -> Iterator[Record]:
        from longformer.bench import machine, memory, model
        from longformer.bench.problem import Problem, make_document

        architecture = model.read_config(config)
        make_document(architecture, length, global_tokens)  # refuses impossible lengths before any process starts
        for dtype in model.by_dtype(variants):
            problem = Problem(seq_len=length, dtype=machine.dtype_name(dtype), **shape)
            yield memory.attention_peaks(problem, ours=our_names(impls), rounds=rounds)
        asked = {"tokens": length, "global_tokens": global_tokens, "rounds": rounds}
        yield from memory.model_peaks(architecture, variants=variants, **asked)
        if training:
            yield memory.training_peaks(architecture, dropout_p=0.1, **asked)

    _run("memory", records, {"length": length, "globals": global_tokens, "training": training}, options)


@bench.command()
@click.option("--lengths", type=Numbers(1), default="16384,4096,65536,131072", show_default=True, help="Tokens.")
@click.option(
    "--shapes", type=Shapes(), default=(), metavar="BxHxS[,...]", help="Batch, heads and tokens, instead of --lengths."
)
@click.option("--windows", type=Numbers(0), default="256,128,512,1024", show_default=True, help="Seen on each side.")
@click.option("--head-dims", type=Numbers(1), default="64,128", show_default=True, help="Sizes of a head.")
@click.option("--dtypes", type=Names(), default="bfloat16,float32", show_default=True, help="Precisions.")
@click.option("--globals", "globals_", type=Numbers(0), default="0,64", show_default=True, help="Global tokens.")
@click.option(
    "--rounds",
    type=POSITIVE,
    default=20,
    show_default=True,
    metavar="N",
    help="Runs of each contender; medians are reported.",
)
@click.option(
    "--seconds",
    type=Real(min=0),
    default=400,
    show_default=True,
    metavar="T",
    help="Begin nothing after this time. The most important shapes come first.",
)
@click.option(
    "--json", "json_file", metavar="FILE.json", help="Write everything measured to this file; - is standard output."
)
@click.option(
    "--device", default="cuda", show_default=True, metavar="NAME", help="cpu rehearses, with TRITON_INTERPRET=1."
)
def gpu(rounds: int, seconds: float, json_file: str | None, dtypes: tuple[str, ...], device: str, **axes: Any) -> int:
    """The Triton kernels on a GPU, beside FlexAttention, flash-attention and transformers.

    It checks first, then it measures. The JSON file is written again after each shape, or once, at the end, where it is
    standard output or another stream. Whatever fails or disagrees is listed with its error, and the exit status is then
    1. Ctrl-C and SIGTERM end the run with the table of everything that has been measured.
    """
    from longformer.bench import gpu, gpu_report, report

    asked = gpu.problems(dtypes=[known_dtype(name) for name in dtypes], **axes)
    check_outputs(filter(None, (json_file,)))

    streams = json_file is not None and is_stream(json_file)  # of which nothing can be taken back

    def save(measured: dict[str, Any]) -> None:
        if json_file is not None and not streams:
            report.write_json(measured, json_file)

    measured = gpu.run(asked, rounds=rounds, seconds=seconds, device_name=device, save=save)
    if json_file is not None and streams:
        report.write_json(measured, json_file)
    show_result(gpu_report.table(measured), [json_file])
    return measured["stopped"] or (1 if measured["errors"] else 0)


@bench.command("gpu-model")
@click.option("--batches", type=Numbers(1), default="1,16", show_default=True, help="Documents at a time.")
@click.option("--length", type=POSITIVE, default=4096, show_default=True, metavar="S", help="Tokens of each.")
@click.option(
    "--globals", "global_tokens", type=POSITIVE, default=14, show_default=True, metavar="G", help="Global tokens."
)
@click.option("--dtype", default="bfloat16", show_default=True, metavar="NAME", help="Precision.")
@click.option("--device", default="cuda", show_default=True, metavar="NAME", help="cpu serves to rehearse.")
@click.option("--config", metavar="FILE", help="A config.json; by default the architecture of the released base model.")
@common(rounds=10)
def gpu_model(
    batches: tuple[int, ...], length: int, global_tokens: int, dtype: str, device: str, **options: Any
) -> None:
    """The whole model on a GPU: forward passes and training steps, beside transformers'."""

    def records(rounds: int, config: str | None) -> Iterator[Record]:
        import torch

        from longformer.bench import gpu_model, model

        yield from gpu_model.records(
            model.read_config(config),
            batches=batches,
            tokens=length,
            global_tokens=global_tokens,
            dtype=getattr(torch, known_dtype(dtype)),
            device=device,
            rounds=rounds,
        )

    asked = {"batches": batches, "length": length, "globals": global_tokens, "dtype": dtype, "device": device}
    _run("gpu-model", records, asked, options)


def _files_read(*names: str | None) -> list[Path]:
    """The files that are read, of files and of folders of checkpoints by their names."""
    from longformer.checkpoints.folder import files_of

    return [path for name in names if name is not None for path in files_of(name)]


def _run(
    name: str,
    records: Callable[..., Iterator[Record]],
    asked: dict[str, Any],
    options: dict[str, Any],
    figures: Callable[[list[Record]], dict[str, float]] = lambda records: {},
    inputs: Sequence[str | None] = (),
) -> None:
    """Measure the machine and then ``records``, write the files, and print the table last.

    Each record is written and said as soon as it is there, so that a run that is stopped leaves what it has measured.

    ``inputs``: files and folders that are read, beside the option ``config``. Nothing is written over them.
    """
    import torch

    from longformer.bench import machine, plot, report
    from longformer.bench.timing import say
    from longformer.plotting.figures import check_format

    threads, json_file, picture = (options.pop(key) for key in ("threads", "json_file", "plot"))
    check_outputs(filter(None, (json_file, picture)), _files_read(options.get("config"), *inputs))
    if picture is not None:
        plot.require_matplotlib()
        check_format(picture)
    if threads is not None:
        torch.set_num_threads(threads)
    say("measuring the machine's matrix products")
    described = machine.describe()
    found = report.Report(name, {**asked, **options}, described, [], {})
    for record in records(**options):
        found.records.append(record)
        say(found.table(records=[record]))
        if json_file is not None and not is_stream(json_file):
            found.write(json_file)
    found.figures |= figures(found.records)
    if json_file is not None:
        found.write(json_file)
    if picture is not None:
        plot.draw(found, picture)
    show_result(f"{found.head()}\n\n{found.table()}", (json_file, picture))


for command in (needle, patterns):
    bench.add_command(command)
