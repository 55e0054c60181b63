"""Text that is made token by token is what the whole model would make of it, and is drawn as was asked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from causal_models import causal_model

from longformer import LongformerError
from longformer.models.generation import Sampling, generate

PROMPT = torch.tensor([[3, 1, 4], [1, 5, 9]])


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_every_token_is_the_best_of_a_full_recomputation(positions: str) -> None:
    model = causal_model(position_embedding_type=positions)
    found = generate(model, PROMPT, max_new_tokens=40, temperature=0)
    assert found.shape == (2, 43) and torch.equal(found[:, :3], PROMPT)
    logits = model(found).logits
    logits[..., 0] = -math.inf  # padding, which is never drawn
    assert torch.equal(logits[:, 2:-1].argmax(-1), found[:, 3:])


def test_drawn_tokens_are_those_of_the_probabilities_of_a_full_recomputation() -> None:
    model = causal_model()
    found = model.generate(PROMPT, max_new_tokens=12, temperature=0.7, top_k=4, seed=3)
    again, generator = PROMPT, torch.Generator().manual_seed(3)
    for _ in range(12):
        scores = model(again).logits[:, -1].detach().float()
        scores[:, 0] = -math.inf
        best = scores.topk(4).indices
        chances = torch.zeros(2, 11, dtype=torch.float64)
        chances = chances.scatter(1, best, (scores.gather(1, best).double() / 0.7).softmax(1))
        again = torch.cat([again, chances.multinomial(1, generator=generator)], 1)
    assert torch.equal(found, again)
    assert not torch.equal(found, model.generate(PROMPT, max_new_tokens=12, temperature=0.7, top_k=4, seed=4))


def test_temperature_top_k_and_top_p() -> None:
    chances = torch.tensor([[0.5, 0.25, 0.15, 0.1]], dtype=torch.float64)
    scores = chances.log()

    def of(**choices: Any) -> list[float]:
        return [round(x, 6) for x in Sampling(**choices).probabilities(scores)[0].tolist()]

    assert of() == [0.5, 0.25, 0.15, 0.1]
    assert of(top_k=2) == [round(2 / 3, 6), round(1 / 3, 6), 0, 0]
    assert of(top_k=9) == of(top_p=1.0) == of()
    assert of(top_p=0.5) == [1, 0, 0, 0]
    assert of(top_p=0.51) == of(top_k=2) == of(top_p=0.75)
    assert of(top_p=0.01) == [1, 0, 0, 0]
    total = sum(c**2 for c in (0.5, 0.25, 0.15, 0.1))
    assert of(temperature=0.5) == [round(c**2 / total, 6) for c in (0.5, 0.25, 0.15, 0.1)]
    assert of(top_k=1, temperature=7.0) == [1, 0, 0, 0]


def test_a_row_ends_at_a_stop_and_is_filled_up() -> None:
    model = causal_model()
    free = generate(model, PROMPT, max_new_tokens=30, temperature=0)[:, 3:].tolist()
    stop = free[0][4:6]
    first = next(i for i in range(1, 30) if free[0][i - 1 : i + 1] == stop)
    other = next((i for i in range(1, 30) if free[1][i - 1 : i + 1] == stop), 29)
    found = generate(model, PROMPT, max_new_tokens=30, temperature=0, stop=[[10] * 5, stop])[:, 3:].tolist()
    length = max(first, other) + 1
    for row, end in enumerate((first, other)):
        assert found[row] == free[row][: end + 1] + [0] * (length - end - 1)
    alone = generate(model, PROMPT[:1], max_new_tokens=30, temperature=0, stop=[stop])
    assert alone[0, 3:].tolist() == free[0][: first + 1]


def test_the_model_is_left_in_its_mode() -> None:
    model = causal_model(hidden_dropout_prob=0.5).train()
    one, other = (generate(model, PROMPT, max_new_tokens=9, temperature=0) for _ in range(2))
    assert model.training and torch.equal(one, other)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=0), PROMPT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"stop": [[]]}, "without tokens"),
        ({"input_ids": PROMPT + 5}, "holds 14; the model has rows 0 to 10"),
        ({"input_ids": PROMPT[0]}, r"has shape \(3,\)"),
        ({"max_new_tokens": 7, "position_embedding_type": "absolute"}, "positions for 8"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, Any], message: str) -> None:
    given = dict(arguments)
    positions = given.pop("position_embedding_type", "relative")
    model = causal_model(position_embedding_type=positions, max_position_embeddings=9)
    with pytest.raises(LongformerError, match=message):
        generate(model, given.pop("input_ids", PROMPT), **given)


def test_damaged_weights_are_said() -> None:
    model = causal_model()
    model.lm_head.bias.data[3] = math.nan
    with pytest.raises(LongformerError, match="weights are damaged"):
        generate(model, PROMPT)
