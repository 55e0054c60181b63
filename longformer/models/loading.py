"""How a checkpoint's weights come into a model: which are taken, which are drawn, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from longformer.checkpoints.folder import check_tensors
from longformer.checkpoints.names import check_tied, fit_names, todays_name
from longformer.checkpoints.weights import unaliased
from longformer.config import LongformerConfig
from longformer.distributed import check_device
from longformer.errors import CheckpointError, LongformerError, in_one_line, listed, unknown_name
from longformer.hub import PathOrName
from longformer.kernels import choose
from longformer.models import precision

if TYPE_CHECKING:
    from longformer.models.pretrained import Pretrained

log = logging.getLogger(__name__)

POOLER = "longformer.pooler."  # start of its weights' names, today's
# Keywords of transformers' from_pretrained, and what stands for them here.
ELSEWHERE = {
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "return_dict"), "give it to the model when you call it"
    ),
    **dict.fromkeys(
        ("low_cpu_mem_usage", "use_safetensors", "trust_remote_code", "attn_implementation"),
        "leave it out; weights are mapped, no code is run, and impl chooses the attention",
    ),
    "use_auth_token": "it is called token",
}
CONFIG_NAMES = {field.name for field in dataclasses.fields(LongformerConfig)} | {"id2label", "label2id"}


class Loaded(NamedTuple):
    """weights: the model's state dict. drawn: names of those that no checkpoint gave. mismatched: names, with the
    checkpoint's shape and the model's, of those among them that had another shape. dropped: the checkpoint's names of
    weights that the model has no place for.
    """

    weights: dict[str, Tensor]
    drawn: list[str]
    mismatched: list[tuple[str, torch.Size, torch.Size]]
    dropped: list[str]

    def info(self) -> dict[str, Any]:
        """As transformers calls it."""
        mismatched = {name for name, *_ in self.mismatched}
        return {
            "missing_keys": [name for name in self.drawn if name not in mismatched],
            "unexpected_keys": self.dropped,
            "mismatched_keys": self.mismatched,
            "error_msgs": [],
        }


def load_weights(
    model: Pretrained,
    tensors: Mapping[str, Tensor],
    source: PathOrName,
    *,
    new_head: bool | None,
    ignore_mismatched_sizes: bool,
) -> Loaded:
    """The weights of ``model``, which is on meta, from a checkpoint's tensors. Arguments: see ``from_pretrained``.

    Raises:
        CheckpointError: weights are missing, unexpected, or of the wrong shape.
    """
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    found = {todays_name(name) for name in tensors}
    fresh = _to_draw(model, shapes, found, new_head)
    mismatched = []
    try:
        chosen, dropped = fit_names(tensors, [name for name in shapes if name not in fresh])
        if ignore_mismatched_sizes:
            mismatched = [
                (name, tensors[given].shape, shapes[name])
                for name, given in chosen.items()
                if tensors[given].shape != shapes[name]
            ]
            fresh |= {name for name, *_ in mismatched}
            chosen = {name: given for name, given in chosen.items() if name not in fresh}
        check_tensors({name: tensors[given] for name, given in chosen.items()}, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    if "lm_head.bias" in chosen:
        check_tied(source, {todays_name(name): tensors[name] for name in (*chosen.values(), *dropped)})
    if dropped:
        log.info("%s: not used by %s: %s", source, type(model).__name__, ", ".join(dropped))
    weights = unaliased({name: tensors[given] for name, given in chosen.items()})
    drawn = sorted(fresh)  # the order of a set differs between processes, and each draw depends on the order
    for name in drawn:
        weights[name] = _draw(name, shapes[name], model.config.initializer_range)
    if drawn:
        say = log.info if new_head else log.warning
        say("%s: drawn at random, and to be trained before use: %s", source, ", ".join(drawn))
    return Loaded(weights, drawn, mismatched, dropped)


def _to_draw(model: Pretrained, shapes: Iterable[str], found: set[str], new_head: bool | None) -> set[str]:
    """Names of the weights to draw: those of a head or a pooler of which the checkpoint has nothing."""
    head = model.head_names()
    if new_head and not head:
        raise CheckpointError(f"new_head is set, but {type(model).__name__} has no head")
    if new_head is False:
        return set()
    pooler = {name for name in shapes if todays_name(name).startswith(POOLER)}
    fresh = set()
    for part in (head, pooler):
        if not any(todays_name(name) in found for name in part) or (new_head and part is head):
            fresh |= part
    return fresh


def _draw(name: str, shape: torch.Size, std: float) -> Tensor:
    """A new weight: 0 for biases, 1 for LayerNorm's factors, a normal distribution for matrices."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    return torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=std)


