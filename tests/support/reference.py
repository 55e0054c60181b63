"""The reference, transformers' Longformer, beside our model: one set of weights, and what each computes at every layer.

``build`` gives both models; ``encode`` and ``gradients`` read either of them alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch
import transformers
from tolerances import CORRELATED_RATIO, ENOUGH, FEW_ROWS, FEW_ROWS_RATIO, GRADIENT, GRADIENT_RATIO, slack
from torch import Tensor, nn
from torch.nn import functional as F

from longformer import LongformerConfig, LongformerForQuestionAnswering, LongformerModel
from longformer.checkpoints.names import TIED
from longformer.models.heads import Head

transformers.logging.set_verbosity_error()  # else it says, on every length, that it pads to a multiple of the window
transformers.logging.disable_progress_bar()

TINY = LongformerConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=130,
    type_vocab_size=2,
    initializer_range=0.2,  # scores of order 1, so that attention is far from uniform
    attention_window=8,
)
BASE = LongformerConfig()  # the architecture of allenai/longformer-base-4096


Ours = LongformerModel | Head
Gradients = dict[str, Tensor | None]


class Pair(NamedTuple):
    """``ours`` and ``reference`` hold the very same memory as weights, not copies. Both are in ``eval()`` mode."""

    ours: Ours
    reference: nn.Module


class Encoded(NamedTuple):
    """states: (B, S, C) after the embeddings and after each layer. results: logits, or last state and pooled one."""

    states: list[Tensor]
    results: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return [*self.states, *self.results]


def build(
    config: LongformerConfig, *, kind: type[Ours] = LongformerForQuestionAnswering, seed: int = 0, impl: str = "auto"
) -> Pair:
    """Both models with one set of random weights.

    Biases and the LayerNorms' factors are drawn too: at 0 and 1, where initialisation leaves them, a model that
    forgets one is as good as another. So are the embeddings of padding, which trained checkpoints need not have at 0.
    """
    with torch.device("meta"):
        reference = getattr(transformers, kind.__name__)(reference_config(config))
    reference.to_empty(device="cpu")
    reference.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            weight.normal_(std=config.initializer_range if weight.dim() > 1 else 0.1, generator=generator)
            if name.lower().endswith("norm.weight"):
                weight.add_(1)
    return Pair(with_weights(config, reference.state_dict(), kind=kind, impl=impl), reference.eval())


def reference_config(config: LongformerConfig) -> transformers.LongformerConfig:
    """Our config, read by transformers from what we would save."""
    return transformers.LongformerConfig.from_dict(config.to_dict())


def with_weights(
    config: LongformerConfig,
    weights: dict[str, Tensor],
    *,
    kind: type[Ours] = LongformerForQuestionAnswering,
    impl: str = "auto",
) -> Ours:
    """Our model over ``weights``, strictly: every name and shape must fit, but for second names of tied weights."""
    with torch.device("meta"):
        ours = kind(config, impl=impl)
    ours.load_state_dict({name: weight for name, weight in weights.items() if name not in TIED}, assign=True)
    return ours.eval()


def exact(pair: Pair, *, impl: str = "reference") -> Ours:
    """The truth to measure float32 by: our model over the same weights in float64, attention by its definition."""
    weights = {name: weight.double() for name, weight in pair.ours.state_dict().items()}
    return with_weights(pair.ours.config, weights, kind=type(pair.ours), impl=impl)


def question_row(config: LongformerConfig, question: int, seq_len: int) -> Tensor:
    """(S,) random ids laid out as ``<s> question </s></s> context </s>``, with ``question`` tokens in the question."""
    special = max(config.pad_token_id, config.bos_token_id, config.sep_token_id)
    row = torch.randint(special + 1, config.vocab_size, (seq_len,))
    row[0] = config.bos_token_id
    row[[question + 1, question + 2, seq_len - 1]] = config.sep_token_id
    return row


def padded_batch(config: LongformerConfig, rows: list[Tensor], *, left: bool = False) -> dict[str, Tensor]:
    """input_ids and attention_mask of rows of different length."""
    longest = max(map(len, rows))
    shifts = [longest - len(row) if left else 0 for row in rows]
    ids = torch.full((len(rows), longest), config.pad_token_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        ids[i, shift : shift + len(row)] = row
        mask[i, shift : shift + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def global_mask(ids: Tensor, *places: list[int]) -> Tensor:
    """(B, S) with 1 at the places named for each row."""
    mask = torch.zeros_like(ids)
    for row, named in zip(mask, places, strict=True):
        row[named] = 1
    return mask


@torch.no_grad()
def encode(model: nn.Module, inputs: dict[str, Tensor]) -> Encoded:
    """What a model, ours or the reference, computes for ``inputs``."""
    if isinstance(model, Ours):
        return _encode_ours(model, inputs)
    with double_softmax(next(model.parameters()).dtype):
        output = model(**inputs, output_hidden_states=True)
    seq_len = inputs["input_ids"].shape[-1]
    states = [state[:, :seq_len] for state in output.hidden_states]
    names = ("start_logits", "end_logits", "logits", "last_hidden_state", "pooler_output")
    return Encoded(states, [output[name] for name in names if name in output])


def _encode_ours(model: Ours, inputs: dict[str, Tensor]) -> Encoded:
    """States of the plain model, which hooks ask for, and results of whatever runs where nobody watches."""
    base = model.longformer if isinstance(model, Head) else model
    states: list[Tensor] = []
    parts = (base.embeddings, *base.encoder.layer)
    hooks = [part.register_forward_hook(lambda part, given, output: states.append(output)) for part in parts]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Encoded(states, list(model(**inputs)))


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> Gradients:
    """Gradient of the loss by every parameter, by name; None where the loss does not depend on it."""
    with double_softmax(next(model.parameters()).dtype):
        model(**inputs).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return grads


def largest_difference(x: Encoded, y: Encoded) -> float:
    """Over every state and result, which have order 1."""
    return max(differences(x.all, y.all))


def differences(xs: list[Tensor], ys: list[Tensor]) -> list[float]:
    """The largest difference of each pair of tensors."""
    assert [x.shape for x in xs] == [y.shape for y in ys]
    assert all(bool(torch.isfinite(x).all()) for x in xs)
    return [float((x - y).abs().max()) for x, y in zip(xs, ys, strict=True)]


def rms(error: Tensor) -> float:
    """Root mean square."""
    return float(error.double().square().mean().sqrt())


def assert_no_further(ours: Encoded, reference: Encoded, truth: Encoded, *, trained: bool = False) -> None:
    """Our float32 is no further from float64 than the reference's, at every layer and in the results."""
    batch, seq_len, _ = truth.states[0].shape
    few = FEW_ROWS_RATIO if batch * seq_len < FEW_ROWS else 1.0
    for i, (x, y, z) in enumerate(zip(ours.all, reference.all, truth.all, strict=True)):
        independent = i < len(truth.states) and not trained
        allowed = few * max(slack(z.numel()), 1.0 if independent else CORRELATED_RATIO)
        if z.numel() >= ENOUGH:
            assert rms(x - z) <= allowed * rms(y - z), f"value {i} of {len(truth.all)}"


