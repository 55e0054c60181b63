"""The heads with labels by themselves: logits, global tokens, losses, compiled graphs, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from head_cases import CASES, HeadCase, answers
from tiny_heads import build_class
from tiny_models import CONFIG, PAD
from torch import Tensor

from longformer import (
    LongformerError,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
)
from longformer.models.heads import IGNORED
from longformer.parity import assert_within_rounding

SEP = CONFIG.sep_token_id
IDS = torch.tensor(
    [
        [0, 11, 12, 13, SEP, SEP, 21, 22, 23, 24, 25, SEP],
        [0, 11, SEP, SEP, 21, 22, 23, 24, SEP, PAD, PAD, PAD],
    ]
)
MASK = (IDS != PAD).long()
CHOICES = IDS[None]  # one question with two choices
EMBEDS = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
FIRST = torch.zeros_like(IDS)
FIRST[:, 0] = 1


def build(name: str, **arguments: Any) -> Any:
    case = CASES[name]
    return build_class(case.kind, CONFIG.replace(**case.changes), **arguments)


def spread(labels: int = 3, **changes: Any) -> LongformerForSequenceClassification:
    config = CONFIG.replace(num_labels=labels, **changes)
    model: LongformerForSequenceClassification = build_class(LongformerForSequenceClassification, config)
    return model


def batch_of(case: HeadCase) -> dict[str, Tensor]:
    """(2, 12) ids, or (1, 2, 12), with answers."""
    inputs = {"input_ids": IDS, "attention_mask": MASK}
    if case.kind is LongformerForMultipleChoice:
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    return inputs | answers(case, CONFIG.replace(**case.changes), inputs)


# ---- logits


def test_a_text_is_classified_by_its_first_token() -> None:
    model = spread()
    head = model.classifier
    states = model.longformer(IDS, MASK, FIRST).last_hidden_state
    expected = head.out_proj(torch.tanh(head.dense(states[:, 0])))
    assert torch.equal(model(IDS, MASK).logits, expected) and expected.shape == (2, 3)


def test_every_token_is_classified() -> None:
    model = build("tokens")
    states = model.longformer(IDS, MASK).last_hidden_state
    expected = model.classifier(states)
    assert torch.equal(model(IDS, MASK).logits, expected) and expected.shape == (2, 12, 3)


def test_choices_are_scored_by_the_pooler() -> None:
    """Each choice by itself, whatever stands beside it."""
    model = build("choices")
    behind = torch.zeros_like(IDS)
    behind[0, 6:] = behind[1, 4:] = 1
    pooled = model.longformer(IDS, MASK, behind).pooler_output
    logits = model(CHOICES, MASK[None]).logits
    assert logits.shape == (1, 2)
    torch.testing.assert_close(logits, model.classifier(pooled).T, rtol=0, atol=1e-13)
    apart = [model(IDS[i, None, None], MASK[i, None, None]).logits for i in range(2)]
    torch.testing.assert_close(logits, torch.cat(apart, dim=1), rtol=0, atol=1e-13)


def test_the_first_token_is_global() -> None:
    model = spread()
    assert torch.equal(model.automatic_global_mask(IDS), FIRST.bool())
    assert torch.equal(model(IDS, MASK).logits, model(IDS, MASK, FIRST).logits)
    assert not torch.equal(model(IDS, MASK).logits, model(IDS, MASK, torch.zeros_like(IDS)).logits)
    given = model(inputs_embeds=EMBEDS, attention_mask=MASK).logits
    expected = model(inputs_embeds=EMBEDS, attention_mask=MASK, global_attention_mask=FIRST).logits
    assert torch.equal(given, expected)


def test_no_token_is_global_in_token_classification() -> None:
    model = build("tokens")
    assert model.automatic_global_mask(IDS) is None
    assert torch.equal(model(IDS, MASK).logits, model(IDS, MASK, torch.zeros_like(IDS)).logits)


def test_what_stands_behind_the_question_is_global_in_multiple_choice() -> None:
    """The choice, the last separator, and padding, which wins."""
    model = build("choices")
    expected = [[False] * 6 + [True] * 6, [False] * 4 + [True] * 8]
    assert model.automatic_global_mask(IDS).tolist() == expected
    with pytest.raises(LongformerError, match=r"row 1 of input_ids has 2 separators .*multiple choice needs three"):
        model(torch.where(CHOICES == 24, PAD, CHOICES).masked_fill(torch.arange(12) == 8, PAD))


@pytest.mark.parametrize(
    ("kind", "ids", "shape"),
    [
        (LongformerForSequenceClassification, IDS, (2, 3)),
        (LongformerForTokenClassification, IDS, (2, 12, 3)),
        (LongformerForMultipleChoice, CHOICES, (1, 2)),
    ],
)
def test_dropout_in_training(kind: Any, ids: Tensor, shape: tuple[int, ...]) -> None:
    """In the head too: with the encoder in ``eval()`` mode, only the head's own dropout is left."""
    head = kind(CONFIG.replace(num_labels=3, hidden_dropout_prob=0.5)).train()
    head.longformer.eval()
    logits = [head(ids).logits for _ in range(2)]
    assert logits[0].shape == shape and not torch.equal(*logits)
    head.eval()
    assert torch.equal(head(ids).logits, head(ids).logits)


