"""Checkpoints: a config and weights, whose names of any year are fitted to a model; and back.

Nothing here knows a model class: the classes inherit ``from_pretrained`` and ``save_pretrained`` from ``Pretrained``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from longformer import precision
from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError
from longformer.hub import PathOrName, said
from longformer.hub import find_files as find_files  # for whoever reads other files of a checkpoint
from longformer.weights import SAFETENSORS, find_weights, read_tensors, replace_file, some, unaliased

log = logging.getLogger(__name__)

CONFIG = "config.json"
# Names in a checkpoint. Today's are the models' own, so that saving renames nothing: the base model's weights start
# with "longformer." under a head, with nothing in LongformerModel itself. Other spellings since 2020 become today's:
RENAMED_STARTS = {
    "embeddings.": "longformer.embeddings.",  # a base model, saved alone
    "encoder.": "longformer.encoder.",
    "pooler.": "longformer.pooler.",
    "roberta.": "longformer.",  # the original repository (2020), and RoBERTa
    "bert.": "longformer.",
}
RENAMED_ENDS = {
    "LayerNorm.gamma": "LayerNorm.weight",  # as TensorFlow called them
    "LayerNorm.beta": "LayerNorm.bias",
}
# A checkpoint may hold these parts beside the encoder, and a model may do without. Any other name is an error.
PARTS = {
    "pooler": "longformer.pooler.",
    "qa_outputs": "qa_outputs.",  # question answering
    "classifier": "classifier.",  # classification, multiple choice
    "lm_head": "lm_head.",  # masked language modelling
    "cls": "cls.",  # the same, and next sentences, in BERT
}
POSITION_IDS = "longformer.embeddings.position_ids"  # in checkpoints of 2020; positions are counted from the input
# A weight that is another one's second name, and that other one, which alone is written.
TIED = {
    "lm_head.decoder.weight": "longformer.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """Base of the models that are loaded from checkpoints and saved as such.

    A subclass is constructed as ``cls(config, *, impl="auto", ...)`` and keeps ``config``. Where it is a head, its base
    model is the attribute that ``base_model_prefix`` names.
    """

    base_model_prefix = "longformer"
    num_labels: int | None = None  # of a head that has always so many
    config: LongformerConfig

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: PathOrName,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        impl: str = "auto",
        local_files_only: bool = False,
        new_head: bool = False,
        config: LongformerConfig | None = None,
        **arguments: Any,
    ) -> Model:
        """Load a model, in ``eval()`` mode, with every weight from the checkpoint.

        The weights are mapped, not read: a float32 file loaded as float32 on the CPU costs memory only for what is
        used, and changing a weight changes neither the file nor another process's view of it. For another ``dtype`` or
        ``device``, tensors are converted one at a time.

        Args:
            name_or_path: a folder, or a model's name on the hub such as ``"allenai/longformer-base-4096"``.
            revision: branch, tag or commit on the hub.
            dtype: floating type of the weights; None is float32, whatever the file holds. Or, for inference, one of
                the names "mixed" and "int8", see :mod:`longformer.precision`.
            device: where the weights go; None is the CPU.
            impl: implementation of the attention, see ``longformer.kernels``.
            local_files_only: look only in the hub's local cache. ``HF_HUB_OFFLINE=1`` does the same for everything.
            new_head: draw the head's weights afresh, for fine-tuning; without it, a checkpoint that lacks them is an
                error, since a random head would answer as confidently as a trained one.
            config: what the weights are loaded into instead of the checkpoint's own architecture, such as that one
                with other windows: ``LongformerConfig.from_file(...).replace(attention_window=128)``.
            arguments: further arguments of the class, such as ``add_pooling_layer=False``.

        Raises:
            CheckpointError: not found, not readable, or weights that are missing, unexpected or wrongly shaped.
            ConfigError: ``config.json`` describes no Longformer.
        """
        dtype, lower = (torch.float32, precision.NAMED[dtype]) if dtype in precision.NAMED else (dtype, None)
        dtype = torch.float32 if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            names = " or ".join(map(repr, precision.NAMED))
            raise CheckpointError(f"dtype is {dtype!r}; it must be a floating type such as torch.float32, or {names}")
        if config is None:
            config = read_config(name_or_path, revision=revision, local_files_only=local_files_only)
        if new_head and cls.num_labels is not None:  # what the config says is of a head that is not loaded
            config = config.replace(num_labels=cls.num_labels)
        try:
            with torch.device("meta"):  # shapes only: no memory, no random numbers
                model = cls(config, impl=impl, **arguments)
        except ConfigError as error:
            raise ConfigError(f"{name_or_path}: {error}") from None
        tensors = read_tensors(find_weights(name_or_path, revision=revision, local_files_only=local_files_only))
        shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
        fresh = model._head_names() if new_head else set()
        if new_head and not fresh:
            raise CheckpointError(f"new_head is set, but {cls.__name__} has no head")
        try:
            chosen, dropped = fit_names(tensors, [name for name in shapes if name not in fresh])
            check_tensors({name: tensors[source] for name, source in chosen.items()}, shapes)
        except CheckpointError as error:
            raise CheckpointError(f"{name_or_path}: {error}") from None
        if "lm_head.bias" in shapes and not new_head:
            check_tied(name_or_path, {todays_name(name): tensors[name] for name in (*chosen.values(), *dropped)})
        if dropped:
            log.info("%s: not used by %s: %s", name_or_path, cls.__name__, ", ".join(dropped))
        state = unaliased({name: tensors[source] for name, source in chosen.items()})
        del tensors
        for name in state:
            state[name] = state[name].to(device, dtype)
        for name in sorted(fresh):  # a set's order, and so each weight's draw, would differ from process to process
            state[name] = _draw(name, shapes[name], config.initializer_range).to(device, dtype)
        model.load_state_dict(state, assign=True)
        if lower is not None:
            lower(model)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, which transformers' class of the same name loads too.

        Weights keep their dtype. Each file is put in place whole, so that a model may be saved into the folder that it
        was loaded from, and an interrupted save leaves what was there.

        Raises:
            CheckpointError: ``folder`` is a file, or cannot be written; or the model is quantised.
        """
        state = self.state_dict()
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise CheckpointError("a model in int8 is not saved; load it with dtype=torch.float32, and save that")
        extra = {"architectures": [type(self).__name__], "dtype": dtype_name(state.values())}
        write_checkpoint(folder, state, lambda path: self.config.save(path, **extra))

    def _head_names(self) -> set[str]:
        """Names of the weights that are not the base model's; none where this is the base model."""
        if not hasattr(self, self.base_model_prefix):
            return set()
        return {name for name in self.state_dict() if not name.startswith(f"{self.base_model_prefix}.")}


