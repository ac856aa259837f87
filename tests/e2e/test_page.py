"""The page in a real browser, served by a real agent with real guests."""

import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from agent.cli.demo.guest import Guest
from tests.lab.agent_process import AgentProcess
from tests.lab.browser import chromium, open_page
from tests.lab.page_guests import watch_guests

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE: Final = "\"'><script>window.pwned=1</script><img src=x onerror=window.pwned=1>&lt;"
PHONE: Final = {"width": 320, "height": 640}


@dataclass(frozen=True, slots=True)
class Environment:
    """A browser, and an agent with three guests: a writer, a guest with a hostile name, and a Linux."""

    browser: Browser
    agent: AgentProcess
    writer: Guest
    hostile: Guest
    linux: Guest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def environment() -> AsyncIterator[Environment]:
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with AsyncExitStack() as running:
            agent, writer, hostile, linux = await watch_guests(running, Path(path), HOSTILE)
            browser = await running.enter_async_context(chromium())
            yield Environment(browser, agent, writer, hostile, linux)


async def expect_only_events_of(page: Page, name: str) -> None:
    """Wait until the list of events has events of this VM and no others."""
    await expect(page.locator("#events .who").first).to_have_text(name)
    await expect(page.locator("#events .who").filter(has_not_text=name)).to_have_count(0)


async def test_the_table_shows_each_vms_state_and_activity(environment: Environment) -> None:
    async with open_page(environment.browser, environment.agent.url) as page:
        row = page.get_by_role("table", name="VMs").get_by_role("row")
        writer = row.filter(has_text="db-1")
        await expect(writer).to_contain_text("running")
        await expect(writer.locator('[data-label="Write"]')).to_have_text(re.compile(r"[\d.]+ (KiB|MiB)/s"))
        await expect(writer.locator('[data-label="CPU"]')).to_have_text(re.compile(r"[\d.]+ %"))
        await expect(writer.locator('[data-label="Latency"]')).to_have_text(re.compile(r"[\d.]+ (µs|ms)"))
        linux = row.filter(has_text="web-1")
        await expect(linux.locator('[data-label="Memory"]')).to_have_text(re.compile(r"[\d.]+ MiB"))
        await expect(page.locator("#vms-title")).to_have_text("VMs (3)")
        await expect(page.locator(".tile").first).to_contain_text("running")
        await expect(page).to_have_title(re.compile("hv7 · qmp-agent$"))


async def test_a_filling_disk_has_a_bar_levels_and_an_alert(environment: Environment) -> None:
    async with open_page(environment.browser, f"{environment.agent.url}/#/vm/{environment.writer.uuid}") as page:
        disk = page.locator("#disks tbody tr")
        await expect(disk.get_by_role("cell").first).to_contain_text(re.compile(r"[\d.]+ (KiB|MiB) of 64 MiB"))
        await expect(disk.get_by_role("list", name="Levels")).to_have_text(re.compile("used 640KiB.*used 63MiB"))
        await expect(disk.locator('.levels [data-exceeded="true"]')).to_have_text("used 640KiB")
        await expect(disk.locator("svg line")).to_have_count(2)
        alert = page.locator("#alerts li").filter(has_text="write threshold")
        await expect(alert).to_contain_text(re.compile("write threshold.*disk0.*level used 640KiB exceeded.*free"))
        await page.get_by_role("link", name="Storage").click()
        await expect(page.locator("#disks tbody tr").filter(has_text="db-1")).to_contain_text("of 64 MiB")


async def test_a_guests_file_systems_system_and_addresses_are_shown(environment: Environment) -> None:
    await environment.agent.wait_for_record("alert.guest_filesystem_space", vm=environment.linux.uuid)
    async with open_page(environment.browser, f"{environment.agent.url}/#/storage") as page:
        filesystem = page.locator("#filesystems tbody tr").filter(has_text="web-1")
        await expect(filesystem.get_by_role("rowheader")).to_have_text("web-1 /data")
        await expect(filesystem.get_by_role("cell").first).to_contain_text(re.compile(r"[\d.]+ KiB of [\d.]+ MiB"))
        await expect(filesystem.locator("svg").first).to_have_attribute("aria-label", re.compile("used$"))
        await page.get_by_role("link", name="Events", exact=True).click()
        alert = page.locator("#alerts li").filter(has_text="guest filesystem space")
        await expect(alert).to_contain_text(re.compile("web-1 guest filesystem space /data.*free"))
    async with open_page(environment.browser, f"{environment.agent.url}/#/vm/{environment.linux.uuid}") as page:
        facts = page.locator("#vm .facts")
        await expect(facts).to_contain_text("Guest agentup")
        await expect(facts).to_contain_text("web-1 · Busybox, the guest of qmp-agent's demo · 6.")
        await expect(facts).to_contain_text("Addresses10.0.2.15")


