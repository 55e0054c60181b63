"""``longformer classify``. What is slow to import is imported where it is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from longformer.answering.cli import printable
from longformer.answering.options import (
    DTYPES,
    batch_option,
    loading_options,
)
from longformer.classifying.texts import Text, is_table, read_texts
from longformer.errors import DataError
from longformer.files import as_argument, read_document, read_text
from longformer.options import MOST, Whole

if TYPE_CHECKING:
    from longformer.classifying.classifier import Classification


@click.command()
@click.argument("model")
@click.argument("file", metavar="FILE|-")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each text, with the scores of all labels."
)
@click.option(
    "--max-length",
    type=Whole(3, MOST),
    metavar="N",
    help="Tokens that are read of a text; the rest is cut off. As many as the model has positions for unless given.",
)
@batch_option
@loading_options
def classify(
    model: str, file: str, as_json: bool, max_length: int | None, batch_tokens: int, dtype: str, **loading: Any
) -> None:
    """Label the text FILE (- for standard input) with MODEL, a folder or a name on the hub.

    A .csv file (with a column "text") and a .jsonl file (with a "text" in each line) hold many texts. Each gets a line:
    the number of its line in the file, the label, and its probability.
    """
    texts = _read(file)
    import torch
    from tqdm import tqdm

    from longformer.classifying.classifier import TextClassifier
    from longformer.classifying.labels import REGRESSION
    from longformer.models.loading import check_implementation

    precision = getattr(torch, dtype) if dtype in DTYPES else dtype
    check_implementation(loading["impl"], loading["device"], precision)
    classifier = TextClassifier.from_pretrained(model, dtype=precision, **loading)
    with tqdm(total=len(texts), unit=" texts", disable=None if is_table(file) else True) as bar:
        found = classifier.classify(
            [text.text for text in texts],
            max_length=max_length,
            batch_tokens=batch_tokens,
            progress=bar.update,
            names=[text.place for text in texts] if is_table(file) else ["the text"],
        )
    cut = sum(one.is_cut for one in found)
    if cut:
        limit = max_length or classifier.model.config.max_tokens
        click.echo(f"cut off at {limit} tokens: {cut} of {len(found)} texts", err=True)
    lines = [text.line for text in texts] if is_table(file) else [None]
    if as_json:
        for line, one in zip(lines, found, strict=True):
            place = {} if line is None else {"line": line}
            click.echo(json.dumps({**place, "labels": one.labels, "scores": one.scores}, ensure_ascii=False))
    else:
        click.echo(as_table(lines, found, numbers=classifier.labels.problem_type == REGRESSION))


def _read(file: str) -> list[Text]:
    if is_table(file):
        return read_texts(file)
    if file.lower().endswith((".json", ".tsv", ".jsonl.gz", ".csv.gz")):
        raise DataError(
            f"{file} is not read: many texts come in a .csv or .jsonl file; to take it for one text, give it to "
            f"standard input: longformer classify MODEL - < {as_argument(file)}"
        )
    return [Text(read_document(file) if file == "-" else read_text(file), file, 1)]


def as_table(lines: Sequence[int | None], found: Sequence[Classification], *, numbers: bool) -> str:
    """A row for each text: its line in the file, if it has one, then its labels with their probabilities.

    numbers: the scores are numbers that a regression predicted.
    """
    width = max(len(str(line)) for line in lines)
    rows = []
    for line, one in zip(lines, found, strict=True):
        said = [f"{printable(label)} {one.scores[label]:.1%}" for label in one.labels]
        if numbers:
            said = [f"{printable(name)} {number:.6g}" for name, number in one.scores.items()]
        rows.append(("" if line is None else f"{line:>{width}}  ") + (", ".join(said) or "no label"))
    return "\n".join(rows)
