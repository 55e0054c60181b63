"""What the command compares: ``ours:bfloat16``, ``transformers``, a trace file; on a model and an input."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longformer.checkpoint import read_config, todays_name
from longformer.config import LongformerConfig
from longformer.errors import CheckpointError, DataError, LongformerError
from longformer.heads import LongformerForQuestionAnswering
from longformer.kernels import IMPLEMENTATIONS
from longformer.model import LongformerModel
from longformer.parity.recorder import Trace, read_trace, trace
from longformer.parity.rounding import Longformer
from longformer.tokenizer import LongformerTokenizer
from longformer.weights import find_weights, read_tensors

DTYPES = ("float64", "float32", "bfloat16", "float16")
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Contender:
    """A way to run a model. implementation: "ours" or "transformers"; the latter has no ``impl``."""

    implementation: str
    dtype: str = "float32"
    impl: str = "auto"

    @classmethod
    def parse(cls, text: str) -> Contender:
        """From ``ours[:DTYPE][:KERNEL]`` or ``transformers[:DTYPE]``. Raises DataError for anything else."""
        implementation, *parts = text.split(":")
        dtypes = [part for part in parts if part in DTYPES]
        kernels = [part for part in parts if part not in DTYPES]
        ours = implementation == "ours"
        if (not ours and implementation != "transformers") or len(dtypes) > 1 or len(kernels) > (1 if ours else 0):
            raise DataError(
                f"{text!r} is neither a trace file ({SUFFIX}) nor ours[:DTYPE][:KERNEL] nor transformers[:DTYPE], "
                f"with DTYPE one of {', '.join(DTYPES)} and KERNEL one of {', '.join(IMPLEMENTATIONS)}"
            )
        if kernels and kernels[0] not in IMPLEMENTATIONS:
            raise DataError(f"{text!r}: {kernels[0]!r} is no kernel here; there are {', '.join(IMPLEMENTATIONS)}")
        return cls(implementation, *(dtypes or ["float32"]), *kernels)

    def load(self, name_or_path: str) -> nn.Module:
        """The model at ``name_or_path``, a folder or a name on the hub, to be run this way."""
        dtype = getattr(torch, self.dtype)
        if self.implementation == "ours":
            return load_ours(name_or_path, dtype=dtype, impl=self.impl)
        return _load_reference(name_or_path, dtype)


def kind_of(name_or_path: str) -> tuple[type[LongformerModel] | type[LongformerForQuestionAnswering], dict[str, Any]]:
    """Which class serves a checkpoint, and with what arguments: question answering if it has that head."""
    names = {todays_name(name) for name in read_tensors(find_weights(name_or_path))}
    if any(name.startswith("qa_outputs.") for name in names):
        return LongformerForQuestionAnswering, {}
    return LongformerModel, {"add_pooling_layer": any(name.startswith("longformer.pooler.") for name in names)}


def load_ours(name_or_path: str, *, dtype: torch.dtype = torch.float32, impl: str = "auto") -> Longformer:
    """Our model, of the class that serves the checkpoint."""
    kind, arguments = kind_of(name_or_path)
    return kind.from_pretrained(name_or_path, dtype=dtype, impl=impl, **arguments)


def _load_reference(name_or_path: str, dtype: torch.dtype) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise LongformerError(
            "transformers is not installed; to compare with it: pip install transformers (the extra test has it)"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind, arguments = kind_of(name_or_path)
    model = getattr(transformers, kind.__name__).from_pretrained(name_or_path, dtype=dtype, **arguments)
    return model.eval()


@contextmanager
def model_folder(name_or_path: str, seed: int) -> Iterator[str]:
    """A folder or name as it is; for a ``config.json``, a folder with weights drawn from ``seed``, for the time."""
    path = Path(name_or_path)
    if path.suffix != ".json":
        yield name_or_path
        return
    import tempfile

    config = LongformerConfig.from_file(path)
    with tempfile.TemporaryDirectory() as folder:
        draw(config, seed).save_pretrained(folder)
        yield folder


def draw(config: LongformerConfig, seed: int) -> LongformerForQuestionAnswering:
    """A model of random weights, in which nothing is 0 or 1 so that nothing can be forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = LongformerForQuestionAnswering(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=config.initializer_range if weight.dim() > 1 else 0.1, generator=generator)
            if name.endswith("LayerNorm.weight"):
                weight.add_(1)
    return model.eval()


class Sample(NamedTuple):
    """arguments of a model's forward, and the tokens' texts, (B, S), where a tokenizer is known."""

    inputs: dict[str, Tensor]
    tokens: list[list[str]] | None