# ---- losses, by hand


def test_cross_entropy() -> None:
    model = spread()
    loss, logits = model(IDS, MASK, labels=torch.tensor([2, 0]))
    rows = logits.tolist()
    expected = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(rows, (2, 0), strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-12)
    for same in (torch.tensor([[2], [0]]), torch.tensor([2, 0], dtype=torch.int32)):
        assert torch.equal(model(IDS, MASK, labels=same).loss, loss)
    assert model(IDS, MASK, labels=torch.tensor([2, IGNORED])).loss.item() == pytest.approx(expected[0], rel=1e-12)


def test_squared_error() -> None:
    model = spread(1)
    loss, logits = model(IDS, MASK, labels=torch.tensor([0.5, -2.0]))
    (a,), (b,) = logits.tolist()
    assert loss.item() == pytest.approx(((a - 0.5) ** 2 + (b + 2) ** 2) / 2, rel=1e-12)
    assert torch.equal(model(IDS, MASK, labels=torch.tensor([[0.5], [-2.0]])).loss, loss)
    labels = torch.tensor([[0.5, 1, 2], [-2.0, 0, 3]])
    several = spread(problem_type="regression")
    loss, logits = several(IDS, MASK, labels=labels)
    terms = [(x - y) ** 2 for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_binary_cross_entropy() -> None:
    """The labels' dtype says that each class is asked for by itself, or else the config."""
    labels = torch.tensor([[1.0, 0, 0.25], [0, 1, 1]])
    for model in (spread(), spread(problem_type="multi_label_classification")):
        loss, logits = model(IDS, MASK, labels=labels)
        terms = [
            math.log(1 + math.exp(-x)) * y + math.log(1 + math.exp(x)) * (1 - y)
            for x, y in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
        ]
        assert loss.item() == pytest.approx(sum(terms) / 6, rel=1e-12)


def test_the_problem_that_the_labels_pose() -> None:
    integers, floats = torch.tensor([0, 1]), torch.tensor([0.0, 1.0])
    assert spread(1).problem_type(integers) == spread(1).problem_type(floats) == "regression"
    assert spread().problem_type(integers) == "single_label_classification"
    assert spread().problem_type(floats) == "multi_label_classification"
    assert spread(problem_type="regression").problem_type(integers) == "regression"


def test_the_loss_of_tokens_is_the_mean_over_those_with_a_label() -> None:
    labels = torch.full_like(IDS, IGNORED)
    labels[0, 3], labels[0, 7], labels[1, 4] = 2, 0, 1
    loss, logits = build("tokens")(IDS, MASK, labels=labels)
    probabilities = logits.detach().softmax(-1)
    chosen = [probabilities[0, 3, 2], probabilities[0, 7, 0], probabilities[1, 4, 1]]
    assert loss.item() == pytest.approx(-sum(math.log(p) for p in chosen) / 3, rel=1e-12)


def test_the_loss_of_choices() -> None:
    loss, logits = build("choices")(CHOICES, MASK[None], labels=torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(logits.detach().softmax(-1)[0, 1]), rel=1e-12)


@pytest.mark.parametrize("name", ["one class", "tokens", "choices", "masked words"])
def test_no_label_gives_no_loss(name: str) -> None:
    """0 with gradients of 0, where a mean over nothing would be NaN and spoil the weights."""
    inputs = batch_of(CASES[name])
    model = build(name)
    loss = model(**{**inputs, "labels": torch.full_like(inputs["labels"], IGNORED)}).loss
    assert loss.item() == 0
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert grads and not any(bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_a_low_precision_model_is_float32(name: str, dtype: torch.dtype) -> None:
    model, inputs = build(name, dtype=dtype), batch_of(CASES[name])
    loss, *results = model(**inputs)
    assert loss.dtype == torch.float32 and {x.dtype for x in results} == {dtype}
    if name != "question answering":  # which test_heads has
        labels = inputs["labels"]
        assert_within_rounding(loss.detach(), lambda logits: model._loss(logits, labels), results[0])
    loss.backward()
    assert all(bool(torch.isfinite(x.grad).all()) for x in model.parameters() if x.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_training_step_compiles_in_one_graph(name: str) -> None:
    """Loss, results and gradients are those of eager mode; labels are checked inside the graph.

    A graph cannot know that the attention mask marks no token 2. So the projections of global tokens get zeros there.
    """
    torch.compiler.reset()
    model, inputs = build(name, dtype=torch.float32), batch_of(CASES[name])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for run in (compiled, model):
        output = run(**inputs)
        output.loss.backward()
        found.append([*output, *(torch.zeros_like(x) if x.grad is None else x.grad for x in model.parameters())])
        model.zero_grad(set_to_none=True)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_in_a_graph_without_masks_what_has_no_part_has_no_gradient() -> None:
    torch.compiler.reset()
    model = build("tokens", dtype=torch.float32)
    ids = torch.tensor([[0, 5, 6, 7, 2]])
    torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=torch.zeros_like(ids)).loss.backward()
    assert not [name for name, x in model.named_parameters() if "_global." in name and x.grad is not None]


# ---- bad input

INTEGERS, FLOATS = torch.tensor([0, 1]), torch.tensor([0.0, 1.0])
ROWS = torch.tensor([[0.0, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, [0, 1], "labels is a list; it must be a tensor"),
        ({}, INTEGERS + 2, r"labels holds 3; it may hold -100 \(not to be predicted\) and the classes 0 to 2"),
        ({}, INTEGERS - 1, "labels holds -1; it may hold -100"),
        ({}, INTEGERS[:1], r"labels is torch.int64 of shape \(1,\); it must be int64 of shape \(2,\)"),
        ({}, torch.tensor([[0, 1, 0]] * 2), r"labels is torch.int64 of shape \(2, 3\); it must be int64 of shape \(2,"),
        ({}, FLOATS, r"for multi_label_classification it must be floating point, .* of shape \(2, 3\)"),
        ({}, 2 * ROWS, "labels holds 2.0; for multi_label_classification it may hold numbers from 0 to 1"),
        ({}, ROWS - 1, "labels holds -1.0; for multi_label_classification it may hold numbers from 0 to 1"),
        ({"num_labels": 1}, ROWS, r"for regression it must be floating point, .* of shape \(2,\)"),
        ({"num_labels": 1}, FLOATS / 0, "labels holds nan; for regression it may hold finite numbers"),
        ({"problem_type": "regression"}, FLOATS, r"for regression it must be floating point, .* of shape \(2, 3\)"),
        (
            {"problem_type": "single_label_classification"},
            ROWS,
            r"labels is torch.float32 of shape \(2, 3\); it must b",
        ),
        (
            {"problem_type": "multi_label_classification"},
            ROWS.long(),
            r"for multi_label_classification it must be floating point, as labels\.float\(\) gives",
        ),
    ],
)
def test_labels_of_texts_that_do_not_fit(changes: dict[str, Any], labels: Any, message: str) -> None:
    model = build_class(LongformerForSequenceClassification, CONFIG.replace(**{"num_labels": 3, **changes}))
    with pytest.raises(LongformerError, match=message):
        model(IDS, MASK, labels=labels)


def test_whole_numbers_as_a_regressions_labels() -> None:
    model = build_class(LongformerForSequenceClassification, CONFIG.replace(num_labels=1))
    assert torch.equal(model(IDS, MASK, labels=INTEGERS).loss, model(IDS, MASK, labels=FLOATS).loss)


def test_one_row_of_positions_for_all_choices() -> None:
    model = build("choices")
    inputs = {name: x for name, x in batch_of(CASES["choices"]).items() if name != "position_ids"}
    row = torch.arange(2, 2 + inputs["input_ids"].shape[-1])[None]
    every = row.expand(inputs["input_ids"].shape)
    assert torch.equal(model(**inputs, position_ids=row).logits, model(**inputs, position_ids=every).logits)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (IDS[:, 1:] * 0, r"labels is torch.int64 of shape \(2, 11\); it must be int64 of shape \(2, 12\)"),
        (IDS * 0.0, r"labels is torch.float32 of shape \(2, 12\); it must be int64"),
        (IDS * 0 + 3, "labels holds 3; it may hold -100"),
        ("words", "labels is 'words'; it must be int64"),
    ],
)
def test_labels_of_tokens_that_do_not_fit(labels: Any, message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        build("tokens")(IDS, MASK, labels=labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.tensor([2])}, "labels holds 2; it may hold -100 .* and the choices 0 to 1"),
        ({"labels": torch.tensor([0, 1])}, r"labels is torch.int64 of shape \(2,\); it must be int64 of shape \(1,\)"),
        ({"labels": torch.tensor([1.0])}, r"labels is torch.float32 of shape \(1,\); it must be int64"),
        ({"input_ids": IDS}, r"input_ids has shape \(2, 12\); multiple choice takes a tensor of shape \(B, N, S\)"),
        (
            {"input_ids": [IDS, IDS[:1]]},
            "input_ids is a list; multiple choice takes .*, as many choices for every question",
        ),
        (
            {"attention_mask": MASK[None, :1]},
            r"attention_mask has shape \(1, 1, 12\); every input must be \(B, N, S\) =",
        ),
        (
            {"global_attention_mask": FIRST},
            r"global_attention_mask has shape \(2, 12\); every input must be \(B, N, S\)",
        ),
        ({"token_type_ids": FIRST[None, :, 1:]}, r"token_type_ids has shape \(1, 2, 11\); every input must be"),
        ({"position_ids": [1]}, "position_ids is a list; every input must be"),
        (
            {"input_ids": None, "inputs_embeds": EMBEDS},
            r"inputs_embeds has shape \(2, 12, 32\); multiple choice takes a tensor of shape \(B, N, S, C\)",
        ),
        ({"input_ids": None, "inputs_embeds": EMBEDS[None]}, "give a global_attention_mask with 1 at each choice"),
        ({"input_ids": None}, "input_ids is None; multiple choice takes a tensor"),
        ({"inputs_embeds": EMBEDS[None]}, "give input_ids or inputs_embeds, one of them; both are given"),
    ],
)
def test_choices_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        build("choices")(**{"input_ids": CHOICES, **arguments})