# ---- the arguments of from_pretrained


def split_arguments(cls: type, arguments: Mapping[str, Any], known: Iterable[str]) -> tuple[dict, dict]:
    """Further keywords of ``from_pretrained``, as changes of the config and as arguments of the class.

    Args:
        cls: the model's class.
        arguments: the keywords.
        known: names of those that ``from_pretrained`` lists, for the message.

    Raises:
        LongformerError: one is neither; the nearest known one is named.
    """
    of_class = set(inspect.signature(cls).parameters) - {"config", "impl"}
    unknown = [name for name in arguments if name not in CONFIG_NAMES | of_class]
    if unknown:
        if unknown[0] in ELSEWHERE:
            raise LongformerError(f"from_pretrained has no keyword {unknown[0]!r}: {ELSEWHERE[unknown[0]]}")
        every = sorted({*known, *CONFIG_NAMES, *of_class})
        raise LongformerError(unknown_name(unknown[0], every, "keyword of from_pretrained"))
    changes = {name: value for name, value in arguments.items() if name in CONFIG_NAMES}
    return changes, {name: value for name, value in arguments.items() if name in of_class}


def choose_dtype(dtype: object, tensors: Mapping[str, Tensor]) -> tuple[torch.dtype, Any]:
    """The dtype of the weights, and what lowers the precision after that, or None.

    Raises:
        CheckpointError: ``dtype`` is neither a floating-point type nor one of the names.
    """
    if isinstance(dtype, str) and dtype in precision.NAMED:
        return torch.float32, precision.NAMED[dtype]
    if dtype == "auto":
        return next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32), None
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    chosen = torch.float32 if dtype is None else named
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        names = " or ".join(map(repr, (*precision.NAMED, "auto")))
        raise CheckpointError(f"dtype is {dtype!r}; it must be a floating type such as torch.float32, or {names}")
    return chosen, None


def choose_device(device: object, device_map: object) -> Any:
    """One device, from ``device`` or from what ``device_map`` means for a model that is on one device.

    Raises:
        LongformerError: both are given, or the map names several devices.
    """
    if device_map is None:
        if device is None or str(device) == "meta":  # a model on meta has shapes and no values, which some ask for
            return device
        return check_device(device)  # type: ignore[arg-type]
    if device is not None:
        raise LongformerError(f"device is {device!r} and device_map {device_map!r}; give one of them")
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise LongformerError(
                f"device_map has {listed([repr(name) for name in device_map])}; from_pretrained puts a model on one "
                'device: give {"": device}, or load it and use accelerate.dispatch_model'
            )
        device_map = device_map[""]
    if device_map in ("auto", "balanced", "sequential"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return check_device(f"cuda:{device_map}" if isinstance(device_map, int) else device_map)  # type: ignore[arg-type]


def as_config(config: object) -> LongformerConfig:
    """Our config, from what users give as one: ours, a path or a name, a dict, or transformers' own.

    Raises:
        LongformerError: it is something else, or describes no Longformer.
    """
    if isinstance(config, LongformerConfig):
        return config
    if isinstance(config, (str, Path)):
        return LongformerConfig.from_pretrained(config)
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values, Mapping):
        raise LongformerError(f"config is a {type(config).__name__}; it must be a LongformerConfig, or a path to one")
    return LongformerConfig.from_dict(values)


def check_implementation(impl: str, device: torch.device | str | None, dtype: torch.dtype | str | None) -> None:
    """Refuse an implementation of the attention that cannot serve a model there, before the model is loaded.

    Args:
        impl: one of ``longformer.kernels.IMPLEMENTATIONS``.
        device: where the model will be; None is the CPU.
        dtype: of its weights; a name, such as "mixed", stands for float32.

    Raises:
        LongformerError: the device or the implementation cannot be used here; says why.
    """
    placed_on = check_device(device)
    number_type = dtype if isinstance(dtype, torch.dtype) else torch.float32
    try:
        choose(torch.empty(1, 1, 1, 16, dtype=number_type, device=placed_on), impl=impl)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise LongformerError(f"{in_one_line(error).partition(': ')[2]}") from None
