"""A page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

SECONDS = 1000.0  # Playwright counts in milliseconds

expect.set_options(timeout=30 * SECONDS)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        # Tests run as root in containers, where Chromium has no sandbox.
        yield playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens a page; fails if it had anything to complain of, a breach of its policy included."""
    complaints: list[str] = []
    contexts = []

    def open_page(url: str, *, token: str | None = None, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        if token is not None:
            context.add_init_script(f"sessionStorage.setItem('chroma-sync-token', '{token}')")
        page = context.new_page()
        page.set_default_timeout(30 * SECONDS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(url)
        expect(page.locator("#page")).to_have_attribute("aria-busy", "false")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # What is refused, or away, the browser notes by itself.
    assert not [one for one in complaints if not one.startswith("Failed to load resource")]
