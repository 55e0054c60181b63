"""What the command gives a model: a text, a file of token ids, or the inputs of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, DataError, unknown_name
from longformer.files import read_json, read_text
from longformer.parity.format import read_trace
from longformer.parity.layout import Longformer
from longformer.parity.targets import check_targets, cut, default_targets, read_targets, targets_of
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
    partial: bool = False  # whether a value of a comparison may be missing that looks misspelt


class Sample(NamedTuple):
    """inputs, (B, S) each, and answers, by the names of a model's arguments; and the tokens' texts, where a tokenizer
    is known. For multiple choice B is all texts, those of one question after those of another.
    """

    inputs: dict[str, Tensor]
    tokens: list[list[str]] | None


def read_sample(path: str, model: str, kind: type[Longformer], settings: Settings) -> Sample:
    """What a file gives a model.

    A trace file: its inputs. A ``.json`` file: an object of ``input_ids`` and, if wanted, ``attention_mask``,
    ``global_attention_mask``, ``token_type_ids``, ``position_ids``, each a list of rows; shorter rows are padded. Any
    other file: a text, which the model's tokenizer reads, with the question before it for question answering.

    For gradients the right answers are among the inputs, by which a head has a loss: those of the file (``labels``, or
    ``start_positions`` and ``end_positions``) or, where it has none, those of :func:`default_targets`.

    Args:
        path: the file.
        model: a folder or a name on the hub.
        kind: the class that serves it.
        settings: what of it is wanted.

    Raises:
        DataError: no such file, not what its name says, or nothing that the model can take; or a question beside token
            ids.
    """
    if settings.question is not None and path.endswith((SUFFIX, ".json")):
        raise DataError(f"{path} has token ids, and a question cannot be put before them; leave --question out")
    config = LongformerConfig.from_pretrained(model)
    if path.endswith(SUFFIX):
        inputs = _inputs_of_trace(path, kind)
    elif path.endswith(".json"):
        inputs = _inputs_of_json(path, kind, config)
    else:
        inputs = _inputs_of_text(path, load_tokenizer(settings.tokenizer, model), settings.question)
    targets = {name: inputs.pop(name) for name in targets_of(kind) if name in inputs}
    if settings.max_tokens is not None:
        inputs = cut_inputs(inputs, config.sep_token_id, settings.max_tokens)
        targets = cut(targets, kind, settings.max_tokens)
    if "global_attention_mask" not in inputs:
        inputs["global_attention_mask"] = _global_mask(inputs["input_ids"], config)
    if settings.gradients:
        targets = targets or default_targets(kind, config, inputs)
        check_targets(path, kind, config, targets, inputs)
        inputs |= targets
    return Sample(inputs, token_texts(inputs["input_ids"], model, settings.tokenizer))


def cut_inputs(inputs: dict[str, Tensor], separator: int | None, length: int) -> dict[str, Tensor]:
    """(B, S) each, cut to ``length`` tokens. A row that ends in a separator does so still: what is cut is before it.

    Args:
        separator: its token id; None if there is none.

    Raises:
        DataError: nothing would be left of the context behind a question.
    """
    ids = inputs["input_ids"]
    if separator is None or ids.shape[1] <= length:
        return {name: tensor[:, :length] for name, tensor in inputs.items()}
    real = inputs.get("attention_mask", torch.ones_like(ids)) != 0
    last = (real * torch.arange(ids.shape[1])).amax(dim=1)
    ends = (last >= length) & (ids.gather(1, last[:, None])[:, 0] == separator)
    marks = ids == separator
    front = (marks.cumsum(1) < 2).sum(1) + 1  # up to the second separator, behind which the context begins
    for row in (ends & (marks.sum(1) == 3)).nonzero().flatten().tolist():
        if int(front[row]) + 2 > length:
            raise DataError(
                f"max_tokens is {length}, which leaves nothing of the context: the question and its separators take "
                f"{int(front[row])}; give at least {int(front[row]) + 2}"
            )
    short = {name: tensor[:, :length].clone() for name, tensor in inputs.items()}
    short["input_ids"][ends, length - 1] = separator
    return short


def _inputs_of_trace(path: str, kind: type[Longformer]) -> dict[str, Tensor]:
    inputs = read_trace(path).inputs
    known = (*ARGUMENTS, *targets_of(kind))
    unknown = sorted(inputs.keys() - set(known))
    if unknown or "input_ids" not in inputs:
        what = f"has input.{unknown[0]}" if unknown else "lacks input.input_ids"
        raise DataError(f"{path} {what}; the inputs of {kind.__name__} are {', '.join(known)}")
    shape = inputs["input_ids"].shape
    for name in inputs.keys() & set(ARGUMENTS):
        tensor = inputs[name]
        if tensor.is_floating_point() or tensor.shape != shape or tensor.dim() != 2:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise DataError(f"{path}: input.{name} is {dtype} of shape {tuple(tensor.shape)}; it must be int64, (B, S)")
    return {name: tensor.float() if tensor.is_floating_point() else tensor.long() for name, tensor in inputs.items()}


def _global_mask(ids: Tensor, config: LongformerConfig) -> Tensor:
    """(B, S): the question where a row has three separators, else the first token alone."""
    separator = ids == config.sep_token_id
    question = separator.cumsum(dim=1) == 0
    first = torch.zeros_like(question)
    first[:, 0] = True
    return torch.where(separator.sum(dim=1, keepdim=True) == 3, question, first).long()


def _inputs_of_json(path: str, kind: type[Longformer], config: LongformerConfig) -> dict[str, Tensor]:
    values = read_json(path, object)
    known = (*ARGUMENTS, *targets_of(kind))
    unknown = sorted(values.keys() - set(known)) if isinstance(values, dict) else []
    if unknown:
        raise DataError(f"{path}: {unknown_name(unknown[0], known, 'input of the model')}")
    if not isinstance(values, dict) or "input_ids" not in values:
        raise DataError(f'{path} must hold an object like {{"input_ids": [[0, 20920, 232, 2]]}}')
    lengths = [len(row) for row in _rows(path, "input_ids", values["input_ids"])]
    if not lengths or min(lengths) == 0:
        raise DataError(f"{path}: input_ids has an empty row, or none")
    values.setdefault("attention_mask", [[1] * length for length in lengths])
    fill = {"input_ids": config.pad_token_id, "position_ids": config.pad_token_id}
    inputs = read_targets(path, kind, values, lengths)
    for name in ARGUMENTS:
        if name in values:
            rows = _rows(path, name, values[name])
            if [len(row) for row in rows] != lengths:
                raise DataError(f"{path}: {name} has rows of {[len(row) for row in rows]}, input_ids of {lengths}")
            inputs[name] = torch.tensor([row + [fill.get(name, 0)] * (max(lengths) - len(row)) for row in rows])
    return inputs


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
