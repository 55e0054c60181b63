"""``longformer generate`` and ``longformer evaluate-lm``. What is slow to import is imported where it is run."""

from __future__ import annotations

import json
from typing import Any

import click

from longformer.files import read_text
from longformer.new_files import STANDARD
from longformer.options import COUNT, MOST, SEED, Real, Whole

device_option = click.option("--device", metavar="NAME", help="Where to compute, such as cuda. The default is the CPU.")
revision_option = click.option("--revision", metavar="REV", help="Branch, tag or commit of MODEL on the hub.")


@click.command()
@click.argument("model")
@click.argument("prompt", default="")
@click.option(
    "--max-characters",
    type=Whole(0, MOST),
    default=256,
    show_default=True,
    metavar="N",
    help="Most characters to make.",
)
@click.option(
    "--temperature",
    type=Real(min=0),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Below 1 likely characters become likelier; 0 always takes the likeliest.",
)
@click.option("--top-k", type=COUNT, metavar="N", help="Draw among the N likeliest characters.")
@click.option(
    "--top-p",
    type=Real(0, 1, min_open=True),
    metavar="X",
    help="Draw among the fewest characters whose probability together is X.",
)
@click.option("--seed", type=SEED, metavar="N", help="Make the same text again.")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop behind this text; may be given several times.")
@device_option
@revision_option
def generate(model: str, prompt: str, max_characters: int, stop: tuple[str, ...], **settings: Any) -> None:
    """Write PROMPT (- for standard input) and what the character language model MODEL makes follow.

    MODEL is a folder that `longformer train lm` wrote, or a name on the hub. Each character is written as soon as it is
    drawn. Only the windows' keys and values are kept, so memory does not grow with the text.
    """
    if prompt == STANDARD:
        prompt = read_text(STANDARD)
    from longformer.generating.generator import TextGenerator

    loading = {name: settings.pop(name) for name in ("device", "revision")}
    generator = TextGenerator.from_pretrained(model, **loading)
    characters = generator.stream(prompt, max_characters=max_characters, stop=stop, **settings)
    click.echo(prompt, nl=False)
    for character in characters:
        click.echo(character, nl=False)
    click.echo()


@click.command("evaluate-lm")
@click.argument("model")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--length", type=COUNT, default=512, show_default=True, metavar="N", help="Characters read at once.")
@click.option(
    "--step",
    type=COUNT,
    metavar="N",
    help="Characters at the end of a piece that count; what is before them is read again. Half of the length unless "
    "given.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as a JSON object.")
@device_option
@revision_option
def evaluate_lm(model: str, files: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Bits per character of the language model MODEL on text FILEs, read in overlapping pieces."""
    from longformer.generating.scoring import describe, measure_lm

    found = measure_lm(model, files, **settings)
    click.echo(json.dumps(found) if as_json else describe(found))
