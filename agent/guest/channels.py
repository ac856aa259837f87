"""Ways to reach a guest agent: the Unix socket of its channel, or the VM's manager."""

from functools import partial
from pathlib import PurePath
from typing import Protocol

from agent.common.config_types import matches_vm
from agent.guest.api import GuestFacts
from agent.guest.config import GuestAgentConfig
from agent.host.qemu_processes import pid_if_qemu
from agent.model.record import Vm
from agent.monitors.dial import unix_connector
from agent.qga.channel import GuestChannel, OpenGuestChannel
from agent.qga.client import GuestAgentClient, PeerCheck
from agent.qga.errors import GuestChannelDeniedError, GuestChannelError

SHARED_SOCKETS = ("/run/qemu-server/", "/var/run/qemu-server/")
"""Directories of Proxmox' sockets. Its tools connect to a channel for each command, so the agent must not hold it."""
SHARED_TIMEOUT_SECONDS = 1.0
"""Maximum timeout of a command on a shared channel. Proxmox' tools wait 3 s for a guest agent to respond, the queue included."""


class ChannelSource(Protocol):
    """Opens the channel of one VM's guest agent."""

    def is_shared(self, facts: GuestFacts) -> bool:
        """Return whether another client needs the channel, too. The agent then connects for each round of queries only."""

    async def open(self, facts: GuestFacts) -> GuestChannel:
        """Open the channel; raises what `GuestAgentClient.open` raises."""


class SocketSource:
    """Opens the Unix socket of a channel: the one that the config names, or else the one that QEMU reports."""

    def __init__(self, vm: Vm, config: GuestAgentConfig) -> None:
        self._vm = vm
        self._timeout = config.timeout
        self._entry = next((entry for entry in config.channels if matches_vm(entry.vm, vm.name, vm.uuid)), None)

    def is_shared(self, facts: GuestFacts) -> bool:
        """Return whether another client needs the channel, too: the config says so, or it is Proxmox' socket."""
        if self._entry is not None and self._entry.shared is not None:
            return self._entry.shared
        return (self._entry.socket if self._entry is not None else facts.socket).startswith(SHARED_SOCKETS)

    async def open(self, facts: GuestFacts) -> GuestChannel:
        """Connect. QEMU chooses the path that it reports, so only QEMU itself may listen there.

        Raises:
            GuestChannelError: there is no Unix socket, or it cannot be reached.
        """
        if self._entry is not None:
            path = socket_path(self._entry.socket, self._vm)
            check: PeerCheck = _accept_any_peer
        elif facts.socket:
            path, check = facts.socket, partial(_check_peer, facts.pid)
        else:
            raise GuestChannelError(
                "the channel is not on a Unix socket that QEMU listens on: set guest_agent.channels"
            )
        return await GuestAgentClient.open(unix_connector(path), deadline=self._timeout, check_peer=check)


class ManagerSource:
    """Opens a connection over the VM's manager, which holds the channel."""

    def __init__(self, open_channel: OpenGuestChannel) -> None:
        self._open_channel = open_channel

    def is_shared(self, _facts: GuestFacts) -> bool:
        """Return False: the manager serves several clients."""
        return False

    async def open(self, _facts: GuestFacts) -> GuestChannel:
        """Open the connection."""
        return await self._open_channel()


def channel_source(vm: Vm, config: GuestAgentConfig, open_channel: OpenGuestChannel | None) -> ChannelSource:
    """Return how to reach a VM's guest agent: the config's socket, else the manager, else the socket that QEMU reports."""
    is_configured = any(matches_vm(entry.vm, vm.name, vm.uuid) for entry in config.channels)
    return ManagerSource(open_channel) if open_channel is not None and not is_configured else SocketSource(vm, config)


def _accept_any_peer(_pid: int | None) -> str:
    return ""


def _check_peer(expected: int | None, pid: int | None) -> str:
    """Return why the process that listens is not the VM's QEMU; empty if it is."""
    if pid is None:
        return "the process that listens at the channel is unknown: set guest_agent.channels"
    if expected is not None and pid != expected:
        return f"process {pid} listens at the channel, and not the VM's QEMU, which is {expected}"
    if expected is None and pid_if_qemu(pid) is None:
        return f"process {pid} listens at the channel, and it is not a QEMU"
    return ""


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
