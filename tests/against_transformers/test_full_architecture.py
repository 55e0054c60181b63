"""Parity at the released base model's full size, with random weights: every layer, the logits, every gradient.

With LONGFORMER_WRITE_FIGURES=FOLDER each test writes what it measured there, as the README reports it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from head_cases import CASES as HEAD_CASES
from head_cases import answers
from reference import (
    BASE,
    Encoded,
    Ours,
    Pair,
    assert_gradients_agree,
    assert_no_further,
    build,
    encode,
    exact,
    global_mask,
    gradient_errors,
    gradients,
    largest_difference,
    measure_by,
    padded_batch,
    question_row,
    rms,
)
from tolerances import FLOAT32, GRADIENT_MEAN_RATIO
from torch import Tensor

# One worker for all of it: the models take 2 GB.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("full architecture")]

Inputs = dict[str, Tensor]


class Full(NamedTuple):
    """The models in float32, and ours in float64 over the same weights."""

    pair: Pair
    truth: Ours


@pytest.fixture(scope="module")
def full() -> Full:
    pair = build(BASE)
    # Dense scores would take long, and 7 GB at 4096 tokens; test_forward has both alike to 1e-12.
    return Full(pair, exact(pair, impl="blocked"))


def write_figures(name: str, figures: Any) -> None:
    folder = os.environ.get("LONGFORMER_WRITE_FIGURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"parity-{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def one_question(question: int, seq_len: int) -> Inputs:
    return {"input_ids": question_row(BASE, question, seq_len)[None]}


def with_global(seq_len: int, places: list[int]) -> Inputs:
    ids = torch.randint(3, BASE.vocab_size, (1, seq_len))
    return {"input_ids": ids, "global_attention_mask": global_mask(ids, places)}


CASES: dict[str, Callable[[], Inputs]] = {
    "1": lambda: with_global(1, []),
    "2": lambda: with_global(2, [0]),
    "511": lambda: one_question(11, 511),
    "512": lambda: with_global(512, [0, 1, 255, 256, 300, 511]),
    "513-no-global": lambda: with_global(513, []),
    "1024": lambda: one_question(1, 1024),
    "1025": lambda: one_question(100, 1025),  # so many that the global keys are projected
    "4096": lambda: one_question(20, 4096),
    "ragged": lambda: padded_batch(BASE, [question_row(BASE, q, n) for q, n in ((30, 600), (4, 257))]),
    "left-padding": lambda: padded_batch(BASE, [question_row(BASE, q, n) for q, n in ((30, 90), (4, 400))], left=True),
}


# The other lengths and paddings at this size only if asked for: test_forward has them at a small one, and
# test_pretrained has 1,025 and 4,096 tokens of trained weights.
ALWAYS = ("1", "512", "ragged")


def test_state_dicts_have_the_same_names_and_shapes(full: Full) -> None:
    ours, reference = full.pair.ours.state_dict(), full.pair.reference.state_dict()
    assert {name: weight.shape for name, weight in ours.items()} == {
        name: weight.shape for name, weight in reference.items()
    }


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in ALWAYS else pytest.mark.exhaustive) for case in CASES]
)
def test_every_layer(full: Full, case: str) -> None:
    inputs = CASES[case]()
    ours, reference = encode(full.pair.ours, inputs), encode(full.pair.reference, inputs)
    truth = encode(full.truth, inputs)
    write_figures(case, by_layer(ours, reference, truth))
    assert largest_difference(ours, reference) <= FLOAT32
    assert_no_further(ours, reference, truth)


def by_layer(ours: Encoded, reference: Encoded, truth: Encoded) -> list[dict[str, Any]]:
    """The largest difference between the two, and both's distance from float64, largest and root mean square."""
    names = ["embeddings", *(f"layer {i}" for i in range(1, BASE.num_hidden_layers + 1)), "start", "end"]
    return [
        {
            "value": name,
            "difference": float((x - y).abs().max()),
            "ours": float((x - z).abs().max()),
            "reference": float((y - z).abs().max()),
            "ours_rms": rms(x - z),
            "reference_rms": rms(y - z),
        }
        for name, x, y, z in zip(names, ours.all, reference.all, truth.all, strict=True)
    ]


def test_every_gradient(full: Full) -> None:
    """600 tokens, which is more than one window, and 40 of padding."""
    inputs = {
        "input_ids": torch.cat([question_row(BASE, 20, 600), torch.full((40,), BASE.pad_token_id)])[None],
        "attention_mask": (torch.arange(640) < 600).long()[None],
        "start_positions": torch.tensor([300]),
        "end_positions": torch.tensor([305]),
    }
    ours, reference = gradients(full.pair.ours, inputs), gradients(full.pair.reference, inputs)
    truth = gradients(full.truth, inputs)
    errors = {
        "difference": gradient_errors(ours, reference, BASE),
        "ours": gradient_errors(ours, truth, BASE),
        "reference": gradient_errors(reference, truth, BASE),
    }
    write_figures("gradients", errors)
    assert_gradients_agree(ours, reference, truth, BASE)
    ratios = [
        math.log(errors["ours"][name] / errors["reference"][name])
        for name in errors["ours"]
        if ".self." in name and measure_by(name, BASE) == name
    ]
    assert math.exp(sum(ratios) / len(ratios)) <= GRADIENT_MEAN_RATIO


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["masked words", "one class", "tokens", "choices"])
def test_every_head(name: str) -> None:
    """States, results, loss and gradients of the other heads, over one text of 700 tokens or two choices of 350."""
    case = HEAD_CASES[name]
    config = BASE.replace(**case.changes)
    pair = build(config, kind=case.kind)
    truth = exact(pair)
    rows = [question_row(BASE, 20, 350)] * 2 if name == "choices" else [question_row(BASE, 20, 700)]
    inputs = padded_batch(BASE, rows)
    if name == "choices":
        inputs["input_ids"][1, 100:300] = 50
        inputs = {key: tensor[None] for key, tensor in inputs.items()}
    ours, reference = encode(pair.ours, inputs), encode(pair.reference, inputs)
    assert largest_difference(ours, reference) <= FLOAT32
    assert_no_further(ours, reference, encode(truth, inputs))
    inputs |= answers(case, config, inputs)
    with torch.no_grad():
        torch.testing.assert_close(pair.ours(**inputs).loss, pair.reference(**inputs).loss, rtol=1e-5, atol=1e-6)
    assert_gradients_agree(*(gradients(model, inputs) for model in (*pair, truth)), BASE)
