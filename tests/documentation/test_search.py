"""The site's search in a page that is opened as a file: docs/worker.js in the place of a Worker."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browser import find_browser

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.xdist_group("browser")
def test_a_worker_of_a_file(tmp_path: Path) -> None:
    """What is sent before the script is loaded waits; what the script sends back arrives; other scripts are fetched."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    shutil.copy(ROOT / "docs" / "worker.js", tmp_path)
    (tmp_path / "workers").mkdir()
    (tmp_path / "more.js").write_text("self.twice = (x) => 2 * x;")
    (tmp_path / "workers" / "echo.js").write_text(
        "addEventListener('message', async (event) => {"
        " await importScripts('../more.js');"
        " postMessage({ got: twice(event.data), page: 'IFrameWorker' in parent }); });"
    )
    (tmp_path / "page.html").write_text(
        "<body><script src='worker.js'></script><script>"
        "const worker = new Worker('workers/echo.js'); const answers = [];"
        "worker.addEventListener('message', (event) => answers.push(event.data));"
        "worker.postMessage(1); setTimeout(() => worker.postMessage(21), 100);"
        "</script></body>"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("answers.length == 2")
        assert page.evaluate("answers") == [{"got": 2, "page": True}, {"got": 42, "page": True}]
        browser.close()
