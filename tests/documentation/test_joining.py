"""What those need who install the project or join it: PyTorch of the right kind, one version, and the pages for it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import longformer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``scripts/install_torch.py`` on a Linux machine that has no torch yet, no GPU, and reaches PyTorch's index."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = importlib.import_module("install_torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.setattr(module, "reaches_index", lambda: True)
    monkeypatch.delenv("TORCH_BUILD", raising=False)
    return module


def taken(script: ModuleType, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> list[str]:
    """What pip is asked for, without its own options."""
    asked: list[list[str]] = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(words)
        return subprocess.CompletedProcess(words, status)

    monkeypatch.setattr(subprocess, "run", run)
    script.main()
    return [word for words in asked for word in words[words.index("--constraint") + 2 :]]


CPU = ["--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu", "torch"]


class TestInstallTorch:
    def test_without_a_gpu(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        assert taken(script, monkeypatch) == CPU

    def test_with_a_gpu(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(script, "has_gpu", lambda: True)
        assert taken(script, monkeypatch) == ["torch"]

    @pytest.mark.parametrize(("build", "gpu", "wanted"), [("cpu", True, CPU), ("cuda", False, ["torch"])])
    def test_as_asked(
        self, script: ModuleType, build: str, gpu: bool, wanted: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(script, "has_gpu", lambda: gpu)
        monkeypatch.setenv("TORCH_BUILD", build)
        assert taken(script, monkeypatch) == wanted

    def test_a_word_that_is_none(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_BUILD", "rocm")
        with pytest.raises(SystemExit, match="'rocm'; it must be auto, cpu or cuda"):
            script.main()

    def test_where_the_index_cannot_be_reached(
        self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(script, "reaches_index", lambda: False)
        assert taken(script, monkeypatch) == ["torch"]
        assert "does not answer" in capsys.readouterr().err

    def test_on_a_mac(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert taken(script, monkeypatch) == ["torch"]

    def test_where_pip_fails(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SystemExit) as end:
            taken(script, monkeypatch, status=1)
        assert end.value.code == 1

    def test_where_torch_is_there(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        assert taken(script, monkeypatch) == []


def test_one_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {longformer.__version__}\n" in citation
    assert re.search(rf"^## {re.escape(longformer.__version__)}\b", changes, flags=re.MULTILINE)


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml does not list is missing from the wheel, and in a checkout nobody notices."""
    listed = re.findall(r'^ {4}"(longformer[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    there = {path.parent.relative_to(ROOT) for path in (ROOT / "longformer").rglob("*.py")} | {
        Path("longformer/kernels")
    }
    assert sorted(listed) == sorted(str(folder).replace("/", ".") for folder in there)


def test_a_checkout_without_links(tmp_path: Path) -> None:
    """git on Windows writes the link's target into a file: that is told, instead of a module that is missing."""
    package = tmp_path / "longformer"
    package.mkdir()
    for name in ("__init__.py", "lazy.py", "errors.py"):
        (package / name).write_bytes((ROOT / "longformer" / name).read_bytes())
    (package / "kernels").write_text("../kernels")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import longformer"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ImportError: longformer/kernels is a file and should be a link" in done.stderr
    assert "git config core.symlinks true" in done.stderr


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "CHANGELOG.md"])
def test_files_that_contributing_names_are_there(name: str) -> None:
    """Whatever looks like a path of the repository is one."""
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"`((?:longformer|kernels|tests|docs|scripts|notebooks|\.github)/[\w./*-]*)`", text)
    missing = [path for path in named if not list(ROOT.glob(path))]
    assert missing == []