def measure_by(name: str, config: LongformerConfig) -> str:
    """The parameter by whose gradient the error in that of ``name`` is measured: nearly always ``name`` itself.

    Some gradients are 0 in exact arithmetic, because the loss does not change when their parameter does. A key's bias
    shifts all scores of a row alike. In question answering the last LayerNorm's bias and the head's shift all logits of
    a document alike, in multiple choice the head's those of all choices, and no softmax sees that. What a computer
    gives for them is the rounding of the weight beside them, and is judged by its size.
    """
    last = f"encoder.layer.{config.num_hidden_layers - 1}.output.LayerNorm.bias"
    if name.endswith(("self.key.bias", "self.key_global.bias", last)) or name in ("qa_outputs.bias", "classifier.bias"):
        return name.removesuffix("bias") + "weight"
    return name


def gradient_errors(grads: Gradients, expected: Gradients, config: LongformerConfig) -> dict[str, float]:
    """By parameter: norm of the difference over norm of the expected gradient. None must be None in both."""
    assert grads.keys() == expected.keys()
    assert [name for name in grads if grads[name] is None] == [name for name in expected if expected[name] is None]
    errors = {}
    for name, x in grads.items():
        y, scale = expected[name], expected[measure_by(name, config)]
        if x is not None and y is not None and scale is not None:
            assert x.shape == y.shape
            # Where all is overwritten by global rows, local projections get zeros, and from both the same.
            errors[name] = 0.0 if torch.equal(x, y) else float((x - y).norm() / scale.norm())
    return errors


def assert_gradients_agree(ours: Gradients, reference: Gradients, truth: Gradients, config: LongformerConfig) -> None:
    """In float32: each within GRADIENT of the reference's, or no further than it from the truth (see tolerances)."""
    errors = gradient_errors(ours, reference, config)
    of_ours, of_reference = gradient_errors(ours, truth, config), gradient_errors(reference, truth, config)
    wrong = {
        name: f"differs by {error:.1e}; from float64 ours {of_ours[name]:.1e}, reference {of_reference[name]:.1e}"
        for name, error in errors.items()
        if not (error < GRADIENT or of_ours[name] <= GRADIENT_RATIO * of_reference[name])
    }
    assert wrong == {}


@contextmanager
def double_softmax(dtype: torch.dtype) -> Iterator[None]:
    """Let the reference be float64 throughout where its weights are.

    It takes every softmax in float32, which is more than float16 needs and less than float64 has: unlifted, its
    float64 is good to 1e-7 only, and could not bear out the 1e-12 that formulas deserve.
    """
    if dtype != torch.float64:
        yield
        return
    softmax = F.softmax

    def keep_precision(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(x, dim=dim)

    with mock.patch.object(F, "softmax", keep_precision):
        yield
