"""What the command runs: ``ours:bfloat16``, ``transformers`` and the like, on a model and an input."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from longformer.checkpoints.folder import architectures_of
from longformer.config import LongformerConfig
from longformer.errors import DataError, LongformerError, unknown_name
from longformer.kernels import IMPLEMENTATIONS, choose
from longformer.kernels.compat import compiling_what_can_be
from longformer.models.encoder import LongformerModel
from longformer.models.heads import HEADS, LongformerForQuestionAnswering
from longformer.models.kinds import kind_of
from longformer.parity.exported import record_exported
from longformer.parity.format import Trace
from longformer.parity.layout import Longformer
from longformer.parity.recorder import trace
from longformer.parity.samples import SUFFIX, Sample, Settings
from longformer.parity.targets import as_arguments, targets_of

EXPORTED = ".onnx"
DTYPES = ("float64", "float32", "bfloat16", "float16")
COMPILED = "compiled"
SHORT = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Contender:
    """A way to run a model.

    Args:
        implementation: "ours", "transformers", which takes no ``impl``, or the path of an ``.onnx`` file, which takes
            neither ``dtype`` nor ``impl``.
        dtype: one of ``DTYPES``, or its short name in ``SHORT``.
        impl: implementation of our kernels.
        is_compiled: whether it runs as torch.compile makes it, see :mod:`longformer.parity.compiled`.

    Raises:
        DataError: there is no such dtype or kernel, or it cannot be used here.
    """

    implementation: str
    dtype: str = "float32"
    impl: str = "auto"
    is_compiled: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", SHORT.get(self.dtype, self.dtype))
        if self.dtype not in DTYPES:
            raise DataError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}, in short {', '.join(SHORT)}")
        if self.implementation == "transformers" and self.impl != "auto":
            raise DataError(f"transformers has one kernel, its own: {self.impl!r} chooses among ours")
        if self.impl not in IMPLEMENTATIONS:
            raise DataError(unknown_name(self.impl, IMPLEMENTATIONS, "kernel"))
        try:
            choose(torch.empty(1, 1, 1, 1, dtype=getattr(torch, self.dtype)), impl=self.impl)
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            reason = str(error).removeprefix(f'impl is "{self.impl}", and ')
            raise DataError(f"kernel {self.impl!r} cannot be used: {reason}{self._remedy()}") from None

    def _remedy(self) -> str:
        if self.impl != "triton" or os.environ.get("TRITON_INTERPRET") == "1":
            return ""
        return (
            ". The command runs models on the CPU, where Triton interprets kernels if TRITON_INTERPRET=1; on a GPU, "
            "trace(model, path=...) in Python writes a trace file, which the command compares"
        )

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Read ``ours[:DTYPE][:KERNEL]``, ``transformers[:DTYPE]``, either with ``:compiled``, or ``FILE.onnx``.

        Raises:
            DataError: it is none of these.
        """
        if text.endswith(EXPORTED):
            return cls(text)
        implementation, *parts = text.split(":")
        compiled = [part for part in parts if part == COMPILED]
        parts = [part for part in parts if part != COMPILED]
        dtypes = [part for part in parts if part in DTYPES or part in SHORT]
        kernels = [part for part in parts if part not in dtypes]
        known = implementation in ("ours", "transformers")
        if not known or "" in parts or max(map(len, (dtypes, kernels, compiled))) > 1:
            words = ["ours", "transformers", COMPILED, *DTYPES, *SHORT, *IMPLEMENTATIONS]
            meant = ":".join((difflib.get_close_matches(part, words, n=1) or [part])[0] for part in text.split(":"))
            if meant != text and all(part in words for part in meant.split(":")):
                raise DataError(f"there is no contender {text!r}; did you mean {meant!r}?")
            raise DataError(
                f"{text!r} is neither a trace file ({SUFFIX}) nor an exported model ({EXPORTED}), nor "
                "ours[:DTYPE][:KERNEL][:compiled] nor transformers[:DTYPE][:compiled], "
                f"with DTYPE one of {', '.join(DTYPES)}, in short {', '.join(SHORT)}, and KERNEL one of "
                f"{', '.join(IMPLEMENTATIONS)}"
            )
        try:
            return cls(implementation, (dtypes or ["float32"])[0], (kernels or ["auto"])[0], bool(compiled))
        except DataError as error:
            raise DataError(f"{text!r}: {error}") from None

    @property
    def is_exported(self) -> bool:
        """Whether it is a model in an ``.onnx`` file."""
        return self.implementation.endswith(EXPORTED)

    def check(self, settings: Settings) -> None:
        """Raise DataError where it does not have what is to be recorded."""
        if self.is_exported and (settings.gradients or settings.probabilities):
            raise DataError(f"{self.implementation} has neither gradients nor attention probabilities")
        if self.is_compiled and settings.probabilities:
            raise DataError(
                f"{self.implementation}:compiled has no attention probabilities: they are inside what is compiled"
            )

    def load(self, name_or_path: str) -> nn.Module:
        """The model at ``name_or_path``, a folder or a name on the hub, ready to be run in this way."""
        dtype = getattr(torch, self.dtype)
        if self.implementation == "ours":
            model: nn.Module = load_ours(name_or_path, dtype=dtype, impl=self.impl)
        else:
            model = _load_reference(name_or_path, dtype)
        return torch.compile(model) if self.is_compiled else model  # type: ignore[return-value]


