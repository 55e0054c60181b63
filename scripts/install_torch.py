"""Install PyTorch into the environment of the Python that runs this: without CUDA where there is no NVIDIA GPU.

On Linux, torch from PyPI brings several gigabytes of CUDA libraries. PyTorch keeps builds without them in an index of
its own (https://pytorch.org/get-started/locally). This script takes such a build where it can, and says what it takes.

TORCH_BUILD=cpu takes it although there is a GPU, TORCH_BUILD=cuda takes PyPI's although there is none.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 5  # to wait for that index
CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
PROBE = f"import urllib.request; urllib.request.urlopen({CPU_INDEX + '/torch/'!r}, timeout={SECONDS}).close()"


def main() -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    wanted = os.environ.get("TORCH_BUILD", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        sys.exit(f"TORCH_BUILD is {wanted!r}; it must be auto, cpu or cuda")
    without_cuda = sys.platform == "linux" and (wanted == "cpu" or (wanted == "auto" and not has_gpu()))
    if not without_cuda:
        size = "with CUDA, several gigabytes" if sys.platform == "linux" else "about 100 MB"
        say(f"Installing PyTorch ({size}).")
        install()
    elif reaches_index():
        say("Installing PyTorch without CUDA (about 200 MB): there is no NVIDIA GPU here, or TORCH_BUILD=cpu.")
        # That index need not have torch's dependencies in the versions that we pin.
        install("--no-deps", "--index-url", CPU_INDEX)
    else:
        say(f"{CPU_INDEX} does not answer. Installing PyTorch from pip's usual index; that may be several gigabytes.")
        install()


def has_gpu() -> bool:
    """Whether the machine has an NVIDIA GPU with its driver."""
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None


def reaches_index() -> bool:
    """Whether PyTorch's index answers in time. In a process of its own: a name server can make us wait longer."""
    try:
        return subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=2 * SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def install(*options: str) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    ended = subprocess.run([*pip, "--constraint", str(CONSTRAINTS), *options, "torch"]).returncode
    if ended:
        sys.exit(ended)


def say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


if __name__ == "__main__":
    main()
