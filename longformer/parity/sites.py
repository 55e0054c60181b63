"""The right formulas of a run's values, from the run's own recorded values: where in them a layer's weights stand.

Letters: B batch, S sequence, C hidden size, H heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.models.layers import ACTIVATIONS
from longformer.parity.attention_replay import LocalAttention, attend_globally
from longformer.parity.scene import LackingError, Scene

PROJECTIONS = ("query", "key", "value")
GLOBAL_PROJECTIONS = ("query_global", "key_global", "value_global")
SUBLAYERS = ("attention_output", "output")
WORDS = "embeddings.word_embeddings.weight"


def _same(x: Tensor) -> Tensor:
    return x


class Linear(NamedTuple):
    """A linear layer inside a value.

    path: its full name; its weight and bias have it in front.
    x: (..., inputs), what it was given.
    value: what the value is if the layer gives this.
    given: (..., outputs), what the run's layer gave, where that can be read off the value.
    """

    path: str
    x: Tensor
    value: Callable[[Tensor], Tensor]
    given: Tensor | None = None
    weight: str | None = None
    bias: str | None = None

    def parameters(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Weight and bias, in float64."""
        names = self.weight or f"{self.path}.weight", self.bias or f"{self.path}.bias"
        return scene.weight(names[0]), scene.weight(names[1])

    def right(self, scene: Scene) -> Tensor:
        """The value by the right formula."""
        return self.value(F.linear(self.x, *self.parameters(scene)))


