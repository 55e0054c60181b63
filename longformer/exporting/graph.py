"""A model as an ONNX file: one graph for every batch, every length and every number of global tokens.

A caller of the file feeds three inputs. In place of a mask it may feed one number, [[1]] or [[-1]], which the graph
expands to the shape of the ids. The masks are no inputs with a default, though ONNX has these: ONNX Runtime lists such
inputs apart, and its bindings for JavaScript and Java drop or refuse what is fed to them.

Letters: B batch, S sequence.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from longformer.errors import CheckpointError, DataError, LongformerError, in_one_line, quoted
from longformer.exporting import check as checks
from longformer.exporting.packages import load
from longformer.exporting.program import copied, traced
from longformer.exporting.runtime import EVERYWHERE, KEY
from longformer.files import check_outputs, replace_file, write_file
from longformer.kernels import compat
from longformer.models.encoder import LongformerModel
from longformer.models.heads import Head
from longformer.models.kinds import kind_of
from longformer.tokenizer import LongformerTokenizer

SUFFIX = ".onnx"
BESIDE = ".data"  # behind the file's name: its weights, where they are too many for it
LARGEST = 2**31 - 2**24  # bytes of weights in a file: protobuf's messages end at 2 GiB, and the graph needs some
LEAST_OPSET, LARGEST_OPSET = 18, 23  # that torch's exporter writes, and we have tried
OPSET = 20  # the first that has gelu as one operator
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def export(
    model: LongformerModel | Head,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    inner_values: bool = False,
    opset: int = OPSET,
    tokenizer: LongformerTokenizer | None = None,
    check: bool = True,
) -> Path:
    """Write a model as an ONNX file, whose memory is linear in the length as the model's own.

    Its inputs are ``input_ids``, ``attention_mask`` and ``global_attention_mask``, int64 of (B, S), or (B, N, S) for
    multiple choice: any batch, any length up to the model's positions, any global tokens, in each example others. A
    global attention mask has 1 at global tokens, 0 at others, and -1 where the head decides. A mask of one number,
    (1, 1), stands for the same number at every token. Its outputs are the model's, in float32.

    Args:
        model: ours, in any mode; it is not changed.
        path: the file, which ends in ``.onnx``; its folder is made if there is none. Weights of 2 GB or more stand
            beside it, as ``.onnx.data``.
        dtype: precision in which the weights are stored, float32, float16 or bfloat16. The arithmetic is float32: a
            runtime widens the weights when it loads them.
        int8: let ONNX Runtime store the weights of the linear layers in int8, and quantise their inputs as they come.
        inner_values: the results of the modules are outputs too, under the modules' names, for parity's traces.
        opset: version of ONNX's operators, 18 to 23.
        tokenizer: written beside the file, as :meth:`QuestionAnswerer.from_onnx` wants it.
        check: run the file, by onnx's checker and by ONNX Runtime against the model, see :mod:`.check`.

    Returns:
        ``path``.

    Raises:
        LongformerError: a model that cannot be exported, see :func:`export_program`; a package that is not installed;
            an opset that is too old or too new; or the file gives other numbers than the model.
        DataError: ``path`` is a folder, or cannot be written.
    """
    path = Path(path)
    _check_arguments(path, dtype, int8, opset)
    onnx = load("onnx")
    copy = copied(model, "chunked", dtype).float()  # what is rounded already is stored without another loss
    proto, names = _graph(copy, inner_values, opset)
    _describe(proto, copy, names)
    if dtype != torch.float32:
        _store(onnx, proto, dtype)
    if int8:
        proto = quantised(onnx, proto)
    write(onnx, proto, path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path.parent)
    if check:
        # Not the copy itself, whose attention is the graph's own.
        checks.check(path, copied(model, "auto", dtype).float(), exact=not int8)
    return path


def _check_arguments(path: Path, dtype: torch.dtype, int8: bool, opset: int) -> None:
    """Raise what :func:`export` raises before anything is computed."""
    if path.suffix != SUFFIX:
        raise DataError(
            f"{path} must end in {SUFFIX}, which says what it is"
            + (f"; it is a folder: name a file in it, such as {path / ('model' + SUFFIX)}" if path.is_dir() else "")
        )
    if dtype not in DTYPES:
        raise LongformerError(f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES))}")
    if int8 and dtype != torch.float32:
        raise LongformerError(f"dtype is {dtype}, and int8 quantises float32; leave one of them out")
    if not isinstance(opset, int) or not LEAST_OPSET <= opset <= LARGEST_OPSET:
        raise LongformerError(
            f"opset is {quoted(opset)}; torch's exporter writes {LEAST_OPSET} to {LARGEST_OPSET}; choose one "
            "of these numbers"
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        load(package)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be made: {error.strerror}; name another folder") from None
    check_outputs([path])


def _graph(model: Any, inner_values: bool, opset: int) -> tuple[Any, tuple[str, ...]]:
    """What torch's exporter makes of a model, its sizes named; and the names of its outputs."""
    with _quiet(), compat.shapes_not_kept():
        program, names = traced(model, masks_by_token=False, inner_values=inner_values)
        inputs = ["input_ids", *EVERYWHERE]
        try:
            made: Any = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=inputs, output_names=names, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise LongformerError(f"torch {torch.__version__} cannot write this model: {in_one_line(error)}") from error
    proto = made.model_proto
    _name_sizes(proto, len(program.example_inputs[0][0].shape))
    return proto, names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter and the quantiser say of themselves, such as which packages they did not find."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _name_sizes(proto: Any, dimensions: int) -> None:
    """Call the free sizes of the inputs what they are, wherever they stand."""
    meant = ("batch", "choices", "length") if dimensions == 3 else ("batch", "length")
    inputs = {each.name: each.type.tensor_type.shape.dim for each in proto.graph.input}
    names = {dim.dim_param: name for dim, name in zip(inputs["input_ids"], meant, strict=True)}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    for mask in EVERYWHERE:
        for dim, name in zip(inputs[mask], meant, strict=True):
            dim.dim_param = f"{name} or 1"


