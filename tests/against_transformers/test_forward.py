"""Forward parity on small models: in float64, where equal means equal, and in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import EVERY_DTYPE
from reference import (
    TINY,
    Ours,
    Pair,
    assert_no_further,
    build,
    double_softmax,
    encode,
    global_mask,
    largest_difference,
    padded_batch,
    question_row,
)
from tolerances import EXACT, FLOAT32
from torch import Tensor

from longformer import LongformerConfig, LongformerForQuestionAnswering, LongformerModel

Inputs = dict[str, Tensor]

# Two layers of next to no width, and the released models' windows and lengths.
NARROW = TINY.replace(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=4098,
    attention_window=512,
)


def question() -> Inputs:
    return {"input_ids": question_row(TINY, 6, 40)[None]}


def ragged() -> Inputs:
    return padded_batch(TINY, [question_row(TINY, q, n) for q, n in ((1, 23), (6, 40), (14, 37), (3, 9))])


def left_padding() -> Inputs:
    return padded_batch(TINY, [question_row(TINY, q, n) for q, n in ((1, 23), (6, 40), (3, 9))], left=True)


def holes() -> Inputs:
    """Padding in the middle of documents, within the question too; positions go on counting where ids are real."""
    inputs = ragged()
    inputs["attention_mask"][0, 8:12] = 0
    inputs["attention_mask"][1, [0, 3, 20, 39]] = 0
    return inputs


def holes_in_as_many_tokens_as_queries() -> Inputs:
    """Two global tokens of four heads are eight queries over the eight tokens of a document, one of them padding."""
    ids = question_row(TINY, 1, 8)[None]
    mask = torch.ones_like(ids)
    mask[0, 2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def padding_token_in_the_text() -> Inputs:
    inputs = {"input_ids": question_row(TINY, 6, 40)[None]}
    inputs["input_ids"][0, [4, 20, 21, 22]] = TINY.pad_token_id
    return inputs


def explicit_global() -> Inputs:
    """At the edges, side by side, one inside another's window, none in one row, and many in another."""
    inputs = ragged()
    places = ([0, 1, 22], [5, 9, 13, 39], [], [8])
    return inputs | {"global_attention_mask": global_mask(inputs["input_ids"], *places)}


def many_global() -> Inputs:
    """So many that the global keys are projected (see ``_global_rows``), in one row of two."""
    ids = torch.stack([question_row(TINY, 2, 40), question_row(TINY, 2, 40)])
    return {"input_ids": ids, "global_attention_mask": global_mask(ids, list(range(3, 31)), [7])}


def no_global() -> Inputs:
    inputs = ragged()
    return inputs | {"global_attention_mask": torch.zeros_like(inputs["input_ids"])}


def all_global() -> Inputs:
    inputs = ragged()
    return inputs | {"global_attention_mask": torch.ones_like(inputs["input_ids"])}


def global_padding() -> Inputs:
    """Padding wins over global."""
    inputs = ragged()
    return inputs | {"global_attention_mask": global_mask(inputs["input_ids"], [0, 30], [39], [38, 39], [])}


def empty_row() -> Inputs:
    inputs = ragged()
    inputs["attention_mask"][2] = 0
    return inputs


def nothing_but_padding() -> Inputs:
    inputs = ragged()
    return inputs | {"attention_mask": torch.zeros_like(inputs["attention_mask"])}


def mask_of_two() -> Inputs:
    inputs = explicit_global()
    marked = inputs["attention_mask"] * (1 + inputs.pop("global_attention_mask"))
    return {**inputs, "attention_mask": marked, "global_attention_mask": torch.zeros_like(marked)}


def token_types() -> Inputs:
    inputs = ragged()
    return inputs | {"token_type_ids": torch.randint(2, inputs["input_ids"].shape)}


def positions() -> Inputs:
    inputs = ragged()
    return inputs | {"position_ids": torch.randint(TINY.max_position_embeddings, inputs["input_ids"].shape)}


CASES: list[Callable[[], Inputs]] = [
    question,
    ragged,
    left_padding,
    holes,
    holes_in_as_many_tokens_as_queries,
    padding_token_in_the_text,
    explicit_global,
    many_global,
    no_global,
    all_global,
    global_padding,
    empty_row,
    nothing_but_padding,
    mask_of_two,
    token_types,
    positions,
]


def doubled(config: LongformerConfig, **arguments: Any) -> Pair:
    pair = build(config, **arguments)
    return Pair(pair.ours.double(), pair.reference.double())


def assert_equal(pair: Pair, inputs: Inputs) -> None:
    """For models in float64."""
    assert largest_difference(encode(pair.ours, inputs), encode(pair.reference, inputs)) <= EXACT


@pytest.fixture(scope="module")
def tiny() -> dict[str, Pair]:
    """By implementation, in float64."""
    return {impl: doubled(TINY, impl=impl) for impl in EVERY_DTYPE}


@pytest.fixture(scope="module")
def tiny_float32() -> Pair:
    return build(TINY)


@pytest.fixture(scope="module")
def narrow() -> Pair:
    return doubled(NARROW)


