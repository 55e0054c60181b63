"""Known slips: what a value would be if the implementation had made one.

Where a run first departs from the truth, what went into that value is still right in it. So each slip is tried: the
value is computed again in float64 from the run's own recorded values and the true weights, once with each mistake made
on purpose. A slip is named only if that reproduces the run's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.kernels import attention_pairs
from longformer.parity.recorder import Trace
from longformer.parity.rounding import Truth
from longformer.parity.table import split_name

# What may be left between a run and a slip that explains it: this much of the run's distance from the truth, or, where
# that is itself hardly more than rounding, what rounding costs.
REPRODUCED = 0.05
REPRODUCED_ROUNDED = 0.3
ROUNDED = 2.0  # times the noise
DENSE = 1500  # tokens up to which attention is tried again, densely

EPS = "LayerNorm's eps is "
ANOTHER = "a linear layer, but not with these weights"

Slip = tuple[str, Tensor]


@dataclass(frozen=True)
class Scene:
    """Where a run departed: its values in float64, the true weights, the layer, and the masks."""

    run: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    config: LongformerConfig
    layer: int
    inputs: Mapping[str, Tensor]

    def value(self, part: str) -> Tensor:
        """A value of this layer."""
        return self.run[f"layer.{self.layer}.{part}"].double()

    def layer_input(self) -> Tensor:
        """(B, S, C): the state that the layer was given."""
        return self.run["embeddings" if self.layer == 0 else f"layer.{self.layer - 1}.output"].double()

    def weight(self, name: str, layer: int | None = None) -> Tensor:
        """A weight of this layer, or of another."""
        return self.weights[f"encoder.layer.{self.layer if layer is None else layer}.{name}"].double()

    def linear(self, x: Tensor, name: str, layer: int | None = None) -> Tensor:
        """The linear layer ``name`` applied to ``x``."""
        return F.linear(x, self.weight(f"{name}.weight", layer), self.weight(f"{name}.bias", layer))

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, C) to (B, H, S, D)."""
        return x.unflatten(-1, (self.config.num_attention_heads, -1)).transpose(1, 2)

    @property
    def key_mask(self) -> Tensor:
        """(B, S) bool, False at padding."""
        return self.inputs["attention_mask"] != 0

    @property
    def global_mask(self) -> Tensor:
        """(B, S) bool."""
        return self.inputs["global_attention_mask"] != 0


def find_hints(run: Trace, name: str, truth: Truth) -> list[str]:
    """Slips that reproduce ``run[name]``; none if no known one does."""
    layer, part = split_name(name)
    weights = {key.removeprefix("longformer."): weight for key, weight in truth.weights.items()}
    scene = Scene(run, weights, truth.config, 0 if layer is None else layer, truth.trace.inputs)
    if part not in SLIPS:
        return []
    actual, true = run[name].double(), truth.trace[name].double()
    distance = float((actual - true).norm())
    noise = float(truth.noise(run[name].dtype)[name].mean()) ** 0.5 * math.sqrt(actual.numel())
    allowed = max(REPRODUCED * distance, min(REPRODUCED_ROUNDED * distance, ROUNDED * noise))
    found = []
    with torch.no_grad():
        try:
            for text, candidate in SLIPS[part](scene):
                if candidate.shape != actual.shape:
                    continue
                left = float((actual - candidate).norm())
                if left <= allowed:
                    found.append((left, text))
        except KeyError:  # a trace that lacks what the value is computed from
            pass
    closest = min((left for left, _ in found), default=0.0)
    texts = list(dict.fromkeys(text for left, text in found if left <= 4 * closest or ANOTHER in text))
    # A fit of any weight at all explains every mistake in a linear layer, and so only what nothing else does.
    return _merged([text for text in texts if ANOTHER not in text] or texts)