@pytest.mark.parametrize("name", [name for name in CASES if name != "choices"])
def test_ids_and_embeddings_both_or_neither(name: str) -> None:
    model, targets = build(name), batch_of(CASES[name])
    ids = targets.pop("input_ids")
    with pytest.raises(LongformerError, match="give input_ids or inputs_embeds, one of them; neither is given"):
        model()
    for more in ({}, targets):
        with pytest.raises(LongformerError, match="give input_ids or inputs_embeds, one of them; both are given"):
            model(ids, inputs_embeds=EMBEDS, **more)


def test_embeddings_without_the_separators_that_would_say_what_is_global() -> None:
    model = build_class(LongformerForQuestionAnswering)
    with pytest.raises(
        LongformerError, match="give a global_attention_mask with 1 at <s> and the question, 0 elsewhere"
    ):
        model(inputs_embeds=EMBEDS)
    assert model(inputs_embeds=EMBEDS, global_attention_mask=FIRST).start_logits.shape == (2, 12)
    for name in ("one class", "tokens", "masked words"):  # where nothing depends on the ids
        assert torch.isfinite(build(name)(inputs_embeds=EMBEDS).logits).all()


def test_answers_without_an_input() -> None:
    for name, case in CASES.items():
        given = {key: x for key, x in batch_of(case).items() if key in case.kind.targets}
        with pytest.raises(LongformerError, match="input_ids"):
            build(name)(**given)


def test_labels_of_a_batch_on_padding() -> None:
    """A label at padding counts like any other: what is not to count has -100."""
    model, labels = build("tokens"), torch.zeros_like(IDS)
    full = model(IDS, MASK, labels=labels).loss
    assert not torch.equal(full, model(IDS, MASK, labels=labels.masked_fill(MASK == 0, IGNORED)).loss)
