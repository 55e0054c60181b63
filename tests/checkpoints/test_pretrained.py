"""Checkpoints of every form that hubs and folders hold, and what is said of those that cannot be used."""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longformer import CheckpointError, ConfigError, LongformerConfig, LongformerForQuestionAnswering, LongformerModel
from longformer.checkpoints.names import RENAMED, fit_names, todays_name

CONFIG = LongformerConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=34,
    attention_window=(4, 8),
)
State = dict[str, Tensor]


def draw(model: torch.nn.Module) -> torch.nn.Module:
    """Every weight at random, biases and LayerNorms too, so that a weight in the wrong place shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


@pytest.fixture
def model() -> LongformerForQuestionAnswering:
    drawn = draw(LongformerForQuestionAnswering(CONFIG))
    assert isinstance(drawn, LongformerForQuestionAnswering)
    return drawn


def assert_equal(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    assert sorted(got) == sorted(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert torch.equal(got[name], want[name]), name


def test_weights_under_another_pattern(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    changed = CONFIG.replace(attention_window=(2, 2), attention_dilation=(1, (1, 3)))
    loaded = LongformerForQuestionAnswering.from_pretrained(tmp_path, config=changed)
    assert loaded.config == changed
    assert_equal(loaded.state_dict(), model.state_dict())
    ids = torch.arange(3, 23)[None]
    globals_ = torch.zeros_like(ids)
    with torch.no_grad():
        got, own = (each(ids, global_attention_mask=globals_).start_logits for each in (loaded, model))
    assert not torch.allclose(got, own)
    loaded.save_pretrained(tmp_path / "changed")
    assert LongformerForQuestionAnswering.from_pretrained(tmp_path / "changed").config == changed
    with pytest.raises(CheckpointError, match=r"weights do not fit the config: .*word_embeddings"):
        LongformerForQuestionAnswering.from_pretrained(tmp_path, config=CONFIG.replace(vocab_size=50))


def shards(state: State, folder: Path, form: str) -> None:
    """Write ``state`` as two shards with their index."""
    stem, suffix = form.split(".")
    names = list(state)
    files = {f"{stem}-{i + 1:05}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, part in files.items():
        content = {name: state[name] for name in part}
        save_file(content, folder / file) if suffix == "safetensors" else torch.save(content, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{form}.index.json").write_text(json.dumps(index))


WRITERS: dict[str, Callable[[State, Path], object]] = {
    "safetensors": lambda state, folder: save_file(state, folder / "model.safetensors"),
    "sharded safetensors": lambda state, folder: shards(state, folder, "model.safetensors"),
    "pytorch": lambda state, folder: torch.save(state, folder / "pytorch_model.bin"),
    "pytorch before 1.6": lambda state, folder: torch.save(
        state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
    "sharded pytorch": lambda state, folder: shards(state, folder, "pytorch_model.bin"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a config and no weights."""
    CONFIG.save(tmp_path / "config.json")
    return tmp_path


# --- what loads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_of_weights_loads(model: LongformerForQuestionAnswering, folder: Path, form: str) -> None:
    WRITERS[form](model.state_dict(), folder)
    loaded = LongformerForQuestionAnswering.from_pretrained(folder)
    assert_equal(loaded.state_dict(), model.state_dict())
    assert loaded.config == CONFIG
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    ids = torch.tensor([[0, 7, 2, 2, 8, 9, 2]])
    assert torch.equal(loaded(ids).start_logits, model(ids).start_logits)


def test_safetensors_are_preferred(model: LongformerForQuestionAnswering, folder: Path) -> None:
    WRITERS["safetensors"](model.state_dict(), folder)
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    (folder / "model.safetensors.index.json").write_bytes(b"not read")
    assert_equal(LongformerForQuestionAnswering.from_pretrained(str(folder)).state_dict(), model.state_dict())


