"""The trace of an exported model: its outputs and, if it was exported with ``--trace``, its inner values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from longformer.config import LongformerConfig
from longformer.errors import DataError
from longformer.exporting import OnnxModel
from longformer.models.encoder import LongformerModel
from longformer.models.heads import Head, LongformerForMultipleChoice
from longformer.parity.format import FORMAT, INPUT, VERSION, Trace, TraceWriter, describe_model, read_trace
from longformer.parity.layout import choose_layout
from longformer.parity.recorder import Recorder
from longformer.parity.table import BASE
from longformer.parity.targets import as_arguments

TAKEN = ("input_ids", "attention_mask", "global_attention_mask")


def record_exported(
    file: str,
    model: str,
    inputs: Mapping[str, Tensor],
    path: str | Path,
    metadata: Mapping[str, str],
    *,
    only: Collection[str] | None = None,
) -> Trace:
    """Run an ``.onnx`` file and write its trace file, with the names and shapes that our model's has.

    Args:
        file: the ``.onnx`` file.
        model: the folder or name of the model that it was exported from.
        inputs: as of :class:`Sample`.
        path: where to write.
        metadata, only: as for :func:`longformer.parity.trace`.

    Raises:
        DataError: it was exported from a model of another config, or ``inputs`` has what it does not take.
    """
    exported = OnnxModel(file)
    if exported.config != LongformerConfig.from_pretrained(model):
        raise DataError(f"{file} was exported from a model of another config than {model}; name its own as --model")
    other = [name for name, tensor in inputs.items() if name not in TAKEN and bool(tensor.any())]
    if other:
        raise DataError(f"an exported model takes {', '.join(TAKEN)}, and no {other[0]}; leave it out of the input")
    given = {name: inputs[name] for name in TAKEN if name in inputs}
    pooler = {"add_pooling_layer": "pooler_output" in exported.names} if exported.kind is LongformerModel else {}
    with torch.device("meta"):
        structure = exported.kind(exported.config, **pooler).eval()
    recorder = Recorder(structure, choose_layout(structure, None), only=only)
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        **describe_model(structure, digests=False),
        "implementation": "onnx",
        "dtype": "float32",
        "device": "cpu",
        **metadata,
    }
    writer = TraceWriter(path, recorder.possible_names(), about)
    recorder.sink = writer.write
    recorder.input_sink = lambda name, tensor: writer.write(INPUT + name, tensor)
    try:
        recorder.take(given, by_module(exported, exported.values(**as_arguments(exported.kind, given))))
        recorder.check_patterns()
        writer.close({"outputs": json.dumps(exported.names)})
    finally:
        writer.discard()
    return read_trace(path)


def by_module(exported: OnnxModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values by the modules that give them, outputs too."""
    last = f"encoder.layer.{exported.config.num_hidden_layers - 1}"
    if not issubclass(exported.kind, Head):
        named = {"last_hidden_state": last, "pooler_output": "pooler"}
        return {named.get(name, name): value for name, value in values.items()}
    found = {name: value for name, value in values.items() if name.startswith(f"{BASE}.")}
    logits = [value for name, value in values.items() if name not in found]
    joined = logits[0] if len(logits) == 1 else torch.stack(logits, dim=-1)
    # The module gives a score for each text, (B·N, 1), and the model (B, N).
    found[exported.kind.part] = joined.view(-1, 1) if exported.kind is LongformerForMultipleChoice else joined
    return found
