"""transformers' own tests of its Longformer, as far as they are about a model: each as a test of ours, in our words.

Which they are, which test of ours checks the same, and what is left out and why, is in ``support/their_tests.py``.
"""

from __future__ import annotations

import ast
import json
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from head_cases import CASES, HeadCase, Inputs, answers, question_batch
from safetensors.torch import load_file
from their_tests import LEFT_OUT, MAPPED, their_names
from tiny_heads import build_class
from tiny_models import CONFIG, PAD
from torch import Tensor, nn

from longformer import CheckpointError, LongformerConfig, LongformerError, LongformerModel
from longformer.checkpoints.names import TIED
from longformer.kernels import Tokens
from longformer.models.attention import LongformerSelfAttention, attentions_to_dense
from longformer.models.heads import HEADS

TESTS = Path(__file__).parents[1]
KINDS = (LongformerModel, *HEADS)


# ---- the list


@cache
def functions_in(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_the_list_is_complete() -> None:
    """Each of their tests is matched by one entry, and each entry matches one at least."""
    patterns = [name for names in MAPPED.values() for name in names]
    patterns += [name for names in LEFT_OUT.values() for name in names]
    names = their_names()
    by_name = {name: [pattern for pattern in patterns if fnmatchcase(name, pattern)] for name in names}
    exact = {name: [pattern for pattern in found if pattern == name] or found for name, found in by_name.items()}
    assert {name: found for name, found in exact.items() if len(found) != 1} == {}
    assert set(patterns) == {found[0] for found in exact.values()}


def test_the_tests_that_it_names_are_there() -> None:
    for path, names in MAPPED.items():
        missing = {ours for entry in names.values() for ours in entry} - functions_in(path)
        assert not missing, path


# ---- what they check


def config_of(kind: type) -> LongformerConfig:
    return CONFIG if getattr(kind, "fixed_labels", None) else CONFIG.replace(num_labels=3)


def build(kind: type, *, dtype: torch.dtype = torch.float32) -> Any:
    return build_class(kind, config_of(kind), dtype=dtype)


def with_answers(kind: Any) -> Inputs:
    """The batch of :func:`question_batch`, and answers for a head."""
    inputs = question_batch(CONFIG, kind)
    return inputs | answers(HeadCase(kind, {}), config_of(kind), inputs)


def tensors_in(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [tensor for entry in value for tensor in tensors_in(entry)]


def assert_same(model: Any, other: Any, inputs: Inputs) -> None:
    with torch.no_grad():
        for x, y in zip(tensors_in(model(**inputs)), tensors_in(other(**inputs)), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


def test_a_config_is_written_and_read(tmp_path: Path) -> None:
    """And changed: the number of labels, their names, and one by one what a model is asked for."""
    config = CONFIG.replace(num_labels=3, problem_type="regression", attention_window=(8, 4))
    config.save(tmp_path / "config.json")
    assert LongformerConfig.from_file(tmp_path / "config.json") == config
    assert LongformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    theirs = transformers.LongformerConfig.from_pretrained(tmp_path)
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "num_labels", "id2label"):
        assert getattr(theirs, name) == getattr(config, name)
    assert list(theirs.attention_window) == list(config.attention_window)
    assert config.replace(num_labels=2).id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_a_config_without_what_has_a_default() -> None:
    values = CONFIG.to_dict()
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "sep_token_id"):
        del values[name]
    for kind in KINDS:
        model = kind(LongformerConfig.from_dict(values)).eval()
        assert all(bool(x.isfinite().all()) for x in tensors_in(model(**question_batch(CONFIG, kind))))


def test_shapes() -> None:
    """With every mask, and with ids alone."""
    model, inputs = build(LongformerModel), question_batch(CONFIG, LongformerModel)
    ids = inputs["input_ids"]
    for given in (inputs | {"token_type_ids": ids % 2}, inputs, {"input_ids": ids}):
        output = model(**given)
        assert output.last_hidden_state.shape == (4, 40, 32) and output.pooler_output.shape == (4, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_ones_is_none(kind: type) -> None:
    inputs = question_batch(CONFIG, kind)
    ids, model = inputs["input_ids"], build(kind)
    for x, y in zip(model(ids), model(ids, attention_mask=torch.ones_like(ids)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_each_other(kind: type) -> None:
    """A text alone, without the padding that a longer one beside it brings, has the same results."""
    model, inputs = build(kind, dtype=torch.float64), question_batch(CONFIG, kind)
    together = model(**inputs)
    for row in range(len(inputs["input_ids"])):
        length = int(inputs["attention_mask"][row].sum(-1).max())
        alone = model(**{name: tensor[row : row + 1, ..., :length] for name, tensor in inputs.items()})
        for x, y in zip(alone, together, strict=True):
            wanted = y[row : row + 1]
            wanted = wanted[:, :length] if wanted.dim() > 1 and wanted.shape[1] == 40 else wanted
            real = inputs["attention_mask"][row : row + 1, ..., :length].bool()
            if wanted.shape[1:2] == (length,) and real.dim() == 2:
                x, wanted = x[real], wanted[real]
            torch.testing.assert_close(x, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("places", [[], [2], [1, 2]], ids=str)
def test_a_layer_of_attention(places: list[int]) -> None:
    """One module of theirs beside ours, with -10000 at padding and 10000 at global tokens, as theirs has it."""
    config = CONFIG.replace(hidden_size=8, num_attention_heads=2, attention_window=4, attention_probs_dropout_prob=0.0)
    ours = LongformerSelfAttention(config, 0).eval()
    their_config = transformers.LongformerConfig.from_dict(config.to_dict())
    theirs = transformers.models.longformer.modeling_longformer.LongformerSelfAttention(their_config, 0).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours.load_state_dict(theirs.state_dict())
    hidden, mask = torch.randn(2, 4, 8), torch.zeros(2, 4)
    mask[0, places], mask[1, -1:] = 10000.0, -10000.0
    keep, is_global = mask >= 0, mask > 0
    arguments = {
        "attention_mask": mask,
        "is_index_masked": ~keep,
        "is_index_global_attn": is_global,
        "is_global_attn": bool(is_global.any()),
        "output_attentions": True,
    }
    output, local, *rows = theirs(hidden, **arguments)
    found: list[Any] = []
    tokens = Tokens.of(keep, is_global if places else None).with_index(counted=True)
    torch.testing.assert_close(ours(hidden, tokens, found), output, rtol=0, atol=1e-5)
    masks = {"attention_mask": keep, "global_attention_mask": is_global}
    expected = attentions_to_dense(local.transpose(1, 2), rows[0].mT if rows else None, **masks)
    probabilities = found[0]
    columns = [] if probabilities.columns is None else [probabilities.columns]
    merged = torch.cat([*columns, probabilities.band], -1)
    dense = attentions_to_dense(merged, None if probabilities.rows is None else probabilities.rows.mT, **masks)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(dense.sum(-1), keep[:, None].float().expand(-1, 2, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    """By ``save_pretrained``, and as torch's own file; weights are contiguous either way."""
    model, inputs = build(kind), question_batch(CONFIG, kind)
    model.save_pretrained(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"config.json", "model.safetensors"}
    loaded = kind.from_pretrained(tmp_path / "a")
    assert_same(loaded, model, inputs)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "config.json").rename(tmp_path / "b" / "config.json")
    torch.save(model.state_dict(), tmp_path / "b" / "pytorch_model.bin")
    again = kind.from_pretrained(tmp_path / "b")
    assert_same(again, model, inputs)
    assert all(parameter.is_contiguous() for each in (loaded, again) for parameter in each.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_from_weights_alone(kind: Any) -> None:
    model = build(kind)
    again = kind.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("use_reentrant", [None, True, False])
@pytest.mark.parametrize("kind", HEADS)
def test_training(kind: Any, use_reentrant: bool | None) -> None:
    """Every parameter has a gradient, and the same one if layers are computed again on the way back."""
    model, inputs = build(kind, dtype=torch.float64).train(), with_answers(kind)
    inputs["global_attention_mask"] = (torch.arange(40) % 17 == 0).expand_as(inputs["input_ids"]).long()
    grads = []
    for is_on in (False, True):
        if is_on:
            given = None if use_reentrant is None else {"use_reentrant": use_reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given)
        assert model.is_gradient_checkpointing == is_on
        model.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert [name for name, grad in grads[-1].items() if grad is None] == []
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=1e-12)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_inputs_that_require_gradients(kind: Any, is_checkpointed: bool) -> None:
    """In a frozen model one weight is trained, as adapters do."""
    model, inputs = build(kind).train(), with_answers(kind)
    model.requires_grad_(False)
    trained = model.base_model.encoder.layer[0].attention.self.query.weight.requires_grad_()
    if is_checkpointed:
        model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(torch.zeros(1, dtype=torch.long)).requires_grad
    model(**inputs).loss.backward()
    assert trained.grad is not None and bool(trained.grad.any())
    model.disable_input_require_grads()
    assert not model.get_input_embeddings()(torch.zeros(1, dtype=torch.long)).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_weights(kind: Any) -> None:
    """Of the config's spread, biases 0, LayerNorm's factors 1, padding's embeddings 0; so too if drawn again."""
    config = config_of(kind).replace(initializer_range=1e-9)
    torch.manual_seed(7)
    model = kind(config)
    for again in (False, True):
        if again:
            for parameter in model.parameters():
                nn.init.constant_(parameter, 3.0)
            model.init_weights()
        for name, weight in model.named_parameters():
            mean = 1.0 if name.lower().endswith("norm.weight") else 0.0
            torch.testing.assert_close(weight, torch.full_like(weight, mean), rtol=0, atol=1e-7)
            assert weight.dim() == 1 or weight.std() > 5e-10, name
        assert not model.get_input_embeddings().weight[PAD].any()


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_a_parameter(kind: Any) -> None:
    """There are no buffers, and nothing is left behind when a model that was made on meta is filled."""
    model, inputs = build(kind), question_batch(CONFIG, kind)
    assert list(model.buffers()) == []
    with torch.device("meta"):
        empty = kind(config_of(kind))
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty = empty.to_empty(device="cpu").eval()
    empty.load_state_dict(model.state_dict())
    assert_same(empty, model, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_twice(kind: type) -> None:
    model, inputs = build(kind), question_batch(CONFIG, kind)
    assert all(torch.equal(x, y) for x, y in zip(model(**inputs), model(**inputs), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_tools_ask_for(kind: Any) -> None:
    model = build(kind)
    assert kind.main_input_name == "input_ids" and kind.base_model_prefix == "longformer"
    assert model.base_model is getattr(model, "longformer", model) and type(model.base_model) is LongformerModel
    assert model.config is model.base_model.config
    words = nn.Embedding(CONFIG.vocab_size, CONFIG.hidden_size)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    model.set_input_embeddings(words)
    assert model.get_input_embeddings() is words


@pytest.mark.parametrize("rows", [70, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_another_vocabulary(kind: Any, rows: int) -> None:
    """Rows that stay keep their numbers, also in a masked language model's scores, and the model runs."""
    model, inputs = build(kind), question_batch(CONFIG, kind)
    inputs["input_ids"] = inputs["input_ids"].clamp(max=49)
    before, old = model(**inputs), model.get_input_embeddings().weight.clone()
    assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
    assert (
        model.config.vocab_size
        == model.base_model.config.vocab_size
        == rows
        == len(model.get_input_embeddings().weight)
    )
    kept = min(rows, CONFIG.vocab_size)
    assert torch.equal(model.get_input_embeddings().weight[:kept], old[:kept])
    for x, y in zip(model(**inputs), before, strict=True):
        is_words = x.shape[-1] == rows
        assert x.shape == ((*y.shape[:-1], rows) if is_words else y.shape)
        torch.testing.assert_close(x[..., :kept] if is_words else x, y[..., :kept] if is_words else y)
    with pytest.raises(LongformerError, match=f"input_ids holds {rows}; the model has rows 0 to {rows - 1}"):
        model(inputs["input_ids"].masked_fill(torch.arange(40) == 0, rows))


def test_tied_weights(tmp_path: Path) -> None:
    """The output's matrix is the embeddings': in the model, in the file and after loading, theirs and ours."""
    kind: Any = CASES["masked words"].kind
    model, inputs = build(kind), question_batch(CONFIG, CASES["masked words"].kind)
    model.save_pretrained(tmp_path)
    assert not load_file(tmp_path / "model.safetensors").keys() & TIED.keys()
    theirs, info = transformers.LongformerForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    loaded = kind.from_pretrained(tmp_path)
    before = loaded(**inputs).logits
    with torch.no_grad():
        loaded.get_input_embeddings().weight[5] += 1
    changed = (loaded(**inputs).logits - before).abs().amax((0, 1))
    assert changed.argmax() == 5 and changed[5] > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_tuples_and_outputs_are_the_same(kind: type) -> None:
    model, inputs = build(kind), question_batch(CONFIG, kind)
    if kind is not LongformerModel:
        inputs = with_answers(kind)
    for asked in ({}, {"output_hidden_states": True}, {"output_hidden_states": True, "output_attentions": True}):
        named, plain = model(**inputs, **asked), model(**inputs, **asked, return_dict=False)
        assert type(plain) is tuple and len(plain) == len(named) == len(named.to_tuple())
        assert all(torch.equal(x, y) for x, y in zip(tensors_in(named), tensors_in(plain), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_in_place_of_ids(kind: type) -> None:
    """The ids' own embeddings give the ids' results. Without ids all positions count, and so no id is padding."""
    model, inputs = build(kind), question_batch(CONFIG, kind)
    ids = inputs.pop("input_ids")
    ids = ids.masked_fill(ids == PAD, 5)
    inputs["global_attention_mask"] = (torch.arange(40) % 17 == 0).expand_as(ids).long()
    embeds = model.get_input_embeddings()(ids)
    for x, y in zip(model(inputs_embeds=embeds, **inputs), model(ids, **inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    moved = model(inputs_embeds=embeds.flip(-1), **inputs)
    assert not torch.allclose(moved[0], model(ids, **inputs)[0])


def test_a_default_device(tmp_path: Path) -> None:
    """torch's default device takes no part in loading: a checkpoint goes where ``device`` says, meta or not."""
    build(LongformerModel).save_pretrained(tmp_path)
    with torch.device("meta"):
        on_cpu, on_meta = (LongformerModel.from_pretrained(tmp_path, device=device) for device in (None, "meta"))
    assert {parameter.device.type for parameter in on_cpu.parameters()} == {"cpu"}
    assert {parameter.device.type for parameter in on_meta.parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "auto", torch.float16, torch.bfloat16])
def test_either_name_of_the_precision(dtype: Any, tmp_path: Path) -> None:
    build(LongformerModel, dtype=torch.bfloat16).save_pretrained(tmp_path)
    one = LongformerModel.from_pretrained(tmp_path, torch_dtype=dtype)
    other = LongformerModel.from_pretrained(tmp_path, dtype=dtype)
    wanted = torch.bfloat16 if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    assert one.dtype == other.dtype == wanted
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind.part == "classifier" and kind is not HEADS[-1]])
def test_weights_of_another_shape(kind: Any, tmp_path: Path) -> None:
    """An error that names them; or drawn, if that is asked for, and the rest is kept. So too for another vocabulary."""
    model, inputs = build(kind), question_batch(CONFIG, kind)
    model.save_pretrained(tmp_path)
    words = "longformer.embeddings.word_embeddings.weight"
    for changes, name in (({"num_labels": 42}, "classifier."), ({"vocab_size": 70}, words)):
        with pytest.raises(CheckpointError, match=f"weights do not fit the config: .*{name}"):
            kind.from_pretrained(tmp_path, **changes)
        loaded, info = kind.from_pretrained(tmp_path, **changes, ignore_mismatched_sizes=True, output_loading_info=True)
        drawn = {entry[0] for entry in info["mismatched_keys"]}
        assert drawn and all(entry.startswith(name) for entry in drawn) and not info["missing_keys"]
        assert loaded(**inputs).logits.shape[-1] == changes.get("num_labels", 3)
        kept = loaded.state_dict().keys() - drawn
        assert all(torch.equal(loaded.state_dict()[key], model.state_dict()[key]) for key in kept)
