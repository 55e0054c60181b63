"""The packages of the extra ``onnx``, loaded when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from longformer.errors import LongformerError


def load(name: str) -> Any:
    """A module of onnx, onnxscript or onnxruntime. Raises LongformerError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise LongformerError(
            f"{name.partition('.')[0]} cannot be loaded ({error}); pip install onnx onnxruntime onnxscript, which are "
            "the extra onnx"
        ) from None
