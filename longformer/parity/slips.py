"""The slips that ports make in embeddings, LayerNorm, residuals, activations, and in any value as a whole.

Every function replays one slip: it yields what the mistake is called, and what the value would be with it.
Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.models.layers import ACTIVATIONS
from longformer.parity.scene import Candidate, Scene, Slip, slips_into
from longformer.parity.sites import (
    PROJECTIONS,
    SUBLAYERS,
    embedded,
    layer_norm,
    merged,
    norms,
    position_ids,
    right_value,
    sublayer,
)

SLIPS: list[Slip] = []
slip = slips_into(SLIPS)

BY_HEADS = ("query", "key", "value", "local_output", "global_rows")
NORMED = ("embeddings", *SUBLAYERS, "logits")  # values that end in a LayerNorm, or have one inside
EVERY = ("embeddings", *BY_HEADS, *SUBLAYERS, "intermediate", "feed_forward", "pooler_output", "logits")
EPS = (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3)
ENOUGH = 16  # numbers that a value must have: a factor always explains one of them
DROPOUT = 0.1  # where the config has none


@slip("position offset", "embeddings")
def position_offset(scene: Scene) -> Iterator[Candidate]:
    ids, pad, right = scene.inputs["input_ids"], scene.config.pad_token_id, position_ids(scene)
    count = torch.arange(ids.shape[1]).expand_as(ids)
    for start in range(0, pad + 4):
        if start != pad + 1:
            text, by = f"positions start at {start} instead of {pad + 1}", start - (pad + 1)
            for positions in (count + start, torch.where(ids != pad, right + by, right), right + by):
                yield text, _normed(scene, embedded(scene, positions=positions))


@slip("positions through padding", "embeddings")
def positions_through_padding(scene: Scene) -> Iterator[Candidate]:
    ids = scene.inputs["input_ids"]
    count = torch.arange(ids.shape[1]).expand_as(ids) + scene.config.pad_token_id + 1
    yield "positions are counted through padding", _normed(scene, embedded(scene, positions=count))


@slip("positions left out", "embeddings")
def no_positions(scene: Scene) -> Iterator[Candidate]:
    rows = scene.weight("embeddings.position_embeddings.weight")[position_ids(scene)]
    yield "position embeddings are left out", _normed(scene, embedded(scene) - rows)


@slip("token types left out", "embeddings")
def no_types(scene: Scene) -> Iterator[Candidate]:
    ids = scene.inputs["input_ids"]
    types = scene.inputs.get("token_type_ids", torch.zeros_like(ids))
    rows = scene.weight("embeddings.token_type_embeddings.weight")[types]
    yield "token type embeddings are left out", _normed(scene, embedded(scene) - rows)


@slip("token types swapped", "embeddings")
def swapped_types(scene: Scene) -> Iterator[Candidate]:
    ids = scene.inputs["input_ids"]
    types = scene.inputs.get("token_type_ids", torch.zeros_like(ids))
    if scene.config.type_vocab_size > 1 and int(types.max()) <= 1:
        yield "token types 0 and 1 are swapped", _normed(scene, embedded(scene, types=1 - types))


@slip("words scaled", "embeddings")
def scaled_words(scene: Scene) -> Iterator[Candidate]:
    factor = math.sqrt(scene.config.hidden_size)
    text = "word embeddings are multiplied by sqrt(C), as in other models"
    yield text, _normed(scene, embedded(scene, scale=factor))


def _normed(scene: Scene, x: Tensor) -> Tensor:
    return layer_norm(scene, x, "embeddings.LayerNorm")


@slip("another eps", *NORMED)
def another_eps(scene: Scene) -> Iterator[Candidate]:
    right = scene.config.layer_norm_eps
    for site in norms(scene):
        weight, bias = site.parameters(scene)
        for eps in EPS:
            if eps != right:
                text = f"{_where(site.path)}LayerNorm's eps is {eps:g} instead of {right:g}"
                yield text, site.value(F.layer_norm(site.x, site.x.shape[-1:], weight, bias, eps))


@slip("eps outside the root", *NORMED)
def eps_outside(scene: Scene) -> Iterator[Candidate]:
    for site in norms(scene):
        weight, bias = site.parameters(scene)
        centred = site.x - site.x.mean(-1, keepdim=True)
        deviation = centred.square().mean(-1, keepdim=True).sqrt() + scene.config.layer_norm_eps
        text = f"{_where(site.path)}LayerNorm adds eps to the root of the variance (it belongs under the root)"
        yield text, site.value(centred / deviation * weight + bias)


@slip("LayerNorm left out", *NORMED, recorded="before its LayerNorm")
def norm_left_out(scene: Scene) -> Iterator[Candidate]:
    for site in norms(scene):
        yield f"{_where(site.path)}LayerNorm is left out", site.value(site.x)


@slip("LayerNorm's weight left out", *NORMED)
def norm_weight_left_out(scene: Scene) -> Iterator[Candidate]:
    for site in norms(scene):
        yield (
            f"{_where(site.path)}LayerNorm's weight is left out",
            site.value(_unit(scene, site.x) + site.parameters(scene)[1]),
        )


@slip("LayerNorm's bias left out", *NORMED)
def norm_bias_left_out(scene: Scene) -> Iterator[Candidate]:
    for site in norms(scene):
        yield (
            f"{_where(site.path)}LayerNorm's bias is left out",
            site.value(_unit(scene, site.x) * site.parameters(scene)[0]),
        )


@slip("sample deviation", *NORMED)
def sample_deviation(scene: Scene) -> Iterator[Candidate]:
    for site in norms(scene):
        weight, bias = site.parameters(scene)
        unit = (site.x - site.x.mean(-1, keepdim=True)) / (
            site.x.var(-1, keepdim=True) + scene.config.layer_norm_eps
        ).sqrt()
        text = f"{_where(site.path)}LayerNorm divides by the sample's standard deviation, by n - 1 instead of n"
        yield text, site.value(unit * weight + bias)


@slip("mean not subtracted", *NORMED)
def mean_kept(scene: Scene) -> Iterator[Candidate]:
    for site in norms(scene):
        weight, bias = site.parameters(scene)
        unit = site.x / (site.x.square().mean(-1, keepdim=True) + scene.config.layer_norm_eps).sqrt()
        for rest in (bias, torch.zeros_like(bias)):
            text = f"{_where(site.path)}LayerNorm does not subtract the mean (it is an RMS norm)"
            yield text, site.value(unit * weight + rest)


@slip("the other LayerNorm", *SUBLAYERS)
def other_norm(scene: Scene) -> Iterator[Candidate]:
    end = sublayer(scene)
    other = "output" if scene.part == "attention_output" else "attention.output"
    text = f"the LayerNorm is that of the other sublayer, {other}.LayerNorm"
    yield text, layer_norm(scene, end.update + end.residual, scene.path(f"{other}.LayerNorm"))


def _unit(scene: Scene, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=scene.config.layer_norm_eps)


def _where(path: str) -> str:
    return "in lm_head " if path.startswith("lm_head") else ""


@slip("residual left out", *SUBLAYERS)
def residual_left_out(scene: Scene) -> Iterator[Candidate]:
    end = sublayer(scene)
    yield "the residual is left out", end.normed(scene, end.update)


@slip("residual twice", *SUBLAYERS)
def residual_twice(scene: Scene) -> Iterator[Candidate]:
    end = sublayer(scene)
    yield "the residual is added twice", end.normed(scene, end.update + 2 * end.residual)


@slip("residual from elsewhere", *SUBLAYERS)
def residual_from_elsewhere(scene: Scene) -> Iterator[Candidate]:
    end, n = sublayer(scene), scene.layer
    right = (
        f"layer.{n}.attention_output"
        if scene.part == "output"
        else ("embeddings" if n == 0 else f"layer.{n - 1}.output")
    )
    before = [f"layer.{layer}.{part}" for layer in range(n) for part in SUBLAYERS]
    for name in ("embeddings", *before, f"layer.{n}.attention_output"):
        if name != right and not (scene.part == "attention_output" and name == f"layer.{n}.attention_output"):
            yield f"the residual is {name} instead of {right}", end.normed(scene, end.update + scene.at(name))


@slip("LayerNorm before the residual", *SUBLAYERS)
def norm_before_residual(scene: Scene) -> Iterator[Candidate]:
    end = sublayer(scene)
    text = "LayerNorm stands before the residual instead of behind it"
    yield text, end.normed(scene, end.update) + end.residual


@slip("sublayer left out", *SUBLAYERS)
def sublayer_left_out(scene: Scene) -> Iterator[Candidate]:
    end = sublayer(scene)
    yield "the sublayer adds nothing: only the residual is normed", end.normed(scene, end.residual)


@slip("heads merged in another order", "attention_output")
def merged_otherwise(scene: Scene) -> Iterator[Candidate]:
    end, states = sublayer(scene), merged(scene)  # (B, S, H, D)
    batch, seq_len, heads, _ = states.shape

    def ended(context: Tensor) -> Tensor:
        return end.normed(scene, scene.linear(context, end.dense) + end.residual)

    yield "heads are merged with their channels interleaved", ended(states.mT.flatten(2))
    yield (
        "heads are merged without being moved behind the tokens",
        ended(states.transpose(1, 2).reshape(batch, seq_len, -1)),
    )
    yield "heads are merged in reverse order", ended(states.flip(2).flatten(2))
    for by in range(1, heads):
        yield f"heads are merged in an order turned by {by}", ended(states.roll(by, dims=2).flatten(2))


@slip("global rows not merged", "attention_output")
def not_merged(scene: Scene) -> Iterator[Candidate]:
    if scene.tokens.is_global is None:
        return
    end, states = sublayer(scene), scene.value("local_output").transpose(1, 2).flatten(2)
    text = "global rows are not put in their place: global tokens have an attention of 0"
    yield text, end.normed(scene, scene.linear(states, end.dense) + end.residual)


@slip("dropout left on", "embeddings", *SUBLAYERS)
def dropout(scene: Scene) -> Iterator[Candidate]:
    text = "dropout is left on: some channels are 0 and the others larger (the model is in training mode)"
    if scene.part == "embeddings":
        right, actual = right_value(scene), scene.at("embeddings")
        grown = float((actual / right)[actual != 0].median())
        if grown > 1:
            yield text, (right * grown).masked_fill(actual == 0, 0)
        return
    end = sublayer(scene)
    factor = 1 / (1 - (scene.config.hidden_dropout_prob or DROPOUT))
    weight, bias = (scene.weight(f"{end.norm}.{name}") for name in ("weight", "bias"))
    unit = (scene.value(scene.part) - bias) / weight
    # What the LayerNorm was given is unit · deviation + mean. Both are unknown, and so is which channels were dropped:
    # each is found from the other, in turn, from two beginnings. Each token has the one that fits it better.
    best, least = torch.zeros_like(unit), torch.full_like(unit[..., :1], math.inf)
    for given in (end.residual + end.update, end.residual + factor * end.update):
        for _ in range(20):
            mean, deviation = _line(unit, given)
            off = unit * deviation + mean - end.residual
            kept = (off - factor * end.update).abs() < off.abs()
            given = end.residual + factor * end.update * kept
        left = (unit * deviation + mean - given).square().sum(-1, keepdim=True)
        best, least = torch.where(left < least, given, best), torch.minimum(left, least)
    kept = (best - end.residual - factor * end.update).abs() < (best - end.residual).abs()
    if 0.5 < float(kept.double().mean()) < 1:
        yield text, end.normed(scene, best)


def _line(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The offset and slope of the line from ``x`` to ``y`` that fits best in each row, (..., 1) each."""
    x_mean, y_mean = x.mean(-1, keepdim=True), y.mean(-1, keepdim=True)
    centred = x - x_mean
    slope = (centred * (y - y_mean)).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True)
    return y_mean - slope * x_mean, slope


