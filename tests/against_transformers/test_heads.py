"""Every head beside transformers' class of the same name: results, losses, gradients, names of weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from head_cases import CASES, Inputs, answers, question_batch
from reference import (
    TINY,
    Pair,
    assert_gradients_agree,
    assert_no_further,
    build,
    double_softmax,
    encode,
    exact,
    global_mask,
    gradient_errors,
    gradients,
    largest_difference,
)
from tolerances import EXACT, EXACT_GRADIENT, FLOAT32
from torch import Tensor

from longformer import LongformerForMultipleChoice
from longformer.checkpoints.names import TIED
from longformer.models.heads import Head


def automatic(kind: type[Head]) -> Inputs:
    """The head's own global tokens."""
    return question_batch(TINY, kind)


def left_padding(kind: type[Head]) -> Inputs:
    """So that the first token, which classification of a text has global, is padding in three rows."""
    return question_batch(TINY, kind, left=True)


def without_mask(kind: type[Head]) -> Inputs:
    """Padding that only the ids tell, which counts as text."""
    return {"input_ids": question_batch(TINY, kind)["input_ids"]}


def explicit(kind: type[Head]) -> Inputs:
    inputs = automatic(kind)
    mask = global_mask(inputs["input_ids"].flatten(0, -2), [0, 1, 22], [5, 9, 13, 39], [], [8])
    return inputs | {"global_attention_mask": mask.view_as(inputs["input_ids"])}


def none_global(kind: type[Head]) -> Inputs:
    inputs = automatic(kind)
    return inputs | {"global_attention_mask": torch.zeros_like(inputs["input_ids"])}


def mask_of_two(kind: type[Head]) -> Inputs:
    """Joins the head's own global tokens, none of which is marked: marked twice, a token gets a mask of 4 there."""
    inputs = automatic(kind)
    rows = inputs["attention_mask"].view(4, -1)
    places = [1] * 4 if kind is LongformerForMultipleChoice else [7, 7, 20, 7]
    rows[range(4), places] = 2
    return inputs


def token_types_and_positions(kind: type[Head]) -> Inputs:
    inputs = automatic(kind)
    shape = inputs["input_ids"].shape
    types, positions = torch.randint(2, shape), torch.randint(TINY.max_position_embeddings, shape)
    return inputs | {"token_type_ids": types, "position_ids": positions}


def embeddings(kind: type[Head]) -> Inputs:
    """In place of ids, with the global tokens that these would have given."""
    inputs = explicit(kind)
    shape = (*inputs.pop("input_ids").shape, TINY.hidden_size)
    return inputs | {"inputs_embeds": 0.2 * torch.randn(shape)}


INPUTS: list[Callable[[type[Head]], Inputs]] = [
    automatic,
    left_padding,
    without_mask,
    explicit,
    none_global,
    mask_of_two,
    token_types_and_positions,
]


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """By case, in float64."""
    found = {name: build(TINY.replace(**case.changes), kind=case.kind) for name, case in CASES.items()}
    return {name: Pair(pair.ours.double(), pair.reference.double()) for name, pair in found.items()}


def labelled(name: str, inputs: Inputs, dtype: torch.dtype = torch.float64) -> Inputs:
    """``inputs`` with answers. transformers has no loss for labels of another precision than its logits."""
    case = CASES[name]
    found = answers(case, TINY.replace(**case.changes), inputs)
    return inputs | {key: x.to(dtype) if x.is_floating_point() else x for key, x in found.items()}


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("name", CASES)
def test_states_and_results_in_float64(pairs: dict[str, Pair], name: str, make: Callable[..., Inputs]) -> None:
    inputs = make(CASES[name].kind)
    assert largest_difference(encode(pairs[name].ours, inputs), encode(pairs[name].reference, inputs)) <= EXACT


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_in_float64(pairs: dict[str, Pair], name: str, make: Callable[..., Inputs]) -> None:
    pair = pairs[name]
    inputs = labelled(name, make(CASES[name].kind))
    with torch.no_grad(), double_softmax(torch.float64):
        expected = pair.reference(**inputs).loss
        torch.testing.assert_close(pair.ours(**inputs).loss, expected, rtol=EXACT, atol=0)
    errors = gradient_errors(gradients(pair.ours, inputs), gradients(pair.reference, inputs), TINY)
    assert {key: error for key, error in errors.items() if not error <= EXACT_GRADIENT} == {}


