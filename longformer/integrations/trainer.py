"""transformers' Trainer for our models: what it saves are whole checkpoints.

transformers' own ``Trainer`` trains our models as well. But it knows the config of its own models alone, and saves of
any other only ``model.safetensors``.
"""

from __future__ import annotations

from pathlib import Path

import transformers

from longformer.hub import CONFIG
from longformer.models.pretrained import Pretrained

__all__ = ["Trainer"]


class Trainer(transformers.Trainer):
    """``transformers.Trainer``, which writes ``config.json`` beside the weights of our models.

    So ``from_pretrained`` of this package and of transformers load the folders ``checkpoint-N`` and what
    ``save_model`` writes. All arguments are as there.
    """

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, with its config, into ``output_dir``, or else into that of the arguments.

        Raises:
            ConfigError: ``config.json`` cannot be written.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.args.should_save and isinstance(model, Pretrained):
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            model.save_config(folder / CONFIG)  # before the weights, after which a folder may be sent to the hub
        super().save_model(output_dir, _internal_call)
