"""Pictures: what is drawn is what the kernels compute, and bad input is met with the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longformer import LongformerConfig, LongformerError, LongformerModel, plotting
from longformer.kernels import (
    AttentionPattern,
    attention_pairs,
    known,
    sliding_window_attention,
    sliding_window_probabilities,
)
from longformer.parity import Comparison, Truth, compare, trace
from longformer.parity.measure import MULTIPLE

pytest.importorskip("matplotlib", reason="pictures need matplotlib, the extra plot")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[2] / "longformer" / "bench" / "results"


def small_config(**changes: Any) -> LongformerConfig:
    small = LongformerConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        attention_window=4,
        initializer_range=0.5,
    )
    return LongformerConfig(**{**vars(small), "attention_window": 4, **changes})


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def drawn(axes: Axes) -> np.ndarray:
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def test_the_gallery_draws_what_the_patterns_see() -> None:
    panels = plotting.draw_gallery(Figure(), 24)
    assert len(panels) == len(known.GALLERY) >= 12
    for panel, (name, pattern) in zip(panels, known.GALLERY.items(), strict=True):
        pairs = pattern.pairs(24, heads=1)[0, 0]
        share = f"{int(pairs.sum()) / 24**2:.0%}"
        assert panel.get_title() == f"{name}: {share} of all pairs"
        seen = drawn(panel) > 0
        assert (seen | ~pairs.numpy()).all(), "every pair is drawn"
        if pattern.global_tokens is None:
            assert (seen == pairs.numpy()).all()
        assert len(panel.images) == (2 if getattr(pattern, "score", None) else 1)
    bias = np.ma.filled(panels[list(known.GALLERY).index("ALiBi")].images[1].get_array(), np.nan)
    assert bias[10, 4] == -6 * 2.0**-2 and np.isnan(bias[4, 10])


def test_patterns_of_a_config_and_of_a_mask() -> None:
    config = small_config(attention_pattern="window=4+window=2,dilation=1:6,global=3/full,causal")
    panels = plotting.draw_patterns(Figure(), 20, config)
    assert [[axes.get_title() for axes in row] for row in panels] == [
        ["layer 0, union, head 0", "layer 0, union, head 1"],
        ["layer 1, every token, head 0, dilated by 1", "layer 1, every token, head 1, dilated by 1"],
    ]
    kinds = plotting.attention_kinds(20, config.pattern(0))
    for head in range(2):
        assert (drawn(panels[0][head]) == kinds[head].numpy()).all()
    pairs = config.pattern(0).pairs(20)[0]
    assert torch.equal(kinds > 0, pairs | (torch.arange(20) == 3)[:, None])
    assert not torch.equal(kinds[0], kinds[1])
    field = plotting.receptive_field(20, [known.in_blocks(5), AttentionPattern((1, 0))], 10)
    assert field.sum(1).tolist() == [10, 2, 1]
    with pytest.raises(LongformerError, match=r"chosen by ids, and no ids are given; .* in a picture, give positions"):
        plotting.attention_kinds(9, small_config(attention_pattern="global-ids=3").pattern(0))
    with pytest.raises(LongformerError, match="the pattern union has no dilation and causality of its own"):
        plotting.draw_patterns(Figure(), 9, config, dilation=2)


@pytest.mark.parametrize("causal", [False, True])
def test_a_pattern_is_the_kernels_mask(axes: Axes, causal: bool) -> None:
    window = (2, 0 if causal else 1)
    plotting.draw_pattern(axes, 12, window, dilation=2, causal=causal, global_tokens=(4,))
    local = attention_pairs(12, window, dilation=(2,), causal=causal)[0, 0].numpy()
    place = np.arange(12)
    is_global = (place[:, None] == 4) | (place == 4)
    if causal:
        is_global &= place <= place[:, None]
    assert ((drawn(axes) == 2) == is_global).all()
    assert ((drawn(axes) == 1) == (local & ~is_global)).all()


def test_a_pattern_serves_where_a_window_does(axes: Axes) -> None:
    pattern = AttentionPattern((2, 0), dilation=(1, 3), causal=True)
    kinds = plotting.attention_kinds(12, (2, 0), dilation=(1, 3), causal=True, global_tokens=(4,))
    assert torch.equal(plotting.attention_kinds(12, pattern, global_tokens=(4,)), kinds)
    plotting.draw_pattern(axes, 12, pattern, global_tokens=(4,))
    assert (drawn(axes) == kinds[0].numpy()).all()

    everything = AttentionPattern(None)
    assert (plotting.attention_kinds(12, everything) == 1).all()
    panels = plotting.draw_patterns(Figure(), 12, [pattern, pattern, everything], global_tokens=(4,))
    assert [[panel.get_title() for panel in row] for row in panels] == [
        [f"{layers}, head {head}, dilated by {gap}" for head, gap in ((0, gaps[0]), (1, gaps[1]))]
        for layers, gaps in (("layers 0 to 1, window (2, 0)", (1, 3)), ("layer 2, every token", (1, 1)))
    ]
    assert [(drawn(panel) == one.numpy()).all() for panel, one in zip(panels[0], kinds, strict=True)] == [True, True]
    assert (drawn(panels[1][1])[:4, 5:] == 1).all()
    local = plotting.attention_kinds(12, pattern)
    assert torch.equal(plotting.receptive_field(12, pattern, 7)[0], (local[:, 7] == 1).any(dim=0))
    assert plotting.receptive_field(12, [pattern, everything], 7)[1].all()
    one = plotting.receptive_field(12, [(2, 0)] * 2, 7, dilation=(1, 3), causal=True)
    plotting.draw_receptive_field(axes, 12, [pattern] * 2, 7)
    assert (np.ma.filled(axes.images[1].get_array(), 9) == one.numpy()).all()


def test_a_row_of_a_pattern_is_what_its_output_depends_on() -> None:
    query, key, value = torch.randn(3, 1, 2, 20, 4, dtype=torch.float64)
    is_global = torch.zeros(1, 20, dtype=torch.bool)
    is_global[0, [3, 17]] = True
    kinds = plotting.attention_kinds(20, (2, 3), dilation=(1, 3), global_tokens=(3, 17))
    value.requires_grad_()
    out = sliding_window_attention(query, key, value, (2, 3), dilation=(1, 3), global_mask=is_global)
    for row in (0, 9, 19):  # of global rows the picture shows what replaces them
        (grad,) = torch.autograd.grad(out[0, :, row].sum(), value, retain_graph=True)
        assert torch.equal(grad[0, :, :, 0] != 0, kinds[:, row] != 0)


def test_a_configs_patterns_share_pictures(axes: Axes) -> None:
    config = small_config(num_hidden_layers=4, attention_window=(4, 4, 8, 12))
    panels = plotting.draw_patterns(Figure(), 30, config, dilation=(1, 2), global_tokens=(0,))
    assert [[panel.get_title() for panel in row] for row in panels] == [
        [f"{layers}, window {window}, head {head}, dilated by {head + 1}" for head in (0, 1)]
        for layers, window in (("layers 0 to 1", (2, 2)), ("layer 2", (4, 4)), ("layer 3", (6, 6)))
    ]
    expected = plotting.attention_kinds(30, (4, 4), dilation=(1, 2), global_tokens=(0,))
    for panel, kinds in zip(panels[1], expected, strict=True):
        assert (drawn(panel) == kinds.numpy()).all()
    ((one,),) = plotting.draw_patterns(Figure(), 30, (3, 0), causal=True)
    assert (drawn(one) == plotting.attention_kinds(30, (3, 0), causal=True)[0].numpy()).all()


def test_a_configs_dilations_are_drawn() -> None:
    config = small_config(num_hidden_layers=3, attention_window=4, attention_dilation=[1, 1, [1, 2]])
    panels = plotting.draw_patterns(Figure(), 30, config)
    assert [[panel.get_title() for panel in row] for row in panels] == [
        [f"{layers}, window (2, 2), head {head}, dilated by {gap}" for head, gap in ((0, 1), (1, last))]
        for layers, last in (("layers 0 to 1", 1), ("layer 2", 2))
    ]
    expected = plotting.attention_kinds(30, (2, 2), dilation=2)[0]
    assert (drawn(panels[1][1]) == expected.numpy()).all()
    fields = plotting.receptive_field(30, config, 15).sum(dim=1).tolist()
    assert fields == [
        17,
        13,
        7,
        1,
    ]  # at -4, -2, -1, 0, 1, 2, 4 before the last layer, 2 more on each side in each other
    assert plotting.receptive_field(30, config, 15, dilation=1).sum(dim=1).tolist() == [13, 9, 5, 1]


def test_a_receptive_field_is_what_a_models_output_depends_on(axes: Axes) -> None:
    config = small_config(num_hidden_layers=3, attention_window=(2, 6, 4))
    model = LongformerModel(config, add_pooling_layer=False).double().eval()
    seen: list[torch.Tensor] = []
    for module in (model.embeddings, *model.encoder.layer):
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(torch.full((1, 40), 7))
    for output in seen:
        output.retain_grad()
    seen[-1].reshape(40, -1)[20, 0].backward()  # the sum of a normalised row is constant
    depends = torch.stack([output.grad.reshape(40, -1).ne(0).any(1) for output in seen[:-1] if output.grad is not None])

    plotting.draw_receptive_field(axes, 40, config, 20)
    assert depends.shape == (3, 40)
    assert torch.equal(depends, plotting.receptive_field(40, config, 20)[:-1])
    assert (drawn(axes)[:-1] == depends.numpy()).all()
    assert drawn(axes).sum(axis=1).tolist() == [13, 11, 5, 1]
    assert plotting.receptive_field(40, config, 20, global_tokens=(0,))[0].all()


@pytest.mark.parametrize("dilation", [1, 2])
def test_probabilities_by_diagonals(axes: Axes, dilation: int) -> None:
    query, key = torch.randn(2, 2, 3, 15, 4)
    is_global = torch.zeros(2, 15, dtype=torch.bool)
    is_global[0, [2, 9]], is_global[1, 5] = True, True
    found = sliding_window_probabilities(query, key, (2, 1), dilation=dilation, global_mask=is_global)
    plotting.draw_probabilities(axes, found, (2, 1), dilation=dilation, batch=1, head=2)
    assert drawn(axes).shape == (15, 1 + 1 + 4)  # its one global column, a gap, the band
    assert (drawn(axes)[:, 0] == found.columns[1, 2, :, 0].numpy()).all()
    assert np.isnan(drawn(axes)[:, 1]).all()
    assert (drawn(axes)[:, 2:] == found.band[1, 2].numpy()).all()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"-{2 * dilation}", "0", f"+{dilation}"]


def test_probabilities_pair_by_pair(axes: Axes) -> None:
    query, key = torch.randn(2, 1, 2, 15, 4, dtype=torch.float64)
    value = torch.eye(15, dtype=torch.float64).expand(1, 2, 15, 15)
    is_global = torch.zeros(1, 15, dtype=torch.bool)
    is_global[0, [2, 9]] = True
    pattern: dict[str, Any] = {"dilation": (1, 3), "global_mask": is_global}
    found = sliding_window_probabilities(query, key, (2, 1), **pattern)
    # With the unit matrix for values the output is the probabilities. Its rows are wider than a head here.
    wide = [torch.nn.functional.pad(x, (0, 11)) for x in (query, key)]
    expected = sliding_window_attention(*wide, value, (2, 1), scale=0.5, impl="reference", **pattern)
    dense = plotting.dense_probabilities(found, (2, 1), (1, 3))
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-14)
    assert torch.equal(plotting.dense_probabilities(found, AttentionPattern((2, 1), (1, 3))), dense)
    plotting.draw_probabilities(axes, found, AttentionPattern((2, 1), (1, 3)), dense=True)
    assert np.allclose(drawn(axes), expected[0].mean(0).numpy(), atol=1e-7)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    torch.manual_seed(0)
    model = LongformerModel(small_config(), add_pooling_layer=False).eval()
    inputs = {"input_ids": torch.randint(5, 20, (1, 24)), "attention_mask": torch.ones(1, 24, dtype=torch.int64)}
    with trace(model) as ours:
        model(**inputs)
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0] += 0.1
        with trace(model) as theirs:
            model(**inputs)
        model.encoder.layer[1].output.dense.weight[0] -= 0.1
    return compare(ours, theirs, truth=Truth(model, inputs), names=("ours", "port"))


def test_depth_is_the_comparisons_errors(axes: Axes, comparison: Comparison) -> None:
    assert comparison.first is not None
    plotting.draw_depth(axes, comparison)
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    for name, side in (("ours", "a"), ("port", "b")):
        expected = [getattr(value, side).rms or np.nan for value in comparison.values]
        np.testing.assert_array_equal(lines[name].get_ydata(), expected)
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses[0].get_xdata()) == 0
    assert crosses[1].get_xdata()[0] == comparison.values.index(comparison.first)
    allowed = axes.collections[0].get_paths()[0].vertices
    assert np.isclose(allowed[:, 1].max(), MULTIPLE * max(value.a.noise for value in comparison.values if value.a))


@pytest.mark.parametrize(("quantity", "values", "scale"), [("time", "seconds", 1e3), ("memory", "bytes", 1e-6)])
def test_cost_is_the_reports_medians(axes: Axes, quantity: str, values: str, scale: float) -> None:
    plotting.draw_cost(axes, RESULTS / "scaling.json", quantity)
    report = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    expected: dict[str, list[tuple[int, float]]] = {}
    for case in report["cases"]:
        for result in case["results"]:
            if values in result:
                point = (case["settings"]["seq_len"], result["median"] * scale)
                expected.setdefault(result["name"], []).append(point)
    found = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    floor = found.pop("the band's arithmetic at matrix-product speed", None)
    assert found == expected
    assert (floor is not None) == (quantity == "time")


def test_precision_against_recall(axes: Axes) -> None:
    plotting.draw_precision_recall(axes, {"exact": ([0, 0.25, 0.5], [1, 1, 0.5]), "oracle": ([0, 1], [1, 0.75])})
    assert {line.get_label(): [list(values) for values in line.get_data()] for line in axes.lines} == {
        "exact": [[0, 0.25, 0.5], [1, 1, 0.5]],
        "oracle": [[0, 1], [1, 0.75]],
    }
    assert all(line.get_drawstyle() == "steps-post" for line in axes.lines)


def test_values_for_no_answer_by_kind(axes: Axes) -> None:
    plotting.draw_values_by_kind(axes, [-3.0, -3.0, 1.0], [1.0, 5.0])
    bars = [[bar.get_height() for bar in container] for container in axes.containers]
    assert [len(heights) for heights in bars] == [20, 20] and [sum(heights) for heights in bars] == pytest.approx(
        [1, 1]
    )
    assert (bars[0][0], bars[1][-1]) == pytest.approx((2 / 3, 1 / 2))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["with an answer", "without"]


def test_values_of_one_kind_or_of_none(axes: Axes) -> None:
    plotting.draw_precision_recall(axes, {})
    plotting.draw_values_by_kind(axes, [], [])
    assert not axes.lines and not axes.containers
    plotting.draw_values_by_kind(axes, [], [0.5])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["without"]


EVERYTHING, HEADS = AttentionPattern(None), AttentionPattern((1, 1), (1, 2))
PROBABILITIES = sliding_window_probabilities(torch.zeros(1, 2, 9, 4), torch.zeros(1, 2, 9, 4), (2, 1))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda axes: plotting.draw_pattern(axes, 5000, (1, 1)), "seq_len is 5000; .* from 1 to 4096"),
        (lambda axes: plotting.draw_pattern(axes, 0, (1, 1)), "seq_len is 0"),
        (lambda axes: plotting.draw_pattern(axes, 9, (1, -1)), r"window is \(1, -1\); it must be \(left, right\)"),
        (lambda axes: plotting.draw_pattern(axes, 9, (1, 1), dilation=0), "dilation is 0; .*>= 1"),
        (lambda axes: plotting.draw_pattern(axes, 9, (1, 1), global_tokens=[9]), "global_tokens has 9; .*from 0 to 8"),
        (lambda axes: plotting.draw_pattern(axes, 9, None), r"window is None; .*AttentionPattern\(None\)"),
        (
            lambda axes: plotting.draw_pattern(axes, 9, AttentionPattern((1, 1)), dilation=2),
            "dilation=2 is given",
        ),
        (lambda axes: plotting.draw_patterns(axes.figure, 9, [EVERYTHING], causal=True), "causal=True is given"),
        (
            lambda axes: plotting.draw_patterns(axes.figure, 9, [HEADS, AttentionPattern((1, 1), (1, 2, 3))]),
            r"not of one number of heads: dilation is \(1, 2\)",
        ),
        (lambda axes: plotting.draw_patterns(axes.figure, 9, []), "no windows; give"),
        (lambda axes: plotting.draw_patterns(axes.figure, 9, [(1, 1), 3]), "window is 3"),
        (lambda axes: plotting.draw_receptive_field(axes, 9, (1, 1), 9), "token is 9; .*from 0 to 8"),
        (lambda axes: plotting.draw_probabilities(axes, PROBABILITIES, (2, 2)), r"\(2, 2\), .* 5 wide; .* 4: give"),
        (lambda axes: plotting.draw_probabilities(axes, PROBABILITIES, (2, 1), head=2), "head is 2; .*from 0 to 1"),
        (lambda axes: plotting.draw_probabilities(axes, PROBABILITIES, (2, 1), batch=1), "batch is 1; .*from 0 to 0"),
        (lambda axes: plotting.draw_probabilities(axes, PROBABILITIES, (2, 1), dilation=(1, 2)), "choose a head"),
        (
            lambda axes: plotting.draw_probabilities(axes, PROBABILITIES, (2, 1), dilation=(1, 2, 3)),
            "of the 2 heads",
        ),
        (lambda axes: plotting.draw_cost(axes, RESULTS / "scaling.json", "money"), "quantity is 'money'; .*\"time\""),
        (
            lambda axes: plotting.draw_cost(axes, RESULTS / "absent.json"),
            r"no file at .*absent\.json.* writes a report",
        ),
        (lambda axes: plotting.draw_cost(axes, {"cases": []}), "has no time by length; `longformer bench scaling"),
        (lambda axes: plotting.draw_cost(axes, {}), "this is no report"),
    ],
)
def test_bad_input_is_named(axes: Axes, draw: Callable[[Axes], object], message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        draw(axes)


def test_depth_without_a_truth(axes: Axes, comparison: Comparison) -> None:
    with pytest.raises(LongformerError, match=r"no gradient was measured against a truth; give compare\(\) one"):
        plotting.draw_depth(axes, comparison, gradients=True)


def test_the_readmes_picture(tmp_path: Path) -> None:
    plotting.save_patterns(tmp_path / "patterns.png")
    assert (tmp_path / "patterns.png").read_bytes().startswith(b"\x89PNG")
