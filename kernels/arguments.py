"""The checks of the public operators' arguments. Each message names the argument, its value and what it must be."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from .pattern import shown

LARGEST = sys.float_info.max
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, not a tensor")
    check_plain(name, tensor)
    if tensor.dim() != 4 or 0 in tensor.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (B, H, S, D), each at least 1")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {tensor.dtype}; it must be one of {', '.join(map(str, DTYPES))}")


def check_plain(name: str, tensor: Tensor) -> None:
    """Raise TypeError for a tensor whose numbers do not stand in memory in rows: sparse, nested or quantised."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        kind = "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else f"of layout {tensor.layout}"
        raise TypeError(f"{name} is {kind}; it must be an ordinary tensor (for a sparse one: {name}.to_dense())")


def check_has_numbers(name: str, tensor: Tensor) -> None:
    """Raise TypeError on the meta device, where tensors have shapes but no numbers."""
    if tensor.is_meta:
        raise TypeError(f"{name} is on the meta device, where tensors have shapes but no numbers; give it numbers")


def check_qkv(query: Tensor, key: Tensor, value: Tensor, *, same_length: bool) -> None:
    """``same_length``: whether query has as many rows as key, as a sliding window needs."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        check_has_numbers(name, tensor)
        if tensor.dtype != query.dtype or tensor.device != query.device:
            raise TypeError(
                f"{name} is {tensor.dtype} on {tensor.device} and query {query.dtype} on {query.device}; "
                "they must be alike"
            )
    if key.shape != value.shape:
        raise ValueError(f"key has shape {tuple(key.shape)} and value {tuple(value.shape)}; they must be equal")
    shapes = f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}"
    if same_length and key.shape != query.shape:
        raise ValueError(f"{shapes}; a sliding window needs them equal")
    if key.shape[:2] != query.shape[:2] or key.shape[3] != query.shape[3]:
        raise ValueError(f"{shapes}; they must agree in B, H and D")


def check_mask(name: str, mask: Tensor | None, key: Tensor) -> None:
    if mask is None:
        return
    batch, _, seq_len, _ = key.shape
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} is {what}; it must be a bool tensor (for a 0/1 mask: mask == 1)")
    check_plain(name, mask)
    check_has_numbers(name, mask)
    if mask.shape != (batch, seq_len):
        raise ValueError(f"{name} has shape {tuple(mask.shape)}; it must be (B, S) = ({batch}, {seq_len})")
    if mask.device != key.device:
        raise ValueError(f"{name} is on {mask.device} and key on {key.device}; they must be on one device")


def check_scale(scale: float | None) -> None:
    if scale is None:
        return
    if not _is_number(scale) or abs(scale) >= 2**63:
        raise ValueError(f"scale is {shown(scale)}; it must be a finite number below 2**63, or None for 1/sqrt(D)")


def check_dropout(dropout_p: float) -> None:
    if not _is_number(dropout_p) or not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p is {shown(dropout_p)}; it must be a number in [0, 1)")


def _is_number(value: object) -> bool:
    """Whether a value is a finite number that fits a float. In a graph too, where math's functions cannot stand."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
