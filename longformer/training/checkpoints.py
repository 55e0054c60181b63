"""Checkpoints of a run, to resume from: written whole or not at all, checked by their hash when they are read.

A checkpoint is a folder ``checkpoints/step-00000500`` with ``state.safetensors`` (weights, AdamW's moments, random
states) and ``state.json`` (the step, and all else that is no tensor). It is made under another name and then renamed,
so that a folder of that name is complete whenever the process or the machine dies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from longformer.errors import CheckpointError
from longformer.hub import said

TENSORS = "state.safetensors"
STATE = "state.json"


class RunState(NamedTuple):
    """tensors: by name. values: what ``state.json`` holds, ``"step"`` among it."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_state(folder: Path, state: RunState, *, keep: int) -> None:
    """Write a checkpoint into ``folder``, then delete all but the ``keep`` latest.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full. Those written before are as they
            were.
    """
    name = f"step-{state.values['step']:08d}"
    new = folder / f".{name}.{os.getpid()}"
    try:
        _remove_unfinished(folder)
        new.mkdir(parents=True)
        save_file({key: tensor.contiguous() for key, tensor in state.tensors.items()}, new / TENSORS)
        values = {**state.values, "sha256": _sha256(new / TENSORS)}
        (new / STATE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        for path in (new / TENSORS, new / STATE, new):
            _sync(path)
        if (folder / name).exists():  # of this run before it was killed
            shutil.rmtree(folder / name)
        os.replace(new, folder / name)
        _sync(folder)
        for old in saved_steps(folder)[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        last = saved_steps(folder)
        kept = f"; the last good checkpoint, {last[-1]}, is intact" if last else ""
        raise CheckpointError(
            f"the checkpoint {name} cannot be written into {folder}: {said(error)}{kept}. "
            "Make room or mend what is wrong, then go on with --resume"
        ) from None


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, from the first to the last."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_state(folder: Path) -> RunState | None:
    """The last checkpoint in ``folder``; None if there is none.

    Raises:
        CheckpointError: it is corrupt; says which, and what to do.
    """
    saved = saved_steps(folder)
    if not saved:
        return None
    last = saved[-1]
    remedy = f"; to go on from the one before it, {saved[-2].name}, delete it" if len(saved) > 1 else ""
    try:
        values = json.loads((last / STATE).read_text(encoding="utf-8"))
        data = (last / TENSORS).read_bytes()
        if hashlib.sha256(data).hexdigest() != values["sha256"]:
            raise CheckpointError(f"{TENSORS} is not what was written: its hash differs")
        return RunState(load(data), values)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        what = str(error) if isinstance(error, CheckpointError) else said(error)
        raise CheckpointError(f"the checkpoint {last} is corrupt ({what}){remedy}") from None


def rng_tensors(states: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The processes' random states under names of their own, and back by :func:`rng_of`."""
    return {f"rng/{rank}/{kind}": tensor for rank, kinds in enumerate(states) for kind, tensor in kinds.items()}


def rng_of(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The random states of process ``rank``."""
    start = f"rng/{rank}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or to a folder's list of names."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
