"""Models whose layers have patterns of their own, against attention by hand: masks written pair by pair, no kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_heads import HEADS, build_class
from tiny_models import CONFIG, NO_DROPOUT, build
from torch import Tensor, nn

from longformer import (
    ConfigError,
    LongformerError,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerModel,
    edit,
    trace,
)
from longformer.kernels import AttentionPattern, GlobalTokens, MaskPattern, Tokens, known
from longformer.models.attention import LongformerSelfAttention, attentions_to_dense
from longformer.models.packed import may_serve

S = 13
IDS = torch.randint(6, CONFIG.vocab_size, (2, S), generator=torch.Generator().manual_seed(0))
IDS[0, 4] = IDS[1, 7] = 5
MASK = torch.ones_like(IDS)
MASK[1, 10:] = 0
Sees = Callable[[int, int, int], bool]  # of head, row, column


def window(left: int, right: int, gaps: tuple[int, ...] = (1,) * 4) -> Sees:
    return lambda h, i, j: (j - i) % gaps[h] == 0 and -left * gaps[h] <= j - i <= right * gaps[h]


def never_later(sees: Sees) -> Sees:
    return lambda h, i, j: j <= i and sees(h, i, j)


def everything(h: int, i: int, j: int) -> bool:
    return True


def blocks(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i // 4 == j // 4


def alibi(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score - (i - j).abs() * 0.5 ** (h + 1)


def is_five(ids: Tensor) -> Tensor:
    return ids == 5


class Case:
    """How a model is made; and for each layer what a row sees, whether it is causal, and which tokens are global."""

    def __init__(
        self,
        sees: tuple[Sees, Sees],
        *,
        named: tuple[Any, Any] = ((), ()),
        causal: tuple[bool, bool] = (False, False),
        alibi: tuple[bool, bool] = (False, False),
        **made: Any,
    ) -> None:
        self.sees, self.named, self.causal, self.alibi, self.made = sees, named, causal, alibi, made

    def build(self, **arguments: Any) -> LongformerModel:
        made = dict(self.made)
        config = CONFIG.replace(**{key: made.pop(key) for key in list(made) if key != "attention"})
        return build(config, **made, **arguments)


LOCAL = window(4, 4)
FIVES = ((4,), (7,))  # where id 5 stands, in each row of the batch
CASES = {
    "full and local": Case((LOCAL, everything), attention_pattern="window=8/full"),
    "causal": Case((never_later(LOCAL),) * 2, causal=(True, True), attention_pattern="causal"),
    "causal and global": Case(
        (never_later(LOCAL), never_later(everything)),
        causal=(True, True),
        named=(((0, 6),) * 2,) * 2,
        attention_pattern=["causal,global=0:6", "full,causal,global=0:6"],
    ),
    "asymmetric": Case((window(5, 1), window(0, 2)), attention_pattern="window=5:1/window=0:2"),
    "dilated by head": Case((window(2, 2, (1, 1, 2, 4)),) * 2, attention_pattern="window=4,dilation=1:1:2:4"),
    "global ids and every fifth": Case(
        (LOCAL, LOCAL), named=(FIVES, ((0, 5, 10),) * 2), attention_pattern="global-ids=5/global-every=5"
    ),
    "landmarks": Case((LOCAL, LOCAL), named=(((0, 5, 10),) * 2,) * 2, attention_pattern="global-every=5"),
    "union": Case(
        (lambda h, i, j: window(1, 1)(h, i, j) or window(1, 1, (3,) * 4)(h, i, j), LOCAL),
        attention_pattern=["window=2+window=2,dilation=3", "window=8"],
    ),
    "causal union and global": Case(
        (never_later(lambda h, i, j: i - j <= 1 or (i - j) % 4 == 0), never_later(LOCAL)),
        causal=(True, True),
        named=(((2,),) * 2,) * 2,
        attention_pattern="window=1:0,causal+window=9:0,dilation=4,causal,global=2/causal,global=2",
    ),
    "a predicate": Case(
        (LOCAL, LOCAL),
        named=(FIVES, ((),) * 2),
        attention={0: AttentionPattern((4, 4), global_tokens=GlobalTokens(predicates=is_five))},
    ),
    "a mask": Case((lambda h, i, j: i // 4 == j // 4,) * 2, attention=blocks),
    "a mask in one layer": Case((LOCAL, lambda h, i, j: i // 4 == j // 4), attention=[None, blocks]),
    "a score": Case((LOCAL, LOCAL), alibi=(True, True), attention=alibi),
    "a mask, a score and causal": Case(
        (lambda h, i, j: j <= i and i // 4 == j // 4, LOCAL),
        causal=(True, False),
        alibi=(True, False),
        named=(((1,),) * 2, ((),) * 2),
        attention={0: MaskPattern((blocks,), alibi, causal=True, global_tokens=GlobalTokens(1))},
    ),
}


class ByHand(nn.Module):
    """A layer's attention, as the case says it: loops over pairs, and one softmax of finite scores."""

    def __init__(self, plain: LongformerSelfAttention, case: Case, layer: int, also_global: Tensor | None) -> None:
        super().__init__()
        for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
            setattr(self, name, getattr(plain, name))
        named = [set(rows) for rows in (case.named[layer] or ((), ()))]
        if also_global is not None:
            named = [own | set(row.nonzero().flatten().tolist()) for own, row in zip(named, also_global, strict=True)]
        sees, causal = case.sees[layer], case.causal[layer]
        self.seen, self.bias = torch.zeros(2, 4, S, S, dtype=torch.bool), torch.zeros(4, S, S)
        self.is_global = torch.zeros(2, S, dtype=torch.bool)
        for b in range(2):
            for i in range(S):
                self.is_global[b, i] = i in named[b] and bool(MASK[b, i])
                for j in range(S):
                    kept = bool(MASK[b, i] and MASK[b, j])
                    for h in range(4):
                        self.seen[b, h, i, j] = kept and (sees(h, i, j) or (j in named[b] and (j <= i or not causal)))
                        self.bias[h, i, j] = -abs(i - j) * 0.5 ** (h + 1) if case.alibi[layer] else 0
        pairs = MASK[:, None, :].bool() & (torch.ones(S, S).tril() if causal else torch.ones(S, S)).bool()
        self.seen_globally = pairs[:, None]

    def forward(self, hidden: Tensor, tokens: Tokens, probabilities: Any = None) -> Tensor:
        def attention(names: tuple[str, ...], seen: Tensor, bias: Tensor | float) -> Tensor:
            query, key, value = (getattr(self, n)(hidden).unflatten(2, (4, 8)).transpose(1, 2) for n in names)
            scores = (query @ key.mT / 8**0.5 + bias).exp() * seen
            return scores / scores.sum(-1, keepdim=True).clamp(min=1e-300) @ value

        local = attention(("query", "key", "value"), self.seen, self.bias)
        rows = attention(("query_global", "key_global", "value_global"), self.seen_globally, 0.0)
        return torch.where(self.is_global[:, None, :, None], rows, local).transpose(1, 2).flatten(2)


