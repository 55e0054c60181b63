"""The page of ``longformer explain`` in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import opened, running_browser
from explained import dense_of_model, kept
from tiny_checkpoint import save_tiny_checkpoint

from longformer import QuestionAnswerer
from longformer.explain import Explanation, explain, write_page
from longformer.explain.packing import FLOOR, STEP
from longformer.kernels import AttentionPattern

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]

QUESTION = "Who fell?"
DOCUMENT = "Dan fell.\nAnn did not. <b>Ü</b> 1 < 2 & 3"
EVIL = "<b>D</b></script><script>document.title = 7</script>&amp;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> QuestionAnswerer:
    return QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint")))


@pytest.fixture(scope="module")
def found(answerer: QuestionAnswerer) -> Explanation:
    return explain(answerer, QUESTION, DOCUMENT, entries=1500, steps=20)


@pytest.fixture(scope="module")
def path(found: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, found)
    return path


def shown(page: Any) -> dict[int, float]:
    """Tokens to the weights that are drawn."""
    return {int(i): p for i, p in page.evaluate("touched.map(i => [i, weight[i]])")}


def expected(found: Explanation, token: int, layers: list[int], heads: list[int]) -> dict[int, float]:
    weights: dict[int, float] = {}
    for layer in layers:
        for head in heads:
            for column, p in kept(found, layer, head, token)[0].items():
                weights[column] = weights.get(column, 0) + p / len(layers) / len(heads)
    return weights


def test_it_opens_and_marks_the_answers(browser, found, path):
    with opened(browser, path) as page:
        assert page.title() == QUESTION
        lead = page.inner_text("#lead")
        assert lead.startswith(" ".join(found.answers[0].text.split()))
        texts = page.locator("#text").evaluate("e => e.textContent")
        assert texts.replace("·", "").startswith(DOCUMENT[:20])
        first, last = found.passage.spans[0]
        best = page.locator("#text .best").evaluate_all("all => all.map(e => +e.dataset.i)")
        assert best == list(range(first, last + 1))
        ranks = page.locator(".ranked").evaluate_all("all => all.flatMap(e => e.dataset.rank.split(' ')).map(Number)")
        assert sorted(ranks) == [1, 2, 3, 4, 5]
        listed = page.locator("#answers button").all_inner_texts()
        assert [" ".join(row.split()[1:-2]) for row in listed] == [
            " ".join(answer.text.split()) for answer in found.answers
        ]
        # What is drawn at first is the answer's first token, all heads taken together.
        assert shown(page) == pytest.approx(expected(found, first, [0, 1], [0, 1]))


def test_a_click_changes_the_picture(browser, found, path):
    with opened(browser, path) as page:
        before = page.locator("#curves").evaluate("c => c.toDataURL()")
        token = found.passage.kinds.index("d") + 20
        page.locator(f'[data-i="{token}"]').click()
        assert shown(page) == pytest.approx(expected(found, token, [0, 1], [0, 1]))
        assert page.locator(".chosen").get_attribute("data-i") == str(token)
        assert page.locator("#curves").evaluate("c => c.toDataURL()") != before
        # The window, 4 on each side, has its edges marked; a global token is drawn as such.
        assert page.locator(".from").get_attribute("data-i") == str(token - 4)
        assert page.locator(".to").get_attribute("data-i") == str(token + 4)
        local = page.locator(".local").evaluate_all("all => all.map(e => +e.dataset.i)")
        assert local and all(abs(i - token) <= 4 for i in local)
        drawn = page.locator(".global").evaluate_all("all => all.map(e => +e.dataset.i)")
        assert drawn and max(drawn) < found.passage.kinds.index("s", 1)
        for layer, head in ((1, 0), (0, 1)):
            page.select_option("#layer", label=str(layer))
            page.select_option("#head", label=str(head))
            assert shown(page) == pytest.approx(expected(found, token, [layer], [head]))
        page.select_option("#layer", label="mean of 2")
        assert shown(page) == pytest.approx(expected(found, token, [0, 1], [1]))
        assert f"token {token}" in page.inner_text("#summary")
        # A global token sees everything: it has no edge.
        page.locator('[data-i="2"]').click()
        assert shown(page) == pytest.approx(expected(found, 2, [0, 1], [1]))
        assert page.locator(".from, .to").count() == 0


def test_windows_with_gaps(browser, tmp_path):
    """Checked against the model's dense attention, so that script and packing cannot be wrong alike."""
    folder = save_tiny_checkpoint(tmp_path, attention_dilation=((1, 3), 2))
    answerer = QuestionAnswerer.from_pretrained(folder)
    found = explain(answerer, QUESTION, DOCUMENT)
    true = dense_of_model(answerer, torch.from_numpy(found.passage.ids)).numpy()
    write_page(tmp_path / "gaps.html", found)
    token = found.passage.kinds.index("d") + 15
    with opened(browser, tmp_path / "gaps.html") as page:
        page.locator(f'[data-i="{token}"]').click()
        for layer, head, reach in ((0, 0, 4), (0, 1, 12), (1, 0, 8), (0, None, 12), (None, None, 12)):
            page.select_option("#layer", label="mean of 2" if layer is None else str(layer))
            page.select_option("#head", label="mean of 2" if head is None else str(head))
            layers, heads = ([0, 1] if which is None else [which] for which in (layer, head))
            rows, drawn = true[np.ix_(layers, heads)][:, :, token].mean(axis=(0, 1)), np.zeros(true.shape[-1])
            for i, p in shown(page).items():
                drawn[i] = p
            np.testing.assert_allclose(drawn, rows, rtol=STEP + 1e-4, atol=1.1 * FLOOR)
            assert page.locator(".from").get_attribute("data-i") == str(token - reach)
            assert page.locator(".to").get_attribute("data-i") == str(token + reach)


