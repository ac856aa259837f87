"""Takes screenshots of every view of the page, with 3, 60 and 500 VMs of a fake host, in light and dark, wide and on a phone."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page

from tests.lab.live_page import live_page

VM: Final = "00000009-1111-4111-8111-111111111111"  # has a full disk, an alert and a guest agent
FIRST_VM: Final = "00000000-1111-4111-8111-111111111111"
VIEWS: Final = {
    "vms": "#/",
    "vms-by-write": "#/?sort=write&q=label:owner=web",
    "vm": "#/vm/{vm}",
    "vm-disks": "#/vm/{vm}?tab=disks",
    "vm-cpu": "#/vm/{vm}?tab=cpu&range=1h",
    "vm-guest": "#/vm/{vm}?tab=guest",
    "vm-events": "#/vm/{vm}?tab=events",
    "storage": "#/storage",
    "pool": "#/pool/filesystem/%2Fvar%2Flib%2Flibvirt%2Fimages",
    "events": "#/events",
    "host": "#/host?range=1h",
    "agent": "#/agent",
}
COUNTS: Final = (3, 60, 500)
SIZES: Final = {1400: 900, 390: 844}
RUN_SECONDS: Final = {3: 4000, 60: 4000, 500: 600}
"""How long the host has run, for the graphs."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One screenshot: the view, the number of VMs, the width in pixels, and `light` or `dark`."""

    view: str
    count: int
    width: int
    scheme: str

    @property
    def name(self) -> str:
        """The name of the image's file."""
        return f"{self.view}-{self.count}-{self.width}-{self.scheme}.png"


ALL_SHOTS: Final = [Shot(*parts) for parts in itertools.product(VIEWS, COUNTS, SIZES, ("light", "dark"))]
DOCUMENTED: Final = [Shot("vms", 500, 1400, "light"), Shot("vm", 60, 1400, "dark"), Shot("vms", 500, 390, "dark")]
"""The screenshots in the documentation."""


async def shoot_views(browser: Browser, folder: Path, images: Path, shots: Iterable[Shot]) -> None:
    """Take screenshots of a fake host.

    Args:
        browser: the browser.
        folder: directory for the endpoint's files.
        images: directory of the images, which exists.
        shots: the screenshots.
    """
    for (count, width, scheme), group in itertools.groupby(sorted(shots, key=_page_of), key=_page_of):
        options: dict[str, Any] = {"viewport": {"width": width, "height": SIZES[width]}, "color_scheme": scheme}
        async with live_page(browser, folder, count, seconds=RUN_SECONDS[count], healthy=count == 3, **options) as live:
            for shot in group:
                await show(live.page, VIEWS[shot.view].format(vm=FIRST_VM if count == 3 else VM))
                await live.page.screenshot(path=images / shot.name)


def _page_of(shot: Shot) -> tuple[int, int, str]:
    return shot.count, shot.width, shot.scheme


async def show(page: Page, view: str) -> None:
    """Show a view, and wait until its graphs have points."""
    await page.evaluate("hash => { location.hash = hash; }", view)
    await page.locator("#view h2").first.wait_for(state="attached")
    graphs = page.locator("#view figure:not([hidden])")
    if await graphs.count():
        await graphs.locator("path.line").first.wait_for(state="attached")
    await page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
