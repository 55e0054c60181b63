"""The ``longformer`` command.

What is slow to import is imported inside the commands, so that ``longformer --help`` answers at once; what is cheap to
check is checked before a model is loaded. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from longformer import process
from longformer.answering.cli import answer
from longformer.answering.files_cli import predict
from longformer.answering.options import (
    DTYPES,
    first_given,
)
from longformer.answering.scoring_cli import evaluate, tune_threshold
from longformer.bench.cli import bench
from longformer.bench.pattern_cli import pattern
from longformer.classifying.cli import classify
from longformer.explain.cli import explain
from longformer.exporting.cli import export
from longformer.generating.cli import evaluate_lm, generate
from longformer.help import add_help
from longformer.options import COUNT, add_quiet
from longformer.parity.cli import parity
from longformer.training.cli import evaluate_mlm, train


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with a status, see :func:`longformer.process.run`.

    A training that SIGTERM ended exits with 143.

    Args:
        arguments: of the command line; None takes ``sys.argv``'s.
    """
    sys.exit(process.run(lambda: cli.main(arguments, prog_name="longformer", standalone_mode=False)))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="longformer")
def cli() -> None:
    """Answer questions over long documents with a Longformer.

    \b
    longformer answer "How old must a person be to become President?" longformer/data/constitution.txt
    curl -s https://example.org/page.txt | longformer answer "Who wrote this?" -
    """


def _windows(context: click.Context, parameter: click.Parameter, value: str) -> int | list[int]:
    try:
        windows = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor numbers with commas between") from None
    return windows if len(windows) > 1 else windows[0]


@cli.command()
@click.argument("source", metavar="SRC")
@click.argument("folder", metavar="DST")
@click.option("--to-long", is_flag=True, help="Make a long Longformer of a BERT, RoBERTa or Longformer checkpoint.")
@click.option(
    "--max-tokens",
    type=COUNT,
    default=4096,
    show_default=True,
    metavar="N",
    help="With --to-long: the longest sequence that the new model reads.",
)
@click.option(
    "--attention-window",
    default="512",
    show_default=True,
    metavar="W[,W...]",
    callback=_windows,
    help="With --to-long: the two-sided window, one for all layers or one a layer.",
)
@click.option("--keep", multiple=True, metavar="PART", help="With --to-long: keep this head too, such as lm_head.")
@click.option(
    "--positions",
    type=click.Choice(["copied", "random"]),
    default="copied",
    show_default=True,
    help="With --to-long: repeat the source's position embeddings, or draw them afresh, to compare.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="Without --to-long: store the weights in this precision.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of SRC on the hub.")
def convert(
    source: str,
    folder: str,
    to_long: bool,
    max_tokens: int,
    attention_window: int | list[int],
    keep: tuple[str, ...],
    positions: str,
    dtype: str | None,
    revision: str | None,
) -> None:
    """Write the checkpoint SRC (folder or name on the hub) to the folder DST, as safetensors with today's names."""
    given = first_given(*(("dtype",) if to_long else ("max_tokens", "attention_window", "keep", "positions")))
    if given is not None:
        raise click.UsageError(f"{given} {'does not go with' if to_long else 'needs'} --to-long")

    import torch

    from longformer import convert as conversion

    if to_long:
        done = conversion.to_long(
            source,
            folder,
            max_tokens=max_tokens,
            attention_window=attention_window,
            keep=keep,
            positions=positions,
            revision=revision,
        )
    else:
        done = conversion.convert(
            source, folder, dtype=None if dtype is None else getattr(torch, dtype), revision=revision
        )
    click.echo(f"wrote {done.folder}", err=True)
    if done.dropped:
        click.echo(f"left out: {', '.join(done.dropped)}", err=True)


for command in (
    answer,
    predict,
    evaluate,
    bench,
    classify,
    evaluate_lm,
    evaluate_mlm,
    explain,
    export,
    generate,
    parity,
    pattern,
    train,
    tune_threshold,
):
    cli.add_command(command)
add_help(cli)
add_quiet(cli)
