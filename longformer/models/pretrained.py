"""What every model can do: be loaded from a checkpoint, be saved as one, and what users and tools ask of a model.

Model classes inherit it from ``Pretrained``, which knows none of them. Weights may have the names of any year (see
:mod:`longformer.checkpoints.names`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from longformer.checkpoints.folder import dtype_name, write_checkpoint
from longformer.checkpoints.names import todays_name
from longformer.checkpoints.weights import find_weights, read_tensors, unwrapped
from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, ConfigError, LongformerError
from longformer.hub import PathOrName
from longformer.hub import find_files as find_files  # for callers that read other files of a checkpoint
from longformer.models import loading
from longformer.models.layers import init_weights
from longformer.models.resizing import fit_vocabulary, resize_embeddings

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """Base of the models that are loaded from checkpoints and saved as such.

    A subclass is constructed as ``cls(config, *, impl="auto", ...)`` and keeps ``config``. A head keeps its base model
    in the attribute that ``base_model_prefix`` names.
    """

    base_model_prefix = "longformer"
    main_input_name = "input_ids"
    mode_changes = 0  # how often train() or eval() was called: by this a thread knows that another one has
    fixed_labels: int | None = None  # set by a head whose number of labels is fixed
    accepts_loss_kwargs = False  # transformers' Trainer asks: losses are means over a batch, whatever a step adds up
    name_or_path: str = ""  # where it was loaded from; peft writes it beside an adapter
    config: LongformerConfig

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: PathOrName | None,
        *,
        config: LongformerConfig | PathOrName | Mapping[str, Any] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        device_map: Any = None,
        impl: str = "auto",
        new_head: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: PathOrName | None = None,
        token: str | bool | None = None,
        **arguments: Any,
    ) -> Any:
        """Load a model in ``eval()`` mode.

        Weights in safetensors are memory-mapped. So a float32 file that is loaded as float32 on the CPU takes memory
        only for the weights that are used. Changing a weight does not change the file or what other processes see. For
        another ``dtype`` or ``device``, tensors are converted one at a time. A ``pytorch_model.bin`` is read whole.

        Args:
            name_or_path: a folder, or a model's name on the hub such as ``"allenai/longformer-base-4096"``. It may be
                None if ``config`` and ``state_dict`` are given.
            config: architecture to use instead of the checkpoint's own: a config, ours or transformers', its entries,
                or where its ``config.json`` is.
            state_dict: weights to use instead of the checkpoint's own.
            dtype: floating-point type of the weights, or its name; "auto" is the file's; None is float32, whatever the
                file holds. For inference it may also be "mixed" or "int8", see :mod:`longformer.models.precision`.
            torch_dtype: the older name of ``dtype``.
            device: where to put the weights; None is the CPU.
            device_map: what it means for one device: a device, ``{"": device}``, or "auto", which is a GPU if there
                is one.
            impl: implementation of the attention, see ``longformer.kernels``.
            new_head: None: draw a head or a pooler at random if the checkpoint has none, and say so in the log, as a
                warning. True: draw the head in any case, for fine-tuning. False: what is not there is an error, since a
                random head answers as confidently as a trained one.
            ignore_mismatched_sizes: draw what has another shape in the checkpoint, too. Without it that is an error.
            output_loading_info: return the model and a dict: ``missing_keys``, ``unexpected_keys`` (not used),
                ``mismatched_keys`` (name, checkpoint's shape, model's shape) and ``error_msgs``.
            revision: branch, tag or commit on the hub.
            local_files_only: look only in the hub's local cache. ``HF_HUB_OFFLINE=1`` does the same for everything.
            cache_dir: where that cache is.
            token: to log in to the hub with.
            arguments: changes of the config, such as ``attention_window=128``, ``num_labels=3`` or ``id2label={...}``;
                and further arguments of the class, such as ``add_pooling_layer=False``.

        Raises:
            CheckpointError: the checkpoint is not found or cannot be read, or weights are missing, unexpected or of the
                wrong shape.
            ConfigError: ``config.json`` does not describe a Longformer.
            LongformerError: an unknown keyword, or two that contradict each other.
        """
        known = set(inspect.signature(Pretrained.from_pretrained).parameters) - {"name_or_path", "arguments"}
        changes, of_class = loading.split_arguments(cls, arguments, known)
        if dtype is not None and torch_dtype is not None:
            raise LongformerError(f"dtype is {dtype!r} and torch_dtype {torch_dtype!r}; give one of them")
        device = loading.choose_device(device, device_map)
        where: dict[str, Any] = {
            "revision": revision,
            "local_files_only": local_files_only,
            "cache_dir": cache_dir,
            "token": token,
        }
        if name_or_path is None and (config is None or state_dict is None):
            raise LongformerError("without a checkpoint's name or path both config and state_dict must be given")
        loading.choose_dtype(dtype or torch_dtype, {})  # a wrong one is said before anything is fetched
        if config is None:
            assert name_or_path is not None
            config = LongformerConfig.from_pretrained(name_or_path, **where)
        config = loading.as_config(config)
        if state_dict is None:
            assert name_or_path is not None
            tensors = read_tensors(find_weights(name_or_path, **where))
        else:
            tensors = unwrapped(state_dict, "state_dict")
        source = "state_dict" if name_or_path is None else name_or_path
        try:
            config = config.replace(**changes)
            is_new = new_head or (new_head is None and not cls.has_head(tensors))
            if cls.fixed_labels is not None and is_new and not {"num_labels", "id2label", "label2id"} & changes.keys():
                config = config.replace(num_labels=cls.fixed_labels)  # the config's number is of another head
            with torch.device("meta"):  # shapes only: no memory, no random numbers
                model = cls(config, impl=impl, **of_class)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
        number_type, lower_precision = loading.choose_dtype(dtype or torch_dtype, tensors)
        loaded = loading.load_weights(
            model, tensors, source, new_head=new_head, ignore_mismatched_sizes=ignore_mismatched_sizes
        )
        del tensors
        for name in loaded.weights:
            loaded.weights[name] = loaded.weights[name].to(device, number_type)
        model.load_state_dict(loaded.weights, assign=True)
        if lower_precision is not None:
            lower_precision(model)
        model.eval()
        model.name_or_path = "" if name_or_path is None else str(name_or_path)
        return (model, loaded.info()) if output_loading_info else model

    @classmethod
    def has_head(cls, names: Mapping[str, Any]) -> bool:
        """Whether a checkpoint with weights of these names has the class's own head."""
        start = f"{getattr(cls, 'part', '')}."
        return any(todays_name(name).startswith(start) for name in names)

    def head_names(self) -> set[str]:
        """Names of the weights that do not belong to the base model. The base model itself has none."""
        if not hasattr(self, self.base_model_prefix):
            return set()
        return {name for name in self.state_dict() if not name.startswith(f"{self.base_model_prefix}.")}

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        save_function: Any = None,
        **arguments: Any,
    ) -> None:
        """Write ``model.safetensors`` and ``config.json``, which transformers' class of the same name loads too.

        Weights keep their dtype. Each file is written completely before it replaces an old one. So a model may be saved
        into the folder from which it was loaded, and an interrupted save leaves the old files intact.

        Args:
            folder: where to write; it is made if it is not there.
            state_dict: weights to write instead of the model's own, such as ``accelerator.get_state_dict(model)``.
            is_main_process: False writes nothing, so that every process of several may call this.
            save_function: not used; scripts that use accelerate give one. The files are always safetensors.
            arguments: ``safe_serialization=True``, ``push_to_hub=False`` and any ``max_shard_size``, which change
                nothing: there is always one file of safetensors.

        Raises:
            CheckpointError: ``folder`` is a file, or cannot be written; or the model is quantised.
            LongformerError: another keyword, or another value of these.
        """
        harmless = {"safe_serialization": True, "push_to_hub": False}
        for name, value in arguments.items():
            if name != "max_shard_size" and (name not in harmless or value is not harmless[name]):
                raise LongformerError(f"save_pretrained writes one file of safetensors; it cannot do {name}={value!r}")
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else dict(state_dict)
        if not all(isinstance(tensor, Tensor) for tensor in state.values()):
            raise CheckpointError("a model in int8 cannot be saved; load it with dtype=torch.float32 and save that")
        write_checkpoint(folder, state, lambda path: self.save_config(path, state))

    def save_config(self, path: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the ``config.json`` of a checkpoint of this model. ``state_dict``: as for :meth:`save_pretrained`.

        Raises:
            ConfigError: the file cannot be written.
        """
        tensors = self.parameters() if state_dict is None else state_dict.values()
        self.config.save(path, architectures=[type(self).__name__], dtype=dtype_name(tensors))

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

    # ---- what users and tools ask of a model

    def train(self: Model, mode: bool = True) -> Model:
        """As ``nn.Module.train``."""
        self.mode_changes += 1
        trained: Model = super().train(mode)
        return trained

    @property
    def base_model(self) -> Pretrained:
        """The encoder: of a head the model below it, else the model itself."""
        base: Pretrained = getattr(self, self.base_model_prefix, self)
        return base

    @property
    def device(self) -> torch.device:
        """Where the first weight is."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point weight."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @property
    def num_labels(self) -> int:
        """Outputs of the head."""
        return self.config.num_labels

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights have.

        Args:
            only_trainable: leave out what has ``requires_grad=False``.
            exclude_embeddings: leave out the embeddings' matrices.
        """
        matrices = [part.weight for part in self.modules() if isinstance(part, nn.Embedding)]
        excluded = {id(matrix) for matrix in matrices} if exclude_embeddings else set()
        chosen = (weight for weight in self.parameters() if weight.requires_grad or not only_trainable)
        return sum(weight.numel() for weight in chosen if id(weight) not in excluded)

    def init_weights(self) -> None:
        """Draw all weights again, as for a new model: see :func:`longformer.models.layers.init_weights`."""
        init_weights(self, self.config)

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        words: nn.Module = self._embeddings().word_embeddings
        return words

    def get_output_embeddings(self) -> None:
        """None: scores of words, where there are any, are computed with the word embeddings' own matrix."""
        return None

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        """Use other word embeddings. A masked language model's output shares their matrix, whichever they are.

        With another number of rows, config and bias get that size too, as :meth:`resize_token_embeddings` has it.

        Raises:
            LongformerError: they are no module, or give vectors of another size; or a special token has no row.
        """
        fit_vocabulary(self, embeddings)
        self._embeddings().word_embeddings = embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Give the vocabulary another size: the word embeddings, the output that is tied to them, bias and config.

        New rows are drawn from a normal distribution with the mean and the standard deviation of the old rows, each
        dimension by itself. A new word's bias is the mean of the old ones.

        Args:
            new_num_tokens: rows; None keeps their number.
            pad_to_multiple_of: round up to a multiple of it.
            mean_resizing: False draws new rows as for a new model instead, with mean 0.

        Returns:
            The word embeddings.

        Raises:
            LongformerError: a special token would lose its row, or a number is below 1.
        """
        embeddings = resize_embeddings(self, new_num_tokens, pad_to_multiple_of, from_old=mean_resizing)
        self.set_input_embeddings(embeddings)
        return embeddings

    def _embeddings(self) -> Any:
        return self.base_model.embeddings

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again on the way back."""
        return bool(self._encoder().gradient_checkpointing)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Keep only each layer's input in training, and compute the rest again on the way back.

        Args:
            gradient_checkpointing_kwargs: may hold ``use_reentrant``. It makes no difference: gradients are the same,
                and need no input that requires one.

        Raises:
            LongformerError: they hold something else.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """As :meth:`gradient_checkpointing_enable`, by the name that transformers gives it now.

        Raises:
            LongformerError: ``every_n_layers`` is not 1, or ``offload`` is asked for: every layer is computed again,
                and what is kept stays where it is. Or as there.
        """
        unknown = sorted(set(activation_checkpointing_kwargs or {}) - {"use_reentrant"})
        if unknown:
            raise LongformerError(f"checkpointing is given {unknown[0]!r}; it may be given use_reentrant alone")
        if every_n_layers != 1 or offload:
            raise LongformerError(
                f"checkpointing is given every_n_layers={every_n_layers!r} and offload={offload!r}; every layer is "
                "computed again, and nothing is moved: leave both out"
            )
        self._encoder().gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the way back needs."""
        self._encoder().gradient_checkpointing = False

    def _encoder(self) -> Any:
        return self.base_model.encoder

    def enable_input_require_grads(self) -> None:
        """Make the word embeddings' output require a gradient, for tools that train inside a frozen model."""
        self.disable_input_require_grads()
        hook = self.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_(True))
        self._require_grads_hook = hook

    def disable_input_require_grads(self) -> None:
        """Undo :meth:`enable_input_require_grads`."""
        hook = self.__dict__.pop("_require_grads_hook", None)
        if hook is not None:
            hook.remove()