def _describe(proto: Any, model: Any, names: Sequence[str]) -> None:
    """Write into the file what :class:`OnnxModel` checks its input by, and not where on this machine it comes from."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
    about = {"config": json.dumps(model.config.to_dict()), "class": type(model).__name__, "outputs": json.dumps(names)}
    for key, value in about.items():
        proto.metadata_props.add(key=KEY + key, value=value)


def _store(onnx: Any, proto: Any, dtype: torch.dtype) -> None:
    """Store matrices in another precision, each with a cast behind it, which a runtime computes once."""
    kinds = onnx.TensorProto
    kind = {torch.float16: kinds.FLOAT16, torch.bfloat16: kinds.BFLOAT16}[dtype]
    casts = []
    for weight in proto.graph.initializer:
        if weight.data_type != kinds.FLOAT or len(weight.dims) < 2:
            continue
        values = torch.frombuffer(bytearray(weight.raw_data), dtype=torch.float32).to(dtype)
        name = weight.name
        weight.name, weight.data_type = f"{name}.stored", kind
        weight.raw_data = values.view(torch.int16).numpy().tobytes()
        casts.append(onnx.helper.make_node("Cast", [weight.name], [name], name=f"{name}.cast", to=kinds.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def quantised(onnx: Any, proto: Any) -> Any:
    """The graph with its linear layers in int8, by ONNX Runtime's quantiser."""
    quantization = load("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        write(onnx, proto, before)
        quantization.quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=_bytes_of_weights(proto) > LARGEST,
        )
        return onnx.load(after)


def _bytes_of_weights(proto: Any) -> int:
    return sum(len(weight.raw_data) for weight in proto.graph.initializer)


def write(onnx: Any, proto: Any, path: Path) -> None:
    """Write a file, whole or not at all; weights of 2 GB or more beside it. Raises DataError where that fails."""
    if _bytes_of_weights(proto) <= LARGEST:
        write_file(path, lambda new: new.write_bytes(proto.SerializeToString()))
        return
    data = path.name + BESIDE
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            onnx.save_model(proto, Path(folder) / path.name, save_as_external_data=True, location=data)
            for name in (data, path.name):
                replace_file(path.parent / name, partial((Path(folder) / name).replace))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None


def export_checkpoint(source: str, path: str | Path, *, revision: str | None = None, **arguments: Any) -> Path:
    """As :func:`export`, of the model and tokenizer of a checkpoint, a folder or a name on the hub."""
    _check_arguments(Path(path), arguments["dtype"], arguments["int8"], arguments["opset"])
    kind = kind_of(source, revision=revision)
    model = kind.model.from_pretrained(source, revision=revision, new_head=False, **kind.arguments)
    tokenizer = None
    if Path(source).resolve() != Path(path).parent.resolve():  # else it is there already
        with contextlib.suppress(CheckpointError):  # a checkpoint without one is exported all the same
            tokenizer = LongformerTokenizer.from_pretrained(source, revision=revision)
    return export(model, path, tokenizer=tokenizer, **arguments)
