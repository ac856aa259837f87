"""Takes the screenshots in the documentation: `python -m tests.lab.screenshots [DIRECTORY]`.

The screenshots of the README show a real agent with three real guests. Those of a large host show a fake host. With a directory, it takes
each view of the page into this directory, with 3, 60 and 500 VMs, in light and dark, wide and on a phone. Look at them after a change of
the page.
"""

import asyncio
import html
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pyte
from playwright.async_api import Browser

from agent.cli.demo.guest import Guest, GuestKind, GuestOptions
from tests.lab.agent_process import AgentProcess
from tests.lab.browser import chromium, open_page
from tests.lab.page_shots import ALL_SHOTS, DOCUMENTED, shoot_views
from tests.lab.terminal import Terminal
from tests.lab.waiting import until

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
WORK_SECONDS: Final = 240.0  # on a busy machine, the Linux guest needs a minute to boot
GUESTS: Final = {
    "web-1": GuestOptions(kind=GuestKind.LINUX, write_kib=256, pause_seconds=0.4, guest_agent=True, fill_seconds=0.5),
    "db-1": GuestOptions(kind=GuestKind.WRITER, disk_mib=64, pause_seconds=0.01),
    "build-7": GuestOptions(kind=GuestKind.WRITER, disk_mib=256, write_kib=16, pause_seconds=0.1),
}


async def take() -> None:
    """Run three guests, migrate one and back up another, and take the screenshots."""
    with tempfile.TemporaryDirectory(prefix="qemu-") as path:
        async with AsyncExitStack() as running:
            guests = {name: Guest(Path(path), name, options) for name, options in GUESTS.items()}
            for guest in guests.values():
                await running.enter_async_context(guest)
            config = {
                "monitors": [{"dial": f"{path}/*.qmp"}],
                "intervals": {"poll": "1s", "guest_memory": "2s"},
                "allow": {"guest_stats_interval": "2s"},
                "alerts": {"disks": {"mode": "arm", "levels": ["used 32MiB", "used 51MiB", "used 60MiB"]}},
                "guest_agent": {"enabled": True, "intervals": {"filesystems": "2s"}},
            }
            agent = await running.enter_async_context(AgentProcess(Path(path), config))
            browser = await running.enter_async_context(chromium())
            await guests["web-1"].wait_until_booted(WORK_SECONDS)
            await start_backup(guests["build-7"])
            await agent.wait_for_record("alert.write_threshold", vm="web-1", level="used 32MiB", timeout=WORK_SECONDS)
            await agent.wait_for_record("sample.guest_filesystem", vm="web-1")
            await start_migration(guests["web-1"])  # the last values of the guest agent stay visible
            await guests["db-1"].command("stop")
            await guests["db-1"].command("cont")
            await agent.wait_for_record("sample.migration", vm="web-1", status="active")
            await asyncio.sleep(5)
            await shoot_page(browser, agent)
            await shoot_terminal(browser, agent)


async def start_migration(guest: Guest) -> None:
    """Start a migration that takes minutes."""
    await guest.command("migrate-set-parameters", max_bandwidth=600_000)
    await guest.command("migrate", uri="exec:cat >/dev/null")


async def start_backup(guest: Guest) -> None:
    """Start a copy of the disk that takes minutes."""
    await guest.command("blockdev-add", driver="null-co", node_name="copy", size=guest.options.disk_mib << 20)
    await guest.command(
        "blockdev-mirror",
        job_id="backup",
        device="disk0-format",
        target="copy",
        sync="full",
        speed=1_000_000,
        granularity=65536,
        buf_size=65536,
    )


async def shoot_page(browser: Browser, agent: AgentProcess) -> None:
    """Take the screenshot of the page."""
    size = {"width": 1200, "height": 620}
    async with open_page(browser, agent.url, viewport=size, color_scheme="light") as page:
        await page.locator("#vms [role=row]").filter(has_text="migration active").wait_for()
        await page.screenshot(path=IMAGES / "page.png")


async def shoot_fake_hosts(images: Path | None) -> None:
    """Take the screenshots of the page with many VMs: those in the documentation, or all of them into a directory."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with chromium() as browser:
            await shoot_views(browser, Path(folder), images or IMAGES, ALL_SHOTS if images else DOCUMENTED)


async def shoot_terminal(browser: Browser, agent: AgentProcess) -> None:
    """Take the screenshot of the terminal."""
    async with Terminal("top", "--url", agent.url, "--interval", "1s", columns=110, rows=12) as top:
        await top.wait_for_texts("db-1", "web-1")
        await until(lambda: "%" in top.find_row("CPU%") and len(top.find_row("web-1").split()) > 6)
        document = screen_html(top.screen)
    context = await browser.new_context(viewport={"width": 960, "height": 240})
    page = await context.new_page()
    await page.set_content(document)
    await page.locator("pre").screenshot(path=IMAGES / "top.png")
    await context.close()


COLOURS: Final = {
    "default": "#d8dee6",
    "red": "#ff6b6b",
    "green": "#5fd38d",
    "brown": "#e5b454",
    "cyan": "#5cc8d7",
    "black": "#11151a",
    "white": "#d8dee6",
    "blue": "#6ca8ff",
}


def screen_html(screen: pyte.Screen) -> str:
    """Return a terminal's screen as HTML."""
    lines = ["".join(map(cell_html, (screen.buffer[y][x] for x in range(screen.columns)))) for y in range(screen.lines)]
    style = "background:#11151a;padding:12px;margin:0;display:inline-block;font:14px/1.35 'DejaVu Sans Mono',monospace"
    return f'<pre style="{style}">' + "\n".join(lines) + "</pre>"


def cell_html(char: pyte.screens.Char) -> str:
    """Return one character as HTML."""
    foreground, background = (
        COLOURS.get(char.fg, "#d8dee6"),
        COLOURS.get(char.bg, "#11151a") if char.bg != "default" else "#11151a",
    )
    if char.reverse:
        foreground, background = background, foreground
    weight = "bold" if char.bold else "normal"
    return (
        f'<span style="color:{foreground};background:{background};font-weight:{weight}">{html.escape(char.data)}</span>'
    )


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    (directory or IMAGES).mkdir(parents=True, exist_ok=True)
    if directory is None:
        asyncio.run(take())
    asyncio.run(shoot_fake_hosts(directory))
