"""What every test shares: an import path without our own ``kernels/``, no network, one seed, and where data lies."""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the repository's root first on sys.path, and transformers would then take our folder
# kernels/ for the distribution of that name, which it probes for.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

RELEASED_DIR = os.environ.get("LONGFORMER_RELEASED_DIR")
RELEASED_HUB = os.environ.get("LONGFORMER_RELEASED_HUB") == "1"

# huggingface_hub reads its settings when it is imported, so they stand before the imports below.
if not RELEASED_HUB:
    os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# Triton decides when it is first imported whether it compiles for a GPU or interprets on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton") is not None:
        import interpreted

        interpreted.patch_once()

import longformer  # noqa: E402
import longformer.models.packed  # noqa: E402

# Without derandomize a rare failure would show on one run and not on the next.
hypothesis.settings.register_profile("longformer", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("longformer")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers are the parallelism


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    missing = {}
    if RELEASED_DIR is None and not RELEASED_HUB:
        missing["released"] = (
            "released weights: set LONGFORMER_RELEASED_DIR to a folder that holds allenai/longformer-base-4096 and the "
            "like, or LONGFORMER_RELEASED_HUB=1 to fetch them from the hub"
        )
    if not torch.cuda.is_available():
        missing["gpu"] = "no CUDA device"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def short_is_shorter() -> Iterator[None]:
    """Documents of tests are small: of those that the package calls short, some here take the long ones' way."""
    with pytest.MonkeyPatch.context() as patch:  # of its own, which no test undoes
        patch.setattr(longformer.models.packed, "SHORT", dict.fromkeys((2, 4, 8), 12))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real questions and tokenizers: LONGFORMER_DATA, else ``../shared/data`` beside the repository."""
    named = os.environ.get("LONGFORMER_DATA")
    if named is not None:
        if not Path(named).is_dir():
            pytest.fail(f"LONGFORMER_DATA={named!r} is not a folder; name one that exists, or unset it")
        return Path(named)
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data: set LONGFORMER_DATA to its folder, or place it at ../shared/data")
    return folder


@pytest.fixture(scope="session")
def pretrained_dir() -> Path:
    """Folder of the checkpoint that the package ships. It is part of the package: absent is a failure, not a skip."""
    folder = Path(longformer.__file__).parent / "pretrained"
    absent = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if absent:
        pytest.fail(f"{folder} lacks {', '.join(absent)}: the package was built or checked out without its checkpoint")
    return folder


@pytest.fixture(scope="session")
def released() -> Callable[[str], str]:
    """``released("allenai/longformer-base-4096")`` is what ``from_pretrained`` takes: a local folder or the hub's name.

    For tests marked ``released``. Skips where LONGFORMER_RELEASED_DIR lacks that checkpoint and the hub is not allowed.
    """

    def locate(name: str) -> str:
        if RELEASED_DIR is not None and (Path(RELEASED_DIR) / name).is_dir():
            return str(Path(RELEASED_DIR) / name)
        if RELEASED_HUB:
            return name
        pytest.skip(f"{name} is not in LONGFORMER_RELEASED_DIR={RELEASED_DIR!r}, and LONGFORMER_RELEASED_HUB is not 1")

    return locate
