"""Execute notebooks and keep what they show: every NAME.py of this folder, or those named, into NAME.ipynb.

The sources are the .py files (jupytext's percent format); the .ipynb beside each is made from it, to be looked at.
NOTEBOOK_SECONDS sets the time limit of one cell, 240 seconds unless set.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).parent
SECONDS = int(os.environ.get("NOTEBOOK_SECONDS", "240"))  # for one cell
INSTALL = """\
# In Google Colab this cell fetches the repository and installs the package. Anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    folder = "/content/longformer"
    if not os.path.isdir(folder):
        repository = input("Address of the git repository that this notebook is from: ")
        subprocess.run(["git", "clone", "--depth", "1", repository, folder], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"{folder}[plot]"], check=True)
    os.chdir(f"{folder}/notebooks")"""  # not [notebooks]: Colab has its own of what runs a notebook
SOLUTION = "solution"  # tag of a cell that is folded away until the reader wants it
SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # all that a notebook needs is in the repository
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning of the debugger's about Python's own frozen modules
    "TOKENIZERS_PARALLELISM": "false",
}


def sources() -> list[Path]:
    """The notebooks, in the order in which they are read."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def read(source: Path) -> NotebookNode:
    """The notebook of a source, without outputs: the cell that installs stands first among those of code.

    A cell's id comes from its text, so that equal cells stay equal.
    """
    notebook = jupytext.read(source)
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
    notebook.cells.insert(first, nbformat.v4.new_code_cell(INSTALL))
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.id = f"{name}-{seen[name]}"
        seen[name] += 1
    return _fold_solutions(notebook)


def _fold_solutions(notebook: NotebookNode) -> NotebookNode:
    """Code below the heading "Exercises" is solutions: tagged, and closed in JupyterLab and in Colab."""
    below = False
    for cell in notebook.cells:
        below = below or (cell.cell_type == "markdown" and "## Exercises" in cell.source)
        if below and cell.cell_type == "code":
            cell.metadata.update(tags=[SOLUTION], jupyter={"source_hidden": True}, cellView="form")
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run a notebook's cells from first to last, and put what they show into it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
        nbclient.exceptions.CellTimeoutError: a cell took longer than SECONDS.
    """
    config = Config()
    config.KernelSpecManager.kernel_dirs = []  # this very Python, whatever kernels the user has installed
    resources = {"metadata": {"path": str(FOLDER)}}
    with tempfile.TemporaryDirectory() as sockets:
        # A port of TCP is free when it is chosen, and perhaps no more when it is opened.
        config.KernelManager.transport, config.KernelManager.ip = "ipc", f"{sockets}/kernel"
        client = NotebookClient(
            notebook,
            config=config,
            kernel_name="python3",
            timeout=SECONDS,
            resources=resources,
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env={**os.environ, **SETTINGS})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_repr(output)]
    notebook.metadata.language_info = {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"}
    return notebook


def _is_repr(output: NotebookNode) -> bool:
    """Whether this is only what a cell's last line happened to return, whose text may be an address in memory."""
    return output.output_type == "execute_result" and set(output.data) == {"text/plain"}


def main(names: list[str]) -> None:
    """Execute the sources named, or all."""
    for source in [Path(name) for name in names] or sources():
        target = source.with_suffix(".ipynb")
        try:
            notebook = execute(read(source))
        except CellTimeoutError:
            sys.exit(f"{source.name}: a cell took longer than {SECONDS} s; NOTEBOOK_SECONDS allows more")
        except CellExecutionError as error:
            at = re.findall(r"^-+> *(\d+) (.*)$", re.sub(r"\x1b\[[\d;]*m", "", error.traceback), flags=re.MULTILINE)
            place = f", in its line {at[0][0]}, `{at[0][1].strip()}`" if at else ""
            sys.exit(f"{source.name}: a cell failed with {error.ename}: {error.evalue}{place}")
        nbformat.write(notebook, target)
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
