"""A plant for every known slip: how a port would make it, written without the code that replays it.

A plant breaks one of our models, and says in which value that shows first and what the hint must say. ``FAMILIES`` are
the models and inputs in which they are planted: some slips need padding on the left, large scores, or another head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import torch
from head_cases import CASES, question_batch
from parity_mistakes import batch, layer
from reference import TINY, build, padded_batch, question_row
from torch import Tensor, nn
from torch.nn import functional as F

import longformer.models.attention
from longformer import LongformerConfig, LongformerForQuestionAnswering
from longformer.kernels import AttentionPattern, Tokens, attend
from longformer.models.heads import Head

Inputs = dict[str, Tensor]
Kernel = Callable[..., Tensor]
HEADS, WIDTH = TINY.num_attention_heads, TINY.head_dim
SCALE = math.sqrt(WIDTH)
WINDOW = TINY.window(1)


class Family(NamedTuple):
    config: LongformerConfig
    kind: type[Head] = LongformerForQuestionAnswering
    inputs: Callable[[], Inputs] = batch
    weights: Callable[[nn.Module], None] = lambda model: None


def _left() -> Inputs:
    return padded_batch(TINY, [question_row(TINY, 6, 40), question_row(TINY, 3, 23)], left=True)


def _scattered() -> Inputs:
    """Global tokens that are not the first ones."""
    inputs = batch()
    mask = torch.zeros_like(inputs["input_ids"])
    mask[0, [3, 20, 33]] = mask[1, [5, 6]] = mask[2, [50]] = 1
    return {**inputs, "global_attention_mask": mask}


def _large_scores(model: nn.Module) -> None:
    query = layer(model).attention.self.query
    query.weight.data *= 10000
    query.bias.data *= 10000


def _of(name: str) -> Family:
    config = TINY.replace(**CASES[name].changes)
    return Family(config, CASES[name].kind, lambda: dict(question_batch(TINY, CASES[name].kind)))


FAMILIES = {
    "plain": Family(TINY),
    "left": Family(TINY, inputs=_left),
    "scattered": Family(TINY, inputs=_scattered),
    "large scores": Family(TINY, weights=_large_scores),
    "dilated": Family(TINY.replace(attention_dilation=[1, [1, 2, 2, 4], 3])),
    "windows": Family(TINY.replace(attention_window=[4, 8, 12])),
    "words": _of("masked words"),
    "class": _of("one class"),
    "tokens": _of("tokens"),
    "choices": _of("choices"),
}


def model_of(family: Family) -> Any:
    """A model of a family, each time with copies of the same weights."""
    return copy.deepcopy(_built(family))


@cache
def _built(family: Family) -> Any:
    model = build(family.config, kind=family.kind).ours
    with torch.no_grad():
        family.weights(model)
    return model


class Plant(NamedTuple):
    """plant breaks a model; what it gives, if it is a context manager, is open while the model runs."""

    plant: Callable[[Any], Any]
    first: str
    says: str
    family: str = "plain"


PLANTS: dict[str, list[Plant]] = {}  # by the slip's name


def plant(slip: str, first: str, says: str, family: str = "plain") -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        PLANTS.setdefault(slip, []).append(Plant(function, first, says, family))
        return function

    return register


def after(module: nn.Module, change: Callable[..., Any]) -> None:
    """``change(result, *arguments)`` in place of a module's result."""
    module.register_forward_hook(lambda part, arguments, result: change(result, *arguments))


def before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """A module is given ``change(x)`` instead of x."""
    module.register_forward_pre_hook(lambda part, arguments: (change(arguments[0]), *arguments[1:]))


def forward_of(module: nn.Module, forward: Any) -> None:
    module.forward = forward


def norm_of(model: Any) -> nn.LayerNorm:
    found: nn.LayerNorm = layer(model).output.LayerNorm
    return found


# ---- embeddings


@plant("position offset", "embeddings", "positions start at 0 instead of 2")
def position_offset(model: Any) -> None:
    part = model.longformer.embeddings.position_embeddings
    before(part, lambda ids: ids - 2 * (ids != TINY.pad_token_id))


