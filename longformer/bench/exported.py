"""``bench onnx``: a model that was exported to ONNX beside ours and transformers': size, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longformer.bench import model
from longformer.bench.machine import dtype_name
from longformer.bench.memory import measure_peaks
from longformer.bench.problem import make_document
from longformer.bench.timing import Case, Contender, Measurement, Record, say
from longformer.config import LongformerConfig
from longformer.exporting import OnnxModel, export, graph
from longformer.exporting.packages import load
from longformer.models.heads import LongformerForQuestionAnswering

FLOAT32, INT8 = "ONNX Runtime float32", "ONNX Runtime int8"
TOLERANCES = {FLOAT32: None, INT8: 0.3}  # how far off a kind of file may be: random weights round badly


def write(config: LongformerConfig, folder: Path) -> dict[str, Path]:
    """The model with the random weights of ``bench model``, in a file of each kind."""
    say(f"{FLOAT32}: exporting")
    whole = export(model.our_model(config), folder / "float32.onnx", check=False)
    say(f"{INT8}: quantising")
    onnx, small = load("onnx"), folder / "int8.onnx"
    graph.write(onnx, graph.quantised(onnx, onnx.load(whole)), small)  # as export does, from the graph that is there
    return {FLOAT32: whole, INT8: small}


def sizes(config: LongformerConfig, files: Mapping[str, Path]) -> Record:
    """Bytes of the files, beside those of our weights."""
    with torch.device("meta"):
        ours = LongformerForQuestionAnswering(config)
    weights = sum(weight.nbytes for weight in ours.parameters())
    found = {model.label("longformer", "float32"): weights}
    found |= {name: sum(part.stat().st_size for part in _parts(path)) for name, path in files.items()}
    measurements = [Measurement(name, [float(size)]) for name, size in found.items()]
    return Record("size of the weights", {"config": config.to_dict()}, measurements, unit="B")


def _parts(path: Path) -> list[Path]:
    """A file and what stands beside it."""
    return sorted(path.parent.glob(f"{path.name}*"))


def contender(name: str, path: Path, ids: Tensor, threads: int) -> Contender:
    """A forward pass over one document, by ONNX Runtime."""
    exported = OnnxModel(path, threads=threads)
    return Contender(name, partial(model.logits, exported, input_ids=ids), tolerance=TOLERANCES[name])


def cases(
    config: LongformerConfig, files: Mapping[str, Path], *, lengths: Sequence[int], global_tokens: int
) -> list[Case]:
    """One forward pass at each length: ours, the files, and transformers in eager mode."""
    models, threads = model.Models(config), torch.get_num_threads()
    found = []
    for tokens in lengths:
        ids = make_document(config, tokens, global_tokens)
        builders = {
            model.label("longformer", "float32"): partial(model.contender, models, "longformer", "float32", ids),
            **{name: partial(contender, name, path, ids, threads) for name, path in files.items()},
            model.label(model.TRANSFORMERS, "float32"): partial(
                model.contender, models, model.TRANSFORMERS, "float32", ids
            ),
        }
        settings = {
            "shape": [1, tokens],
            "global_tokens": global_tokens,
            "dtype": dtype_name(torch.float32),
            "threads": threads,
            "config": config.to_dict(),
        }
        name = f"exported model, {tokens} tokens, {global_tokens} global"
        found.append(Case(name, settings, torch.float32, builders, items=(tokens, "tokens")))
    return found


def peaks(
    config: LongformerConfig, files: Mapping[str, Path], *, tokens: int, global_tokens: int, rounds: int
) -> Record:
    """Of a forward pass, above the weights, each in a process of its own."""
    common = {"config": config.to_dict(), "tokens": tokens, "global_tokens": global_tokens}
    tasks: dict[str, dict[str, Any]] = {
        model.label(name, "float32"): {"what": "model forward", "name": name, "variant": "float32", **common}
        for name in ("longformer", model.TRANSFORMERS)
    }
    for name, path in files.items():
        tasks[name] = {"what": "exported forward", "name": name, "file": str(path), **common}
    settings = {"dtype": "float32", "shape": [1, tokens], **common}
    return measure_peaks(f"memory of an exported model, {tokens} tokens", settings, tasks, rounds)