class Norm(NamedTuple):
    """A LayerNorm inside a value: its full name, what it was given, and what the value is if it gives this."""

    path: str
    x: Tensor
    value: Callable[[Tensor], Tensor]

    def parameters(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Weight and bias, in float64."""
        return scene.weight(f"{self.path}.weight"), scene.weight(f"{self.path}.bias")


class Sublayer(NamedTuple):
    """The end of a sublayer, LayerNorm(dense(x) + residual): full names, what goes in, and the two summands."""

    dense: str
    norm: str
    x: Tensor
    residual: Tensor
    update: Tensor

    def normed(self, scene: Scene, x: Tensor) -> Tensor:
        """The sublayer's LayerNorm applied to ``x``."""
        return layer_norm(scene, x, self.norm)


def layer_norm(scene: Scene, x: Tensor, path: str) -> Tensor:
    """The LayerNorm of this full name applied to ``x`` (..., C)."""
    weight, bias = scene.weight(f"{path}.weight"), scene.weight(f"{path}.bias")
    return F.layer_norm(x, x.shape[-1:], weight, bias, scene.config.layer_norm_eps)


def embedded(
    scene: Scene, *, positions: Tensor | None = None, types: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """(B, S, C): the sum of the embeddings. ``positions`` and ``types`` (B, S) stand in place of the right ones."""
    ids = scene.inputs["input_ids"]
    types = scene.inputs.get("token_type_ids", torch.zeros_like(ids)) if types is None else types
    rows = scene.weight("embeddings.position_embeddings.weight")
    positions = position_ids(scene) if positions is None else positions
    kinds = scene.weight("embeddings.token_type_embeddings.weight")[types]
    return scene.weight(WORDS)[ids] * scale + rows[positions.clamp(0, len(rows) - 1)] + kinds


def position_ids(scene: Scene) -> Tensor:
    """(B, S): the right positions."""
    given, ids, pad = scene.inputs.get("position_ids"), scene.inputs["input_ids"], scene.config.pad_token_id
    real = ids != pad
    return real.cumsum(dim=1) * real + pad if given is None else given


def sublayer(scene: Scene) -> Sublayer:
    """The sublayer whose end is the scene's value, one of ``SUBLAYERS``."""
    if scene.part == "attention_output":
        names, x, residual = "attention.output", context(scene), scene.layer_input()
    else:
        names, x, residual = "output", scene.value("feed_forward"), scene.value("attention_output")
    dense = scene.path(f"{names}.dense")
    return Sublayer(dense, scene.path(f"{names}.LayerNorm"), x, residual, scene.linear(x, dense))


def context(scene: Scene) -> Tensor:
    """(B, S, C): local output and global rows, merged again."""
    return merged(scene).flatten(2)


def merged(scene: Scene) -> Tensor:
    """(B, S, H, D): the same by heads."""
    states, tokens = scene.value("local_output").transpose(1, 2).clone(), scene.tokens
    if tokens.is_global is not None and tokens.global_index is not None:
        states[tokens.is_global] = scene.value("global_rows").transpose(1, 2)[tokens.global_index >= 0]
    return states


def linears(scene: Scene) -> Iterator[Linear]:
    """The linear layers between the recorded values before the scene's and that value itself."""
    part = scene.part
    if part in PROJECTIONS:
        given = scene.value(part).transpose(1, 2).flatten(2)
        yield Linear(scene.path(f"attention.self.{part}"), scene.layer_input(), scene.heads, given)
    elif part == "global_rows":
        for name in GLOBAL_PROJECTIONS:
            yield Linear(
                scene.path(f"attention.self.{name}"),
                scene.layer_input(),
                lambda given, name=name: attend_globally(scene, results={name: given}),  # type: ignore[misc]
            )
    elif part in SUBLAYERS:
        end = sublayer(scene)
        yield Linear(end.dense, end.x, lambda given: end.normed(scene, given + end.residual))
    elif part == "intermediate":
        yield Linear(scene.path("intermediate.dense"), scene.value("attention_output"), _same, scene.value(part))
    elif part in ("pooler_output", "logits"):
        yield from head_linears(scene)


def norms(scene: Scene) -> Iterator[Norm]:
    """The LayerNorms likewise."""
    if scene.part == "embeddings":
        yield Norm("embeddings.LayerNorm", embedded(scene), _same)
    elif scene.part in SUBLAYERS:
        end = sublayer(scene)
        yield Norm(end.norm, end.update + end.residual, _same)
    elif scene.part == "logits" and "lm_head.dense.weight" in scene.weights:
        inner = F.gelu(scene.linear(last_states(scene), "lm_head.dense"))
        yield Norm("lm_head.layer_norm", inner, lambda x: decode(scene, x))


def last_states(scene: Scene) -> Tensor:
    """(B, S, C): the last layer's output."""
    return scene.layer_input(scene.config.num_hidden_layers)


def decode(scene: Scene, x: Tensor) -> Tensor:
    """The scores of all words (B, S, V) by the tied decoder."""
    return F.linear(x, scene.weight(WORDS), scene.weight("lm_head.bias"))


def head_linears(scene: Scene, states: Tensor | None = None) -> Iterator[Linear]:
    """The linear layers of pooler and head, in which ``states`` (B, S, C) may stand in place of the last layer's."""
    weights = scene.weights
    if scene.part == "logits" and "classifier.weight" in weights and "pooler_output" in scene.true:
        # Multiple choice, whose classifier reads the pooler's output: no state of another layer can stand there.
        if states is None:
            yield Linear("classifier", scene.at("pooler_output"), _same, scene.at("logits"))
        return
    states = last_states(scene) if states is None else states
    if scene.part == "pooler_output":
        yield Linear("pooler.dense", states[:, 0], torch.tanh)
    elif "qa_outputs.weight" in weights:
        yield Linear("qa_outputs", states, _same, scene.at("logits"))
    elif "lm_head.dense.weight" in weights:
        yield Linear(
            "lm_head.dense", states, lambda x: decode(scene, layer_norm(scene, F.gelu(x), "lm_head.layer_norm"))
        )
        x = layer_norm(scene, F.gelu(scene.linear(states, "lm_head.dense")), "lm_head.layer_norm")
        yield Linear("lm_head.decoder", x, _same, scene.at("logits"), WORDS, "lm_head.bias")
    elif "classifier.dense.weight" in weights:
        out = "classifier.out_proj"
        yield Linear("classifier.dense", states[:, 0], lambda x: scene.linear(torch.tanh(x), out))
        yield Linear(out, torch.tanh(scene.linear(states[:, 0], "classifier.dense")), _same, scene.at("logits"))
    elif "classifier.weight" in weights:
        yield Linear("classifier", states, _same, scene.at("logits"))


def right_value(scene: Scene) -> Tensor:
    """The scene's value by the right formula, in float64, from what the run recorded before it.

    Raises:
        LackingError: the run lacks what goes in, or nothing is known of this value.
    """
    if scene.part == "embeddings":
        return layer_norm(scene, embedded(scene), "embeddings.LayerNorm")
    if scene.part == "feed_forward":
        return ACTIVATIONS[scene.config.hidden_act](scene.value("intermediate"))
    if scene.part == "local_output":
        local = LocalAttention(scene)
        return local.attend(local.pairs)
    for site in linears(scene):
        return site.right(scene)
    raise LackingError(scene.part)
