"""``longformer explain``. What is slow to import is imported where it is run."""

from __future__ import annotations

from typing import Any

import click

from longformer.answering.options import (
    answer_options,
    check_one_document,
    checkpoint_files,
    document_arguments,
    given_document,
    load_answerer,
    model_options,
    take_settings,
)
from longformer.explain.methods import METHODS, STEPS
from longformer.files import check_outputs, check_suffix
from longformer.options import COUNT


@click.command()
@document_arguments
@click.option("-o", "--output", metavar="PAGE.html", help="The page to write; - is standard output.")
@click.option("--png", metavar="PICTURE.png", help="Write a still picture; needs matplotlib, the extra `plot`.")
@click.option("--top-k", type=COUNT, default=5, show_default=True, metavar="N", help="How many answers.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="How to say which tokens count; may be given again. All that the model can compute, unless given.",
)
@click.option("--steps", type=COUNT, default=STEPS, show_default=True, metavar="N", help="Of integrated gradients.")
@answer_options
@model_options
def explain(
    question: str,
    document: str | None,
    text: str | None,
    output: str | None,
    png: str | None,
    methods: tuple[str, ...],
    steps: int,
    **options: Any,
) -> None:
    """Show why an answer to QUESTION was chosen in the file DOCUMENT (- for standard input).

    PAGE.html opens in any browser and needs nothing else: the document with the answer and its runners-up marked, and
    for every token where it attends in each layer and head, the attention rollout, start and end scores; and which
    tokens count for the best answer, by three methods, with curves of how its score falls where these are taken out.

    \b
    longformer explain "How old must a person be to become President?" constitution.txt -o page.html
    """
    check_one_document(document, text)
    if output is None and png is None:
        raise click.UsageError("say what to write: -o page.html, --png picture.png, or both")
    for path, suffix in ((output, ".html"), (png, ".png")):
        if path is not None:
            check_suffix(path, suffix)
    inputs = [] if document is None else [document]
    check_outputs(filter(None, (output, png)), [*inputs, *checkpoint_files(options["model"], options["tokenizer"])])
    text = given_document(document, text)

    from longformer.answering.texts import check_texts
    from longformer.explain.picture import require_matplotlib, write_picture

    check_texts(question, text)
    if png is not None:
        require_matplotlib()

    from longformer.explain.explanation import explain as run
    from longformer.explain.page import write_page

    settings = take_settings(options)
    answerer = load_answerer(**options)
    found = run(answerer, question, text, methods=list(methods) or None, steps=steps, settings=settings, progress=None)
    if output is not None:
        write_page(output, found)
        click.echo(f"wrote {output}", err=True)
    if png is not None:
        write_picture(png, found)
        click.echo(f"wrote {png}", err=True)
