"""Opens connections to guest agents: through the Unix socket of the channel, or through the VM's manager, such as libvirt."""

from functools import partial
from pathlib import PurePath
from typing import Protocol

from agent.common.vm_patterns import matches_vm
from agent.guest.config import GuestAgentConfig
from agent.guest.shared_types import GuestReachability
from agent.host.qemu_processes import pid_if_qemu
from agent.model.record import Vm
from agent.monitors.dial import unix_connector
from agent.qga.channel import GuestChannel, OpenGuestChannel
from agent.qga.client import GuestAgentClient, PeerCheck
from agent.qga.errors import GuestChannelAccessDeniedError, GuestChannelError

PROXMOX_SOCKET_DIRECTORIES = ("/run/qemu-server/", "/var/run/qemu-server/")
"""Directories of Proxmox VE's sockets. Proxmox VE's tools connect to a channel for each command, so the agent must not stay connected."""
SHARED_CHANNEL_TIMEOUT_SECONDS = 1.0
"""Maximum timeout of a command on a shared channel. Proxmox VE's tools wait 3 s in total, first for the channel and then for the reply."""


class ChannelOpener(Protocol):
    """Opens the channel of one VM's guest agent."""

    def is_shared(self, reachability: GuestReachability) -> bool:
        """Return whether another client also needs the channel. The agent disconnects from a shared channel after each round of queries."""

    async def open(self, reachability: GuestReachability) -> GuestChannel:
        """Open the channel. Raises the exceptions of `GuestAgentClient.open`."""


class SocketChannelOpener:
    """Connects to the Unix socket of a channel. The config or QEMU provides the path; the config has precedence."""

    def __init__(self, vm: Vm, config: GuestAgentConfig) -> None:
        self._vm = vm
        self._timeout = config.timeout
        self._entry = next((entry for entry in config.channels if matches_vm(entry.vm, vm.name, vm.uuid)), None)

    def is_shared(self, reachability: GuestReachability) -> bool:
        """Return the setting `shared`. The default is True for Proxmox VE's sockets, and False for other sockets."""
        if self._entry is not None and self._entry.shared is not None:
            return self._entry.shared
        return (self._entry.socket if self._entry is not None else reachability.socket).startswith(
            PROXMOX_SOCKET_DIRECTORIES
        )

    async def open(self, reachability: GuestReachability) -> GuestChannel:
        """Connect to the socket. Check that the VM's QEMU listens on the socket, if QEMU reported the socket's path.

        A hostile QEMU can report any path, so an unchecked connection could reach another program.

        Raises:
            GuestChannelError: there is no Unix socket, or the agent cannot connect to it.
        """
        if self._entry is not None:
            path = expand_socket_path(self._entry.socket, self._vm)
            check: PeerCheck = _accept_any_peer
        elif reachability.socket:
            path, check = reachability.socket, partial(_check_peer, reachability.pid)
        else:
            raise GuestChannelError("QEMU does not listen on a Unix socket for the channel: set guest_agent.channels")
        return await GuestAgentClient.open(unix_connector(path), deadline=self._timeout, check_peer=check)


class VmManagerChannelOpener:
    """Connects through the VM's manager, which is itself the client of the channel's socket."""

    def __init__(self, open_channel: OpenGuestChannel) -> None:
        self._open_channel = open_channel

    def is_shared(self, _reachability: GuestReachability) -> bool:
        """Return False: the agent may stay connected, because the manager serves several clients at the same time."""
        return False

    async def open(self, _reachability: GuestReachability) -> GuestChannel:
        """Open the connection to the guest agent through the manager."""
        return await self._open_channel()


def make_channel_opener(vm: Vm, config: GuestAgentConfig, open_channel: OpenGuestChannel | None) -> ChannelOpener:
    """Return the object that opens the channel of a VM's guest agent.

    A socket in the config has precedence over the manager. The manager has precedence over the socket that QEMU reports.
    """
    is_configured = any(matches_vm(entry.vm, vm.name, vm.uuid) for entry in config.channels)
    return (
        VmManagerChannelOpener(open_channel)
        if open_channel is not None and not is_configured
        else SocketChannelOpener(vm, config)
    )


def _accept_any_peer(_pid: int | None) -> str:
    return ""


def _check_peer(expected: int | None, pid: int | None) -> str:
    """Return why the agent must not use the channel; empty if the VM's QEMU listens on it, or any QEMU if `expected` is None.

    Args:
        expected: process ID of the VM's QEMU; None if unknown.
        pid: ID of the process that listens; None if unknown.
    """
    if pid is None:
        return "the process that listens at the channel is unknown: set guest_agent.channels"
    if expected is not None and pid != expected:
        return f"process {pid} listens at the channel, but the VM's QEMU is process {expected}"
    if expected is None and pid_if_qemu(pid) is None:
        return f"process {pid} listens at the channel, but it is not a QEMU process"
    return ""


def expand_socket_path(pattern: str, vm: Vm) -> str:
    """Return the path of a VM's socket: the configured pattern with its placeholders replaced.

    Raises:
        GuestChannelAccessDeniedError: a value for a placeholder is empty, contains a slash or begins with a dot.
    """
    values = {"{name}": vm.name, "{uuid}": vm.uuid, "{monitor}": PurePath(vm.monitor).stem}
    for placeholder, value in values.items():
        if placeholder in pattern and (not value or "/" in value or "\0" in value or value.startswith(".")):
            raise GuestChannelAccessDeniedError(f"the VM's value of {placeholder} cannot be part of a path")
        pattern = pattern.replace(placeholder, value)
    return pattern
