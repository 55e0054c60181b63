"""``longformer explain``: what it computes is the model's own, and what it keeps of that is what it says."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from explained import dense, dense_of_model, kept, read_small_numbers, unpack
from safetensors import safe_open
from tiny_checkpoint import save_tiny_checkpoint

from longformer import LongformerConfig, LongformerError, LongformerModel, QuestionAnswerer, attentions_to_dense
from longformer.cli import main
from longformer.explain import METHODS, Explanation, explain, write_page, write_picture
from longformer.explain.packing import FLOOR, STEP, Limits, small_numbers
from longformer.explain.page import page
from longformer.explain.picture import full_rows, pattern_bins
from longformer.explain.probabilities import Attention
from longformer.explain.rollout import rollout
from longformer.kernels import AttentionPattern, MaskPattern

QUESTION = " Who fell? "
SHORT = "Dan fell.\n\nAnn did not. Ünï"
LONG = "Dan fell off a wall. Ann did not; she sat still on hers.\n" * 3
EVIL = "<b>D</b></script><script>x()</script>&amp;"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def answerer(checkpoint: Path) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def short(answerer: QuestionAnswerer) -> Explanation:
    return explain(answerer, QUESTION, SHORT, steps=2)


DILATION = ((1, 3), 2)


@pytest.fixture(scope="module")
def dilated(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    """Its first layer has heads of different dilation. Global tokens are inside the windows, on their grid and off."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("dilated"), attention_dilation=DILATION)
    return QuestionAnswerer.from_pretrained(folder)


@pytest.fixture(scope="module")
def others(checkpoint: Path) -> dict[str, QuestionAnswerer]:
    """Answerers with other global tokens than the question, and with a layer that has no window."""
    full = QuestionAnswerer.from_pretrained(checkpoint)
    full.model.longformer.encoder.layer[1].attention.self.pattern = AttentionPattern(None)
    model, tokenizer = (loaded := QuestionAnswerer.from_pretrained(checkpoint)).model, loaded.tokenizer
    return {
        "full": full,
        "every fifth global": QuestionAnswerer(
            model, tokenizer, global_mask=lambda ids: (torch.arange(ids.shape[1]) % 5 == 2).expand(ids.shape)
        ),
        "nothing global": QuestionAnswerer(model, tokenizer, global_mask=lambda ids: ids < 0),
    }


@pytest.fixture(scope="module", params=["plain", "dilated", "full", "every fifth global", "nothing global"])
def pair(request, answerer, dilated, others) -> tuple[QuestionAnswerer, Explanation]:
    model = {"plain": answerer, "dilated": dilated, **others}[request.param]
    return model, explain(model, QUESTION, SHORT, methods=[])


