"""Which of our classes serves a checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple

from longformer.checkpoints.folder import architectures_of
from longformer.checkpoints.names import PARTS, todays_name
from longformer.checkpoints.weights import find_weights, read_tensors
from longformer.hub import PathOrName, find_config
from longformer.models.encoder import LongformerModel
from longformer.models.heads import Head, head_of


class Kind(NamedTuple):
    """Which class serves a checkpoint, with which arguments, and which of the checkpoint's parts it leaves out."""

    model: type[LongformerModel | Head]
    arguments: dict[str, Any]
    left_out: list[str]


def kind_of(name_or_path: PathOrName, *, revision: str | None = None) -> Kind:
    """The head that a checkpoint is for, by its config and its weights; else the base model.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    names = {todays_name(name) for name in read_tensors(find_weights(name_or_path, revision=revision))}
    parts = [part for part, prefix in PARTS.items() if any(name.startswith(prefix) for name in names)]
    head = head_of(names, architectures_of(find_config(name_or_path, revision=revision)))
    if head is not None:
        needed = {part for part, prefix in PARTS.items() if any(name.startswith(prefix) for name in head.weights)}
        return Kind(head, {}, [part for part in parts if part not in needed])
    has_pooler = "pooler" in parts
    return Kind(LongformerModel, {"add_pooling_layer": has_pooler}, [part for part in parts if part != "pooler"])
