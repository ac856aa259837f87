"""Ways to reach a guest agent: the Unix socket of its channel."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol

from agent.common.config_types import matches_vm
from agent.guest.api import GuestFacts
from agent.guest.config import GuestAgentConfig
from agent.host.qemu_processes import pid_if_qemu
from agent.model.record import Vm
from agent.monitors.dial import unix_connector
from agent.qga.client import GuestAgentClient
from agent.qga.errors import GuestAgentError, GuestChannelDeniedError, GuestChannelError


class GuestChannel(Protocol):
    """An open connection to one guest agent. `GuestAgentClient` is the implementation over a socket."""

    @property
    def ended(self) -> asyncio.Future[GuestAgentError]:
        """Done when the connection has ended; its result is the cause."""

    async def execute(self, name: str, *, deadline: float) -> Any:
        """Execute one command within `deadline` seconds; raises what `GuestAgentClient.execute` raises."""

    def close(self) -> None:
        """End the connection now."""


ChannelOpener = Callable[[GuestFacts], Awaitable[GuestChannel]]
"""Opens a channel; raises what `GuestAgentClient.open` raises."""


def opener_of(vm: Vm, config: GuestAgentConfig) -> ChannelOpener:
    """Return the opener of a VM's channel: the socket of the config if it names one, else the socket that QEMU reports."""
    entry = next((entry for entry in config.channels if matches_vm(entry.vm, vm.name, vm.uuid)), None)
    if entry is None:
        return partial(_open_reported, config.timeout)
    return partial(_open_configured, config.timeout, entry.socket, vm)


async def _open_reported(timeout: float, facts: GuestFacts) -> GuestChannel:  # noqa: ASYNC109 - the client's deadline
    """Open the socket that QEMU reports. QEMU chooses this path, so only QEMU itself may listen there."""
    if not facts.socket:
        raise GuestChannelError("the channel is not on a Unix socket that QEMU listens on: set guest_agent.channels")
    return await GuestAgentClient.open(
        unix_connector(facts.socket), deadline=timeout, check_peer=partial(_check_peer, facts.pid)
    )


def _check_peer(expected: int | None, pid: int | None) -> str:
    """Return why the process that listens is not the VM's QEMU; empty if it is."""
    if pid is None:
        return "the process that listens at the channel is unknown: set guest_agent.channels"
    if expected is not None and pid != expected:
        return f"process {pid} listens at the channel, and not the VM's QEMU, which is {expected}"
    if expected is None and pid_if_qemu(pid) is None:
        return f"process {pid} listens at the channel, and it is not a QEMU"
    return ""


async def _open_configured(timeout: float, socket: str, vm: Vm, _facts: GuestFacts) -> GuestChannel:  # noqa: ASYNC109 - as above
    return await GuestAgentClient.open(unix_connector(socket_path(socket, vm)), deadline=timeout)


def socket_path(pattern: str, vm: Vm) -> str:
    """Return the path of a VM's socket.

    Raises:
        GuestChannelDeniedError: the VM's name would lead to another directory.
    """
    values = {"{name}": vm.name, "{uuid}": vm.uuid, "{monitor}": PurePath(vm.monitor).stem}
    for placeholder, value in values.items():
        if placeholder in pattern and (not value or "/" in value or "\0" in value or value.startswith(".")):
            raise GuestChannelDeniedError("the VM's name cannot be part of a path")
        pattern = pattern.replace(placeholder, value)
    return pattern
