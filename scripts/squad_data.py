"""Make files to train on from SQuAD-format files and from plain text.

``split``, ``lengthen``, ``whole`` and ``spans`` make SQuAD-format files, ``labels`` makes CSV files of labelled texts.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

Entry = dict[str, Any]
# Words that neither begin nor end a span worth asking for.
COMMON = frozenset(
    "a about after all also although an and any are as at be because been before being between both but by can could "
    "did do does during each for from had has have he her his how however if in into is it its may more most no not of "
    "on one only or other our out over she should since so some such than that the their them then there these they "
    "this those through to under up upon was we were what when where which while who will with would you your".split()
)


@click.group()
def main() -> None:
    """Make files to train on from SQuAD-format files and from plain text."""


def read(path: str) -> list[Entry]:
    """The articles of a file, each with a title."""
    articles: list[Entry] = json.loads(Path(path).read_text(encoding="utf-8"))["data"]
    return [{"title": article.get("title") or f"article {i}", **article} for i, article in enumerate(articles)]


def write(path: str, articles: list[Entry]) -> None:
    """A file of articles, whole or not at all; says what is in it."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps({"version": "1.1", "data": articles}, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
    questions = sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])
    click.echo(f"{path}: {len(articles)} articles, {questions} questions", err=True)


@main.command()
@click.argument("file")
@click.argument("train")
@click.argument("held")
@click.option("--every", default=3, help="Which articles to hold out: every third, from the first.")
@click.option("--title", "titles", multiple=True, help="Hold out these articles instead.")
def split(file: str, train: str, held: str, every: int, titles: tuple[str, ...]) -> None:
    """Split FILE by whole articles into TRAIN and HELD."""
    articles = read(file)
    chosen = [a["title"] in titles if titles else i % every == 0 for i, a in enumerate(articles)]
    write(train, [article for article, out in zip(articles, chosen, strict=True) if not out])
    write(held, [article for article, out in zip(articles, chosen, strict=True) if out])


@main.command()
@click.argument("file")
@click.argument("output")
@click.option("--paragraphs", default=12, help="Most paragraphs of a context.")
@click.option("--share", default=0.25, help="Share of the questions to ask so.")
@click.option("--seed", default=0)
def lengthen(file: str, output: str, paragraphs: int, share: float, seed: int) -> None:
    """Ask some of FILE's questions over several neighbouring paragraphs of their article, up to PARAGRAPHS."""
    draw = random.Random(seed)
    made = []
    for article in read(file):
        rows = article["paragraphs"]
        longer = []
        for i, row in enumerate(rows):
            asked = [question for question in row["qas"] if draw.random() < share]
            if not asked or len(rows) == 1:
                continue
            count = draw.randint(2, min(paragraphs, len(rows)))
            first = draw.randint(max(0, i - count + 1), min(i, len(rows) - count))
            before = "".join(other["context"] + "\n" for other in rows[first:i])
            context = before + "\n".join(other["context"] for other in rows[i : first + count])
            moved = [
                {
                    **question,
                    "id": f"{question['id']}-long",
                    "answers": [{**a, "answer_start": a["answer_start"] + len(before)} for a in question["answers"]],
                }
                for question in asked
            ]
            longer.append({"context": context, "qas": moved})
        made.append({"title": article["title"], "paragraphs": longer})
    write(output, made)


@main.command()
@click.argument("file")
@click.argument("output")
@click.option("--every", default=1, help="Ask every so manieth question alone.")
def whole(file: str, output: str, every: int) -> None:
    """Ask FILE's questions over their whole article: its paragraphs, one below the other."""
    made = []
    for article in read(file):
        asked, length = [], 0
        for row in article["paragraphs"]:
            for question in row["qas"]:
                answers = [{**a, "answer_start": a["answer_start"] + length} for a in question["answers"]]
                asked.append({**question, "answers": answers})
            length += len(row["context"]) + 1
        context = "\n".join(row["context"] for row in article["paragraphs"])
        made.append({"title": article["title"], "paragraphs": [{"context": context, "qas": asked[::every]}]})
    write(output, made)


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("-o", "--output", required=True)
@click.option("--words", default=220, help="Length of a passage.")
@click.option("--questions", default=4, help="Most questions a passage.")
@click.option("--without", "titles", multiple=True, help="Articles of SQuAD-format files to leave out.")
@click.option("--seed", default=0)
def spans(files: tuple[str, ...], output: str, words: int, questions: int, titles: tuple[str, ...], seed: int) -> None:
    """Span selection (Ram et al. 2021, arXiv 2101.00438) on plain text and on the contexts of SQuAD-format FILES.

    A span that recurs in a passage is asked for by a sentence in which "what" stands in its place; the context is the
    passage without that sentence, and the answer another occurrence.
    """
    draw = random.Random(seed)
    made = []
    for name in files:
        paragraphs = [
            row
            for document in _documents(name, titles)
            for passage in _passages(document, words)
            if (row := _asked(passage, questions, draw))
        ]
        for i, row in enumerate(paragraphs):
            for j, question in enumerate(row["qas"]):
                question["id"] = f"{Path(name).stem}-{i}-{j}"
        made.append({"title": Path(name).stem, "paragraphs": paragraphs})
    write(output, made)


