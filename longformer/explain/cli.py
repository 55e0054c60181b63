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
from longformer.errors import DataError
from longformer.files import check_outputs


@click.command()
@document_arguments
@click.option("-o", "--output", metavar="PAGE.html", help="The page to write.")
@click.option("--png", metavar="PICTURE.png", help="Write a still picture; needs matplotlib, the extra `plot`.")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="How many answers."
)
@answer_options
@model_options
def explain(
    question: str, document: str | None, text: str | None, output: str | None, png: str | None, **options: Any
) -> None:
    """Show why an answer to QUESTION was chosen in the file DOCUMENT (- for standard input).

    PAGE.html opens in any browser and needs nothing else: the document with the answer and its runners-up marked, and
    for every token where it attends in each layer and head, the attention rollout, start and end scores.

    \b
    longformer explain "How old must a person be to become President?" constitution.txt -o page.html
    """
    check_one_document(document, text)
    if output is None and png is None:
        raise click.UsageError("say what to write: -o page.html, --png picture.png, or both")
    for path, suffix in ((output, ".html"), (png, ".png")):
        if path is not None and not path.lower().endswith(suffix):
            raise DataError(f"{path!r} must end in {suffix}, which says what it is")
    inputs = [] if document is None else [document]
    check_outputs(filter(None, (output, png)), [*inputs, *checkpoint_files(options["model"])])
    text = given_document(document, text)

    from longformer.answering.texts import check_texts
    from longformer.explain.picture import require_matplotlib, write_picture

    check_texts(question, text)
    if png is not None:
        require_matplotlib()

    from longformer.explain.explanation import explain as run
    from longformer.explain.page import write_page

    settings = take_settings(options)
    found = run(load_answerer(**options), question, text, settings=settings)
    if output is not None:
        write_page(output, found)
        click.echo(f"wrote {output}", err=True)
    if png is not None:
        write_picture(png, found)
        click.echo(f"wrote {png}", err=True)
