"""``longformer answer``, and an answer in its sentence. What is slow to import is imported where it is run."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from longformer.answering.options import (
    answer_options,
    check_one_document,
    document_arguments,
    given_document,
    load_answerer,
    model_options,
    take_settings,
)
from longformer.answering.settings import AnswerSettings
from longformer.options import COUNT

if TYPE_CHECKING:
    from longformer.answering.spans import Answer


@click.command()
@document_arguments
@click.option(
    "--top-k",
    type=COUNT,
    default=AnswerSettings.top_k,
    show_default=True,
    metavar="N",
    help="How many answers.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON list of the answers, each with its line and sentence."
)
@answer_options
@model_options
def answer(question: str, document: str | None, text: str | None, as_json: bool, **options: Any) -> None:
    """Answer QUESTION from the file DOCUMENT (- for standard input)."""
    check_one_document(document, text)
    text = given_document(document, text)

    from tqdm import tqdm

    from longformer.answering.texts import check_texts

    check_texts(question, text)
    settings = take_settings(options)
    answerer = load_answerer(**options)
    with tqdm(unit=" windows", delay=2, leave=False, disable=None) as bar:

        def count(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        answers = answerer.answer(question, text, settings=settings, windows=count)
    if as_json:
        click.echo(json.dumps([{**asdict(found), **line_and_sentence(found, text)} for found in answers], indent=2))
    else:
        click.echo("\n\n".join(describe(found, text) for found in answers))


def line_and_sentence(found: Answer, document: str) -> dict[str, int | str | None]:
    """The number of the line in which an answer begins, and the sentence around it; None for no answer."""
    if not found.text:
        return {"line": None, "sentence": None}
    before, after = surroundings(document, found.start, found.end)
    sentence = re.sub(r"[\s\ufeff]+", " ", f"{before}{document[found.start : found.end]}{after}").strip()
    return {"line": document.count("\n", 0, found.start) + 1, "sentence": sentence}


def describe(found: Answer, document: str) -> str:
    """An answer as a reader wants it: its text, how probable, where, and the sentence around it."""
    if not found.text:
        return f"no answer\n  probability {found.probability:.1%}"
    text = click.style(printable(found.text), bold=True)
    before, after = surroundings(document, found.start, found.end)
    line = line_and_sentence(found, document)["line"]
    sentence = f"{printable(before)}{text}{printable(after)}".strip()
    return (
        f"{text}\n"
        f"  probability {found.probability:.1%}, line {line}, "
        f"characters {found.start} to {found.end} of {len(document)}\n"
        f"  {sentence}"
    )


# Chinese and Japanese put no space behind the end of a sentence.
SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+|(?<=[。！？])[”’」』）]*\s*|\n\s*\n""")
JOINERS = "\u200c\u200d"  # zero-width: inside words of Persian and Indian scripts, and inside emoji


def surroundings(document: str, start: int, end: int, *, most: int = 160) -> tuple[str, str]:
    """What stands before and behind ``document[start:end]`` in its sentence, up to about ``most`` characters each."""
    before = document[max(0, start - most) : start]
    ends = [match.end() for match in SENTENCE_END.finditer(before)]
    if ends:
        before = before[ends[-1] :]
    elif start > most:
        before = f"... {before.partition(' ')[2] or before}"  # not every language has spaces
    after = document[end : end + most]
    # One character more is searched, so that an answer which ends its sentence is seen to.
    found = SENTENCE_END.search(document[end - 1 : end + most])
    if found:
        after = after[: found.end() - 1].rstrip()
    elif end + most < len(document):
        after = f"{after.rpartition(' ')[0] or after} ..."
    return before, after


def printable(text: str) -> str:
    """``text`` on one line, and without characters that would steer the terminal. Joiners stay: letters need them."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() or c in JOINERS else " " for c in text))
