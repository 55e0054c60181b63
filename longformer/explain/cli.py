"""``longformer explain``. What is slow to import is imported where it is run."""

from __future__ import annotations

from os.path import samefile
from pathlib import Path
from typing import Any

import click

from longformer.cli_options import answer_options, check_output, load_answerer, model_options, read_document
from longformer.errors import DataError


@click.command()
@click.argument("question")
@click.argument("document", required=False)
@click.option("--text", metavar="TEXT", help="The document itself, instead of a file.")
@click.option("-o", "--output", metavar="PAGE.html", help="The page to write.")
@click.option("--png", metavar="PICTURE.png", help="Write a still picture; needs matplotlib, the extra `plot`.")
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="How many answers."
)
@answer_options
@model_options
def explain(
    question: str,
    document: str | None,
    text: str | None,
    output: str | None,
    png: str | None,
    top_k: int,
    max_answer_tokens: int,
    stride: int | None,
    max_length: int | None,
    null_threshold: float | None,
    **model: Any,
) -> None:
    """Show why an answer to QUESTION was chosen in the file DOCUMENT (- for standard input).

    PAGE.html opens in any browser and needs nothing else: the document with the answer and its runners-up marked, and
    for every token where it attends in each layer and head, the attention rollout, start and end scores.

    \b
    longformer explain "How old must a person be to become President?" constitution.txt -o page.html
    """
    if (document is None) == (text is None):
        raise click.UsageError("give the document as a file, as - for standard input, or with --text: one of them")
    if output is None and png is None:
        raise click.UsageError("say what to write: -o page.html, --png picture.png, or both")
    if output is not None and output == png:
        raise click.UsageError(f"-o and --png are both {output}; give each its own file")
    for path, suffix in ((output, ".html"), (png, ".png")):
        if path is not None:
            if not path.lower().endswith(suffix):
                raise DataError(f"{path!r} must end in {suffix}, which says what it is")
            check_output(path)
            if document is not None and Path(path).exists() and Path(document).exists() and samefile(path, document):
                raise DataError(
                    f"{path} is the document itself, which would be overwritten; give another file to write"
                )
    if text is None:
        assert document is not None
        text = read_document(document)

    from longformer.answering.answerer import check_pair
    from longformer.explain.picture import require_matplotlib, write_picture

    check_pair((question, text))
    if png is not None:
        require_matplotlib()

    from longformer.explain.explanation import explain as run
    from longformer.explain.page import write_page

    found = run(
        load_answerer(**model),
        question,
        text,
        top_k=top_k,
        max_answer_tokens=max_answer_tokens,
        stride=stride,
        max_length=max_length,
        null_threshold=null_threshold,
    )
    if output is not None:
        write_page(output, found)
        click.echo(f"wrote {output}", err=True)
    if png is not None:
        write_picture(png, found)
        click.echo(f"wrote {png}", err=True)
