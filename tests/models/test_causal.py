"""The causal encoder is what its formula says over all pairs, and its memory changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from causal_models import causal_config, causal_model, dense_attention
from torch import Tensor

from longformer import ConfigError, LongformerError, LongformerForCausalLM, LongformerModel, edit, trace
from longformer.kernels import Tokens
from longformer.models.causal import Memory
from longformer.models.kinds import kind_of

LEFTS, GAPS = (2, 3, 5), ((1, 1, 1, 1), (2, 2, 2, 2), (1, 1, 2, 3))
POSITIONS = ("relative", "absolute")
WORDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6], [1] * 20 + [2]])


def ids(seq_len: int) -> Tensor:
    return WORDS.repeat(1, 1 + seq_len // WORDS.shape[1])[:, :seq_len]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("seq_len", [1, 2, 7, 70])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_attention_and_gradients_by_the_formula(layer: int, seq_len: int, positions: str) -> None:
    model = causal_model(position_embedding_type=positions)
    part: Any = model.longformer.encoder.layer[layer].attention.self
    hidden = torch.randn(2, seq_len, 24, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, seq_len, 24, dtype=torch.float64)
    found = []
    for out in (part(hidden, Tokens()), dense_attention(part, hidden, LEFTS[layer], GAPS[layer])):
        gradients = torch.autograd.grad((out * weight).sum(), [hidden, *part.parameters()])
        found.append((out, *gradients))
    assert len(found[0]) == (11 if positions == "relative" else 8)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("positions", POSITIONS)
def test_no_token_sees_what_comes_after_it_or_stands_before_its_windows(positions: str) -> None:
    model = causal_model(position_embedding_type=positions)
    reach = 2 * 1 + 3 * 2 + 5 * 3  # of all layers together
    row = ids(60)[:1]
    before = model(row).logits
    changed = row.clone()
    changed[0, 20] = 10
    difference = (model(changed).logits - before).abs().amax(-1)[0]
    assert not difference[:20].any() and not difference[20 + reach + 1 :].any()
    assert difference[20] > 1e-6 and difference[20 + reach] > 1e-9


@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_reaches_nobody(positions: str) -> None:
    model = causal_model(position_embedding_type=positions)
    row = ids(30)[:1]
    mask = torch.ones_like(row)
    mask[0, 12:15] = 0
    states = torch.randn(1, 30, 24, dtype=torch.float64)
    spoiled = torch.where(mask[..., None] == 0, torch.nan, states)
    for layer in model.longformer.encoder.layer:
        tokens = Tokens.of(mask.bool())
        hidden = spoiled.requires_grad_(True)
        out = layer.attention.self(hidden, tokens)
        torch.testing.assert_close(out, layer.attention.self(states, tokens))
        assert not out[0, 12:15].any() and out.isfinite().all()
        (gradient,) = torch.autograd.grad(out.sum(), hidden)
        assert gradient[mask == 1].isfinite().all()
    assert model(row, mask).logits.isfinite().all()


def test_probabilities_are_those_of_the_window() -> None:
    model = causal_model()
    found = model(ids(9), output_attentions=True).attentions
    for band, left, gaps in zip(found, LEFTS, GAPS, strict=True):
        assert band.shape == (2, 4, 9, left + 1)
        torch.testing.assert_close(band.sum(-1), torch.ones(2, 4, 9, dtype=torch.float64))
        for head, gap in enumerate(gaps):
            for row in range(9):
                there = [column for column in range(left + 1) if row - (left - column) * gap >= 0]
                assert (band[:, head, row] > 0).all(0).nonzero().flatten().tolist() == there
    # A window that sees one earlier token: what it makes of two values is known from its probabilities.
    part: Any = model.longformer.encoder.layer[0].attention.self
    hidden, bands = torch.randn(1, 3, 24, dtype=torch.float64), []
    out = part(hidden, Tokens(), bands)
    value = part.value(hidden).view(3, 4, 6)
    by_hand = torch.stack([(bands[0].band[0, h, 2] @ value[:, h]) for h in range(4)])
    torch.testing.assert_close(out[0, 2], by_hand.flatten())


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pieces", [(1,) * 40, (40,), (3, 1, 1, 20, 8, 7), (33, 7)])
def test_with_a_memory_as_without(pieces: tuple[int, ...], positions: str) -> None:
    model = causal_model(position_embedding_type=positions)
    text, memory = ids(40), Memory()
    full = model(text).logits
    with torch.no_grad():
        found = torch.cat([model.extend(piece, memory) for piece in text.split(pieces, dim=1)], 1)
    torch.testing.assert_close(found, full, rtol=0, atol=1e-10)
    assert memory.tokens == 40


def test_the_memory_does_not_grow() -> None:
    model, memory, sizes = causal_model(), Memory(), []
    with torch.no_grad():
        for token in ids(200)[:1].split(1, dim=1):
            model.extend(token, memory)
            kept = [x for layer in memory.layers.values() for x in (layer.key, layer.value, *layer.places.values())]
            sizes.append(sum(x.untyped_storage().nbytes() for x in kept))
    assert len(set(sizes[20:])) == 1
    assert [memory.layers[i].key.shape[2] for i in range(3)] == [2, 6, 15]


def test_no_matrix_is_quadratic_in_the_length() -> None:
    model, sizes = causal_model(), []

    def seen(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    row = ids(1500)[:1]
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        model(row, labels=row).loss.backward()
    # Of each head and row, scores of a block's 32 rows and of the 5 columns before them; S · S would be 1500 a row.
    assert max(sizes) < 4 * 1500 * (32 + 5 + 10)


def test_the_loss_is_of_the_next_token() -> None:
    model = causal_model()
    text = ids(8)
    labels = text.clone()
    labels[0, 3] = -100
    output = model(text, labels=labels)
    logs = output.logits.log_softmax(-1)
    terms = [-logs[b, i, text[b, i + 1]] for b in range(2) for i in range(7) if (b, i) != (0, 2)]
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())
    assert model(text[:, :1], labels=text[:, :1]).loss == 0


def test_output_and_input_share_their_matrix(tmp_path: Path) -> None:
    model = causal_model()
    model.save_pretrained(tmp_path)
    again = LongformerForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert again.config == model.config and kind_of(tmp_path).model is LongformerForCausalLM
    torch.testing.assert_close(again(ids(20)).logits, model(ids(20)).logits)
    assert not any(name.endswith("decoder.weight") or "position_embeddings" in name for name in again.state_dict())
    before = model(ids(5)).logits
    model.longformer.embeddings.word_embeddings.weight.data[7] += 1.0
    assert (model(ids(5)).logits - before)[..., 7].abs().min() > 0


def test_half_precision_is_near() -> None:
    model, text = causal_model(), ids(50)
    exact = model(text).logits
    torch.testing.assert_close(model.float()(text).logits.double(), exact, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(text).logits
    torch.testing.assert_close(near.double(), exact, rtol=0.1, atol=0.3)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = causal_model().train()
    found = []
    for again in (False, True):
        model.longformer.encoder.gradient_checkpointing = again
        loss = model(ids(12), labels=ids(12)).loss
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("positions", POSITIONS)
def test_it_is_traced_and_edited_as_the_encoder_is(positions: str) -> None:
    model = causal_model(position_embedding_type=positions)
    with trace(model) as plain:
        model(ids(12))
    with edit(model) as e, trace(model) as changed:
        e.zero("layer.1.local_output", head=2)
        model(ids(12))
    before, after = plain["layer.1.local_output"], changed["layer.1.local_output"]
    assert not after[:, 2].any() and torch.equal(after[:, :2], before[:, :2]) and before[:, 2].any()
    output: Any = model.longformer.encoder.layer[1].attention.output
    by_hand = output(after.transpose(1, 2).flatten(2), plain["layer.0.output"])
    torch.testing.assert_close(changed["layer.1.attention_output"], by_hand)


def test_what_it_cannot_do_is_said() -> None:
    model = causal_model()
    mask = torch.zeros_like(ids(5))
    mask[0, 2] = 1
    with pytest.raises(LongformerError, match="no global tokens"):
        model(ids(5), global_attention_mask=mask)
    with pytest.raises(LongformerError, match="no global tokens"):
        model(ids(5), attention_mask=mask + 1)
    with pytest.raises(LongformerError, match="leave them out"):
        model(ids(5), position_ids=mask)
    with pytest.raises(ConfigError, match="LongformerForCausalLM"):
        LongformerModel(causal_config())
    with pytest.raises(ConfigError, match="position_embedding_type is 'rotary'; it must be one of absolute, relative"):
        causal_config(position_embedding_type="rotary")
    causal_model(attention_pattern="window=4,global=none")  # names none, and is none
    for pattern in ("window=4+window=8,global-ids=3", "window=4,global=0", "full,global-every=9"):
        with pytest.raises(ConfigError, match=r"the pattern of layer 0 has global tokens, .*: leave them out"):
            causal_model(attention_pattern=pattern)
    short = causal_model(position_embedding_type="absolute", max_position_embeddings=9)
    with pytest.raises(LongformerError, match="positions for 8"):
        short.extend(ids(9), Memory())


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_full_layer_sees_everything_before(positions: str) -> None:
    model = causal_model(position_embedding_type=positions, attention_pattern="window=2:0/full", num_hidden_layers=2,
                         attention_window=4, attention_dilation=1)  # fmt: skip
    part: Any = model.longformer.encoder.layer[1].attention.self
    hidden = torch.randn(2, 45, 24, dtype=torch.float64)
    torch.testing.assert_close(part(hidden, Tokens()), dense_attention(part, hidden, 45, (1,) * 4))
    memory = Memory()
    with torch.no_grad():
        found = torch.cat([model.extend(piece, memory) for piece in ids(40).split([9, 1, 1, 29], dim=1)], 1)
    torch.testing.assert_close(found, model(ids(40)).logits, rtol=0, atol=1e-10)
    assert [memory.layers[i].key.shape[2] for i in range(2)] == [2, 40]
