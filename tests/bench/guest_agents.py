"""Cost of querying guest agents: of 200 guests, half never answer. The polls and the events of all VMs have to be as without queries."""

import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, cast

from agent.cli.demo.guest import until
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, resident_bytes, role, stop
from tests.bench.table import Row
from tests.lab.guest_transcript import load

VMS: Final = 200
POLL_SECONDS: Final = 1.0
NAME: Final = "org.qemu.guest_agent.0"
ROUNDS: Final = 3
"""Number of measurements with and without queries, in turns. The best counts, since disturbances only ever add."""

REPLIES: Final = {
    "qom-list": {"return": [{"name": "port0", "type": "child<virtserialport>"}]},
    "qom-get": {"return": NAME},
    "query-chardev": {"return": [{"label": NAME, "filename": "null", "frontend-open": True}]},
    "query-status": {"return": {"status": "running", "running": True}},
}
"""Replies of a VM whose guest has opened the channel."""

_GUEST_REPLIES: Final = {name: json.dumps(reply).encode() + b"\n" for name, reply in load().items()}


class _GuestAgent(asyncio.Protocol):
    """A guest agent that answers at once, or never."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is one by behaviour

    def data_received(self, data: bytes) -> None:
        if not self._answers:
            return
        request = json.loads(data.removeprefix(b"\xff"))
        if request["execute"] == "guest-sync-delimited":
            self._transport.write(b'\xff{"return": %d}\n' % request["arguments"]["id"])
        elif request["execute"] == "guest-get-time":
            self._transport.write(b'{"return": %d}\n' % time.time_ns())
        else:
            self._transport.write(_GUEST_REPLIES[request["execute"]])


@contextlib.asynccontextmanager
async def guest_agents(folder: Path) -> AsyncIterator[None]:
    """Run a guest agent for each VM; every second one never answers."""
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_unix_server(partial(_GuestAgent, answers=number % 2 == 0), folder / f"vm{number}.qga")
        for number in range(VMS)
    ]
    try:
        yield
    finally:
        for server in servers:
            server.close()


async def measure(guest_interval: float, seconds: float) -> tuple[float, float, list[float], int]:
    """Return CPU seconds and polls for each second, latencies of events in ms, and resident bytes; an interval of 0 queries no guest."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        folder = Path(path)
        async with (
            Monitors(folder, VMS, REPLIES) as monitors,
            guest_agents(folder),
            role("agent-guests", folder, POLL_SECONDS, guest_interval) as process,
        ):
            await until(lambda: monitors.answered[b"query-blockstats"] >= 15 * VMS, 120)
            before, polls, start = cpu_seconds([process.pid]), monitors.answered[b"query-blockstats"], time.monotonic()
            while time.monotonic() < start + seconds:
                now = time.time_ns()
                monitors.emit(random.randrange(VMS), "JOB_STATUS_CHANGE", {"id": f"j{now}", "status": "x"}, now)
                await asyncio.sleep(0.01)
            spent, elapsed = cpu_seconds([process.pid]) - before, time.monotonic() - start
            polls = monitors.answered[b"query-blockstats"] - polls
            memory = resident_bytes(process.pid)
            latencies = await stop(process)
    return spent / elapsed, polls / elapsed, latencies, memory


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def guest_agent_queries(*, short: bool) -> list[Row]:
    """Return the rows."""
    seconds, interval = 5.0 if short else 20.0, 10.0
    runs: dict[float, list[tuple[float, float, list[float], int]]] = {0.0: [], interval: []}
    for _ in range(1 if short else ROUNDS):
        for each, results in runs.items():
            results.append(await measure(each, seconds))
    (cpu, polls, median, p99, memory), (g_cpu, g_polls, g_median, g_p99, g_memory) = (
        (
            min(run[0] for run in results),
            max(run[1] for run in results),
            min(percentile(run[2], 50) for run in results),
            min(percentile(run[2], 99) for run in results),
            min(run[3] for run in results),
        )
        for results in runs.values()
    )
    added = (g_cpu - cpu) / VMS * 3600
    return [
        Row(
            f"{VMS} VMs: polls",
            f"{g_polls:.0f} a second",
            g_polls / polls,
            "without guest agents",
            "≥ 0.95",
            g_polls >= 0.95 * polls,
        ),
        Row(
            "an event to the sink, median",
            f"{g_median:.2f} ms",
            g_median / median,
            "without guest agents",
            "≤ 1.05",
            g_median <= 1.05 * median,
        ),
        Row("an event to the sink, 99th percentile", f"{g_p99:.2f} ms", g_p99 / p99, "without guest agents"),
        Row(f"CPU of a guest that is queried each {interval:g} s", f"{added:.1f} s an hour"),
        Row("memory of a guest that is queried", f"{(g_memory - memory) / VMS / 1024:.1f} KiB"),
    ]
