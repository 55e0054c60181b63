"""Models that torch.compile made: their traces are taken at the boundaries of modules, and they are edited as written.

Inside what is compiled there are no modules any more, whose results a hook could see. So while a compiled Longformer
is recorded, its embeddings, each of its layers and its head are compiled each by itself, in the way in which the whole
was, and what stands between them runs as it is written. While it is edited, all of it runs as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from longformer.parity.table import Table

COMPILED = "_orig_mod"  # where torch.compile keeps the model
IN_PLACE = "_compiled_call_impl"  # what module.compile() puts on a module
WRITTEN = "_torchdynamo_orig_callable"  # where a compiled function keeps what it was made from
WHOLE = ("embeddings", "layer.{n}.output")  # values of which each is what a whole part gives


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile made ``model``."""
    return hasattr(model, COMPILED)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that was compiled; any other is returned as it is."""
    return getattr(model, COMPILED, model)


def runs_compiled(model: nn.Module) -> bool:
    """Whether torch.compile made ``model``, and no :func:`as_written` is open."""
    return is_compiled(model) and vars(model).get("forward") != uncompiled(model).__call__


def compiled_parts(model: nn.Module) -> list[str]:
    """Paths of the modules inside ``model``, itself included as "", that are compiled by themselves or in place."""
    return [path for path, part in model.named_modules() if is_compiled(part) or _is_compiled_in_place(part)]


def _is_compiled_in_place(part: nn.Module) -> bool:
    return getattr(part, IN_PLACE, None) is not None or hasattr(vars(part).get("forward"), WRITTEN)


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """While this is open, ``model`` and all that is compiled inside it runs as it was written, and has its names."""
    with ExitStack() as stack:
        if is_compiled(model):
            compiled: Any = model
            stack.callback(setattr, compiled, "forward", compiled.forward)
            compiled.forward = uncompiled(model).__call__
        _put_back_parts(uncompiled(model), stack)
        for part in uncompiled(model).modules():
            if getattr(part, IN_PLACE, None) is not None:
                stack.callback(setattr, part, IN_PLACE, getattr(part, IN_PLACE))
                setattr(part, IN_PLACE, None)
            forward: Any = vars(part).get("forward")
            if hasattr(forward, WRITTEN):
                stack.callback(setattr, part, "forward", forward)
                part.forward = getattr(forward, WRITTEN)
        yield


def _put_back_parts(parent: nn.Module, stack: ExitStack) -> None:
    """Put each module that was compiled in the place of what torch.compile made of it, until ``stack`` is closed."""
    for name, child in parent.named_children():
        if is_compiled(child):
            stack.callback(parent.register_module, name, child)
            parent.register_module(name, uncompiled(child))
        _put_back_parts(uncompiled(child), stack)


def of_whole_parts(table: Table) -> Table:
    """The values of a Longformer's table that the parts which are compiled by themselves give."""
    return Table(
        {path: value for path, value in table.values.items() if value.name in WHOLE}, table.optional, table.heads
    )


@contextmanager
def compiled_in_parts(model: nn.Module, paths: list[str]) -> Iterator[None]:
    """While this is open, ``model`` runs as it was before it was compiled, with the modules at ``paths`` compiled.

    Args:
        model: that torch.compile made.
        paths: of modules of the model that was compiled; of one within another the inner one is compiled.
    """
    compiled: Any = model
    inner = uncompiled(model)
    with ExitStack() as stack:
        for path in paths:
            if not any(other.startswith(f"{path}.") or (not path and other) for other in paths):
                part = inner.get_submodule(path)
                stack.callback(_restore, part, vars(part).get("forward"))
                part.forward = compiled.dynamo_ctx(part.forward)
        stack.callback(setattr, compiled, "forward", compiled.forward)
        compiled.forward = inner.__call__
        yield


def _restore(part: nn.Module, forward: Any) -> None:
    del part.forward
    if forward is not None:
        part.forward = forward
