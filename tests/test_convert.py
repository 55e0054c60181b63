"""Conversions: of a checkpoint in old clothes to today's, and of a short encoder to a long one."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_encoder import SHORT, SIZES, short_encoder
from tiny_checkpoint import byte_level_tokenizer, tiny_model

from longformer import (
    CheckpointError,
    ConfigError,
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerModel,
    LongformerTokenizer,
)
from longformer.checkpoints.names import TIED
from longformer.claims import claimed
from longformer.convert import convert, to_long

transformers = pytest.importorskip("transformers")

POSITIONS = "embeddings.position_embeddings.weight"


@pytest.fixture(params=["Bert", "Roberta"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# --- to_long ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_global", [0, 1])
def test_where_the_window_holds_everything_nothing_changes(kind: str, tmp_path: Path, is_global: int) -> None:
    """The same text gives the same states, whether by local projections or by their copies for global attention."""
    short = short_encoder(kind, tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long", max_tokens=64, attention_window=2 * SHORT)
    long = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False)
    ids = torch.randint(5, 40, (2, SHORT))
    ids[1, 11:] = long.config.pad_token_id
    mask = (ids != long.config.pad_token_id).long()
    want = short(ids, mask).last_hidden_state
    got = long(ids, mask, torch.full_like(ids, is_global)).last_hidden_state
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1, :11], want[1, :11], rtol=1e-5, atol=1e-5)


def test_positions_repeat(kind: str, tmp_path: Path) -> None:
    short = short_encoder(kind, tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long", max_tokens=2 * SHORT + 3)
    rows = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False).state_dict()[POSITIONS]
    given = short.state_dict()[POSITIONS]
    used = given[-SHORT:]
    first = given[:-SHORT] if kind == "Roberta" else torch.zeros(1, 16)
    assert torch.equal(rows, torch.cat([first, used, used, used[:3]]))


def test_projections_are_copies(kind: str, tmp_path: Path) -> None:
    short_encoder(kind, tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long")
    model = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False)
    for layer in model.encoder.layer:
        attention = layer.attention.self
        for name in ("query", "key", "value"):
            local, copy = getattr(attention, name), getattr(attention, f"{name}_global")
            assert torch.equal(local.weight, copy.weight)
            assert torch.equal(local.bias, copy.bias)
            with torch.no_grad():
                local.weight.add_(1)
            assert not torch.equal(local.weight, copy.weight)


@pytest.mark.parametrize("window", [8, [8, 32]])
def test_the_config_is_a_longformers(kind: str, tmp_path: Path, window: int | list[int]) -> None:
    short = short_encoder(kind, tmp_path / "short")
    converted = to_long(tmp_path / "short", tmp_path / "long", max_tokens=64, attention_window=window)
    assert converted.folder == tmp_path / "long"
    config = LongformerConfig.from_file(tmp_path / "long" / "config.json")
    tokenizer = LongformerTokenizer.from_pretrained(tmp_path / "short")
    assert config.max_tokens == 64
    assert config.attention_window == ((8, 8) if window == 8 else (8, 32))
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.bos_token_id == tokenizer.cls_token_id
    assert config.sep_token_id == config.eos_token_id == tokenizer.sep_token_id
    for name in (*SIZES, "vocab_size", "layer_norm_eps", "type_vocab_size", "hidden_act", "hidden_dropout_prob"):
        assert getattr(config, name) == getattr(short.config, name), name


def test_the_tokenizer_comes_along_without_limits(kind: str, tmp_path: Path) -> None:
    short_encoder(kind, tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long", max_tokens=64)
    ours = LongformerTokenizer.from_pretrained(tmp_path / "long")
    assert ours.model_max_length == 64
    ids = ours("who is it?", 12 * "me ")["input_ids"]
    cls, sep = ours.cls_token_id, ours.sep_token_id
    assert len(ids) > SHORT
    assert ids[0] == cls
    assert [i for i in ids if i == sep] == [sep] * 3
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "long")
    assert theirs.model_max_length == 64
    assert dict(theirs("who is it?", 12 * "me ")) == {"input_ids": ids, "attention_mask": [1] * len(ids)}


def test_transformers_loads_a_lengthened_encoder(kind: str, tmp_path: Path) -> None:
    short_encoder(kind, tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long", max_tokens=64, attention_window=8, keep=["pooler"])
    model, report = transformers.LongformerModel.from_pretrained(tmp_path / "long", output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    ours = LongformerModel.from_pretrained(tmp_path / "long")
    ids = torch.randint(5, 40, (1, 40))
    torch.testing.assert_close(ours(ids).pooler_output, model(ids).pooler_output, rtol=1e-4, atol=1e-5)


def test_heads_and_poolers_are_dropped_and_listed(kind: str, tmp_path: Path) -> None:
    short_encoder(kind, tmp_path / "short", "ForMaskedLM")
    dropped = to_long(tmp_path / "short", tmp_path / "long").dropped
    head = {"Bert": "cls.", "Roberta": "lm_head."}[kind]
    source = load_file(tmp_path / "short" / "model.safetensors")
    assert dropped == [name for name in source if name.startswith(head)] != []
    assert not any(name.startswith(head) for name in load_file(tmp_path / "long" / "model.safetensors"))


def test_a_head_for_questions_can_be_kept(kind: str, tmp_path: Path) -> None:
    short = short_encoder(kind, tmp_path / "short", "ForQuestionAnswering")
    assert to_long(tmp_path / "short", tmp_path / "long", keep=["qa_outputs"]).dropped == []
    assert json.loads((tmp_path / "long" / "config.json").read_text())["architectures"] == [
        "LongformerForQuestionAnswering"
    ]
    model = LongformerForQuestionAnswering.from_pretrained(tmp_path / "long")
    assert torch.equal(model.qa_outputs.weight, short.qa_outputs.weight)
    with pytest.raises(CheckpointError, match=r"no pooler, classifier to keep; it has qa_outputs"):
        to_long(tmp_path / "short", tmp_path / "other", keep=["pooler", "qa_outputs", "classifier"])


def test_a_head_for_masked_words_can_be_kept(kind: str, tmp_path: Path) -> None:
    """BERT's and RoBERTa's alike: the same text gives the same scores, here and in transformers."""
    short = short_encoder(kind, tmp_path / "short", "ForMaskedLM")
    dropped = to_long(
        tmp_path / "short", tmp_path / "long", max_tokens=64, attention_window=2 * SHORT, keep=["lm_head"]
    )
    assert not [name for name in dropped.dropped if "pooler" not in name]
    long = LongformerForMaskedLM.from_pretrained(tmp_path / "long")
    ids = torch.randint(5, 40, (2, SHORT))
    want = short(ids).logits
    torch.testing.assert_close(long(ids).logits, want, rtol=1e-4, atol=1e-4)
    theirs, report = transformers.LongformerForMaskedLM.from_pretrained(tmp_path / "long", output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    torch.testing.assert_close(theirs(ids).logits, want, rtol=1e-4, atol=1e-4)


def test_a_longformer_is_made_longer_still(kind: str, tmp_path: Path) -> None:
    """Its own global projections stay; positions go on where they were repeated, or are drawn afresh."""
    short_encoder(kind, tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long", max_tokens=SHORT, attention_window=8)
    model = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query_global.weight.add_(1)
    model.save_pretrained(tmp_path / "long")
    to_long(tmp_path / "long", tmp_path / "longer", max_tokens=40, attention_window=[4, 6])
    longer = LongformerModel.from_pretrained(tmp_path / "longer", add_pooling_layer=False)
    assert longer.config.attention_window == (4, 6)
    given, got = model.state_dict(), longer.state_dict()
    assert all(torch.equal(got[name], given[name]) for name in given if name != POSITIONS)
    assert torch.equal(got[POSITIONS][: len(given[POSITIONS])], given[POSITIONS])
    assert torch.equal(got[POSITIONS][-8:], given[POSITIONS][-SHORT : -SHORT + 8])
    to_long(tmp_path / "long", tmp_path / "random", max_tokens=40, attention_window=8, positions="random")
    drawn = LongformerModel.from_pretrained(tmp_path / "random", add_pooling_layer=False).state_dict()[POSITIONS]
    unused = longer.config.pad_token_id + 1
    assert torch.equal(drawn[:unused], given[POSITIONS][:unused])
    assert 0 < float(drawn[unused:].std()) < 0.05 < float(given[POSITIONS].std())
    with pytest.raises(ConfigError, match="positions is 'none'"):
        to_long(tmp_path / "long", tmp_path / "other", positions="none")


def test_a_long_checkpoint_called_roberta(tmp_path: Path) -> None:
    """As the authors' conversion script leaves one. It loads, converts and is made longer with its own projections."""
    short_encoder("Roberta", tmp_path / "short")
    to_long(tmp_path / "short", tmp_path / "long", max_tokens=SHORT, attention_window=8)
    model = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query_global.weight.add_(1)
    model.save_pretrained(tmp_path / "long")
    path = tmp_path / "long" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "roberta"}))
    expected = model.state_dict()
    loaded = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False)
    convert(tmp_path / "long", tmp_path / "converted")
    to_long(tmp_path / "long", tmp_path / "longer", max_tokens=40, attention_window=8)
    converted, longer = (
        LongformerModel.from_pretrained(tmp_path / name, add_pooling_layer=False) for name in ("converted", "longer")
    )
    assert converted.config.to_dict()["model_type"] == "longformer"
    for found in (loaded, converted, longer):
        state = found.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected if name != POSITIONS)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("sliding_chunks", "count.* the tokens of one side; double the windows, and leave attention_mode out"),
        ("tvm", "count.* the tokens of one side; double the windows, and leave attention_mode out"),
        ("sliding_chunks_no_overlap", "whole chunks and their neighbours, which this model does not compute"),
        ("n2", "full attention, so that the model is a RoBERTa, not a Longformer; load it as one"),
        ("n3", "known are tvm, sliding_chunks, .*; correct it, or leave it out"),
        (["n2"], "known are tvm"),
    ],
)
def test_attention_modes_of_allenai_are_refused(mode: object, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"attention_mode {re.escape(repr(mode))} .*{said}"):
        LongformerConfig.from_dict(LongformerConfig().to_dict() | {"attention_mode": mode})


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"model_type": "distilbert"}, ConfigError, "model_type 'distilbert'; only bert, roberta and longformer"),
        ({"model_type": "longformer"}, CheckpointError, r"missing .*query_global"),
        ({"is_decoder": True}, ConfigError, "is a decoder"),
        ({"position_embedding_type": "relative_key"}, ConfigError, "relative_key"),
        ({"hidden_act": "mish"}, ConfigError, "mish"),
        ({"pad_token_id": 3}, CheckpointError, "pad_token_id 3, its tokenizer 0"),
        (
            {"hidden_size": 18},
            CheckpointError,
            r"weights do not fit the config: embeddings\.word_embeddings\.weight is \[\d+, 16\], not",
        ),
        ({"num_hidden_layers": 3}, CheckpointError, "missing encoder.layer.2"),
    ],
)
def test_sources_that_cannot_be_lengthened(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    short_encoder("Bert", tmp_path / "short")
    path = tmp_path / "short" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(error, match=message) as caught:
        to_long(tmp_path / "short", tmp_path / "long")
    assert str(tmp_path / "short") in str(caught.value)
    assert not (tmp_path / "long").exists()


def test_arguments_that_make_no_longformer(tmp_path: Path) -> None:
    short_encoder("Bert", tmp_path / "short")
    with pytest.raises(CheckpointError, match="is the source itself"):
        to_long(tmp_path / "short", tmp_path / "short")
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        to_long(tmp_path / "short", tmp_path / "long", max_tokens=0)
    with pytest.raises(ConfigError, match="lists 3 windows"):
        to_long(tmp_path / "short", tmp_path / "long", attention_window=[8, 8, 8])
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        to_long(tmp_path / "short", tmp_path / "file")
    (tmp_path / "short" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        to_long(tmp_path / "short", tmp_path / "long")
    (tmp_path / "short" / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a list"):
        to_long(tmp_path / "short", tmp_path / "long")


def test_a_source_without_tokenizer_or_positions(tmp_path: Path) -> None:
    short_encoder("Bert", tmp_path / "short")
    path = tmp_path / "short" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"position_embeddings", b"positionless_matter"))
    with pytest.raises(CheckpointError, match="no position embeddings"):
        to_long(tmp_path / "short", tmp_path / "long")
    (tmp_path / "short" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        to_long(tmp_path / "short", tmp_path / "long")


# --- convert ------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint as of 2020, for masked language modelling, with a tokenizer and with settings of its own."""
    folder = tmp_path / "old"
    config = tiny_model(byte_level_tokenizer(folder)).config
    values = {**config.to_dict(), "id2label": {"0": "no", "1": "yes"}}
    model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**values))
    state = {name.replace("longformer.", "roberta."): tensor for name, tensor in model.state_dict().items()}
    state["roberta.embeddings.position_ids"] = torch.arange(66)[None]
    assert state["lm_head.decoder.weight"].data_ptr() == state["roberta.embeddings.word_embeddings.weight"].data_ptr()
    torch.save(state, folder / "pytorch_model.bin")
    config.save(
        folder / "config.json",
        architectures=["LongformerForMaskedLM"],
        torch_dtype="float32",
        id2label=values["id2label"],
    )
    return folder