async def test_sections_without_content_are_hidden(environment: Environment) -> None:
    async with open_page(environment.browser, f"{environment.agent.url}/#/vm/{environment.hostile.uuid}") as page:
        await expect(page.get_by_role("heading", name="pwned")).to_be_visible()
        for section in ("#disks", "#activity", "#alerts"):
            await expect(page.locator(section)).to_be_hidden()
        await page.get_by_role("link", name="Jobs and migrations").click()
        await expect(page.get_by_text("No migration and no job.")).to_be_visible()


async def test_a_stopped_vm_has_an_explanation_until_it_runs(environment: Environment) -> None:
    async with open_page(environment.browser, f"{environment.agent.url}/#/vm/{environment.writer.uuid}") as page:
        await environment.writer.command("stop")
        first = page.get_by_role("region", name="Why it is slow or stands still").get_by_role("listitem").first
        await expect(first).to_contain_text(re.compile(r"^The guest has not run for .* \(paused\): a client"))
        await environment.writer.command("cont")
        explained = page.locator("#explain li").filter(has_text="has not run")
        await expect(explained).to_have_count(0)


async def test_a_hostile_name_is_shown_as_text_everywhere(environment: Environment) -> None:
    async with open_page(environment.browser, environment.agent.url) as page:
        link = page.locator("#vms").get_by_role("link", name=HOSTILE, exact=True)
        await expect(link).to_have_text(HOSTILE)
        await page.get_by_role("link", name="Events", exact=True).click()
        await expect(page.locator("#events .who").filter(has_text=HOSTILE).first).to_be_visible()
        await page.get_by_role("link", name="Agent", exact=True).click()
        await expect(page.locator("#monitors tbody tr").filter(has_text=HOSTILE)).to_have_count(1)
        await page.get_by_role("link", name="VMs", exact=True).click()
        await link.click()
        await expect(page.get_by_role("heading", level=2, name=HOSTILE, exact=True)).to_be_visible()
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("main script, main img").count() == 0


async def test_the_sections_of_a_vm_have_every_family_and_only_its_own_events(environment: Environment) -> None:
    async with open_page(environment.browser, environment.agent.url) as page:
        await page.locator("#vms").get_by_role("link", name="web-1").click()
        await expect(page.get_by_role("heading", level=2, name="web-1")).to_be_visible()
        for section, title in (
            ("Memory", "Balloon"),
            ("Memory", "Memory reported by the guest"),
            ("CPU", "QEMU process"),
            ("Inventory", "VM"),
            ("Disks and pools", "Layers"),
            ("Disks and pools", "Disks"),
        ):
            await page.get_by_role("link", name=section, exact=True).click()
            await expect(page.get_by_role("region", name=title, exact=True)).to_be_visible()
        disks = page.get_by_role("region", name="Disks", exact=True)
        writes = disks.get_by_role("row").filter(has=page.get_by_role("button", name="writes", exact=True))
        await expect(writes).to_contain_text(re.compile(r"writes\d+\s*[\d.]+/s"))
        hidden = disks.get_by_role("row").filter(has=page.get_by_role("button", name="failed writes", exact=True))
        await expect(hidden).to_have_count(0)
        await page.get_by_label("Show zero values").check()
        await expect(hidden).to_have_count(1)
        await page.get_by_label("Sections of the VM").get_by_role("link", name="Events").click()
        await expect_only_events_of(page, "web-1")
        await page.get_by_role("link", name="All VMs").click()
        await expect(page.locator("#vms")).to_be_visible()