def test_strongest_targets(browser, found, path):
    with opened(browser, path) as page:
        weights = shown(page)
        order = page.locator("#targets button").evaluate_all("all => all.map(e => +e.dataset.go)")
        assert [weights[i] for i in order] == sorted(weights.values(), reverse=True)[:8]
        page.locator("#targets button").nth(1).click()
        assert "token " + str(order[1]) in page.inner_text("#hover")


def test_rollout(browser, found, path):
    with opened(browser, path) as page:
        page.get_by_label("the answer’s rollout").check()
        page.locator('[data-answer="1"]').click()
        for depth in (2, 1):
            page.locator("#depth").fill(str(depth))
            true, drawn = found.rollout[depth - 1, 1].numpy(), np.zeros(found.rollout.shape[2])
            for i, p in shown(page).items():
                drawn[i] = p
            np.testing.assert_allclose(drawn[true > 2 * FLOOR], true[true > 2 * FLOOR], rtol=STEP + 1e-6)
        assert page.locator(".rolled").count() > 2 and page.locator(".local, .global").count() == 0
        page.locator(f'[data-i="{found.passage.kinds.index("d")}"]').click()
        assert page.locator(".rolled").count() == 0 and page.locator("#grid").is_visible()


def test_which_tokens_count(browser, found, path):
    """What is drawn is the attribution, with its sign; the curves' numbers are in a table."""
    titles = {"integrated-gradients": "integrated gradients", "attention-gradient": "attention × gradient"}
    with opened(browser, path) as page:
        page.get_by_label("which tokens count").check()
        for name, title in {**titles, "rollout": "rollout"}.items():
            both, curve = found.attributions[name], found.curves.of[name]
            page.select_option("#method", label=title)
            for side, label in ((0, "the start score"), (1, "the end score"), (2, "start and end")):
                page.select_option("#side", label=label)
                together = both.sum(0) if name == "integrated-gradients" else both.mean(0)
                true, drawn = (together if side == 2 else both[side]).numpy(), np.zeros(both.shape[1])
                for i, p in shown(page).items():
                    drawn[i] = p
                np.testing.assert_allclose(drawn, true, rtol=0.01, atol=0.002 * np.abs(both.numpy()).max())
                order = page.locator("#targets button").evaluate_all("all => all.map(e => +e.dataset.go)")
                assert order == np.abs(drawn).argsort(kind="stable")[::-1][:8].tolist()
                assert title in page.inner_text("#summary") and label in page.inner_text("#summary")
            if name == "integrated-gradients":
                assert page.locator(".against").count() > 0 and "−" in page.inner_text("#targets")
                said = re.search(
                    r"parts sum to (-?\d+\.\d+); all tokens together make (-?\d+\.\d+)", page.inner_text("#summary")
                )
                assert float(said[1]) == pytest.approx(float(both.sum()), abs=0.006)
                assert float(said[2]) == pytest.approx(curve.deletion[0] - curve.deletion[-1], abs=0.006)
            rows = page.locator("#figures tbody tr").evaluate_all(
                "rows => rows.map(r => [...r.children].map(c => c.textContent))"
            )
            chance = found.curves.of["random"]
            series = (found.curves.counts, curve.deletion, curve.insertion, chance.deletion, chance.insertion)
            for row, numbers in zip(rows, zip(*series, strict=True), strict=True):
                assert [float(cell) for cell in row] == pytest.approx(numbers, abs=0.006)
            assert page.locator("#trials polyline").count() == 4
            assert title in page.locator("#trials").get_attribute("aria-label")
        assert page.locator(".local, .global").count() == 0 and page.locator("#grid").is_hidden()
        verdict = page.inner_text("#verdict")
        best = {**titles, "rollout": "rollout", "random": "No method does better than chance"}[found.curves.best]
        assert best in verdict.split(". ", 2)[-1]
        page.locator(f'[data-i="{found.passage.kinds.index("d")}"]').click()
        assert page.locator(".against").count() == 0 and page.locator("#for-attribution").is_hidden()


