"""Big shapes: many disks, long backing chains, many VMs, many series, many viewers and many storms. Nothing may grow faster than its input.

A block of the event loop is CPU time of its thread, so that other processes do not count. How late the polls of other VMs are
is time of day, so it depends on the machine's load.
"""

import asyncio
import contextlib
import copy
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from math import log
from pathlib import Path
from typing import Any, Final

import aiohttp

from agent.exposition.prometheus import render_metrics
from tests.bench.monitors import Monitors, line, two_disks
from tests.bench.process import cpu_seconds, role, stop
from tests.bench.scrape import filled_agent, stall
from tests.bench.table import Row
from tests.lab.waiting import until

POLL_SECONDS: Final = 2.0
WATCHERS: Final = 20
"""Number of ordinary VMs beside the big one, whose polls must not be late."""
MAX_BLOCK_MS: Final = 20.0
EVENT: Final = "JOB_STATUS_CHANGE"


class BigRun:
    """The figures of one run.

    Attributes:
        cpu: CPU seconds of the agent in each second.
        longest_ms: The longest block of its event loop in milliseconds of CPU.
        late_seconds: How late the latest poll of any VM was.
    """

    def __init__(self) -> None:
        self.cpu = 0.0
        self.longest_ms = 0.0
        self.late_seconds = 0.0


async def run_agent(
    vms: int, seconds: float, prepare: Callable[[Monitors], None], load: Callable[[Monitors, str], Awaitable[None]]
) -> BigRun:
    """Run the agent on scripted monitors.

    Args:
        vms: Number of monitors.
        seconds: How long to measure after the attach.
        prepare: Changes the replies.
        load: Runs while the agent is measured, given the monitors and the endpoint's URL.
    """
    result, port = BigRun(), _free_port()
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with Monitors(Path(folder), vms) as monitors:
            prepare(monitors)
            async with role("agent-watched", folder, POLL_SECONDS, port) as process:
                await until(lambda: len(monitors.polled_at) >= vms, 240)
                await until(lambda: monitors.answered[b"query-blockstats"] >= 4 * vms, 240)
                process.send_signal(signal.SIGUSR1)
                monitors.longest_gap = 0.0
                before, begun = cpu_seconds([process.pid]), time.monotonic()
                loading = asyncio.ensure_future(load(monitors, f"http://127.0.0.1:{port}"))
                await asyncio.sleep(seconds)
                result.cpu = (cpu_seconds([process.pid]) - before) / (time.monotonic() - begun)
                result.late_seconds = max(0.0, monitors.longest_gap - POLL_SECONDS)
                loading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await loading
                result.longest_ms = (await stop(process))["longest_ms"]
    return result


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def _no_load(_monitors: Monitors, _url: str) -> None:
    """Do nothing: the polls are the load."""


def _rows(what: str, run: BigRun) -> list[Row]:
    return [
        Row(
            f"{what}: longest block of the event loop",
            f"{run.longest_ms:.0f} ms of CPU",
            target=f"≤ {MAX_BLOCK_MS:g} ms",
            met=run.longest_ms <= MAX_BLOCK_MS,
        ),
        Row(
            f"{what}: latest poll of any VM",
            f"{run.late_seconds:.2f} s late",
            target="≤ 1 interval",
            met=run.late_seconds <= POLL_SECONDS,
        ),
    ]


def _exponent(few: float, many: float, factor: float) -> float:
    """Return the exponent of the cost's growth with its input; 1 if the cost is proportional to the input."""
    return log(many / few) / log(factor)


