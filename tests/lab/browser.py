"""Debian's Chromium, headless, driven by playwright."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, Page, async_playwright, expect

from agent.cli.demo.images import MissingDependencyError

_PROGRAM = "chromium"
TIMEOUT_MS = 600_000
"""Timeout of everything that a test expects on a page: long, because the machine may be under load."""

expect.set_options(timeout=TIMEOUT_MS)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser while the `with` block runs.

    Raises:
        MissingDependencyError: Chromium is not installed.
    """
    path = shutil.which(_PROGRAM)
    if path is None:
        raise MissingDependencyError("chromium is not installed: run tests/lab/install test")
    async with async_playwright() as playwright:
        # Chromium has no sandbox for root, and tests in containers run as root. It opens only the agent's page.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def open_page(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:
    """Open the agent's page and wait until it is live. Errors and warnings in the console then fail the test, except lost connections."""
    messages: list[str] = []
    context = await browser.new_context(locale="en-GB", **options)
    try:
        page = await context.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", lambda entry: messages.append(entry.text) if entry.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: messages.append(str(error)))
        await page.goto(url)
        await page.get_by_role("status").filter(has_text="live").wait_for()
        yield page
    finally:
        await context.close()
    assert [text for text in messages if "net::ERR_" not in text] == []
