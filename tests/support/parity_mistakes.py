"""The slips that reimplementations make, planted one at a time: how, where each begins, and which hint it should get.

Each takes our model with weights of its own, and the batch, breaks something, and gives the trace of what the model
then computes. ``python tests/support/parity_mistakes.py`` prints a table of what the tool says of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from reference import TINY, Pair, build, padded_batch, question_row, with_weights
from torch import Tensor, nn
from torch.nn import functional as F

import longformer.models.attention
from longformer import LongformerForQuestionAnswering
from longformer.kernels import AttentionPattern, Tokens, attend
from longformer.models.layers import LongformerLayer
from longformer.parity import Comparison, Trace, Truth, compare, trace

Inputs = dict[str, Tensor]
LAYER = 1  # that most of the slips are planted in, so that being right about the place is no matter of course


class Mistake(NamedTuple):
    plant: Callable[[Pair, LongformerForQuestionAnswering, Inputs], Trace]
    first: str
    hint: str


MISTAKES: dict[str, Mistake] = {}


def mistake(name: str, first: str, hint: str) -> Callable[[Any], Any]:
    def register(plant: Any) -> Any:
        MISTAKES[name] = Mistake(plant, first, hint)
        return plant

    return register


def run(model: nn.Module, inputs: Inputs, **settings: Any) -> Trace:
    with torch.no_grad(), trace(model, **settings) as recorded:
        model(**inputs)
    return recorded


def batch() -> Inputs:
    """Three rows, ragged: padding, question tokens inside and outside of windows, rows at every kind of edge."""
    return padded_batch(TINY, [question_row(TINY, 6, 40), question_row(TINY, 3, 23), question_row(TINY, 10, 57)])


def fresh(pair: Pair) -> LongformerForQuestionAnswering:
    """Ours over copies of the weights, to be spoilt."""
    model = with_weights(TINY, {name: weight.clone() for name, weight in pair.ours.state_dict().items()})
    assert isinstance(model, LongformerForQuestionAnswering)
    return model


def layer(model: nn.Module, number: int = LAYER) -> LongformerLayer:
    return model.get_submodule(f"longformer.encoder.layer.{number}")  # type: ignore[return-value]


@contextmanager
def kernel(model: nn.Module, wrong: Callable[..., Tensor]) -> Iterator[None]:
    """In one layer ``wrong`` is computed instead of sliding-window attention."""
    attention = layer(model).attention.self
    inside = []
    hooks = [
        attention.register_forward_pre_hook(lambda *_: inside.append(True)),
        attention.register_forward_hook(lambda *_: inside.clear()),
    ]

    def choose(*arguments: Any, **settings: Any) -> Tensor:
        return (wrong if inside else attend)(*arguments, **settings)

    with mock.patch.object(longformer.models.attention, "attend", choose):
        yield
    for hook in hooks:
        hook.remove()


@mistake("window off by one", "layer.1.local_output", "one token too few on each side")
def window(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    left, right = TINY.window(LAYER)
    layer(model).attention.self.pattern = AttentionPattern((left - 1, right - 1))
    return run(model, inputs)


@mistake("window off by one, on one side", "layer.1.local_output", "one token too many on the right")
def window_right(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    left, right = TINY.window(LAYER)
    layer(model).attention.self.pattern = AttentionPattern((left, right + 1))
    return run(model, inputs)


@mistake("a global column counted twice", "layer.1.local_output", "counted twice")
def twice(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    def wrong(
        query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern, tokens: Tokens, **settings: Any
    ) -> Tensor:
        assert tokens.is_global is not None
        band = pattern.pairs(query.shape[2], Tokens(tokens.keep))
        columns = tokens.is_global[:, None, None, :].expand_as(band)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        seen = [scores.masked_fill(~pairs, -math.inf) for pairs in (columns, band)]
        out = torch.cat(seen, dim=-1).softmax(dim=-1) @ torch.cat([value, value], dim=2)
        return out if tokens.keep is None else out * tokens.keep[:, None, :, None]

    with kernel(model, wrong):
        return run(model, inputs)


@mistake("the scale before the bias", "layer.1.local_output", "the scale is applied before the query's bias")
def scale_before_bias(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    bias = layer(model).attention.self.query.bias.detach().view(1, TINY.num_attention_heads, 1, -1)

    def wrong(query: Tensor, *others: Any, **settings: Any) -> Tensor:
        return attend(query - bias + bias * math.sqrt(query.shape[3]), *others, **settings)

    with kernel(model, wrong):
        return run(model, inputs)


@mistake("padded rows not zeroed", "layer.0.local_output", "padded rows are not zeroed")
def padded_rows(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    # In the reference, with the line that zeroes them made void: in ours the kernel gives them.
    with mock.patch.object(torch, "masked_fill", lambda x, mask, value: x):
        return run(pair.reference, inputs)


@mistake("positions starting at 0", "embeddings", "positions start at 0 instead of 2")
def positions(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    ids = inputs["input_ids"]
    real = ids != TINY.pad_token_id
    return run(model, {**inputs, "position_ids": (real.cumsum(dim=1) - 1) * real})


@mistake("LayerNorm eps 1e-12 against 1e-5", "embeddings", "LayerNorm's eps is 1e-12")
def eps(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-12
    return run(model, inputs)


@mistake("the same in a single LayerNorm", "layer.1.output", "LayerNorm's eps is 1e-12")
def one_eps(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    layer(model).output.LayerNorm.eps = 1e-12
    return run(model, inputs)


@mistake("tanh GELU against exact", "layer.1.feed_forward", "the activation is GELU's tanh approximation")
def gelu(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    layer(model).intermediate.activation = lambda x: F.gelu(x, approximate="tanh")
    return run(model, inputs)


@mistake("query and key swapped", "layer.1.query", "query and key are swapped")
def swapped(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    attention = layer(model).attention.self
    attention.query, attention.key = attention.key, attention.query
    return run(model, inputs)


@mistake("the local projection used for global rows", "layer.1.global_rows", "the local projections are used")
def local_projections(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    attention = layer(model).attention.self
    for name in ("query", "key", "value"):
        getattr(attention, f"{name}_global").load_state_dict(getattr(attention, name).state_dict())
    return run(model, inputs)


@mistake("a projection's weight transposed", "layer.1.value", "value.weight is transposed")
def transposed(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    weight = layer(model).attention.self.value.weight
    weight.data = weight.data.T.contiguous()
    return run(model, inputs)


@mistake("an output weight transposed", "layer.1.attention_output", "output.dense.weight is transposed")
def transposed_output(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    weight = layer(model).attention.output.dense.weight
    weight.data = weight.data.T.contiguous()
    return run(model, inputs)


@mistake("one layer's weights stale", "layer.2.query", "not with these weights: they are stale")
def stale(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    other = build(TINY, seed=5).ours
    layer(model, 2).load_state_dict(layer(other, 2).state_dict())
    return run(model, inputs)


@mistake("one layer's weights from another layer", "layer.2.query", "has the weights of layer 0")
def another_layer(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    layer(model, 2).load_state_dict(layer(model, 0).state_dict())
    return run(model, inputs)


@mistake("start and end swapped", "logits", "start and end logits are swapped")
def swapped_logits(pair: Pair, model: LongformerForQuestionAnswering, inputs: Inputs) -> Trace:
    for parameter in model.qa_outputs.parameters():
        parameter.data = parameter.data.flip(0)
    return run(model, inputs)


def judge(name: str, pair: Pair, inputs: Inputs, truth: Truth, expected: Trace) -> Comparison:
    """What the tool says of a planted mistake, compared with the reference."""
    spoilt = MISTAKES[name].plant(pair, fresh(pair), inputs)
    return compare(expected, spoilt, truth=truth, names=("reference", "port"))


def main() -> None:
    torch.manual_seed(0)
    pair, inputs = build(TINY), batch()
    truth, expected = Truth(pair.ours, inputs), run(pair.reference, inputs)
    print("| planted | found in | times the noise | hint |\n|---|---|---|---|")
    for name in MISTAKES:
        found = judge(name, pair, inputs, truth, expected)
        assert found.first is not None and found.first.b is not None
        print(f"| {name} | `{found.first.name}` | {found.first.b.ratio:.2g} | {found.hints[0].split('; with')[0]} |")


if __name__ == "__main__":
    main()
