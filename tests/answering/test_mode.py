"""Answers do not depend on the model's mode, and answering does not change it: other threads rely on it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import byte_level_tokenizer, tiny_model
from torch import Tensor, nn

from longformer import LongformerForQuestionAnswering, QuestionAnswerer
from longformer.answering.mode import evaluating
from longformer.models import packed

QUESTION, DOCUMENT = "Who fell?", "Dan fell off a wall. Ann did not; she sat still on hers. " * 3
DROPOUT = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4}


@pytest.fixture
def answerer(tmp_path: Path) -> QuestionAnswerer:
    tokenizer = byte_level_tokenizer(tmp_path)
    return QuestionAnswerer(tiny_model(tokenizer, **DROPOUT), tokenizer)


def modes(model: nn.Module) -> list[bool]:
    return [part.training for part in model.modules()]


def ids_of(answerer: QuestionAnswerer) -> Tensor:
    return answerer.tokenizer("Who?", "Dan fell.", return_tensors="pt")["input_ids"]


def test_threads_that_share_a_model_in_training(answerer: QuestionAnswerer) -> None:
    """One of them trains it: its losses have dropout in them, the others' answers have none."""
    model = answerer.model
    expected = answerer.answer(QUESTION, DOCUMENT, top_k=3)
    model.train()
    ids, stop, losses = ids_of(answerer), threading.Event(), []

    def train() -> None:
        while not stop.is_set():
            assert all(modes(model))
            loss, *_ = model(ids, start_positions=torch.tensor([7]), end_positions=torch.tensor([9]))
            loss.backward()
            losses.append(loss.item())

    with ThreadPoolExecutor(5) as pool:
        training = pool.submit(train)
        found = list(pool.map(lambda _: answerer.answer(QUESTION, DOCUMENT, top_k=3), range(40)))
        stop.set()
        training.result()
    assert all(answers == expected for answers in found)
    assert all(modes(model))
    assert len(set(losses)) > 1 or len(losses) == 1


def test_a_thread_that_sets_the_mode_meanwhile(answerer: QuestionAnswerer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of the computation, so that its first part had no dropout and its second has."""
    encoder = type(answerer.model.longformer.encoder)
    plain, modes_seen = encoder.forward, [True]

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        if not modes_seen:
            answerer.model.train()
        modes_seen.append(self.training)
        return plain(self, *arguments, **named)

    monkeypatch.setattr(encoder, "forward", forward)  # so that the plain model serves
    expected = answerer.answer(QUESTION, DOCUMENT)
    modes_seen.clear()
    assert answerer.answer(QUESTION, DOCUMENT) == expected
    assert modes_seen[0] and not any(modes_seen[1:]) and len(modes_seen) > 1
    assert all(modes(answerer.model))


def test_a_thread_that_trains_meanwhile_and_is_done(
    answerer: QuestionAnswerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode is what it was when the computation ends, and was another one in its midst."""
    expected = answerer.answer(QUESTION, DOCUMENT)
    model, run, calls = answerer.model, packed._layer, []

    def layer(*arguments: Any) -> Any:
        calls.append(model.training)
        if len(calls) == 1:
            model.train()
        result = run(*arguments)
        model.eval()
        return result

    monkeypatch.setattr(packed, "_layer", layer)
    assert answerer.answer(QUESTION, DOCUMENT) == expected
    assert not model.training


@pytest.mark.parametrize("part", ["", "longformer.encoder.layer.0", "longformer.embeddings.dropout"])
def test_a_part_in_training(answerer: QuestionAnswerer, part: str) -> None:
    expected = answerer.answer(QUESTION, DOCUMENT)
    answerer.model.get_submodule(part).train()
    before = modes(answerer.model)
    assert any(before)
    assert answerer.answer(QUESTION, DOCUMENT) == expected
    assert modes(answerer.model) == before


def test_a_model_in_eval_mode_is_itself(answerer: QuestionAnswerer) -> None:
    with evaluating(answerer.model) as model:
        assert model is answerer.model


def test_a_view_shares_all_but_the_mode(answerer: QuestionAnswerer) -> None:
    model: LongformerForQuestionAnswering = answerer.model.train()
    seen: list[nn.Module] = []
    model.longformer.encoder.layer[1].register_forward_hook(lambda part, given, out: seen.append(part))
    with evaluating(model) as view, torch.no_grad():
        assert view is not model and type(view) is type(model)
        assert not any(modes(view)) and all(modes(model))
        assert list(view.state_dict()) == list(model.state_dict())
        for mine, its in zip(view.parameters(), model.parameters(), strict=True):
            assert mine is its
        view(ids_of(answerer))
    assert len(seen) == 1


def test_a_module_in_two_places_is_one_in_the_view() -> None:
    part = nn.Linear(2, 2)
    with evaluating(nn.Sequential(part, nn.Dropout(), part)) as view:
        assert view[0] is view[2] and view[0] is not part


def test_parts_replaced_after_an_answer(answerer: QuestionAnswerer) -> None:
    """Nothing of a view is kept."""
    model = answerer.model.train()
    first = answerer.logits([ids_of(answerer)[0].numpy()])[0]
    model.qa_outputs = nn.Linear(16, 2)
    second = answerer.logits([ids_of(answerer)[0].numpy()])[0]
    assert not torch.allclose(first, second)


def test_a_forward_on_the_instance(answerer: QuestionAnswerer) -> None:
    """It is bound to the module that it was made for: such a model is set to ``eval()`` for the time."""
    model = answerer.model
    encoder = model.longformer.encoder
    calls: list[bool] = []

    def forward(*arguments: Any, own: Any = encoder.forward) -> Any:
        calls.append(encoder.training)
        return own(*arguments)

    encoder.forward = forward
    expected = answerer.answer(QUESTION, DOCUMENT)
    model.train()
    encoder.layer[1].eval()
    before = modes(model)
    assert answerer.answer(QUESTION, DOCUMENT) == expected
    assert modes(model) == before
    assert calls and not any(calls)