def read_sample(path: str, model: str, *, question: str | None, max_tokens: int | None) -> Sample:
    """What a file gives a model.

    A trace file: its inputs. A ``.json`` file: an object of ``input_ids`` and, if wanted, ``attention_mask``,
    ``global_attention_mask``, ``token_type_ids``, ``position_ids``, each a list of rows; shorter rows are padded. Any
    other file: a text, which the model's tokenizer reads, with ``question`` before it for question answering.

    Raises:
        DataError: no such file, or not what its name says.
    """
    config = read_config(model)
    if path.endswith(SUFFIX):
        inputs = read_trace(path).inputs
    elif path.endswith(".json"):
        inputs = _inputs_of_json(path, config)
    else:
        inputs = _inputs_of_text(path, model, question)
    if max_tokens is not None:
        inputs = {name: tensor[:, :max_tokens] for name, tensor in inputs.items()}
    if "global_attention_mask" not in inputs:
        inputs["global_attention_mask"] = _global_mask(inputs["input_ids"], config)
    return Sample(inputs, token_texts(inputs["input_ids"], model))


def _global_mask(ids: Tensor, config: LongformerConfig) -> Tensor:
    """(B, S): the question where a row has three separators, else the first token alone."""
    separator = ids == config.sep_token_id
    question = separator.cumsum(dim=1) == 0
    first = torch.zeros_like(question)
    first[:, 0] = True
    return torch.where(separator.sum(dim=1, keepdim=True) == 3, question, first).long()


def _inputs_of_json(path: str, config: LongformerConfig) -> dict[str, Tensor]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict) or "input_ids" not in values:
        raise DataError(f'{path} must hold an object like {{"input_ids": [[0, 20920, 232, 2]]}}')
    known = ("input_ids", "attention_mask", "global_attention_mask", "token_type_ids", "position_ids")
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise DataError(f"{path} has {', '.join(unknown)}; a model takes {', '.join(known)}")
    lengths = [len(row) for row in _rows(path, "input_ids", values["input_ids"])]
    if not lengths or min(lengths) == 0:
        raise DataError(f"{path}: input_ids has an empty row, or none")
    values.setdefault("attention_mask", [[1] * length for length in lengths])
    fill = {"input_ids": config.pad_token_id, "position_ids": config.pad_token_id}
    inputs = {}
    for name in known:
        if name in values:
            rows = _rows(path, name, values[name])
            if [len(row) for row in rows] != lengths:
                raise DataError(f"{path}: {name} has rows of {[len(row) for row in rows]}, input_ids of {lengths}")
            inputs[name] = torch.tensor([row + [fill.get(name, 0)] * (max(lengths) - len(row)) for row in rows])
    return inputs


def _rows(path: str, name: str, value: Any) -> list[list[int]]:
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if not all(isinstance(row, list) and all(type(entry) is int for entry in row) for row in rows):
        raise DataError(f"{path}: {name} must be a list of lists of whole numbers, one a row")
    return rows


def _inputs_of_text(path: str, model: str, question: str | None) -> dict[str, Tensor]:
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte at offset {error.start}; convert it with iconv") from None
    tokenizer = LongformerTokenizer.from_pretrained(model)
    pair = (text,) if question is None else (question, text)
    encoding = tokenizer(*pair, return_tensors="pt")
    return {"input_ids": encoding["input_ids"], "attention_mask": encoding["attention_mask"]}


def token_texts(ids: Tensor, model: str) -> list[list[str]] | None:
    """(B, S) texts of tokens, None for a model without a tokenizer."""
    try:
        tokenizer = LongformerTokenizer.from_pretrained(model)
        return [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
    except (CheckpointError, DataError):
        return None


def record(
    contender: Contender,
    model: str,
    inputs: Mapping[str, Tensor],
    path: str | Path,
    *,
    seed: int = 0,
    probabilities: bool = False,
    only: tuple[str, ...] = (),
    said_model: str | None = None,
    tokens: list[list[str]] | None = None,
) -> Trace:
    """Run a model and write its trace file, layer by layer."""
    torch.manual_seed(seed)
    module = contender.load(model)
    metadata = {"model": said_model or model, "seed": str(seed)}
    if tokens is not None:
        metadata["tokens"] = json.dumps(tokens)
    versions = {"torch": torch.__version__}
    if contender.implementation == "transformers":
        import transformers

        versions["transformers"] = transformers.__version__
    metadata["versions"] = json.dumps(versions)
    with (
        torch.no_grad(),
        trace(module, path=path, probabilities=probabilities, only=only or None, metadata=metadata) as recorded,
    ):
        module(**inputs)
    return recorded