def test_an_old_checkpoint_in_todays_form(old: Path, tmp_path: Path) -> None:
    converted = convert(old, tmp_path / "new")
    assert converted.folder == tmp_path / "new"
    assert set(converted.dropped) == {"roberta.embeddings.position_ids", *TIED}
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert files == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert (tmp_path / "new" / "vocab.json").read_bytes() == (old / "vocab.json").read_bytes()
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["architectures"] == ["LongformerForMaskedLM"]
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config

    before, after = (
        LongformerModel.from_pretrained(folder, add_pooling_layer=False).state_dict()
        for folder in (old, tmp_path / "new")
    )
    assert all(torch.equal(after[name], before[name]) for name in before)
    model, report = transformers.LongformerForMaskedLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    given = torch.load(old / "pytorch_model.bin")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name.replace("longformer.", "roberta.")]), name


def test_converting_to_another_dtype(old: Path, tmp_path: Path) -> None:
    half, single = tmp_path / "half", tmp_path / "single"
    convert(old, half, dtype=torch.float16)
    assert all(tensor.dtype == torch.float16 for tensor in load_file(half / "model.safetensors").values())
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    LongformerTokenizer.from_pretrained(half)
    convert(half, single, dtype=torch.float32)
    assert json.loads((single / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("how", [convert, to_long])
def test_a_source_is_not_written_over(old: Path, tmp_path: Path, how: Any) -> None:
    before = {path: path.read_bytes() for path in old.iterdir()}
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(old)
    for folder in (old, link):
        with pytest.raises(CheckpointError, match="is the source itself and would be overwritten; name another folder"):
            how(old, folder)
    other.mkdir()
    (other / "config.json").symlink_to(old / "config.json")
    with pytest.raises(CheckpointError, match=r"other/config.json .* is read by this command, and would be overwrit"):
        how(old, other)
    assert {path: path.read_bytes() for path in old.iterdir()} == before
    assert [path.name for path in other.iterdir()] == ["config.json"]


@pytest.mark.parametrize("how", [convert, to_long])
def test_a_folder_that_a_training_writes_into(old: Path, tmp_path: Path, how: Any) -> None:
    with claimed(tmp_path / "a" / "run"):
        with pytest.raises(CheckpointError, match=rf"run is in use by process {os.getpid()}, which writes into it"):
            how(old, tmp_path / "a" / "run")
        assert not (tmp_path / "a" / "run" / "config.json").exists()
    assert not (tmp_path / "a").exists()


def test_weights_that_do_not_fit_are_not_converted(old: Path, tmp_path: Path) -> None:
    state = torch.load(old / "pytorch_model.bin")
    torch.save({**state, "surprise": torch.ones(1)}, old / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"old: .*unexpected surprise"):
        convert(old, tmp_path / "new")
    torch.save({**state, "longformer.embeddings.LayerNorm.bias": torch.ones(16)}, old / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"old: .* are two weights for one place"):
        convert(old, tmp_path / "new")
    del state["roberta.embeddings.LayerNorm.bias"]
    torch.save(state, old / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"old: .*missing embeddings\.LayerNorm\.bias"):
        convert(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()