@slip("another activation", "feed_forward", recorded="before or after another step than the activation")
def another_activation(scene: Scene) -> Iterator[Candidate]:
    x, right = scene.value("intermediate"), scene.config.hidden_act
    said = {"gelu": "the exact GELU", "gelu_new": "GELU's tanh approximation"}
    others = {
        **{name: ACTIVATIONS[name](x) for name in ("gelu", "gelu_new", "relu", "silu")},
        "quick_gelu": x * torch.sigmoid(1.702 * x),
        "tanh": torch.tanh(x),
        "no activation": x,
    }
    for name, result in others.items():
        if name != right:
            yield f"the activation is {said.get(name, name)} instead of {right}", result


@slip("heads in another order", *BY_HEADS)
def permuted_heads(scene: Scene) -> Iterator[Candidate]:
    actual, right = scene.value(scene.part), right_value(scene)
    rests = [torch.zeros_like(right[:1, :, :1])]
    if scene.part in PROJECTIONS:  # its weight alone may be in that order, and not its bias
        rests.append(scene.heads(scene.weight(scene.path(f"attention.self.{scene.part}.bias"))[None, None]))
    for rest in rests:
        order = _order((right - rest).transpose(0, 1), (actual - rest).transpose(0, 1))
        if order is not None:
            text = f"the heads are in another order: {', '.join(map(str, order.tolist()))}"
            yield text, (right - rest)[:, order] + rest