def test_which_tokens_count_by_keyboard(browser, path):
    with opened(browser, path) as page:
        page.get_by_label("a token’s attention").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        assert page.locator("#for-attribution").is_visible()
        reached = []
        for _ in range(3):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert reached == ["method", "side", "SUMMARY"]
        page.keyboard.press("Enter")
        assert page.locator("#figures").is_visible()
        page.locator("#method").focus()
        page.keyboard.press("ArrowDown")
        assert page.evaluate("state.method") == 1
        assert "attention × gradient" in page.locator('[aria-live="polite"]').inner_text()


def test_without_attributions_none_are_offered(browser, answerer, tmp_path):
    write_page(tmp_path / "page.html", explain(answerer, QUESTION, DOCUMENT, methods=[]))
    with opened(browser, tmp_path / "page.html") as page:
        assert page.locator("#offer").is_hidden() and page.get_by_label("the answer’s rollout").is_visible()


def test_other_global_tokens_and_a_layer_without_a_window(browser, tmp_path):
    answerer = QuestionAnswerer.from_pretrained(save_tiny_checkpoint(tmp_path / "checkpoint"))
    answerer.global_mask = lambda ids: (torch.arange(ids.shape[1]) % 7 == 3).expand(ids.shape)
    answerer.model.longformer.encoder.layer[1].attention.self.pattern = AttentionPattern(None)
    found = explain(answerer, QUESTION, DOCUMENT, methods=[])
    true = dense_of_model(answerer, torch.from_numpy(found.passage.ids)).numpy()
    write_page(tmp_path / "page.html", found)
    last = len(found.passage.ids) - 1
    with opened(browser, tmp_path / "page.html") as page:
        assert page.locator("#asked").get_attribute("aria-label") == "Question"
        assert f"{(last + 4) // 7} tokens are global, as this answerer chooses" in page.inner_text("#about")
        for token in (17, 22):  # the first is global
            page.locator(f'[data-i="{token}"]').click()
            for layer in (0, 1, None):
                page.select_option("#layer", label="mean of 2" if layer is None else str(layer))
                layers, drawn = [0, 1] if layer is None else [layer], np.zeros(last + 1)
                for i, p in shown(page).items():
                    drawn[i] = p
                np.testing.assert_allclose(
                    drawn, true[layers, :, token].mean(axis=(0, 1)), rtol=STEP + 1e-4, atol=1.1 * FLOOR
                )
                if token == 22:
                    assert page.locator(".from").count() == (layer == 0)  # without a window there is no edge
                expected = " in the window" if token == 22 and layer == 0 else " on others"
                assert expected in page.inner_text("#summary")


