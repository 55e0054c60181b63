"""Attributions and their tests, where the answer is known, and each against the same done in the plainest way."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from explained import dense_of_model
from one_token import DOCUMENT, FAR, FAR_DOCUMENT, KEY, NEAR, QUESTION, far_token_answerer, one_token_answerer
from tiny_checkpoint import save_tiny_checkpoint
from torch import Tensor

from longformer import LongformerError, QuestionAnswerer
from longformer.explain import METHODS, Explanation, explain
from longformer.explain import attribution as attributing
from longformer.explain.attribution import Probe, attention_gradient, integrated_gradients
from longformer.explain.faithfulness import RANDOM, Curve, Curves, follow_orders, places
from longformer.explain.page import _verdict
from longformer.explain.probabilities import Attention, Layer
from longformer.kernels import AttentionPattern
from longformer.models.attention import LongformerSelfAttention

SEQ_LEN = 40


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture
def probe(answerer: QuestionAnswerer) -> Probe:
    return make_probe(answerer)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Explanation:
    return explain(one_token_answerer(tmp_path_factory.mktemp("one")), QUESTION, DOCUMENT, steps=32)


def make_probe(answerer: QuestionAnswerer) -> Probe:
    """Of a row of letters, whose question is tokens 1 to 5."""
    ids = torch.tensor([0, *range(40, 45), 2, 2, *range(60, 60 + SEQ_LEN - 9), 2])
    removable = torch.isin(ids, torch.tensor([0, 2]), invert=True)
    return Probe(answerer, ids, (12, 15), removable)


class TestOneToken:
    """The answer hangs on the "k". Attributions find it, but for rollout, to which the tokens of a window are alike."""

    def test_without_it_the_answer_is_another(self, tmp_path):
        answerer = one_token_answerer(tmp_path)
        assert answerer.answer(QUESTION, DOCUMENT)[0].text[0] == "A"
        assert answerer.answer(QUESTION, DOCUMENT.replace("k", "."))[0].text[0] == "B"
        for other in "xyz":
            assert answerer.answer(QUESTION, DOCUMENT.replace(other, "."))[0].text[0] == "A"

    @pytest.mark.parametrize("method", ["integrated-gradients", "attention-gradient"])
    @pytest.mark.parametrize("side", [0, 1])
    def test_it_is_found(self, found, method, side):
        first = found.passage.kinds.index("d")
        assert found.passage.spans[0] == (first + NEAR, first + NEAR)
        counts = found.attributions[method][side].clone()
        counts[first + NEAR] = 0  # the answer itself
        assert int(counts.argmax()) == first + KEY
        assert counts[first + KEY] > 10 * counts.abs().sort().values[-2]
        assert abs(counts[first + FAR]) < 0.01 * counts[first + KEY]

    def test_rollout_does_not_tell_it_from_its_neighbours(self, found):
        first = found.passage.kinds.index("d")
        window = found.attributions["rollout"][0, [first + NEAR - 3, first + KEY, first + NEAR + 3]]
        torch.testing.assert_close(window, window[:1].expand(3))

    def test_the_curves_say_so(self, found):
        curves = found.curves
        assert curves.of["integrated-gradients"].margin > curves.of["rollout"].margin
        assert curves.of["attention-gradient"].margin > curves.of["rollout"].margin
        assert curves.best in ("integrated-gradients", "attention-gradient")
        two = next(i for i, count in enumerate(curves.counts) if count >= 2)  # the "A" and the "k" are named first
        for name in ("integrated-gradients", "attention-gradient"):
            curve = curves.of[name]
            whole, nothing = curve.deletion[0], curve.deletion[-1]
            assert curve.deletion[two] <= nothing + 0.1 * (whole - nothing)
            assert curve.insertion[two] >= whole - 0.1 * (whole - nothing)


class TestFarToken:
    """The answer hangs on the "k" at the other end of the document, by way of the tokens that are global."""

    @pytest.fixture
    def answerer(self, tmp_path):
        return far_token_answerer(tmp_path)

    @pytest.mark.parametrize("whose", ["the question's", "the x", "nobody's"])
    def test_it_is_found_if_a_token_is_global(self, answerer, whose):
        if whose == "the x":
            x = answerer.tokenizer("x")["input_ids"][1]
            answerer.global_mask = lambda ids: ids == x
        elif whose == "nobody's":
            answerer.global_mask = lambda ids: torch.zeros_like(ids, dtype=torch.bool)
        found = explain(answerer, QUESTION, FAR_DOCUMENT, steps=32)
        first = found.passage.kinds.index("d")
        answer = first + FAR_DOCUMENT.index("A")
        assert found.passage.spans[0] == (answer, answer)
        expected = {"the question's": [*range(first - 7, first - 2)], "the x": [first + 10], "nobody's": []}[whose]
        assert found.global_index.tolist() == expected and found.default_globals == (whose == "the question's")
        whole, nothing = found.curves.of[RANDOM].deletion[0], found.curves.of[RANDOM].deletion[-1]
        exact = found.attributions["integrated-gradients"].sum(0)
        assert float(exact.sum()) == pytest.approx(whole - nothing, rel=1e-3)
        for name in ("integrated-gradients", "attention-gradient"):
            counts = found.attributions[name].sum(0).clone()
            counts[answer] = 0
            if whose == "nobody's":
                assert abs(counts[first]) < 1e-6
            else:
                assert int(counts.argmax()) == first
        if whose != "nobody's":
            assert exact[first] > 3 * exact[answer] and found.curves.best == "integrated-gradients"
            bare = explain(answerer, QUESTION, FAR_DOCUMENT.replace("k", "."), methods=["rollout"])
            lost = whole - bare.curves.of[RANDOM].deletion[0]
            assert lost == pytest.approx(float(exact[first]), rel=0.1)  # what the token's part says


class TestIntegratedGradients:
    def test_completeness(self, probe):
        """The parts sum to what all tokens together make, and the error falls with the square of the steps."""
        absent = torch.stack([torch.zeros_like(probe.removable), probe.removable])
        whole, nothing = probe.without(absent)
        errors = [(integrated_gradients(probe, steps).double().sum(1) - (whole - nothing)).abs() for steps in (20, 200)]
        assert (whole - nothing).abs().min() > 0.1
        assert errors[1].max() < 2e-3
        assert (errors[1] < errors[0] / 10 + 1e-4).all()

    def test_tokens_that_always_stay_have_no_part(self, probe):
        found = integrated_gradients(probe, 4)
        assert not found[:, ~probe.removable].any() and found[:, probe.removable].abs().min() > 0

    def test_captum_gives_the_same(self, answerer, probe):
        attr = pytest.importorskip("captum.attr")
        model = answerer.model

        def score(ids: Tensor, side: int) -> Tensor:
            return probe._scores(model, ids)[:, side]

        layer = attr.LayerIntegratedGradients(score, model.longformer.embeddings)
        bare = probe.ids.masked_fill(probe.removable, model.config.pad_token_id)
        for side in (0, 1):
            theirs = layer.attribute(
                probe.ids[None], bare[None], additional_forward_args=(side,), n_steps=12, method="riemann_middle"
            )
            ours = integrated_gradients(probe, 12)[side]
            torch.testing.assert_close(ours, theirs[0].sum(-1).detach(), rtol=1e-4, atol=1e-5)

    def test_steps_in_batches_and_one_by_one_are_the_same(self, probe, monkeypatch):
        rows: list[int] = []
        at = Probe.at
        monkeypatch.setattr(Probe, "at", lambda self, states: (rows.append(len(states)), at(self, states))[1])
        together = integrated_gradients(probe, 7)
        monkeypatch.setattr(attributing, "BATCH_TOKENS", 2 * SEQ_LEN)
        apart = integrated_gradients(probe, 7)
        assert rows == [7, 2, 2, 2, 1]  # no more than two at once: memory does not grow with the steps
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)

    def test_nothing_is_left_behind(self, answerer, probe):
        model = answerer.model.train()
        try:
            found = integrated_gradients(probe, 3)
            assert all(part.training for part in model.modules())
        finally:
            model.eval()
        torch.testing.assert_close(found, integrated_gradients(probe, 3))  # without dropout
        with torch.no_grad(), torch.inference_mode():
            torch.testing.assert_close(found, integrated_gradients(probe, 3))
        attention_gradient(probe)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
        assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())


def windowed(model: Any) -> None:
    pass


def full_above(model: Any) -> None:
    model.longformer.encoder.layer[1].attention.self.pattern = AttentionPattern(None)


def dilated_below(model: Any) -> None:
    attention = model.longformer.encoder.layer[0].attention.self
    attention.pattern = replace(attention.pattern, dilation=(1, 3))


class TestAttentionGradient:
    @pytest.mark.parametrize("change", [windowed, full_above, dilated_below])
    def test_is_the_dense_product(self, tmp_path, change: Callable[[Any], None]):
        """By matrices of S × S, with gradients that torch takes of what each layer's attention gives."""
        answerer = QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path))
        change(answerer.model)
        probe = make_probe(answerer)
        true = dense_of_model(answerer, probe.ids)  # (L, H, S, S)
        is_global = answerer.model.automatic_global_mask(probe.ids[None])[0]
        values, outputs = [], []

        def hook(module: LongformerSelfAttention, given: tuple, output: Tensor) -> None:
            def heads(part: Any) -> Tensor:
                return part(given[0][0]).unflatten(-1, (module.num_heads, -1)).transpose(0, 1).detach()

            values.append((heads(module.value), heads(module.value_global)))
            outputs.append(output)

        layers = [layer.attention.self for layer in answerer.model.longformer.encoder.layer]
        handles = [layer.register_forward_hook(hook) for layer in layers]
        start, end = answerer.model(probe.ids[None])
        for handle in handles:
            handle.remove()
        scores, found = (start[0, probe.span[0]], end[0, probe.span[1]]), attention_gradient(probe)
        for side, score in enumerate(scores):
            slopes = torch.autograd.grad(score, outputs, retain_graph=True)
            relevance = torch.eye(SEQ_LEN)
            for attention, slope, (value, global_value) in zip(true, slopes, values, strict=True):
                by_head = slope[0].unflatten(-1, (2, -1)).transpose(0, 1)
                gradient = torch.where(is_global[:, None], by_head @ global_value.mT, by_head @ value.mT)
                relevance = relevance + (attention * gradient).clamp(min=0).mean(0) @ relevance
            torch.testing.assert_close(found[side], relevance[probe.span[side]], rtol=1e-3, atol=1e-6)

    def test_probabilities_are_computed_once_for_both_scores_and_few_at_a_time(self, tmp_path, monkeypatch):
        layers, heads = 3, 8
        changes = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": 32, "attention_window": 8}
        probe = make_probe(QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path, **changes)))
        computed: list[int] = []
        living: weakref.WeakSet[Tensor] = weakref.WeakSet()
        most: list[int] = []
        of_head, product = Layer._attention, Layer._product

        def watched(found: Attention) -> Attention:
            living.add(found.band)
            most.append(len(living))
            return found

        def counted(self: Layer, head: int, *given: Any) -> Attention:
            computed.append(head)
            return watched(of_head(self, head, *given))

        monkeypatch.setattr(Layer, "_attention", counted)
        monkeypatch.setattr(Layer, "_product", lambda self, *given: watched(product(self, *given)))
        attention_gradient(probe)
        assert computed == [*range(heads)] * layers and len(most) == 3 * heads * layers
        # The sums of a layer and of the one before; probabilities and products of a head and of the one before.
        assert max(most) <= 2 * 2 + 2 * 3


