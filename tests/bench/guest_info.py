"""CPU of `virsh guestinfo` and its libvirtd for one guest, of this agent and of qemu-ga: for each query, and at a pace for an hour."""

import asyncio
import contextlib
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError
from agent.qga.client import GuestAgentClient
from tests.bench.guest_agents import POLL_SECONDS, REPLIES
from tests.bench.libvirt_exporter import processes_of
from tests.bench.monitors import Monitors
from tests.bench.process import cpu_seconds, role, stop
from tests.bench.table import Row
from tests.lab.guest_agent import GuestAgentProcess
from tests.lab.libvirt import Libvirtd
from tests.lab.libvirt_linux import linux_domain
from tests.lab.waiting import until

COMMANDS: Final = (
    "guest-get-users",
    "guest-get-osinfo",
    "guest-get-timezone",
    "guest-get-host-name",
    "guest-get-fsinfo",
    "guest-network-get-interfaces",
)
"""The commands of virDomainGetGuestInfo that the agent sends as well."""
PACE_SECONDS: Final = 10.0
"""Interval of the queries of a guest."""
GUESTS: Final = 10
"""Number of guests of the agent: the difference that one makes is small."""


async def guest_info(*, short: bool) -> list[Row]:
    """Return the rows."""
    rounds, seconds = (20, 20.0) if short else (100, 60.0)
    try:
        virsh, libvirtd, paced_virsh, paced_libvirtd = await _virsh_cost(rounds, seconds)
        client, guest_agent = await _client_cost(rounds)
        agent, paced_guest_agent = await _paced_agent_cost(seconds)
    except MissingDependencyError as error:
        return [Row("virsh guestinfo", f"not measured: {error}")]
    theirs = paced_virsh + paced_libvirtd
    return [
        Row(
            "virsh guestinfo, for one guest",
            f"{virsh + libvirtd:.0f} us (virsh {virsh:.0f}, libvirtd {libvirtd:.0f})",
        ),
        Row(
            "the agent's client, the same commands on the channel",
            f"{client:.0f} us",
            client / (virsh + libvirtd),
            "virsh guestinfo's",
        ),
        Row("qemu-ga itself, the same commands", f"{guest_agent:.0f} us"),
        Row(
            f"virsh guestinfo each {PACE_SECONDS:g} s, for one guest",
            f"{theirs:.1f} s an hour (virsh {paced_virsh:.1f}, libvirtd {paced_libvirtd:.1f})",
        ),
        Row(
            "the agent at the same pace, all its commands, with records and series",
            f"{agent:.1f} s an hour",
            agent / theirs,
            "virsh guestinfo's",
        ),
        Row("qemu-ga itself at the same pace, all the agent's commands", f"{paced_guest_agent:.1f} s an hour"),
    ]


async def _virsh_cost(rounds: int, seconds: float) -> tuple[float, float, float, float]:
    """Return microseconds of virsh and of libvirtd for each query, and their seconds an hour at the pace."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with Libvirtd(Path(path)) as libvirtd:
            await linux_domain(libvirtd)
            daemon = processes_of(str(libvirtd.folder / "libvirtd.conf"))
            virsh, spent = await _virsh_queries(libvirtd, daemon, rounds, 0)
            paced = int(seconds / PACE_SECONDS)
            paced_virsh, paced_spent = await _virsh_queries(libvirtd, daemon, paced, PACE_SECONDS)
            start, idle = time.monotonic(), cpu_seconds(daemon)
            await asyncio.sleep(PACE_SECONDS)
            idle = (cpu_seconds(daemon) - idle) / (time.monotonic() - start) * PACE_SECONDS
    hourly = 3600 / PACE_SECONDS
    return virsh * 1e6, spent * 1e6, paced_virsh * hourly, (paced_spent - idle) * hourly


async def _virsh_queries(libvirtd: Libvirtd, daemon: list[int], count: int, pace: float) -> tuple[float, float]:
    """Run `virsh guestinfo` every `pace` seconds. Return the CPU seconds of virsh and of libvirtd for each."""
    before, spent = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_seconds(daemon)
    for _ in range(count):
        due = time.monotonic() + pace
        await libvirtd.virsh("guestinfo", "linux-1")
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    after, spent = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_seconds(daemon) - spent
    virsh = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return virsh / count, spent / count


async def _client_cost(rounds: int) -> tuple[float, float]:
    """Return microseconds of this process and of qemu-ga."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with GuestAgentProcess(Path(path)) as guest_agent:
            assert guest_agent.process is not None

            async def connect(factory: Callable[[], asyncio.Protocol]) -> asyncio.BaseTransport:
                transport, _ = await loop.create_unix_connection(factory, str(guest_agent.socket))
                return transport

            client = await GuestAgentClient.open(connect, deadline=5)
            await client.execute("guest-info", deadline=10)
            pids = [guest_agent.process.pid]
            own, spent = time.process_time(), cpu_seconds(pids)
            for _ in range(rounds):
                for name in COMMANDS:
                    await client.execute(name, deadline=10)
            own, spent = time.process_time() - own, cpu_seconds(pids) - spent
            client.close()
    return own / rounds * 1e6, spent / rounds * 1e6


async def _paced_agent_cost(seconds: float) -> tuple[float, float]:
    """Return CPU seconds an hour for one guest: of the agent, beyond its polls of QEMU, and of qemu-ga."""
    with_queries, guest_agent = await _agent_cpu(PACE_SECONDS, seconds)
    without, _ = await _agent_cpu(0, seconds)
    return (with_queries - without) / GUESTS * 3600, guest_agent / GUESTS * 3600


async def _agent_cpu(interval: float, seconds: float) -> tuple[float, float]:
    """Return CPU seconds a second of an agent that queries each guest agent at this interval, and of all guest agents."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qmp-")))
        monitors = await stack.enter_async_context(Monitors(folder, GUESTS, REPLIES))
        processes = [
            await stack.enter_async_context(GuestAgentProcess(folder, name=f"vm{number}")) for number in range(GUESTS)
        ]
        agent = await stack.enter_async_context(role("agent-guests", folder, POLL_SECONDS, interval))
        await until(lambda: monitors.answered[b"query-blockstats"] >= 15 * GUESTS, 120)
        pids = [process.process.pid for process in processes if process.process is not None]
        start, own, theirs = time.monotonic(), cpu_seconds([agent.pid]), cpu_seconds(pids)
        await asyncio.sleep(seconds)
        elapsed = time.monotonic() - start
        own, theirs = cpu_seconds([agent.pid]) - own, cpu_seconds(pids) - theirs
        await stop(agent)
    return own / elapsed, theirs / elapsed
