"""Checkpoints of a run, to resume from. Each is written completely or not at all. Reading one checks its hashes.

A checkpoint is a folder such as ``checkpoints/step-00000500``. ``state.safetensors`` holds weights, AdamW's moments and
random states; ``state.json`` holds the step and everything else that is not a tensor. Hashes cover both. The folder is
written under another name and then renamed. So a folder of this name is complete, even after a crash of the machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from longformer.claims import abandoned, unfinished
from longformer.errors import CheckpointError, in_one_line
from longformer.files import read_json, replace_file, sync

CHECKPOINTS = "checkpoints"
TENSORS = "state.safetensors"
STATE = "state.json"


class RunState(NamedTuple):
    """tensors: by name. values: everything else, which JSON can hold, including ``"step"``."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_state(folder: Path, state: RunState, *, keep: int) -> None:
    """Write a checkpoint into ``folder``, then delete all but the ``keep`` latest.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full. Earlier checkpoints stay intact.
    """
    name = _name(state.values["step"])
    new = unfinished(folder / name)
    try:
        _remove_abandoned_steps(folder)
        new.mkdir(parents=True)
        save_file({key: tensor.contiguous() for key, tensor in state.tensors.items()}, new / TENSORS)
        _write_values(new, state.values, _sha256(new / TENSORS))
        for path in (new / TENSORS, new):
            sync(path)
        os.replace(new, folder / name)
        sync(folder)
        for old in saved_steps(folder)[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise _not_written(folder, name, error) from None


def update_values(folder: Path, values: Mapping[str, Any]) -> None:
    """Replace the values in the checkpoint of step ``values["step"]``, and leave its tensors as they are.

    Raises:
        CheckpointError: they cannot be written. The checkpoint stays as it was.
    """
    name = _name(values["step"])
    try:
        tensors = read_json(folder / name / STATE, error=CheckpointError)["tensors_sha256"]
        _write_values(folder / name, values, tensors)
        sync(folder / name)
    except OSError as error:
        raise _not_written(folder, name, error) from None


def _not_written(folder: Path, name: str, error: Exception) -> CheckpointError:
    last = saved_steps(folder)
    intact = f"; the last good checkpoint, {last[-1]}, is intact" if last else ""
    return CheckpointError(
        f"the checkpoint {name} cannot be written into {folder}: {in_one_line(error)}{intact}. "
        "Free disk space or fix the cause, then continue with --resume"
    )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write_values(folder: Path, values: Mapping[str, Any], tensors_sha256: str) -> None:
    state = {"values": values, "values_sha256": _values_sha256(values), "tensors_sha256": tensors_sha256}
    replace_text(folder / STATE, json.dumps(state, indent=1) + "\n")


def _values_sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def saved_steps(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, from the first to the last."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_state(folder: Path) -> RunState | None:
    """The last checkpoint in ``folder``; None if there is none.

    Raises:
        CheckpointError: it is corrupt. The message names it and says what to do.
    """
    saved = saved_steps(folder)
    if not saved:
        return None
    last = saved[-1]
    remedy = f"; delete it to continue from the one before it, {saved[-2].name}" if len(saved) > 1 else ""
    try:
        state = read_json(last / STATE, error=CheckpointError)
        data = (last / TENSORS).read_bytes()
        missing = [key for key in ("values", "values_sha256", "tensors_sha256") if key not in state]
        if missing:
            raise CheckpointError(f"{STATE} lacks {missing[0]}; perhaps another version of longformer wrote it")
        values = state["values"]
        if _values_sha256(values) != state["values_sha256"]:
            raise CheckpointError(f"{STATE} has changed since it was written: its hash differs")
        if hashlib.sha256(data).hexdigest() != state["tensors_sha256"]:
            raise CheckpointError(f"{TENSORS} has changed since it was written: its hash differs")
        if _name(values["step"]) != last.name:
            raise CheckpointError(f"it holds step {values['step']}")
        return RunState(load(data), values)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error) if isinstance(error, CheckpointError) else in_one_line(error)
        raise CheckpointError(f"the checkpoint {last} is corrupt ({reason}){remedy}") from None


def rng_tensors(states: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The random states of all processes, each under its own name. :func:`rng_of` gets them back."""
    return {f"rng/{rank}/{kind}": tensor for rank, kinds in enumerate(states) for kind, tensor in kinds.items()}


def rng_of(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The random states of process ``rank``."""
    start = f"rng/{rank}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def remove_abandoned(folder: Path, names: Sequence[str]) -> None:
    """Remove unfinished checkpoints and unfinished files called ``names``, which killed processes left in ``folder``.

    Raises:
        OSError: one of them cannot be removed.
    """
    if not folder.is_dir():
        return
    for path in abandoned(folder, names):
        path.unlink(missing_ok=True)
    steps = folder / CHECKPOINTS
    _remove_abandoned_steps(steps)
    for path in [path for step in saved_steps(steps) for path in abandoned(step, [STATE])]:
        path.unlink(missing_ok=True)


def _remove_abandoned_steps(folder: Path) -> None:
    names = {path.name[1:].partition(".")[0] for path in folder.glob(".step-*")}
    for path in abandoned(folder, sorted(names)):
        shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all, and wait until it is on the disk. Raises OSError if that fails."""

    def write(new: Path) -> None:
        new.write_text(text, encoding="utf-8")
        sync(new)

    replace_file(path, write)