@pytest.mark.parametrize("impl", EVERY_DTYPE)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_in_float64(tiny: dict[str, Pair], impl: str, case: Callable[[], Inputs]) -> None:
    assert_equal(tiny[impl], case())


@pytest.mark.parametrize("case", CASES)
def test_every_layer_in_float32(tiny: dict[str, Pair], tiny_float32: Pair, case: Callable[[], Inputs]) -> None:
    inputs = case()
    ours, reference = encode(tiny_float32.ours, inputs), encode(tiny_float32.reference, inputs)
    assert largest_difference(ours, reference) <= FLOAT32
    assert_no_further(ours, reference, encode(tiny["reference"].ours, inputs))


@pytest.mark.parametrize("places", [[], [0], [-1], [0, -1]], ids=["none", "first", "last", "both"])
@pytest.mark.parametrize("seq_len", [1, 2, 3, 7, 8, 9, 15, 16, 17, 23, 24, 25, 64, 127, 128])
def test_lengths(tiny: dict[str, Pair], seq_len: int, places: list[int]) -> None:
    ids = torch.randint(3, TINY.vocab_size, (1, seq_len))
    assert_equal(tiny["auto"], {"input_ids": ids, "global_attention_mask": global_mask(ids, places)})


@pytest.mark.parametrize("seq_len", [1, 2, 255, 256, 257, 511, 512, 513, 767, 768, 769, 1023, 1024, 1025, 1536, 4096])
def test_lengths_with_the_released_window(narrow: Pair, seq_len: int) -> None:
    ids = torch.randint(3, NARROW.vocab_size, (1, seq_len))
    assert_equal(narrow, {"input_ids": ids, "global_attention_mask": torch.zeros_like(ids)})
    if seq_len > 20:
        assert_equal(narrow, {"input_ids": question_row(NARROW, 9, seq_len)[None]})


@pytest.mark.parametrize("case", [ragged, explicit_global, token_types])
@pytest.mark.parametrize("windows", [(4, 8, 16), (16, 4, 8), (64, 64, 4)])
def test_windows_that_differ_by_layer(case: Callable[[], Inputs], windows: tuple[int, ...]) -> None:
    """Each divides the largest, and is more than 2: others the reference cannot compute."""
    assert_equal(doubled(TINY.replace(attention_window=windows)), case())


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_activations(activation: str) -> None:
    assert_equal(doubled(TINY.replace(hidden_act=activation)), ragged())


def test_padding_token_of_another_number() -> None:
    """BERT's is 0, and positions start after it."""
    config = TINY.replace(pad_token_id=0, bos_token_id=1, sep_token_id=5)
    rows = [question_row(config, q, n) for q, n in ((1, 23), (6, 40))]
    assert_equal(doubled(config), padded_batch(config, rows))


@pytest.mark.parametrize("case", [ragged, left_padding, no_global])
def test_base_model_and_pooler(case: Callable[[], Inputs]) -> None:
    assert_equal(doubled(TINY, kind=LongformerModel), case())


@pytest.mark.parametrize(
    "start, end",
    [([5, 20, 8, 0], [7, 20, 36, 8]), ([5, 40, 8, 41], [7, 300, 36, 1])],
    ids=["inside", "some left out"],
)
def test_loss(tiny: dict[str, Pair], start: list[int], end: list[int]) -> None:
    inputs = {**ragged(), "start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    with double_softmax(torch.float64):
        expected = tiny["auto"].reference(**inputs).loss
    assert abs(tiny["auto"].ours(**inputs).loss - expected) <= EXACT * expected


@given(
    seed=st.integers(0, 2**31),
    windows=st.tuples(*[st.sampled_from([4, 8, 16])] * 2),
    batch=st.integers(1, 3),
    seq_len=st.integers(1, 40),
    padding=st.sampled_from([0.0, 0.1, 0.6]),
    globals_=st.sampled_from([0.0, 0.1, 0.6]),
)
@settings(max_examples=100)
@pytest.mark.slow
def test_any_masks(
    seed: int, windows: tuple[int, int], batch: int, seq_len: int, padding: float, globals_: float
) -> None:
    """Masks without any order in them, ids of padding anywhere, two token types."""
    torch.manual_seed(seed)
    config = TINY.replace(num_hidden_layers=2, attention_window=windows)
    shape = (batch, seq_len)
    inputs = {
        "input_ids": torch.randint(config.vocab_size, shape),
        "attention_mask": (torch.rand(shape) >= padding).long(),
        "global_attention_mask": (torch.rand(shape) < globals_).long(),
        "token_type_ids": torch.randint(2, shape),
    }
    assert_equal(doubled(config, kind=LongformerModel, seed=seed), inputs)


@pytest.mark.parametrize("kind", [LongformerForQuestionAnswering, LongformerModel])
def test_state_dicts_have_the_same_names_and_shapes(kind: type[Ours]) -> None:
    pair = build(TINY, kind=kind)
    ours, reference = pair.ours.state_dict(), pair.reference.state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {
        name: weight.shape for name, weight in reference.items()
    }
    pair.reference.load_state_dict(ours)  # strict, as is the way there, by which ``build`` went
