"""How soon an event is in Kafka, and how many a second get there."""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from agent.cli.demo.guest import until
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, role, said
from tests.bench.table import Row
from tests.lab.kafka import KafkaCluster

VMS: Final = 500
POLL_SECONDS: Final = 10.0
PER_SECOND: Final = 100
REST_SECONDS: Final = 5.0
"""After so long with nothing delivered it is taken that no more will be."""
EVENT: Final = "JOB_STATUS_CHANGE"


def _data(number: int) -> dict[str, str]:
    """Return an event's data; each has another job, so that none is one of a storm."""
    return {"id": f"job{number}", "status": "running"}


async def milliseconds(name: str, servers: str, seconds: float) -> list[float]:
    """Return how long each event took from its own time to Kafka's acknowledgement."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with Monitors(Path(folder), VMS) as monitors, role(name, folder, POLL_SECONDS, servers) as process:
            await until(lambda: len(monitors.clients) == VMS and monitors.answered[b"qmp_capabilities"] >= VMS, 60)
            if name == "telling":
                await until(lambda: monitors.answered[b"query-blockstats"] >= VMS, 60)
            await asyncio.sleep(5)  # what an attach asks is answered, the producer has met its partitions
            for number in range(int(seconds * PER_SECOND)):
                monitors.emit(number % VMS, EVENT, _data(number), time.time_ns())
                await asyncio.sleep(1 / PER_SECOND)
            await asyncio.sleep(1)
            found: list[float] = await said(process)
    return found


async def told(*, short: bool) -> list[Row]:
    """Return the rows of how soon an event is told."""
    seconds = 5.0 if short else 20.0
    async with _broker() as servers:
        cuts = {
            name: quantiles((await milliseconds(name, servers, seconds))[PER_SECOND:], n=100, method="inclusive")
            for name in ("bare", "telling")
        }
    ours, bare = cuts["telling"], cuts["bare"]
    rows = []
    for what, at, aim in (("median", 49, 5.0), ("99th percentile", 98, 25.0)):
        rows.append(Row(f"bare aiokafka, {what}", f"{bare[at]:.1f} ms"))
        rows.append(
            Row(
                f"event to Kafka's acknowledgement, {VMS} VMs polled beside, {what}",
                f"{ours[at]:.1f} ms",
                ours[at] / bare[at],
                "bare",
                f"< {aim:g} ms and ≤ 2",
                ours[at] < aim and ours[at] <= 2 * bare[at],
            )
        )
    return rows


async def flood(*, short: bool) -> list[Row]:
    """Return the rows of how many events a second get through."""
    count = 50_000 if short else 300_000
    async with _broker() as servers:
        with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
            async with Monitors(Path(folder), 4) as monitors, role("telling", folder, POLL_SECONDS, servers) as process:
                await until(lambda: monitors.answered[b"query-blockstats"] >= 4, 60)
                await asyncio.sleep(3)
                begun, before = time.monotonic(), cpu_seconds([process.pid])
                for number in range(count):
                    monitors.emit(number % 4, EVENT, _data(number), time.time_ns())
                    if number % 500 == 0:
                        await asyncio.sleep(0)
                        await monitors.drained()
                read = time.monotonic() - begun
                took = await _delivered(Path(folder) / "delivered", count) - begun
                spent = cpu_seconds([process.pid]) - before
                found = await said(process)
    rate = len(found) / spent
    return [
        Row("flood: read by the agent", f"{count / read:,.0f} events a second"),
        Row(
            "flood: through one core into Kafka",
            f"{rate:,.0f} events a CPU second, {len(found):,} of {count:,} in {took:.0f} s",
            rate / 30_000,
            "30,000",
            "≥ 1",
            rate >= 30_000,
        ),
        Row(
            "flood: an event to Kafka's acknowledgement",
            f"{median(found) / 1000:.1f} s in the median, {max(found) / 1000:.1f} s at most",
        ),
    ]


async def _delivered(counted: Path, count: int) -> float:
    """Wait until so many were delivered, or none is any more; return when, in seconds on the monotonic clock."""
    seen, at = "", time.monotonic()
    while time.monotonic() - at < REST_SECONDS and seen != str(count):
        await asyncio.sleep(0.05)
        if (now := _text(counted)) != seen:
            seen, at = now, time.monotonic()
    return at


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class _broker:  # noqa: N801 - used as a function
    """One broker with the agent's topics."""

    async def __aenter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="qmp-")
        self._kafka = KafkaCluster(Path(self._folder.name) / "kafka")
        await self._kafka.start()
        for topic in ("qemu.events", "qemu.samples", "qemu.alerts"):
            await self._kafka.create_topic(topic, partitions=4)
        return self._kafka.bootstrap[0]

    async def __aexit__(self, *_: object) -> None:
        await self._kafka.stop()
        self._folder.cleanup()
