"""Convert checkpoints: any Longformer to safetensors, or a short encoder (BERT, RoBERTa) to a Longformer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer.checkpoints.folder import (
    architectures_of,
    check_tensors,
    dtype_name,
    files_of,
    files_to_write,
    write_checkpoint,
)
from longformer.checkpoints.names import (
    BERT_LM_HEAD,
    PARTS,
    POSITION_IDS,
    by_todays_name,
    check_tied,
    fit_names,
    renamed,
    todays_name,
)
from longformer.checkpoints.tokenizer_files import TOKENIZER_FILES
from longformer.checkpoints.weights import find_weights, read_tensors
from longformer.claims import claimed
from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError, DataError, listed
from longformer.files import check_overwrites, check_path, read_json, write_file
from longformer.hub import PathOrName, find_config, find_files
from longformer.models.encoder import LongformerModel
from longformer.models.heads import head_of
from longformer.tokenizer import LongformerTokenizer

POSITIONS = "longformer.embeddings.position_embeddings.weight"


class Converted(NamedTuple):
    """The result of a conversion: the folder that it wrote, and the names of the source's weights that it left out."""

    folder: Path
    dropped: list[str]


def convert(
    source: PathOrName,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Converted:
    """Write any Longformer checkpoint as ``model.safetensors`` with today's names, its config, and its tokenizer files.

    Heads and pooler are kept.

    Args:
        source: a folder, or a name on the hub.
        folder: where to write, not the source itself; it is created if it does not exist.
        dtype: floating-point type of the stored weights; None keeps the source's.
        revision, local_files_only: as for ``from_pretrained``.

    Raises:
        CheckpointError: the source cannot be found or read, its weights do not fit its config, or ``folder`` cannot be
            written: it is the source, a file of the source would be overwritten, or another process writes into it.
        ConfigError: the source's config is not that of a Longformer.
    """
    lookup: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    folder, config_file = _named(folder), find_config(source, **lookup)
    config = LongformerConfig.from_file(config_file)
    tokenizer_files = find_files(source, TOKENIZER_FILES, **lookup)
    with _writing_into(folder, source):
        source_tensors = read_tensors(find_weights(source, **lookup))
        dropped = _drop(source_tensors, [POSITION_IDS])
        tensors = _rename(source, source_tensors)
        _check_base(source, tensors, config)
        if dtype is not None:
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        # Other entries, such as those about heads, are kept. torch_dtype is the old name of dtype.
        extra = {key: value for key, value in read_json(config_file, error=ConfigError).items() if key != "torch_dtype"}
        extra["dtype"] = dtype_name(tensors.values())
        dropped += write_checkpoint(folder, tensors, lambda path: config.save(path, **extra))
        for name, path in tokenizer_files.items():
            write_file(folder / name, partial(shutil.copyfile, path), error=CheckpointError)
    return Converted(folder, dropped)


def to_long(
    source: PathOrName,
    folder: str | Path,
    *,
    max_tokens: int = 4096,
    attention_window: int | Sequence[int] = 512,
    keep: Sequence[str] = (),
    positions: str = "copied",
    revision: str | None = None,
    local_files_only: bool = False,
) -> Converted:
    """Make a Longformer from a short encoder, by the paper's recipe (arXiv 2004.05150, §5). Then train it further.

    Position embeddings are repeated until there are enough for ``max_tokens`` tokens. The projections for global
    attention start as copies of the local ones. A Longformer can be made longer, or get other windows, in the same way;
    it keeps its projections for global attention. The tokenizer is written too, without the short encoder's limit on
    length, and in Longformer's layout: for BERT's tokens, ``[CLS] question [SEP][SEP] context [SEP]``.

    Args:
        source: a BERT, RoBERTa or Longformer checkpoint: a folder, or a name on the hub.
        folder: where to write; not the source itself.
        max_tokens: length of the longest sequence that the new model reads.
        attention_window: two-sided window, one number for all layers or one for each layer.
        keep: parts besides the encoder to keep, such as ``"pooler"``, ``"qa_outputs"`` or ``"lm_head"``. The last is
            the head for masked language modelling, which BERT has under other names. All other parts are dropped.
        positions: "copied", or "random" to draw all of them with torch's generator. The paper compares the two.
        revision, local_files_only: as for ``from_pretrained``.

    Raises:
        CheckpointError: the source cannot be found or read, has no tokenizer, or lacks a part that is to be kept; or
            ``folder`` cannot be written, as for :func:`convert`.
        ConfigError: the source is no BERT, RoBERTa or Longformer; or its architecture, ``max_tokens`` or
            ``attention_window`` are impossible for a Longformer.
    """
    lookup: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    folder, config_file = _named(folder), find_config(source, **lookup)
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; it must be at least 1")
    raw = read_json(config_file, error=ConfigError)
    model_type = raw.get("model_type")
    if model_type not in ("bert", "roberta", "longformer"):
        raise ConfigError(f"{source} has model_type {model_type!r}; only bert, roberta and longformer can be made long")
    if positions not in ("copied", "random"):
        raise ConfigError(f"positions is {positions!r}; it must be 'copied' or 'random'")
    tokenizer = LongformerTokenizer.from_pretrained(source, **lookup)
    config = _long_config(source, raw, tokenizer, max_tokens, attention_window)

    with _writing_into(folder, source):
        source_tensors = read_tensors(find_weights(source, **lookup))
        if "lm_head" in keep and model_type == "bert":
            source_tensors = _with_lm_head(source, source_tensors, config)
        today = [todays_name(name) for name in source_tensors]
        present = [part for part, start in PARTS.items() if any(name.startswith(start) for name in today)]
        missing = [part for part in keep if part not in present or part == "cls"]  # Longformer has no part called cls
        if missing:
            raise CheckpointError(
                f"{source} has no {listed(missing)} to keep; it has {listed(present) or 'only the encoder'}"
            )
        dropped = _drop(source_tensors, [POSITION_IDS, *(PARTS[part] for part in present if part not in keep)])
        tensors = _rename(source, source_tensors)
        # Row pad_token_id is for padding, the rows before it are unused. RoBERTa has these rows; BERT counts from 0.
        unused = config.pad_token_id + 1
        _lengthen_positions(source, tensors, unused, max_tokens, source_unused=0 if model_type == "bert" else unused)
        if positions == "random":
            torch.nn.init.normal_(tensors[POSITIONS][unused:], std=config.initializer_range)
        # Projections for global attention that the source has are trained, and stay, whatever its type is called.
        if model_type != "longformer" and not any("_global." in name for name in tensors):
            _copy_to_global(tensors)
        _check_base(source, tensors, config)

        if "lm_head" in keep:
            check_tied(source, tensors)
        architecture = head_of(tensors, architectures_of(config_file)) or LongformerModel
        extra = {"architectures": [architecture.__name__], "dtype": dtype_name(tensors.values())}
        dropped += write_checkpoint(folder, tensors, lambda path: config.save(path, **extra))
        tokenizer.model_max_length = max_tokens
        tokenizer.save_pretrained(folder)
    return Converted(folder, dropped)


def _named(folder: str | Path) -> Path:
    if str(folder) == "":
        raise CheckpointError("'' names no folder to write into; give one, such as . for this one")
    check_path(folder, error=CheckpointError)
    return Path(folder)


@contextmanager
def _writing_into(folder: Path, source: PathOrName) -> Iterator[None]:
    """Let no other process write into ``folder`` inside the block. Raises CheckpointError where ``source`` is there."""
    there = files_of(source)
    if folder.is_dir() and any(path.parent.resolve() == folder.resolve() for path in there):
        raise CheckpointError(f"{folder} is the source itself and would be overwritten; name another folder")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; a checkpoint is saved into a folder")
    try:
        check_overwrites(files_to_write(folder), there)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    with claimed(folder, error=CheckpointError):
        yield


def _with_lm_head(source: PathOrName, read: Mapping[str, Tensor], config: LongformerConfig) -> dict[str, Tensor]:
    """The weights of a BERT, with Longformer's names for its masked language modelling head."""
    if config.hidden_act != "gelu":
        raise ConfigError(
            f"{source} has hidden_act {config.hidden_act!r}, but Longformer's lm_head needs gelu; do not keep lm_head"
        )
    return {
        renamed(today, BERT_LM_HEAD) if (today := todays_name(name)).startswith("cls.predictions.") else name: tensor
        for name, tensor in read.items()
    }


def _drop(tensors: dict[str, Tensor], starts: Sequence[str]) -> list[str]:
    """Remove the tensors whose present name starts with one of ``starts``. Returns the removed names."""
    dropped = [name for name in tensors if todays_name(name).startswith(tuple(starts))]
    for name in dropped:
        del tensors[name]
    return dropped


def _rename(source: PathOrName, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under today's names."""
    try:
        return {today: tensors[name] for today, name in by_todays_name(tensors).items()}
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _check_base(source: PathOrName, tensors: Mapping[str, Tensor], config: LongformerConfig) -> None:
    """Raise CheckpointError unless all weights of the base model are there and fit. Heads and pooler may be any."""
    with torch.device("meta"):
        model = LongformerModel(config, add_pooling_layer=False)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    try:
        chosen, _ = fit_names(tensors, shapes)
        check_tensors({name: tensors[found] for name, found in chosen.items()}, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _lengthen_positions(
    source: PathOrName, tensors: dict[str, Tensor], unused: int, max_tokens: int, *, source_unused: int
) -> None:
    """Extend the position embeddings (rows, C) to (unused + max_tokens, C), by repeating the source's used rows."""
    short = tensors.get(POSITIONS)
    if short is None or short.dim() != 2 or len(short) <= source_unused:
        raise CheckpointError(f"{source} has no position embeddings to repeat")
    used = short[source_unused:]
    first = short[:source_unused] if source_unused else short.new_zeros(unused, short.shape[1])
    tensors[POSITIONS] = torch.cat([first, used[torch.arange(max_tokens) % len(used)]])


def _copy_to_global(tensors: dict[str, Tensor]) -> None:
    """Add the projections for global attention: copies of the local ones, because the two are trained separately."""
    for kind in ("query", "key", "value"):
        for name in [name for name in tensors if f".attention.self.{kind}." in name]:
            tensors[name.replace(f".{kind}.", f".{kind}_global.")] = tensors[name].clone()


def _long_config(
    source: PathOrName,
    raw: Mapping[str, Any],
    tokenizer: LongformerTokenizer,
    max_tokens: int,
    attention_window: int | Sequence[int],
) -> LongformerConfig:
    if raw.get("is_decoder") or raw.get("add_cross_attention"):
        raise ConfigError(f"{source} is a decoder; only an encoder can be made long")
    pad = tokenizer.pad_token_id
    if raw.get("pad_token_id") not in (None, pad):
        raise CheckpointError(f"{source}: config.json has pad_token_id {raw['pad_token_id']}, its tokenizer {pad}")
    values = {
        # BERT's and RoBERTa's defaults, for entries that a config leaves out.
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        **raw,
        "model_type": "longformer",
        "attention_window": attention_window,
        "max_position_embeddings": pad + 1 + max_tokens,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": pad,
    }
    try:
        return LongformerConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