def load_ours(name_or_path: str, *, dtype: torch.dtype = torch.float32, impl: str = "auto") -> Longformer:
    """Our model, of the class that serves the checkpoint."""
    kind, arguments, _ = kind_of(name_or_path)
    return kind.from_pretrained(name_or_path, dtype=dtype, impl=impl, new_head=False, **arguments)


def require_loss(name_or_path: str) -> None:
    """Raise LongformerError for a checkpoint whose model has no loss."""
    if not targets_of(kind_of(name_or_path).model):
        raise LongformerError(
            f"{name_or_path} is a base model, which has no loss; gradients are recorded of models with a head, or in "
            "Python of any loss: trace(model, gradients=True) and Truth(model, inputs, loss=...)"
        )


def _load_reference(name_or_path: str, dtype: torch.dtype) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise LongformerError(
            "transformers is not installed; to compare with it: pip install transformers (the extra test has it)"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = LongformerConfig.from_pretrained(name_or_path)
    own = config.attention_pattern is not None
    narrow = not own and any(config.window(layer)[0] < 2 for layer in range(config.num_hidden_layers))
    for has, what in (
        (config.attention_dilation != 1, "an attention_dilation"),
        (own, "an attention_pattern"),
        (narrow, "an attention_window below 4"),
    ):
        if has:
            raise LongformerError(f"{name_or_path} has {what}, which transformers' Longformer does not compute")
    kind, arguments, _ = kind_of(name_or_path)
    model = getattr(transformers, kind.__name__).from_pretrained(name_or_path, dtype=dtype, **arguments)
    return model.eval()


@contextmanager
def _as_far_as_it_goes(contender: Contender) -> Iterator[None]:
    """While this is open, what torch cannot compile of transformers' model runs as it is written."""
    if not contender.is_compiled or contender.implementation == "ours":
        yield
        return
    with compiling_what_can_be():
        yield


@contextmanager
def model_folder(name_or_path: str, seed: int | None) -> Iterator[str]:
    """A folder or name as it is; for a ``config.json``, a temporary folder with weights drawn from ``seed``.

    The model is the first of the config's ``architectures`` that we have, else one for question answering.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        yield name_or_path
        return
    import tempfile

    config = LongformerConfig.from_file(path)
    known: dict[str, type[Longformer]] = {kind.__name__: kind for kind in HEADS}
    known[LongformerModel.__name__] = LongformerModel
    kinds = [known[name] for name in architectures_of(path) if name in known]
    with tempfile.TemporaryDirectory() as folder:
        draw(config, seed or 0, kinds[0] if kinds else LongformerForQuestionAnswering).save_pretrained(folder)
        yield folder


def draw(config: LongformerConfig, seed: int, kind: type[Longformer] = LongformerForQuestionAnswering) -> Longformer:
    """A model of random weights. None of them is 0 or 1, so that it shows if one is forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=config.initializer_range if weight.dim() > 1 else 0.1, generator=generator)
            if name.lower().endswith("norm.weight"):
                weight.add_(1)
    return model.eval()


def record(
    contender: Contender,
    model: str,
    sample: Sample,
    path: str | Path,
    settings: Settings,
    *,
    only: tuple[str, ...] = (),
    model_name: str | None = None,
) -> Trace:
    """Run ``model``, a folder or a name, and write its trace file, layer by layer.

    Args:
        only: as for :func:`trace`.
        model_name: what the file calls the model; None is ``model``.
    """
    metadata = {"model": model_name or model, "seed": str(settings.seed or 0)}
    if sample.tokens is not None:
        metadata["tokens"] = json.dumps(sample.tokens)
    if contender.is_exported:
        return record_exported(contender.implementation, model, sample.inputs, path, metadata, only=only or None)
    torch.manual_seed(settings.seed or 0)
    module = contender.load(model)
    with (
        torch.set_grad_enabled(settings.gradients),
        _as_far_as_it_goes(contender),
        trace(
            module,
            path=path,
            metadata=metadata,
            only=only or None,
            probabilities=settings.probabilities,
            gradients=settings.gradients,
        ) as recorded,
    ):
        output = module(**as_arguments(kind_of(model).model, sample.inputs, getattr(torch, contender.dtype)))
        if settings.gradients:
            recorded.backward(output.loss)
    return recorded