def _draw(name: str, shape: torch.Size, std: float) -> Tensor:
    """A fresh weight of a head: biases 0, LayerNorm's factors 1, matrices normal."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=std)


def read_config(
    name_or_path: PathOrName, *, revision: str | None = None, local_files_only: bool = False
) -> LongformerConfig:
    """The config of a checkpoint. Raises CheckpointError if there is none, ConfigError if it is no Longformer's."""
    return LongformerConfig.from_file(find_config(name_or_path, revision=revision, local_files_only=local_files_only))


def find_config(name_or_path: PathOrName, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Path of a checkpoint's ``config.json``. Raises CheckpointError where there is none."""
    found = find_files(name_or_path, [CONFIG], revision=revision, local_files_only=local_files_only)
    if CONFIG not in found:
        raise CheckpointError(f"{name_or_path} has no {CONFIG}; a checkpoint is a folder with that and {SAFETENSORS}")
    return found[CONFIG]


class Fitted(NamedTuple):
    """``chosen``: a model's name to the checkpoint's name for it. ``dropped``: checkpoint's names that go unused."""

    chosen: dict[str, str]
    dropped: list[str]


def todays_name(name: str) -> str:
    """Today's name, with its prefix, of a weight that any checkpoint since 2020 holds as ``name``."""
    for old, new in RENAMED_STARTS.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in RENAMED_ENDS.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name


def by_todays_name(found: Iterable[str]) -> dict[str, str]:
    """Today's names to those found. Raises CheckpointError where two are one today."""
    sources: dict[str, str] = {}
    for name in found:
        today = todays_name(name)
        if today in sources:
            raise CheckpointError(f"{sources[today]} and {name} are two weights for one place, {today}")
        sources[today] = name
    return sources


def fit_names(found: Iterable[str], wanted: Iterable[str]) -> Fitted:
    """Give every wanted name one found name, and account for each found name.

    Args:
        found: names in the checkpoint.
        wanted: names in the model's state dict.

    Raises:
        CheckpointError: names that are missing, that nothing wants and nothing may drop, or that stand twice.
    """
    sources = by_todays_name(found)
    wanted = list(wanted)
    chosen = {name: sources.pop(todays_name(name)) for name in wanted if todays_name(name) in sources}
    missing = [name for name in wanted if name not in chosen]
    droppable = (POSITION_IDS, *PARTS.values())
    unexpected = [source for today, source in sources.items() if not today.startswith(droppable)]
    problems = []
    if missing:
        problems.append(f"missing {some(missing)}{_missing_remedy(missing)}")
    if unexpected:
        problems.append(f"unexpected {some(unexpected)}")
    if problems:
        raise CheckpointError(f"weights do not fit the model: {'; '.join(problems)}")
    return Fitted(chosen, list(sources.values()))


def _missing_remedy(missing: list[str]) -> str:
    today = [todays_name(name) for name in missing]
    if all(name.startswith("longformer.pooler.") for name in today):
        return " (the checkpoint has no pooler: load with add_pooling_layer=False)"
    if not any(name.startswith("longformer.") for name in today):
        return " (the checkpoint has no such head: to train one, use `longformer train`, or load with new_head=True)"
    return ""


def check_tensors(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise CheckpointError, naming them, where tensors differ from ``shapes`` or are not floating point."""
    wrong = [
        f"{name} is {list(tensor.shape)}, not {list(shapes[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError(f"weights do not fit the config: {some(wrong, separator='; ')}{_shape_remedy(wrong)}")
    kinds = [f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if kinds:
        raise CheckpointError(f"weights must be floating point, but there are {some(kinds)}")


def _shape_remedy(wrong: list[str]) -> str:
    if any(todays_name(line).startswith("longformer.") for line in wrong):
        return ""
    return " (its head is not this one: load another checkpoint, or to train a new head, one without it)"


def check_tied(source: PathOrName, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where second names, by today's names, hold other weights than their first ones."""
    for copy, original in TIED.items():
        if copy in tensors and original in tensors and not torch.equal(tensors[copy], tensors[original]):
            raise CheckpointError(f"{source}: {copy} is not {original}; this model has one weight in both places")


def dtype_name(tensors: Iterable[Tensor]) -> str:
    """The dtype of the first tensor as ``config.json`` names it: ``"float32"``."""
    return str(next(iter(tensors)).dtype).removeprefix("torch.")


def write_checkpoint(
    folder: str | Path, tensors: Mapping[str, Tensor], write_config: Callable[[Path], None]
) -> list[str]:
    """Write ``model.safetensors`` and, by ``write_config(path)``, ``config.json``, each whole or not at all.

    Returns:
        Names that were left out, being second names of other weights.

    Raises:
        CheckpointError: ``folder`` is a file, or cannot be written.
    """
    folder = Path(folder)
    left_out = [
        copy
        for copy, original in TIED.items()
        if copy in tensors and original in tensors and torch.equal(tensors[copy], tensors[original])
    ]
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items() if name not in left_out}
    on_cpu = {name: tensor.contiguous() for name, tensor in unaliased(kept).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / SAFETENSORS, lambda path: save_file(on_cpu, path, metadata={"format": "pt"}))
        replace_file(folder / CONFIG, write_config)
    except (OSError, SafetensorError) as error:
        if folder.is_file():
            raise CheckpointError(f"{folder} is a file; a checkpoint is saved into a folder") from None
        raise CheckpointError(f"cannot write a checkpoint into {folder}: {said(error)}") from None
    return left_out