class TestCurves:
    def test_are_the_models_scores_without_the_tokens(self, answerer, probe):
        values = torch.stack([torch.arange(SEQ_LEN).float(), torch.zeros(SEQ_LEN)])  # the last tokens come first
        curves = follow_orders(probe, {"mine": values})
        removable = probe.removable.nonzero().flatten()
        assert curves.counts == places(len(removable)) and curves.counts[-1] == len(removable)
        positions = torch.arange(2, 2 + SEQ_LEN)[None]
        mask = answerer.model.automatic_global_mask(probe.ids[None]).long()

        def score(absent: Tensor) -> float:
            ids = probe.ids.clone()
            ids[absent] = 1  # padding
            with torch.no_grad():
                start, end = answerer.model(
                    ids[None], torch.ones(1, SEQ_LEN), global_attention_mask=mask, position_ids=positions
                )
            return float(start[0, probe.span[0]] + end[0, probe.span[1]])

        for i, count in enumerate(curves.counts):
            out, kept = removable.flip(0)[:count], removable.flip(0)[count:]
            assert curves.of["mine"].deletion[i] == pytest.approx(score(out), abs=1e-4)
            assert curves.of["mine"].insertion[i] == pytest.approx(score(kept), abs=1e-4)
        assert curves.of[RANDOM].deletion[0] == curves.of["mine"].insertion[-1]

    def test_places(self):
        assert places(1) == [0, 1] and places(2) == [0, 1, 2]
        assert places(4080) == [0, 5, 28, 147, 774, 4080]

    def test_margin_and_best(self):
        curves = Curves([0, 1, 2], {"a": Curve([4, 1, 0], [0, 3, 4]), RANDOM: Curve([4, 2, 0], [0, 2, 4])})
        assert curves.of["a"].margin == pytest.approx(2 / 3) and curves.of[RANDOM].margin == 0
        assert curves.best == "a"

    def test_what_the_page_says_of_them(self):
        best = Curves(
            [0, 1, 2, 3], {"rollout": Curve([4, 3, 1, 0], [0, 3, 3, 4]), RANDOM: Curve([4, 4, 2, 0], [0, 1, 2, 4])}
        )
        said = _verdict(best)
        assert "The best answer scores 4.0, and 0.0 without any token" in said
        assert (
            "Without the 2 tokens that count most it scores 1.0 by rollout; without as many drawn by chance 2.0" in said
        )
        assert said.endswith("Best at naming what this answer hangs on, over both curves, is rollout.")
        none = Curves([0, 1, 2, 3], {"rollout": best.of[RANDOM], RANDOM: best.of["rollout"]})
        assert _verdict(none).endswith(
            "No method does better than chance: none of them says what this answer hangs on."
        )

    def test_the_random_order_is_the_same_again(self, probe):
        assert follow_orders(probe, {}) == follow_orders(probe, {})
        assert follow_orders(probe, {}) != follow_orders(probe, {}, seed=1)