MASKS = ("attention_mask", "global_attention_mask")
WITHOUT = [(name, left_out) for name in CASES for left_out in ((), MASKS[:1])]
WITHOUT += [(name, MASKS) for name in ("masked words", "tokens")]  # the others read global tokens from ids there


@pytest.mark.parametrize(("name", "left_out"), WITHOUT)
def test_embeddings_in_place_of_ids(pairs: dict[str, Pair], name: str, left_out: tuple[str, ...]) -> None:
    """Outputs, loss, and the gradient by the embeddings given; with masks and without."""
    inputs = embeddings(CASES[name].kind)
    for mask in left_out:
        del inputs[mask]
    like = inputs["inputs_embeds"][..., 0]
    found = []
    for model in pairs[name]:
        given = inputs["inputs_embeds"].double().requires_grad_()
        torch.manual_seed(5)
        with double_softmax(torch.float64):
            right = labelled(name, {"input_ids": like})
            output = model(**{**inputs, **right, "inputs_embeds": given, "input_ids": None})
        output.loss.backward()
        model.zero_grad(set_to_none=True)
        found.append([*output.to_tuple(), given.grad])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str) -> None:
    """No further from float64 than the reference, in states and results and in gradients."""
    case = CASES[name]
    pair = build(TINY.replace(**case.changes), kind=case.kind)
    truth = exact(pair)
    inputs = automatic(case.kind)
    ours, reference = encode(pair.ours, inputs), encode(pair.reference, inputs)
    assert largest_difference(ours, reference) <= FLOAT32
    assert_no_further(ours, reference, encode(truth, inputs))
    inputs = labelled(name, inputs, torch.float32)
    torch.testing.assert_close(pair.ours(**inputs).loss, pair.reference(**inputs).loss, rtol=1e-5, atol=1e-6)
    assert_gradients_agree(*(gradients(model, inputs) for model in (*pair, truth)), TINY)


@pytest.mark.parametrize("name", CASES)
def test_state_dicts_have_the_same_names_and_shapes(pairs: dict[str, Pair], name: str) -> None:
    """Apart from the second names of tied weights, which ours do not have."""
    ours, reference = (model.state_dict() for model in pairs[name])
    expected = {key: weight.shape for key, weight in reference.items() if key not in TIED}
    assert {key: weight.shape for key, weight in ours.items()} == expected
    second = {copy: ours[original] for copy, original in TIED.items() if copy in reference}
    pairs[name].reference.load_state_dict({**ours, **second})


@pytest.mark.parametrize("name", CASES)
def test_position_ids_of_one_row(pairs: dict[str, Pair], name: str) -> None:
    """(1, S) serves all rows; multiple choice takes (B, N, S) of everything, as there."""
    kind = CASES[name].kind
    inputs = automatic(kind)
    row = torch.randint(TINY.max_position_embeddings, (1, 40))
    inputs["position_ids"] = row.expand(4, -1).unflatten(0, (2, 2)) if name == "choices" else row
    assert largest_difference(encode(pairs[name].ours, inputs), encode(pairs[name].reference, inputs)) <= EXACT


@pytest.mark.parametrize("places", [[0], [0, 5], [11]], ids=str)
def test_one_text_of_one_choice(pairs: dict[str, Pair], places: list[int]) -> None:
    """The smallest batches: one row, and one choice."""
    for name, case in CASES.items():
        ids: Tensor = question_batch(TINY, case.kind)["input_ids"].flatten(0, -2)[1:2]
        inputs = {"input_ids": ids, "global_attention_mask": global_mask(ids, places)}
        if name == "choices":
            inputs = {key: tensor[None] for key, tensor in inputs.items()}
        assert largest_difference(encode(pairs[name].ours, inputs), encode(pairs[name].reference, inputs)) <= EXACT
