"""Hidden states and attentions beside transformers', at the true length, and both as one matrix.

Letters: B batch, S sequence, H heads, G global tokens of the row that has most.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from head_cases import CASES, Inputs, question_batch
from reference import TINY, Pair, build, double_softmax, global_mask
from tolerances import EXACT
from torch import Tensor

from longformer import LongformerConfig, LongformerError, LongformerModel, attentions_to_dense

WINDOWS = TINY.replace(attention_window=(8, 16, 4))


def doubled(config: LongformerConfig) -> Pair:
    pair = build(config, kind=LongformerModel)
    return Pair(pair.ours.double(), pair.reference.double())


@pytest.fixture(scope="module")
def pair() -> Pair:
    return doubled(WINDOWS)


def uneven() -> Inputs:
    """Three, four, no and one global tokens, at edges, side by side and inside windows; padding behind."""
    inputs = question_batch(TINY, LongformerModel)
    places = ([0, 1, 22], [5, 9, 13, 39], [], [8])
    return inputs | {"global_attention_mask": global_mask(inputs["input_ids"], *places)}


def left_and_holes() -> Inputs:
    inputs = question_batch(TINY, LongformerModel, left=True)
    inputs["attention_mask"][1, [0, 3, 20]] = 0
    return inputs | {"global_attention_mask": global_mask(inputs["input_ids"], [20, 30], [7], [3, 4, 39], [39])}


def no_global() -> Inputs:
    return question_batch(TINY, LongformerModel)


def all_global() -> Inputs:
    inputs = question_batch(TINY, LongformerModel)
    return inputs | {"global_attention_mask": torch.ones_like(inputs["input_ids"])}


def short() -> Inputs:
    """Fewer tokens than a window."""
    ids = torch.randint(3, TINY.vocab_size, (2, 3))
    return {"input_ids": ids, "global_attention_mask": global_mask(ids, [1], [])}


INPUTS = [uneven, left_and_holes, no_global, all_global, short]


@torch.no_grad()
def run(model: Any, inputs: Inputs) -> Any:
    with double_softmax(torch.float64):
        return model(**inputs, output_hidden_states=True, output_attentions=True)


def is_there(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(B, S) bool: tokens that are global; (B, G) bool: which of the rows' global columns there are."""
    is_global = (inputs.get("global_attention_mask", torch.zeros(1)) * inputs["attention_mask"]).bool()
    count = is_global.sum(1)
    return is_global, torch.arange(int(count.max())) < count[:, None]


