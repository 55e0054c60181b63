"""The verdict: every planted mistake is found where it is and called by name, and nothing clean is called different."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from parity_mistakes import MISTAKES, Inputs, batch, fresh, judge, layer, run
from reference import TINY, Pair, build, global_mask, padded_batch, question_row, with_weights
from torch import Tensor, nn

from longformer import LongformerForQuestionAnswering
from longformer.errors import DataError
from longformer.kernels import AttentionPattern
from longformer.models.attention import LongformerSelfAttention
from longformer.parity import Trace, Truth, assert_parity, compare, trace
from longformer.parity.report import summary, table


@dataclasses.dataclass
class Case:
    pair: Pair
    inputs: Inputs
    truth: Truth
    expected: Trace


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    pair, inputs = build(TINY), batch()
    return Case(pair, inputs, Truth(pair.ours, inputs), run(pair.reference, inputs))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(case: Case, name: str) -> None:
    found = judge(name, case.pair, case.inputs, case.truth, case.expected)
    assert found.verdict == "different"
    assert found.departed == ("port",)
    assert found.first is not None and found.first.name == MISTAKES[name].first
    assert len(found.hints) == 1
    assert MISTAKES[name].hint in found.hints[0]


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.slow
def test_a_planted_mistake_is_found_on_either_side(case: Case, name: str) -> None:
    spoilt = MISTAKES[name].plant(case.pair, fresh(case.pair), case.inputs)
    found = compare(spoilt, case.expected, truth=case.truth)
    assert (found.verdict, found.departed) == ("different", ("A",))
    assert found.first is not None and found.first.name == MISTAKES[name].first
    assert MISTAKES[name].hint in found.hints[0]


def test_positions_are_named(case: Case) -> None:
    found = judge("padded rows not zeroed", case.pair, case.inputs, case.truth, case.expected)
    assert found.first is not None
    assert all(position.kinds == ("padding",) for position in found.first.positions)
    found = judge("the local projection used for global rows", case.pair, case.inputs, case.truth, case.expected)
    assert found.first is not None
    for position in found.first.positions:
        assert "global" in position.kinds
        assert position.batch is not None and position.token is not None
        # Global rows are recorded apart; what is named is the token's place in the input.
        assert position.token <= [6, 3, 10][position.batch]


def test_weights_that_differ_are_listed(case: Case) -> None:
    found = judge("an output weight transposed", case.pair, case.inputs, case.truth, case.expected)
    assert found.notes == [
        "port was computed with other weights in longformer.encoder.layer.1.attention.output.dense.weight"
    ]


@pytest.mark.parametrize("impl", ["blocked", "banded", "reference"])
def test_kernels_are_rounding(case: Case, impl: str) -> None:
    model = with_weights(TINY, case.pair.ours.state_dict(), impl=impl)
    found = compare(case.expected, run(model, case.inputs), truth=case.truth)
    assert found.verdict == "rounding"
    assert found.first is None and found.hints == [] and found.departed == ()


def test_the_same_is_identical_and_needs_no_truth(case: Case) -> None:
    a, b = run(case.pair.ours, case.inputs), run(case.pair.ours, case.inputs)
    assert compare(a, b).verdict == "identical"
    assert compare(a, b, truth=case.truth).verdict == "identical"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ["ours", "reference"])
def test_lower_precision_is_rounding(case: Case, dtype: torch.dtype, which: str) -> None:
    model = copy.deepcopy(getattr(case.pair, which)).to(dtype)
    found = compare(case.expected, run(model, case.inputs), truth=case.truth)
    assert found.verdict == "rounding"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["short", "one token", "no global", "left padding", "all global"])
@pytest.mark.slow
def test_clean_pairs_are_rounding(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    pair = build(TINY, seed=seed)
    row = question_row(TINY, 5, 33)
    inputs: Inputs
    match kind:
        case "short":
            inputs = {"input_ids": question_row(TINY, 1, 5)[None]}
        case "one token":
            inputs = {"input_ids": row[None, :1], "global_attention_mask": torch.zeros(1, 1, dtype=torch.long)}
        case "no global":
            inputs = {"input_ids": row[None], "global_attention_mask": global_mask(row[None], [])}
        case "left padding":
            inputs = padded_batch(TINY, [row, question_row(TINY, 2, 12)], left=True)
        case "all global":
            inputs = {"input_ids": row[None], "global_attention_mask": torch.ones(1, 33, dtype=torch.long)}
    found = compare(run(pair.ours, inputs), run(pair.reference, inputs), truth=Truth(pair.ours, inputs))
    assert found.verdict == "rounding", found.first


def test_clean_pairs_keep_their_distance_from_the_limits(case: Case) -> None:
    found = compare(run(case.pair.ours, case.inputs), case.expected, truth=case.truth)
    for value in found.values:
        assert value.a is not None and value.b is not None
        assert max(value.a.excess, value.b.excess) < 0.7


@pytest.mark.slow
def test_trained_weights_are_rounding(pretrained_dir: Path) -> None:
    from longformer.parity.runs import Contender, load_ours
    from longformer.parity.samples import Settings, read_sample

    text = Path(__file__).parents[2] / "longformer" / "data" / "constitution.txt"
    settings = Settings(question="Who tries impeachments?", max_tokens=50)
    sample = read_sample(str(text), str(pretrained_dir), LongformerForQuestionAnswering, settings)
    truth = Truth(load_ours(str(pretrained_dir)), sample.inputs, probabilities=True)
    ours, reference, low = (
        run(Contender.parse(name).load(str(pretrained_dir)), sample.inputs, probabilities=True)
        for name in ("ours", "transformers", "ours:bfloat16")
    )
    assert compare(ours, reference, truth=truth).verdict == "rounding"
    assert compare(ours, low, truth=truth).verdict == "rounding"


def gradients(model: nn.Module, inputs: Inputs) -> Trace:
    with trace(model, gradients=True) as recorded:
        recorded.backward(model(**inputs).loss)
    return recorded


@pytest.mark.slow
def test_gradients(case: Case) -> None:
    inputs = {**case.inputs, "start_positions": torch.tensor([10, 9, 30]), "end_positions": torch.tensor([12, 10, 31])}
    truth = Truth(case.pair.ours, inputs, loss=lambda output: output.loss)
    expected = gradients(case.pair.reference, inputs)
    found = compare(gradients(case.pair.ours, inputs), expected, truth=truth)
    assert found.verdict == "rounding"
    assert found.missing == {}
    assert sum(value.name.startswith("gradient.") for value in found.values) > 80

    model = fresh(case.pair)
    # A wrong way back alone: 1% more of one projection's gradient.
    layer(model).attention.self.value.register_full_backward_hook(lambda module, given, taken: (given[0] * 1.01,))
    found = compare(gradients(model, inputs), expected, truth=truth)
    assert found.verdict == "different"
    assert found.first is not None and found.first.name == "gradient.layer.0.output"
    assert found.departed == ("A",)
    assert found.hints == [
        "every value on the way forward is right: the mistake is in the backward pass of what layer.0.output goes into"
    ]


def with_answers(inputs: Inputs) -> Inputs:
    """An answer in each row, of its third and fourth token."""
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    start = mask.argmax(dim=1) + 2
    return {**inputs, "start_positions": start, "end_positions": start + 1}


@pytest.mark.parametrize("kind", ["ragged", "short question", "no global", "left padding"])
@pytest.mark.slow
def test_gradients_of_clean_pairs_are_rounding(kind: str) -> None:
    pair = build(TINY)
    match kind:
        case "ragged":
            inputs = batch()
        case "short question":  # ours then never computes the global keys, and has exactly 0 as their bias's gradient
            inputs = padded_batch(TINY, [question_row(TINY, 2, 12), question_row(TINY, 1, 7)])
        case "no global":
            row = question_row(TINY, 5, 33)[None]
            inputs = {"input_ids": row, "global_attention_mask": global_mask(row, [])}
        case _:
            inputs = padded_batch(TINY, [question_row(TINY, 5, 33), question_row(TINY, 2, 12)], left=True)
    inputs = with_answers(inputs)
    truth = Truth(pair.ours, inputs, loss=lambda output: output.loss)
    expected = gradients(pair.reference, inputs)
    runs = [
        gradients(copy.deepcopy(pair.ours).to(dtype), inputs) for dtype in (torch.float32, torch.bfloat16, torch.half)
    ]
    for run_of_ours in runs:
        found = compare(run_of_ours, expected, truth=truth)
        assert found.verdict == "rounding", found.first
        assert found.missing == {}


@pytest.mark.slow
def test_a_gradient_by_a_single_parameter(case: Case) -> None:
    inputs = with_answers(case.inputs)
    truth = Truth(case.pair.ours, inputs, loss=lambda output: output.loss)
    expected = gradients(case.pair.reference, inputs)
    name = "gradient.parameter.longformer.encoder.layer.1.attention.self.value.weight"
    spoilt = altered(expected, **{name: expected[name] * torch.linspace(0.999, 1, 32)})
    found = compare(expected, spoilt, truth=truth)
    assert found.first is not None and found.first.name == name
    assert "only the gradient by longformer.encoder.layer.1.attention.self.value.weight is wrong" in found.hints[0]
    # Its bias, of which nothing but rounding is left, is not to hide behind that.
    name = "gradient.parameter.longformer.encoder.layer.1.attention.self.key.bias"
    spoilt = altered(expected, **{name: expected[name] + 1e-5})
    found = compare(expected, spoilt, truth=truth)
    assert found.first is not None and found.first.name == name


def test_a_value_that_the_truth_lacks_is_not_judged(case: Case) -> None:
    a, b = altered(case.expected), altered(case.expected)
    a.tensors, b.tensors = {**a.tensors, "mine": torch.zeros(2)}, {**b.tensors, "mine": torch.ones(2)}
    found = compare(a, b, truth=case.truth)
    # All else has the same bits; but the two are not identical.
    assert (found.verdict, found.unjudged) == ("rounding", ["mine"])
    assert found.notes == ["not judged, since our model, which gives the truth, has no such value: mine"]
    assert summary(found).endswith("; 1 more differ and could not be judged")
    assert "mine" in table(found)
    b.tensors = dict(a.tensors)
    found = compare(a, b, truth=case.truth)
    assert (found.verdict, found.unjudged, found.notes) == ("identical", [], [])


def test_nothing_to_judge_is_no_agreement(case: Case) -> None:
    a, b = altered(case.expected), altered(case.expected)
    a.tensors, b.tensors = {"mine": torch.zeros(2)}, {"mine": torch.ones(2)}
    with pytest.raises(DataError, match=r"nothing can be judged: mine differ.*use assert_parity"):
        compare(a, b, truth=case.truth)
    b.tensors = dict(a.tensors)
    found = compare(a, b, truth=case.truth)
    assert found.verdict == "identical" and "agree in every bit of 1 value" in table(found)


def test_whole_numbers_are_refused(case: Case) -> None:
    other = altered(case.expected, layer__0__key=case.expected["layer.0.key"].long())
    with pytest.raises(DataError, match=r"layer.0.key is int64 in B; values are floating point"):
        compare(case.expected, other, truth=case.truth)


def test_a_config_that_is_not_the_truth_s_is_refused(case: Case) -> None:
    other = altered(case.expected)
    other.metadata["config"] = json.dumps({"num_hidden_layers": 3, "attention_window": [8], "num_attention_heads": 2})
    with pytest.raises(DataError, match="A and the truth are of different configs: num_attention_heads is 2 and 4"):
        compare(other, other, truth=case.truth)


def test_dilation_forgotten(case: Case) -> None:
    """In one layer of a model that has it; all of our kernels have it right."""
    config = TINY.replace(attention_dilation=[1, [1, 2, 2, 4], 3])
    truth_of, port, right = (
        with_weights(config, {name: weight.clone() for name, weight in case.pair.ours.state_dict().items()})
        for _ in range(3)
    )
    truth, expected = Truth(truth_of, case.inputs), run(right, case.inputs)
    for attention in right.modules():
        if isinstance(attention, LongformerSelfAttention):
            attention.impl = "banded"
    assert compare(expected, run(right, case.inputs), truth=truth).verdict == "rounding"
    layer(port).attention.self.pattern = AttentionPattern(config.window(1))
    found = compare(expected, run(port, case.inputs), truth=truth, names=("original", "port"))
    assert found.first is not None and (found.first.name, found.departed) == ("layer.1.local_output", ("port",))
    assert [hint.partition("; with this slip")[0] for hint in found.hints] == [
        "the window is not dilated; by head it should be (1, 2, 2, 4)"
    ]


def test_a_config_that_is_silent_has_no_dilation(case: Case) -> None:
    other = altered(case.expected)
    other.metadata["config"] = json.dumps(TINY.replace(attention_dilation=2).to_dict())
    with pytest.raises(DataError, match=r"different configs: attention_dilation is 1 and \[2, 2, 2\]"):
        compare(case.expected, other, truth=case.truth)


def test_no_window_edge_where_every_token_is_at_one(case: Case) -> None:
    inputs = {"input_ids": question_row(TINY, 1, 8)[None]}
    expected = run(case.pair.reference, inputs)
    spoilt = altered(expected, layer__1__query=expected["layer.1.query"] + 1)
    found = compare(expected, spoilt, truth=Truth(case.pair.ours, inputs))
    assert found.first is not None
    assert {kind for position in found.first.positions for kind in position.kinds} <= {"global"}


def test_hints_do_without_what_a_trace_lacks(case: Case) -> None:
    spoilt = MISTAKES["query and key swapped"].plant(case.pair, fresh(case.pair), case.inputs)
    less = altered(spoilt, layer__0__output=None)
    found = compare(case.expected, less, truth=case.truth)
    assert found.first is not None and found.first.name == "layer.1.query" and found.hints == []
    other = altered(spoilt, layer__0__output=torch.zeros(2, 3, 4))
    expected = altered(case.expected, layer__0__output=None)
    found = compare(expected, other, truth=case.truth)
    assert found.first is not None and found.first.name == "layer.1.query" and found.hints == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_a_verdict_of_its_own(case: Case, bad: float) -> None:
    model = fresh(case.pair)
    layer(model).attention.self.value.bias.data[9] = bad
    found = compare(case.expected, run(model, case.inputs), truth=case.truth, names=("reference", "port"))
    assert found.verdict == "non-finite"
    assert found.first is not None and found.first.name == "layer.1.value"
    assert found.departed == ("port",)
    assert found.first.positions[0].head == 1


def altered(recorded: Trace, **changes: Tensor | None) -> Trace:
    """A copy of a trace with values exchanged, or left out; ``__`` stands for a point in a name."""
    result = Trace()
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    result.tensors = {
        name: named.get(name, tensor)
        for name, tensor in recorded.items()
        if name not in named or named[name] is not None
    }
    result.inputs, result.metadata = dict(recorded.inputs), dict(recorded.metadata)
    return result


def test_a_missing_value_is_listed_and_the_rest_compared(case: Case) -> None:
    less = altered(case.expected, layer__1__key=None)
    found = compare(run(case.pair.ours, case.inputs), less, truth=case.truth, names=("all", "less"))
    assert found.verdict == "rounding"
    assert found.missing == {"less": ["layer.1.key"]}
    assert len(found.values) == len(case.expected) - 1


def test_one_wrong_token_among_many_is_found(case: Case) -> None:
    value = case.expected["layer.1.output"].clone()
    value[2, 30] += 1e-4
    found = compare(case.expected, altered(case.expected, layer__1__output=value), truth=case.truth)
    assert found.verdict == "different"
    assert found.first is not None
    assert (found.first.positions[0].batch, found.first.positions[0].token) == (2, 30)


def test_other_inputs_are_refused(case: Case) -> None:
    other = altered(case.expected)
    other.inputs["input_ids"] = other.inputs["input_ids"].clone()
    other.inputs["input_ids"][1, 7] += 1
    with pytest.raises(DataError, match=r"input_ids\[1, 7\] is \d+ in A and \d+ in B"):
        compare(case.expected, other, truth=case.truth)
    other.inputs["input_ids"] = other.inputs["input_ids"][:, :20]
    with pytest.raises(DataError, match=r"input_ids is \(3, 57\) in A, \(3, 20\) in B"):
        compare(case.expected, other, truth=case.truth)
    del other.inputs["input_ids"]
    with pytest.raises(DataError, match="B was recorded without input_ids"):
        compare(case.expected, other, truth=case.truth)


def test_other_configs_are_refused(case: Case) -> None:
    other = altered(case.expected)
    config = {**json.loads(other.metadata["config"]), "layer_norm_eps": 1e-12}
    other.metadata["config"] = json.dumps(config)
    with pytest.raises(DataError, match="different configs: layer_norm_eps is 1e-05 and 1e-12"):
        compare(case.expected, other, truth=case.truth)


def test_other_shapes_are_refused(case: Case) -> None:
    other = altered(case.expected, layer__0__query=case.expected["layer.0.query"][:, :, :-1])
    with pytest.raises(DataError, match=r"layer.0.query has shape \(3, 4, 57, 8\) in A and \(3, 4, 56, 8\) in B"):
        compare(case.expected, other, truth=case.truth)
    other = altered(case.expected, layer__0__global_rows=case.expected["layer.0.query"])
    with pytest.raises(DataError, match=r"57, 8\) in B; it has a row for each global token, and none for others"):
        compare(case.expected, other, truth=case.truth)


def test_nothing_in_common_is_refused(case: Case) -> None:
    other = altered(case.expected)
    other.tensors = {"mine": torch.zeros(1)}
    with pytest.raises(DataError, match="no value in common"):
        compare(case.expected, other, truth=case.truth)


def test_a_difference_without_a_truth_is_refused(case: Case) -> None:
    with pytest.raises(DataError, match="no truth to judge it by"):
        compare(run(case.pair.ours, case.inputs), case.expected)


def test_the_weights_are_as_before(case: Case) -> None:
    for name, weight in case.truth.weights.items():
        assert torch.equal(case.truth._model.state_dict()[name], weight.double())


def test_assert_parity_reports_like_compare(case: Case) -> None:
    assert_parity(run(case.pair.ours, case.inputs), case.expected, case.truth)
    spoilt = MISTAKES["tanh GELU against exact"].plant(case.pair, fresh(case.pair), case.inputs)
    with pytest.raises(AssertionError, match=r"(?s)different: actual departs.*layer\.1\.feed_forward.*hint: .*tanh"):
        assert_parity(spoilt, case.expected, case.truth)