@plant("positions through padding", "embeddings", "positions are counted through padding", "left")
def through_padding(model: Any) -> None:
    before(model.longformer.embeddings.position_embeddings, lambda ids: torch.arange(ids.shape[1])[None] + 2 + 0 * ids)


@plant("positions left out", "embeddings", "position embeddings are left out")
def no_positions(model: Any) -> None:
    nn.init.zeros_(model.longformer.embeddings.position_embeddings.weight)


@plant("token types left out", "embeddings", "token type embeddings are left out")
def no_types(model: Any) -> None:
    nn.init.zeros_(model.longformer.embeddings.token_type_embeddings.weight)


@plant("token types swapped", "embeddings", "token types 0 and 1 are swapped")
def swapped_types(model: Any) -> None:
    weight = model.longformer.embeddings.token_type_embeddings.weight
    weight.data = weight.data.flip(0)


@plant("words scaled", "embeddings", "word embeddings are multiplied by sqrt(C)")
def scaled_words(model: Any) -> None:
    model.longformer.embeddings.word_embeddings.weight.data *= math.sqrt(TINY.hidden_size)


# ---- LayerNorm


@plant("another eps", "layer.1.output", "LayerNorm's eps is 0.001 instead of 1e-05")
def another_eps(model: Any) -> None:
    norm_of(model).eps = 1e-3


@plant("another eps", "logits", "in lm_head LayerNorm's eps is 0.001 instead of 1e-05", "words")
def eps_in_head(model: Any) -> None:
    model.lm_head.layer_norm.eps = 1e-3


@plant("eps outside the root", "layer.1.output", "LayerNorm adds eps to the root of the variance")
def eps_outside(model: Any) -> None:
    norm = norm_of(model)

    def change(result: Tensor, x: Tensor) -> Tensor:
        return (
            norm.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + norm.eps)
            + norm.bias
        )

    after(norm, change)


@plant("LayerNorm left out", "layer.1.output", "LayerNorm is left out")
def norm_left_out(model: Any) -> None:
    after(norm_of(model), lambda result, x: x)


@plant("LayerNorm's weight left out", "layer.1.output", "LayerNorm's weight is left out")
def norm_weight(model: Any) -> None:
    nn.init.ones_(norm_of(model).weight)


@plant("LayerNorm's bias left out", "layer.1.output", "LayerNorm's bias is left out")
def norm_bias(model: Any) -> None:
    nn.init.zeros_(norm_of(model).bias)


@plant("sample deviation", "layer.1.output", "LayerNorm divides by the sample's standard deviation")
def sample_deviation(model: Any) -> None:
    norm = norm_of(model)
    after(
        norm,
        lambda result, x: (
            norm.weight * (x - x.mean(-1, True)) / (x.var(-1, keepdim=True) + norm.eps).sqrt() + norm.bias
        ),
    )


@plant("mean not subtracted", "layer.1.output", "LayerNorm does not subtract the mean")
def rms_norm(model: Any) -> None:
    norm = norm_of(model)
    after(norm, lambda result, x: F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps) + norm.bias)


@plant(
    "the other LayerNorm", "layer.1.attention_output", "the LayerNorm is that of the other sublayer, output.LayerNorm"
)
def other_norm(model: Any) -> None:
    layer(model).attention.output.LayerNorm.load_state_dict(norm_of(model).state_dict())


# ---- sublayers