@slip("global rows in another order", "global_rows")
def permuted_rows(scene: Scene) -> Iterator[Candidate]:
    right, actual, index = right_value(scene), scene.value("global_rows"), scene.tokens.global_index
    assert index is not None
    result = right.clone()
    for row in range(len(right)):
        count = int((index[row] >= 0).sum())
        order = _order(right[row, :, :count].transpose(0, 1), actual[row, :, :count].transpose(0, 1))
        if order is not None:
            result[row, :, :count] = right[row][:, order]
    yield "global rows are not in the ascending order of their tokens", result


def _order(right: Tensor, actual: Tensor) -> Tensor | None:
    """Which entries of ``right`` (n, ...) those of ``actual`` are nearest to; None if in order, or not all."""
    order = torch.cdist(actual.flatten(1), right.flatten(1)).argmin(dim=1)
    mixed = not torch.equal(order, torch.arange(len(order))) and len(order.unique()) == len(order)
    return order if mixed else None


@slip("a factor on all", *EVERY, rank=1)
def factor_on_all(scene: Scene) -> Iterator[Candidate]:
    right, actual = right_value(scene), scene.at(name_of(scene))
    if right.numel() < ENOUGH:
        return
    factor = float((right * actual).sum() / right.square().sum())
    yield f"the whole value is {factor:.6g} times what it should be", right * factor


def name_of(scene: Scene) -> str:
    """The scene's value by its full name."""
    within = f"layer.{scene.layer}.{scene.part}"
    return within if within in scene.true else scene.part
