"""Training: fine-tuning on question answering and on classification, and masked language modelling.

Read in this order: ``options``, what can be chosen; ``loop``, the training loop; ``qa``, ``classification`` and
``mlm``, the tasks, which turn files into rows; ``batches``, which turns rows into steps; ``run``, which puts all of it
together.

``optimizer``, ``parallel``, ``checkpoints``, ``signals`` and ``log`` serve the loop. ``measure`` scores a model without
training it. ``cli`` has the commands.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily
from longformer.training.options import ClassificationOptions, MLMOptions, QAOptions

if TYPE_CHECKING:
    from longformer.training.run import train_classification, train_mlm, train_qa

__all__ = ["ClassificationOptions", "MLMOptions", "QAOptions", "train_classification", "train_mlm", "train_qa"]

# The command line reads the options alone.
_HOMES = dict.fromkeys(("train_classification", "train_mlm", "train_qa"), "run")
__getattr__, __dir__ = lazily(__name__, globals(), _HOMES)
