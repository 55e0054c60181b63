"""``longformer parity``: its subcommands and options. What is slow to import is imported where it is run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from longformer.errors import DataError

if TYPE_CHECKING:
    from longformer.parity.recorder import Trace

Command = TypeVar("Command", bound=Callable[..., Any])
SUFFIX = ".safetensors"


def sample_options(command: Command) -> Command:
    """Options that say what the model is given."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Of weights drawn for a config.json."),
        click.option(
            "--probabilities", is_flag=True, help="Record attention probabilities too, and check what they come from."
        ),
        click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Cut the input to N tokens."),
        click.option("--question", metavar="TEXT", help="Question to put before an INPUT that is a text."),
    ):
        command = option(command)
    return command


@click.group()
def parity() -> None:
    """Record what a model computes; compare two implementations, and say where they part and why.

    MODEL is a folder or a name on the hub, or a config.json, for which weights are drawn from --seed. INPUT is a text
    file, a .json file with input_ids, or a trace file, whose inputs are taken.
    """


@parity.command()
@click.argument("model")
@click.argument("input_file", metavar="INPUT")
@click.option("-o", "--output", required=True, metavar="FILE.safetensors", help="The trace file to write.")
@click.option(
    "--reference",
    type=click.Choice(["transformers"]),
    help="Run this implementation instead of ours; it must be installed.",
)
@click.option(
    "--dtype", default="float32", show_default=True, metavar="DTYPE", help="Precision of weights and results."
)
@click.option("--impl", metavar="KERNEL", help="Our attention kernel; the fast one if not given.")
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
    impl: str | None,
    only: tuple[str, ...],
    question: str | None,
    max_tokens: int | None,
    probabilities: bool,
    seed: int,
) -> None:
    """Run MODEL on INPUT and write every intermediate value to a trace file."""
    check_output(output, SUFFIX)
    from longformer.parity.runs import Contender, model_folder, read_sample
    from longformer.parity.runs import record as run

    contender = Contender.parse(":".join(part for part in (reference or "ours", dtype, impl) if part))
    with model_folder(model, seed) as folder:
        sample = read_sample(input_file, folder, question=question, max_tokens=max_tokens)
        recorded = run(
            contender,
            folder,
            sample.inputs,
            output,
            seed=seed,
            probabilities=probabilities,
            only=only,
            said_model=model,
            tokens=sample.tokens,
        )
    click.echo(f"wrote {len(recorded)} values to {output}", err=True)


@parity.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.argument("input_file", metavar="INPUT", required=False)
@click.option("--model", metavar="MODEL", help="The model; if not given, the one that a trace file names.")
@click.option("--json", "json_file", metavar="FILE.json", help="Write everything to this file; - is standard output.")
@click.option("--html", metavar="FILE.html", help="Write a page with charts to this file.")
@click.option("--all", "everything", is_flag=True, help="Show every value, not those around the first divergence.")
@sample_options
def compare(
    a: str,
    b: str,
    input_file: str | None,
    model: str | None,
    json_file: str | None,
    html: str | None,
    everything: bool,
    question: str | None,
    max_tokens: int | None,
    probabilities: bool,
    seed: int,
) -> int:
    """Compare A and B: each a trace file, ours[:DTYPE][:KERNEL] or transformers[:DTYPE].

    INPUT is needed unless one of them is a trace file. A third run in float64 is the truth by which both are judged.
    Exit status 1: different, or not finite.

    \b
    longformer parity compare ours transformers text.txt --model longformer/pretrained --html report.html
    longformer parity compare ours port.safetensors --model my/checkpoint
    """
    if json_file not in (None, "-"):
        check_output(json_file, ".json")
    if html is not None:
        check_output(html, ".html")
    from longformer.parity.comparison import DIFFERENT, NON_FINITE
    from longformer.parity.comparison import compare as compare_traces
    from longformer.parity.recorder import read_trace
    from longformer.parity.report import as_json, dumps, table
    from longformer.parity.rounding import Truth
    from longformer.parity.runs import Contender, load_ours, model_folder, read_sample
    from longformer.parity.runs import record as run

    files = {name: read_trace(name) for name in (a, b) if name.endswith(SUFFIX)}
    contenders = {name: Contender.parse(name) for name in (a, b) if name not in files}
    source = input_file or next(iter(files), None)
    if source is None:
        raise click.UsageError("INPUT is missing: give a text, a .json file of input_ids, or a trace file")
    chosen = model or _named_model(files)
    probabilities |= any(name.endswith("_probabilities") for trace in files.values() for name in trace)
    names = (a, b) if a != b else (f"{a} (1)", f"{b} (2)")
    with ExitStack() as stack:
        folder = stack.enter_context(model_folder(chosen, seed))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="longformer-parity-")))
        sample = read_sample(source, folder, question=question, max_tokens=max_tokens)
        traces = []
        for i, name in enumerate((a, b)):
            if name in contenders:
                click.echo(f"running {name}", err=True)
                path = work / f"{i}{SUFFIX}"
                recorded = run(
                    contenders[name],
                    folder,
                    sample.inputs,
                    path,
                    seed=seed,
                    probabilities=probabilities,
                    said_model=chosen,
                )
                traces.append(recorded)
            else:
                traces.append(files[name])
        click.echo("running the truth, in float64", err=True)
        truth = Truth(load_ours(folder), sample.inputs, probabilities=probabilities, folder=work)
        click.echo("judging, by runs moved by one rounding", err=True)
        result = compare_traces(*traces, truth=truth, names=names, tokens=sample.tokens)
        if html is not None:
            from longformer.parity.page import write_page

            write_page(html, result, traces[0], traces[1], truth, sample.tokens)
    if json_file == "-":
        click.echo(dumps(as_json(result)))
    else:
        click.echo(table(result, everything=everything))
    if json_file not in (None, "-"):
        write(json_file, dumps(as_json(result)) + "\n")
    return 1 if result.verdict in (DIFFERENT, NON_FINITE) else 0


def _named_model(files: dict[str, Trace]) -> str:
    for trace in files.values():
        named = trace.metadata.get("model")
        if named:
            return named
    raise click.UsageError("--model is missing: the truth is computed from its weights")


def check_output(path: str | None, suffix: str) -> None:
    """Raises DataError where nothing can be written at ``path``, before anything is computed for it."""
    assert path is not None
    if not path.endswith(suffix):
        raise DataError(f"{path!r} must end in {suffix}, which says what it is")
    if not Path(path).parent.is_dir():
        raise DataError(f"there is no folder {str(Path(path).parent)!r} to write {Path(path).name} into; make it first")
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder; give a file to write to")


def write(path: str | None, text: str) -> None:
    """Write a file whole. Raises DataError where that fails."""
    assert path is not None
    from longformer.weights import replace_file

    def put(new: Path) -> None:
        new.write_text(text, encoding="utf-8")

    try:
        replace_file(Path(path), put)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
