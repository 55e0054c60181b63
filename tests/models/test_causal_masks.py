"""Causal language models under any mask, score and union of windows: by the formula, with a memory, and as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from causal_models import attention_of_pairs, causal_config, causal_model
from torch import Tensor

from longformer import ConfigError, LongformerError, LongformerForCausalLM, edit, trace
from longformer.generating import Characters, TextGenerator
from longformer.kernels import AttentionPattern, MaskPattern, Tokens, known
from longformer.models.attention import attentions_to_dense
from longformer.models.causal import Memory

WORDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], [1] * 15 + [2]])
S = WORDS.shape[1]
POSITIONS = ("relative", "absolute")
SMALL = {"num_hidden_layers": 2, "attention_window": 4, "attention_dilation": 1}


def blocks(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """It sees later tokens too, which a causal model leaves out."""
    return i // 5 == j // 5


def far_is_less(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score - 0.5 * (h + 1) * (i - j)


class Case(NamedTuple):
    """attention: of the second layer. sees, bias: what it means for a head, a row and a column. kept: tokens that a
    memory has of that layer after 16.
    """

    attention: Any
    sees: Callable[[int, int, int], bool]
    bias: Callable[[int, int, int], float]
    kept: int


def no_bias(h: int, i: int, j: int) -> float:
    return 0.0


CASES = {
    "a mask": Case(blocks, lambda h, i, j: j <= i and i // 5 == j // 5, no_bias, S),
    "a score": Case(far_is_less, lambda h, i, j: 0 <= i - j <= 2, lambda h, i, j: -0.5 * (h + 1) * (i - j), 2),
    "a mask and a score": Case(
        MaskPattern((blocks,), far_is_less),
        lambda h, i, j: j <= i and i // 5 == j // 5,
        lambda h, i, j: -0.5 * (h + 1) * (i - j),
        S,
    ),
    "a union": Case(
        "window=2+window=4,dilation=1:1:2:3",
        lambda h, i, j: 0 <= i - j <= 1 or (j <= i and (i - j) % (1, 1, 2, 3)[h] == 0 and i - j <= 2 * (1, 1, 2, 3)[h]),
        no_bias,
        6,
    ),
    "sinks": Case(known.sinks(3, 2), lambda h, i, j: j <= i and (j < 2 or i - j <= 3), no_bias, S),
}


def build(case: Case, positions: str = "relative") -> LongformerForCausalLM:
    return causal_model(attention={1: case.attention}, position_embedding_type=positions, **SMALL)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", CASES)
def test_attention_and_gradients_by_the_formula(name: str, positions: str) -> None:
    case = CASES[name]
    part: Any = build(case, positions).longformer.encoder.layer[1].attention.self
    hidden = torch.randn(2, S, 24, dtype=torch.float64, requires_grad=True)
    weight, found = torch.randn(2, S, 24, dtype=torch.float64), []
    for out in (part(hidden, Tokens()), attention_of_pairs(part, hidden, case.sees, case.bias)):
        found.append((out, *torch.autograd.grad((out * weight).sum(), [hidden, *part.parameters()])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", CASES)
def test_with_a_memory_as_without(name: str, positions: str) -> None:
    model, memory = build(CASES[name], positions), Memory()
    with torch.no_grad():
        found = torch.cat([model.extend(piece, memory) for piece in WORDS.split([7, 1, 1, 5, 2], dim=1)], 1)
    torch.testing.assert_close(found, model(WORDS).logits, rtol=0, atol=1e-11)
    assert [memory.layers[i].key.shape[2] for i in range(2)] == [2, CASES[name].kept]


@pytest.mark.parametrize("positions", POSITIONS)
def test_text_with_a_memory_is_text_without(positions: str) -> None:
    model = build(CASES["sinks"], positions)
    made = model.generate(WORDS[:, :3], max_new_tokens=9, temperature=0)
    ids = WORDS[:, :3]
    for _ in range(9):
        scores = model(ids).logits[:, -1].clone()
        scores[:, model.config.pad_token_id] = -torch.inf
        ids = torch.cat([ids, scores.argmax(1)[:, None]], 1)
    assert torch.equal(made, ids)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("name", ["a mask and a score", "a union"])
def test_probabilities_traces_and_edits(name: str, positions: str) -> None:
    case = CASES[name]
    model = build(case, positions)
    with trace(model, probabilities=True) as t:
        given = model(WORDS, output_attentions=True).attentions
    pattern = model.longformer.encoder.layer[1].attention.self.pattern
    dense = attentions_to_dense(given[1], pattern=pattern)
    seen = [[[case.sees(h, i, j) for j in range(S)] for i in range(S)] for h in range(4)]
    assert torch.equal(dense > 0, torch.tensor(seen).expand_as(dense))
    torch.testing.assert_close(dense @ t["layer.1.value"], t["layer.1.local_output"], rtol=0, atol=1e-12)
    for layer in range(2):
        assert torch.equal(t[f"layer.{layer}.band_probabilities"], given[layer])
    with edit(model) as e, trace(model) as changed:
        e.zero("layer.1.local_output", head=2)
        model(WORDS)
    assert not changed["layer.1.local_output"][:, 2].any() and t["layer.1.local_output"][:, 2].any()


def test_a_full_layer_s_probabilities_have_the_encoder_s_form() -> None:
    model = causal_model(attention_pattern="full", **SMALL)
    band = model(WORDS, output_attentions=True).attentions[0]
    dense = attentions_to_dense(band, pattern=AttentionPattern(None, causal=True))
    assert torch.equal(dense > 0, torch.ones(S, S).tril().bool().expand_as(dense))


@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_reaches_nobody(positions: str) -> None:
    part: Any = build(CASES["a mask and a score"], positions).longformer.encoder.layer[1].attention.self
    keep = torch.ones(2, S, dtype=torch.bool)
    keep[0, 6:8], keep[1, 0] = False, False
    states = torch.randn(2, S, 24, dtype=torch.float64)
    hidden = states.masked_fill(~keep[..., None], torch.nan).requires_grad_()
    out = part(hidden, Tokens.of(keep))
    assert torch.equal(out, part(states, Tokens.of(keep))) and not out[~keep].any()
    (gradient,) = torch.autograd.grad(out.sum(), hidden)
    assert gradient[keep].isfinite().all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_score_is_learned(positions: str) -> None:
    """Its gradient is that of differences, and steps along it and the model's make the loss smaller."""
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s - slope * (i - j)

    model = causal_model(attention=score, position_embedding_type=positions, **SMALL).train()

    def loss() -> Tensor:
        found: Tensor = model(WORDS, labels=WORDS).loss
        return found

    with torch.no_grad():
        around = []
        for step in (1e-5, -2e-5):
            slope += step
            around.append(float(loss()))
        slope += 1e-5
    optimizer, losses = torch.optim.SGD([*model.parameters(), slope], lr=0.02), []
    for step in range(4):
        optimizer.zero_grad()
        (found := loss()).backward()
        losses.append(float(found.detach()))
        if step == 0:
            assert slope.grad is not None and abs(float(slope.grad) - (around[0] - around[1]) / 2e-5) < 1e-7
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_checkpoint_keeps_the_name_of_a_function(tmp_path: Path) -> None:
    model = LongformerForCausalLM(causal_config(**SMALL), attention={1: blocks}).eval()
    model.save_pretrained(tmp_path)
    characters = Characters("abcdefghij")
    characters.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"layer 1 was made with the function blocks, .* give it again as attention="):
        LongformerForCausalLM.from_pretrained(tmp_path)
    loaded = LongformerForCausalLM.from_pretrained(tmp_path, attention={1: blocks})
    assert loaded.config == model.config and torch.equal(loaded(WORDS).logits, model(WORDS).logits)
    generator = TextGenerator.from_pretrained(tmp_path, attention={1: blocks})
    text = generator.generate("abc", max_characters=5, temperature=0)
    made = model.generate(characters.ids("abc")[None], max_new_tokens=5, temperature=0)
    assert torch.equal(characters.ids(text), made[0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        LongformerError, match=r'impl is "blocked", and the pattern of layer 1 is no window; "flex" and'
    ):
        LongformerForCausalLM(causal_config(**SMALL), impl="blocked", attention={1: blocks})
    with pytest.raises(ConfigError, match=r"the pattern of layer 0 has global tokens, .* let a mask see the columns"):
        LongformerForCausalLM(causal_config(**SMALL), attention=known.big_bird(4, 4))
    with pytest.raises(LongformerError, match="attention lists 3 layers, and the model has 2"):
        LongformerForCausalLM(causal_config(**SMALL), attention=[blocks] * 3)
