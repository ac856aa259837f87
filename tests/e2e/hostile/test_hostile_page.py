"""Hostile replies of a monitor in a real browser and a terminal: shown as text, never interpreted."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.e2e.hostile.test_hostile_answers import HOSTILE_TEXT, append_to_strings
from tests.lab.browser import chromium, open_page
from tests.lab.fake_qemu import FakeQemu
from tests.lab.hostile_host import HostileHost, hostile_host
from tests.lab.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = "eeeeeeee-1111-4111-8111-111111111117"
SCRIPT = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1><svg onload=window.pwned=1>"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment() -> AsyncIterator[HostileHost]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with hostile_host(Path(folder), response_timeout="20s") as made:
            evil = FakeQemu(made.monitor)
            for exchange in evil.transcript.exchanges:
                if "return" in exchange["reply"] and exchange["command"] not in ("query-uuid", "qom-list"):
                    evil.replies[exchange["command"]] = append_to_strings(
                        exchange["reply"]["return"], SCRIPT + HOSTILE_TEXT
                    )
            evil.replies |= {"query-uuid": {"UUID": UUID}, "query-name": {"name": SCRIPT + HOSTILE_TEXT}}
            async with evil:
                await made.agent.wait_for_record("vm.attached", vm=UUID)
                await evil.wait_for("query-blockstats", 3)
                for name in ("BLOCK_IO_ERROR", "STOP", SCRIPT):
                    evil.emit(name, dict.fromkeys(("device", "reason", "action", "x"), SCRIPT + HOSTILE_TEXT))
                yield made


async def test_the_page_shows_hostile_replies_as_text(environment: HostileHost) -> None:
    async with chromium() as browser, open_page(browser, f"{environment.agent.url}/#/events") as page:
        await expect(page.locator("#events").get_by_text("<script>").first).to_be_attached()
        await page.get_by_role("link", name="VMs", exact=True).click()
        link = page.locator(f'a[href*="{UUID}"]').first
        await expect(link).to_contain_text("<script>window.pwned=1</script>")
        await link.click()
        await expect(page.get_by_role("heading", level=2).filter(has_text="<script>").first).to_be_visible()
        for section in ("Disks and pools", "CPU", "Memory", "Guest", "Jobs and migrations", "Inventory"):
            await page.get_by_role("link", name=section, exact=True).click()
            await expect(page.get_by_role("link", name=section, exact=True)).to_have_attribute("aria-current", "page")
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("main script, main img, main svg[onload]").count() == 0


async def test_top_shows_hostile_replies_without_terminal_control(environment: HostileHost) -> None:
    async with Terminal("top", "--url", environment.agent.url, "--interval", "300ms", columns=120, rows=30) as top:
        await top.wait_for_texts("<script>")
        assert "owned" not in top.screen.title
        assert not [line for line in top.screen.display if "\x1b" in line or "\x07" in line]
