"""Files of weights: find them, and read them by memory map without ever letting a pickle run code."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longformer.errors import CheckpointError, listed
from longformer.files import read_json
from longformer.hub import PathOrName, find_files, has_file

log = logging.getLogger(__name__)

SAFETENSORS = "model.safetensors"
WEIGHTS = (  # in order of preference
    SAFETENSORS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
WRAPPERS = ("state_dict", "model_state_dict", "model")  # entries of a training checkpoint that hold the weights
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, of a module around the model, of torch.compile
FOREIGN_WEIGHTS = {
    "tf_model.h5": ("TensorFlow", "from_tf"),
    "flax_model.msgpack": ("Flax", "from_flax"),
}


def find_weights(name_or_path: PathOrName, **where: Any) -> list[Path]:
    """Paths of a checkpoint's weights: one file, or every shard. Safetensors are preferred.

    Args:
        name_or_path: a folder, or a name on the hub.
        where: ``revision``, ``local_files_only``, ``cache_dir`` and ``token``, as for ``hub.find_files``.

    Raises:
        CheckpointError: no weights, weights for TensorFlow or Flax alone, or a missing shard.
    """
    found = find_files(name_or_path, WEIGHTS, first=True, **where)
    if not found:
        raise CheckpointError(_no_weights(name_or_path, where))
    (name, path), *_ = found.items()
    if not name.endswith(".index.json"):
        return [path]
    shards = _shards(path)
    parts = find_files(name_or_path, shards, **where)
    absent = [shard for shard in shards if shard not in parts]
    if absent:
        raise CheckpointError(f"{name_or_path} lacks {listed(absent)}, which its {name} lists; fetch it again in full")
    return [parts[shard] for shard in shards]


def _no_weights(name_or_path: PathOrName, where: dict[str, Any]) -> str:
    for name, (framework, switch) in FOREIGN_WEIGHTS.items():
        if has_file(name_or_path, name, **where):
            return (
                f"{name_or_path} has weights for {framework} alone ({name}); transformers 4 writes them anew with "
                f"`LongformerModel.from_pretrained({str(name_or_path)!r}, {switch}=True).save_pretrained(folder)`"
            )
    return f"{name_or_path} has no weights: looked for {', '.join(WEIGHTS)}"


def _shards(index: Path) -> list[str]:
    """The file names that a sharded checkpoint's index lists, in order."""
    places = read_json(index, error=CheckpointError).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(
            f"{index} is no index of weights: its weight_map must give each weight the name of a file"
        )
    shards = sorted(set(places.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{index} must list files of its own folder in weight_map, not {listed(outside)}")
    return shards


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Every tensor in ``files``, by its name there, writable, never written back. Safetensors are memory-mapped.

    What wrapped the model that was saved is taken off: a prefix that all names share, such as ``module.``, and in a
    ``.bin`` the entry that holds the weights, such as ``state_dict``. The log says so.

    A ``.bin`` is read into memory. torch maps it without a check of its records, and the file may be written anew, by
    ``torch.save`` for one, under the weights that are mapped from it.

    Raises:
        CheckpointError: a file that is cut short, corrupt, no weights at all, or a pickle that asks to run code.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        read = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        twice = sorted(tensors.keys() & read.keys())
        if twice:
            raise CheckpointError(f"{path} holds {listed(twice)} a second time; another shard has it too")
        tensors.update(read)
    return without_prefix(tensors, ", ".join(map(str, files)))


def unwrapped(state_dict: Mapping[str, Any], source: object) -> dict[str, Tensor]:
    """A user's state dict without what wraps it, as :func:`read_tensors` has it. ``source``: what errors call it.

    Raises:
        CheckpointError: it is no mapping of names to tensors.
    """
    inner = _inner(state_dict, source)
    if not isinstance(inner, Mapping) or not all(isinstance(value, Tensor) for value in inner.values()):
        raise CheckpointError(f"{source} is no state dict: it must map names to tensors")
    return without_prefix({str(name): value for name, value in inner.items()}, source)


def _inner(read: Any, source: object) -> Any:
    """What a training checkpoint holds as the model's weights; anything else as it is."""
    inner = next((key for key in WRAPPERS if isinstance(read, Mapping) and isinstance(read.get(key), Mapping)), None)
    if inner is None:
        return read
    log.warning("%s: the weights are what it holds as %s; the rest is not read", source, inner)
    return read[inner]


def without_prefix(tensors: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """The same tensors without the prefixes that all their names share. ``source`` is what the log calls them."""
    taken = ""
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        taken += prefix
    if taken:
        log.warning("%s: every name begins with %s, which is left out", source, taken)
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(_unreadable(path, str(error))) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with a strange pickle is told below
            read = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted is None:  # PyTorch's own message recommends reading it unsafely
            raise CheckpointError(_unreadable(path, "not a state dict as torch.save writes it")) from None
        raise CheckpointError(
            f"{path} was not read: its pickle asks for {wanted[1]}, which could run code and which no weights need; "
            "ask those who published it for a safetensors file, and do not load this one"
        ) from None
    read = _inner(read, path)
    if not isinstance(read, dict) or not all(isinstance(value, Tensor) for value in read.values()):
        raise CheckpointError(f"{path} holds no plain state dict, names to tensors")
    strange = [str(name) for name, value in read.items() if not _is_plain(value)]
    if strange:
        raise CheckpointError(
            f"{path} holds {listed(strange)} without plain numbers (meta, sparse, quantised, or a subclass of tensor); "
            "save the model's ordinary state dict"
        )
    return {str(name): tensor.detach() for name, tensor in read.items()}


def _is_plain(value: Tensor) -> bool:
    ordinary = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
    return ordinary and not value.is_meta and not value.is_quantized


def _unreadable(path: Path, why: str) -> str:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
    return f"{path} ({path.stat().st_size:,} bytes) is cut short, corrupt, or no weights: {why}; fetch it again"


def unaliased(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of them the same memory as another: training one must not change a second one."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return result