async def _growth(
    what: str, size: int, factor: int, reply_of: Callable[[int], list[dict[str, Any]]], seconds: float
) -> list[Row]:
    """Return the rows of one VM with a big reply to query-blockstats, compared with a smaller one."""
    runs: dict[int, BigRun] = {}
    for number in (0, size // factor, size):
        reply = line({"return": reply_of(number)}) if number else None

        def prepare(monitors: Monitors, reply: bytes | None = reply) -> None:
            if reply is not None:
                monitors.own_blockstats[0] = reply

        runs[number] = await run_agent(WATCHERS + 1, seconds, prepare, _no_load)
    few, many = (runs[number].cpu - runs[0].cpu for number in (size // factor, size))
    exponent = _exponent(max(few, 1e-6), max(many, 1e-6), factor)
    each = many * POLL_SECONDS / size * 1e6
    return [
        Row(f"{what}: CPU", f"{each:.0f} us each and poll", exponent, "(exponent)", "≤ 1.05", exponent <= 1.05),
        *_rows(what, runs[size]),
    ]


def _disks(count: int) -> list[dict[str, Any]]:
    disk, disks = two_disks()[0], []
    for number in range(count):
        other = copy.deepcopy(disk)
        other["qdev"], other["node-name"] = f"/machine/peripheral/disk{number}/virtio-backend", f"node{number}"
        other["parent"]["node-name"] = f"storage{number}"
        disks.append(other)
    return disks


def _chain(layers: int) -> list[dict[str, Any]]:
    """Return one disk with a backing chain."""
    disk = two_disks()[0]
    layer = disk
    for number in range(layers):
        below = copy.deepcopy(two_disks()[0])
        below.pop("qdev")
        below["node-name"] = f"layer{number}"
        layer["backing"] = layer = below
    return [disk]


async def _many_vms(count: int, seconds: float) -> list[Row]:
    few, many = [await run_agent(vms, seconds, lambda _: None, _no_load) for vms in (count // 10, count)]
    exponent = _exponent(few.cpu, many.cpu, 10)
    what = f"{count:,} VMs"
    figure = f"{many.cpu * POLL_SECONDS / count * 1e6:.0f} us each and poll"
    return [
        Row(f"{what}: CPU", figure, exponent, "(exponent)", "≤ 1.05", exponent <= 1.05),
        *_rows(what, many),
    ]


async def _million_series(count: int) -> list[Row]:
    costs = {}
    for series in (count // 10, count):
        app, exact = filled_agent(series)
        begun = time.process_time()
        render_metrics(app.snapshot)
        costs[series] = time.process_time() - begun
    block = await stall(app)
    exponent = _exponent(costs[count // 10], costs[count], 10)
    what = f"scrape of {count:,} series"
    return [
        Row(
            f"{what}: CPU",
            f"{costs[count] / exact * 1e6:.2f} us a series",
            exponent,
            "(exponent)",
            "≤ 1.05",
            exponent <= 1.05,
        ),
        Row(f"{what}: longest block of the event loop", f"{block * 1000:.0f} ms", target="≤ 20 ms", met=block <= 0.02),
    ]


@contextlib.asynccontextmanager
async def _viewers(url: str, count: int) -> AsyncIterator[list[int]]:
    """Open the overview's stream as a page does, `count` times; yield the HTTP statuses."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        statuses: list[int] = []

        async def view() -> None:
            while True:
                async with session.get(f"{url}/overview/live", headers={"Accept": "text/event-stream"}) as response:
                    statuses.append(response.status)
                    async for _ in response.content.iter_any():
                        pass
                await asyncio.sleep(1)

        tasks = [asyncio.ensure_future(view()) for _ in range(count)]
        try:
            yield statuses
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _many_viewers(count: int, seconds: float) -> list[Row]:
    statuses: list[int] = []

    async def load(_monitors: Monitors, url: str) -> None:
        async with _viewers(url, count) as seen:
            try:
                await asyncio.Event().wait()
            finally:
                statuses.extend(seen)

    idle = await run_agent(100, seconds, lambda _: None, _no_load)
    run = await run_agent(100, seconds, lambda _: None, load)
    what = f"{count} viewers of the page"
    accepted = sum(status == 200 for status in statuses)
    figure = (
        f"{(run.cpu - idle.cpu) * 100:.1f} % of a core, {accepted} streams accepted, {len(statuses) - accepted} refused"
    )
    return [Row(f"{what}: CPU", figure), *_rows(what, run)]


async def _storms(count: int, seconds: float) -> list[Row]:
    async def load(monitors: Monitors, _url: str) -> None:
        number = 0
        while True:
            for vm in list(monitors.clients):
                monitors.emit(vm, EVENT, {"id": f"job{number}", "status": "running"}, time.time_ns())
            number += 1
            await monitors.drained()
            await asyncio.sleep(0.05)

    run = await run_agent(count, seconds, lambda _: None, load)
    what = f"{count} VMs storming at once"
    return [Row(f"{what}: CPU", f"{run.cpu * 100:.0f} % of a core"), *_rows(what, run)]


async def big(*, short: bool) -> list[Row]:
    """Return the rows."""
    seconds = 6.0 if short else 20.0
    return [
        *await _growth("a VM with 1,000 disks", 1000, 4, _disks, seconds),
        *await _growth("a disk with 64 layers", 64, 2, _chain, seconds),
        *await _many_vms(500 if short else 2000, seconds),
        *await _million_series(100_000 if short else 1_000_000),
        *await _many_viewers(200, seconds),
        *await _storms(100 if short else 500, seconds),
    ]
