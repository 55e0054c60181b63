"""An exported model, run by ONNX Runtime: what it is given is checked as our models check it.

Letters: B batch, S sequence, N choices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, LongformerError, in_one_line, quoted
from longformer.exporting.packages import load
from longformer.exporting.program import CLASSES, OWN
from longformer.models.batch import check_ids, count_positions, make_tokens
from longformer.models.encoder import LongformerModel
from longformer.models.heads import Head
from longformer.models.outputs import LogitsOutput, ModelOutput, Output, QuestionAnsweringOutput

KEY = "longformer."  # before the names of our metadata
EVERYWHERE = {"attention_mask": 1, "global_attention_mask": OWN}  # the number at every token, where no mask is given


class OnnxModel(nn.Module):
    """A model in an ONNX file that :func:`longformer.exporting.export` wrote.

    It is called like the model, with tensors on the CPU, and gives the same outputs. It has no parameters.

    Args:
        path: the file.
        threads: of ONNX Runtime, at least 1; None is one for each core.
        providers: ONNX Runtime's, in the order in which they are tried.

    Raises:
        CheckpointError: no such file, one that ONNX Runtime cannot read, or one that is not ours.
        LongformerError: onnxruntime is not installed, or another number of threads.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{path} is no file; name the .onnx file that longformer export wrote")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise LongformerError(f"threads is {quoted(threads)}; it must be a whole number, at least 1")
        runtime = load("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # the library's own have no common class
            raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {in_one_line(error)}") from None
        about = self.session.get_modelmeta().custom_metadata_map
        kind = about.get(f"{KEY}class")
        if kind not in CLASSES or f"{KEY}outputs" not in about:
            raise CheckpointError(f"{path} was not written by this version of longformer export; export it again")
        self.config = LongformerConfig.from_dict(json.loads(about[f"{KEY}config"]))
        self.names: list[str] = json.loads(about[f"{KEY}outputs"])
        self.kind = CLASSES[kind]
        self._own_global_mask: Any = None
        if issubclass(self.kind, Head):
            with torch.device("meta"):
                self._own_global_mask = self.kind(self.config).automatic_global_mask
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the tensors are that it takes."""
        return torch.device("cpu")

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
    ) -> Any:
        """The model's outputs, float32; inner values are left out.

        Args:
            input_ids: (B, S) of int64; (B, N, S) for multiple choice.
            attention_mask, global_attention_mask: of that shape, as for :class:`LongformerModel`.

        Raises:
            LongformerError: what the model itself refuses: ids without a row, other values of a mask, another shape,
                more tokens than positions, and without a global attention mask a row that is no question and context.
        """
        found = self.values(input_ids, attention_mask, global_attention_mask)
        kind: type[Output] = ModelOutput if self.kind is LongformerModel else LogitsOutput
        kind = QuestionAnsweringOutput if "start_logits" in found else kind
        return kind.of(**{name: value for name, value in found.items() if name in kind.names})

    def values(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`forward`: everything that the file gives, by name."""
        self._check(input_ids, attention_mask, global_attention_mask)
        fed = {"input_ids": input_ids.long().cpu().numpy()}
        for (name, number), mask in zip(EVERYWHERE.items(), (attention_mask, global_attention_mask), strict=True):
            given = torch.full((1,) * input_ids.dim(), number) if mask is None else mask.long().cpu()
            fed[name] = given.numpy()
        try:
            found = self.session.run(self.names, fed)
        except Exception as error:  # the library's own have no common class
            raise LongformerError(
                f"ONNX Runtime cannot compute {self.path} for ids of shape {tuple(input_ids.shape)}: "
                f"{in_one_line(error)}; if it lacks memory, give a smaller batch or a shorter text"
            ) from None
        return dict(zip(self.names, map(torch.from_numpy, found), strict=True))

    def _check(self, ids: Tensor, attention_mask: Tensor | None, global_attention_mask: Tensor | None) -> None:
        """Raise LongformerError, as the model would, before ONNX Runtime raises something, or gives anything."""
        dimensions = len(self.session.get_inputs()[0].shape)
        if not isinstance(ids, Tensor) or ids.dim() != dimensions or 0 in ids.shape:
            what = f"has shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"is a {type(ids).__name__}"
            letters = "(B, S)" if dimensions == 2 else "(B, N, S)"
            raise LongformerError(f"input_ids {what}; it must be a tensor of shape {letters}, each at least 1")
        make_tokens(ids, attention_mask, global_attention_mask)
        rows = ids.flatten(0, -2)
        check_ids("input_ids", rows, self.config.vocab_size)
        count_positions(rows, rows, self.config)
        if self._own_global_mask is not None and global_attention_mask is None:
            self._own_global_mask(rows)


def find_onnx(folder: str | Path) -> Path | None:
    """The ``.onnx`` file that ``folder`` is or holds; None if there is none.

    Raises:
        CheckpointError: the folder holds several.
    """
    path = Path(folder)
    if path.suffix == ".onnx" and not path.is_dir():
        return path
    found = sorted(path.glob("*.onnx")) if path.is_dir() else []
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds {', '.join(each.name for each in found)}; name the one to use")
    return found[0] if found else None
