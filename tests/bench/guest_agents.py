"""Cost of querying guest agents: of 200 guests, half never answer. The polls and the events of all VMs have to be as without queries."""

import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, cast

from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, resident_bytes, role, stop
from tests.bench.table import Row
from tests.lab.guest_transcript import load
from tests.lab.waiting import until

VMS: Final = 200
POLL_SECONDS: Final = 1.0
NAME: Final = "org.qemu.guest_agent.0"
ROUNDS: Final = 5
"""Number of pairs of measurements, one with and one without queries, in alternating order. The median of the pairs' ratios counts."""

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


@dataclass(frozen=True, slots=True)
class Round:
    """The figures of one measurement.

    Attributes:
        cpu: CPU seconds a second.
        polls: Polls a second.
        median_ms: Median latency of an event in milliseconds.
        p99_ms: 99th percentile of the latency of an event in milliseconds.
        memory_bytes: Resident memory in bytes.
    """

    cpu: float
    polls: float
    median_ms: float
    p99_ms: float
    memory_bytes: int


async def measure(guest_interval: float, seconds: float) -> Round:
    """Measure an agent that queries each guest agent at this interval in seconds; 0 queries none."""
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
            percentiles = statistics.quantiles(await stop(process), n=100)
    return Round(spent / elapsed, polls / elapsed, percentiles[49], percentiles[98], memory)


async def measure_pairs(pairs: int, interval: float, seconds: float) -> list[tuple[Round, Round]]:
    """Return pairs of measurements, without and with queries. Each pair begins with the other one, so that a trend counts for neither."""
    results = []
    for number in range(pairs):
        order = (0.0, interval) if number % 2 == 0 else (interval, 0.0)
        rounds = {each: await measure(each, seconds) for each in order}
        results.append((rounds[0.0], rounds[interval]))
    return results


def _ratio_row(what: str, figure: str, pairs: Sequence[tuple[float, float]], *, more: bool = False) -> Row:
    """Return a row with the median of the ratios of all pairs, and with their range.

    Args:
        what: What was measured.
        figure: The format of the figure with queries.
        pairs: The figures without and with queries.
        more: Whether a higher ratio is better.
    """
    ratios = sorted(after / before for before, after in pairs)
    ratio, text = statistics.median(ratios), figure.format(statistics.median(after for _, after in pairs))
    target, met = ("≥ 0.95", ratio >= 0.95) if more else ("≤ 1.05", ratio <= 1.05)
    return Row(what, f"{text} ({ratios[0]:.2f} to {ratios[-1]:.2f} x)", ratio, "without guest agents", target, met)


async def guest_agent_queries(*, short: bool) -> list[Row]:
    """Return the rows."""
    interval = 10.0
    pairs = await measure_pairs(2 if short else ROUNDS, interval, interval)
    added = statistics.median(a.cpu - b.cpu for b, a in pairs) / VMS * 3600
    memory = statistics.median(a.memory_bytes - b.memory_bytes for b, a in pairs)
    return [
        _ratio_row(f"{VMS} VMs: polls", "{:.0f} a second", [(b.polls, a.polls) for b, a in pairs], more=True),
        _ratio_row("an event to the sink, median", "{:.2f} ms", [(b.median_ms, a.median_ms) for b, a in pairs]),
        _ratio_row("an event to the sink, 99th percentile", "{:.2f} ms", [(b.p99_ms, a.p99_ms) for b, a in pairs]),
        Row(f"CPU of a guest that is queried each {interval:g} s", f"{added:.1f} s an hour"),
        Row("memory of a guest that is queried", f"{memory / VMS / 1024:.1f} KiB"),
    ]
