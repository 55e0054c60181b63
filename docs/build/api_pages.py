"""The pages of the API: one a public module, with every public name of it, found in the source without running it.

A module is public if it declares ``__all__`` or is named in ``WHOLE``. Names that are added later come by themselves.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "longformer"

# Modules without an ``__all__`` that others are meant to import from: whatever they define without an underscore.
WHOLE = (
    "longformer.convert",
    "longformer.plotting",
    "longformer.answering.squad",
    "longformer.answering.scores",
    "longformer.answering.spans",
    "longformer.answering.v2",
)


def public_names() -> dict[str, list[str]]:
    """Public modules in the order in which they are shown, each with its public names in the order of the source."""
    found = {}
    for module, path in sorted(_modules()):
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        declared = _declared(tree)
        if declared is not None:
            found[module] = declared
        elif module in WHOLE:
            found[module] = _defined(tree)
    return found


def page_name(module: str) -> str:
    """``api/longformer.kernels.md`` for ``longformer.kernels``."""
    return f"api/{module}.md"


def pages() -> dict[str, str]:
    """File of the site to its Markdown, in which mkdocstrings' ``:::`` stands for a name's documentation."""
    texts = {}
    for module, names in public_names().items():
        lines = [f"# {module}", "", f"::: {module}", "    options:", "      show_root_heading: false"]
        lines += ["      members: false", "      show_root_toc_entry: false", ""]
        for name in names:
            lines += [f"::: {module}.{name}", ""]
        texts[page_name(module)] = "\n".join(lines)
    return texts


def _modules() -> Iterator[tuple[str, Path]]:
    for path in (ROOT / PACKAGE).glob("**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path
    for path in (ROOT / "kernels").glob("*.py"):  # longformer.kernels, which is reached through a link
        rest = () if path.stem == "__init__" else (path.stem,)
        yield ".".join((PACKAGE, "kernels", *rest)), path


def _declared(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def _defined(tree: ast.Module) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