async def test_a_figure_shows_its_series_which_prometheus_has(environment: Environment) -> None:
    uuid = environment.writer.uuid
    async with open_page(environment.browser, f"{environment.agent.url}/#/vm/{uuid}?tab=disks") as page:
        disks = page.get_by_role("region", name="Disks", exact=True)
        await disks.get_by_role("button", name="write", exact=True).click()
        codes = page.get_by_role("dialog").locator("code")
        await expect(codes.first).to_have_text("qemu_block_write_bytes_total")
        rate = f'rate(qemu_block_write_bytes_total{{vm_uuid="{uuid}",device="disk0"}}[5m])'
        await expect(codes.filter(has_text=rate)).to_have_text([rate])
        await page.keyboard.press("Escape")
        await expect(codes).to_have_count(0)
        await page.get_by_role("button", name="PromQL of Disk throughput").click()
        names = codes.filter(has_not_text="rate")
        await expect(names).to_have_text(["qemu_block_read_bytes_total", "qemu_block_write_bytes_total"])
    _, scrape = await environment.agent.get("/metrics")
    assert re.search(rf'^qemu_block_write_bytes_total{{vm_uuid="{uuid}",.*device="disk0"', scrape, re.MULTILINE)


async def test_a_graph_has_axes_values_under_the_pointer_and_marks(environment: Environment) -> None:
    await environment.writer.command("stop")
    await environment.writer.command("cont")
    async with open_page(environment.browser, f"{environment.agent.url}/#/vm/{environment.writer.uuid}") as page:
        graph = page.locator("figure").filter(has_text="Disk throughput")
        line = graph.locator("path.line.write")
        await expect(line.first).to_have_attribute("d", re.compile(r"^M[\d.]+ [\d.]+(L[\d.]+ [\d.]+)+$"))
        await expect(graph.locator("text.end").first).to_have_text("0 B/s")
        mark = graph.locator(".mark title").filter(has_text="event stop")
        await expect(mark.first).to_be_attached()  # it has its place after the next points
        image = graph.get_by_role("img")
        await expect(image).to_have_attribute("aria-label", re.compile("Disk throughput in the last 5 minutes: lowest"))
        await expect(graph.locator(".legend")).to_contain_text(re.compile(r"write [\d.]+ [KM]iB/s"))
        await image.focus()
        await page.keyboard.press("ArrowLeft")
        await expect(graph.locator("figcaption .more")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d"))
        await expect(graph.locator("[aria-live]")).to_have_text(re.compile("write [\\d.]+"))
        await page.get_by_role("link", name="6 hours").click()
        await expect(page).to_have_url(re.compile("range=6h"))
        await expect(image).to_have_attribute("aria-label", re.compile("in the last 360 minutes"))


async def test_events_arrive_live_and_can_be_filtered_and_paused(environment: Environment) -> None:
    async with open_page(environment.browser, f"{environment.agent.url}/#/events") as page:
        first = page.locator("#events li").first
        await page.locator("#events-vm").select_option("db-1")  # the agent and other VMs may have events at any time
        await expect_only_events_of(page, "db-1")
        await environment.writer.command("stop")
        await expect(first).to_contain_text("event · stop")
        pause = page.get_by_role("button", name="Pause")
        await pause.click()
        await environment.writer.command("cont")
        resume = page.get_by_role("button", name=re.compile(r"^Resume \(\d+ new\)$"))
        await expect(resume).to_have_attribute("aria-pressed", "true")
        await expect(first).to_contain_text("event · stop")
        await page.get_by_role("button", name="Resume").click()
        await expect(first).to_contain_text("event · resume")
        await page.get_by_label("Text").fill("write threshold")
        await expect(first).to_contain_text("alert · write threshold")
        await page.get_by_label("Text").fill("")
        await page.get_by_label("Severity").select_option("warning and above")
        await expect(page.locator('#events li[data-severity="info"]')).to_have_count(0)
        await page.get_by_label("Severity").select_option("all")
        await page.locator("#events-vm").select_option("web-1")
        await expect_only_events_of(page, "web-1")


async def test_the_page_works_with_the_keyboard_alone(environment: Environment) -> None:
    async with open_page(environment.browser, environment.agent.url) as page:
        focused = page.locator(":focus")
        await page.keyboard.press("Tab")
        await expect(focused).to_have_text("Skip to content")
        await expect(focused).to_be_in_viewport()
        await page.keyboard.press("Enter")
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await focused.locator("xpath=ancestor::*[@role='rowheader']").count():
                break
        await page.keyboard.press("End")
        await expect(focused).to_have_text("web-1")
        assert await focused.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=2, name="web-1")).to_be_focused()
        await page.go_back()
        await expect(page.locator("#vms")).to_be_visible()


