"""LongformerModel by itself: what goes in and comes out, padding, windows, dropout, determinism, bad input."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from kernel_cases import EVERY_DTYPE
from tiny_models import CONFIG, PAD, assert_close, build, padded, random_ids, states
from torch import Tensor, nn

from longformer import ConfigError, LongformerConfig, LongformerError, LongformerModel


@pytest.fixture(scope="module")
def model() -> LongformerModel:
    return build()


# ---- shapes and names


@pytest.mark.parametrize("batch, seq_len", [(1, 1), (1, 2), (2, 9), (3, 64)])
def test_shapes(model: LongformerModel, batch: int, seq_len: int) -> None:
    last_hidden_state, pooler_output = model(random_ids(batch, seq_len))
    assert last_hidden_state.shape == (batch, seq_len, 32)
    assert pooler_output.shape == (batch, 32)
    assert last_hidden_state.dtype == pooler_output.dtype == torch.float64


def test_output_has_names(model: LongformerModel) -> None:
    output = model(random_ids(2, 9))
    assert output.keys() == ("last_hidden_state", "pooler_output")
    dense = model.pooler.dense
    assert torch.equal(output.pooler_output, torch.tanh(dense(output.last_hidden_state[:, 0])))


def test_without_pooler() -> None:
    model = build(add_pooling_layer=False)
    assert model(random_ids(1, 5)).pooler_output is None
    assert not [name for name in model.state_dict() if name.startswith("pooler")]


def test_state_dict_has_the_checkpoints_names() -> None:
    embeddings = ["word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"]
    embeddings += ["LayerNorm.weight", "LayerNorm.bias"]
    layer = [
        f"{part}.{kind}"
        for part in (
            *(f"attention.self.{name}{suffix}" for suffix in ("", "_global") for name in ("query", "key", "value")),
            "attention.output.dense",
            "attention.output.LayerNorm",
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
        for kind in ("weight", "bias")
    ]
    expected = {f"embeddings.{name}" for name in embeddings}
    expected |= {f"encoder.layer.{i}.{name}" for i in range(2) for name in layer}
    expected |= {"pooler.dense.weight", "pooler.dense.bias"}
    assert set(LongformerModel(CONFIG).state_dict()) == expected


def test_fresh_weights() -> None:
    model = LongformerModel(CONFIG.replace(hidden_size=64, intermediate_size=128, vocab_size=2000))
    for name, weight in model.named_parameters():
        if name.endswith("LayerNorm.weight"):
            assert bool((weight == 1).all()), name
        elif name.endswith("bias"):
            assert bool((weight == 0).all()), name
        elif weight.numel() >= 64 * 64:
            assert float(weight.detach().std()) == pytest.approx(CONFIG.initializer_range, rel=0.1), name
    assert bool((model.embeddings.word_embeddings.weight[PAD] == 0).all())
    assert bool((model.embeddings.position_embeddings.weight[PAD] == 0).all())


# ---- positions and token types


def test_positions_count_tokens_from_behind_the_padding_id(model: LongformerModel) -> None:
    ids = random_ids(1, 8)
    ids[0, 3] = PAD
    expected = torch.tensor([[2, 3, 4, 1, 5, 6, 7, 8]])
    assert torch.equal(states(model, ids), states(model, ids, position_ids=expected))


def test_token_types_are_0_by_default(model: LongformerModel) -> None:
    ids = random_ids(1, 8)
    assert torch.equal(states(model, ids), states(model, ids, token_type_ids=torch.zeros_like(ids)))
    assert not torch.allclose(states(model, ids), states(model, ids, token_type_ids=torch.ones_like(ids)))


def test_padding_does_not_count_against_the_positions(model: LongformerModel) -> None:
    """There are 64 positions; the row is longer, its text is not."""
    text = random_ids(1, 64)
    ids = torch.cat([text, torch.full((1, 30), PAD)], dim=1)
    assert_close(states(model, ids, (ids != PAD).long())[:, :64], states(model, text))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ids_of_either_width(model: LongformerModel, dtype: torch.dtype) -> None:
    ids = random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    assert torch.equal(states(model, ids.to(dtype), mask.to(dtype)), states(model, ids, mask))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.float16])
def test_masks_of_any_dtype(model: LongformerModel, dtype: torch.dtype) -> None:
    ids = random_ids(2, 9)
    mask, globals_ = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, 5:] = 0
    globals_[:, 2] = 1
    assert torch.equal(states(model, ids, mask.to(dtype), globals_.to(dtype)), states(model, ids, mask, globals_))


# ---- padding


@pytest.mark.parametrize("impl", EVERY_DTYPE)
@pytest.mark.parametrize("shifts", [[0, 0, 0], [0, 33, 12]], ids=["right", "left and both sides"])
def test_a_batch_gives_what_its_documents_give_alone(impl: str, shifts: list[int]) -> None:
    model = build(impl=impl)
    rows = [random_ids(40), random_ids(7), random_ids(25)]
    ids, mask = padded(rows, shifts, 40)
    globals_ = torch.zeros_like(ids)
    globals_[0, 3] = globals_[2, [shifts[2], shifts[2] + 9]] = 1
    together = states(model, ids, mask, globals_)
    for i, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        own = slice(shift, shift + len(row))
        assert_close(together[i : i + 1, own], states(model, row[None], None, globals_[i : i + 1, own]))


def test_what_stands_at_padding_changes_nothing(model: LongformerModel) -> None:
    ids, mask = padded([random_ids(20), random_ids(7)], [0, 5], 20)
    mask[0, 9] = 0  # a hole
    other = torch.where(mask == 0, random_ids(2, 20), ids)
    positions = torch.arange(2, 22).expand(2, 20)
    a, b = (states(model, x, mask, position_ids=positions) for x in (ids, other))
    assert torch.equal(a[mask == 1], b[mask == 1])
    assert not torch.equal(a[mask == 0], b[mask == 0])


def test_a_row_of_padding(model: LongformerModel) -> None:
    ids, mask = padded([random_ids(20), random_ids(0)], [0, 0], 20)
    both = states(model, ids, mask)
    assert torch.isfinite(both).all()
    assert_close(both[:1], states(model, ids[:1]))
    alone = states(model, ids[1:], mask[1:])
    assert_close(both[1:], alone)


# ---- global attention and windows


def test_mask_of_2_is_global(model: LongformerModel) -> None:
    ids, mask = padded([random_ids(20), random_ids(9)], [0, 0], 20)
    globals_ = torch.zeros_like(ids)
    globals_[0, [0, 4]] = globals_[1, 8] = 1
    expected = states(model, ids, mask, globals_)
    assert torch.equal(states(model, ids, mask + globals_), expected)
    assert not torch.allclose(states(model, ids, mask), expected)
    both = globals_.clone()
    both[0, 0] = 0  # named by the one mask, and the rest by the other
    assert torch.equal(states(model, ids, mask + globals_ - both, both), expected)


def test_padding_wins_over_global(model: LongformerModel) -> None:
    ids, mask = padded([random_ids(20), random_ids(9)], [0, 0], 20)
    globals_ = torch.zeros_like(ids)
    globals_[:, 2] = 1
    more = globals_.clone()
    more[1, 9:] = 1
    assert torch.equal(states(model, ids, mask, more), states(model, ids, mask, globals_))


def reach(model: LongformerModel, place: int, globals_: Tensor | None = None) -> list[int]:
    """Places whose state changes with the token at ``place``."""
    ids = random_ids(1, 40)
    other = ids.clone()
    other[0, place] = ids[0, place] % 50 + 4
    changed = states(model, ids, None, globals_) != states(model, other, None, globals_)
    return changed[0].any(dim=-1).nonzero().flatten().tolist()


@pytest.mark.parametrize("impl", EVERY_DTYPE)
def test_windows_of_each_layer_add_up(impl: str) -> None:
    """Windows of 2 and 6 see 1 and 3 tokens on each side."""
    model = build(CONFIG.replace(attention_window=(2, 6)), impl=impl)
    assert reach(model, 20) == list(range(16, 25))
    assert reach(model, 0) == list(range(5))


@pytest.mark.parametrize("impl", EVERY_DTYPE)
def test_dilations_of_each_head_and_layer(impl: str) -> None:
    heads = build(CONFIG.replace(num_hidden_layers=1, attention_window=2, attention_dilation=[[1, 2, 2, 5]]), impl=impl)
    assert reach(heads, 20) == [15, 18, 19, 20, 21, 22, 25]
    assert reach(heads, 1) == [0, 1, 2, 3, 6]
    layers = build(CONFIG.replace(attention_window=2, attention_dilation=(1, 4)), impl=impl)
    assert reach(layers, 20) == [15, 16, 17, 19, 20, 21, 23, 24, 25]


@pytest.mark.parametrize(
    "given, kept",
    [
        (3, 3),
        ([2, 2], 2),
        ([[1, 1, 1, 1], 1], 1),
        ((1, 2), (1, 2)),
        ([[1, 1, 2, 2], 3], ((1, 1, 2, 2), 3)),
    ],
)
def test_dilation_in_a_config(given: Any, kept: Any) -> None:
    config = CONFIG.replace(attention_dilation=given)
    assert config.attention_dilation == kept
    written = config.to_dict()
    assert ("attention_dilation" in written) == (kept != 1)
    assert LongformerConfig.from_dict(json.loads(json.dumps(written))) == config


@pytest.mark.parametrize(
    "given, said",
    [
        (0, "attention_dilation is 0; it must be an int >= 1"),
        ([1, [1, 0, 1, 1]], r"attention_dilation is .*must be an int >= 1, or a list"),
        ("2", "attention_dilation is '2'"),
        ([1, 2, 3], "lists 3 layers for num_hidden_layers 2"),
        ([1, [1, 2]], "lists 2 gaps in a layer for num_attention_heads 4"),
    ],
)
def test_a_wrong_dilation_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CONFIG.replace(attention_dilation=given)


def test_a_global_token_sees_all_and_is_seen_by_all() -> None:
    one_layer = build(CONFIG.replace(num_hidden_layers=1, attention_window=(4,)))
    globals_ = torch.zeros(1, 40, dtype=torch.long)
    globals_[0, 33] = 1
    assert reach(one_layer, 33, globals_) == list(range(40))
    assert reach(one_layer, 10, globals_) == [8, 9, 10, 11, 12, 33]


def test_an_odd_window_is_the_even_one_below() -> None:
    ids = random_ids(1, 30)
    odd, even = (build(CONFIG.replace(attention_window=window)) for window in (5, 4))
    assert torch.equal(states(odd, ids), states(even, ids))


def test_a_window_of_one_sees_itself_alone() -> None:
    assert reach(build(CONFIG.replace(attention_window=1)), 20) == [20]


def test_a_window_wider_than_the_text(model: LongformerModel) -> None:
    ids = random_ids(1, 30)
    wide, wider = (build(CONFIG.replace(attention_window=window)) for window in (60, 4096))
    assert torch.equal(states(wide, ids), states(wider, ids))


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_implementations_agree(count: int) -> None:
    """With so few global tokens that keys are not projected, and with more."""
    ids, mask = padded([random_ids(40), random_ids(25)], [0, 3], 40)
    globals_ = torch.zeros_like(ids)
    globals_[:, 3 : 3 + count] = 1
    first, *others = (states(build(impl=impl), ids, mask, globals_) for impl in ("reference", "banded", "blocked"))
    for other in others:
        assert_close(other, first)


def test_an_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="impl is 'fastest'; it must be one of 'auto'"):
        build(impl="fastest")(random_ids(1, 5))


# ---- training


@pytest.mark.parametrize(
    "dropout",
    [
        {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.0},
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.2},
    ],
    ids=["hidden", "attention"],
)
@pytest.mark.parametrize("impl", [impl for impl in EVERY_DTYPE if impl != "fused"])  # which has no dropout
def test_dropout_is_active_in_training_and_seeded(impl: str, dropout: dict[str, float]) -> None:
    model = build(CONFIG.replace(**dropout), impl=impl)
    ids = random_ids(1, 30)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return states(model, ids)

    assert torch.equal(run(1), run(2))
    model.train()
    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2))
    assert not torch.allclose(run(1), states(model.eval(), ids))


@pytest.mark.parametrize("training", [False, True])
def test_runs_are_equal_bit_for_bit(training: bool) -> None:
    """Values and gradients."""
    model = build(dtype=torch.float32).train(training)
    ids, mask = padded([random_ids(60), random_ids(33)], [0, 0], 60)
    globals_ = torch.zeros_like(ids)
    globals_[:, :3] = 1

    def run() -> list[Tensor]:
        torch.manual_seed(7)
        model.zero_grad(set_to_none=True)
        output = model(ids, mask, globals_)
        (output.last_hidden_state.square().sum() + output.pooler_output.sum()).backward()
        return [output.last_hidden_state, *(parameter.grad for parameter in model.parameters())]

    first = run()
    for _ in range(3):
        assert all(torch.equal(x, y) for x, y in zip(first, run(), strict=True))


@pytest.mark.parametrize("count", [0, 1, 20])
def test_every_parameter_has_a_gradient_save_the_global_ones_where_nothing_is_global(count: int) -> None:
    model = build(add_pooling_layer=False)
    ids, mask = padded([random_ids(40), random_ids(25)], [0, 0], 40)
    globals_ = torch.zeros_like(ids)
    globals_[0, :count] = 1
    model(ids, mask, globals_).last_hidden_state.square().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == (set() if count else {name for name, _ in model.named_parameters() if "_global." in name})


# ---- precisions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions(model: LongformerModel, dtype: torch.dtype) -> None:
    """Against the same weights, rounded, in float64; a state of order 1 has been rounded some 20 times."""
    low = build(dtype=dtype)
    exact = build()
    exact.load_state_dict(low.state_dict())
    ids, mask = padded([random_ids(40), random_ids(25)], [0, 0], 40)
    globals_ = torch.zeros_like(ids)
    globals_[:, :2] = 1
    output = states(low, ids, mask, globals_)
    assert output.dtype == dtype
    assert float((output - states(exact, ids, mask, globals_)).abs().max()) < 40 * torch.finfo(dtype).eps


def test_autocast() -> None:
    model = build(dtype=torch.float32)
    ids, mask = padded([random_ids(40), random_ids(25)], [0, 0], 40)
    globals_ = torch.zeros_like(ids)
    globals_[:, :2] = 1
    expected = states(model, ids, mask, globals_)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, mask, globals_).last_hidden_state
        output.float().square().sum().backward()
    assert float((output.float() - expected).detach().abs().max()) < 40 * torch.finfo(torch.bfloat16).eps
    assert all(bool(torch.isfinite(p.grad).all()) for n, p in model.named_parameters() if "pooler" not in n)


# ---- bad input

IDS = torch.full((2, 9), 5)


def put(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed[1, 4] = value
    return changed


NOT_OF_SHAPE = r"it must be a tensor of the input's shape, \(2, 9\)"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_ids": IDS.tolist()}, "input_ids is list; it must be a tensor of int64"),
        ({"input_ids": IDS.float()}, r"input_ids is torch.float32; it must be a tensor of int64"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(9,\); it must be \(B, S\), each at least 1"),
        ({"input_ids": IDS[:, :0]}, r"input_ids has shape \(2, 0\)"),
        ({"input_ids": IDS[:0]}, r"input_ids has shape \(0, 9\)"),
        ({"input_ids": put(IDS, 60)}, "input_ids holds 60; the model has rows 0 to 59 for it"),
        ({"input_ids": put(IDS, -1)}, "input_ids holds -1; the model has rows 0 to 59 for it"),
        ({"input_ids": IDS.repeat(1, 8)}, "sequence of 72 tokens; the model has positions for 64 .*QuestionAnswerer"),
        ({"attention_mask": IDS[:, :8]}, rf"attention_mask has shape \(2, 8\); {NOT_OF_SHAPE}"),
        ({"attention_mask": IDS[0]}, rf"attention_mask has shape \(9,\); {NOT_OF_SHAPE}"),
        ({"attention_mask": [[1] * 9] * 2}, f"attention_mask is a list; {NOT_OF_SHAPE}"),
        ({"attention_mask": put(IDS * 0, 3)}, r"attention_mask holds 3; it may hold 0 \(padding\), 1 .* or 2 \(global"),
        ({"attention_mask": put(IDS * 0, -1)}, "attention_mask holds -1"),
        ({"attention_mask": put(IDS * 0.0, 0.5)}, "attention_mask holds 0.5"),
        ({"attention_mask": put(IDS * 0.0, float("nan"))}, "attention_mask holds nan"),
        ({"attention_mask": put(IDS * 0.0, -10000.0)}, "attention_mask holds -10000.0"),
        ({"global_attention_mask": IDS[:1]}, rf"global_attention_mask has shape \(1, 9\); {NOT_OF_SHAPE}"),
        ({"global_attention_mask": put(IDS * 0, 2)}, r"global_attention_mask holds 2; it may hold 0 \(local\) or 1"),
        ({"global_attention_mask": (0, 1)}, f"global_attention_mask is a tuple; {NOT_OF_SHAPE}"),
        ({"token_type_ids": put(IDS * 0, 2)}, "token_type_ids holds 2; the model has rows 0 to 1 for it"),
        ({"token_type_ids": put(IDS * 0, -1)}, "token_type_ids holds -1"),
        ({"token_type_ids": IDS[:, :8]}, r"token_type_ids has shape \(2, 8\); the input has \(2, 9\)"),
        ({"token_type_ids": IDS.float()}, "token_type_ids is torch.float32; it must be a tensor of int64"),
        ({"position_ids": put(IDS, 66)}, "position_ids holds 66; the model has rows 0 to 65 for it"),
        ({"position_ids": IDS[:, :3]}, r"position_ids has shape \(2, 3\); the input has \(2, 9\)"),
        ({"position_ids": IDS.bool()}, "position_ids is torch.bool; it must be a tensor of int64"),
    ],
)
def test_bad_input(model: LongformerModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        model(**{"input_ids": IDS, **arguments})


def test_the_longest_sequence(model: LongformerModel) -> None:
    assert torch.isfinite(states(model, random_ids(1, 64))).all()
    with pytest.raises(LongformerError, match="65 tokens"):
        model(random_ids(1, 65))


def test_modules_are_ordinary(model: LongformerModel) -> None:
    """No buffers, and nothing that a deep copy or a move would lose."""
    assert list(model.buffers()) == []
    assert isinstance(model.to("meta").encoder, nn.Module)