def by_hand(model: LongformerModel, case: Case, also_global: Tensor | None = None) -> LongformerModel:
    twin = copy.deepcopy(model)
    for n, layer in enumerate(twin.encoder.layer):
        layer.attention.self = ByHand(layer.attention.self, case, n, also_global)
    return twin


def run(model: LongformerModel, also_global: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The states of the tokens, and the gradients of all parameters, 0 where there is none."""
    states = model(IDS, MASK, also_global).last_hidden_state
    loss = (states * torch.linspace(-1, 1, states[0].numel(), dtype=torch.float64).view(states[0].shape))[MASK.bool()]
    model.zero_grad()
    loss.sum().backward()
    named = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return states[MASK.bool()].detach(), named


@pytest.mark.parametrize("also_global", [None, (IDS == IDS[0, 9]).long()], ids=["", "and a batch's"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_what_is_written_by_hand(name: str, also_global: Tensor | None) -> None:
    case = CASES[name]
    model = case.build()
    expected, gradients = run(by_hand(model, case, also_global), also_global)
    for impl in ("auto", "reference"):
        other = case.build(impl=impl)
        other.load_state_dict(model.state_dict())
        states, found = run(other, also_global)
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)
        assert found.keys() == gradients.keys()
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[parameter], rtol=1e-9, atol=1e-11, msg=parameter)
        with torch.no_grad():  # as the engine computes it, where it may
            torch.testing.assert_close(other(IDS, MASK, also_global)[0][MASK.bool()], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_probabilities_and_traces(name: str) -> None:
    """They are of the pairs that are seen, sum to 1, and give the outputs that a trace records."""
    case = CASES[name]
    model = case.build()
    with trace(model, probabilities=True) as t:
        given = model(IDS, MASK, output_attentions=True)
    keep = MASK.bool()
    for layer, plain in enumerate(by_hand(model, case).encoder.layer):
        hand, rows = plain.attention.self, given.global_attentions
        dense = attentions_to_dense(
            given.attentions[layer],
            None if rows is None else rows[layer],
            attention_mask=MASK,
            global_attention_mask=hand.is_global.long(),
            pattern=model.encoder.layer[layer].attention.self.pattern,
        )
        is_global = hand.is_global[:, None, :, None]
        seen = torch.where(is_global, hand.seen_globally, hand.seen) & keep[:, None, :, None]
        assert torch.equal(dense > 0, seen)
        torch.testing.assert_close(dense.sum(-1), keep[:, None].expand(2, 4, S).double())
        others = (dense @ t[f"layer.{layer}.value"]).masked_fill(is_global, 0)
        torch.testing.assert_close(others, t[f"layer.{layer}.local_output"], rtol=0, atol=1e-12)
        assert t[f"layer.{layer}.band_probabilities"].shape[:3] == (2, 4, S)
        assert (f"layer.{layer}.global_rows" in t) == bool(hand.is_global.any())


def test_a_layer_may_have_no_global_tokens_at_all() -> None:
    model = build(CONFIG.replace(attention_pattern=["global=none", {}]))
    seen: list[Tokens] = []
    for layer in model.encoder.layer:
        layer.attention.self.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    named = torch.zeros_like(IDS)
    named[:, 2] = 1
    model(IDS, MASK, named)
    assert seen[0].is_global is None and seen[1].is_global is not None
    case = Case((LOCAL, LOCAL), named=(((),) * 2, ((2,),) * 2))
    torch.testing.assert_close(run(model, named)[0], run(by_hand(model, case), None)[0], rtol=0, atol=1e-12)


def test_training_and_editing_go_through_a_mask_and_a_score() -> None:
    """With a slope that is learned, whose gradient is that of differences."""
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s - slope * (i - j).abs()

    model = build(CONFIG.replace(**NO_DROPOUT), attention={1: MaskPattern((blocks,), score)})

    def loss() -> Tensor:
        return model(IDS, MASK).last_hidden_state[:, 0, :4].square().sum()

    with torch.no_grad():
        slope += 1e-5
        higher = float(loss())
        slope -= 2e-5
        lower = float(loss())
        slope += 1e-5
    model.train()
    optimizer = torch.optim.SGD([*model.parameters(), slope], lr=1e-3)
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        (found := loss()).backward()
        losses.append(float(found.detach()))
        if step == 0:
            assert slope.grad is not None and abs(float(slope.grad) - (higher - lower) / 2e-5) < 1e-6
        optimizer.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    before = model(IDS, MASK)[0].detach()
    with edit(model) as e:
        e.scale("layer.1.local_output", 0.5, tokens=3)
        changed = model(IDS, MASK)[0].detach()
    assert (changed != before).any(-1)[0].nonzero().flatten().tolist() == [3], "in the last layer, one token alone"
    assert torch.equal(model(IDS, MASK)[0], before)


def test_a_checkpoint_keeps_a_pattern(tmp_path: Path) -> None:
    model = CASES["causal union and global"].build(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = LongformerModel.from_pretrained(tmp_path)
    assert loaded.config == model.config and torch.equal(loaded(IDS, MASK)[0], model(IDS, MASK)[0])
    changed = LongformerModel.from_pretrained(tmp_path, attention_pattern="window=8/full")
    assert changed.encoder.layer[1].attention.self.pattern == AttentionPattern(None)
    with pytest.raises(LongformerError, match=r"attention_pattern is .*; transformers' model has windows alone"):
        model.to_transformers()


def test_a_checkpoint_keeps_the_name_of_a_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LongformerForQuestionAnswering(CONFIG, attention=[alibi, blocks]).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"layer 0 was made with the function alibi, .* give it again as attention="):
        LongformerForQuestionAnswering.from_pretrained(tmp_path)
    loaded = LongformerForQuestionAnswering.from_pretrained(tmp_path, attention={0: alibi, 1: blocks})
    marks = torch.zeros_like(IDS)
    assert torch.equal(loaded(IDS, MASK, marks)[0], model(IDS, MASK, marks)[0])


@pytest.mark.parametrize("attention", [{0: blocks}, alibi], ids=["a mask in a layer", "a score"])
@pytest.mark.parametrize("kind", HEADS)
def test_every_head_takes_a_function(kind: Any, attention: Any, tmp_path: Path) -> None:
    """In the class and in from_pretrained: it computes by it, is trained, traced and edited."""
    model = build_class(kind, dtype=torch.float32, attention=attention)
    marks = torch.zeros_like(IDS)
    marks[:, 0] = 1
    inputs = (IDS, MASK, marks)
    if kind is LongformerForMultipleChoice:
        inputs = tuple(x[:, None] for x in inputs)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, attention=attention)
    torch.testing.assert_close(loaded(*inputs)[0], model(*inputs)[0])
    plain = kind.from_pretrained(tmp_path, attention_pattern="window=8")
    assert (plain(*inputs)[0] - model(*inputs)[0]).abs().max() > 1e-3
    loaded(*inputs)[0].square().sum().backward()
    assert loaded.longformer.encoder.layer[0].attention.self.key.weight.grad.abs().sum() > 0
    if kind is LongformerForMultipleChoice:
        inputs = (IDS, MASK, marks)  # of the encoder, which edit and trace look at
        loaded = loaded.longformer
    with edit(loaded) as e, trace(loaded, probabilities=True) as t:
        e.zero("layer.0.local_output", head=1)
        loaded(*inputs)
    assert not t["layer.0.local_output"][:, 1].any() and t["layer.0.band_probabilities"].shape[-1] == 2 * S - 1


@pytest.mark.parametrize("name", known.GALLERY)
def test_a_model_takes_every_pattern_of_the_gallery(name: str) -> None:
    """What a row sees is what the pattern says, and the config keeps what it can."""
    pattern = known.GALLERY[name]
    if name == "relative bias":  # for as many heads as the model has
        pattern = known.relative_bias(torch.linspace(1, -3, 16).double().expand(4, 16))
    model = build(attention=pattern)
    with torch.no_grad():
        found = model(IDS, output_attentions=True)
    is_global = torch.zeros(2, S, dtype=torch.bool)
    if pattern.global_tokens is not None:
        is_global = pattern.global_tokens.mask(IDS)
    rows = None if found.global_attentions is None else found.global_attentions[1]
    dense = attentions_to_dense(found.attentions[1], rows, global_attention_mask=is_global.long(), pattern=pattern)
    seen = pattern.pairs(S, Tokens.of(None, is_global), heads=4).expand(2, 4, S, S)
    assert torch.equal(dense > 0, seen | is_global[:, None, :, None])
    entry = model.config.attention_pattern[0]
    assert (entry.function is None) == (not isinstance(pattern, MaskPattern) or name == "strided")


def test_where_the_packed_engine_serves() -> None:
    none, some = Tokens(), Tokens.of(None, IDS == 5)
    served = {
        "window=8/full": (True, True),
        "causal": (True, False),  # whose global rows see no later token
        "global=0": (True, True),
        "global=none/causal": (False, False),
        "window=2+window=2,dilation=3": (False, False),
    }
    for text, expected in served.items():
        model = build(CONFIG.replace(attention_pattern=text))
        assert (may_serve(model, IDS, none), may_serve(model, IDS, some)) == expected, text
    assert not may_serve(build(attention={1: alibi}), IDS, none)


def test_gradient_checkpointing_is_the_same() -> None:
    model = build(CONFIG.replace(**NO_DROPOUT, attention_pattern="causal,global=0/global-ids=5"))
    expected = run(model.train(), None)[1]
    model.gradient_checkpointing_enable()
    for name, gradient in run(model, None)[1].items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12)


def unequal(ids: Tensor) -> Tensor:
    return ids[:, :3] == 5


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ([alibi], "attention lists 1 layers, and the model has 2; give one for each layer"),
        ({2: alibi}, "attention names layer 2; the model has layers 0 to 1"),
        (3, "attention of layer 0 is 3; it must be a pattern, a text such as"),
        ("widow=3", "'widow' is no item of a pattern; did you mean 'window'"),
        (lambda i, j: i == j, r"is no function of FlexAttention's form mask_mod\(example, head, row, column\)"),
        (AttentionPattern((1, 1), (1, 2)), r"dilation is \(1, 2\); it must be an int >= 1, or one for each of the 4"),
        ({"window": [2, 2], "causal": True}, r"window is \(2, 2\) and causal is true"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(attention: Any, message: str) -> None:
    with pytest.raises(LongformerError, match=message):
        LongformerModel(CONFIG, attention=attention)


def test_what_fails_when_it_runs() -> None:
    by_ids = build(CONFIG.replace(attention_pattern="global-ids=5"))
    with pytest.raises(LongformerError, match="global tokens are chosen by ids, and no ids are given; give input_ids"):
        by_ids(inputs_embeds=torch.zeros(1, 3, 32, dtype=torch.float64))
    wrong = build(attention=AttentionPattern((4, 4), global_tokens=GlobalTokens(predicates=unequal)))
    with pytest.raises(LongformerError, match=r"the predicate unequal .* shape \(2, 3\); it must .* shape, \(2, 13\)"):
        wrong(IDS)
    with pytest.raises(
        LongformerError, match=r'impl is "banded", and the pattern of layer 1 is no window; "flex" and "reference"'
    ):
        build(attention={1: blocks}, impl="banded")