async def test_landmarks_headers_and_controls_have_names(environment: Environment) -> None:
    async with open_page(environment.browser, environment.agent.url) as page:
        for landmark in ("banner", "main", "contentinfo"):
            await expect(page.get_by_role(landmark)).to_have_count(1)
        for name in ("Views", "Endpoints"):
            await expect(page.get_by_role("navigation", name=name)).to_have_count(1)
        for region in ("Summary", "Needs attention", "VMs (3)"):
            await expect(page.get_by_role("region", name=region, exact=True)).to_be_visible()
        unnamed = "nodes => nodes.filter(node => !node.labels?.length && !node.textContent.trim()).length"
        assert await page.locator("input, select, button, a").evaluate_all(unnamed) == 0


@pytest.mark.parametrize(
    "path", ["", "/#/vm/{}", "/#/vm/{}?tab=disks", "/#/storage", "/#/events", "/#/host", "/#/agent"]
)
async def test_a_phone_needs_no_horizontal_scrolling(environment: Environment, path: str) -> None:
    async with open_page(
        environment.browser,
        environment.agent.url + path.format(environment.writer.uuid),
        viewport=PHONE,
        has_touch=True,
    ) as page:
        await expect(page.locator("#view").get_by_text("db-1").first).to_be_attached()
        assert await page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


async def test_light_and_dark_follow_the_system_and_are_readable(environment: Environment) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        async with open_page(environment.browser, environment.agent.url, color_scheme=scheme) as page:
            colours = "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
            foreground, background = (
                [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
                for colour in await page.locator("body").evaluate(colours)
            )
            backgrounds.append(sum(background))
            bright, dim = sorted((luminance(foreground), luminance(background)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) > 7
    assert backgrounds[0] > 2.5
    assert backgrounds[1] < 0.5


def luminance(colour: list[float]) -> float:
    """Return a colour's relative luminance by WCAG 2.2."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


async def test_a_migration_shows_its_progress_and_remaining_time(environment: Environment) -> None:
    await environment.linux.command("migrate-set-parameters", max_bandwidth=200_000)
    await environment.linux.command("migrate", uri="exec:cat >/dev/null")
    try:
        async with open_page(environment.browser, environment.agent.url) as page:
            row = page.locator("#vms [role=row]").filter(has_text="web-1")
            await expect(row.locator('[data-label="Activity"]')).to_contain_text("migration active")
            await row.get_by_role("link").click()
            migration = page.locator("#activity tbody tr")
            await expect(migration).to_contain_text(re.compile(r"migration\s*active.*of .*MiB", re.DOTALL))
            await expect(migration.get_by_role("progressbar")).to_be_visible()
            await expect(migration.get_by_role("cell").last).to_have_text(re.compile(r"\d+ (s|min|h)"))
    finally:
        await environment.linux.command("migrate_cancel")


async def test_a_job_shows_its_progress_and_remaining_time(environment: Environment) -> None:
    await environment.writer.command("blockdev-add", driver="null-co", node_name="copy", size=64 << 20)
    slow = {"speed": 10_000, "granularity": 1 << 16, "buf_size": 1 << 16}  # takes minutes, in small steps
    await environment.writer.command(
        "blockdev-mirror", job_id="copy0", device="disk0-format", target="copy", sync="full", **slow
    )
    try:
        async with open_page(environment.browser, environment.agent.url) as page:
            await page.locator("#vms").get_by_role("link", name="db-1").click()
            job = page.locator("#activity tbody tr")
            await expect(job).to_contain_text(re.compile(r"mirror copy0\s*running\s*[\d.]+ %", re.DOTALL))
            await expect(job.get_by_role("progressbar")).to_be_visible()
            await expect(job.get_by_role("cell").last).to_have_text(re.compile(r"\d+ (s|min|h)"))
    finally:
        await environment.writer.command("block-job-cancel", device="copy0", force=True)


async def test_the_page_reconnects_after_a_restart_of_the_agent(environment: Environment) -> None:
    async with open_page(environment.browser, environment.agent.url) as page:
        connection = page.get_by_role("status")
        await environment.agent.kill()
        await expect(connection).to_have_text("the agent does not answer; reconnecting")
        await expect(page.locator("#vms .rows [role=row]")).to_have_count(3)  # the old state stays, dimmed
        await environment.agent.start()
        await expect(connection).to_have_text("live")
        write = page.locator("#vms [role=row]").filter(has_text="db-1").locator('[data-label="Write"]')
        await expect(write).to_have_text(re.compile(r"[\d.]+ \wi?B/s"))
        await page.get_by_role("link", name="Events", exact=True).click()
        await environment.writer.command("stop")
        await environment.writer.command("cont")
        await expect(page.locator("#events li").filter(has_text="event · resume").first).to_be_visible()
