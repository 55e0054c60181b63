"""Models that torch.compile made: their traces are taken at the boundaries of modules.

Inside what is compiled there are no modules any more, whose results a hook could see. So while a compiled Longformer
is recorded, its embeddings, each of its layers and its head are compiled each by itself, in the way in which the whole
was, and what stands between them runs as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from longformer.parity.table import Table

COMPILED = "_orig_mod"  # where torch.compile keeps the model
WHOLE = ("embeddings", "layer.{n}.output")  # values of which each is what a whole part gives


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile made ``model``."""
    return hasattr(model, COMPILED)


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that was compiled; any other is returned as it is."""
    return getattr(model, COMPILED, model)


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
