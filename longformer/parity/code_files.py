"""Models and inputs that functions in files make, ``A.py:make_model``, and inputs in other files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from longformer.errors import DataError, explaining, unknown_name
from longformer.files import read_json
from longformer.parity.any_model import Call
from longformer.parity.runs import DTYPES

CODE = ".py:"  # in what names a function in a file


def is_code(name: str) -> bool:
    """Whether ``name`` is a function in a file, ``A.py:make_model``."""
    return CODE in name


def load(name: str) -> Any:
    """What ``A.py:function`` returns.

    Raises:
        DataError: no such file or function, or it fails.
    """
    place, _, function = name.partition(CODE)
    return _call_function(f"{place}.py", function, name)


def load_model(name: str) -> nn.Module:
    """The model of ``A.py:make_model``, or ``A.py:make_model:bfloat16`` for one converted to that precision.

    Raises:
        DataError: no such file or function, it fails, or returns something else.
    """
    place, _, rest = name.partition(CODE)
    function, _, dtype = rest.partition(":")
    if dtype and dtype not in DTYPES:
        raise DataError(unknown_name(dtype, DTYPES, "precision"))
    model = _call_function(f"{place}.py", function, name)
    if not isinstance(model, nn.Module):
        raise DataError(f"{name} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model.to(getattr(torch, dtype)) if dtype else model


def _call_function(path: str, function: str, name: str) -> Any:
    module = _module(path)
    made = getattr(module, function, None)
    if not callable(made):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DataError(unknown_name(function, known, f"function in {path}"))
    with explaining(DataError, f"{name} failed"):
        return made()


def _module(path: str) -> ModuleType:
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {path}")
    name = f"longformer_parity_{abs(hash(file.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, and pickle, look for it
    with _on_path(str(file.resolve().parent)), explaining(DataError, f"{path} cannot be run"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def read_call(path: str) -> Call:
    """What a model is called with.

    Args:
        path: a ``.json`` object of arguments by name, or list of them, lists of numbers as tensors; a ``.safetensors``
            file of tensors by name, ``argument0`` and so on for those without one; or ``A.py:make_input``, which
            returns a tensor, a tuple of arguments, or a dict of them.

    Raises:
        DataError: it is none of these, or cannot be read.
    """
    if is_code(path):
        place, _, function = path.partition(CODE)
        given = _call_function(f"{place}.py", function, path)
    elif path.endswith(".json"):
        given = read_json(path, object)
        given = {k: _tensor(path, k, v) for k, v in given.items()} if isinstance(given, dict) else given
        given = tuple(_tensor(path, str(i), v) for i, v in enumerate(given)) if isinstance(given, list) else given
    elif path.endswith(".safetensors"):
        with explaining(DataError, f"{path} cannot be read as safetensors"):
            given = {name.removeprefix("input."): tensor for name, tensor in load_file(path).items()}
    else:
        raise DataError(f"{path} is no input of a model; give a .json or .safetensors file, or FILE.py:make_input")
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given)
    if isinstance(given, Mapping):
        positional = [name for name in given if name.startswith("argument") and name[8:].isdigit()]
        positional.sort(key=lambda name: int(name[8:]))
        return Call(tuple(given[name] for name in positional), {k: v for k, v in given.items() if k not in positional})
    if isinstance(given, (Tensor, tuple)):
        return Call(given if isinstance(given, tuple) else (given,), {})
    raise DataError(f"{path} is a {type(given).__name__}; it must be a tensor, a tuple, or arguments by name")


def _tensor(path: str, name: str, value: Any) -> Any:
    if not isinstance(value, list):
        return value
    with explaining(DataError, f"{path}: {name} is no array of numbers"):
        return torch.tensor(value)
