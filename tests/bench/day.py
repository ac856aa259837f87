"""CPU of the agent on a host at default intervals: 100 VMs with vCPUs and taps, polled each 10 s, and scraped each 15 s with gzip."""

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.bench.libvirt_exporter import Intervals, compare
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, role, stop
from tests.bench.stand_ins import stand_ins
from tests.bench.table import Row
from tests.lab.background import in_background
from tests.lab.machine import free_port
from tests.lab.waiting import until

VMS: Final = 100
VCPUS: Final = 2
POLL_SECONDS: Final = 10.0
SCRAPE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of a role.

    Attributes:
        percent: CPU in percent of one core.
        shares: percent of one core by part.
        taps: the number of VMs that have a tap.
    """

    percent: float
    shares: Mapping[str, float]
    taps: int


async def cost(name: str, seconds: float, *arguments: str, scrape: bool = True) -> Cost:
    """Return the CPU of a role at default intervals, without its start.

    Args:
        name: The role.
        seconds: Duration of the measurement.
        arguments: The role's arguments after the port.
        scrape: Whether the role has an endpoint to scrape.
    """
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with hosts(Path(folder)) as (monitors, taps):
            extra = (port, *arguments) if scrape else ()
            async with role(name, folder, POLL_SECONDS, *extra) as process:
                # The first polls query everything. The second ones move to the VM's slot.
                await until(lambda: monitors.answered[b"query-blockstats"] >= 3 * VMS, 90)
                async with scraping(port if scrape else None):
                    process.send_signal(signal.SIGUSR1)
                    before = cpu_seconds([process.pid])
                    await asyncio.sleep(seconds)
                    spent = cpu_seconds([process.pid]) - before
                parts: dict[str, float] = await stop(process)
    return Cost(spent / seconds * 100, {part: each / seconds * 100 for part, each in parts.items()}, taps)


@contextlib.asynccontextmanager
async def hosts(folder: Path) -> AsyncIterator[tuple[Monitors, int]]:
    """Run scripted monitors, each with a process of its own; yield them and the number of their taps."""
    async with Monitors(folder, VMS) as monitors, stand_ins(monitors.descriptors(), VCPUS) as processes:
        monitors.own_replies |= {number: process.replies() for number, process in enumerate(processes)}
        yield monitors, sum(process.tap is not None for process in processes)


@contextlib.asynccontextmanager
async def scraping(port: str | None) -> AsyncIterator[None]:
    """Scrape an endpoint during the block, as Prometheus does: over one connection, with gzip."""
    if port is None:
        yield
        return

    async def scrape() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            while True:
                await asyncio.sleep(SCRAPE_SECONDS)
                headers: Any = {"Accept-Encoding": "gzip"}
                async with session.get(f"http://127.0.0.1:{port}/metrics", headers=headers) as response:
                    assert response.status == 200
                    await response.read()

    async with in_background(scrape()):
        yield


async def day(*, short: bool) -> list[Row]:
    """Return the rows."""
    seconds = 30.0 if short else 120.0
    floor = await cost("floor-day", seconds, scrape=False)
    agent = await cost("agent-day", seconds, "no")
    measured = await cost("agent-day", seconds, "yes")
    rest = measured.percent - sum(measured.shares.values())
    shares = {**measured.shares, "loop, timers, HTTP and the rest": rest}
    total = measured.percent
    texts = [f"{part} {each / total:.0%}" for part, each in sorted(shares.items(), key=lambda pair: -pair[1])]
    what = f"{VMS} VMs of two disks, {VCPUS} vCPUs and {'a tap' if agent.taps == VMS else 'no tap'}, poll 10 s, scrape 15 s"
    rows = [
        Row(f"floor: {what}", f"{floor.percent:.2f} % of a core"),
        Row(
            "agent, a host at default intervals",
            f"{agent.percent:.2f} % of a core",
            agent.percent / floor.percent,
            "the floor",
        ),
        Row("its parts", ", ".join(texts)),
    ]
    if not short:
        rows += await compare(40, 90.0, Intervals(POLL_SECONDS, SCRAPE_SECONDS))
    return rows
