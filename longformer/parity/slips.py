"""The slips that ports make around attention: each value is computed again with one mistake made on purpose.

Every function yields pairs: what the mistake is called, and what the value would be.
Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.config import LongformerConfig
from longformer.kernels import Tokens
from longformer.parity.layout import tokens_of

EPS = "LayerNorm's eps is "
ANOTHER = "a linear layer, but not with these weights"

Slip = tuple[str, Tensor]


class LackingError(Exception):
    """A run lacks what is needed to try a slip."""


@dataclass(frozen=True)
class Scene:
    """Where a run departed from the truth: its values, the true ones, the true weights, the layer, and the inputs.

    Raises:
        LackingError: a value is asked for that the run lacks, or has in another shape.
    """

    run: Mapping[str, Tensor]
    true: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    config: LongformerConfig
    layer: int
    inputs: Mapping[str, Tensor]

    def value(self, part: str) -> Tensor:
        """A value of this layer."""
        return self.at(f"layer.{self.layer}.{part}")

    def at(self, name: str) -> Tensor:
        """A value in float64."""
        if name not in self.run or self.run[name].shape != self.true[name].shape:
            raise LackingError(name)
        return self.run[name].double()

    def layer_input(self) -> Tensor:
        """(B, S, C): the state that the layer was given."""
        return self.at("embeddings" if self.layer == 0 else f"layer.{self.layer - 1}.output")

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
    def tokens(self) -> Tokens:
        """Padding and global tokens, with the index of the global ones."""
        return tokens_of(self.inputs)


def embeddings(scene: Scene) -> Iterator[Slip]:
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
    yield from norm_slips(plain + at(right), factor, bias, scene.config.layer_norm_eps)


def norm_slips(x: Tensor, factor: Tensor, bias: Tensor, right: float) -> Iterator[Slip]:
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


def projection(role: str) -> Callable[[Scene], Iterator[Slip]]:
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
        yield from another_weight(scene, own, x, scene.value(role).transpose(1, 2).flatten(2), scene.heads)

    return slips


def another_weight(
    scene: Scene, name: str, x: Tensor, y: Tensor, shape: Callable[[Tensor], Tensor] = lambda y: y
) -> Iterator[Slip]:
    """The best fit of ``y`` by a linear layer of ``x``: if it is exact, the formula is right, and the weight is not."""
    rows = x.flatten(0, -2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    if len(torch.unique(rows, dim=0)) < 1.2 * rows.shape[1]:  # too few tokens: any y would fit
        return
    fitted = torch.linalg.lstsq(rows, y.flatten(0, -2)).solution
    yield f"{name} computes {ANOTHER}: they are stale, or of another checkpoint", shape((rows @ fitted).view(y.shape))


def sublayer(
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
        yield from norm_slips(right, factor, bias, scene.config.layer_norm_eps)
        yield "the residual is left out", normed(F.linear(x, weight, shift))
        yield f"the bias {dense}.bias is left out", normed(F.linear(x, weight) + residual)
        yield "LayerNorm stands before the residual instead of behind it", normed(F.linear(x, weight, shift)) + residual
        if weight.shape[0] == weight.shape[1]:
            yield f"the weight {dense}.weight is transposed", normed(F.linear(x, weight.T, shift) + residual)
        for layer in range(scene.config.num_hidden_layers):
            if layer != scene.layer:
                yield f"{dense} has the weights of layer {layer}", normed(scene.linear(x, dense, layer) + residual)

    return slips


def context(scene: Scene) -> Tensor:
    """(B, S, C): local output and global rows, merged again."""
    states, tokens = scene.value("local_output").transpose(1, 2).clone(), scene.tokens  # (B, S, H, D)
    if tokens.is_global is not None and tokens.global_index is not None:
        states[tokens.is_global] = scene.value("global_rows").transpose(1, 2)[tokens.global_index >= 0]
    return states.flatten(2)


def intermediate(scene: Scene) -> Iterator[Slip]:
    x, name = scene.value("attention_output"), "intermediate.dense"
    yield f"the bias {name}.bias is left out", F.linear(x, scene.weight(f"{name}.weight"))
    for layer in range(scene.config.num_hidden_layers):
        if layer != scene.layer:
            yield f"{name} has the weights of layer {layer}", scene.linear(x, name, layer)
    yield from another_weight(scene, name, x, scene.value("intermediate"))


def feed_forward(scene: Scene) -> Iterator[Slip]:
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
