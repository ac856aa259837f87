"""Debian's Chromium, headless, by playwright."""

import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

from agent.cli.demo.images import LabMissing

_PROGRAM = "chromium"


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser for as long as the block does.

    Raises:
        LabMissing: there is none.
    """
    path = shutil.which(_PROGRAM)
    if path is None:
        raise LabMissing("there is no chromium: run tests/lab/install test")
    async with async_playwright() as playwright:
        # Root, whom containers run tests as, has no sandbox in Chromium; it opens nothing here but our own page.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:
    """Open a page until it is live; what its console complains of is an error at the end, but that an agent did not answer."""
    complaints: list[str] = []
    context = await browser.new_context(locale="en-GB", **options)
    try:
        page = await context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        await page.get_by_role("status").filter(has_text="live").wait_for()
        yield page
    finally:
        await context.close()
    assert [text for text in complaints if "net::ERR_" not in text] == []
