"""Gradients of the question-answering loss by every parameter, on small models with dropout off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import EVERY_DTYPE
from reference import (
    TINY,
    Pair,
    assert_gradients_agree,
    build,
    global_mask,
    gradient_errors,
    gradients,
    padded_batch,
    question_row,
)
from tolerances import EXACT, EXACT_GRADIENT
from torch import Tensor

Inputs = dict[str, Tensor]


def one() -> Inputs:
    return {
        "input_ids": question_row(TINY, 6, 40)[None],
        "start_positions": torch.tensor([17]),
        "end_positions": torch.tensor([20]),
    }


def ragged() -> Inputs:
    """One of the rows has its end outside."""
    return {
        **padded_batch(TINY, [question_row(TINY, q, n) for q, n in ((1, 23), (6, 40), (14, 37), (3, 9))]),
        "start_positions": torch.tensor([8, 20, 35, 7]),
        "end_positions": torch.tensor([9, 40, 35, 8]),
    }


def left_padding() -> Inputs:
    inputs = ragged()
    return inputs | padded_batch(
        TINY, [question_row(TINY, q, n) for q, n in ((1, 23), (6, 40), (14, 37), (3, 9))], left=True
    )


def holes_and_token_types() -> Inputs:
    inputs = ragged()
    inputs["attention_mask"][0, 8:12] = 0
    inputs["attention_mask"][1, [0, 3, 20, 39]] = 0
    return inputs | {"token_type_ids": torch.randint(2, inputs["input_ids"].shape)}


def holes_in_as_many_tokens_as_queries() -> Inputs:
    """Two global tokens of four heads are eight queries over the eight tokens of a document, one of them padding."""
    ids = question_row(TINY, 1, 8)[None]
    mask = torch.ones_like(ids)
    mask[0, 2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"start_positions": torch.tensor([4]), "end_positions": torch.tensor([6])}


def explicit_global() -> Inputs:
    inputs = ragged()
    places = ([0, 1, 22], [5, 9, 13, 39], [], [8])
    return inputs | {"global_attention_mask": global_mask(inputs["input_ids"], *places)}


def many_global() -> Inputs:
    inputs = ragged()
    places = (list(range(3, 21)), [7], [], [])
    return inputs | {"global_attention_mask": global_mask(inputs["input_ids"], *places)}


def all_global() -> Inputs:
    inputs = ragged()
    return inputs | {"global_attention_mask": torch.ones_like(inputs["input_ids"])}


def no_global() -> Inputs:
    inputs = ragged()
    return inputs | {"global_attention_mask": torch.zeros_like(inputs["input_ids"])}


def empty_row() -> Inputs:
    inputs = ragged()
    inputs["attention_mask"][2] = 0
    return inputs


CASES: list[Callable[[], Inputs]] = [
    one,
    ragged,
    left_padding,
    holes_and_token_types,
    holes_in_as_many_tokens_as_queries,
    explicit_global,
    many_global,
    all_global,
    no_global,
    empty_row,
]


@pytest.fixture(scope="module")
def tiny() -> dict[str, Pair]:
    """By implementation, in float64."""
    pairs = {impl: build(TINY, impl=impl) for impl in EVERY_DTYPE}
    return {impl: Pair(pair.ours.double(), pair.reference.double()) for impl, pair in pairs.items()}


@pytest.mark.parametrize("impl", EVERY_DTYPE)
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_in_float64(tiny: dict[str, Pair], impl: str, case: Callable[[], Inputs]) -> None:
    pair, inputs = tiny[impl], case()
    errors = gradient_errors(gradients(pair.ours, inputs), gradients(pair.reference, inputs), TINY)
    assert {name: error for name, error in errors.items() if not error <= EXACT_GRADIENT} == {}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_in_float32(tiny: dict[str, Pair], case: Callable[[], Inputs]) -> None:
    pair, inputs = build(TINY), case()
    ours, reference = gradients(pair.ours, inputs), gradients(pair.reference, inputs)
    assert_gradients_agree(ours, reference, gradients(tiny["reference"].ours, inputs), TINY)


@given(
    seed=st.integers(0, 2**31),
    windows=st.tuples(*[st.sampled_from([4, 8, 16])] * 2),
    batch=st.integers(1, 3),
    seq_len=st.integers(2, 40),
    padding=st.sampled_from([0.0, 0.1, 0.6]),
    globals_=st.sampled_from([0.0, 0.1, 0.6]),
)
@settings(max_examples=40)
@pytest.mark.slow
def test_any_masks(
    seed: int, windows: tuple[int, int], batch: int, seq_len: int, padding: float, globals_: float
) -> None:
    """Masks without any order in them. Errors are measured by the whole gradient's norm, since a part may be 0."""
    torch.manual_seed(seed)
    config = TINY.replace(num_hidden_layers=2, attention_window=windows)
    shape = (batch, seq_len)
    inputs = {
        "input_ids": torch.randint(config.vocab_size, shape),
        "attention_mask": (torch.rand(shape) >= padding).long(),
        "global_attention_mask": (torch.rand(shape) < globals_).long(),
        "token_type_ids": torch.randint(2, shape),
        "start_positions": torch.randint(seq_len, (batch,)),
        "end_positions": torch.randint(seq_len, (batch,)),
    }
    inputs["attention_mask"][0, 0] = 1  # without a token, nothing depends on the attention's weights
    pair = build(config, seed=seed)
    ours, reference = gradients(pair.ours.double(), inputs), gradients(pair.reference.double(), inputs)
    assert [name for name in ours if ours[name] is None] == [name for name in ours if reference[name] is None]
    expected = {name: grad for name, grad in reference.items() if grad is not None}
    size = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        assert (ours[name] - grad).norm() <= EXACT * size, name
