"""What a model returns: names, numbers, what was asked for, and its way through tools that take it apart."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tiny_heads import CLASSES, batch, build_class
from tiny_models import CONFIG
from torch import Tensor
from torch.utils import _pytree as pytree

from longformer import LongformerError, LongformerForQuestionAnswering, LongformerModel, attentions_to_dense
from longformer.kernels import AttentionPattern, Tokens
from longformer.models.batch import make_tokens
from longformer.models.outputs import LogitsOutput, ModelOutput, QuestionAnsweringOutput

START, END, LOSS = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor(0.5)


def output(**more: Any) -> QuestionAnsweringOutput:
    return QuestionAnsweringOutput.of(start_logits=START, end_logits=END, **more)


def test_it_unpacks_and_is_read_by_number_and_by_name() -> None:
    start, end = output()
    assert start is START and end is END
    with_loss = output(loss=LOSS)
    assert with_loss[0] is LOSS is with_loss["loss"] is with_loss.loss
    assert with_loss[1:] == (START, END) and type(with_loss[1:]) is tuple
    assert with_loss.keys() == ("loss", "start_logits", "end_logits")
    assert dict(with_loss) == {"loss": LOSS, "start_logits": START, "end_logits": END} == dict(with_loss.items())
    assert with_loss.to_tuple() == with_loss.values() == (LOSS, START, END)


def test_what_was_not_asked_for_is_left_out() -> None:
    assert output().loss is None and output().hidden_states is None
    assert "loss" not in output() and "loss" in output(loss=LOSS)
    assert output().get("loss", 3) == 3
    with pytest.raises(KeyError, match="loss"):
        output()["loss"]
    with pytest.raises(AttributeError, match=r"has no entry 'logits'; it may have loss, start_logits"):
        _ = output().logits


def test_it_can_be_taken_apart_and_built_again() -> None:
    given = output(loss=LOSS, hidden_states=(START, END))
    for again in (type(given)(list(given)), type(given)(*given), pickle.loads(pickle.dumps(given)), copy.copy(given)):
        assert type(again) is type(given)
        assert torch.equal(again.loss, LOSS) and torch.equal(again.hidden_states[1], END)
    leaves, spec = pytree.tree_flatten(given)
    assert len(leaves) == 5
    doubled = pytree.tree_unflatten([2 * x for x in leaves], spec)
    assert isinstance(doubled, QuestionAnsweringOutput) and torch.equal(doubled.end_logits, 2 * END)
    alone = LogitsOutput.of(logits=START)
    assert type(alone)(*alone).logits is type(alone)(list(alone)).logits is START


def test_its_text_names_the_entries() -> None:
    assert repr(LogitsOutput.of(loss=1, logits=2)) == "LogitsOutput(loss=1, logits=2)"


@pytest.mark.parametrize("cls", CLASSES)
def test_states_and_attentions_are_there_when_asked_for(cls: type) -> None:
    model = build_class(cls)
    ids, mask, global_mask = batch()
    plain = model(ids, mask, global_mask)
    full = model(ids, mask, global_mask, output_hidden_states=True, output_attentions=True)
    assert full.keys() == (*plain.keys(), "hidden_states", "attentions", "global_attentions")
    for name in plain.keys():
        torch.testing.assert_close(full[name], plain[name], rtol=0, atol=1e-12)
    assert [state.shape for state in full.hidden_states] == 3 * [(4, 48, 32)]
    assert [x.shape for x in full.attentions] == 2 * [(4, 4, 48, 20 + 9)]
    assert [x.shape for x in full.global_attentions] == 2 * [(4, 4, 48, 20)]
    as_tuple = model(ids, mask, global_mask, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert type(as_tuple) is tuple and len(as_tuple) == len(full)


def test_hidden_states_end_with_the_last_one() -> None:
    model = build_class(LongformerModel)
    found = model(*batch(), output_hidden_states=True)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert torch.equal(model.encoder.layer[0](found.hidden_states[0], _tokens()), found.hidden_states[1])


def _tokens() -> Tokens:
    ids, mask, global_mask = batch()
    return make_tokens(ids, mask, global_mask).with_index(counted=True)


@pytest.mark.parametrize("dilation", [1, (1, 3)])
def test_attentions_weigh_the_values(dilation: Any) -> None:
    """As a matrix they give, times the values, what the layer puts out: of local rows, and of global ones."""
    config = {"attention_dilation": ((1, 1, 3, 2), 1)} if dilation != 1 else {}
    model = build_class(LongformerModel, CONFIG.replace(**config))
    ids, mask, global_mask = batch()
    layer = model.encoder.layer[0].attention.self
    found = model(ids, mask, global_mask, output_hidden_states=True, output_attentions=True)
    dense = attentions_to_dense(
        found.attentions[0],
        found.global_attentions[0],
        attention_mask=mask,
        global_attention_mask=global_mask,
        pattern=model.config.pattern(0),
    )
    hidden = found.hidden_states[0]
    local, glob = (layer._split(part(hidden)) for part in (layer.value, layer.value_global))
    is_global = (global_mask * mask).bool()[:, None, :, None]
    expected = layer(hidden, _tokens())
    got = torch.where(is_global, dense @ glob, dense @ local).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    sums = dense.sum(-1)
    torch.testing.assert_close(sums, mask[:, None, :].expand_as(sums).double(), rtol=0, atol=1e-13)


def test_attentions_of_other_masks_are_refused() -> None:
    ids = torch.randint(3, 60, (1, 20))
    global_mask = torch.zeros_like(ids)
    global_mask[:, :2] = 1
    found = build_class(LongformerModel)(ids, global_attention_mask=global_mask, output_attentions=True)
    with pytest.raises(LongformerError, match="global_attention is given, but the masks make no token global"):
        attentions_to_dense(found.attentions[0], found.global_attentions[0])
    with pytest.raises(LongformerError, match=r"attention is a tuple; it must be one layer's"):
        attentions_to_dense(found.attentions)


def test_attentions_without_global_tokens() -> None:
    model = build_class(LongformerModel)
    ids, mask, _ = batch()
    found = model(ids, mask, output_attentions=True)
    assert found.global_attentions is None
    assert attentions_to_dense(found.attentions[1], attention_mask=mask).shape == (4, 4, 48, 48)


def test_attentions_have_gradients_in_training() -> None:
    model = build_class(LongformerModel).train()
    model.gradient_checkpointing_enable()
    found = model(*batch(), output_attentions=True)
    sum(x.square().sum() for x in (*found.attentions, *found.global_attentions)).backward()
    assert model.encoder.layer[1].attention.self.query_global.weight.grad.abs().sum() > 0
    assert model.encoder.layer[1].attention.self.key.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_attention_mask": None}, r"attention has 29 columns, but 0 global tokens and the window \(14, 14\)"),
        ({"global_attention": None}, r"global_attention is None, but 20 tokens are global"),
        ({"pattern": AttentionPattern((5, 5))}, r"20 global tokens and the window \(5, 5\) take 31"),
        ({"attention_mask": torch.ones(3, 3)}, r"attention_mask has shape \(3, 3\)"),
    ],
)
def test_attentions_with_what_does_not_belong_to_them(change: dict[str, Any], message: str) -> None:
    ids, mask, global_mask = batch()
    found = build_class(LongformerModel)(ids, mask, global_mask, output_attentions=True)
    arguments: dict[str, Any] = {
        "attention": found.attentions[0],
        "global_attention": found.global_attentions[0],
        "attention_mask": mask,
        "global_attention_mask": global_mask,
        **change,
    }
    attention = arguments.pop("attention")
    if "global_attention_mask" in change:  # an odd number of columns could be a window of another size
        attention = attention[..., :-1]
        message = message.replace("29", "28").replace(r"\(14, 14\)", r"\(13, 13\)")
    with pytest.raises(LongformerError, match=message):
        attentions_to_dense(attention, arguments.pop("global_attention"), **arguments)


def test_a_model_without_pooler_gives_one_entry() -> None:
    (state,) = build_class(LongformerModel, add_pooling_layer=False)(*batch())
    assert state.shape == (4, 48, 32)
    assert ModelOutput.of(last_hidden_state=state).pooler_output is None


class _Wrapped(torch.nn.Module):
    def __init__(self, model: LongformerForQuestionAnswering) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.model(ids, mask, global_attention_mask=mask, output_hidden_states=True)
        return found.start_logits + found["end_logits"] + found.hidden_states[0].sum(-1)


@pytest.mark.slow
def test_in_a_graph() -> None:
    model = _Wrapped(build_class(LongformerForQuestionAnswering))
    ids, mask, _ = batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, mask), model(ids, mask), rtol=0, atol=1e-12)
