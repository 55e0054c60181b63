"""Exported to ONNX: every head, any batch, length and global tokens, memory that is linear, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import CONFIG, PAD, WINDOW, assert_within_float32, build, global_tokens, questions
from tiny_heads import HEADS

from longformer import (
    CheckpointError,
    DataError,
    LongformerError,
    LongformerForCausalLM,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerModel,
    LongformerTokenizer,
)
from longformer.exporting import OnnxModel, check, export, graph
from longformer.exporting.packages import load
from longformer.exporting.runtime import find_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx onnxruntime onnxscript")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime: pip install onnx onnxruntime onnxscript")
pytestmark = pytest.mark.xdist_group("onnx")  # which share what is exported once

INPUTS = ("input_ids", "attention_mask", "global_attention_mask")
SHORT = (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 65)
LONG = (511, 512, 513, 1000, 2048, 4096)


@pytest.fixture(scope="module")
def model() -> LongformerForQuestionAnswering:
    return build(LongformerForQuestionAnswering)


@pytest.fixture(scope="module")
def file(model: LongformerForQuestionAnswering, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("exported") / "model.onnx", check=False)


@pytest.fixture(scope="module")
def exported(file: Path) -> OnnxModel:
    return OnnxModel(file, threads=1)


@pytest.fixture
def same_graph(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of torch's exporter, which takes ten seconds, what it made of this very model before."""

    def made_before(*_: Any) -> tuple[Any, tuple[str, ...]]:
        proto = onnx.load(file)
        del proto.metadata_props[:]
        return proto, tuple(each.name for each in proto.graph.output)

    monkeypatch.setattr(graph, "_graph", made_before)


# ---- the same numbers


