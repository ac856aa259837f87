"""The page's views have no violation that axe-core knows: in light and dark, and on a phone."""

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from agent.cli.demo.images import MissingDependencyError
from tests.lab.axe import axe_source, violations
from tests.lab.browser import chromium
from tests.lab.live_page import live_page

VM = "00000009-1111-4111-8111-111111111111"  # has a full disk, an alert and a guest agent
VIEWS = (
    "#/",
    "#/?q=web&sort=write&cols=state,labels,uuid",
    f"#/vm/{VM}",
    f"#/vm/{VM}?tab=disks&range=1h",
    f"#/vm/{VM}?tab=guest",
    f"#/vm/{VM}?tab=events",
    "#/storage",
    "#/pool/lvm_thin/pve%2Fdata",
    "#/events",
    "#/host",
    "#/agent",
)

NAMELESS_IMAGES = """
window.nameless = [];
new MutationObserver((records) => {
  for (const node of records.flatMap(({ addedNodes }) => [...addedNodes]).filter((node) => node.querySelectorAll))
    for (const image of [node, ...node.querySelectorAll("[role=img]")])
      if (image.matches("[role=img]:not([aria-label])")) window.nameless.push(`${location.hash}: ${image.outerHTML}`);
}).observe(document, { childList: true, subtree: true });
"""
"""Records each image that has no name when it becomes part of the page."""


@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 1400, "height": 900}, "color_scheme": "light"},
        {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
    ],
    ids=["light", "dark, a phone"],
)
async def test_no_view_violates_a_rule_of_accessibility(folder: Path, options: dict[str, Any]) -> None:
    try:
        source = axe_source()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    async with (
        chromium() as browser,
        live_page(browser, folder, 30, seconds=60, bypass_csp=True, **options) as live,
    ):
        found: dict[str, list[str]] = {}
        for view in VIEWS:
            await live.page.evaluate("hash => { location.hash = hash; }", view)
            await expect(live.page.locator("#view h2").first).to_be_attached()
            found[view] = await violations(live.page, source)
        await live.page.evaluate("location.hash = '#/'")
        await live.page.keyboard.press("?")
        await expect(live.page.get_by_role("dialog")).to_be_visible()
        found["help"] = await violations(live.page, source)
        assert {view: texts for view, texts in found.items() if texts} == {}


async def test_an_image_has_its_name_as_soon_as_it_is_in_the_page(folder: Path) -> None:
    async with chromium() as browser, live_page(browser, folder, 30, "#/events", seconds=60) as live:
        await live.page.evaluate(NAMELESS_IMAGES)
        for view in VIEWS:
            await live.page.evaluate("hash => { location.hash = hash; }", view)
            await expect(live.page.locator("#view h2").first).to_be_attached()
        assert await live.page.evaluate("window.nameless") == []
