"""Training: fine-tuning on question answering and on classification, masked language modelling, language models.

Read in this order: ``options``, what can be chosen; ``loop``, the training loop; ``qa``, ``classification`` and
``mlm``, the tasks, which turn files into rows; ``batches``, which turns rows into steps; ``run``, which puts all of it
together; ``lm``, character language models, which are trained from nothing in phases.

``optimizer``, ``parallel``, ``checkpoints``, ``signals`` and ``log`` serve the loop. ``measure`` scores a model without
training it. ``cli`` has the commands.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily
from longformer.training.lm_options import LMOptions
from longformer.training.options import ClassificationOptions, MLMOptions, QAOptions

if TYPE_CHECKING:
    from longformer.training.lm import train_lm
    from longformer.training.run import train_classification, train_mlm, train_qa

__all__ = [
    "ClassificationOptions",
    "LMOptions",
    "MLMOptions",
    "QAOptions",
    "train_classification",
    "train_lm",
    "train_mlm",
    "train_qa",
]

# The command line reads the options alone.
_HOMES = {"train_lm": "lm", **dict.fromkeys(("train_classification", "train_mlm", "train_qa"), "run")}
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
