"""The Markdown files of the repository, taken apart: code blocks, links, and the anchors of headings."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/**/*.md", "kernels/*.md", "notebooks/*.md", "scripts/*.md", "longformer/**/*.md")
    for path in ROOT.glob(pattern)
    if not path.is_relative_to(ROOT / "longformer" / "kernels")  # a link to kernels/
)
CODE = ("console", "python", "sh")
NO_CODE = ("math", "text", "js")  # formulas, drawings, and a language that the tests do not run


class Block(NamedTuple):
    language: str  # "" where none is stated
    line: int  # of its first line in the file, counted from 1
    text: str


class Command(NamedTuple):
    """A command of a shell block: what is set in its environment, and its words."""

    environment: dict[str, str]
    words: list[str]


def parse(document: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / document).read_text(encoding="utf-8"))


def blocks(document: str) -> list[Block]:
    """All code blocks, fenced or indented."""
    found = [token for token in _deep(parse(document)) if token.type in ("fence", "code_block")]
    return [Block(t.info.strip(), (t.map or [0])[0] + (2 if t.type == "fence" else 1), t.content) for t in found]


def links(document: str) -> Iterator[str]:
    """Targets of links and sources of pictures, as they stand."""
    for token in _deep(parse(document)):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src"))


def anchors(document: str) -> set[str]:
    """What ``#...`` may follow the file's name: its headings, spelt as anchors."""
    tokens = parse(document)
    headings = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    found, seen = set(), Counter[str]()
    for heading in headings:
        text = "".join(child.content for child in heading.children or [])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def commands(script: str) -> list[Command]:
    """The commands of a shell block, one a line, without comments; a line may end in a backslash."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        count = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
        if words:
            settings = dict(word.split("=", 1) for word in words[:count])
            found.append(Command(settings, words[count:]))
    return found


def sessions(console: str) -> list[tuple[Command, str]]:
    """The commands after ``$`` of a console block, each with the output that is shown below it."""
    found = []
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        found.append((commands(line)[0], output))
    return found


def form(output: str) -> str:
    """Output without its numbers and quoted tokens: what stays the same from one run, or model, to another."""
    output = re.sub(r"'[^'\n]*'( window edge)?", "'…'", output)
    return re.sub(r"(?<![\w.])-?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0", output)


def _deep(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _deep(token.children or [])
