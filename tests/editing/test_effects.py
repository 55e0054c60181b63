"""Ablation and patching, on models of which the answer is known: by weights that are written in, or by the window."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from induction import CIRCUIT, induction_model, predicted
from tiny_heads import batch, build_class
from torch import Tensor

from longformer import LongformerError, LongformerForQuestionAnswering, edit
from longformer.editing import Effects, ablate_heads, patch_values

# "5 9 ... 5": the token behind the earlier 5 is to be copied.
REPEATED = torch.tensor([[3, 5, 9, 7, 4, 8, 11, 5]])
OTHER = torch.tensor([[3, 5, 12, 7, 4, 8, 11, 5]])


def of_nine(output: Any) -> Tensor:
    """By how much 9 wins over 12 at the last token."""
    logits = output.logits[0, -1]
    return logits[9] - logits[12]


@pytest.fixture(scope="module")
def copying():
    return induction_model()


@pytest.fixture(scope="module")
def model():
    return build_class(LongformerForQuestionAnswering)


class TestInduction:
    @pytest.mark.parametrize("by", ["zero", "mean"])
    def test_ablation_finds_the_two_heads(self, copying, by):
        assert predicted(copying, REPEATED) == 9 and predicted(copying, OTHER) == 12
        found = ablate_heads(copying, {"input_ids": REPEATED}, of_nine, by=by, progress=False)
        largest = found.largest(2)
        assert {(row, column) for row, column, _ in largest} == {(f"layer {i}", f"head {j}") for i, j in CIRCUIT}
        others = [float(found.table[i, j]) for i, j in itertools.product(range(2), range(4)) if (i, j) not in CIRCUIT]
        assert all(effect < -10 * max(map(abs, others)) for *_, effect in largest)

    def test_without_one_of_them_nothing_is_copied_and_without_another_it_is(self, copying):
        for layer, head in itertools.product(range(2), range(4)):
            with edit(copying) as e:
                e.zero(f"layer.{layer}.local_output", head=head)
                copied = predicted(copying, REPEATED) == 9 and predicted(copying, OTHER) == 12
            assert copied == ((layer, head) not in CIRCUIT)
        only = torch.zeros(2, 4)
        only[tuple(zip(*CIRCUIT, strict=True))] = 1
        with edit(copying) as e:
            e.mask_heads(only)
            assert predicted(copying, REPEATED) == 9 and predicted(copying, OTHER) == 12

    @pytest.mark.parametrize("direction", ["denoising", "noising"])
    def test_patching_follows_the_token_through_the_layers(self, copying, direction):
        """The two runs differ at token 2. It is at 2 until layer 1 copies it to the last token."""
        runs = {"input_ids": REPEATED}, {"input_ids": OTHER}
        names = ["embeddings", "layer.0.output", "layer.1.value", "layer.1.output"]
        found = patch_values(copying, *runs, of_nine, names, direction=direction, tokens=range(8), progress=False)
        assert found.rows == names and found.columns == [str(i) for i in range(8)]
        carrier = {0: 2, 1: 2, 2: 2, 3: 7}
        for row, token in carrier.items():
            assert found.share[row, token] > 0.9
            assert found.share[row].abs().sum() - found.share[row, token] < 0.1
        assert (found.before < 0 < found.other) == (direction == "denoising")


def zero_head(out: Tensor, head: int) -> Tensor:
    out[..., 8 * head : 8 * head + 8] = 0
    return out


def start_of_five(output: Any) -> Tensor:
    return output.start_logits[0, 5]


class TestAblation:
    @pytest.fixture
    def inputs(self):
        return dict(zip(("input_ids", "attention_mask", "global_attention_mask"), batch(), strict=True))

    def test_heads_one_by_one(self, model, inputs):
        found = ablate_heads(model, inputs, start_of_five, progress=False)
        path = "longformer.encoder.layer.0.attention.self"
        with torch.no_grad():
            before = start_of_five(model(**inputs))
            handle = model.get_submodule(path).register_forward_hook(lambda *given: zero_head(given[2].clone(), 3))
            changed = start_of_five(model(**inputs))
            handle.remove()
        assert found.table.shape == (2, 4) and found.before == before
        torch.testing.assert_close(found.table[0, 3], changed - before, rtol=0, atol=1e-12)
        assert ablate_heads(model, inputs, start_of_five, by="mean", progress=False).table.abs().max() > 0

    @pytest.mark.parametrize("by", ["zero", "mean"])
    def test_a_run_without_global_tokens(self, model, inputs, by):
        del inputs["global_attention_mask"]
        found = ablate_heads(model.longformer, inputs, lambda output: output[0][0, 5, 0], by=by, progress=False)
        assert (found.table != 0).all()

    def test_dropout_is_off(self, inputs):
        torch.manual_seed(0)
        model = LongformerForQuestionAnswering(build_class(LongformerForQuestionAnswering).config)
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.5
        twice = [ablate_heads(model, inputs, start_of_five, progress=False).table for _ in range(2)]
        assert torch.equal(*twice) and model.training
        found = patch_values(model, inputs, inputs, start_of_five, ["layer.0.output"], progress=False)
        assert found.table.abs().max() < 1e-6 and found.before == pytest.approx(found.other) and model.training

    def test_the_bar(self, model, inputs, capsys):
        ablate_heads(model, inputs, start_of_five, progress=False)
        assert capsys.readouterr().err == ""
        ablate_heads(model, inputs, start_of_five)
        assert "heads" in (said := capsys.readouterr().err) and "8/8" in said

    def test_bad_arguments(self, model, inputs):
        with pytest.raises(LongformerError, match="by is 'noise'"):
            ablate_heads(model, inputs, start_of_five, by="noise")
        with pytest.raises(LongformerError, match=r"the metric gives a tensor of shape \(4, 48\)"):
            ablate_heads(model, inputs, lambda output: output.start_logits)
        with pytest.raises(LongformerError, match=r"inputs is a Tensor; it must be a mapping of the model's arguments"):
            ablate_heads(model, inputs["input_ids"], start_of_five)
        with pytest.raises(LongformerError, match="Linear is neither our Longformer nor transformers'"):
            ablate_heads(torch.nn.Linear(2, 2), inputs, start_of_five)


class TestPatching:
    @pytest.fixture
    def runs(self):
        clean = torch.full((1, 60), 7)
        corrupted = clean.clone()
        corrupted[0, 30] = 50
        mask = torch.zeros_like(clean)
        return [{"input_ids": ids, "global_attention_mask": mask} for ids in (clean, corrupted)]

    @staticmethod
    def metric(output: Any) -> Tensor:
        return output.start_logits[0, 30]

    def test_finds_the_token_on_which_the_result_hangs(self, model, runs):
        """Two inputs that differ in one token far from the others: only patching its states changes anything."""
        names = ["embeddings", "layer.0.output"]
        found = patch_values(model, *runs, self.metric, names, tokens=range(60), progress=False)
        table = found.table
        assert table.shape == (2, 60)
        with torch.no_grad():
            difference = self.metric(model(**runs[0])) - self.metric(model(**runs[1]))
        torch.testing.assert_close(table[0, 30], difference, rtol=0, atol=1e-12)
        assert found.other - found.before == pytest.approx(float(difference))
        assert not table[0, [*range(30), *range(31, 60)]].any()
        assert table[1, 26:35].abs().min() > 0 and not table[1, [*range(26), *range(35, 60)]].any()
        everywhere = patch_values(model, *runs, self.metric, ["layer.1.output"], progress=False)
        torch.testing.assert_close(everywhere.table, difference.view(1, 1), rtol=0, atol=1e-12)
        assert everywhere.columns == ["all tokens"] and float(everywhere.share) == pytest.approx(1)

    def test_noising_is_the_way_back(self, model, runs):
        there = patch_values(model, *runs, self.metric, ["embeddings"], tokens=[30], progress=False)
        back = patch_values(model, *runs, self.metric, ["embeddings"], direction="noising", tokens=[30], progress=False)
        assert (back.before, back.other) == (there.other, there.before)
        torch.testing.assert_close(back.table, -there.table, rtol=0, atol=1e-12)

    def test_several_tokens_at_once(self, model, runs):
        places = [slice(26, 35), [29, 30], 30, torch.tensor([29, 30])]
        found = patch_values(model, *runs, self.metric, "layer.0.output", tokens=places, progress=False)
        assert found.columns == ["26:35", "29, 30", "30", "29, 30"] and found.rows == ["layer.0.output"]
        assert found.table[0, 1] == found.table[0, 3]
        assert float(found.share[0, 0]) == pytest.approx(1)  # all that the token reached in a layer
        assert found.table[0].unique().numel() == 3

    def test_the_bar(self, model, runs, capsys):
        patch_values(model, *runs, self.metric, ["embeddings"], tokens=[1, 2])
        assert "patches" in (said := capsys.readouterr().err) and "2/2" in said

    def test_bad_arguments(self, model, runs):
        with pytest.raises(LongformerError, match="patching needs the same shapes"):
            patch_values(
                model, {**runs[0], "input_ids": runs[0]["input_ids"][:, :50]}, runs[1], self.metric, ["embeddings"]
            )
        with pytest.raises(LongformerError, match=r"is no value .*mean 'embeddings'"):
            patch_values(model, *runs, self.metric, ["embedding"])
        with pytest.raises(LongformerError, match="tokens is 60"):
            patch_values(model, *runs, self.metric, ["embeddings"], tokens=[60], progress=False)
        with pytest.raises(LongformerError, match="direction is 'both'"):
            patch_values(model, *runs, self.metric, ["embeddings"], direction="both")
        with pytest.raises(LongformerError, match="there is nothing to patch"):
            patch_values(model, *runs, self.metric, [])


class TestTable:
    effects = Effects(
        torch.tensor([[0.5, -2.0], [0.0, 1.0]], dtype=torch.float64), ["layer 0", "layer 1"], ["a", "b"], 4.0, 2.0, "t"
    )

    def test_largest_and_text(self):
        assert self.effects.largest(2) == [("layer 0", "b", -2.0), ("layer 1", "b", 1.0)]
        said = str(self.effects).splitlines()
        assert said[0] == "t; without a change 4" and said[1] == "the other run 2"
        assert said[2].split(maxsplit=1) == ["-2", "layer 0, b"] and len(said) == 6

    def test_shares(self):
        assert self.effects.share.tolist() == [[-0.25, 1.0], [0.0, -0.5]]
        table, rows, columns = self.effects.table, self.effects.rows, self.effects.columns
        with pytest.raises(LongformerError, match="an ablation has no other run"):
            _ = Effects(table, rows, columns, 4.0, None, "t").share
        with pytest.raises(LongformerError, match="both runs give 4"):
            _ = Effects(table, rows, columns, 4.0, 4.0, "t").share

    def test_the_picture_is_the_table(self, tmp_path: Path):
        figure = pytest.importorskip("matplotlib.figure").Figure()
        axes = figure.subplots()
        image = self.effects.draw(axes)
        assert image.get_array().tolist() == self.effects.table.tolist() and image.get_clim() == (-2, 2)
        assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0", "layer 1"]
        self.effects.save(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    def test_a_wide_table_has_few_labels(self):
        figure = pytest.importorskip("matplotlib.figure").Figure()
        axes = figure.subplots()
        Effects(torch.zeros(1, 4096), ["x"], [str(i) for i in range(4096)], 0.0, None, "t").draw(axes)
        assert 16 <= len(axes.get_xticks()) <= 32

    def test_without_matplotlib(self, monkeypatch, tmp_path):
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        with pytest.raises(LongformerError, match=r"pip install matplotlib"):
            self.effects.save(tmp_path / "picture.png")
