"""The package as Python finds it: names that are imported lazily, and a folder that is called like another."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import longformer

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["longformer", *(f"longformer.{x.name}" for x in pkgutil.iter_modules(longformer.__path__) if x.ispkg)]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_is_that_of_a_module(name: str) -> None:
    """Else it would be the one or the other, by what was imported before."""
    package = importlib.import_module(name)
    homes = getattr(package, "_HOMES", {})
    assert not homes.keys() & {module.name for module in pkgutil.iter_modules(package.__path__)}


def test_the_kernels_folder_is_empty_under_its_own_name() -> None:
    """transformers looks for a distribution called kernels, and imports this folder where a checkout is on the path."""
    code = "import sys, kernels; assert 'torch' not in sys.modules and not hasattr(kernels, 'choose')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
