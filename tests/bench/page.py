"""The page in Chromium, with 10 to 1,000 VMs: time to the first row, work of an update, size of the document, bytes of an update.

A first visit has an empty cache. At a later one, the browser has the page's files.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

from playwright.async_api import Browser, CDPSession

from agent.http.sse import SseSendIntervals
from tests.bench.table import Row
from tests.lab.browser import chromium
from tests.lab.endpoint import RunningEndpoint
from tests.lab.page_host import FakeHost

COUNTS: Final = (10, 100, 500, 1000)
UPDATE_SECONDS: Final = 0.25
"""A quarter of an update's interval in production, so that the measurement is short."""
MAX_NODES: Final = 4000
MAX_FIRST_ROW_SECONDS: Final = 1.0

FIRST_ROW: Final = """
new MutationObserver((_, observer) => {
  if (!document.querySelector('a[href^="#/vm/"]')) return;
  observer.disconnect();
  requestAnimationFrame(() => { window.firstRow = performance.now(); });
}).observe(document, { childList: true, subtree: true });
"""

ROW_SEEN: Final = """
new Promise((resolve) => {
  const check = () => (window.firstRow ? resolve(window.firstRow) : requestAnimationFrame(check));
  check();
})
"""


async def metrics(session: CDPSession) -> dict[str, float]:
    """Return Chromium's counters of the page's work, in seconds."""
    answer = await session.send("Performance.getMetrics")
    return {entry["name"]: entry["value"] for entry in answer["metrics"]}


async def measure(browser: Browser, host: FakeHost, updates: int) -> dict[str, float]:
    """Open the page, let the host change, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        timing = SseSendIntervals(overview_seconds=UPDATE_SECONDS)
        async with RunningEndpoint(Path(folder), timing=timing, view=host).open() as endpoint:
            context = await browser.new_context(viewport={"width": 1400, "height": 900})
            try:
                page = await context.new_page()
                session = await context.new_cdp_session(page)
                received: list[int] = []
                session.on("Network.dataReceived", lambda event: received.append(event["dataLength"]))
                await session.send("Performance.enable")
                await session.send("Network.enable")
                await page.add_init_script(FIRST_ROW)
                await page.goto(endpoint.url)
                await page.locator('a[href^="#/vm/"]').first.wait_for()
                await asyncio.sleep(1)  # the first message is processed
                first: float = await page.evaluate(ROW_SEEN)
                opened = sum(received)
                before = await metrics(session)
                received.clear()
                for _ in range(updates):
                    host.step()
                    await asyncio.sleep(UPDATE_SECONDS)
                after = await metrics(session)
                nodes: int = await page.evaluate("document.querySelectorAll('*').length")
                await page.goto("about:blank")
                await page.goto(endpoint.url)
                await page.locator('a[href^="#/vm/"]').first.wait_for()
                return {
                    "first row": first / 1000,
                    "later visit": await page.evaluate(ROW_SEEN) / 1000,
                    "script": (after["ScriptDuration"] - before["ScriptDuration"]) / updates,
                    "task": (after["TaskDuration"] - before["TaskDuration"]) / updates,
                    "nodes": nodes,
                    "opened": opened,
                    "update": sum(received) / updates,
                }
            finally:
                await context.close()


async def page(*, short: bool) -> list[Row]:
    """Return the rows. The ratio of the work is to a host with a hundredth of the VMs."""
    rows, smallest = [], 0.0
    async with chromium() as browser:
        for count in COUNTS:
            runs = [await measure(browser, FakeHost(count, time.time()), 20) for _ in range(1 if short else 3)]
            figures: dict[str, Any] = {name: median(run[name] for run in runs) for name in runs[0]}
            smallest = smallest or figures["task"]
            rows += _rows(count, figures, smallest)
    return rows


def _rows(count: int, figures: dict[str, float], smallest: float) -> list[Row]:
    vms, first, nodes = f"{count} VMs", figures["first row"], figures["nodes"]
    script, task = figures["script"] * 1000, figures["task"] * 1000
    sizes = f"{figures['opened'] / 1024:.0f} KiB, then {figures['update'] / 1024:.1f} KiB an update"
    return [
        Row(f"page, {vms}: first row", f"{first * 1000:.0f} ms", None, "", "< 1 s", first < MAX_FIRST_ROW_SECONDS),
        Row(f"page, {vms}: first row of a later visit", f"{figures['later visit'] * 1000:.0f} ms"),
        Row(
            f"page, {vms}: an update",
            f"{script:.1f} ms of script, {task:.1f} ms in all",
            figures["task"] / smallest,
            "10 VMs",
        ),
        Row(f"page, {vms}: elements", f"{nodes:.0f}", None, "", f"< {MAX_NODES}", nodes < MAX_NODES),
        Row(f"page, {vms}: received", sizes),
    ]
