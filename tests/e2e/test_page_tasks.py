"""The first questions of an operator to the page: which VM stopped and why, which pool fills first, what an alert means."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from agent.model.family import Sample
from agent.model.metrics.storage_pool import POOL
from tests.lab.browser import chromium
from tests.lab.live_page import LivePage, live_page

pytestmark = pytest.mark.asyncio(loop_scope="module")

GIB: Final = 1 << 30
STOPPED_VM: Final = "web-2"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


async def top_of(page: Page, selector: str) -> float:
    """Return the vertical position of an element in pixels."""
    box = await page.locator(selector).first.bounding_box()
    assert box is not None
    return box["y"]


def set_pool(live: LivePage, name: str, used_gib: int, **values: Any) -> None:
    """Add a pool of 100 GiB to the host."""
    sizes = {"size_bytes": 100 * GIB, "used_bytes": used_gib * GIB, "free_bytes": (100 - used_gib) * GIB}
    known = {"responsive": True, "vms": 0, "vm_names": []} | sizes | values
    live.host.snapshot.replace_host_sample(Sample(POOL, (name, "filesystem"), known), live.host.time)


async def test_the_first_line_names_the_vm_that_stopped_and_a_click_shows_why(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60) as live:
        page = live.page
        await expect(page.locator(".tile").filter(has_text="VMs")).to_contain_text("1 stopped: io-error")
        first = page.locator("#attention li").first
        await expect(first).to_contain_text(STOPPED_VM)
        await expect(first).to_contain_text("stopped: disk full · virtio-disk0")
        await first.get_by_role("link").click()
        await expect(page.locator("#vm .title")).to_contain_text("stopped: io-error")
        await expect(page.locator("#explain")).to_contain_text("a write found no space on virtio-disk0")
        await expect(page.locator("#alerts").get_by_text("What to do:")).to_be_visible()
        await page.get_by_role("link", name="Overview", exact=True).click()
        await expect(page.locator("#vm figure").first).to_be_visible()
        assert await top_of(page, "#alerts") < await top_of(page, "#vm figure")  # in view without scrolling


async def test_a_stopped_vm_needs_attention_without_an_alert(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 20) as live:
        live.host.firing_alerts = list  # type: ignore[method-assign]
        live.host.step()
        first = live.page.locator("#attention li").first
        await expect(first).to_have_text(f"{STOPPED_VM} stopped: io-error")
        await live.page.get_by_label("Filter", exact=True).fill("state:stopped")
        await expect(live.page.locator("#vms [role=rowheader]")).to_have_text([STOPPED_VM])


async def test_pools_with_a_problem_and_those_that_fill_first_are_on_top(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 20, healthy=True) as live:
        set_pool(live, "full", 90)
        set_pool(live, "filling", 60, time_to_full_seconds=7200.0, growth_bytes_per_second=6e6)
        set_pool(live, "slowly-filling", 20, time_to_full_seconds=400 * 86400.0, growth_bytes_per_second=2e3)
        tile = live.page.locator(".tile").filter(has_text="Pools that fill first").get_by_role("link")
        await expect(tile).to_have_text(["60 % filling · full in 2 h 0 min", "90 % full"])
        set_pool(live, "hung", 10, responsive=False)
        await live.page.get_by_role("link", name="Storage", exact=True).click()
        pools = live.page.locator("#pools tbody th a")
        for place, name in enumerate(("hung", "filling", "full")):
            await expect(pools.nth(place)).to_have_text(name)
        row = live.page.locator("#pools tbody tr")
        await expect(row.filter(has_text="slowly-filling")).to_contain_text("400 days")


async def test_a_pool_without_a_forecast_does_not_claim_that_it_does_not_grow(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 3, "#/storage", healthy=True) as live:
        for name, growth in (("grows", 1e3), ("rests", 0.0)):
            set_pool(live, name, 50, growth_bytes_per_second=growth)
        set_pool(live, "new", 50)
        rows = live.page.locator("#pools tbody tr")
        for name, text in (("grows", "no forecast"), ("rests", "not growing"), ("new", "no forecast")):
            await expect(rows.filter(has=live.page.get_by_role("link", name=name, exact=True))).to_contain_text(text)


async def test_names_of_vms_are_links_in_events_alerts_and_pools(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60, "#/events") as live:
        page = live.page
        uuids = {fake.vm.name: fake.vm.uuid for fake in live.host.vms}

        async def check(place: str, name: str) -> None:
            link = page.locator(place).get_by_role("link", name=name, exact=True).first
            await expect(link).to_have_attribute("href", f"#/vm/{uuids[name]}")

        await check("#events", "web-1")
        await check("#alerts", "db-7")
        await check("#alerts", "db-1")  # on the pool of an alert
        await page.locator("#alerts").get_by_role("link", name="pve/data", exact=True).click()
        await check("#pools", "vdi-1")
        await expect(page.get_by_role("heading", name="VMs (8 of 15)")).to_be_visible()
        growers = [{"vm": "db-2", "device": "disk0", "growth_bytes_per_second": 2048.0}]
        pool: dict[str, Any] = {"growers": growers, "vm_names": ["db-2", "gone-1"], "vms": 2}
        live.host.snapshot.replace_host_sample(Sample(POOL, ("pve/data", "lvm_thin"), pool), live.host.time)
        grower = page.get_by_role("listitem").filter(has_text="disk0 2 KiB/s")
        await expect(grower.get_by_role("link")).to_have_attribute("href", f"#/vm/{uuids['db-2']}")
        gone = page.get_by_role("link", name="gone-1", exact=True).first
        await expect(gone).to_have_attribute("href", "#/?q=%22gone-1%22")  # the page knows no such VM


async def test_a_name_in_an_event_opens_the_vm_and_the_rest_of_its_line_opens_the_record(
    browser: Browser, folder: Path
) -> None:
    async with live_page(browser, folder, 3, "#/events", healthy=True) as live:
        row = live.page.locator("#events li").filter(has_text="event · stop")
        await row.get_by_text("event · stop").click()
        await expect(row.get_by_label("Record as JSON")).to_be_visible()
        await row.get_by_role("link", name="web-1", exact=True).click()
        await expect(live.page.locator("#vm-title")).to_have_text("web-1")
