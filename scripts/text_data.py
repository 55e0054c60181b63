"""Texts of SQuAD-format files as documents, a line each: to train a masked language model on, and to hold out."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILES = ("squad-v1.1-dev-part.json", "squad-v1.1-train-part.json", "covid-qa.json")


@click.command()
@click.argument("data")
@click.argument("output")
@click.option("--title", "titles", multiple=True, help="Article to hold out; of papers, every third is.")
def main(data: str, output: str, titles: tuple[str, ...]) -> None:
    """Write train.jsonl and held.jsonl into OUTPUT from the files in DATA."""
    documents: dict[str, list[str]] = {"train.jsonl": [], "held.jsonl": []}
    for name in FILES:
        articles = json.loads((Path(data) / name).read_text(encoding="utf-8"))["data"]
        for i, article in enumerate(articles):
            text = "\n".join(paragraph["context"] for paragraph in article["paragraphs"])
            held = i % 3 == 0 if name == "covid-qa.json" else article.get("title") in titles
            documents["held.jsonl" if held else "train.jsonl"].append(text)
    for name, texts in documents.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (Path(output) / name).write_text("".join(lines), encoding="utf-8")
        click.echo(f"{name}: {len(texts)} documents, {sum(map(len, texts)):,} characters", err=True)


if __name__ == "__main__":
    main()
