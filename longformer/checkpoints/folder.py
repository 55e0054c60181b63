"""A checkpoint's folder: its config and its weights, found, checked and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from longformer.checkpoints.names import TIED, todays_name
from longformer.checkpoints.tokenizer_files import TOKENIZER_FILES
from longformer.checkpoints.weights import SAFETENSORS, unaliased
from longformer.claims import remove_if_empty
from longformer.errors import CheckpointError, ConfigError, in_one_line, listed
from longformer.files import check_path, read_json, replace_file
from longformer.hub import CONFIG, PathOrName, cached_files


def files_of(name_or_path: PathOrName) -> list[Path]:
    """The files that are read of a checkpoint: those of its folder or, for a name, of the hub's cache; or a file."""
    text = str(name_or_path)
    folder = Path(os.path.expanduser(text))
    if "\0" in text:
        return []
    if not os.path.isdir(folder):
        return [folder] if os.path.isfile(folder) else cached_files(text)
    weights = [
        path for end in ("*.safetensors", "*.bin", "*.index.json", "*.onnx*") for path in sorted(folder.glob(end))
    ]
    return [folder / name for name in (CONFIG, *TOKENIZER_FILES) if os.path.isfile(folder / name)] + weights


def files_to_write(folder: str | Path) -> list[Path]:
    """The files that a checkpoint with its tokenizer is written into."""
    return [Path(folder) / name for name in (CONFIG, SAFETENSORS, *TOKENIZER_FILES)]


def architectures_of(config_file: Path) -> list[str]:
    """The classes that a ``config.json`` says the checkpoint is for. Nothing where it does not say so."""
    named = read_json(config_file, error=ConfigError).get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise CheckpointError, naming them, where tensors differ from ``shapes`` or are not floating point."""
    wrong = [
        f"{name} is {list(tensor.shape)}, not {list(shapes[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError(f"weights do not fit the config: {listed(wrong, separator='; ')}{_shape_remedy(wrong)}")
    kinds = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if kinds:
        raise CheckpointError(f"weights must be floating point, but there are {listed(kinds)}")


def _shape_remedy(wrong: list[str]) -> str:
    if any(todays_name(line).startswith("longformer.") for line in wrong):
        return ""
    return " (the checkpoint's head has another shape: new_head=True or ignore_mismatched_sizes=True draws a new one)"


def dtype_name(tensors: Iterable[Tensor]) -> str:
    """The dtype of the first tensor as ``config.json`` names it: ``"float32"``."""
    return str(next(iter(tensors)).dtype).removeprefix("torch.")


def write_checkpoint(
    folder: str | Path, tensors: Mapping[str, Tensor], write_config: Callable[[Path], None]
) -> list[str]:
    """Write ``model.safetensors`` whole or not at all, then ``config.json`` by ``write_config(path)``.

    Returns:
        Names that were left out, since they are second names of weights that are written.

    Raises:
        CheckpointError: ``folder`` is empty or a file, or cannot be written.
    """
    check_path(folder, error=CheckpointError)
    if not os.fspath(folder):
        raise CheckpointError("folder is ''; give a folder to save into, '.' for the one where you are")
    folder = Path(folder)
    left_out = [
        copy
        for copy, original in TIED.items()
        if copy in tensors and original in tensors and torch.equal(tensors[copy], tensors[original])
    ]
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items() if name not in left_out}
    on_cpu = {name: tensor.contiguous() for name, tensor in unaliased(kept).items()}
    there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / SAFETENSORS, lambda path: save_file(on_cpu, path, metadata={"format": "pt"}))
        write_config(folder / CONFIG)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    except (OSError, SafetensorError) as error:
        if not there:
            remove_if_empty(folder)
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file; a checkpoint is saved into a folder") from None
        raise CheckpointError(f"cannot write a checkpoint into {folder}: {in_one_line(error)}") from None
    return left_out
