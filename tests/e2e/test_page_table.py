"""The page's table of many VMs: filters, order, columns, keys, address, and that updates move no row of a table in use."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.lab.browser import chromium
from tests.lab.live_page import live_page

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_ELEMENTS = 4000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as running:
        yield running


def rows(page: Page) -> Any:
    return page.locator("#vms .rows [role=row]")


async def names(page: Page) -> list[str]:
    """Return the names in the table, from top to bottom."""
    texts: list[str] = await page.locator("#vms [role=rowheader]").all_inner_texts()
    return texts


async def first_column(page: Page, title: str) -> list[str]:
    """Return the cells of a column, from top to bottom."""
    texts: list[str] = await page.locator(f'#vms [role=cell][data-label="{title}"]').all_inner_texts()
    return texts


async def test_a_thousand_vms_take_few_elements_and_every_one_can_be_reached(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 1000) as live:
        page = live.page
        await expect(page.locator("#vms-title")).to_have_text("VMs (1000)")
        assert await page.evaluate("document.querySelectorAll('*').length") < MAX_ELEMENTS
        await expect(page.get_by_role("table", name="VMs")).to_have_attribute("aria-rowcount", "1001")
        await rows(page).first.get_by_role("link").focus()
        await page.keyboard.press("End")
        last = page.locator(":focus")
        await expect(last).to_have_text("web-125")
        await expect(last).to_be_in_viewport()
        await expect(rows(page).last).to_have_attribute("aria-rowindex", "1001")
        assert await page.evaluate("document.querySelectorAll('*').length") < MAX_ELEMENTS


async def test_filters_by_text_state_label_and_alert(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60) as live:
        page, field = live.page, live.page.get_by_label("Filter", exact=True)
        for text, count in (
            ("CACHE", 8),
            ("state:paused", 1),
            ("state:stalled", 1),
            ("label:owner=web", 20),
            ("label:owner=web cache", 3),
            ("alert:critical", 1),
            ("alert:any", 3),
            ("alert:write_threshold", 2),
            ("is:busy", 3),
            ("nothing", 0),
            ("", 60),
        ):
            await field.fill(text)
            expected = f"VMs ({count} of 60)" if count < 60 else "VMs (60)"
            await expect(page.locator("#vms-title")).to_have_text(expected)
        await field.fill("nothing")
        await expect(page.get_by_text("No VM matches the filter.")).to_be_visible()


async def test_a_tile_filters_and_the_address_shows_the_same_view_again(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60) as live:
        page = live.page
        await page.get_by_role("link", name="1 stalled").click()
        await expect(page.locator("#vms [role=rowheader]")).to_have_text(["cache-1"])
        await page.get_by_label("Filter", exact=True).fill("label:owner=web")
        await page.get_by_role("button", name="Write", exact=True).click()
        await page.get_by_text("Columns", exact=True).first.click()
        await page.get_by_role("checkbox", name="IOPS").check()
        await page.get_by_role("checkbox", name="Steal").uncheck()
        await expect(page.get_by_role("columnheader", name="Write")).to_have_attribute("aria-sort", "descending")
        await expect(page.get_by_role("columnheader", name="IOPS")).to_be_visible()
        await expect(page.get_by_role("columnheader", name="Steal")).to_have_count(0)
        await expect(page.locator("#vms-title")).to_have_text("VMs (20 of 60)")
        await page.wait_for_url(
            lambda url: all(part in url for part in ("q=label", "sort=write", "cols=")) and "steal" not in url
        )
        address = page.url
        assert "q=label:owner" in unquote(address)
        shown = await names(page)
        heads = await page.locator("#vms [role=columnheader]").all_inner_texts()
        await page.goto("about:blank")
        await page.goto(address)
        await expect(page.locator("#vms [role=rowheader]")).to_have_text(shown)
        await expect(page.locator("#vms [role=columnheader]")).to_have_text(heads, use_inner_text=True)
        await expect(page.get_by_role("columnheader", name="Write")).to_have_attribute("aria-sort", "descending")


async def test_columns_sort_both_ways_with_unknown_values_last(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 20) as live:
        page = live.page
        for title in ("CPU", "Guest FS"):
            head = page.get_by_role("columnheader", name=title)
            await head.get_by_role("button").click()
            await expect(head).to_have_attribute("aria-sort", "descending")
            values = [float(text.split()[0]) for text in await first_column(page, title) if text]
            assert values == sorted(values, reverse=True)
            await head.get_by_role("button").click()
            await expect(head).to_have_attribute("aria-sort", "ascending")
            texts = await first_column(page, title)
            known = [float(text.split()[0]) for text in texts if text]
            assert known == sorted(known)
            assert all(texts[: len(known)])


async def test_keys_filter_move_open_and_go_back(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60) as live:
        page, focused = live.page, live.page.locator(":focus")
        await page.keyboard.press("/")
        await expect(focused).to_have_attribute("id", "vms-filter")
        await page.keyboard.type("web")
        await page.keyboard.press("ArrowDown")
        await expect(focused).to_have_text("web-1")
        await page.keyboard.press("ArrowDown")
        await expect(focused).to_have_text("web-2")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=2, name="web-2")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.locator("#vms-title")).to_have_text("VMs (8 of 60)")
        await page.keyboard.press("/")
        await page.keyboard.press("Escape")
        await expect(page.locator("#vms-title")).to_have_text("VMs (60)")
        await page.keyboard.press("Escape")  # leaves the field
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_an_update_moves_no_row_while_the_table_is_read(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60, "#/?sort=write") as live:
        page, host = live.page, live.host
        before = await names(page)
        await page.get_by_role("link", name=before[3], exact=True).hover()
        value = rows(page).nth(3).locator('[data-label="Write"]')
        shown = await value.inner_text()
        for fake in host.vms:  # the last becomes the first
            fake.load = 1 - fake.load
        for _ in range(20):
            host.step()
        host.leave(host.vms.pop(next(n for n, fake in enumerate(host.vms) if fake.vm.name == before[1])))
        await expect(value).not_to_have_text(shown)
        await expect(rows(page).nth(1)).to_contain_text("gone")
        assert await names(page) == before
        await page.get_by_role("button", name="Sort now").click()
        await expect(rows(page).nth(0)).not_to_contain_text(before[0])
        await expect(page.locator("#vms-title")).to_have_text("VMs (59)")


async def test_the_focus_stays_in_its_row_while_values_and_order_change(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 300) as live:
        page, host = live.page, live.host
        await page.get_by_role("link", name="build-3", exact=True).focus()
        value = page.locator("#vms [role=row]", has_text="build-3").first.locator('[data-label="CPU"]')
        shown = await value.inner_text()
        for _ in range(20):
            host.step()
        await expect(value).not_to_have_text(shown)
        await expect(page.locator(":focus")).to_have_text("build-3")
        await page.locator("#vms .grid").evaluate("node => { node.scrollTop = node.scrollHeight; }")
        await expect(page.get_by_role("link", name="web-38", exact=True)).to_be_visible()
        await expect(page.locator(":focus")).to_have_text("build-3")  # outside of the view


async def test_what_needs_attention_comes_first_and_an_alert_is_not_repeated(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 60) as live:
        items = live.page.locator("#attention li")
        await expect(items.first).to_contain_text("stopped: disk full · virtio-disk0")
        for expected in ("cache-1 stalled", "collectors off: nodes", "steal", "disk latency 80 ms"):
            await expect(items.filter(has_text=expected).first).to_be_attached()
        texts = await items.all_inner_texts()
        assert [text.split()[0] for text in texts[:2]] == ["web-2", "pve/data"]
        assert len([text for text in texts if "pve/data" in text]) == 1
        await items.filter(has_text="pve/data").get_by_role("link").click()
        await expect(live.page.get_by_role("heading", name="pve/data", exact=True)).to_be_visible()
        await expect(live.page.locator("#alerts").get_by_text("What to do:")).to_be_visible()


async def test_a_healthy_host_needs_no_attention(browser: Browser, folder: Path) -> None:
    async with live_page(browser, folder, 3, healthy=True) as live:
        await expect(live.page.get_by_text("Nothing needs attention.")).to_be_visible()
        await expect(live.page.locator(".tile").filter(has_text="Alerts")).to_contain_text("none")
        await expect(live.page.locator(".tiles")).to_have_text(
            re.compile(r"CPU\s*[\d.]+ % of 256"), use_inner_text=True
        )