@pytest.mark.parametrize("number", ["none", "one", "many"])
@pytest.mark.parametrize("length", SHORT + LONG)
def test_any_length_padding_and_global_tokens(
    exported: OnnxModel, model: LongformerForQuestionAnswering, length: int, number: str
) -> None:
    batch = 1 if length > 1000 else 3
    ids = torch.randint(5, CONFIG.vocab_size, (batch, length))
    mask = torch.arange(length) < torch.tensor([[length], [1 + length // 2], [1]])[:batch]
    assert_within_float32(exported, model, ids.masked_fill(~mask, PAD), mask.long(), global_tokens(mask.long(), number))


def test_padding_in_long_batches(exported: OnnxModel, model: LongformerForQuestionAnswering) -> None:
    ids, mask = questions(2, 1300, (0, 700))
    assert_within_float32(exported, model, ids, mask)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [LongformerModel, *HEADS[1:]])
def test_every_head(cls: type, tmp_path: Path) -> None:
    """With its own global tokens and with given ones; the outputs have the names of the model's."""
    model = build(cls, max_position_embeddings=70)
    exported = OnnxModel(export(model, tmp_path / "model.onnx"), threads=1)
    for length in (9, 40):
        ids, mask = questions(2, length, (0, 2))
        given = global_tokens(mask, "many")
        if cls is LongformerForMultipleChoice:
            ids, mask, given = (torch.stack([x, x.roll(1, 0), x], dim=1) for x in (ids, mask, given))
        assert_within_float32(exported, model, ids, mask)
        assert_within_float32(exported, model, ids, mask, given)


@pytest.mark.slow
def test_windows_and_dilations_by_layer_and_head(tmp_path: Path) -> None:
    changes = {"attention_window": (6, 30), "attention_dilation": (1, (3, 1)), "max_position_embeddings": 202}
    model = build(LongformerForQuestionAnswering, num_hidden_layers=2, **changes)
    exported = OnnxModel(export(model, tmp_path / "model.onnx", check=False), threads=1)
    for length in (1, 2, 5, 31, 64, 65, 200):
        ids = torch.randint(5, CONFIG.vocab_size, (2, length))
        mask = torch.arange(length) < torch.tensor([[length], [1 + length // 3]])
        for number in ("none", "many"):
            assert_within_float32(exported, model, ids, mask.long(), global_tokens(mask.long(), number))


# ---- masks of one number


def test_a_mask_may_be_one_number(file: Path, model: LongformerForQuestionAnswering) -> None:
    """For any caller of ONNX Runtime; question answering sets its own global tokens at -1, in each row others."""
    session = runtime.InferenceSession(str(file))
    ids, mask = questions(3, 50, (0, 0, 0))
    with torch.no_grad():
        expected = model(ids)
    for attention_mask in (np.array([[1]]), mask.numpy()):
        for own in (np.array([[-1]]), np.full((3, 50), -1)):
            found = session.run(None, dict(zip(INPUTS, (ids.numpy(), attention_mask, own), strict=True)))
            for actual, name in zip(found, ("start_logits", "end_logits"), strict=True):
                torch.testing.assert_close(torch.from_numpy(actual), expected[name], rtol=0, atol=1e-5)


def test_masks_that_are_left_out_in_python(exported: OnnxModel, model: LongformerForQuestionAnswering) -> None:
    ids, mask = questions(2, 50, (0, 9))
    assert_within_float32(exported, model, ids)
    assert_within_float32(exported, model, ids, mask)
    assert_within_float32(exported, model, ids, None, global_tokens(mask, "many"))


def test_every_input_is_one_that_each_binding_feeds(file: Path) -> None:
    """An input with a default is none of a session's inputs: Node.js then drops what is fed, without an error."""
    session = runtime.InferenceSession(str(file))
    assert [each.name for each in session.get_inputs()] == list(INPUTS)
    assert not session.get_overridable_initializers()


def test_a_row_whose_mask_is_minus_one_is_the_heads(file: Path, model: LongformerForQuestionAnswering) -> None:
    session = runtime.InferenceSession(str(file))
    ids, _ = questions(2, 50, (0, 0))
    given = global_tokens(ids, "many")
    own = model.automatic_global_mask(ids)
    with torch.no_grad():
        expected = model(ids, global_attention_mask=torch.stack([own[0].long(), given[1]])).start_logits
    given[0] = -1
    (actual, _) = session.run(None, dict(zip(INPUTS, (ids.numpy(), np.array([[1]]), given.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=0, atol=1e-5)


# ---- what is in the file


def largest_tensors(path: Path, length: int) -> dict[str, int]:
    """How many numbers every tensor of the graph has, for a batch of one of so many tokens."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(value for value in proto.graph.value_info if value.name not in known)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(proto.SerializeToString(), options)
    ids, mask = questions(1, length, (0,))
    names = [each.name for each in session.get_outputs()]
    fed = dict(zip(INPUTS, (ids.numpy(), mask.numpy(), np.array([[-1]])), strict=True))
    return {name: x.size for name, x in zip(names, session.run(names, fed), strict=True)}


def test_no_tensor_grows_with_the_square_of_the_length(file: Path) -> None:
    """Every tensor between two operators, and the largest of all is the scores, S·(T + W + G)."""
    proto = onnx.load(file)
    short, long = (largest_tensors(file, length) for length in (1024, 2048))
    assert len(short) > 0.9 * len(proto.graph.node)  # they are nearly all known
    assert {name: n for name, n in long.items() if n > 2.1 * max(short[name], 64)} == {}
    assert max(long.values()) < 2 * 2048 * 128  # by two heads


def test_the_file_says_what_its_sizes_are(file: Path) -> None:
    proto = onnx.load(file)
    shapes = {
        value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "length"],
        "attention_mask": ["batch or 1", "length or 1"],
        "global_attention_mask": ["batch or 1", "length or 1"],
        "start_logits": ["batch", "length"],
        "end_logits": ["batch", "length"],
    }
    assert not any(node.op_type in ("Loop", "If", "Scan") for node in proto.graph.node)
    assert {each.domain for each in proto.opset_import} == {""}  # nothing but ONNX's own operators
    assert b"longformer/models" not in file.read_bytes()  # nor where on this machine the model's code is


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)])
def test_weights_are_stored_in_half(file: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """And computed with in float32, so that the only loss is the weights' own rounding."""
    model = build(LongformerForQuestionAnswering)
    half = export(model, tmp_path / "model.onnx", dtype=dtype, check=False)
    stored = {each.name: each for each in onnx.load(half).graph.initializer}
    kind = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16}[dtype]
    words = [each for name, each in stored.items() if "word_embeddings" in name]
    assert [each.data_type for each in words] == [kind]
    assert not any(each.data_type == onnx.TensorProto.FLOAT and len(each.dims) > 1 for each in stored.values())
    assert half.stat().st_size < file.stat().st_size - CONFIG.max_position_embeddings * CONFIG.hidden_size * 2
    assert_within_float32(OnnxModel(half), model.to(dtype).float(), *questions(2, 90, (0, 30)))


@pytest.mark.usefixtures("same_graph")
def test_int8(model: LongformerForQuestionAnswering, file: Path, tmp_path: Path) -> None:
    small = export(model, tmp_path / "model.onnx", int8=True)
    proto = onnx.load(small)
    products = [node for node in proto.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 8 * CONFIG.num_hidden_layers + CONFIG.num_hidden_layers + 1  # every linear layer
    batch = questions(2, 90, (0, 30))
    for actual, exact in zip(OnnxModel(small)(*batch), OnnxModel(file)(*batch), strict=True):
        assert 0 < (actual - exact).norm() < 0.1 * exact.norm()


@pytest.mark.usefixtures("same_graph")
def test_weights_of_two_gigabytes_stand_beside(
    model: LongformerForQuestionAnswering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "LARGEST", 1000)
    path = export(model, tmp_path / "model.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < (tmp_path / "model.onnx.data").stat().st_size
    assert_within_float32(OnnxModel(path), model, *questions(2, 40, (0, 3)))


@pytest.mark.slow
def test_inner_values_have_the_names_of_the_modules(tmp_path: Path) -> None:
    model = build(LongformerForQuestionAnswering)
    exported = OnnxModel(export(model, tmp_path / "model.onnx", inner_values=True, check=False))
    seen: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        module.register_forward_hook(lambda _, arguments, output, path=path: seen.__setitem__(path, output))
    batch = questions(2, 40, (0, 7))
    with torch.no_grad():
        model(*batch)
    values = exported.values(*batch)
    inner = values.keys() - {"start_logits", "end_logits"}
    assert len(inner) == 9 and "longformer.encoder.layer.0.attention.self.query" in inner
    for name in inner:
        torch.testing.assert_close(values[name], seen[name], rtol=0, atol=1e-5)
    assert list(exported(*batch).keys()) == ["start_logits", "end_logits"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("opset", [graph.LEAST_OPSET, graph.LARGEST_OPSET])
def test_other_versions_of_the_operators(tmp_path: Path, opset: int) -> None:
    model = build(LongformerForMaskedLM, max_position_embeddings=70)
    path = export(model, tmp_path / "model.onnx", opset=opset)
    assert [each.version for each in onnx.load(path).opset_import if not each.domain] == [opset]


# ---- what is refused


def test_a_model_that_is_not_our_own(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    class Other(LongformerForQuestionAnswering):
        pass

    with pytest.raises(
        LongformerError, match=r"Other cannot be exported: of a subclass .*; there are LongformerModel, LongformerFor"
    ):
        export(build(Other), path)
    with pytest.raises(LongformerError, match="LongformerForCausalLM cannot be exported: it computes its relative"):
        export(build(LongformerForCausalLM), path)
    name: Any = "longformer/pretrained"
    with pytest.raises(LongformerError, match="str cannot be exported: load the model first by from_pretrained"):
        export(name, path)
    model = build(LongformerForQuestionAnswering)
    model.qa_outputs.register_parameter("adapter", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(LongformerError, match=r"other parts than .*, such as qa_outputs\.adapter: merge adapters"):
        export(model, path)
    with pytest.raises(LongformerError, match="attention_dilation 5000 is larger than the model's 4096 positions"):
        export(build(LongformerForQuestionAnswering, attention_dilation=5000), path)
    assert not path.exists()


def test_a_path_that_cannot_be_written(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.onnx.*; it is a folder: name a file in it"):
        export(model, tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(DataError, match=r"folder\.onnx is a folder; give a file to write to"):
        export(model, tmp_path / "folder.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file cannot be made: .*; name another folder"):
        export(model, tmp_path / "file" / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 17}, "opset is 17; torch's exporter writes 18 to 23"),
        ({"opset": 99}, "opset is 99; torch's exporter writes 18 to 23"),
        ({"opset": "20"}, "opset is '20'; torch's exporter writes 18 to 23"),
        ({"dtype": torch.float64}, r"dtype is torch\.float64; it must be one of torch\.float32"),
        ({"dtype": torch.float16, "int8": True}, r"dtype is torch\.float16, and int8 quantises float32"),
    ],
)
def test_arguments(
    model: LongformerForQuestionAnswering, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(LongformerError, match=message):
        export(model, tmp_path / "model.onnx", **arguments)


def test_a_package_that_is_missing() -> None:
    with pytest.raises(
        LongformerError,
        match=r"absent cannot be loaded \(.*\); pip install onnx onnxruntime onnxscript, which are the extra onnx",
    ):
        load("absent.part")


@pytest.mark.parametrize(
    ("ids", "masks", "message"),
    [
        ([[0, 5, 60, 2]], {}, "input_ids holds 60; the model has rows 0 to 59"),
        ([[0, -1, 5, 2]], {}, "input_ids holds -1"),
        ([0, 5, 2], {}, r"input_ids has shape \(3,\); it must be a tensor of shape \(B, S\)"),
        ([[]], {}, r"input_ids has shape \(1, 0\)"),
        ([], {}, r"input_ids has shape \(0,\)"),
        ([[0, 5, 2]], {}, "row 0 of input_ids has 1 separators .*; question answering needs three"),
        ([[0, 2, 2, 5, 2]], {"attention_mask": [[1, 1]]}, r"attention_mask has shape \(1, 2\); .*, \(1, 5\)"),
        ([[0, 2, 2, 5, 2]], {"attention_mask": [[1, 1, 3, 1, 1]]}, "attention_mask holds 3; it may hold 0"),
        ([[0, 2, 2, 5, 2]], {"global_attention_mask": [[1, 0, 0, 0, 7]]}, "global_attention_mask holds 7"),
        ([[5] * 4097], {"global_attention_mask": [[0] * 4097]}, "a sequence of 4097 tokens; .* positions for 4096"),
    ],
)
def test_input_that_it_cannot_have(exported: OnnxModel, ids: Any, masks: dict[str, Any], message: str) -> None:
    given = {name: torch.tensor(mask) for name, mask in masks.items()}
    with pytest.raises(LongformerError, match=message):
        exported(torch.tensor(ids, dtype=torch.long), **given)


def test_ids_that_are_no_integers_and_an_empty_batch(exported: OnnxModel) -> None:
    with pytest.raises(LongformerError, match=r"input_ids is torch\.float32; it must be a tensor of int64"):
        exported(torch.tensor([[0.0, 2.0, 2.0, 5.0, 2.0]]))
    with pytest.raises(LongformerError, match=r"input_ids has shape \(0, 5\); .* each at least 1"):
        exported(torch.zeros(0, 5, dtype=torch.long))
    ids: Any = [[0, 2, 2, 5, 2]]
    with pytest.raises(LongformerError, match=r"input_ids is a list; it must be a tensor of shape \(B, S\)"):
        exported(ids)


def test_what_the_runtime_cannot_compute(exported: OnnxModel, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a batch for which there is no memory: a sentence, and no error of the library's own."""
    monkeypatch.setattr(exported, "names", ["absent"])
    with pytest.raises(LongformerError, match=r"ONNX Runtime cannot compute .*model\.onnx for ids of shape \(1, 5\): "):
        exported(torch.tensor([[0, 2, 2, 5, 2]]))
    for threads in (0, -1, "2"):
        with pytest.raises(LongformerError, match=f"threads is {threads!r}; it must be a whole number, at least 1"):
            OnnxModel(file, threads=threads)  # type: ignore[arg-type]


def test_the_check_is_made_around_the_windows_of_the_patterns() -> None:
    model = build(LongformerForQuestionAnswering, num_hidden_layers=2, attention_pattern="window=40/full")
    assert {39, 40, 41} <= {ids.shape[1] for ids, _, _ in check.batches(model)}


def test_files_that_are_none_of_ours(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no file; name the \.onnx file"):
        OnnxModel(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"broken\.onnx cannot be loaded by ONNX Runtime"):
        OnnxModel(tmp_path / "broken.onnx")
    proto = onnx.load(file)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="was not written by this version of longformer export"):
        OnnxModel(tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=r"holds broken\.onnx, other\.onnx; name the one to use"):
        find_onnx(tmp_path)
    assert find_onnx(file) == find_onnx(file.parent) == file and find_onnx(tmp_path / "absent") is None


def test_a_file_that_gives_other_numbers_is_said_to(
    model: LongformerForQuestionAnswering, file: Path, tmp_path: Path
) -> None:
    check.check(file, model)
    proto = onnx.load(file)
    bias = next(each for each in proto.graph.initializer if each.name.endswith("word_embeddings.weight"))
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) * np.float32(1.01)).tobytes()
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(LongformerError, match="ONNX Runtime makes other numbers of it than the model: start_logits"):
        check.check(tmp_path / "other.onnx", model)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(LongformerError):
        check.check(tmp_path / "broken.onnx", model)


def test_a_score_that_happens_to_be_nearly_zero_is_no_other_number(
    model: LongformerForQuestionAnswering, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of two large numbers keeps their rounding, which is much of so small a number."""
    nearly = copy.deepcopy(model)
    one, long = torch.full((1, 1), 7), torch.randint(5, CONFIG.vocab_size, (1, 200))
    batches = [(ids, torch.ones_like(ids), torch.zeros_like(ids)) for ids in (one, long)]
    with torch.no_grad():
        start, end = nearly(*batches[0])
        nearly.qa_outputs.bias -= torch.cat([start[0], end[0]]) - 1e-6
    proto = onnx.load(file)
    bias = next(each for each in proto.graph.initializer if each.name.endswith("qa_outputs.bias"))
    bias.raw_data = nearly.qa_outputs.bias.detach().numpy().tobytes()
    onnx.save(proto, tmp_path / "nearly.onnx")
    monkeypatch.setattr(check, "batches", lambda _: batches)
    check.check(tmp_path / "nearly.onnx", nearly)
    with pytest.raises(LongformerError, match="other numbers of it than the model"):
        check.check(file, nearly)


def test_nothing_is_changed_or_said(
    file: Path, model: LongformerForQuestionAnswering, caplog: pytest.LogCaptureFixture
) -> None:
    """The exporter's own warnings stay inside, and the logging of others is as it was."""
    with caplog.at_level(logging.WARNING), contextlib.suppress(LongformerError), graph._quiet():
        logging.getLogger("torch.onnx").warning("about itself")
    assert not caplog.records and logging.root.manager.disable == logging.NOTSET
    assert all(layer.attention.self.impl == "auto" for layer in model.longformer.encoder.layer)


@pytest.mark.usefixtures("same_graph")
def test_the_tokenizer_stands_beside(tmp_path: Path) -> None:
    from tiny_checkpoint import save_tiny_checkpoint

    source = save_tiny_checkpoint(tmp_path / "source")
    target = tmp_path / "target"
    target.mkdir()
    arguments: dict[str, Any] = {"dtype": torch.float32, "int8": False, "opset": 20, "check": False}
    path = graph.export_checkpoint(str(source), target / "model.onnx", **arguments)
    about = json.loads(runtime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map["longformer.config"])
    assert about.items() <= json.loads((source / "config.json").read_text()).items()
    text = "How old?"
    assert LongformerTokenizer.from_pretrained(target)(text) == LongformerTokenizer.from_pretrained(source)(text)
