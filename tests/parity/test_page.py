"""The HTML page in a browser: it draws, it answers a click, and a document's own HTML stays text."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from browser import find_browser
from tiny_checkpoint import save_tiny_checkpoint

from longformer.cli import main

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000", "--dump-dom"),
)
EVIL = "The Senate tries <b>impeachments</b>. </script><script>document.title = 'ran'</script>"


@pytest.fixture
def browser() -> str:
    return find_browser()


def rendered(browser: str, page: Path, script: str = "") -> str:
    """The document after its scripts have run, and ``script`` after them."""
    copy = page.with_name("copy.html")
    # Anything that the page tried to fetch, or that failed in it, would be written into the document.
    watch = "<script>onerror = e => { document.title = 'failed: ' + e; }</script>"
    copy.write_text(page.read_text().replace("<title>", f"{watch}<title>", 1) + f"<script>{script}</script>")
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={page.parent / 'profile'}", copy.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "HOME": str(page.parent)},
    )
    return done.stdout


@pytest.mark.slow
def test_in_a_browser(browser: str, tmp_path: Path) -> None:
    model = save_tiny_checkpoint(tmp_path / "model", max_position_embeddings=202, initializer_range=0.1)
    (tmp_path / "evil.txt").write_text(EVIL)
    page = tmp_path / "page.html"
    arguments = ["ours", "ours:bfloat16", str(tmp_path / "evil.txt"), "--question", "Who?"]
    with pytest.raises(SystemExit) as end:
        main(["parity", "compare", *arguments, "--model", str(model), "--html", str(page)])
    assert end.value.code == 0

    script = """
        document.querySelector('tr[data-value="2"]').click();
        const canvas = document.getElementById("map");
        document.body.dataset.map = canvas.width + "x" + canvas.height;
        const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        document.body.dataset.colours = new Set(Array.from({length: dots.length / 4},
          (_, i) => dots.slice(4 * i, 4 * i + 3).join())).size;
        document.body.dataset.fetched = performance.getEntriesByType("resource").length;
        canvas.dispatchEvent(new MouseEvent("mousemove", {clientX: 300}));
    """
    shown = rendered(browser, page, script)
    assert "<title>ours and ours:bfloat16</title>" in shown
    assert 'data-fetched="0"' in shown
    assert re.search(r'<tr class="rounding shown" data-value="2"><td>layer\.0\.key</td>', shown)
    text = re.search(r'<div id="text">(.*?)</div>', shown, re.DOTALL)
    assert text is not None
    spans = re.findall(r"<span[^>]*>([^<]*)</span>", text[1])
    assert "".join(spans).count("script") == 3 and "&lt;" in spans
    assert f'data-map="{len(spans)}x2"' in shown  # a column a token, a row a head
    colours = re.search(r'data-colours="([0-9]+)"', shown)
    assert colours is not None and int(colours[1]) > 3
    assert re.search(r'id="under">head \d+, token \d+, .*times the noise', shown)
