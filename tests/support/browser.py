"""The browser of the machine: tests that need one say so where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str:
    """Path of Chromium or Chrome. Skips where none is installed."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


@contextmanager
def running_browser() -> Iterator[Any]:
    """Playwright's browser. Starting it takes seconds, so a module of tests has one."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, **how: Any) -> Iterator[Any]:
    """The page, once it has drawn itself. Fails where it had an error or asked for anything but itself."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **how})
    page, complaints, requests = context.new_page(), [], []
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    yield page
    context.close()
    assert complaints == []
    assert requests == [path.as_uri()]
