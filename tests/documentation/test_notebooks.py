"""The notebooks: source and kept copy are a pair, and the source runs from first to last cell, offline and quietly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("jupytext", reason="notebooks need jupytext, nbclient and ipykernel, the extra notebooks")
nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat, of the extra notebooks")

import run  # noqa: E402
from nbclient.exceptions import CellExecutionError  # noqa: E402
from nbformat import NotebookNode  # noqa: E402
from training_runs import squad_file  # noqa: E402

from longformer.answering.squad import Example, read_squad  # noqa: E402

# What a notebook does over many questions or lengths, and for that takes a minute, it does here over few.
FEWER = {
    "3_global_tokens": {'if entry["start"] > 5000]': 'if entry["start"] > 5000][:3]'},
    "6_long_documents": {
        "lengths = (500, 1000, 2000, 4000)": "lengths = (500, 2000)",
        "rounds=3": "rounds=1",
        "[2::6]": "[2::12]",
    },
    "7_experiments": {"MOST_QUESTIONS = 24": "MOST_QUESTIONS = 6", "ROUNDS = 2": "ROUNDS = 1"},
}


def with_fewer(notebook: NotebookNode, name: str) -> None:
    """Put the small numbers of ``FEWER`` in the place of a notebook's own, each of which stands there once."""
    for old, new in FEWER.get(name, {}).items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("fewer", [True, pytest.param(False, marks=pytest.mark.exhaustive)], ids=["fewer", "whole"])
@pytest.mark.parametrize("source", run.sources(), ids=lambda source: source.stem)
def test_a_notebook(source: Path, fewer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the workers are the parallelism
    kept = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    notebook = run.read(source)
    again = f"the pair is out of step; `make notebooks` writes {source.stem}.ipynb again"
    cells, kept_cells = ([(cell.cell_type, cell.id, cell.source) for cell in each.cells] for each in (notebook, kept))
    assert kept_cells == cells, again

    monkeypatch.delenv("LONGFORMER_DATA", raising=False)  # whose questions would take the place of the shipped ones
    if fewer:
        with_fewer(notebook, source.stem)
    run.execute(notebook)
    assert not warnings(notebook)
    drawn, drawn_before = (count_pictures(each) for each in (notebook, kept))
    assert drawn == drawn_before, "pictures in each cell, and pictures in each cell of the kept copy"
    assert sum(drawn) >= 1


def test_questions_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebook 7 takes what LONGFORMER_DATA names: a file, or what a folder holds of SQuAD's; nothing else quietly."""
    cells = run.read(run.FOLDER / "7_experiments.py").cells
    (source,) = (cell.source for cell in cells if "def squad_file" in cell.source)
    names = {"Path": Path, "os": os, "json": json, "read_squad": read_squad, "Example": Example, "MOST_QUESTIONS": 2}
    names["base"] = SimpleNamespace(tokenizer=lambda *pair: {"input_ids": " ".join(pair).split()})

    def ids(data: Path) -> list[str]:
        monkeypatch.setenv("LONGFORMER_DATA", str(data))
        exec(source, names)
        return [example.id for example in names["examples"]]

    with pytest.raises(FileNotFoundError, match=r"neither a file nor a folder with a \*dev\*\.json"):
        ids(tmp_path)
    squad_file(tmp_path / "squad-v1.1-train-part.json", titles=("not", "these"))
    file = Path(squad_file(tmp_path / "squad-v1.1-dev-part.json"))
    answered = [example.id for example in read_squad(file) if example.answers]
    assert set(ids(tmp_path)) <= set(answered) and ids(tmp_path) == ids(file)
    assert 1 < len(ids(tmp_path)) <= 2
    assert names["examples"][0].title == "many"


def test_each_opens_with_what_one_learns_and_how_long_it_takes() -> None:
    for source in run.sources():
        title, install, *_ = run.read(source).cells
        assert title.source.startswith("# ") and title.cell_type == "markdown"
        text = " ".join(title.source.split())
        assert re.search(r"You learn .*(minutes|hour) to read.*cells run in", text), source.name
        assert install.source == run.INSTALL


def test_the_first_cell_installs_in_colab_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: done.append(command))
    exec(run.INSTALL, {})
    assert done == []

    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr("builtins.input", lambda prompt: "https://example.org/longformer.git")
    cell = run.INSTALL.replace("/content", str(tmp_path))
    (tmp_path / "longformer" / "notebooks").mkdir(parents=True)  # as git leaves it
    monkeypatch.setattr(os.path, "isdir", lambda path: bool(done))
    for _ in range(2):  # a second time it does not fetch again
        exec(cell, {})
    clone, *installs = done
    assert clone[:2] == ["git", "clone"] and clone[-2] == "https://example.org/longformer.git"
    assert installs == [[sys.executable, "-m", "pip", "install", "--quiet", f"{tmp_path}/longformer[plot]"]] * 2
    assert Path.cwd() == tmp_path / "longformer" / "notebooks"


def test_solutions_are_folded() -> None:
    """Each notebook has exercises, whose solutions open on a click; nothing else is hidden."""
    for source in run.sources():
        for cells in (run.read(source).cells, nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells):
            at = next(i for i, cell in enumerate(cells) if "## Exercises" in cell.source)
            hidden = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in cells]
            assert hidden == [i > at and cell.cell_type == "code" for i, cell in enumerate(cells)], source.name


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero, in its line 1, `1 / 0`$"),
        ("import time; time.sleep(9)", "longer than 1 s"),
    ],
)
def test_a_notebook_that_fails_is_told_in_a_line(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SECONDS", 1 if "sleep" in code else 60)
    (tmp_path / "9.py").write_text(f"# %%\n{code}\n")
    with pytest.raises(SystemExit, match=message):
        run.main([str(tmp_path / "9.py")])
    assert not (tmp_path / "9.ipynb").exists()


def test_a_failing_cell_and_a_warning_are_noticed() -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("import warnings\nwarnings.warn('beware')"),
        nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.plot([1, 2]);"),
        nbformat.v4.new_code_cell("assert 1 + 1 == 3"),
    ]
    with pytest.raises(CellExecutionError, match="assert 1 \\+ 1 == 3"):
        run.execute(notebook)
    assert warnings(notebook)
    assert count_pictures(notebook) == [0, 1, 0]


def outputs(cell: NotebookNode) -> list[NotebookNode]:
    return cell.outputs if cell.cell_type == "code" else []


def warnings(notebook: NotebookNode) -> list[str]:
    """What was written to stderr and is a warning."""
    written = [output.text for cell in notebook.cells for output in outputs(cell) if output.get("name") == "stderr"]
    return [text for text in written if "Warning" in text]


def count_pictures(notebook: NotebookNode) -> list[int]:
    """How many pictures each cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in outputs(cell)) for cell in notebook.cells]
