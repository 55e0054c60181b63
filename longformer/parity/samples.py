"""What the command gives a model: a text, a file of token ids, or the inputs of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.checkpoints.folder import read_config
from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, DataError
from longformer.files import read_json, read_text
from longformer.parity.format import read_trace
from longformer.parity.layout import TARGETS, effective_inputs
from longformer.tokenizer import LongformerTokenizer, load_tokenizer

SUFFIX = ".safetensors"
ARGUMENTS = ("input_ids", "attention_mask", "global_attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class Settings:
    """What is given and what is recorded. See the options of ``longformer parity``."""

    seed: int | None = None  # of weights drawn for a config.json; None is the trace's that names it, or else 0
    question: str | None = None
    tokenizer: str | None = None  # its folder or name on the hub; None is the model's own
    max_tokens: int | None = None
    probabilities: bool = False
    gradients: bool = False


class Sample(NamedTuple):
    """arguments of a model's forward, and the tokens' texts, (B, S), where a tokenizer is known."""

    inputs: dict[str, Tensor]
    tokens: list[list[str]] | None


def read_sample(path: str, model: str, settings: Settings) -> Sample:
    """What a file gives a model.

    A trace file: its inputs. A ``.json`` file: an object of ``input_ids`` and, if wanted, ``attention_mask``,
    ``global_attention_mask``, ``token_type_ids``, ``position_ids``, each a list of rows; shorter rows are padded. Any
    other file: a text, which the model's tokenizer reads, with the question before it for question answering.

    For gradients the answers' positions are among the inputs, by which question answering has a loss: those of the
    file or, where it has none, each row's first token that is not global and its last one, padding left out.

    Raises:
        DataError: no such file, not what its name says, or nothing that the model can take.
    """
    config = read_config(model)
    if path.endswith(SUFFIX):
        inputs = _inputs_of_trace(path)
    elif path.endswith(".json"):
        inputs = _inputs_of_json(path, config)
    else:
        inputs = _inputs_of_text(path, load_tokenizer(settings.tokenizer, model), settings.question)
    targets = {name: inputs.pop(name) for name in TARGETS if name in inputs}
    if settings.max_tokens is not None:
        inputs = {name: tensor[:, : settings.max_tokens] for name, tensor in inputs.items()}
    if "global_attention_mask" not in inputs:
        inputs["global_attention_mask"] = _global_mask(inputs["input_ids"], config)
    if settings.gradients:
        inputs |= _checked_targets(path, targets or _default_targets(inputs), inputs)
    return Sample(inputs, token_texts(inputs["input_ids"], model, settings.tokenizer))


def _default_targets(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    effective = effective_inputs(inputs)
    real, is_global = effective["attention_mask"] != 0, effective["global_attention_mask"] != 0
    local = real & ~is_global
    answer = torch.where(local.any(dim=1, keepdim=True), local, real).int()
    length = answer.shape[1]
    return {"start_positions": answer.argmax(dim=1), "end_positions": length - 1 - answer.flip(1).argmax(dim=1)}


def _checked_targets(path: str, targets: dict[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    real = effective_inputs(inputs)["attention_mask"] != 0
    for name in TARGETS:
        if name not in targets:
            raise DataError(f"{path} lacks {name}; give both {' and '.join(TARGETS)}, or neither to have them chosen")
        positions = targets[name]
        if positions.shape != real.shape[:1]:
            raise DataError(f"{path}: {name} has shape {tuple(positions.shape)}; it is one position a row, {len(real)}")
        for row, position in enumerate(positions.tolist()):
            if not (0 <= position < real.shape[1] and real[row, position]):
                raise DataError(f"{path}: {name} has {position} for row {row}, where the input has no token")
    return targets


def _inputs_of_trace(path: str) -> dict[str, Tensor]:
    inputs = read_trace(path).inputs
    unknown = sorted(inputs.keys() - {*ARGUMENTS, *TARGETS})
    if unknown or "input_ids" not in inputs:
        what = f"has input.{unknown[0]}" if unknown else "lacks input.input_ids"
        raise DataError(f"{path} {what}; the inputs of a Longformer are {', '.join(ARGUMENTS)}")
    shape = inputs["input_ids"].shape
    for name, tensor in inputs.items():
        if tensor.is_floating_point() or (name in ARGUMENTS and (tensor.shape != shape or tensor.dim() != 2)):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise DataError(f"{path}: input.{name} is {kind} of shape {tuple(tensor.shape)}; it must be int64, (B, S)")
    return {name: tensor.long() for name, tensor in inputs.items()}


def _global_mask(ids: Tensor, config: LongformerConfig) -> Tensor:
    """(B, S): the question where a row has three separators, else the first token alone."""
    separator = ids == config.sep_token_id
    question = separator.cumsum(dim=1) == 0
    first = torch.zeros_like(question)
    first[:, 0] = True
    return torch.where(separator.sum(dim=1, keepdim=True) == 3, question, first).long()


def _inputs_of_json(path: str, config: LongformerConfig) -> dict[str, Tensor]:
    values = read_json(path, object)
    if not isinstance(values, dict) or "input_ids" not in values:
        raise DataError(f'{path} must hold an object like {{"input_ids": [[0, 20920, 232, 2]]}}')
    known = (*ARGUMENTS, *TARGETS)
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise DataError(f"{path} has {', '.join(unknown)}; a model takes {', '.join(known)}")
    lengths = [len(row) for row in _rows(path, "input_ids", values["input_ids"])]
    if not lengths or min(lengths) == 0:
        raise DataError(f"{path}: input_ids has an empty row, or none")
    values.setdefault("attention_mask", [[1] * length for length in lengths])
    fill = {"input_ids": config.pad_token_id, "position_ids": config.pad_token_id}
    inputs = {name: torch.tensor(_positions(path, name, values[name])) for name in TARGETS if name in values}
    for name in ARGUMENTS:
        if name in values:
            rows = _rows(path, name, values[name])
            if [len(row) for row in rows] != lengths:
                raise DataError(f"{path}: {name} has rows of {[len(row) for row in rows]}, input_ids of {lengths}")
            inputs[name] = torch.tensor([row + [fill.get(name, 0)] * (max(lengths) - len(row)) for row in rows])
    return inputs


def _positions(path: str, name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(_is_number(entry) for entry in value):
        raise DataError(f"{path}: {name} must be a list of whole numbers, one a row")
    return value


def _is_number(entry: object) -> bool:
    return type(entry) is int and -(2**63) <= entry < 2**63


def _rows(path: str, name: str, value: Any) -> list[list[int]]:
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if not all(isinstance(row, list) and all(_is_number(entry) for entry in row) for row in rows):
        raise DataError(f"{path}: {name} must be a list of lists of whole numbers, one a row")
    return rows


def _inputs_of_text(path: str, tokenizer: LongformerTokenizer, question: str | None) -> dict[str, Tensor]:
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty; give a text, or another file")
    pair = (text,) if question is None else (question, text)
    encoding = tokenizer(*pair, return_tensors="pt")
    return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"]}


def token_texts(ids: Tensor, model: str, named: str | None = None) -> list[list[str]] | None:
    """(B, S) texts of tokens by the tokenizer ``named`` or the model's own, None for a model without one."""
    try:
        tokenizer = load_tokenizer(named, model)
        return [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
    except (CheckpointError, DataError):
        return None
