"""``longformer bench patterns`` and ``longformer bench needle``: what patterns do to a model, and not to its speed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from longformer.bench.options import POSITIVE, Numbers
from longformer.files import check_outputs
from longformer.options import MOST, SEED, Real, Whole, show_result

RATE = Real(min=0, min_open=True)


@click.command()
@click.argument("folder", metavar="DST")
@click.option("--text", metavar="FILE", help="Text to train and measure on; by default the standard library's sources.")
@click.option(
    "--characters", type=POSITIVE, default=2_000_000, show_default=True, metavar="N", help="So many of the text."
)
@click.option(
    "--windows",
    type=Numbers(1),
    default="16,32,64,128",
    show_default=True,
    help="How far each layer looks back, from the bottom to the top, growing.",
)
@click.option("--seeds", type=POSITIVE, default=3, show_default=True, metavar="N", help="Runs of each pattern.")
@click.option("--steps", type=POSITIVE, default=1000, show_default=True, metavar="N", help="Steps of each run.")
@click.option("--batch-size", type=POSITIVE, default=16, show_default=True, metavar="N", help="Rows in one step.")
@click.option(
    "--length", type=Whole(2, MOST), default=256, show_default=True, metavar="N", help="Characters in one row."
)
@click.option("--learning-rate", type=RATE, default=2e-3, show_default=True, metavar="X", help="Highest learning rate.")
@click.option("--hidden-size", type=POSITIVE, default=64, show_default=True, metavar="N", help="Width of the model.")
@click.option("--heads", type=POSITIVE, default=4, show_default=True, metavar="N", help="Attention heads.")
@click.option(
    "--hold-out",
    type=Real(0, 1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    metavar="X",
    help="Share of the text, at its end, to measure on.",
)
def patterns(folder: str, text: str | None, characters: int, **choices: Any) -> None:
    """Train language models with windows that grow, shrink, stay and have gaps, beside the paper's figures.

    DST holds results.json, which is written after each run. The same command goes on where it was stopped.
    """
    from longformer.bench import ablation

    asked = ablation.Ablation(**choices)
    found = ablation.run(
        asked, Path(folder), ablation.read_text_of(text, characters), say=lambda message: click.echo(message, err=True)
    )
    click.echo(ablation.table(found))


@click.command()
@click.option("--tokens", type=Whole(2, MOST), default=64, show_default=True, metavar="S", help="Tokens of a document.")
@click.option(
    "--window",
    type=Whole(2, MOST),
    default=16,
    show_default=True,
    metavar="W",
    help="The two-sided window of each layer.",
)
@click.option("--layers", type=POSITIVE, default=2, show_default=True, metavar="N", help="Layers.")
@click.option("--hidden-size", type=POSITIVE, default=32, show_default=True, metavar="N", help="Width of the model.")
@click.option("--heads", type=POSITIVE, default=2, show_default=True, metavar="N", help="Attention heads.")
@click.option("--steps", type=POSITIVE, default=400, show_default=True, metavar="N", help="Steps of each training.")
@click.option("--learning-rate", type=RATE, default=3e-3, show_default=True, metavar="X", help="Learning rate.")
@click.option(
    "--documents", type=POSITIVE, default=64, show_default=True, metavar="N", help="Documents measured at each place."
)
@click.option("--places", type=POSITIVE, default=32, show_default=True, metavar="N", help="Places measured.")
@click.option("--seed", type=SEED, default=0, show_default=True, metavar="N", help="Of weights and documents.")
@click.option("--json", "json_file", metavar="FILE.json", help="Write everything to this file; - is standard output.")
@click.option("--plot", "picture", metavar="FILE.png", help="Draw the curve into this file; - is standard output.")
def needle(json_file: str | None, picture: str | None, **choices: Any) -> None:
    """Where must the answer stand to be found by windows, a global token, and full attention?

    A small classifier of each kind is trained on documents made here, in a minute or two.
    """
    check_outputs(filter(None, (json_file, picture)))
    from tqdm import tqdm

    from longformer.bench import needle as task
    from longformer.bench import report
    from longformer.plotting.figures import check_format

    if picture is not None:
        check_format(picture)
    asked = task.Needle(**choices)
    asked.config("window")  # raises where the numbers describe no model
    with tqdm(total=len(task.PATTERNS) * asked.steps, unit="step", file=sys.stderr, disable=None) as bar:
        found = task.run(asked, bar.update)
    if json_file is not None:
        report.write_json(found, json_file)
    if picture is not None:
        task.draw(found, picture)
    show_result(task.table(found), (json_file, picture))
