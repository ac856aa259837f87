"""CPU of `virsh guestinfo` and its libvirtd for one guest, and of this agent's client for the same commands over the channel itself."""

import asyncio
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.cli.demo.images import MissingDependencyError
from agent.qga.client import GuestAgentClient
from tests.bench.libvirt_exporter import processes_of
from tests.bench.process import cpu_seconds
from tests.bench.table import Row
from tests.lab.guest_agent import GuestAgentProcess
from tests.lab.libvirt import Libvirtd
from tests.lab.libvirt_linux import linux_domain

COMMANDS: Final = (
    "guest-get-users",
    "guest-get-osinfo",
    "guest-get-timezone",
    "guest-get-host-name",
    "guest-get-fsinfo",
    "guest-network-get-interfaces",
)
"""The commands of virDomainGetGuestInfo that the agent sends as well."""


async def guest_info(*, short: bool) -> list[Row]:
    """Return the rows."""
    rounds = 20 if short else 100
    try:
        virsh, libvirtd = await _virsh_cost(rounds)
        client, guest_agent = await _client_cost(rounds)
    except MissingDependencyError as error:
        return [Row("virsh guestinfo", f"not measured: {error}")]
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
    ]


async def _virsh_cost(rounds: int) -> tuple[float, float]:
    """Return microseconds of virsh and of libvirtd."""
    with tempfile.TemporaryDirectory(prefix="qmp-") as path:
        async with Libvirtd(Path(path)) as libvirtd:
            await linux_domain(libvirtd)
            daemon = processes_of(str(libvirtd.folder / "libvirtd.conf"))
            before, spent = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_seconds(daemon)
            for _ in range(rounds):
                await libvirtd.virsh("guestinfo", "linux-1")
            after, spent = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_seconds(daemon) - spent
    virsh = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return virsh / rounds * 1e6, spent / rounds * 1e6


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
