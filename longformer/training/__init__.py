"""Training: fine-tuning on question answering, and masked language modelling.

Read ``loop`` first. ``options`` says what can be chosen, ``qa`` and ``mlm`` make rows of data, ``batches`` makes steps
of rows, ``optimizer``, ``parallel``, ``checkpoints``, ``signals`` and ``log`` are what their names say, ``run`` puts
all together, ``measure`` measures without training, and ``cli`` makes commands of it.
"""

from typing import TYPE_CHECKING

from longformer.lazy import lazily
from longformer.training.options import MLMOptions, QAOptions

if TYPE_CHECKING:
    from longformer.training.run import train_mlm, train_qa

__all__ = ["MLMOptions", "QAOptions", "train_mlm", "train_qa"]

# The command line reads the options alone.
__getattr__, __dir__ = lazily(__name__, globals(), {"train_mlm": "run", "train_qa": "run"})
