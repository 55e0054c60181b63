"""A model that computes as in ``eval()`` mode while its own mode stays as it is, which other threads may rely on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_switching = threading.Lock()


@contextmanager
def evaluating(model: nn.Module, *, view: bool = False) -> Iterator[nn.Module]:
    """``model`` as it computes in ``eval()`` mode: itself where it is in that mode and no ``view`` is asked for.

    Else it is a view: a copy of the tree of modules, which shares parameters, buffers and hooks with it and is not in
    training. A hook is then called with the copy of its module. The mode of ``model`` is not touched.

    The one exception is a module whose ``forward`` was put on the instance, as torch.compile and accelerate do. It is
    bound to the module that it was made for, so that no view of it is possible. Such a model is switched to ``eval()``
    for the time, and each part is put back into its own mode.
    """
    training = [part for part in model.modules() if part.training]
    if not training and not view:
        yield model
    elif all(_can_be_viewed(part) for part in model.modules()):
        yield _view(model, {})
    else:
        with _switching:
            training = [part for part in model.modules() if part.training]
            try:
                model.eval()
                yield model
            finally:
                for part in training:
                    part.training = True


def _can_be_viewed(part: nn.Module) -> bool:
    return "forward" not in vars(part) and not isinstance(part, torch.jit.ScriptModule)


def _view(part: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A copy of ``part`` and of the modules inside it, each of which shares all but its mode and its inner modules."""
    if id(part) not in made:
        view: Any = object.__new__(type(part))
        made[id(part)] = view
        inner = {name: None if child is None else _view(child, made) for name, child in part._modules.items()}
        view.__dict__.update(vars(part), training=False, _modules=inner)
    return made[id(part)]
