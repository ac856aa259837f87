"""What a steady poll costs: the agent's CPU beside a floor and beside QEMU's own client; QEMU's beside it; and over many VMs."""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from math import log
from pathlib import Path
from typing import Final

from agent.cli.demo.guest import Guest, GuestOptions, until
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, role
from tests.bench.table import Row

INTERVAL_SECONDS: Final = 0.25
ROUNDS: Final = 3
"""How often each is measured, in turns; the least counts, since what disturbs only ever adds."""


async def microseconds(name: str, vms: int, seconds: float, interval: float = INTERVAL_SECONDS) -> float:
    """Return the CPU that one role takes for one poll of a scripted monitor, its start left out."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as folder:
        async with Monitors(Path(folder), vms) as monitors, role(name, folder, interval) as process:
            await until(lambda: monitors.answered[b"query-blockstats"] >= 4 * vms, 60)
            before, polls = cpu_seconds([process.pid]), monitors.answered[b"query-blockstats"]
            await asyncio.sleep(seconds)
            spent, polls = cpu_seconds([process.pid]) - before, monitors.answered[b"query-blockstats"] - polls
    return spent / polls * 1e6


async def real(vms: int, seconds: float) -> float:
    """Return the microseconds of its CPU that one poll takes of a real, quiet QEMU, less what it takes idle."""
    disks = [
        part
        for number in range(2)
        for part in (
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
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            found[name].append(await microseconds(name, vms, seconds))
    floor, ours, peer = (min(found[name]) for name in names)
    rows = [
        Row("floor: send, parse, two records, a Kafka batch", f"{floor:.0f} us a poll"),
        Row("agent, one poll of two disks", f"{ours:.0f} us", ours / floor, "the floor", "≤ 2", ours <= 2 * floor),
        Row("qemu.qmp, which only reads", f"{peer:.0f} us", peer / ours, "the agent", "≥ 4", peer >= 4 * ours),
    ]
    if not short:
        cost = {
            n: min([await microseconds("agent", n, seconds, max(0.1, n / 400)) for _ in range(2)])
            for n in (10, 100, 1000)
        }
        exponent = 1 + log(cost[1000] / cost[100]) / log(10)
        figures = ", ".join(f"{n}: {us:.0f} us" for n, us in cost.items())
        rows.append(Row("agent, a poll among so many VMs", figures, exponent, "(exponent)", "< 1.05", exponent < 1.05))
        qemu = await real(50, 10.0)
        rows.append(Row("a real QEMU with two quiet disks, its own part", f"{qemu:.0f} us"))
    return rows