def _merged(texts: list[str]) -> list[str]:
    """Where several eps fit, one hint of them all."""
    eps = [text for text in texts if text.startswith(EPS)]
    if len(eps) < 2:
        return texts
    others = " and ".join(text.removeprefix(EPS).split()[0] for text in eps[1:])
    return [f"{eps[0]} ({others} would fit as well)", *(text for text in texts if text not in eps)]


def _embeddings(scene: Scene) -> Iterator[Slip]:
    ids, pad = scene.inputs["input_ids"], scene.config.pad_token_id
    types = scene.inputs.get("token_type_ids", torch.zeros_like(ids))
    given = scene.inputs.get("position_ids")
    real = ids != pad
    right = real.cumsum(dim=1) * real + pad if given is None else given
    words, positions, kinds = (
        scene.weights[f"embeddings.{kind}_embeddings.weight"].double() for kind in ("word", "position", "token_type")
    )
    factor, bias = (scene.weights[f"embeddings.LayerNorm.{part}"].double() for part in ("weight", "bias"))
    width = (scene.config.hidden_size,)

    def norm(x: Tensor, eps: float = scene.config.layer_norm_eps) -> Tensor:
        return F.layer_norm(x, width, factor, bias, eps)

    def at(rows: Tensor) -> Tensor:
        return positions[rows.clamp(0, len(positions) - 1)]

    plain = words[ids] + kinds[types]
    count = torch.arange(ids.shape[1]).expand_as(ids)
    for start in range(0, pad + 4):
        if start != pad + 1:
            yield f"positions start at {start} instead of {pad + 1}", norm(plain + at(count + start))
            shifted = torch.where(real, right - (pad + 1) + start, right)
            yield f"positions start at {start} instead of {pad + 1}", norm(plain + at(shifted))
            every = right - (pad + 1) + start
            yield f"positions start at {start} instead of {pad + 1}", norm(plain + at(every))
    yield "positions are counted through padding", norm(plain + at(count + pad + 1))
    yield "position embeddings are left out", norm(plain)
    yield "token type embeddings are left out", norm(words[ids] + at(right))
    yield from _norm_slips(plain + at(right), factor, bias, scene.config.layer_norm_eps)


def _norm_slips(x: Tensor, factor: Tensor, bias: Tensor, right: float) -> Iterator[Slip]:
    width = x.shape[-1:]
    for eps in (1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3):
        if eps != right:
            yield f"{EPS}{eps:g} instead of {right:g}", F.layer_norm(x, width, factor, bias, eps)
    unit = F.layer_norm(x, width, eps=right)
    yield "LayerNorm is left out", x
    yield "LayerNorm's weight is left out", unit + bias
    yield "LayerNorm's bias is left out", unit * factor
    sample = (x.var(dim=-1, keepdim=True) + right).sqrt()
    text = "LayerNorm divides by the sample's standard deviation, by n - 1 instead of n"
    yield text, (x - x.mean(dim=-1, keepdim=True)) / sample * factor + bias


def _projection(role: str) -> Callable[[Scene], Iterator[Slip]]:
    def slips(scene: Scene) -> Iterator[Slip]:
        x, own = scene.layer_input(), f"attention.self.{role}"
        weight, bias = scene.weight(f"{own}.weight"), scene.weight(f"{own}.bias")
        for other in ("query", "key", "value", "query_global", "key_global", "value_global"):
            if other != role:
                text = f"{role} is computed by the weights of {other}"
                if {role, other} == {"query", "key"}:
                    text = "query and key are swapped"
                yield text, scene.heads(scene.linear(x, f"attention.self.{other}"))
        yield f"the weight {own}.weight is transposed", scene.heads(F.linear(x, weight.T, bias))
        yield f"the bias {own}.bias is left out", scene.heads(F.linear(x, weight))
        scale = scene.config.head_dim**-0.5
        yield (
            f"{role} was recorded after the scale (a trace has it before)",
            scene.heads(F.linear(x, weight, bias) * scale),
        )
        interleaved = F.linear(x, weight, bias).unflatten(-1, (-1, scene.config.num_attention_heads))
        yield f"{role}'s channels are split into heads in the wrong order", interleaved.permute(0, 3, 1, 2)
        for layer in range(scene.config.num_hidden_layers):
            if layer != scene.layer:
                yield f"{own} has the weights of layer {layer}", scene.heads(scene.linear(x, own, layer))
        yield from _another_weight(scene, own, x, scene.value(role).transpose(1, 2).flatten(2), scene.heads)

    return slips


