"""The page of ``longformer parity compare`` in a browser: by mouse, by keyboard, on a phone, in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import opened, running_browser
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_checkpoint

from longformer.cli import main
from longformer.parity import read_trace

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]

EVIL = "<b>Ann</b> </script><script>document.title = 'ran'</script>"
WRONG = "layer.1.local_output"
OUTSIDE = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two traces are compared, of which the second is wrong at one token in one head."""
    folder = tmp_path_factory.mktemp("parity")
    model, text = str(save_tiny_checkpoint(folder / "model", max_tokens=128)), folder / "text.txt"
    text.write_text(EVIL)
    a, b, page = (str(folder / name) for name in ("a.safetensors", "b.safetensors", "page.html"))
    with pytest.raises(SystemExit):
        main(["parity", "record", model, str(text), "--question", "Who?", "-o", a])
    values = load_file(a)
    values[WRONG][0, 1, 20] += 1
    save_file(values, b, metadata=read_trace(a).metadata)
    with pytest.raises(SystemExit) as end:
        main(["parity", "compare", a, b, "--model", model, "--html", page])
    assert end.value.code == 1
    return Path(page)


def test_what_one_sees_first(browser, path):
    """The verdict, what the page shows, and the value that is wrong; the document's own HTML stays text."""
    with opened(browser, path) as page:
        assert "a.safetensors and" in page.title()
        first_screen = (
            page.locator("p, li")
            .filter(visible=True)
            .evaluate_all(
                "all => all.filter(e => e.getBoundingClientRect().bottom <= innerHeight).map(e => e.textContent)"
            )
        )
        assert "different" in first_screen[0] and WRONG in first_screen[0]
        assert any("how far each of the two is from the truth" in text for text in first_screen)
        assert page.input_value("#value") == page.locator("tr.first button").get_attribute("data-value")
        assert page.locator("tr.shown button").inner_text() == WRONG
        spans = page.locator("#text span").all_text_contents()
        assert "".join(spans).count("script") == 3 and page.locator("#text b, #text script").count() == 0


def test_legend(browser, path):
    """It has an entry, with its colour, for each kind of mark in the chart."""
    with opened(browser, path) as page:
        entries = page.locator(".legend span").all_inner_texts()
        assert len(entries) == 4 and entries[0].endswith("a.safetensors") and "what rounding costs" in entries[2]
        assert entries[3] == "further away than rounding explains" and page.locator(".point.far").count() > 0
        ring = page.locator(".legend .far").evaluate("e => getComputedStyle(e).borderTopColor")
        assert page.locator(".point.far").first.evaluate("e => getComputedStyle(e).stroke") == ring
        assert page.locator("#scale").evaluate("e => getComputedStyle(e).backgroundImage").count("rgb") == 8


def test_by_mouse(browser, path):
    with opened(browser, path) as page:
        page.locator("td button", has_text="layer.0.key").click()
        assert page.locator("tr.shown button").inner_text() == "layer.0.key"
        size = page.locator("#map").evaluate("e => [e.width, e.height]")
        assert size == [page.locator("#text span").count(), 2]  # a column a token, a row a head
        page.locator(".point.b.far").first.click()
        assert page.locator("tr.shown button").inner_text() == WRONG
        box = page.locator("#map").bounding_box()
        page.mouse.move(box["x"] + 20.5 * box["width"] / size[0], box["y"] + 0.75 * box["height"])
        said = page.inner_text("#under")
        assert said.startswith("head 1, token 20, ") and float(said.split(": ")[-1].split()[0]) > 1e5