@main.command()
@click.argument("file")
@click.argument("train")
@click.argument("held")
@click.option("--title", "titles", multiple=True, required=True, help="The articles whose questions to take.")
@click.option("--every", default=3, help="Hold out the questions about every third paragraph, from the first.")
def labels(file: str, train: str, held: str, titles: tuple[str, ...], every: int) -> None:
    """Label FILE's questions with the title of their article, and write them to the CSV files TRAIN and HELD."""
    rows: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for article in read(file):
        for i, paragraph in enumerate(article["paragraphs"] if article["title"] in titles else []):
            rows[i % every == 0] += [(question["question"].strip(), article["title"]) for question in paragraph["qas"]]
    for path, out in ((train, False), (held, True)):
        with open(path, "w", encoding="utf-8", newline="") as opened:
            csv.writer(opened).writerows([("text", "label"), *rows[out]])
        click.echo(f"{path}: {len(rows[out])} questions", err=True)


def _documents(name: str, titles: tuple[str, ...]) -> list[str]:
    if not name.endswith(".json"):
        return [Path(name).read_text(encoding="utf-8")]
    return [
        "\n".join(row["context"] for row in article["paragraphs"])
        for article in read(name)
        if article["title"] not in titles
    ]


def _passages(document: str, words: int) -> list[list[str]]:
    """Runs of sentences of about ``words`` words."""
    passages: list[list[str]] = [[]]
    count = 0
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", document):
        if not sentence.strip():
            continue
        if count and count + len(sentence.split()) > words:
            passages.append([])
            count = 0
        passages[-1].append(sentence.strip())
        count += len(sentence.split())
    return passages


def _asked(sentences: list[str], most: int, draw: random.Random) -> Entry | None:
    """One paragraph: the sentence with the most recurring spans is asked about. Its questions have no ids yet."""
    where: dict[str, set[int]] = defaultdict(set)
    for i, sentence in enumerate(sentences):
        tokens = re.findall(r"\w[\w'-]*", sentence)
        for size in range(1, 7):
            for j in range(len(tokens) - size + 1):
                first, last = tokens[j].lower(), tokens[j + size - 1].lower()
                if first in COMMON or last in COMMON or (size == 1 and len(first) < 4):
                    continue
                span = " ".join(tokens[j : j + size])
                if re.search(rf"(?<!\w){re.escape(span)}(?!\w)", sentence):
                    where[span].add(i)
    recurring = [span for span, places in where.items() if len(places) > 1]
    # Of spans that always occur together the longest alone; a longer one says more.
    recurring = [s for s in recurring if not any(s != t and s in t and where[s] == where[t] for t in recurring)]
    if not recurring:
        return None
    counts: dict[int, int] = defaultdict(int)
    for span in recurring:
        for i in where[span]:
            counts[i] += 1
    asked = max(counts, key=lambda i: (counts[i], draw.random()))
    context = " ".join(sentence for i, sentence in enumerate(sentences) if i != asked)
    rows = []
    usable = [span for span in recurring if asked in where[span]]
    draw.shuffle(usable)
    for span in usable[:most]:
        found = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(span)}(?!\w)", context)]
        if not found:
            continue
        question = re.sub(rf"(?<!\w){re.escape(span)}(?!\w)", "what", sentences[asked]).rstrip(".!? ") + "?"
        start = draw.choice(found)
        rows.append({"question": question, "answers": [{"text": span, "answer_start": start}]})
    return {"context": context, "qas": rows} if rows else None


if __name__ == "__main__":
    main()