def end_of(model: Any, forward: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    """The end of the feed-forward sublayer computes ``forward(self, x, residual)``."""
    part = layer(model).output
    forward_of(part, lambda x, residual: forward(part, x, residual))


@plant("residual left out", "layer.1.output", "the residual is left out")
def no_residual(model: Any) -> None:
    end_of(model, lambda part, x, residual: part.LayerNorm(part.dense(x)))


@plant("residual twice", "layer.1.output", "the residual is added twice")
def residual_twice(model: Any) -> None:
    end_of(model, lambda part, x, residual: part.LayerNorm(part.dense(x) + residual + residual))


@plant(
    "residual from elsewhere", "layer.1.output", "the residual is layer.0.output instead of layer.1.attention_output"
)
def residual_of_layer(model: Any) -> None:
    part = layer(model)

    def forward(hidden: Tensor, tokens: Tokens, probabilities: Any = None) -> Tensor:
        result: Tensor = part.output(part.intermediate(part.attention(hidden, tokens)), hidden)
        return result

    forward_of(part, forward)


@plant("residual from elsewhere", "layer.1.attention_output", "the residual is embeddings instead of layer.0.output")
def residual_of_embeddings(model: Any) -> None:
    kept: list[Tensor] = []
    after(model.longformer.embeddings, lambda result, *given: kept.append(result))
    part = layer(model).attention.output
    forward_of(part, lambda x, residual: part.LayerNorm(part.dense(x) + kept[-1]))


@plant("LayerNorm before the residual", "layer.1.output", "LayerNorm stands before the residual")
def norm_before_residual(model: Any) -> None:
    end_of(model, lambda part, x, residual: part.LayerNorm(part.dense(x)) + residual)


@plant("sublayer left out", "layer.1.output", "the sublayer adds nothing")
def sublayer_left_out(model: Any) -> None:
    end_of(model, lambda part, x, residual: part.LayerNorm(residual))


@plant("heads merged in another order", "layer.1.attention_output", "heads are merged with their channels interleaved")
def interleaved(model: Any) -> None:
    before(layer(model).attention.output.dense, lambda x: x.unflatten(-1, (HEADS, -1)).mT.flatten(2))


@plant("heads merged in another order", "layer.1.attention_output", "heads are merged without being moved")
def not_moved(model: Any) -> None:
    def change(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2).contiguous().view(x.shape)

    before(layer(model).attention.output.dense, change)


@plant("heads merged in another order", "layer.1.attention_output", "heads are merged in reverse order")
def reversed_heads(model: Any) -> None:
    before(layer(model).attention.output.dense, lambda x: torch.cat(x.split(WIDTH, -1)[::-1], -1))


@plant("global rows not merged", "layer.1.attention_output", "global rows are not put in their place")
def not_merged(model: Any) -> None:
    hidden: list[Tensor] = []
    layer(model).attention.self.register_forward_pre_hook(lambda part, given: hidden.append(given[1].is_global))
    before(layer(model).attention.output.dense, lambda x: x * ~hidden[-1][..., None])


@plant("dropout left on", "embeddings", "dropout is left on")
def dropout(model: Any) -> None:
    model.longformer.embeddings.dropout.train()


@plant("dropout left on", "layer.1.output", "dropout is left on")
def dropout_in_layer(model: Any) -> None:
    layer(model).output.dropout.train()


@plant("another activation", "layer.1.feed_forward", "the activation is quick_gelu instead of gelu")
def quick_gelu(model: Any) -> None:
    layer(model).intermediate.activation = lambda x: x * torch.sigmoid(1.702 * x)


@plant("another activation", "layer.1.feed_forward", "the activation is GELU's tanh approximation")
def tanh_gelu(model: Any) -> None:
    layer(model).intermediate.activation = lambda x: F.gelu(x, approximate="tanh")


# ---- weights of linear layers


@plant("bias left out", "layer.1.value", "the bias attention.self.value.bias is left out")
def no_bias(model: Any) -> None:
    nn.init.zeros_(layer(model).attention.self.value.bias)


@plant("bias left out", "layer.1.global_rows", "the bias attention.self.query_global.bias is left out")
def no_global_bias(model: Any) -> None:
    nn.init.zeros_(layer(model).attention.self.query_global.bias)


@plant("weight transposed", "layer.1.attention_output", "the weight attention.output.dense.weight is transposed")
def transposed(model: Any) -> None:
    weight = layer(model).attention.output.dense.weight
    weight.data = weight.data.T.contiguous()


@plant("another layer's weights", "layer.1.intermediate", "intermediate.dense has the weights of layer 0")
def another_layer(model: Any) -> None:
    layer(model).intermediate.load_state_dict(layer(model, 0).intermediate.state_dict())


@plant("another layer's weights", "layer.1.global_rows", "attention.self.key_global has the weights of layer 2")
def another_global_layer(model: Any) -> None:
    layer(model).attention.self.key_global.load_state_dict(layer(model, 2).attention.self.key_global.state_dict())


@plant("int8 weights", "layer.1.value", "quantised to int8, with a scale for each row")
def int8_rows(model: Any) -> None:
    weight = layer(model).attention.self.value.weight
    scale = weight.data.abs().amax(1, keepdim=True) / 127
    weight.data = torch.round(weight.data / scale) * scale


@plant("int8 weights", "layer.1.output", "quantised to int8, with one scale for the matrix")
def int8_matrix(model: Any) -> None:
    weight = layer(model).output.dense.weight
    scale = weight.data.abs().max() / 127
    quantised = torch.quantize_per_tensor(weight.data, float(scale), 0, torch.qint8)
    weight.data = quantised.dequantize()


@plant("half-precision weights", "layer.1.output", "the weights of output.dense are rounded to bfloat16")
def half(model: Any) -> None:
    dense = layer(model).output.dense
    dense.weight.data = dense.weight.data.bfloat16().float()


@plant("half-precision weights", "layer.1.query", "the weights of attention.self.query are rounded to float16")
def half_query(model: Any) -> None:
    query = layer(model).attention.self.query
    query.half().float()


@plant("TensorFloat-32 products", "layer.1.intermediate", "intermediate.dense multiplies in TensorFloat-32")
def tf32(model: Any) -> None:
    dense = layer(model).intermediate.dense

    def rounded(x: Tensor) -> Tensor:  # to 11 digits, by way of the size of the last of them
        unit = torch.exp2(torch.floor(torch.log2(x.abs())) - 10)
        return torch.round(x / unit) * unit

    after(dense, lambda result, x: F.linear(rounded(x), rounded(dense.weight), dense.bias))


@plant("another projection's weights", "layer.1.query", "query and key are swapped")
def swapped(model: Any) -> None:
    attention = layer(model).attention.self
    attention.query, attention.key = attention.key, attention.query


@plant("another projection's weights", "layer.1.value", "value is computed by the weights of value_global")
def global_for_local(model: Any) -> None:
    attention = layer(model).attention.self
    attention.value.load_state_dict(attention.value_global.state_dict())


@plant("already scaled", "layer.1.query", "query is already multiplied by the scale")
def already_scaled(model: Any) -> None:
    after(layer(model).attention.self.query, lambda result, x: result / SCALE)


@plant("channels split otherwise", "layer.1.key", "key's channels are split into heads in the wrong order")
def split_otherwise(model: Any) -> None:
    after(layer(model).attention.self.key, lambda result, x: result.unflatten(-1, (WIDTH, HEADS)).mT.flatten(2))


@plant("heads in another order", "layer.1.value", "the heads are in another order: 2, 0, 3, 1")
def permuted_heads(model: Any) -> None:
    after(
        layer(model).attention.self.value,
        lambda result, x: result.unflatten(-1, (HEADS, -1))[:, :, [2, 0, 3, 1]].flatten(2),
    )


@plant("another input", "layer.1.intermediate", "intermediate is computed from the layer's input")
def reads_layer_input(model: Any) -> None:
    part = layer(model)

    def forward(hidden: Tensor, tokens: Tokens, probabilities: Any = None) -> Tensor:
        result: Tensor = part.output(part.intermediate(hidden), part.attention(hidden, tokens))
        return result

    forward_of(part, forward)


@plant("another input", "layer.1.query", "(LayerNorm stands before the sublayer instead of after it)")
def pre_norm(model: Any) -> None:
    part = layer(model).attention
    before(part.self, lambda x: part.output.LayerNorm(x))


@plant("input that was not recorded", "layer.1.query", "query, key, value fit the right weights with another input")
def unrecorded(model: Any) -> None:
    before(layer(model), lambda x: x + 0.1 * torch.sin(3 * x))


@plant("input that was not recorded", "layer.1.intermediate", "intermediate fit the right weights with another input")
def unrecorded_in_feed_forward(model: Any) -> None:
    before(layer(model).intermediate, lambda x: torch.tanh(x))


@plant("some rows of a weight", "layer.1.value", "has other numbers in row 5 of its weight or bias")
def one_row(model: Any) -> None:
    layer(model).attention.self.value.weight.data[5] += 0.01 * torch.arange(TINY.hidden_size).sin()


@plant(
    "stale weights", "layer.1.intermediate", "intermediate.dense computes a linear layer, but not with these weights"
)
def stale(model: Any) -> None:
    torch.manual_seed(3)
    nn.init.normal_(layer(model).intermediate.dense.weight, std=0.2)


@plant("stale weights", "logits", "lm_head.decoder's weights are not the word embeddings", "words")
def not_tied(model: Any) -> None:
    head, words = model.lm_head, torch.randn(model.config.vocab_size, TINY.hidden_size)

    def forward(hidden: Tensor, tied: Tensor) -> Tensor:
        return F.linear(head.layer_norm(F.gelu(head.dense(hidden))), words, head.bias)

    forward_of(head, forward)


@plant("a factor on all", "layer.1.output", "the whole value is 1.01 times what it should be")
def factor(model: Any) -> None:
    after(layer(model), lambda result, *given: 1.01 * result)


# ---- local attention


@contextmanager
def inside(model: Any, **replaced: Kernel) -> Iterator[None]:
    """In layer 1 ``attend`` and ``attend_globally`` are replaced."""
    attention, within = layer(model).attention.self, []
    attention.register_forward_pre_hook(lambda *_: within.append(True))
    attention.register_forward_hook(lambda *_: within.clear())
    module = longformer.models.attention
    right = {name: getattr(module, name) for name in replaced}

    def choose(name: str) -> Kernel:
        return lambda *given, **settings: (replaced[name] if within else right[name])(*given, **settings)

    with mock.patch.multiple(module, **{name: choose(name) for name in replaced}):
        yield


Formula = Callable[[Tensor, Tensor, Tensor, Tensor, Tokens], Tensor]


def local(slip: str, says: str, family: str = "plain") -> Callable[[Formula], Formula]:
    """Plants ``formula(query, key, value, pairs, tokens)`` in place of local attention, pairs those of the pattern."""

    def register(formula: Formula) -> Formula:
        def wrong(
            q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern, tokens: Tokens, **settings: Any
        ) -> Tensor:
            result = formula(q, k, v, pattern.pairs(q.shape[2], tokens, heads=q.shape[1]), tokens)
            return result if tokens.keep is None else result * tokens.keep[:, None, :, None]

        plant(slip, "layer.1.local_output", says, family)(lambda model: inside(model, attend=wrong))
        return formula

    return register


def softmax(scores: Tensor, pairs: Tensor, dim: int = -1) -> Tensor:
    return scores.masked_fill(~pairs, -math.inf).softmax(dim).nan_to_num()


def band(seq_len: int, left: int, right: int) -> Tensor:
    off = torch.arange(seq_len) - torch.arange(seq_len)[:, None]
    return (off >= -left) & (off <= right)


def with_columns(seen: Tensor, tokens: Tokens) -> Tensor:
    """Pairs of a band, with global columns, without padded ones."""
    assert tokens.keep is not None and tokens.is_global is not None
    return (seen | tokens.is_global[:, None, None, :]) & tokens.keep[:, None, None, :]


LEFT, RIGHT = WINDOW
for name, says, sides in (
    ("window off by one", "one token too few on each side", (LEFT - 1, RIGHT - 1)),
    ("window off by one", "one token too many on the right", (LEFT, RIGHT + 1)),
    ("window moved", "moved left by one", (LEFT + 1, RIGHT - 1)),
    ("window twice or half as wide", "twice as wide", (2 * LEFT, 2 * RIGHT)),
    ("causal window", "without its right side (causal)", (LEFT, 0)),
):

    @local(name, says)
    def windowed(
        q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens, sides: tuple[int, int] = sides
    ) -> Tensor:
        return softmax(q @ k.mT / SCALE, with_columns(band(q.shape[2], *sides), tokens)) @ v


@plant("another layer's window", "layer.1.local_output", "that of layer 2", "windows")
def another_window(model: Any) -> None:
    layer(model).attention.self.pattern = layer(model, 2).attention.self.pattern


@local("no window", "every token attends to every token")
def no_window(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    assert tokens.keep is not None
    return softmax(q @ k.mT / SCALE, tokens.keep[:, None, None, :]) @ v


@plant("dilation forgotten", "layer.1.local_output", "the window is not dilated", "dilated")
def no_dilation(model: Any) -> None:
    layer(model).attention.self.pattern = AttentionPattern(WINDOW)


@local("window shifted at the ends", "the window is shifted inwards, as in neighbourhood attention")
def shifted(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    seq_len, seen = q.shape[2], torch.zeros(q.shape[2], q.shape[2], dtype=torch.bool)
    for i in range(seq_len):
        start = min(max(0, i - LEFT), seq_len - LEFT - 1 - RIGHT)
        seen[i, start : start + LEFT + 1 + RIGHT] = True
    return softmax(q @ k.mT / SCALE, with_columns(seen, tokens)) @ v


@local("separate blocks", "the sequence is cut into blocks of 8")
def blocks(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    block = torch.arange(q.shape[2]) // 8
    return softmax(q @ k.mT / SCALE, with_columns(block[:, None] == block, tokens)) @ v


@local("global columns counted twice", "a global column inside the band is counted twice")
def counted_twice(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    assert tokens.is_global is not None and tokens.keep is not None
    columns = tokens.is_global[:, None, None, :].expand_as(pairs)
    seen = (band(q.shape[2], *WINDOW) & tokens.keep[:, None, None, :]).expand_as(pairs)
    both = torch.cat([columns, seen], -1)
    return softmax((q @ k.mT / SCALE).repeat(1, 1, 1, 2), both) @ torch.cat([v, v], 2)


@local("global columns missing", "global columns outside the band are missing")
def columns_missing(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    return softmax(q @ k.mT / SCALE, pairs & band(q.shape[2], *WINDOW)) @ v


@plant("global columns by global projections", "layer.1.local_output", "tokens see global columns through key_global")
def columns_globally(model: Any) -> Any:
    attention, given = layer(model).attention.self, []
    attention.register_forward_pre_hook(lambda part, arguments: given.append(arguments[0]))

    def wrong(q: Tensor, k: Tensor, v: Tensor, pattern: Any, tokens: Tokens, **settings: Any) -> Tensor:
        assert tokens.is_global is not None
        columns = tokens.is_global[:, None, :, None]
        keys, values = (
            part(given[-1]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (attention.key_global, attention.value_global)
        )
        return attend(q, torch.where(columns, keys, k), torch.where(columns, values, v), pattern, tokens, **settings)

    return inside(model, attend=wrong)


@plant("global tokens taken to be the first", "layer.1.local_output", "the first tokens are taken to be", "scattered")
def global_first(model: Any) -> None:
    def change(module: nn.Module, arguments: Any) -> Any:
        hidden, tokens, *rest = arguments
        first = torch.arange(hidden.shape[1]) < tokens.is_global.sum(1, keepdim=True)
        return hidden, Tokens.of(tokens.keep, first).with_index(counted=True), *rest

    layer(model).attention.self.register_forward_pre_hook(change)


@plant("scale before bias", "layer.1.local_output", "the scale is applied before the query's bias is added")
def scale_before_bias(model: Any) -> Any:
    bias = layer(model).attention.self.query.bias.view(HEADS, 1, -1)
    return inside(model, attend=lambda q, *rest, **settings: attend(q - bias + bias * SCALE, *rest, **settings))


def scaled(name: str, says: str, by: float) -> None:
    plant(name, "layer.1.local_output", says)(
        lambda model: inside(model, attend=lambda q, *rest, **settings: attend(q * by, *rest, **settings))
    )
    module = longformer.models.attention
    plant(name, "layer.1.global_rows", f"in global rows {says}")(
        lambda model, right=module.attend_globally: inside(
            model, attend_globally=lambda q, *rest, **settings: right(q * by, *rest, **settings)
        )
    )


scaled("scale left out", "the scale 1/sqrt(D) is left out", SCALE)
scaled("scale applied twice", "the scale 1/sqrt(D) is applied twice", 1 / SCALE)
scaled("scale by the hidden size", "the scale is 1/sqrt(C) instead of 1/sqrt(D)", SCALE / math.sqrt(TINY.hidden_size))
scaled(
    "scale in half precision",
    "the scale 1/sqrt(D) is rounded to float16",
    float(torch.tensor(1 / SCALE).half()) * SCALE,
)


@local("padded columns attended", "padded columns are not masked")
def padded_columns(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    assert tokens.is_global is not None
    return softmax(q @ k.mT / SCALE, band(q.shape[2], *WINDOW) | tokens.is_global[:, None, None, :]) @ v


@plant("padded rows kept", "layer.1.local_output", "padded rows are not zeroed")
def padded_rows(model: Any) -> Any:
    def wrong(q: Tensor, k: Tensor, v: Tensor, pattern: Any, tokens: Tokens, **settings: Any) -> Tensor:
        return softmax(q @ k.mT / SCALE, with_columns(band(q.shape[2], *WINDOW), tokens)) @ v

    return inside(model, attend=wrong)


@local("mask of -10000", "masked scores have -10000 added instead of being left out", "large scores")
def mask_of_number(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    return (q @ k.mT / SCALE - 10000.0 * ~pairs).softmax(-1) @ v


@local("mask before the scale", "a mask of -10000 is added before the scale", "large scores")
def mask_before_scale(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    return ((q @ k.mT - 10000.0 * ~pairs) / SCALE).softmax(-1) @ v


@local("masked scores are 0", "masked scores are 0 instead of minus infinity")
def masked_to_zero(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    return (q @ k.mT / SCALE * pairs).softmax(-1) @ v


@local("softmax over the wrong axis", "the softmax runs over the rows that see a column")
def wrong_axis(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    return softmax(q @ k.mT / SCALE, pairs, dim=-2) @ v


@local("one more in the softmax", "the softmax's sum has one term too many")
def one_more(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    weights = (q @ k.mT / SCALE).exp() * pairs
    return weights / (1 + weights.sum(-1, keepdim=True)) @ v


@local("keys and values swapped", "keys and values are swapped")
def keys_and_values(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor, tokens: Tokens) -> Tensor:
    return softmax(q @ v.mT / SCALE, pairs) @ k


# ---- global rows


def projections(model: Any, **taken: str) -> None:
    attention = layer(model).attention.self
    weights = {
        name: {k: w.clone() for k, w in getattr(attention, source).state_dict().items()}
        for name, source in taken.items()
    }
    for name, state in weights.items():
        getattr(attention, name).load_state_dict(state)


@plant("local projections for global rows", "layer.1.global_rows", "the local projections are used for global rows")
def local_projections(model: Any) -> None:
    projections(model, query_global="query", key_global="key", value_global="value")


@plant("one local projection for global rows", "layer.1.global_rows", "global rows use value instead of value_global")
def one_local(model: Any) -> None:
    projections(model, value_global="value")


@plant("global query alone", "layer.1.global_rows", "global rows use query_global alone")
def global_query_alone(model: Any) -> None:
    projections(model, key_global="key", value_global="value")


@plant("global projections swapped", "layer.1.global_rows", "query_global and key_global are swapped")
def swapped_globally(model: Any) -> None:
    projections(model, query_global="key_global", key_global="query_global")


@plant("global rows attend to padding", "layer.1.global_rows", "global rows attend to padding")
def global_padding(model: Any) -> Any:
    def wrong(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, **settings: Any) -> Tensor:
        return (q @ k.mT / SCALE).softmax(-1) @ v

    return inside(model, attend_globally=wrong)


@plant("global rows kept local", "layer.1.global_rows", "global rows are left as the local attention has them")
def kept_local(model: Any) -> None:
    part = layer(model).attention.self

    def forward(hidden: Tensor, tokens: Tokens, probabilities: Any = None) -> Tensor:
        q, k, v = (f(hidden).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (part.query, part.key, part.value))
        result = softmax(q @ k.mT / SCALE, with_columns(band(q.shape[2], *WINDOW), tokens)) @ v
        assert tokens.keep is not None
        return (result * tokens.keep[:, None, :, None]).transpose(1, 2).flatten(2)

    forward_of(part, forward)


@plant("global rows within the window", "layer.1.global_rows", "global rows see their window alone")
def global_window(model: Any) -> Any:
    def wrong(q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, **settings: Any) -> Tensor:
        assert tokens.keep is not None
        return softmax(q @ k.mT / SCALE, band(q.shape[2], *WINDOW) & tokens.keep[:, None, None, :]) @ v

    return inside(model, attend_globally=wrong)


@plant(
    "global rows in another order", "layer.1.global_rows", "global rows are not in the ascending order of their tokens"
)
def rows_reversed(model: Any) -> None:
    def change(result: Tensor, hidden: Tensor, tokens: Tokens, *rest: Any) -> Tensor:
        assert tokens.is_global is not None
        changed = result.clone()
        for row, places in enumerate(tokens.is_global):
            where = places.nonzero().flatten()
            changed[row, where] = result[row, where.flip(0)]
        return changed

    after(layer(model).attention.self, change)


# ---- heads


@plant("start and end swapped", "logits", "start and end logits are swapped")
def start_and_end(model: Any) -> None:
    after(model.qa_outputs, lambda result, x: result.flip(-1))


@plant("logits of another layer", "logits", "the head reads layer.1.output instead of layer.2.output")
def another_state(model: Any) -> None:
    kept: list[Tensor] = []
    after(layer(model, 1), lambda result, *given: kept.append(result))
    before(model.qa_outputs, lambda x: kept[-1])


@plant("softmax on logits", "logits", "the logits have gone through a log-softmax over axis 1")
def log_softmax(model: Any) -> None:
    after(model.qa_outputs, lambda result, x: F.log_softmax(result, 1))


@plant("another token pooled", "logits", "classifier.dense reads the mean of all tokens instead of the first", "class")
def mean_token(model: Any) -> None:
    before(model.classifier, lambda x: x.mean(1, keepdim=True))


@plant("another token pooled", "pooler_output", "pooler.dense reads the last token instead of the first", "choices")
def last_token(model: Any) -> None:
    before(model.longformer.pooler, lambda x: x[:, -1:])


@plant("another activation in the head", "logits", "tanh after classifier.dense is left out", "class")
def no_tanh(model: Any) -> None:
    head = model.classifier
    forward_of(head, lambda x: head.out_proj(head.dense(x[:, 0])))


@plant("dense layer of the head left out", "logits", "classifier.dense and tanh are left out", "class")
def no_dense(model: Any) -> None:
    head = model.classifier
    forward_of(head, lambda x: head.out_proj(x[:, 0]))


@plant("pooler left out", "logits", "classifier reads the first token without the pooler", "choices")
def no_pooler(model: Any) -> None:
    kept: list[Tensor] = []
    before(model.longformer.pooler, lambda x: kept.append(x) or x)  # type: ignore[func-returns-value]
    before(model.classifier, lambda x: kept[-1][:, 0])