@pytest.mark.parametrize("make", INPUTS)
def test_hidden_states_and_attentions(pair: Pair, make: Any) -> None:
    """The same entries, shapes and numbers. Where a row has fewer global tokens than another, ours has 0."""
    inputs = {"attention_mask": torch.ones_like(make()["input_ids"]), **make()}
    ours, theirs = run(pair.ours, inputs), run(pair.reference, inputs)
    seq_len = inputs["input_ids"].shape[1]
    assert list(ours.keys()) == list(theirs.keys())
    for x, y in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(x, y[:, :seq_len], rtol=0, atol=EXACT)
    for x, y in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=EXACT)
    if "global_attentions" not in ours:
        return
    _, there = is_there(inputs)
    for x, y in zip(ours.global_attentions, theirs.global_attentions, strict=True):
        assert not x.mT[(~there)[:, None].expand(x.mT.shape[:3])].any()
        torch.testing.assert_close(x, y[:, :, :seq_len] * there[:, None, None], rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", CASES)
def test_every_head_has_them(name: str) -> None:
    """After its own results, in the same order, and by its own global tokens."""
    case = CASES[name]
    pair = build(WINDOWS.replace(**case.changes), kind=case.kind)
    inputs = question_batch(TINY, case.kind)
    ours, theirs = run(pair.ours.double(), inputs), run(pair.reference.double(), inputs)
    assert list(ours.keys()) == list(theirs.keys())
    for x, y in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(x, y[:, : x.shape[1]], rtol=0, atol=EXACT)
    for x, y in zip(ours.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=EXACT)


# ---- as one matrix


def dense_probabilities(model: LongformerModel, layer: int, hidden: Tensor, inputs: Inputs) -> Tensor:
    """(B, H, S, S) by the definition: who may see whom, and two softmaxes over all that a token sees."""
    attention: Any = model.encoder.layer[layer].attention.self
    is_global, _ = is_there(inputs)
    keep = inputs["attention_mask"] != 0
    place = torch.arange(hidden.shape[1])
    offset = place - place[:, None]
    gap = torch.tensor(model.config.dilation(layer))[:, None, None]  # of each head
    in_window = (offset % gap == 0) & (offset.abs() <= gap * (model.config.attention_window[layer] // 2))
    columns = (in_window | is_global[:, None, None]) & keep[:, None, None]

    def heads(part: str) -> Tensor:
        projected: Tensor = getattr(attention, part)(hidden)
        return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    def probabilities(query: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        scores = (query @ key.mT / attention.head_dim**0.5).masked_fill(~seen, float("-inf"))
        return scores.softmax(-1).nan_to_num(0)

    local = probabilities(heads("query"), heads("key"), columns)
    whole = probabilities(heads("query_global"), heads("key_global"), keep[:, None, None])
    found = torch.where(is_global[:, None, :, None], whole, local)
    return found * keep[:, None, :, None]


def matrices(output: Any, inputs: Inputs, config: LongformerConfig, **arguments: Any) -> list[Tensor]:
    masks = {name: inputs.get(name) for name in ("attention_mask", "global_attention_mask")}
    per_layer = output.get("global_attentions") or [None] * config.num_hidden_layers
    return [
        attentions_to_dense(local, rows, **masks, **{key: value(layer) for key, value in arguments.items()})
        for layer, (local, rows) in enumerate(zip(output["attentions"], per_layer, strict=True))
    ]


@pytest.mark.parametrize("make", INPUTS)
def test_dense(pair: Pair, make: Any) -> None:
    """Of both, equal to the definition over the whole matrix."""
    inputs = {"attention_mask": torch.ones_like(make()["input_ids"]), **make()}
    ours = run(pair.ours, inputs)
    of_ours, of_theirs = (matrices(found, inputs, WINDOWS) for found in (ours, run(pair.reference, inputs)))
    for layer in range(WINDOWS.num_hidden_layers):
        with torch.no_grad():
            expected = dense_probabilities(pair.ours, layer, ours.hidden_states[layer], inputs)
        torch.testing.assert_close(of_ours[layer], expected, rtol=0, atol=EXACT)
        torch.testing.assert_close(of_theirs[layer], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("dilation", [2, [1, 2, 3], [1, [1, 2, 3, 1], 2]], ids=str)
@pytest.mark.parametrize("make", INPUTS)
def test_dense_with_dilation(make: Any, dilation: Any) -> None:
    """Which transformers does not have. Windows that differ by layer, one of them odd."""
    dilation = tuple(tuple(gaps) if isinstance(gaps, list) else gaps for gaps in dilation) if dilation != 2 else 2
    config = TINY.replace(attention_window=(8, 5, 16), attention_dilation=dilation)
    model = doubled(TINY).ours
    dilated = LongformerModel(config).double().eval()
    dilated.load_state_dict(model.state_dict())
    inputs = {"attention_mask": torch.ones_like(make()["input_ids"]), **make()}
    output = run(dilated, inputs)
    for layer, found in enumerate(matrices(output, inputs, config, pattern=config.pattern)):
        with torch.no_grad():
            expected = dense_probabilities(dilated, layer, output.hidden_states[layer], inputs)
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_dense_refuses_what_does_not_belong_together(pair: Pair) -> None:
    inputs = uneven()
    output = run(pair.ours, inputs)
    local, rows = output.attentions[0], output.global_attentions[0]
    masks = {name: inputs[name] for name in ("attention_mask", "global_attention_mask")}
    with pytest.raises(LongformerError, match=r"attention has 12 columns, but 4 global tokens and the window \(4, 4\)"):
        attentions_to_dense(local[..., :-1], rows, **masks, pattern=WINDOWS.pattern(0))
    with pytest.raises(LongformerError, match="global_attention is None, but 4 tokens are global"):
        attentions_to_dense(local, **masks)
    with pytest.raises(LongformerError, match="give the masks that the model was given"):
        attentions_to_dense(local, rows, pattern=WINDOWS.pattern(0))
