"""Our models around transformers' weights, and transformers' models around ours, without a copy.

Both sides have the same classes, with the same names of the weights. So the one is made without memory, and then given
the other's parameters, the very objects. Nothing here is imported before somebody asks for it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from longformer.config import LongformerConfig
from longformer.errors import LongformerError, listed

Model = TypeVar("Model", bound=nn.Module)


def from_transformers(cls: type[Model], model: nn.Module, *, impl: str) -> Model:
    """A ``cls`` with the parameters of ``model``, which is of transformers' class of the same name.

    It is in training or evaluation mode as ``model`` is. It has a pooler if ``model`` has one.

    Raises:
        LongformerError: ``model`` is something else, or has other parameters than ``cls``.
        ConfigError: the config describes a variant that ``cls`` does not compute.
    """
    theirs = getattr(_transformers(), cls.__name__)
    if not isinstance(model, theirs):
        raise LongformerError(
            f"{type(model).__module__}.{type(model).__name__} is not transformers' {cls.__name__}; "
            f"{cls.__name__}.from_transformers takes that class"
        )
    config = LongformerConfig.from_dict(model.config.to_dict())
    arguments: dict[str, Any] = {"add_pooling_layer": model.pooler is not None} if hasattr(model, "pooler") else {}
    with torch.device("meta"):
        ours = cls(config, impl=impl, **arguments)
    _share(model, ours)
    return ours.train(model.training)


def to_transformers(model: Any) -> nn.Module:
    """transformers' model of the same class name with the parameters of ``model``, in the same mode.

    Raises:
        LongformerError: transformers is not installed, or has no way to compute what ``model`` does.
    """
    transformers, name, config = _transformers(), type(model).__name__, model.config
    if not hasattr(transformers, name):
        raise LongformerError(f"transformers has no {name}")
    if config.attention_dilation != 1:
        raise LongformerError(f"attention_dilation is {config.attention_dilation}; transformers' model has none")
    if config.attention_pattern is not None:
        texts = [entry.as_json() for entry in config.attention_pattern]
        raise LongformerError(f"attention_pattern is {texts}; transformers' model has windows alone")
    largest = max(config.attention_window)
    if any(window % 2 or largest % window for window in config.attention_window):
        raise LongformerError(
            f"attention_window is {config.attention_window}; transformers' model needs even windows, of each of which "
            f"the largest, {largest}, is a multiple"
        )
    if len(dtypes := {parameter.dtype for parameter in model.parameters()}) > 1:
        raise LongformerError(
            f"the weights are of {' and '.join(sorted(map(str, dtypes)))}; transformers' model computes in one "
            "precision: convert them with model.to(torch.float32)"
        )
    arguments: dict[str, Any] = {"add_pooling_layer": model.pooler is not None} if hasattr(model, "pooler") else {}
    with torch.device("meta"):
        theirs: nn.Module = getattr(transformers, name)(
            transformers.LongformerConfig.from_dict(config.to_dict()), **arguments
        )
    _share(model, theirs)
    return theirs.train(model.training)


def _share(source: nn.Module, target: nn.Module) -> None:
    """Put every parameter of ``source`` in the place of that of ``target``, tied ones in both places.

    Raises:
        LongformerError: the two have parameters of other names or shapes.
    """
    given = dict(source.named_parameters())
    places = dict(target.named_parameters())
    if differing := sorted(given.keys() ^ places.keys()):
        raise LongformerError(
            f"{type(source).__name__} does not have the weights of the plain model; these are on one side alone: "
            f"{listed(differing)}; merge adapters first, and quantise afterwards"
        )
    for name, parameter in given.items():
        if parameter.shape != places[name].shape:
            raise LongformerError(
                f"{name} has shape {tuple(parameter.shape)}; by its config it has {tuple(places[name].shape)}"
            )
    same = {id(places[name]): given[name] for name in given}
    for name, parameter in list(target.named_parameters(remove_duplicate=False)):
        module, _, last = name.rpartition(".")
        setattr(target.get_submodule(module), last, same[id(parameter)])


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise LongformerError(f"transformers cannot be imported ({error}); pip install transformers") from None
    return transformers