class TestAttention:
    def test_all_of_a_short_document_is_the_models(self, pair):
        answerer, short = pair
        true = dense_of_model(answerer, torch.from_numpy(short.passage.ids))
        seen = 0
        for layer, head, token in np.ndindex(true.shape[:3]):
            row, share = kept(short, layer, head, token)
            expected = true[layer, head, token]
            assert set(row) == set(np.flatnonzero(expected.numpy() >= FLOOR * (1 + STEP)).tolist()) | (
                set(row) & set(np.flatnonzero(expected.numpy() >= FLOOR / (1 + STEP)).tolist())
            )
            for column, probability in row.items():
                assert probability == pytest.approx(float(expected[column]), rel=STEP + 1e-4)
            assert share == pytest.approx(1, abs=1 / 255)
            seen += len(row)
        assert seen == sum(layer.entries for layer in short.packed)

    def test_means(self, pair):
        answerer, short = pair
        true = dense_of_model(answerer, torch.from_numpy(short.passage.ids)).mean(dim=1)
        for mean, expected in zip(short.means, true, strict=True):
            torch.testing.assert_close(dense(mean), expected)

    @pytest.mark.parametrize("wanted", [400, 900])
    def test_the_largest_are_kept_and_their_share_is_true(self, answerer, wanted):
        found = explain(answerer, QUESTION, SHORT, entries=wanted, methods=[])
        true = dense_of_model(answerer, torch.from_numpy(found.passage.ids)).numpy()
        total = sum(layer.entries for layer in found.packed)
        assert wanted * 0.9 <= total <= max(wanted, found.limits.least * true[..., 0].size)
        smallest, largest_lost = 1.0, 0.0
        for layer, head, token in np.ndindex(true.shape[:3]):
            row, share = kept(found, layer, head, token)
            expected = true[layer, head, token]
            assert len(row) >= found.limits.least
            carried = expected[list(row)]
            assert share == pytest.approx(carried.sum(), abs=0.5 / 255 + 1e-5)
            lost = np.delete(expected, list(row))
            assert lost.max() <= carried.min() * (1 + 1e-5)
            if token in found.means[layer].global_index:
                assert len(row) == found.limits.most_global or lost.max() < FLOOR * (1 + STEP)
                continue
            if len(row) > found.limits.least:
                smallest = min(smallest, carried.min())
            largest_lost = max(largest_lost, lost.max())
        assert largest_lost <= smallest * (1 + STEP) ** 2  # one threshold for all rows
        shares = [layer.share for layer in found.packed]
        whole = np.array([[unpack(layer).share.reshape(2, -1).mean(axis=1)] for layer in found.packed]).reshape(2, 2)
        np.testing.assert_allclose(shares, whole, atol=0.5 / 255)

    def test_a_row_keeps_no_more_than_its_most(self):
        limits = Limits.of(4096, 12, 72)
        assert limits.most == 64 and limits.least == 8 and 1000 < limits.most_global < 1100
        short = Limits.of(100, 12, 72)
        assert short.most >= 100 and short.most_global == 100
        many = Limits.of(4096, 400, 16 * 24)
        assert many.least >= 1 and many.most_global >= many.least

    def test_numbers_as_bytes(self):
        numbers = np.array([0, 1, 254, 255, 256, 509, 510, 4000, 0])
        assert (read_small_numbers(small_numbers(numbers)) == numbers).all()
        assert read_small_numbers(small_numbers(np.array([], dtype=int))).size == 0

    def test_nothing_is_left_behind(self, answerer, short):
        assert all(not module._forward_pre_hooks for module in answerer.model.modules())
        ids = torch.from_numpy(short.passage.ids)[None]
        with torch.no_grad():
            torch.testing.assert_close(answerer.model(ids).start_logits[0], short.start_logits.float())

    def test_a_dilation_beyond_the_document(self, tmp_path):
        folder = save_tiny_checkpoint(tmp_path, attention_dilation=((1, 10**9), 1000))
        answerer = QuestionAnswerer.from_pretrained(folder)
        found = explain(answerer, QUESTION, SHORT, methods=[])
        true = dense_of_model(answerer, torch.from_numpy(found.passage.ids)).mean(dim=1)
        for mean, expected in zip(found.means, true, strict=True):
            torch.testing.assert_close(dense(mean), expected)

    @pytest.mark.parametrize("dtype", ["bfloat16", "mixed", "int8"])
    def test_lower_precision(self, checkpoint, dtype):
        dtype = torch.bfloat16 if dtype == "bfloat16" else dtype
        found = explain(QuestionAnswerer.from_pretrained(checkpoint, dtype=dtype), QUESTION, SHORT, steps=1)
        assert list(found.attributions) == (list(METHODS) if dtype != "int8" else ["rollout"])
        for mean in found.means:
            torch.testing.assert_close(dense(mean).sum(dim=1), torch.ones(len(found.passage.ids)))


def any_mask(b, h, row, column):
    """Another for each head: the last three tokens, or every third."""
    return torch.where(h == 0, (row - column < 3) & (column <= row), (row - column) % 3 == 0)


def nearer_is_stronger(score, b, h, row, column):
    return score - (h + 1) * (row - column).abs() / 4


