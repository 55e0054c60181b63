"""What mkdocs is told to do besides reading ``docs/``: pages from elsewhere in the repository, tables, mathematics.

Every text has one source. READMEs, notebooks, docstrings and the benchmarks' files stay where they are and are read
from there; mathematics becomes MathML while the site is built, so that a page needs neither script nor network for it.
"""

from __future__ import annotations

import html
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import api_pages  # beside this file, where mkdocs looks
import bench_tables
import notebook_pages

ROOT = Path(__file__).resolve().parents[2]

# Texts outside of docs/ and the page that each becomes.
READMES = {
    "kernels/README.md": "kernels.md",
    "longformer/pretrained/README.md": "checkpoint.md",
    "notebooks/README.md": "notebooks/index.md",
    "scripts/README.md": "experiments.md",
}
# What follows one of them on the site alone: the docstring in which the backward pass is derived.
APPENDED = {
    "kernels/README.md": """
## The tiles, forward and backward

::: longformer.kernels.blocked
    options:
      members: false
      show_root_heading: false
      show_root_toc_entry: false
"""
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^()\s]+)\)")
MATH = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', flags=re.DOTALL)
MATH_IN_TITLE = re.compile(r"\\\((.*?)\\\)")
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=[\"']?(https?:[^\"'\s>]+)")
SHIM = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"></script>')  # what the plugin offline asks for
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?\.?")

log = logging.getLogger("mkdocs.hooks")


def on_config(config: Any) -> Any:
    """Add to the navigation what is found rather than listed: the API's pages, and notebooks."""
    notebooks: list[Any] = [{notebook_pages.convert(path).title: _notebook_page(path)} for path in _notebooks()]
    if notebooks:
        notebooks[:0] = [{"Which are there": "notebooks/index.md"}]
        config.nav.insert(_place(config.nav, "How to") + 1, {"Notebooks": notebooks})
    config.nav.append({"API": [{module: api_pages.page_name(module)} for module in api_pages.public_names()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and pictures that are not in ``docs/``."""
    from mkdocs.structure.files import File

    def add(name: str, **source: Any) -> None:
        files.append(File.generated(config, name, **source))

    for source, page in READMES.items():
        if not (ROOT / source).is_file():
            continue
        add(page, content=(ROOT / source).read_text(encoding="utf-8") + APPENDED.get(source, ""))
    for page, text in api_pages.pages().items():
        add(page, content=text)
    for picture in sorted(bench_tables.RESULTS.glob("*.png")):
        add(f"results/{picture.name}", abs_src_path=str(picture))
    for path in _notebooks():
        notebook = notebook_pages.convert(path)
        add(_notebook_page(path), content=notebook.markdown)
        for name, content in notebook.files.items():
            add(f"notebooks/{name}", content=content)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in tables, and lead links between files of the repository to pages of the site."""
    name = page.file.src_uri
    homes = {site: source for source, site in READMES.items()}
    home = homes.get(name, name if name.startswith("notebooks/") else f"docs/{name}")
    return LINK.sub(lambda link: _relink(link, name, home), bench_tables.fill(markdown))


def on_page_content(html_text: str, page: Any, **_: Any) -> str:
    """Mathematics as MathML, in the contents beside the page too, and names in docstrings without their roles."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]).strip(), display=display)

    entries = list(page.toc)
    for entry in entries:
        entry.title = MATH_IN_TITLE.sub(lambda found: convert(html.unescape(found[1])), entry.title)
        entries += entry.children
    return ROLE.sub("<code>", MATH.sub(mathml, html_text))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """A page that fetches anything from elsewhere is warned of, and so is not built.

    The plugin "offline" has pages fetch a stand-in for Workers; docs/worker.js is ours.
    """
    up = "../" * page.file.dest_uri.count("/")
    output = SHIM.sub(f'<script src="{up}worker.js"></script>', output)
    for address in FETCHED.findall(output):
        log.warning("%s fetches %s", page.file.src_uri, address)
    return output


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _notebook_page(path: Path) -> str:
    return f"notebooks/{path.stem}.md"


def _place(nav: list[Any], title: str) -> int:
    return next(i for i, entry in enumerate(nav) if title in entry)


def _relink(link: re.Match[str], page: str, home: str) -> str:
    """A link out of ``docs/`` to a file that is a page goes to that page; to one that is none it is no link."""
    mark, text, target = link.groups()
    path, _, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return link[0]
    source = posixpath.normpath(posixpath.join(posixpath.dirname(home), path))
    if source in READMES:
        there = READMES[source]
    elif source.startswith("docs/"):
        there = source.removeprefix("docs/")
    elif source.startswith("notebooks/"):
        there = re.sub(r"\.(ipynb|py)$", ".md", source)
    elif source.startswith("longformer/bench/results/") and source.endswith(".png"):
        there = f"results/{posixpath.basename(source)}"
    elif home == f"docs/{page}" and not path.startswith("../"):
        return link[0]  # a page that is made, such as the API's
    elif (ROOT / source).exists():
        return text
    else:
        return link[0]  # which leads nowhere; mkdocs says so
    relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
    return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"