def _another_weight(
    scene: Scene, name: str, x: Tensor, y: Tensor, shape: Callable[[Tensor], Tensor] = lambda y: y
) -> Iterator[Slip]:
    """Whether ``y`` is an affine function of ``x`` at all: then the formula is right, and the weight is another."""
    rows = x.flatten(0, -2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    if len(torch.unique(rows, dim=0)) < 1.2 * rows.shape[1]:  # too few tokens: any y would fit
        return
    fitted = torch.linalg.lstsq(rows, y.flatten(0, -2)).solution
    yield f"{name} computes {ANOTHER}: they are stale, or of another checkpoint", shape((rows @ fitted).view(y.shape))


def _local_output(scene: Scene) -> Iterator[Slip]:
    query, key, value = scene.value("query"), scene.value("key"), scene.value("value")
    key_mask, global_mask = scene.key_mask, scene.global_mask & scene.key_mask
    seq_len = query.shape[2]
    if seq_len > DENSE:
        return
    left, right = scene.config.window(scene.layer)
    scale = scene.config.head_dim**-0.5

    def pairs(
        window: tuple[int, int] = (left, right), mask: Tensor | None = key_mask, use_global: bool = True
    ) -> Tensor:
        columns = global_mask if use_global else None
        return attention_pairs(seq_len, window, key_mask=mask, global_mask=columns)  # (B, 1, S, S)

    def attend(
        allowed: Tensor,
        *,
        query: Tensor = query,
        scale: float = scale,
        twice: Tensor | None = None,
        keep_padding: bool = False,
    ) -> Tensor:
        scores = (query * scale) @ key.transpose(2, 3)
        empty = ~allowed.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~(allowed | empty), float("-inf"))
        if twice is not None:
            scores = scores + math.log(2) * twice  # a column that counts twice has twice the weight
        rows = scores.softmax(-1).masked_fill(empty, 0) @ value
        hidden = global_mask if keep_padding else global_mask | ~key_mask
        return rows.masked_fill(hidden[:, None, :, None], 0)

    for name, window in (
        ("one token too few on each side", (left - 1, right - 1)),
        ("one token too many on each side", (left + 1, right + 1)),
        ("one token too few on the left", (left - 1, right)),
        ("one token too few on the right", (left, right - 1)),
        ("one token too many on the left", (left + 1, right)),
        ("one token too many on the right", (left, right + 1)),
        ("moved left by one", (left + 1, right - 1)),
        ("moved right by one", (left - 1, right + 1)),
        ("twice as wide (one-sided and two-sided windows confused)", (2 * left, 2 * right)),
        ("half as wide (one-sided and two-sided windows confused)", (left // 2, right // 2)),
        ("without its right side (causal)", (left, 0)),
    ):
        if min(window) >= 0:
            yield f"the window is off: {name}; it should be ({left}, {right})", attend(pairs(window))
    band = pairs(use_global=False)
    columns = global_mask[:, None, None, :]
    yield "a global column inside the band is counted twice", attend(pairs(), twice=(band & columns).double())
    yield "global columns outside the band are missing", attend(band)
    yield "global columns are missing, inside the band too", attend(band & ~columns)
    bias = scene.heads(scene.weight("attention.self.query.bias").expand(*query.shape[:1], seq_len, -1))
    text = "the scale is applied before the query's bias is added (it belongs behind)"
    yield text, attend(pairs(), query=(query - bias) + bias / scale)
    yield "the scale 1/sqrt(D) is left out", attend(pairs(), scale=1.0)
    yield "the scale 1/sqrt(D) is applied twice", attend(pairs(), scale=scale**2)
    yield "the scale is 1/sqrt(C) instead of 1/sqrt(D)", attend(pairs(), scale=scene.config.hidden_size**-0.5)
    unmasked = pairs(mask=None)
    yield "padded columns are not masked", attend(unmasked)
    yield "padded columns are not masked, and padded rows are not zeroed", attend(unmasked, keep_padding=True)
    masked_columns = unmasked & key_mask[:, None, None, :]
    yield "padded rows are not zeroed", attend(masked_columns, keep_padding=True)
    yield "keys and values are swapped", _swapped(query, value, key, pairs(), scale, global_mask | ~key_mask)
    yield "every token attends to every token: there is no window", attend(pairs((seq_len, seq_len)))


def _swapped(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float, hidden: Tensor) -> Tensor:
    empty = ~allowed.any(dim=-1, keepdim=True)
    scores = ((query * scale) @ key.transpose(2, 3)).masked_fill(~(allowed | empty), float("-inf"))
    return (scores.softmax(-1) @ value).masked_fill(hidden[:, None, :, None], 0)


def _global_rows(scene: Scene) -> Iterator[Slip]:
    from longformer.parity.probabilities import global_places, global_rows

    x = scene.layer_input()
    key_mask, global_mask = scene.key_mask, scene.global_mask & scene.key_mask
    scale = scene.config.head_dim**-0.5
    real = global_places(global_mask)[1][:, None, :, None]

    def projected(name: str) -> Tensor:
        return scene.heads(scene.linear(x, f"attention.self.{name}"))

    def attend(query: str, key: str, value: str, *, scale: float = scale, mask: Tensor | None = key_mask) -> Tensor:
        rows = global_rows(projected(query), global_mask)
        scores = (rows * scale) @ projected(key).transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return (scores.softmax(-1) @ projected(value)).masked_fill(~real, 0)

    right = ("query_global", "key_global", "value_global")
    yield "the local projections are used for global rows", attend("query", "key", "value")
    for i, name in enumerate(right):
        given = list(right)
        given[i] = name.removesuffix("_global")
        yield f"global rows use {given[i]} instead of {name}", attend(*given)
    yield "global rows use query_global alone, with the local keys and values", attend("query_global", "key", "value")
    yield "query_global and key_global are swapped", attend("key_global", "query_global", "value_global")
    yield "the scale 1/sqrt(D) is left out in global rows", attend(*right, scale=1.0)
    yield "global rows attend to padding", attend(*right, mask=None)
    if x.shape[1] <= DENSE:
        left, right_side = scene.config.window(scene.layer)
        allowed = attention_pairs(x.shape[1], (left, right_side), key_mask=key_mask, global_mask=global_mask)
        scores = (scene.value("query") * scale) @ scene.value("key").transpose(2, 3)
        local = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num() @ scene.value("value")
        yield (
            "global rows are left as the local attention has them",
            global_rows(local, global_mask).masked_fill(~real, 0),
        )
    for layer in range(scene.config.num_hidden_layers):
        if layer != scene.layer:
            other = Scene(scene.run, scene.weights, scene.config, layer, scene.inputs)
            query, key, value = (other.heads(other.linear(x, f"attention.self.{name}")) for name in right)
            scores = (global_rows(query, global_mask) * scale) @ key.transpose(2, 3)
            scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
            yield (
                f"the global projections are those of layer {layer}",
                (scores.softmax(-1) @ value).masked_fill(~real, 0),
            )


def _sublayer(
    dense: str, norm: str, update_of: Callable[[Scene], Tensor], residual_of: Callable[[Scene], Tensor]
) -> Callable[[Scene], Iterator[Slip]]:
    def slips(scene: Scene) -> Iterator[Slip]:
        x, residual = update_of(scene), residual_of(scene)
        factor, bias = scene.weight(f"{norm}.weight"), scene.weight(f"{norm}.bias")
        width = (scene.config.hidden_size,)

        def normed(x: Tensor, eps: float = scene.config.layer_norm_eps) -> Tensor:
            return F.layer_norm(x, width, factor, bias, eps)

        weight, shift = scene.weight(f"{dense}.weight"), scene.weight(f"{dense}.bias")
        right = F.linear(x, weight, shift) + residual
        yield from _norm_slips(right, factor, bias, scene.config.layer_norm_eps)
        yield "the residual is left out", normed(F.linear(x, weight, shift))
        yield f"the bias {dense}.bias is left out", normed(F.linear(x, weight) + residual)
        yield "LayerNorm stands before the residual instead of behind it", normed(F.linear(x, weight, shift)) + residual
        if weight.shape[0] == weight.shape[1]:
            yield f"the weight {dense}.weight is transposed", normed(F.linear(x, weight.T, shift) + residual)
        for layer in range(scene.config.num_hidden_layers):
            if layer != scene.layer:
                yield f"{dense} has the weights of layer {layer}", normed(scene.linear(x, dense, layer) + residual)

    return slips


def _context(scene: Scene) -> Tensor:
    """(B, S, C): local output and global rows, merged again."""
    local = scene.value("local_output")
    mask = scene.global_mask & scene.key_mask
    if bool(mask.any()):
        rows = scene.value("global_rows")
        local = local.clone()
        for b in range(len(mask)):
            index = mask[b].nonzero().flatten()
            local[b, :, index] = rows[b, :, : len(index)]
    return local.transpose(1, 2).flatten(2)


def _intermediate(scene: Scene) -> Iterator[Slip]:
    x, name = scene.value("attention_output"), "intermediate.dense"
    yield f"the bias {name}.bias is left out", F.linear(x, scene.weight(f"{name}.weight"))
    for layer in range(scene.config.num_hidden_layers):
        if layer != scene.layer:
            yield f"{name} has the weights of layer {layer}", scene.linear(x, name, layer)
    yield from _another_weight(scene, name, x, scene.value("intermediate"))


def _feed_forward(scene: Scene) -> Iterator[Slip]:
    x, right = scene.value("intermediate"), scene.config.hidden_act
    for name, result in (
        ("gelu", F.gelu(x)),
        ("gelu_new", F.gelu(x, approximate="tanh")),
        ("quick_gelu", x * torch.sigmoid(1.702 * x)),
        ("relu", F.relu(x)),
        ("silu", F.silu(x)),
        ("no activation", x),
    ):
        if name != right:
            text = {
                "gelu_new": "the activation is GELU's tanh approximation",
                "gelu": "the activation is the exact GELU",
            }.get(name, f"the activation is {name}")
            yield f"{text} instead of {right}", result


def _logits(scene: Scene) -> Iterator[Slip]:
    if "qa_outputs.weight" not in scene.weights:
        return
    x = scene.run[f"layer.{scene.config.num_hidden_layers - 1}.output"].double()
    weight, bias = (scene.weights[f"qa_outputs.{part}"].double() for part in ("weight", "bias"))
    yield "start and end logits are swapped", F.linear(x, weight.flip(0), bias.flip(0))
    yield "the bias qa_outputs.bias is left out", F.linear(x, weight)
    yield from _another_weight(scene, "qa_outputs", x, scene.run["logits"].double())


SLIPS: dict[str, Callable[[Scene], Iterator[Slip]]] = {
    "embeddings": _embeddings,
    "query": _projection("query"),
    "key": _projection("key"),
    "value": _projection("value"),
    "local_output": _local_output,
    "global_rows": _global_rows,
    "attention_output": _sublayer(
        "attention.output.dense", "attention.output.LayerNorm", _context, lambda scene: scene.layer_input()
    ),
    "intermediate": _intermediate,
    "feed_forward": _feed_forward,
    "output": _sublayer(
        "output.dense",
        "output.LayerNorm",
        lambda scene: scene.value("feed_forward"),
        lambda scene: scene.value("attention_output"),
    ),
    "logits": _logits,
}
