"""The page of a fake host with many VMs, in a browser."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page

from agent.http.connection_limits import ConnectionLimits
from agent.http.sse import SseSendIntervals
from tests.lab.browser import open_page
from tests.lab.endpoint import RunningEndpoint
from tests.lab.page_host import FakeHost

TIMING = SseSendIntervals(overview_seconds=0.05)
PATIENT = ConnectionLimits(header_seconds=600.0, idle_seconds=600.0, read_seconds=600.0)
"""A browser under load may take long from a connection to its first request."""


@dataclass(frozen=True, slots=True)
class LivePage:
    """A fake host, and its page in a browser."""

    host: FakeHost
    page: Page
    url: str


@contextlib.asynccontextmanager
async def live_page(
    browser: Browser,
    folder: Path,
    count: int,
    hash_: str = "",
    *,
    seconds: int = 0,
    healthy: bool = False,
    **options: Any,
) -> AsyncIterator[LivePage]:
    """Serve a fake host and open its page while the `with` block runs.

    Args:
        browser: the browser.
        folder: directory for the endpoint's files.
        count: the number of VMs.
        hash_: the view, such as `#/storage`.
        seconds: how long the host has run.
        healthy: whether no VM is in trouble.
        options: options of the browser's context, such as the size of the window.
    """
    host = FakeHost(count, time.time() - seconds, healthy=healthy)
    for _ in range(seconds):
        host.step()
    host.publish_events()
    async with (
        RunningEndpoint(folder, limits=PATIENT, timing=TIMING, view=host).open() as endpoint,
        open_page(browser, f"{endpoint.url}/{hash_}", **options) as page,
    ):
        yield LivePage(host, page, endpoint.url)