def test_keyboard(browser, found, path):
    with opened(browser, path) as page:
        first = found.passage.spans[0][0]
        assert page.locator(".tokens [tabindex]").count() == 1  # one stop of the tab key among all tokens
        page.locator(f'[data-i="{first}"]').focus()
        page.keyboard.press("ArrowRight")
        focused = "document.activeElement.dataset.i"
        assert page.evaluate(focused) == str(first + 1)
        assert page.locator(".chosen").get_attribute("data-i") == str(first)
        page.keyboard.press("Enter")
        assert page.locator(".chosen").get_attribute("data-i") == str(first + 1)
        assert page.locator('[role="button"][aria-pressed="true"]').get_attribute("data-i") == str(first + 1)
        assert f"token {first + 1}," in page.locator('[aria-live="polite"]').inner_text()
        page.keyboard.press("Home")
        assert page.evaluate(focused) == "0"
        page.keyboard.press("ArrowDown")
        assert int(page.evaluate(focused)) >= found.passage.kinds.index("d")
        page.keyboard.press("Home")
        page.keyboard.press("n")
        assert page.evaluate(focused) == str(min(span[0] for span in found.passage.spans))
        page.keyboard.press("Home")
        page.keyboard.press("Shift+N")
        assert page.evaluate(focused) == str(min(span[0] for span in found.passage.spans))
        # The slider and the button say what is so, however it came about.
        assert page.locator("#curves").get_attribute("aria-valuenow") == str(first + 1)
        page.get_by_label("the answer’s rollout").check()
        assert page.locator('[role="button"][aria-pressed="true"]').count() == 0
        page.get_by_label("a token’s attention").check()
        # Layers and heads, by arrow keys.
        page.locator('#grid [aria-checked="true"]').focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "layer 0, head 0"
        assert shown(page) == pytest.approx(expected(found, first + 1, [0], [0]))
        # The curves are a slider.
        page.locator("#curves").focus()
        page.keyboard.press("End")
        last = len(found.passage.ids) - 1
        assert page.locator("#curves").get_attribute("aria-valuenow") == str(last)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        assert page.locator(".chosen").get_attribute("data-i") == str(last - 1)


def test_everything_has_a_name(browser, path):
    with opened(browser, path) as page:
        nameless = """
            [...document.querySelectorAll("button, select, input, [role], [tabindex], section, aside")].filter(e =>
              !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels && e.labels.length))
              .map(e => e.outerHTML)
        """
        assert page.evaluate(nameless) == []


def test_a_document_stays_text(browser, answerer, tmp_path):
    found = explain(answerer, "<i>?", EVIL, max_answer_tokens=10)
    write_page(tmp_path / "evil.html", found)
    with opened(browser, tmp_path / "evil.html") as page:
        assert page.title() == "<i>?" and page.inner_text("h1") == "<i>?"
        text = page.locator("#reading").evaluate("e => e.textContent")
        shown_text = "".join(text.replace("·", "").split())  # a token without text is shown as a dot
        passage = found.passage
        inside = [i for i, kind in enumerate(passage.kinds) if kind == "d"]
        ours = "".join(passage.gaps[i] + passage.texts[i] for i in inside)
        assert "".join(ours.split()) in shown_text and "<script>" in ours
        assert page.locator("#reading b, #reading script, #reading i").count() == 0