def test_by_keyboard(browser, path):
    focused = "document.activeElement"
    with opened(browser, path) as page:
        stops = []
        while (
            stop := page.evaluate(f"{focused}.id || {focused}.getAttribute('class') || {focused}.tagName")
        ) not in stops:
            stops.append(stop)
            page.keyboard.press("Tab")
            stop = page.evaluate(f"{focused}.id || {focused}.getAttribute('class') || {focused}.tagName")
        assert sum("point" in stop for stop in stops) == 1  # one stop of the tab key among all points
        assert {"value", "run", "map", "text", "BUTTON"} <= set(stops)

        page.locator(".point").first.focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        name = page.evaluate(f"{focused}.getAttribute('aria-label')")
        assert name.split(": ")[0].endswith("b.safetensors, layer.0.query")
        page.keyboard.press("Enter")
        assert page.locator("tr.shown button").inner_text() == "layer.0.query"
        assert page.locator("#run option:checked").inner_text().endswith("b.safetensors")

        page.locator('td button[tabindex="0"]').focus()
        while page.evaluate(f"{focused}.textContent") != WRONG:
            page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        assert page.locator("tr.shown button").inner_text() == WRONG

        page.locator("#map").focus()
        page.keyboard.press("ArrowRight")  # shows where one is
        assert page.inner_text("#under").startswith("head 0, token 0, ")
        page.keyboard.press("PageDown")
        page.keyboard.press("ArrowDown")
        assert page.inner_text("#under").startswith("head 1, token 20, ")
        assert page.locator("#map").get_attribute("aria-valuenow") == "20"
        mark, map_ = (page.locator(name).bounding_box() for name in ("#mark", "#map"))
        assert mark["x"] - map_["x"] == pytest.approx(20 * map_["width"] / page.locator("#text span").count(), abs=3)
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")
        assert page.locator("#map").get_attribute("aria-valuenow") == str(page.locator("#text span").count() - 1)


def test_everything_has_a_name(browser, path):
    nameless = """
        [...document.querySelectorAll("button, select, [role], [tabindex]")].filter(e =>
          !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels && e.labels.length)).map(e => e.outerHTML)
    """
    with opened(browser, path) as page:
        assert page.evaluate(nameless) == []


def test_on_a_phone(browser, path):
    """Nothing but the chart and the tables scrolls sideways, each within itself, and the chart's words can be read."""
    with opened(browser, path, viewport={"width": 360, "height": 740}) as page:
        assert page.evaluate(OUTSIDE) == 360
        page.get_by_text("config of").first.click()
        assert page.evaluate(OUTSIDE) == 360
        chart = page.locator("svg text").first
        assert chart.bounding_box()["height"] > 9
        assert page.locator("svg").evaluate("e => e.parentElement.scrollWidth > e.parentElement.clientWidth")
        assert page.locator("#map").bounding_box()["width"] > 300
        assert page.locator("#example").is_hidden()  # of one there is nothing to choose


def test_in_the_dark(browser, path):
    """Text and ground are far apart in both, and the map's ground is the page's."""

    def contrasts(page: Any) -> list[float]:
        return page.evaluate("""
            () => {
              const light = colour => {
                const part = colour.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
                  .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
                return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
              };
              const ground = e => {
                const own = getComputedStyle(e).backgroundColor;
                return own !== "rgba(0, 0, 0, 0)" || !e.parentElement ? own : ground(e.parentElement);
              };
              const kinds = "h1, h2, p, li, td, th, .verdict, svg text, #text span:not(.padding)";
              return [...document.querySelectorAll(kinds)].filter(e => e.textContent.trim()).map(e => {
                const style = getComputedStyle(e), ink = e.closest("svg") ? style.fill : style.color;
                const two = [light(ink), light(ground(e))];
                return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
              });
            }
        """)

    picture = "document.getElementById('map').toDataURL()"
    with opened(browser, path, color_scheme="light") as page:
        page.select_option("#value", index=0)
        assert min(contrasts(page)) > 4.5
        before = page.evaluate(picture)
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(24, 24, 24)"
        assert min(contrasts(page)) > 4.5
        page.wait_for_function(f"before => {picture} !== before", arg=before)  # the page is told with the next frame
        ground = page.locator("#text span").first.evaluate("e => getComputedStyle(e).backgroundColor")
        assert max(map(int, ground[4:-1].split(","))) < 160  # what is right is not white there
