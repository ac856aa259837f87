"""How the page loads: which files a browser requests, when the stream opens, and what happens when a file does not arrive."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from playwright.async_api import Page, Request, Route, expect

from tests.lab.browser import TIMEOUT_MS, chromium
from tests.lab.endpoint import RunningEndpoint
from tests.lab.live_page import TIMING, live_page
from tests.lab.page_host import FakeHost
from tests.lab.waiting import until

MODULES: Final = [*(Path(__file__).parents[2] / "agent/http/page").glob("*.js")]
RECEIVED_FILES: Final = """
performance.getEntriesByType("resource").filter(({ name, transferSize }) => name.includes("/page/") && transferSize > 0).length
"""
"""The number of the page's files that did not come from the browser's cache."""


class LoadingPage:
    """A page whose module `overview.js` arrives only after a call of `release`.

    Attributes:
        host: the fake host.
        page: the page in a browser.
        streams: the requests for the overview stream.
    """

    def __init__(self, host: FakeHost, page: Page) -> None:
        self.host = host
        self.page = page
        self.streams: list[Request] = []
        self._released = asyncio.Event()
        page.on(
            "request", lambda request: self.streams.append(request) if request.url.endswith("overview/live") else None
        )

    def release(self) -> None:
        self._released.set()

    async def open(self, url: str) -> None:
        async def hold(route: Route) -> None:
            await self._released.wait()
            await route.continue_()

        await self.page.route("**/overview.js", hold)
        await self.page.goto(url, wait_until="commit")


@contextlib.asynccontextmanager
async def loading_page(folder: Path) -> AsyncIterator[LoadingPage]:
    """Open a page, and wait until it has opened the stream."""
    host = FakeHost(3, time.time())
    async with chromium() as browser, RunningEndpoint(folder, timing=TIMING, view=host).open() as endpoint:
        loading = LoadingPage(host, await browser.new_page())
        loading.page.set_default_timeout(TIMEOUT_MS)
        async with loading.page.expect_request("**/overview/live"):
            await loading.open(endpoint.url)
        yield loading


async def test_a_second_visit_requests_no_file_of_the_page(folder: Path) -> None:
    async with chromium() as browser, live_page(browser, folder, 3) as live:
        await live.page.wait_for_function(f"{RECEIVED_FILES} >= {len(MODULES)}")  # the views load after the first rows
        await live.page.goto("about:blank")
        await live.page.goto(live.url)
        await expect(live.page.locator("#vms .rows [role=row]")).to_have_count(3)
        assert await live.page.evaluate(RECEIVED_FILES) == 0


async def test_the_stream_opens_while_the_modules_load_and_the_page_continues_it(folder: Path) -> None:
    async with loading_page(folder) as loading:
        loading.release()
        await expect(loading.page.locator("#vms .rows [role=row]")).to_have_count(3)
        loading.host.leave(loading.host.vms[0])
        await expect(loading.page.locator("#vms-title")).to_have_text("VMs (2)")
        assert len(loading.streams) == 1


async def test_a_page_whose_modules_do_not_load_closes_its_stream(folder: Path) -> None:
    async with loading_page(folder) as loading:
        closed: list[Request] = []

        def on_failed(request: Request) -> None:
            closed.append(request)

        loading.page.on("requestfailed", on_failed)

        async def change_until_closed() -> bool:
            loading.host.step()
            return closed == loading.streams

        await until(change_until_closed)
        loading.release()
        await expect(loading.page.locator("#vms .rows [role=row]")).to_have_count(3)
        assert len(loading.streams) == 2


async def test_a_view_whose_modules_did_not_load_opens_after_the_next_message(folder: Path) -> None:
    host = FakeHost(3, time.time())
    async with chromium() as browser, RunningEndpoint(folder, timing=TIMING, view=host).open() as endpoint:
        page = await browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        await page.route("**/vm-view.js", lambda route: route.abort())
        await page.goto(endpoint.url)
        await page.locator("#vms").get_by_role("link", name="web-1").click()
        await expect(page.get_by_role("status")).to_have_text("the agent does not answer; reconnecting")
        await page.unroute("**/vm-view.js")
        host.step()
        await expect(page.locator("#vm h2").first).to_contain_text("web-1")
