"""The slips that ports make in heads and pooler: the value is computed again with one mistake made on purpose.

Every function yields pairs: what the mistake is called, and what the value would be.
Letters: B batch, S sequence, C hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from longformer.parity.slips import Scene, Slip, another_weight, norm_slips


def logits(scene: Scene) -> Iterator[Slip]:
    """The slips of the head whose weights there are."""
    for weight, slips in BY_WEIGHT.items():
        if weight in scene.weights:
            yield from slips(scene)
            return


def pooler_output(scene: Scene) -> Iterator[Slip]:
    """Of the pooler: a dense layer on the first token, and tanh."""
    yield from _first_token(scene, "pooler.dense", lambda x: x)


def _last_states(scene: Scene) -> Tensor:
    """(B, S, C)."""
    return scene.at(f"layer.{scene.config.num_hidden_layers - 1}.output")


def _linear(scene: Scene, name: str, x: Tensor, *, bias: bool = True) -> Tensor:
    return F.linear(x, _weight(scene, f"{name}.weight"), _weight(scene, f"{name}.bias") if bias else None)


def _weight(scene: Scene, name: str) -> Tensor:
    return scene.weights[name].double()


def _output_layer(scene: Scene, name: str, x: Tensor) -> Iterator[Slip]:
    """Of the linear layer that gives the logits."""
    yield f"the bias {name}.bias is left out", _linear(scene, name, x, bias=False)
    yield from another_weight(scene, name, x, scene.at("logits"))


def _first_token(scene: Scene, dense: str, then: Callable[[Tensor], Tensor]) -> Iterator[Slip]:
    """Of a dense layer on the first token and tanh, and what comes ``then``."""
    states = _last_states(scene)
    real = scene.inputs["attention_mask"] != 0
    place = torch.arange(states.shape[1])
    last = (real * place).amax(dim=1)
    others = {
        "the last token": states[:, -1],
        "the last token that is no padding": states[torch.arange(len(states)), last],
        "the mean of all tokens": states.mean(dim=1),
        "the mean of all tokens that are no padding": (states * real[..., None]).sum(1) / real.sum(1, keepdim=True),
    }
    for name, x in others.items():
        yield f"{dense} reads {name} instead of the first", then(torch.tanh(_linear(scene, dense, x)))
    first = states[:, 0]
    inner = _linear(scene, dense, first)
    yield f"tanh after {dense} is left out", then(inner)
    yield f"after {dense} stands GELU instead of tanh", then(F.gelu(inner))
    yield f"after {dense} stands ReLU instead of tanh", then(F.relu(inner))
    yield f"{dense} and tanh are left out", then(first)
    yield f"the bias {dense}.bias is left out", then(torch.tanh(_linear(scene, dense, first, bias=False)))


def _question_answering(scene: Scene) -> Iterator[Slip]:
    x = _last_states(scene)
    weight, bias = _weight(scene, "qa_outputs.weight"), _weight(scene, "qa_outputs.bias")
    yield "start and end logits are swapped", F.linear(x, weight.flip(0), bias.flip(0))
    yield from _output_layer(scene, "qa_outputs", x)


def _masked_lm(scene: Scene) -> Iterator[Slip]:
    words, bias = _weight(scene, "embeddings.word_embeddings.weight"), _weight(scene, "lm_head.bias")
    inner = _linear(scene, "lm_head.dense", _last_states(scene))
    factor, shift = _weight(scene, "lm_head.layer_norm.weight"), _weight(scene, "lm_head.layer_norm.bias")
    eps = scene.config.layer_norm_eps

    def normed(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], factor, shift, eps)

    right = normed(F.gelu(inner))
    yield "the bias lm_head.bias is left out", right @ words.T
    yield (
        "lm_head's activation is GELU's tanh approximation",
        normed(F.gelu(inner, approximate="tanh")) @ words.T + bias,
    )
    yield "lm_head's activation is left out", normed(inner) @ words.T + bias
    for text, x in norm_slips(F.gelu(inner), factor, shift, eps):
        yield f"in lm_head {text}", x @ words.T + bias
    yield from another_weight(scene, "lm_head.decoder", right, scene.at("logits"))


def _sequence_classification(scene: Scene) -> Iterator[Slip]:
    project, dense = "classifier.out_proj", "classifier.dense"
    yield from _first_token(scene, dense, lambda x: _linear(scene, project, x))
    yield from _output_layer(scene, project, torch.tanh(_linear(scene, dense, _last_states(scene)[:, 0])))


def _classifier(scene: Scene) -> Iterator[Slip]:
    """Token classification, or multiple choice, which reads the pooler's output."""
    if "pooler_output" not in scene.true:
        yield from _output_layer(scene, "classifier", _last_states(scene))
        return
    yield "classifier reads the first token without the pooler", _linear(scene, "classifier", _last_states(scene)[:, 0])
    yield from _output_layer(scene, "classifier", scene.at("pooler_output"))


BY_WEIGHT: dict[str, Callable[[Scene], Iterator[Slip]]] = {
    "qa_outputs.weight": _question_answering,
    "lm_head.dense.weight": _masked_lm,
    "classifier.dense.weight": _sequence_classification,
    "classifier.weight": _classifier,
}
