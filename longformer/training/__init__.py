"""Training: fine-tuning on question answering, and masked language modelling.

Read ``loop`` first. ``options`` says what can be chosen, ``qa`` and ``mlm`` make rows of data, ``batches`` makes steps
of rows, ``optimizer``, ``parallel``, ``checkpoints``, ``signals`` and ``log`` are what their names say, ``run`` puts
all together, ``measure`` measures without training, and ``cli`` makes commands of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longformer.training.options import MLMOptions, QAOptions

if TYPE_CHECKING:
    from longformer.training.run import train_mlm, train_qa

__all__ = ["MLMOptions", "QAOptions", "train_mlm", "train_qa"]


def __getattr__(name: str) -> Any:
    """``train_qa`` and ``train_mlm`` import torch, which the command line's help has no need of."""
    if name not in ("train_mlm", "train_qa"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("longformer.training.run"), name)