class TestExplain:
    DOCUMENT = "Dan fell.\n\nAnn did not."

    def test_all_methods(self, answerer):
        found = explain(answerer, "Who fell?", self.DOCUMENT, steps=3)
        seq_len = len(found.passage.ids)
        assert list(found.attributions) == list(METHODS)
        assert {tuple(both.shape) for both in found.attributions.values()} == {(2, seq_len)}
        for name in ("attention-gradient", "rollout"):
            torch.testing.assert_close(found.attributions[name].sum(1), torch.ones(2))
        assert set(found.curves.of) == {*METHODS, RANDOM}
        first, last = found.passage.spans[0]
        score = float(found.start_logits[first] + found.end_logits[last])
        assert found.curves.of[RANDOM].deletion[0] == pytest.approx(score, abs=1e-4)

    def test_some_methods_and_none(self, answerer):
        found = explain(answerer, "Who fell?", self.DOCUMENT, methods=["rollout"])
        assert list(found.attributions) == ["rollout"] and set(found.curves.of) == {"rollout", RANDOM}
        nothing = explain(answerer, "Who fell?", self.DOCUMENT, methods=[])
        assert nothing.attributions == {} and nothing.curves is None

    def test_bars(self, answerer, capsys):
        explain(answerer, "Who fell?", self.DOCUMENT, steps=3)
        assert capsys.readouterr().err == ""
        explain(answerer, "Who fell?", self.DOCUMENT, steps=3, progress=True)
        said = capsys.readouterr().err
        assert "integrated gradients" in said and "3/3" in said and "deletion, insertion" in said
        heads = answerer.model.config.num_hidden_layers * answerer.model.config.num_attention_heads
        for words in ("attention of each head", "attention × gradient"):
            assert re.search(rf"{words}: 100%\|.*\| {heads}/{heads} ", said)

    def test_bad_arguments(self, answerer):
        with pytest.raises(LongformerError, match=r"'rolout' is no method of attribution.*'rollout'"):
            explain(answerer, "Who fell?", self.DOCUMENT, methods=["rolout"])
        with pytest.raises(LongformerError, match="steps is 0"):
            explain(answerer, "Who fell?", self.DOCUMENT, steps=0)

    def test_int8_has_no_gradients(self, answerer, tmp_path):
        quantised = QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path), dtype="int8")
        assert list(explain(quantised, "Who fell?", self.DOCUMENT).attributions) == ["rollout"]
        with pytest.raises(LongformerError, match="integrated-gradients needs gradients, which a model in int8"):
            explain(quantised, "Who fell?", self.DOCUMENT, methods=["integrated-gradients"])
