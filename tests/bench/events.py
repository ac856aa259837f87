"""Latency of events into Kafka, and throughput of a flood of events."""

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Final, NamedTuple

from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, role, stop
from tests.bench.table import Row
from tests.lab.kafka import KafkaCluster
from tests.lab.waiting import until

VMS: Final = 500
POLL_SECONDS: Final = 10.0
PER_SECOND: Final = 100
IDLE_SECONDS: Final = 5.0
"""Time without a delivery after which the flood counts as delivered."""
EVENT: Final = "JOB_STATUS_CHANGE"


class FloodTimes(NamedTuple):
    """The times of a flood.

    Attributes:
        read: Seconds until the agent had read all events.
        took: Seconds until the last delivery.
        spent: CPU seconds of the agent.
        latencies: Milliseconds from each event to Kafka's acknowledgement.
    """

    read: float
    took: float
    spent: float
    latencies: list[float]


def _data(number: int) -> dict[str, str]:
    """Return an event's data. Each event has another job, so that none of them are coalesced."""
    return {"id": f"job{number}", "status": "running"}


async def milliseconds(name: str, servers: str, seconds: float, tree: Path | None = None) -> list[float]:
    """Return the latency of each event, from its timestamp to Kafka's acknowledgement.

    Args:
        name: The role that delivers the events.
        servers: The address of the broker.
        seconds: How long events are emitted.
        tree: The working tree with the code of the role; None for the code of this process.
    """
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with (
            Monitors(Path(folder), VMS) as monitors,
            role(name, folder, POLL_SECONDS, servers, tree=tree) as process,
        ):
            await until(lambda: len(monitors.clients) == VMS and monitors.answered[b"qmp_capabilities"] >= VMS, 60)
            if name == "agent-kafka":
                await until(lambda: monitors.answered[b"query-blockstats"] >= VMS, 60)
            await asyncio.sleep(5)  # the attach is over, and the producer is connected to its partitions
            for number in range(int(seconds * PER_SECOND)):
                monitors.emit(number % VMS, EVENT, _data(number), time.time_ns())
                await asyncio.sleep(1 / PER_SECOND)
            await asyncio.sleep(1)
            latencies: list[float] = await stop(process)
    return latencies


async def event_latency(*, short: bool) -> list[Row]:
    """Return the rows of the latency of events."""
    seconds = 5.0 if short else 20.0
    async with Broker() as servers:
        cuts = {
            name: quantiles((await milliseconds(name, servers, seconds))[PER_SECOND:], n=100, method="inclusive")
            for name in ("aiokafka", "agent-kafka")
        }
    ours, bare = cuts["agent-kafka"], cuts["aiokafka"]
    rows = []
    for what, at, target in (("median", 49, 5.0), ("99th percentile", 98, 25.0)):
        rows.append(Row(f"bare aiokafka, {what}", f"{bare[at]:.1f} ms"))
        rows.append(
            Row(
                f"event to Kafka's acknowledgement, {VMS} VMs polled as well, {what}",
                f"{ours[at]:.1f} ms",
                ours[at] / bare[at],
                "bare",
                f"< {target:g} ms and ≤ 2",
                ours[at] < target and ours[at] <= 2 * bare[at],
            )
        )
    return rows


async def flood(*, short: bool) -> list[Row]:
    """Return the rows of the throughput of a flood."""
    count = 50_000 if short else 300_000
    async with Broker() as servers:
        read, took, spent, latencies = await one_flood(servers, count)
    rate = len(latencies) / spent
    return [
        Row("flood: read by the agent", f"{count / read:,.0f} events a second"),
        Row(
            "flood: through one core into Kafka",
            f"{rate:,.0f} events a CPU second, {len(latencies):,} of {count:,} in {took:.0f} s",
            rate / 30_000,
            "30,000",
            "≥ 1",
            rate >= 30_000,
        ),
        Row(
            "flood: an event to Kafka's acknowledgement",
            f"median {median(latencies) / 1000:.1f} s, maximum {max(latencies) / 1000:.1f} s",
        ),
    ]


async def one_flood(servers: str, count: int, tree: Path | None = None) -> FloodTimes:
    """Emit a flood of events, and wait until they are delivered.

    Args:
        servers: The address of the broker.
        count: The number of events.
        tree: The working tree with the code of the agent; None for the code of this process.
    """
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with (
            Monitors(Path(folder), 4) as monitors,
            role("agent-kafka", folder, POLL_SECONDS, servers, tree=tree) as process,
        ):
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
            return FloodTimes(read, took, spent, await stop(process))


async def _delivered(counter: Path, count: int) -> float:
    """Wait until `count` events were delivered, or deliveries stop.

    Returns:
        The time of the last delivery in seconds on the monotonic clock.
    """
    last, at = "", time.monotonic()
    while time.monotonic() - at < IDLE_SECONDS and last != str(count):
        await asyncio.sleep(0.05)
        if (current := _text(counter)) != last:
            last, at = current, time.monotonic()
    return at


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class Broker:
    """One broker with the agent's topics."""

    async def __aenter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory(prefix="qmp-")
        self._kafka = KafkaCluster(Path(self._folder.name) / "kafka")
        await self._kafka.start()
        for topic in ("qemu.events", "qemu.samples", "qemu.alerts", "qemu.state"):
            await self._kafka.create_topic(topic, partitions=4)
        return self._kafka.bootstrap[0]

    async def __aexit__(self, *_: object) -> None:
        await self._kafka.stop()
        self._folder.cleanup()
