"""The slips that ports make in heads and pooler.

Every function replays one slip: it yields what the mistake is called, and what the value would be with it.
Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.parity.scene import Candidate, Scene, Slip, slips_into
from longformer.parity.sites import SUBLAYERS, decode, head_linears, last_states, layer_norm, right_value

SLIPS: list[Slip] = []
slip = slips_into(SLIPS)

HEADS = ("pooler_output", "logits")


@slip("start and end swapped", "logits")
def swapped(scene: Scene) -> Iterator[Candidate]:
    if "qa_outputs.weight" in scene.weights:
        yield "start and end logits are swapped", right_value(scene).flip(-1)


@slip("logits of another layer", *HEADS)
def another_state(scene: Scene) -> Iterator[Candidate]:
    last = scene.config.num_hidden_layers - 1
    names = ["embeddings", *(f"layer.{n}.{part}" for n in range(last + 1) for part in SUBLAYERS)]
    for name in names[:-1]:
        if name in scene.run:
            for site in head_linears(scene, scene.at(name)):
                yield f"the head reads {name} instead of layer.{last}.output", site.right(scene)
                break


@slip("softmax on logits", "logits", recorded="after a softmax")
def softmax_on_logits(scene: Scene) -> Iterator[Candidate]:
    right = right_value(scene)
    for axis in sorted({1, right.dim() - 1}):
        over = f"over axis {axis}"
        yield f"the logits have gone through a log-softmax {over}", right.log_softmax(axis)
        yield f"the logits have gone through a softmax {over}", right.softmax(axis)
    yield "the logits have gone through a sigmoid", right.sigmoid()


@slip("another token pooled", *HEADS)
def another_token(scene: Scene) -> Iterator[Candidate]:
    if not _reads_first(scene):
        return
    states = last_states(scene)
    real = scene.inputs["attention_mask"] != 0
    last = (real * torch.arange(states.shape[1])).amax(dim=1)
    others = {
        "the last token": states[:, -1],
        "the last token that is no padding": states[torch.arange(len(states)), last],
        "the mean of all tokens": states.mean(dim=1),
        "the mean of all tokens that are no padding": (states * real[..., None]).sum(1) / real.sum(1, keepdim=True),
    }
    for name, x in others.items():
        for site in head_linears(scene, x[:, None]):
            yield f"{site.path} reads {name} instead of the first", site.right(scene)
            break


@slip("another activation in the head", *HEADS)
def another_activation(scene: Scene) -> Iterator[Candidate]:
    if _reads_first(scene):
        dense = "pooler.dense" if scene.part == "pooler_output" else "classifier.dense"
        x = scene.linear(last_states(scene)[:, 0], dense)
        forms = {
            f"tanh after {dense} is left out": x,
            f"after {dense} stands GELU instead of tanh": F.gelu(x),
            f"after {dense} stands ReLU instead of tanh": F.relu(x),
        }
        for text, inner in forms.items():
            yield text, _after_dense(scene, inner)
    elif "lm_head.dense.weight" in scene.weights:
        x = scene.linear(last_states(scene), "lm_head.dense")
        forms = {
            "lm_head's activation is GELU's tanh approximation": F.gelu(x, approximate="tanh"),
            "lm_head's activation is left out": x,
            "lm_head's activation is ReLU": F.relu(x),
        }
        for text, inner in forms.items():
            yield text, decode(scene, layer_norm(scene, inner, "lm_head.layer_norm"))


@slip("dense layer of the head left out", *HEADS)
def no_dense(scene: Scene) -> Iterator[Candidate]:
    if _reads_first(scene):
        dense = "pooler.dense" if scene.part == "pooler_output" else "classifier.dense"
        yield f"{dense} and tanh are left out", _after_dense(scene, last_states(scene)[:, 0])
    elif "lm_head.dense.weight" in scene.weights:
        states = last_states(scene)
        yield "lm_head.dense, its activation and LayerNorm are left out", decode(scene, states)
        yield "lm_head.dense is left out", decode(scene, layer_norm(scene, F.gelu(states), "lm_head.layer_norm"))


@slip("pooler left out", "logits")
def no_pooler(scene: Scene) -> Iterator[Candidate]:
    if "classifier.weight" in scene.weights and "pooler_output" in scene.true:
        x = last_states(scene)[:, 0]
        yield "classifier reads the first token without the pooler", scene.linear(x, "classifier")


def _reads_first(scene: Scene) -> bool:
    """Whether the value is computed by a dense layer and tanh on the first token."""
    return scene.part == "pooler_output" or "classifier.dense.weight" in scene.weights


def _after_dense(scene: Scene, x: Tensor) -> Tensor:
    return x if scene.part == "pooler_output" else scene.linear(x, "classifier.out_proj")
