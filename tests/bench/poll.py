"""CPU of a steady poll: of the agent, of a floor, of QEMU's own client library, of QEMU, and as a function of the number of VMs."""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from math import log
from pathlib import Path
from typing import Final

from agent.cli.demo.guest import Guest, GuestOptions
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, role
from tests.bench.table import Row
from tests.lab.waiting import until

INTERVAL_SECONDS: Final = 0.25
ROUNDS: Final = 3
"""Number of measurements of each role, in turns. The minimum counts, since disturbances only ever add."""


async def microseconds(name: str, vms: int, seconds: float, interval: float = INTERVAL_SECONDS) -> float:
    """Return the microseconds of CPU that a role takes for one poll of a scripted monitor, without its start."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with Monitors(Path(folder), vms) as monitors, role(name, folder, interval) as process:
            await until(lambda: monitors.answered[b"query-blockstats"] >= 4 * vms, 60)
            before, polls = cpu_seconds([process.pid]), monitors.answered[b"query-blockstats"]
            await asyncio.sleep(seconds)
            spent, polls = cpu_seconds([process.pid]) - before, monitors.answered[b"query-blockstats"] - polls
    return spent / polls * 1e6


async def qemu_microseconds(vms: int, seconds: float) -> float:
    """Return the microseconds of CPU that a poll costs a real, quiet QEMU, without its idle CPU."""
    disks = [
        argument
        for number in range(2)
        for argument in (
            *("-blockdev", f"null-co,node-name=n{number},size=1073741824,read-zeroes=on"),
            *("-device", f"virtio-blk,drive=n{number},id=disk{number}"),
        )
    ]
    machine = ("-machine", "q35", "-S", *disks)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
        guests = [Guest(folder, f"vm{n}", GuestOptions(extra=machine)) for n in range(vms)]
        for guest in guests:
            await stack.enter_async_context(guest)
        pids = [guest.process.pid for guest in guests if guest.process is not None]
        idle = cpu_seconds(pids)
        await asyncio.sleep(seconds)
        idle = cpu_seconds(pids) - idle
        await stack.enter_async_context(role("agent", folder, INTERVAL_SECONDS))
        await asyncio.sleep(5)
        before = cpu_seconds(pids)
        await asyncio.sleep(seconds)
        spent = cpu_seconds(pids) - before
    return (spent - idle) / (vms * seconds / INTERVAL_SECONDS) * 1e6


async def poll(*, short: bool) -> list[Row]:
    """Return the rows."""
    names, vms, seconds = ("floor", "agent", "qemu.qmp"), 100, 2.0 if short else 5.0
    results: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            results[name].append(await microseconds(name, vms, seconds))
    floor, ours, peer = (min(results[name]) for name in names)
    rows = [
        Row("floor: send, parse, two records, a Kafka batch", f"{floor:.0f} us a poll"),
        Row("agent, one poll of two disks", f"{ours:.0f} us", ours / floor, "the floor", "≤ 1.6", ours <= 1.6 * floor),
        Row("qemu.qmp, which only reads", f"{peer:.0f} us", peer / ours, "the agent", "≥ 4", peer >= 4 * ours),
    ]
    if not short:
        cost = {
            n: min([await microseconds("agent", n, seconds, max(0.1, n / 400)) for _ in range(2)])
            for n in (10, 100, 1000)
        }
        exponent = 1 + log(cost[1000] / cost[100]) / log(10)
        figures = ", ".join(f"{n}: {us:.0f} us" for n, us in cost.items())
        rows.append(Row("agent, a poll by number of VMs", figures, exponent, "(exponent)", "< 1.05", exponent < 1.05))
        qemu = await qemu_microseconds(50, 10.0)
        rows.append(Row("QEMU's own CPU for a poll of two quiet disks", f"{qemu:.0f} us"))
    return rows