PATTERNS = {
    "a mask": MaskPattern((any_mask,)),
    "a score": MaskPattern(score=nearer_is_stronger),
    "a union": AttentionPattern((2, 0)) | AttentionPattern((1, 1), dilation=(3, 5)),
    "causal": AttentionPattern((6, 0), causal=True),
    "everything before": AttentionPattern(None, causal=True),
    "uneven": AttentionPattern((5, 1), dilation=(1, 2)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_any_pattern(checkpoint, name):
    """Attention of a layer with any pattern is what the model gives for ``output_attentions``."""
    answerer = QuestionAnswerer.from_pretrained(checkpoint, attention={1: PATTERNS[name]})
    found = explain(answerer, QUESTION, SHORT, steps=1)
    ids = torch.from_numpy(found.passage.ids)[None]
    mask = answerer.model.automatic_global_mask(ids).long()
    with torch.no_grad():
        output = answerer.model(ids, output_attentions=True)
    for layer, mean in enumerate(found.means):
        pattern = answerer.model.longformer.encoder.layer[layer].attention.self.pattern
        width = output.attentions[layer].shape[-1] - int(mask.sum())
        if pattern.window is None:
            pattern = AttentionPattern((width // 2, width // 2))
        each = attentions_to_dense(
            output.attentions[layer], output.global_attentions[layer], global_attention_mask=mask, pattern=pattern
        )[0]
        torch.testing.assert_close(dense(mean), each.mean(0))
        for head in range(2):
            row, share = kept(found, layer, head, 15)
            assert sum(row.values()) == pytest.approx(share, abs=0.03) and share == pytest.approx(1, abs=1 / 255)
            assert sum(abs(p - float(each[head, 15, j])) for j, p in row.items()) < 0.03
    assert list(found.attributions) == list(METHODS) and page(found)


class TestRollout:
    def test_is_the_dense_product(self):
        seq_len, layers = 23, []
        for window, gap, index in (((3, 1), 1, [0, 9]), ((30, 2), 1, [0, 9]), ((0, 0), 3, [0, 9]), ((4, 5), 3, [0, 9])):
            band, offsets = torch.rand(seq_len, sum(window) + 1), torch.arange(-window[0], window[1] + 1) * gap
            place = torch.arange(seq_len)[:, None] + offsets
            band *= (place >= 0) & (place < seq_len)
            columns, rows = torch.rand(seq_len, 2), torch.rand(2, seq_len)
            band[index], columns[index] = 0, 0
            total = band.sum(dim=1, keepdim=True) + columns.sum(dim=1, keepdim=True)
            total[index] = 1
            rows = rows / rows.sum(dim=1, keepdim=True)
            whole = torch.tensor(index)
            layers.append(Attention(whole, offsets, band / total, columns / total, whole, rows))
        every, nothing = torch.arange(seq_len), torch.zeros(seq_len, 0)
        rows = torch.rand(seq_len, seq_len).softmax(dim=1)
        layers.append(Attention(whole, every[:0], nothing, torch.zeros(seq_len, 2), every, rows))  # without a window
        targets = torch.zeros(2, seq_len)
        targets[0, 5:8] = 1 / 3
        targets[1, 9] = 1
        found, expected = rollout(layers, targets), targets
        for n, layer in enumerate(reversed(layers)):
            matrix = dense(layer)
            torch.testing.assert_close(matrix.sum(dim=1), torch.ones(seq_len))
            expected = expected @ (0.5 * matrix + 0.5 * torch.eye(seq_len))
            torch.testing.assert_close(found[n], expected)
            torch.testing.assert_close(found[n].sum(dim=1), torch.ones(2))

    def test_of_a_model(self, pair):
        answerer, short = pair
        true = dense_of_model(answerer, torch.from_numpy(short.passage.ids)).mean(dim=1)
        product = torch.eye(len(short.passage.ids))
        for matrix in true:
            product = (0.5 * matrix + 0.5 * torch.eye(len(matrix))) @ product
        for n, (first, last) in enumerate(short.passage.spans):
            torch.testing.assert_close(short.rollout[-1, n], product[first : last + 1].mean(dim=0))


class TestAnswers:
    def test_are_those_of_answer(self, checkpoint, capsys, short):
        with pytest.raises(SystemExit) as end:
            main(["answer", QUESTION, "--text", SHORT, "--top-k", "5", "--json", "--model", str(checkpoint)])
        assert end.value.code == 0
        printed = json.loads(capsys.readouterr().out)
        assert [answer.text for answer in short.answers] == [answer["text"] for answer in printed]
        probabilities = [answer["probability"] for answer in printed]
        assert [answer.probability for answer in short.answers] == pytest.approx(probabilities, rel=1e-5)

    @pytest.mark.parametrize("document", [SHORT, LONG, EVIL])
    def test_the_text_is_the_documents(self, answerer, document):
        found = explain(answerer, QUESTION, document, top_k=8, max_answer_tokens=10, methods=[])
        passage = found.passage
        pieces = [gap + text for gap, text in zip(passage.gaps, passage.texts, strict=True)]
        inside = [i for i, kind in enumerate(passage.kinds) if kind == "d"]
        text = "".join(pieces[i] for i in inside) + passage.tail
        assert text in document and (document == LONG or text == document)
        assert "".join(pieces[i] for i, kind in enumerate(passage.kinds) if kind == "q") == QUESTION.strip()
        assert len(passage.ids) == len(passage.texts) == len(passage.gaps) == len(passage.kinds)
        for answer, span in zip(found.answers, passage.spans, strict=True):
            if span is not None:
                shown = "".join(pieces[span[0] : span[1] + 1]).strip()
                assert answer.text == shown or answer.text in shown  # a token may begin in the middle of a character

    def test_the_window_of_the_best_answer(self, answerer):
        # Tokens are letters here: completed to whole words, an answer is another span than the one that was scored.
        found = explain(answerer, QUESTION, LONG, max_answer_tokens=10, inside_words=True, methods=[])
        passage, (best, *_) = found.passage, found.answers
        assert passage.windows > 2 and passage.stop - passage.first < passage.total == len(LONG)
        first, last = passage.spans[0]
        prefix = passage.kinds.index("d")
        assert LONG[passage.first + first - prefix : passage.first + last - prefix + 1].strip() == best.text
        # A span's score there is the one that decided.
        score = found.start_logits[first] + found.end_logits[last]
        second = found.passage.spans[1]
        if second is not None:
            other = found.start_logits[second[0]] + found.end_logits[second[1]]
            ratio = float(torch.exp(score - other))
            assert ratio == pytest.approx(best.probability / found.answers[1].probability, rel=1e-4)
        assert f"window {passage.window + 1}" in page(found)

    def test_no_answer(self, answerer):
        found = explain(answerer, QUESTION, SHORT, top_k=1, null_threshold=-1e9, methods=[])
        assert [answer.text for answer in found.answers] == [""]
        assert found.passage.spans == [(0, 0)]
        assert found.rollout.shape[1] == 1 and "no answer" in page(found)

    def test_entries(self, answerer):
        with pytest.raises(LongformerError, match="entries is 0"):
            explain(answerer, QUESTION, SHORT, entries=0, methods=[])


def rgb(colour: str) -> np.ndarray:
    digits = colour.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    return np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    def luminance(c: np.ndarray) -> float:
        return float(np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


class TestPage:
    def test_needs_nothing_else(self, short, tmp_path):
        write_page(tmp_path / "page.html", short)
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert not re.search(r"\b(src|href)=|https?:|@import|\bfetch\(|@@", text)
        assert text.count("</script>") == len(short.packed) + 3

    def test_a_document_stays_text(self, answerer):
        found = explain(answerer, "</title>W", EVIL)
        text = page(found)
        assert "<script>x" not in text and "<title>&lt;/title&gt;W</title>" in text
        assert text.count("</script>") == len(found.packed) + 3
        data = data_of(text)
        assert "".join(map("".join, zip(data["gaps"], data["texts"], strict=True))).count("<script>x()</script>") == 1

    def test_says_what_it_holds(self, pair):
        answerer, _ = pair
        found = explain(answerer, QUESTION, SHORT, entries=900)
        seq_len, about = len(found.passage.ids), data_of(page(found))["about"][0]
        pairs = (dense_of_model(answerer, torch.from_numpy(found.passage.ids)) > 0).sum()
        assert found.count == pairs  # none is so small that it is 0
        share = np.mean([unpack(layer).share.mean() for layer in found.packed])
        said = re.search(r"of ([\d,]+) probabilities this page holds the ([\d,]+) .* carry ([\d.]+)%", about)
        assert int(said[1].replace(",", "")) == pairs <= 4 * seq_len * seq_len
        assert int(said[2].replace(",", "")) == sum(layer.entries for layer in found.packed)
        assert float(said[3]) / 100 == pytest.approx(share, abs=0.005)

    def test_says_which_windows_have_gaps(self, pair):
        _, found = pair
        about = data_of(page(found))["about"][1]
        gaps = " With gaps, one token in 2, are the windows of layer 1. With gaps, one token in 3, are the windows of"
        assert (f"{gaps} layer 0 (heads 1)." in about) == any(set(p.gaps(2)) != {1} for p in found.patterns)
        assert ("gaps" in about) == (found.patterns[0].gaps(2) == (1, 3))

    def test_rollout_in_the_page(self, short):
        import base64

        block = re.search(r'id="rollout">([^<]*)<', page(short))[1]
        levels = np.frombuffer(zlib.decompress(base64.b64decode(block)), dtype=np.uint8).reshape(short.rollout.shape)
        true = short.rollout.numpy()
        values = np.where(levels < 255, data_of(page(short))["ratio"] ** -levels.astype(float), 0)
        np.testing.assert_allclose(values[true > 2 * FLOOR], true[true > 2 * FLOOR], rtol=STEP + 1e-6)

    @pytest.mark.parametrize("theme", [0, 1])
    def test_text_can_be_read_on_what_is_behind_it(self, short, theme):
        """Contrast as WCAG 2 has it: at least 4.5."""
        style = page(short)
        colours = re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", style)
        palette = {name: rgb(both[theme]) for name, *both in colours}
        assert len(palette) >= 12
        answers = float(re.search(r"opacity: (\.\d+); background: var\(--answer\)", style)[1])
        targets = float(re.search(r"var\(--local\); opacity: (\.\d+)", style)[1])
        bars = [("answer", answers), *((name, targets) for name in ("local", "global", "rolled", "against"))]
        behind = [(("text", "soft"), palette["card"]), (("text", "soft"), palette["back"])]
        behind += [(("text", "soft"), share * palette[name] + (1 - share) * palette["card"]) for name, share in bars]
        behind += [(("text",), palette[name]) for name in ("local", "global", "rolled", "against")]
        for names, ground in behind:
            for name in names:
                assert contrast(palette[name], ground) >= 4.5, (name, ground)
        assert contrast(palette["card"], palette["answer"]) >= 4.5  # the number of an answer

    def test_a_place_that_cannot_be_written(self, short, tmp_path):
        with pytest.raises(LongformerError, match=r"absent/page\.html cannot be written"):
            write_page(tmp_path / "absent" / "page.html", short)


class TestPicture:
    def test_is_drawn(self, answerer, tmp_path):
        found = explain(answerer, "What costs $5 and $6?", "It was $5 and $6_a. " + LONG)
        write_picture(tmp_path / "picture.png", found)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

    def test_what_it_draws(self, pair):
        _, short = pair
        mean = short.means[0]
        matrix = dense(mean).numpy()
        np.testing.assert_allclose(pattern_bins(mean, len(matrix)), matrix, rtol=1e-6)
        halved = pattern_bins(mean, -(-len(matrix) // 2))
        padded = np.pad(matrix, (0, len(matrix) % 2))
        np.testing.assert_allclose(halved, padded.reshape(len(halved), 2, -1, 2).max(axis=(1, 3)), rtol=1e-6)
        np.testing.assert_allclose(full_rows(mean, 3, 6), matrix[3:7].mean(axis=0), rtol=1e-5, atol=1e-8)

    def test_without_matplotlib(self, short, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(LongformerError, match=r"pip install matplotlib"):
            write_picture(tmp_path / "picture.png", short)


class TestCommand:
    def test_both(self, checkpoint, tmp_path, capsys):
        (tmp_path / "d.txt").write_text(SHORT, encoding="utf-8")
        arguments = [
            QUESTION,
            str(tmp_path / "d.txt"),
            "-o",
            str(tmp_path / "p.html"),
            "--png",
            str(tmp_path / "p.png"),
        ]
        with pytest.raises(SystemExit) as end:
            main(["explain", *arguments, "--model", str(checkpoint), "--top-k", "3"])
        assert end.value.code == 0
        assert len(data_of((tmp_path / "p.html").read_text(encoding="utf-8"))["answers"]) == 3
        assert (tmp_path / "p.png").stat().st_size > 10_000
        out, err = capsys.readouterr()
        assert out == "" and "p.html" in err and "p.png" in err

    def test_methods(self, checkpoint, tmp_path):
        arguments = ["explain", QUESTION, "--text", SHORT, "-o", str(tmp_path / "p.html"), "--model", str(checkpoint)]
        chosen = ["--method", "rollout", "--method", "integrated-gradients", "--steps", "3"]
        for more, expected in ((chosen, ["rollout", "integrated-gradients"]), (["--steps", "1"], list(METHODS))):
            with pytest.raises(SystemExit) as end:
                main([*arguments, *more])
            assert end.value.code == 0
            data = data_of((tmp_path / "p.html").read_text(encoding="utf-8"))
            assert [method["name"] for method in data["methods"]] == expected

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["", "d.txt", "-o", "p.html"], "the question is empty"),
            (["  ", "d.txt", "-o", "p.html"], "the question is blank"),
            (["Who?", "empty.txt", "-o", "p.html"], "the document is empty"),
            (["Who?", "absent.txt", "-o", "p.html"], "no file at 'absent.txt'"),
            (["Who?", "bytes.txt", "-o", "p.html"], "not UTF-8"),
            (["Who?", "d.txt", "-o", "absent/p.html"], "there is no folder 'absent'"),
            (["Who?", "d.txt", "--png", "absent/p.png"], "there is no folder 'absent'"),
            (["Who?", "d.txt", "-o", "p.pdf"], "must end in .html"),
            (["Who?", "d.txt", "--png", "p.html"], "must end in .png"),
            (["Who?", "d.txt", "-o", "folder.html"], "is a folder"),
            (["Who?", "doc.html", "-o", "./doc.html"], "is read by this command, and would be overwritten"),
            (["Who?", "d.txt", "-o", "p.html", "--png", "link.png"], "is the same file as p.html"),
            (["Who?", "link.png", "-o", "p.html", "--png", "link.png"], "is read by this command"),
            (["Who?", "d.txt"], "say what to write"),
            (["Who?", "d.txt", "-o", "p.html", "--method", "lime"], "'lime' is not one of"),
            (["Who?", "d.txt", "-o", "p.html", "--steps", "0"], "--steps"),
            (["Who?", "-o", "p.html"], "give the document"),
            (["Who?", "d.txt", "--text", "x", "-o", "p.html"], "give the document"),
            (["Who?", "d.txt", "-o", "p.html", "--revision", "main"], "--revision needs a --model"),
        ],
    )
    def test_bad_input_is_found_before_loading(self, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(QuestionAnswerer, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
        Path("d.txt").write_text(SHORT, encoding="utf-8")
        Path("doc.html").write_text(SHORT, encoding="utf-8")
        Path("empty.txt").write_text("")
        Path("bytes.txt").write_bytes(b"a\xff")
        Path("folder.html").mkdir()
        Path("link.png").symlink_to("p.html")
        with pytest.raises(SystemExit) as end:
            main(["explain", *arguments])
        assert end.value.code == 2 and message in capsys.readouterr().err
        assert not Path("p.html").exists() and Path("doc.html").read_text(encoding="utf-8") == SHORT

    def test_a_folder_that_may_not_be_written(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not hold root back
        with pytest.raises(SystemExit) as end:
            main(["explain", "Who?", "--text", SHORT, "-o", str(tmp_path / "p.html")])
        assert end.value.code == 2 and "cannot be written into" in capsys.readouterr().err

    def test_no_matplotlib_is_found_before_loading(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(QuestionAnswerer, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(SystemExit) as end:
            main(["explain", "Who?", "--text", SHORT, "--png", str(tmp_path / "p.png")])
        assert end.value.code == 2 and "pip install matplotlib" in capsys.readouterr().err

    def test_a_model_without_a_head(self, checkpoint, tmp_path, capsys):
        config = LongformerConfig.from_file(checkpoint / "config.json")
        folder = tmp_path / "encoder"
        LongformerModel(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            if (checkpoint / name).exists():
                (folder / name).write_bytes((checkpoint / name).read_bytes())
        with pytest.raises(SystemExit) as end:
            main(["explain", "Who?", "--text", SHORT, "-o", str(tmp_path / "p.html"), "--model", str(folder)])
        err = capsys.readouterr().err
        assert end.value.code == 2 and "qa_outputs" in err and len(err.strip().splitlines()) == 1


def test_the_shipped_positions_repeat(pretrained_dir):
    """docs/explain.md says that tokens 512, 1,024, ... carry the position of a first one."""
    config = LongformerConfig.from_file(pretrained_dir / "config.json")
    with safe_open(pretrained_dir / "model.safetensors", framework="pt") as file:
        positions = file.get_tensor("longformer.embeddings.position_embeddings.weight")[config.pad_token_id + 1 :]
    assert len(positions) == config.max_tokens == 8 * 512
    assert torch.equal(positions, positions[:512].repeat(8, 1))
