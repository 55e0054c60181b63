"""Notebooks as pages: their Markdown, code and kept outputs, converted with nbconvert. Nothing is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple


class Notebook(NamedTuple):
    title: str
    markdown: str
    files: dict[str, bytes]  # beside the page: the pictures of the outputs, by name


def convert(path: Path) -> Notebook:
    """Read a notebook. Its title is its first heading, or else the file's name."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [part for cell in notebook.cells for part in _folded(cell)]
    prefix = f"{path.stem}_files"
    markdown, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"unique_key": path.stem, "output_files_dir": prefix}
    )
    heading = re.search(r"^# (.+)$", markdown, flags=re.MULTILINE)
    title = heading[1].strip() if heading else path.stem
    if heading is None:
        markdown = f"# {title}\n\n{markdown}"
    return Notebook(title, _fence_outputs(markdown), dict(resources.get("outputs", {})))


def _folded(cell: Any) -> list[Any]:
    """A cell, between the marks of a part that opens on a click where it is a solution."""
    from nbformat.v4 import new_markdown_cell

    if "solution" not in cell.metadata.get("tags", ()):
        return [cell]
    opened, closed = '<details markdown="1">\n<summary>Solution</summary>', "</details>"
    return [new_markdown_cell(opened), cell, new_markdown_cell(closed)]


def _fence_outputs(markdown: str) -> str:
    """Text that a cell printed, which nbconvert indents, as a block that the theme can tell from code."""
    lines, out, block = markdown.splitlines(), [], []
    fenced = False
    for line in [*lines, ""]:
        if line.startswith("```"):
            fenced = not fenced
        if not fenced and (line.startswith("    ") or (block and not line.strip())):
            block.append(line)
            continue
        if any(part.strip() for part in block):
            text = "\n".join(part[4:] for part in block).strip("\n")
            out += ["```text", text, "```", ""]
        elif block:
            out.append("")
        block = []
        out.append(line)
    return "\n".join(out)