def test_saving_and_loading_changes_nothing(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = LongformerForQuestionAnswering.from_pretrained(tmp_path / "a" / "b")
    assert_equal(loaded.state_dict(), model.state_dict())
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "a" / "b" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["architectures"] == ["LongformerForQuestionAnswering"]
    assert config["dtype"] == "float32"


def test_saved_files_are_as_readable_as_any(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "any").touch()
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, modes


@pytest.mark.parametrize("form", WRITERS)
def test_changed_weights_leave_the_file_alone(model: LongformerForQuestionAnswering, folder: Path, form: str) -> None:
    WRITERS[form](model.state_dict(), folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    first = LongformerForQuestionAnswering.from_pretrained(folder)
    second = LongformerForQuestionAnswering.from_pretrained(folder)
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    sum(parameter.sum() for parameter in first.parameters()).backward()
    optimizer.step()
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name) - 1), name
    assert_equal(second.state_dict(), model.state_dict())
    del first, second, optimizer
    gc.collect()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_is_saved_into_the_folder_it_came_from(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    first, second = (LongformerForQuestionAnswering.from_pretrained(tmp_path) for _ in range(2))
    with torch.no_grad():
        first.qa_outputs.weight.add_(1)
    first.save_pretrained(tmp_path)
    assert_equal(second.state_dict(), model.state_dict())
    assert_equal(LongformerForQuestionAnswering.from_pretrained(tmp_path).state_dict(), first.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(model: LongformerForQuestionAnswering, tmp_path: Path, stored: torch.dtype) -> None:
    model.to(stored).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    default = LongformerForQuestionAnswering.from_pretrained(tmp_path)
    assert_equal(default.state_dict(), {name: tensor.float() for name, tensor in model.state_dict().items()})
    asked = LongformerForQuestionAnswering.from_pretrained(tmp_path, dtype=stored)
    assert_equal(asked.state_dict(), model.state_dict())


def test_non_contiguous_and_shared_weights_are_saved(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    attention = model.longformer.encoder.layer[0].attention.self
    with torch.no_grad():
        attention.query.weight = torch.nn.Parameter(attention.query.weight.t())
        attention.key.weight = torch.nn.Parameter(attention.value.weight)
    model.save_pretrained(tmp_path)
    assert_equal(load_file(tmp_path / "model.safetensors"), model.state_dict())


# --- names --------------------------------------------------------------------------------------------------------


def of_2020(state: State) -> State:
    """As released checkpoints have it: position ids, and a pooler and heads that question answering does not use."""
    return {
        "longformer.embeddings.position_ids": torch.arange(34)[None],
        **state,
        "longformer.pooler.dense.weight": torch.zeros(16, 16),
        "longformer.pooler.dense.bias": torch.zeros(16),
        "lm_head.bias": torch.zeros(40),
    }


def respelt(state: State, start: str) -> State:
    """As the original repository and TensorFlow's conversions have it."""
    names = {name: name.replace("longformer.", start, 1) for name in state}
    for old, new in RENAMED.items():
        if old.startswith("*"):
            names = {name: spelt.replace(new[1:], old[1:]) for name, spelt in names.items()}
    return {names[name]: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("start", ["longformer.", "roberta.", ""])
def test_names_of_other_years(
    model: LongformerForQuestionAnswering, folder: Path, start: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = respelt(of_2020(model.state_dict()), start)
    assert f"{start}encoder.layer.1.output.LayerNorm.gamma" in state
    save_file(state, folder / "model.safetensors")
    with caplog.at_level(logging.INFO, logger="longformer"):
        loaded = LongformerForQuestionAnswering.from_pretrained(folder)
    assert_equal(loaded.state_dict(), model.state_dict())
    for name in ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"):
        assert f"{start}{name}" in caplog.text
    assert "lm_head.bias" in caplog.text

    base = LongformerModel.from_pretrained(folder)
    assert_equal(
        base.state_dict(),
        model.longformer.state_dict()
        | {"pooler.dense.weight": torch.zeros(16, 16), "pooler.dense.bias": torch.zeros(16)},
    )


def test_todays_names_stay() -> None:
    names = LongformerForQuestionAnswering(CONFIG).state_dict()
    assert [todays_name(name) for name in names] == list(names)
    assert all(todays_name(new) == new for new in RENAMED.values())


def test_names_are_accounted_for() -> None:
    chosen, dropped = fit_names(
        ["roberta.encoder.x.LayerNorm.beta", "embeddings.position_ids", "cls.predictions.bias"],
        ["encoder.x.LayerNorm.bias"],
    )
    assert chosen == {"encoder.x.LayerNorm.bias": "roberta.encoder.x.LayerNorm.beta"}
    assert dropped == ["embeddings.position_ids", "cls.predictions.bias"]
    with pytest.raises(CheckpointError, match=r"roberta\.encoder\.x and encoder\.x are two weights for one place"):
        fit_names(["roberta.encoder.x", "encoder.x"], ["encoder.x"])


def test_weights_that_share_memory_in_the_file_are_parted(model: LongformerForQuestionAnswering, folder: Path) -> None:
    """Scripts of 2020 that made RoBERTa long saved one tensor under both names."""
    state = model.state_dict()
    query, query_global = (
        f"longformer.encoder.layer.0.attention.self.{kind}.weight" for kind in ("query", "query_global")
    )
    state[query_global] = state[query]
    torch.save(state, folder / "pytorch_model.bin")
    loaded = LongformerForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        loaded.get_parameter(query).add_(1)
    assert torch.equal(loaded.get_parameter(query_global), state[query])


def repacked(folder: Path, kind: int, change: Callable[[str, bytes], bytes]) -> None:
    """Write the zip file ``pytorch_model.bin`` of a folder anew, its entries changed."""
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", kind) as new:
        for name, content in entries.items():
            new.writestr(name, change(name, content))


def test_deflated_weights(model: LongformerForQuestionAnswering, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    repacked(folder, zipfile.ZIP_DEFLATED, lambda name, content: content)
    assert_equal(LongformerForQuestionAnswering.from_pretrained(folder).state_dict(), model.state_dict())


@pytest.mark.parametrize("length", [16, -4])
def test_a_record_that_is_shorter_than_its_tensor(
    model: LongformerForQuestionAnswering, folder: Path, length: int
) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    repacked(folder, zipfile.ZIP_STORED, lambda name, x: x[:length] if name.endswith("data/0") else x)
    assert "cut short, corrupt, or no weights" in load(folder)


def test_a_file_that_is_written_over_keeps_the_model(model: LongformerForQuestionAnswering, folder: Path) -> None:
    """``torch.save`` truncates the file that it writes."""
    path = folder / "pytorch_model.bin"
    torch.save(model.state_dict(), path)
    loaded = LongformerForQuestionAnswering.from_pretrained(folder)
    torch.save({name: tensor + 1 for name, tensor in loaded.state_dict().items()}, path)
    path.write_bytes(b"")
    assert_equal(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "strange",
    [
        torch.empty(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
    ids=["meta", "sparse", "quantised"],
)
def test_tensors_without_plain_numbers(model: LongformerForQuestionAnswering, folder: Path, strange: Tensor) -> None:
    torch.save({**model.state_dict(), "qa_outputs.bias": strange}, folder / "pytorch_model.bin")
    assert "qa_outputs.bias" in load(folder)


# --- heads and poolers --------------------------------------------------------------------------------------------


def test_a_base_checkpoint_under_question_answering(model: LongformerForQuestionAnswering, folder: Path) -> None:
    model.longformer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"missing qa_outputs\.weight, qa_outputs\.bias .*new_head=True"):
        LongformerForQuestionAnswering.from_pretrained(folder, new_head=False)
    loaded = LongformerForQuestionAnswering.from_pretrained(folder, new_head=True)
    assert_equal(loaded.longformer.state_dict(), model.longformer.state_dict())
    assert torch.equal(loaded.qa_outputs.bias, torch.zeros(2))
    assert 0 < loaded.qa_outputs.weight.std() < 2 * CONFIG.initializer_range


def test_a_new_head_replaces_the_old(model: LongformerForQuestionAnswering, folder: Path) -> None:
    model.save_pretrained(folder)
    loaded = LongformerForQuestionAnswering.from_pretrained(folder, new_head=True, dtype=torch.bfloat16)
    assert loaded.qa_outputs.weight.dtype == torch.bfloat16
    assert not torch.equal(loaded.qa_outputs.weight.float(), model.qa_outputs.weight)
    with pytest.raises(CheckpointError, match="LongformerModel has no head"):
        LongformerModel.from_pretrained(folder, new_head=True, add_pooling_layer=False)


def test_a_base_model_without_pooler(model: LongformerForQuestionAnswering, folder: Path) -> None:
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"missing pooler\.dense\.weight.*add_pooling_layer=False"):
        LongformerModel.from_pretrained(folder, new_head=False)
    loaded = LongformerModel.from_pretrained(folder, add_pooling_layer=False)
    assert_equal(loaded.state_dict(), model.longformer.state_dict())


# --- transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LongformerForQuestionAnswering", "LongformerModel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transformers_loads_what_we_save(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    ours = draw({"LongformerModel": LongformerModel}.get(name, LongformerForQuestionAnswering)(CONFIG)).to(dtype)
    ours.save_pretrained(tmp_path)
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    assert_equal(dict(theirs.state_dict()), ours.state_dict())
    assert LongformerConfig.from_dict(theirs.config.to_dict()) == CONFIG


@pytest.mark.parametrize("name", ["LongformerForQuestionAnswering", "LongformerModel"])
def test_we_load_what_transformers_saves(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = draw(getattr(transformers, name)(transformers.LongformerConfig(**CONFIG.to_dict())))
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = {"LongformerModel": LongformerModel}.get(name, LongformerForQuestionAnswering).from_pretrained(tmp_path)
    assert_equal(ours.state_dict(), dict(theirs.state_dict()))


# --- memory -------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
import torch
from longformer import LongformerForQuestionAnswering

def resident(kind):  # MB
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(kind))

before = resident("VmRSS")
model = LongformerForQuestionAnswering.from_pretrained(sys.argv[1])
for parameter in model.parameters():
    parameter.sum()  # every page is in use now
weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20
print(weights, resident("VmHWM") - before)
"""


@pytest.fixture
def base_weights(tmp_path: Path) -> Iterator[State]:
    """Weights of the released base model's shape; what they were written to is removed at once, being large."""
    with torch.device("meta"):
        shapes = LongformerForQuestionAnswering(LongformerConfig()).state_dict()
    LongformerConfig().save(tmp_path / "config.json")
    yield {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["safetensors", "pytorch"])
def test_loading_base_takes_little_more_than_its_weights(base_weights: State, tmp_path: Path, form: str) -> None:
    WRITERS[form](base_weights, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    weights, peak = map(float, done.stdout.split())
    print(f"peak {peak:.0f} MB for {weights:.0f} MB of weights")
    assert 560 < weights < 580
    assert peak < 1.3 * weights


# --- what does not load -------------------------------------------------------------------------------------------


def load(folder: Path) -> str:
    """The one message with which loading is refused."""
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as caught:
        warnings.simplefilter("error")
        LongformerForQuestionAnswering.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_empty_folder(tmp_path: Path) -> None:
    assert f"{tmp_path} has no config.json" in load(tmp_path)


def test_a_folder_without_weights(folder: Path) -> None:
    assert f"{folder} has no weights: looked for model.safetensors, " in load(folder)


@pytest.mark.parametrize("file, framework", [("tf_model.h5", "TensorFlow"), ("flax_model.msgpack", "Flax")])
def test_weights_of_another_framework(folder: Path, file: str, framework: str) -> None:
    (folder / file).write_bytes(b"x")
    assert f"has weights for {framework} alone ({file})" in load(folder)


@pytest.mark.parametrize("values", [{"model_type": "roberta"}, {"model_type": "bert"}, {}])
def test_a_config_of_another_architecture(folder: Path, values: dict[str, str]) -> None:
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config\.json.*model_type.*--to-long"):
        LongformerForQuestionAnswering.from_pretrained(folder)


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("kept", [0, 6, 100, 0.5, 0.99])
def test_truncated_weights(model: LongformerForQuestionAnswering, folder: Path, form: str, kept: float) -> None:
    WRITERS[form](model.state_dict(), folder)
    path = max(path for path in folder.iterdir() if path.suffix != ".json")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    message = load(folder)
    assert f"{path} (" in message
    assert "cut short, corrupt, or no weights" in message


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html>" + 100 * b"x", 200 * b"\x00", 200 * b"\xff", b"PK\x03\x04" + 50 * b"x"]
)
def test_files_that_are_no_weights(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert "cut short, corrupt, or no weights" in load(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer(folder: Path, file: str) -> None:
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 600000000\n")
    assert "git lfs pull" in load(folder)


@pytest.mark.parametrize("form", ["sharded safetensors", "sharded pytorch"])
def test_a_missing_shard(model: LongformerForQuestionAnswering, folder: Path, form: str) -> None:
    WRITERS[form](model.state_dict(), folder)
    shard = next(path for path in folder.iterdir() if "00002-of" in path.name)
    shard.unlink()
    assert f"lacks {shard.name}" in load(folder)


def test_shards_that_disagree_with_each_other_or_the_index(model: LongformerForQuestionAnswering, folder: Path) -> None:
    state = model.state_dict()
    shards(state, folder, "model.safetensors")
    save_file(state, folder / "model-00002-of-00002.safetensors")
    assert "a second time" in load(folder)
    save_file({}, folder / "model-00002-of-00002.safetensors")
    assert "missing" in load(folder)


@pytest.mark.parametrize(
    "index",
    ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}',
     '{"weight_map": {"a": "../elsewhere/model.safetensors"}}', '{"weight_map": {"a": "/elsewhere.safetensors"}}'],
)  # fmt: skip
def test_a_broken_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in load(folder)


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "before 1.6", "pickle"])
def test_a_pickle_that_wants_to_run_code(folder: Path, form: str) -> None:
    harm = folder / "harm"
    path = folder / "pytorch_model.bin"
    if form == "pickle":
        path.write_bytes(pickle.dumps({"a": Malice(harm)}))
        pickle.loads(path.read_bytes())
    else:
        torch.save({"a": Malice(harm)}, path, _use_new_zipfile_serialization=form == "zip")
        torch.load(path, weights_only=False)
    harm.rmdir()  # it was made, so that the trap works
    message = load(folder)
    assert not harm.exists()
    assert str(path) in message
    if form != "pickle":
        assert "its pickle asks for posix.mkdir, which could run code" in message
    assert "weights_only" not in message


@pytest.mark.parametrize("content", [[torch.ones(1)], {"weights": {"a": torch.ones(1)}}, torch.ones(1), {"a": 1}])
def test_a_pickle_that_is_no_state_dict(folder: Path, content: object) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    assert "no plain state dict" in load(folder)


def test_missing_and_unexpected_weights_are_named(model: LongformerForQuestionAnswering, folder: Path) -> None:
    state = model.state_dict()
    state["longformer.encoder.layer.0.attention.self.querry.weight"] = state.pop(
        "longformer.encoder.layer.0.attention.self.query.weight"
    )
    save_file(state, folder / "model.safetensors")
    message = load(folder)
    assert str(folder) in message
    assert "missing longformer.encoder.layer.0.attention.self.query.weight;" in message
    assert message.endswith("unexpected longformer.encoder.layer.0.attention.self.querry.weight")


def test_many_missing_weights_are_counted(model: LongformerForQuestionAnswering, folder: Path) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")
    CONFIG.replace(num_hidden_layers=3, attention_window=4).save(folder / "config.json")
    a_layer = len(model.longformer.encoder.layer[0].state_dict())
    message = load(folder)
    assert message.count("longformer.encoder.layer.2.") == 8
    assert message.endswith(f" and {a_layer - 8} more")


def test_wrongly_shaped_weights_are_named(model: LongformerForQuestionAnswering, folder: Path) -> None:
    state = model.state_dict()
    state["longformer.embeddings.word_embeddings.weight"] = torch.zeros(41, 16)
    state["qa_outputs.bias"] = torch.zeros(3)
    save_file(state, folder / "model.safetensors")
    message = load(folder)
    assert "longformer.embeddings.word_embeddings.weight is [41, 16], not [40, 16]" in message
    assert "qa_outputs.bias is [3], not [2]" in message


def test_weights_that_are_not_floating_point(model: LongformerForQuestionAnswering, folder: Path) -> None:
    save_file(model.state_dict() | {"qa_outputs.bias": torch.zeros(2, dtype=torch.int8)}, folder / "model.safetensors")
    assert "qa_outputs.bias (torch.int8)" in load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, "int4", "float33"])
def test_a_dtype_that_is_none(model: LongformerForQuestionAnswering, tmp_path: Path, dtype: object) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"dtype is .*torch\.float32"):
        LongformerForQuestionAnswering.from_pretrained(tmp_path, dtype=dtype)  # type: ignore[arg-type]


def test_saving_where_a_file_is(model: LongformerForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"file is a file; a checkpoint is saved into a folder"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .*below: NotADirectoryError"):
        model.save_pretrained(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("folder", "error"), [("", "folder is ''; give a folder"), ("a\0b", "a NUL character")])
def test_saving_into_no_folder(model: LongformerForQuestionAnswering, folder: str, error: str) -> None:
    with pytest.raises(CheckpointError, match=error):
        model.save_pretrained(folder)


def test_a_save_that_fails_leaves_what_was_there(
    model: LongformerForQuestionAnswering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(_tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longformer.checkpoints.folder.save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
