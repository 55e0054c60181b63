"""Load a model from a checkpoint, and save it as one.

Model classes inherit ``from_pretrained`` and ``save_pretrained`` from ``Pretrained``, which knows none of them. Weights
may have the names of any year (see :mod:`longformer.checkpoints.names`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from longformer.checkpoints.folder import check_tensors, dtype_name, read_config, write_checkpoint
from longformer.checkpoints.hub import PathOrName
from longformer.checkpoints.hub import find_files as find_files  # for callers that read other files of a checkpoint
from longformer.checkpoints.names import check_tied, fit_names, todays_name
from longformer.checkpoints.weights import find_weights, read_tensors, unaliased
from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError
from longformer.models import precision

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """Base of the models that are loaded from checkpoints and saved as such.

    A subclass is constructed as ``cls(config, *, impl="auto", ...)`` and keeps ``config``. A head keeps its base model
    in the attribute that ``base_model_prefix`` names.
    """

    base_model_prefix = "longformer"
    mode_changes = 0  # how often train() or eval() was called: by this a thread knows that another one has
    num_labels: int | None = None  # set by a head whose number of labels is fixed
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
        """Load a model in ``eval()`` mode, with every weight from the checkpoint.

        Weights in safetensors are memory-mapped. So a float32 file that is loaded as float32 on the CPU takes memory
        only for the weights that are used. Changing a weight does not change the file or what other processes see. For
        another ``dtype`` or ``device``, tensors are converted one at a time. A ``pytorch_model.bin`` is read whole.

        Args:
            name_or_path: a folder, or a model's name on the hub such as ``"allenai/longformer-base-4096"``.
            revision: branch, tag or commit on the hub.
            dtype: floating-point type of the weights; None is float32, whatever the file holds. For inference it may
                also be one of the names "mixed" and "int8", see :mod:`longformer.models.precision`.
            device: where to put the weights; None is the CPU.
            impl: implementation of the attention, see ``longformer.kernels``.
            local_files_only: look only in the hub's local cache. ``HF_HUB_OFFLINE=1`` does the same for everything.
            new_head: draw the head's weights at random, for fine-tuning. Without it, a checkpoint that lacks them is an
                error, because a random head would answer as confidently as a trained one.
            config: architecture to use instead of the checkpoint's own, for example the same one with other windows:
                ``LongformerConfig.from_file(...).replace(attention_window=128)``.
            arguments: further arguments of the class, such as ``add_pooling_layer=False``.

        Raises:
            CheckpointError: the checkpoint is not found or cannot be read, or weights are missing, unexpected or of the
                wrong shape.
            ConfigError: ``config.json`` does not describe a Longformer.
        """
        dtype, lower_precision = (torch.float32, precision.NAMED[dtype]) if dtype in precision.NAMED else (dtype, None)
        dtype = torch.float32 if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            names = " or ".join(map(repr, precision.NAMED))
            raise CheckpointError(f"dtype is {dtype!r}; it must be a floating type such as torch.float32, or {names}")
        if config is None:
            config = read_config(name_or_path, revision=revision, local_files_only=local_files_only)
        if new_head and cls.num_labels is not None:  # the config's number belongs to a head that is not loaded
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
        for name in sorted(fresh):  # the order of a set differs between processes, and each draw depends on the order
            state[name] = _draw(name, shapes[name], config.initializer_range).to(device, dtype)
        model.load_state_dict(state, assign=True)
        if lower_precision is not None:
            lower_precision(model)
        return model.eval()

    def train(self: Model, mode: bool = True) -> Model:
        """As ``nn.Module.train``."""
        self.mode_changes += 1
        trained: Model = super().train(mode)
        return trained

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``, which transformers' class of the same name loads too.

        Weights keep their dtype. Each file is written completely before it replaces an old one. So a model may be saved
        into the folder from which it was loaded, and an interrupted save leaves the old files intact.

        Raises:
            CheckpointError: ``folder`` is a file, or cannot be written; or the model is quantised.
        """
        state = self.state_dict()
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise CheckpointError("a model in int8 cannot be saved; load it with dtype=torch.float32 and save that")
        extra = {"architectures": [type(self).__name__], "dtype": dtype_name(state.values())}
        write_checkpoint(folder, state, lambda path: self.config.save(path, **extra))

    def _head_names(self) -> set[str]:
        """Names of the weights that do not belong to the base model. The base model itself has none."""
        if not hasattr(self, self.base_model_prefix):
            return set()
        return {name for name in self.state_dict() if not name.startswith(f"{self.base_model_prefix}.")}

    @classmethod
    def from_transformers(cls: type[Model], model: nn.Module, *, impl: str = "auto") -> Model:
        """This model around the weights of transformers' model of the same name, see :mod:`longformer.models.interop`.

        The parameters are the same objects: what trains or changes one model changes the other. ``impl`` is as for
        :meth:`from_pretrained`.

        Raises:
            LongformerError: it is not transformers' model of that name, or its weights are not the plain model's.
            ConfigError: its config describes a variant that this model does not compute.
        """
        from longformer.models import interop

        return interop.from_transformers(cls, model, impl=impl)

    def to_transformers(self) -> nn.Module:
        """transformers' model of the same name around the weights of this one, see :meth:`from_transformers`.

        Raises:
            LongformerError: transformers is not installed, or its model cannot compute what this one does: it has no
                dilation, no odd windows, no windows of which the largest is no multiple, and one precision.
        """
        from longformer.models import interop

        return interop.to_transformers(self)


def _draw(name: str, shape: torch.Size, std: float) -> Tensor:
    """A new weight of a head: 0 for biases, 1 for LayerNorm's factors, a normal distribution for matrices."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=std)