def test_a_part_of_a_long_document(browser, answerer, tmp_path):
    found = explain(answerer, QUESTION, "Dan fell. Ann did not. " * 6, max_answer_tokens=10, top_k=300)
    assert any(span is None for span in found.passage.spans)
    write_page(tmp_path / "long.html", found)
    with opened(browser, tmp_path / "long.html") as page:
        said = page.inner_text("#window")
        assert f"{found.passage.windows} overlapping windows" in said
        assert page.locator("#answers button:disabled").count() == sum(span is None for span in found.passage.spans)


def test_light_and_dark(browser, path):
    def back(page: Any) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    with opened(browser, path, color_scheme="light") as page:
        assert back(page) > 700
        page.emulate_media(color_scheme="dark")
        assert back(page) < 120
        page.locator("#theme").click()  # auto to light
        assert back(page) > 700 and page.locator("#theme").get_attribute("aria-label") == "Colours: light"
        page.locator("#theme").click()
        page.emulate_media(color_scheme="light")
        assert back(page) < 120


def test_text_from_right_to_left(browser, answerer, tmp_path):
    document = "שלום\nabc"
    found = explain(answerer, "Who?", document, max_answer_tokens=10)
    write_page(tmp_path / "page.html", found)
    begin = found.passage.kinds.index("d")
    middle = "e => { const box = e.getBoundingClientRect(); return (box.left + box.right) / 2; }"
    with opened(browser, tmp_path / "page.html") as page:
        half = page.locator("#text").evaluate(middle)
        texts = found.passage.texts
        assert page.locator(f'[data-i="{texts.index("ש", begin)}"]').evaluate(middle) > half
        assert page.locator(f'[data-i="{texts.index("a", begin)}"]').evaluate(middle) < half


def test_narrow(browser, path):
    with opened(browser, path, viewport={"width": 400, "height": 800}, reduced_motion="reduce") as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.evaluate("calm.matches")
        assert page.locator("#panel").is_visible() and page.locator("#text").is_visible()
        page.get_by_label("which tokens count").check()
        page.get_by_text("The curves in numbers").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.locator("#trials").bounding_box()["width"] > 250
        assert page.evaluate(
            "document.getElementById('panel').scrollWidth <= document.getElementById('panel').clientWidth"
        )


@pytest.mark.parametrize("length", [1024, pytest.param(4096, marks=pytest.mark.exhaustive)])
def test_the_shipped_checkpoint(browser, pretrained_dir, tmp_path, length):
    document = (pretrained_dir.parent / "data" / "constitution.txt").read_text(encoding="utf-8")
    found = explain(
        QuestionAnswerer.from_pretrained(pretrained_dir),
        "How old must a person be to become President?",
        document[: 6 * length],
        methods=["rollout"],
        max_length=length,
    )
    assert len(found.passage.ids) == length
    middle = length // 2
    write_page(tmp_path / "page.html", found)
    assert (tmp_path / "page.html").stat().st_size < 15e6
    torch.testing.assert_close(found.rollout.sum(dim=-1), torch.ones(found.rollout.shape[:2]), rtol=0, atol=1e-4)
    with opened(browser, tmp_path / "page.html") as page:
        assert page.locator(".tokens span[data-i]").count() == length
        page.locator(f'[data-i="{middle}"]').click()
        layers, heads = list(range(6)), list(range(12))
        assert shown(page) == pytest.approx(expected(found, middle, layers, heads))
        assert page.locator(".from").get_attribute("data-i") == str(middle - 256)
        assert page.locator(".to").get_attribute("data-i") == str(middle + 256)
        page.select_option("#layer", label="5")
        page.select_option("#head", label="11")
        assert shown(page) == pytest.approx(expected(found, middle, [5], [11]))
