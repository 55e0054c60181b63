"""``longformer parity``: its subcommands and options. What is slow to import is imported where it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from longformer.errors import DataError
from longformer.files import check_outputs, check_suffix, write_text
from longformer.new_files import is_standard_input
from longformer.options import COUNT, SEED, show_result, tokenizer_option

Command = TypeVar("Command", bound=Callable[..., Any])
SUFFIX = ".safetensors"
CODE = ".py:"  # in what names a function in a file


def sample_options(command: Command) -> Command:
    """Options for what the model is given and what is recorded."""
    for option in (
        tokenizer_option,
        click.option(
            "--seed",
            type=SEED,
            metavar="N",
            help="Seed of the weights drawn for a config.json. If not given, the seed of the trace file that names it, "
            "or else 0.",
        ),
        click.option(
            "--gradients",
            is_flag=True,
            help="Record the gradients of the loss too, by activations and parameters. The loss needs answers: INPUT's "
            "labels, or start_positions and end_positions for question answering; if it has none, a rule chooses them.",
        ),
        click.option(
            "--probabilities",
            is_flag=True,
            help="Record attention probabilities too, and check the kernel that they come from.",
        ),
        click.option(
            "--max-tokens",
            type=COUNT,
            metavar="N",
            help="Cut the input to N tokens. A row that ends in a separator keeps it: what is cut stands before it.",
        ),
        click.option("--question", metavar="TEXT", help="Question to put before an INPUT that is a text."),
    ):
        command = option(command)
    return command


@click.group()
def parity() -> None:
    """Record what a model computes; compare two implementations, and say where they differ and why.

    MODEL is a folder or a name on the hub, or a config.json, for which weights are drawn from --seed: of the class that
    its architectures name, or of question answering. INPUT is a text file, - for a text on standard input, a .json file
    with input_ids, or a trace file, whose inputs are taken.
    """


@parity.command()
@click.argument("model")
@click.argument("input_file", metavar="INPUT")
@click.option("-o", "--output", required=True, metavar="FILE.safetensors", help="The trace file; - is standard output.")
@click.option(
    "--reference",
    type=click.Choice(["transformers"]),
    help="Run this implementation instead of ours; it must be installed.",
)
@click.option(
    "--dtype", default="float32", show_default=True, metavar="DTYPE", help="Precision of weights and results."
)
@click.option("--impl", metavar="KERNEL", default="auto", help="Our attention kernel; by default the fast one.")
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Record only values that match, such as 'layer.*.output'."
)
@sample_options
def record(
    model: str,
    input_file: str,
    output: str,
    reference: str | None,
    dtype: str,
    impl: str,
    only: tuple[str, ...],
    **options: Any,
) -> None:
    """Run MODEL on INPUT and write every intermediate value to a trace file."""
    check_suffix(output, SUFFIX)
    check_outputs([output], [input_file, *model_files(model, options["tokenizer"])])
    from longformer.files import is_stream, write_file
    from longformer.models.kinds import kind_of
    from longformer.parity.runs import Contender, model_folder, require_loss
    from longformer.parity.runs import record as run
    from longformer.parity.samples import Settings, read_sample

    settings = Settings(**options)
    contender = Contender(reference or "ours", dtype, impl)
    with model_folder(model, settings.seed) as folder:
        if settings.gradients:
            require_loss(folder)
        sample = read_sample(input_file, folder, kind_of(folder).model, settings)
        written: list[int] = []
        rows, tokens = sample.inputs["input_ids"].shape
        click.echo(f"running {model} on {rows} row{'s' * (rows > 1)} of {tokens} tokens", err=True)

        def record_into(path: str | Path) -> None:
            written.append(len(run(contender, folder, sample, path, settings, only=only, model_name=model)))

        if is_stream(output):  # which cannot be read again, as a trace is
            write_file(output, record_into)
        else:
            record_into(output)
    click.echo(f"wrote {written[0]} values to {output}", err=True)


@parity.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.argument("input_file", metavar="INPUT", required=False)
@click.option(
    "--table", metavar="FILE", help="Of two FILE.py:FUNCTION: B's names of modules by A's, a .json or .toml file."
)
@click.option("--model", metavar="MODEL", help="The model; if not given, the one that a trace file names.")
@click.option("--json", "json_file", metavar="FILE.json", help="Write everything to this file; - is standard output.")
@click.option("--html", metavar="FILE.html", help="Write a page with charts to this file; - is standard output.")
@click.option(
    "--partial",
    is_flag=True,
    help="Let a side lack values on purpose, also where one of another name looks like a misspelling of it.",
)
@click.option("--all", "everything", is_flag=True, help="Show every value, not only those around the first divergence.")
@sample_options
def compare(
    a: str,
    b: str,
    input_file: str | None,
    table: str | None,
    model: str | None,
    json_file: str | None,
    html: str | None,
    everything: bool,
    **options: Any,
) -> int:
    """Compare A and B: each a trace file, ours[:DTYPE][:KERNEL], transformers[:DTYPE] or an exported FILE.onnx.

    Or any two models: A is FILE.py:FUNCTION, a function that makes it, and so is B, or a trace file. A gives the truth.

    INPUT is needed unless one of them is a trace file. A third run, in float64, is the truth: both are judged by it.
    Exit status 1: different, or not finite.

    \b
    longformer parity compare ours transformers text.txt --model longformer/pretrained --html report.html
    longformer parity compare ours port.safetensors --model my/checkpoint
    longformer parity compare ours exported/model.onnx text.txt --model my/checkpoint
    longformer parity compare mine.py:make_model theirs.py:make_model mine.py:make_input
    """
    for contender in (a, b):
        if is_standard_input(contender):
            raise DataError(
                f"{contender} is standard input; a trace can only be read from a file, so save it as one first"
            )
    inputs = [path for path in (a, b, input_file) if path is not None] + model_files(model, options["tokenizer"])
    check_outputs(filter(None, (json_file, html)), inputs)
    for path, suffix in ((json_file, ".json"), (html, ".html")):
        if path is not None:
            check_suffix(path, suffix)
    from longformer.parity import report
    from longformer.parity.comparison import DIFFERENT, NON_FINITE
    from longformer.parity.contest import contest
    from longformer.parity.page import write_page
    from longformer.parity.samples import Settings

    def say(text: str) -> None:
        click.echo(text, err=True)

    outputs = [path for path in (json_file, html) if path is not None]
    if CODE in a or CODE in b:
        from longformer.parity.models import compare_files

        source = click.get_current_context().get_parameter_source
        for name in ("model", "html", *options):
            if name != "gradients" and source(name) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--{name.replace('_', '-')} is for Longformers, and not for what a function in a file makes"
                )
        result = compare_files(a, b, input_file, table=table, gradients=options["gradients"])
    elif table is not None:
        raise click.UsageError("--table names the modules of two models that functions in files make: FILE.py:FUNCTION")
    else:
        with contest(a, b, input_file, model, Settings(**options), say, outputs=outputs) as found:
            result = found.comparison
            if html is not None:
                write_page(html, found)
    if json_file is not None:
        write_text(json_file, report.dumps(report.as_json(result)) + "\n")
    show_result(report.table(result, everything=everything), outputs)
    return 1 if result.verdict in (DIFFERENT, NON_FINITE) else 0


@parity.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--json", "json_file", metavar="FILE.json", help="Write everything to this file; - is standard output.")
def steps(a: str, b: str, json_file: str | None) -> int:
    """Compare two trainings, step by step: loss, gradients, the optimiser's state and the weights.

    A is FILE.py:FUNCTION, which returns a longformer.parity.Training and is run here, in one process. B is the same of
    another, or the trace file of a training, or a pattern of those of the processes of torchrun, in quotes. Each step
    is judged by the same step in float64, from what was recorded before it. Exit status 1: different, or not finite.

    \b
    longformer parity steps train.py:make_training port.py:make_training
    longformer parity steps train.py:make_training 'rank*.safetensors'
    """
    check_outputs(filter(None, (json_file,)), [b])
    if json_file is not None:
        check_suffix(json_file, ".json")
    if CODE not in a:
        raise click.UsageError(f"{a} is no training: the first of the two gives the truth; it must be FILE.py:FUNCTION")
    from longformer.parity.comparison import DIFFERENT, NON_FINITE
    from longformer.parity.report import dumps
    from longformer.parity.steps import compare_files

    result = compare_files(a, b)
    if json_file is not None:
        write_text(json_file, dumps(result.as_json()) + "\n")
    show_result(result.report(), (json_file,))
    return 1 if result.verdict in (DIFFERENT, NON_FINITE) else 0


def model_files(model: str | None, tokenizer: str | None) -> list[str]:
    """The files that are read of a model and a tokenizer in folders."""
    from longformer.checkpoints.folder import files_of

    return [str(path) for name in (model, tokenizer) if name is not None for path in files_of(name)]
