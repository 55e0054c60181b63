"""LongformerForQuestionAnswering by itself: the question's mask, logits, loss, bad input."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longformer import (
    ConfigError,
    LongformerConfig,
    LongformerError,
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
)
from longformer.parity import assert_within_rounding

CONFIG = LongformerConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=66,
    initializer_range=0.2,
    attention_window=8,
)
SEP, PAD = CONFIG.sep_token_id, CONFIG.pad_token_id
IDS = torch.tensor(
    [
        [0, 11, 12, 13, SEP, SEP, 21, 22, 23, 24, 25, SEP],
        [0, 11, SEP, SEP, 21, 22, 23, 24, SEP, PAD, PAD, PAD],
    ]
)
MASK = (IDS != PAD).long()
QUESTION = torch.tensor([[True] * 4 + [False] * 8, [True] * 2 + [False] * 10])


def build(config: LongformerConfig = CONFIG, **arguments: Any) -> LongformerForQuestionAnswering:
    torch.manual_seed(1)
    return LongformerForQuestionAnswering(config, **arguments).double().eval()


@pytest.fixture(scope="module")
def model() -> LongformerForQuestionAnswering:
    return build()


def positions(start: list[int], end: list[int]) -> dict[str, Tensor]:
    return {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}


def test_logits_unpack(model: LongformerForQuestionAnswering) -> None:
    output = model(IDS, attention_mask=MASK)
    start_logits, end_logits = output
    assert start_logits is output.start_logits and end_logits is output.end_logits
    assert start_logits.shape == end_logits.shape == IDS.shape
    hidden = model.longformer(IDS, MASK, QUESTION).last_hidden_state
    assert torch.equal(torch.stack([start_logits, end_logits], dim=-1), model.qa_outputs(hidden))


def test_a_loss_comes_first(model: LongformerForQuestionAnswering) -> None:
    loss, start_logits, end_logits = model(IDS, MASK, **positions([6, 4], [7, 4]))
    assert loss.shape == ()
    expected = F.cross_entropy(start_logits, torch.tensor([6, 4])) + F.cross_entropy(end_logits, torch.tensor([7, 4]))
    torch.testing.assert_close(loss, expected / 2)
    assert torch.equal(start_logits, model(IDS, MASK).start_logits)


def test_names(model: LongformerForQuestionAnswering) -> None:
    assert model(IDS, MASK).keys() == ("start_logits", "end_logits")
    assert model(IDS, MASK, **positions([6, 4], [7, 4])).keys() == ("loss", "start_logits", "end_logits")
    assert {name.split(".")[0] for name in model.state_dict()} == {"longformer", "qa_outputs"}
    assert not [name for name in model.state_dict() if "pooler" in name]


# ---- the question's mask


def test_the_question_is_global(model: LongformerForQuestionAnswering) -> None:
    assert torch.equal(model.automatic_global_mask(IDS), QUESTION)
    assert model.automatic_global_mask(IDS).dtype == torch.bool
    for explicit in (QUESTION, QUESTION.long()):
        assert torch.equal(model(IDS, MASK).start_logits, model(IDS, MASK, explicit).start_logits)


def test_an_explicit_mask_stands_in_its_place(model: LongformerForQuestionAnswering) -> None:
    none = torch.zeros_like(IDS)
    assert not torch.allclose(model(IDS, MASK, none).start_logits, model(IDS, MASK).start_logits)


def test_a_mask_of_2_joins_the_question(model: LongformerForQuestionAnswering) -> None:
    more = MASK.clone()
    more[:, 7] = 2
    joined = QUESTION.clone()
    joined[:, 7] = True
    assert torch.equal(model(IDS, more).start_logits, model(IDS, MASK, joined).start_logits)


def test_padding_before_the_question(model: LongformerForQuestionAnswering) -> None:
    """Is before the first separator too, and padding all the same."""
    ids = torch.cat([torch.full((2, 3), PAD), IDS], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), MASK], dim=1)
    torch.testing.assert_close(model(ids, mask).start_logits[:, 3:], model(IDS, MASK).start_logits, rtol=0, atol=1e-13)


def test_an_empty_question_and_an_empty_context(model: LongformerForQuestionAnswering) -> None:
    """For the model both are input like any other; ``QuestionAnswerer`` refuses them."""
    ids = torch.tensor([[0, SEP, SEP, 21, SEP], [0, 11, SEP, SEP, SEP]])
    assert model.automatic_global_mask(ids).sum(dim=1).tolist() == [1, 2]
    assert torch.isfinite(model(ids).start_logits).all()


@pytest.mark.parametrize(
    "row, count",
    [
        ([0, 11, 12, 21, 22, 23], 0),
        ([0, 11, SEP, 21, 22, SEP], 2),
        ([0, SEP, SEP, 21, SEP, SEP], 4),
    ],
)
def test_a_row_without_three_separators(model: LongformerForQuestionAnswering, row: list[int], count: int) -> None:
    ids = torch.tensor([[0, 11, SEP, SEP, 21, SEP], row])
    message = rf"row 1 of input_ids has {count} separators \(id 2\); .*<s> question </s></s> context </s>"
    with pytest.raises(LongformerError, match=message):
        model(ids)
    assert torch.isfinite(model(ids, global_attention_mask=torch.zeros_like(ids)).start_logits).all()


def test_the_separator_is_the_config_s() -> None:
    other = build(CONFIG.replace(sep_token_id=5))
    ids = torch.where(IDS == SEP, 5, IDS)
    assert torch.equal(other.automatic_global_mask(ids), QUESTION)
    with pytest.raises(LongformerError, match=r"row 0 of input_ids has 0 separators \(id 5\)"):
        other(IDS)


# ---- loss


def test_positions_outside_are_left_out(model: LongformerForQuestionAnswering) -> None:
    """S and beyond is another window's answer: each end's mean is over the rows that have one here."""
    loss, start_logits, end_logits = model(IDS, MASK, **positions([6, 12], [7, 400]))
    expected = F.cross_entropy(start_logits[:1], torch.tensor([6])) + F.cross_entropy(end_logits[:1], torch.tensor([7]))
    torch.testing.assert_close(loss, expected / 2)
    loss, start_logits, end_logits = model(IDS, MASK, **positions([6, 4], [12, 5]))
    expected = F.cross_entropy(start_logits, torch.tensor([6, 4])) + F.cross_entropy(end_logits[1:], torch.tensor([5]))
    torch.testing.assert_close(loss, expected / 2)


def test_no_position_inside_gives_no_loss(model: LongformerForQuestionAnswering) -> None:
    """0 with gradients of 0, where a mean over nothing would be NaN and spoil the weights."""
    loss = model(IDS, MASK, **positions([12, 13], [12, 99])).loss
    assert loss.item() == 0
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    assert all(grad is not None and not grad.any() for grad in grads)


def test_half_of_the_positions_outside(model: LongformerForQuestionAnswering) -> None:
    loss, start_logits, _ = model(IDS, MASK, **positions([6, 4], [12, 12]))
    torch.testing.assert_close(loss, F.cross_entropy(start_logits, torch.tensor([6, 4])) / 2)


def test_positions_as_a_column(model: LongformerForQuestionAnswering) -> None:
    columns = {name: x[:, None] for name, x in positions([6, 4], [7, 4]).items()}
    assert torch.equal(model(IDS, MASK, **columns).loss, model(IDS, MASK, **positions([6, 4], [7, 4])).loss)


def test_a_negative_position_is_refused(model: LongformerForQuestionAnswering) -> None:
    with pytest.raises(
        LongformerError, match=r"end_positions holds -5; a position counts from 0, and one of S or more"
    ):
        model(IDS, MASK, **positions([6, 4], [7, -5]))


def mean_cross_entropy(start_logits: Tensor, end_logits: Tensor) -> Tensor:
    """Of two answers, from 6 to 7 and of token 4 alone."""
    start, end = torch.tensor([6, 4]), torch.tensor([7, 4])
    return (F.cross_entropy(start_logits, start) + F.cross_entropy(end_logits, end)) / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_a_low_precision_model_is_float32(dtype: torch.dtype) -> None:
    low = build().to(dtype)
    loss, start_logits, end_logits = low(IDS, MASK, **positions([6, 4], [7, 4]))
    assert (loss.dtype, start_logits.dtype) == (torch.float32, dtype)
    assert_within_rounding(loss.detach(), mean_cross_entropy, start_logits, end_logits)
    loss.backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in low.parameters())


def test_training_lowers_the_loss() -> None:
    """Two answers can be learnt by heart."""
    model = LongformerForQuestionAnswering(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        loss = model(IDS, MASK, **positions([6, 4], [7, 5])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ---- bad input


@pytest.mark.parametrize("name", ["start_positions", "end_positions"])
def test_one_position_without_the_other(model: LongformerForQuestionAnswering, name: str) -> None:
    with pytest.raises(LongformerError, match="start_positions and end_positions together, or neither"):
        model(IDS, MASK, **{name: torch.tensor([6, 4])})


@pytest.mark.parametrize("labels", [1, 3])
def test_a_config_with_another_number_of_labels(labels: int) -> None:
    with pytest.raises(ConfigError, match=f"num_labels is {labels}; question answering has 2, start and end"):
        LongformerForQuestionAnswering(CONFIG.replace(num_labels=labels))


@pytest.mark.parametrize("ids", [IDS.tolist(), IDS[0]], ids=["list", "one row"])
def test_ids_that_are_no_batch(model: LongformerForQuestionAnswering, ids: Any) -> None:
    with pytest.raises(LongformerError, match=r"input_ids (is list|has shape \(12,\)); it must be"):
        model(ids)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_ids": IDS.double()}, "input_ids is torch.float64; it must be a tensor of int64"),
        ({"input_ids": torch.where(IDS == 11, 60, IDS)}, "input_ids holds 60"),
        ({"attention_mask": MASK[:, 1:]}, r"attention_mask has shape \(2, 11\)"),
        ({"attention_mask": MASK + 2}, "attention_mask holds 3"),
        ({"global_attention_mask": MASK + 1}, "global_attention_mask holds 2"),
        ({"token_type_ids": MASK}, "token_type_ids holds 1; the model has rows 0 to 0 for it"),
    ],
)
def test_what_the_encoder_refuses(
    model: LongformerForQuestionAnswering, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(LongformerError, match=message):
        model(**{"input_ids": IDS, **arguments})


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (LongformerForQuestionAnswering, {}),
        (LongformerForQuestionAnswering, {"start_positions": torch.tensor([5]), "end_positions": torch.tensor([6])}),
        (LongformerForMaskedLM, {}),
    ],
)
def test_an_exported_program_can_be_saved(kind: Any, given: dict[str, Tensor]) -> None:
    """The outputs, each a class of its own, have a name in the file."""
    model = kind(CONFIG).eval()
    ids = IDS[:1]
    file = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (ids,), given), file)
        file.seek(0)
        found, wanted = torch.export.load(file).module()(ids, **given), model(ids, **given)
    assert type(found) is type(wanted)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
