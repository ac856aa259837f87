"""Queries the guest agent of a domain through libvirt (virDomainGetGuestInfo), because libvirt itself occupies the guest agent's channel.

This module converts libvirt's results to the results of the guest agent's commands, so that the collectors read one format.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agent.monitors.libvirt.executors import ConnectedLibvirtd
from agent.monitors.libvirt.libvirt_python import LibvirtConnection
from agent.qga import commands
from agent.qga.errors import (
    GuestAgentCommandError,
    GuestAgentError,
    GuestChannelAccessDeniedError,
    GuestChannelError,
    GuestTimeoutError,
    UnreadableGuestReplyError,
)
from agent.qmp.errors import CommandError, ConnectPermissionError, QmpError, UnreadableReplyError

Params = Mapping[str, Any]
"""libvirt's typed parameters, such as `fs.0.mountpoint`."""

MAX_GUEST_CALLS = 2
"""Maximum number of calls to guest agents at once. On the host, `ConnectionPool` permits four calls, so two stay free for polls."""

_MAX_ENTRIES = 256
RESTORED_TIMEOUT = -2
"""The response timeout that the agent sets after a call, because the previous timeout is unknown.

The value is libvirt's default, VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK.
"""
AGENT_UNRESPONSIVE = 86
"""libvirt's error code for a guest agent that does not respond (VIR_ERR_AGENT_UNRESPONSIVE)."""


@dataclass(frozen=True, slots=True)
class GuestInfoType:
    """A kind of information that virDomainGetGuestInfo returns, such as file systems.

    Attributes:
        flag: the kind's bit in virDomainGuestInfoTypes.
        convert: converts libvirt's parameters to the result of the guest agent's command.
    """

    flag: int
    convert: Callable[[Params], Any]


def _split_entries(params: Params, prefix: str) -> list[dict[str, Any]]:
    """Return the parameters of each entry of a list, with keys such as `mountpoint` for `fs.0.mountpoint`."""
    count = params.get(f"{prefix}.count", 0)
    entries: list[dict[str, Any]] = [{} for _ in range(min(count, _MAX_ENTRIES) if type(count) is int else 0)]
    by_number = {str(number): entry for number, entry in enumerate(entries)}
    for key, value in params.items():
        head, _, rest = key.removeprefix(f"{prefix}.").partition(".")
        if rest and head in by_number and key.startswith(f"{prefix}."):
            by_number[head][rest] = value
    return entries


def _rename_params(params: Params, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the parameters in `names`, by the guest agent's names. Leave out absent parameters."""
    return {name: params[key] for key, name in names.items() if key in params}


_FILESYSTEM_KEYS = {
    "name": "name",
    "mountpoint": "mountpoint",
    "fstype": "type",
    "total-bytes": "total-bytes",
    "used-bytes": "used-bytes",
}
_OS_KEYS = ("id", "name", "pretty-name", "version", "version-id", "machine", "variant", "variant-id", "kernel-release")


def _convert_filesystems(params: Params) -> list[dict[str, Any]]:
    return [
        _rename_params(entry, _FILESYSTEM_KEYS)
        | {
            "disk": [
                _rename_params(disk, {"serial": "serial", "device": "dev"}) for disk in _split_entries(entry, "disk")
            ]
        }
        for entry in _split_entries(params, "fs")
    ]


def _convert_interfaces(params: Params) -> list[dict[str, Any]]:
    return [
        _rename_params(entry, {"name": "name", "hwaddr": "hardware-address"})
        | {
            "ip-addresses": [
                _rename_params(address, {"addr": "ip-address", "prefix": "prefix"})
                for address in _split_entries(entry, "addr")
            ]
        }
        for entry in _split_entries(params, "if")
    ]


def _convert_system(params: Params) -> dict[str, Any]:
    return _rename_params(params, {f"os.{name}": name for name in (*_OS_KEYS, "kernel-version")})


GUEST_INFO_TYPES: Mapping[str, GuestInfoType] = {
    "guest-get-users": GuestInfoType(1, lambda params: _split_entries(params, "user")),
    "guest-get-osinfo": GuestInfoType(2, _convert_system),
    "guest-get-timezone": GuestInfoType(
        4, lambda p: _rename_params(p, {"timezone.name": "zone", "timezone.offset": "offset"})
    ),
    "guest-get-host-name": GuestInfoType(8, lambda params: _rename_params(params, {"hostname": "host-name"})),
    "guest-get-fsinfo": GuestInfoType(16, _convert_filesystems),
    "guest-network-get-interfaces": GuestInfoType(64, _convert_interfaces),
    "guest-get-load": GuestInfoType(
        128, lambda p: _rename_params(p, {"load.1m": "load1m", "load.5m": "load5m", "load.15m": "load15m"})
    ),
}
"""libvirt's kind of information, by guest agent command. libvirt reports no CPU time, disk statistics, clock or freeze state."""

_GUEST_INFO_REPLY = {
    "version": "libvirt",
    "supported_commands": [{"name": name, "enabled": True} for name in GUEST_INFO_TYPES],
}


class LibvirtGuestChannel:
    """A `GuestChannel` over libvirt. libvirt's calls wait forever for the guest agent, unless a timeout is set."""

    def __init__(self, daemon: ConnectedLibvirtd, uuid: str, call_slots: asyncio.Semaphore) -> None:
        self.ended_future: asyncio.Future[GuestAgentError] = asyncio.get_running_loop().create_future()
        self._daemon = daemon
        self._uuid = uuid
        self._call_slots = call_slots

    async def execute(self, name: str, *, deadline: float) -> Any:
        """Return the result of a guest agent's command, within `deadline` seconds.

        Raises:
            GuestAgentError: the errors of `GuestAgentClient.execute`.
        """
        if self.ended_future.done():
            raise self.ended_future.result()
        commands.encode_command(name)  # raises for a command that is not on the allow-list
        if name == "guest-info":
            return _GUEST_INFO_REPLY
        info = GUEST_INFO_TYPES.get(name)
        if info is None:
            raise GuestAgentCommandError("CommandNotFound", f"libvirt does not report {name}")
        try:
            # libvirt's own timeout normally ends the call first.
            async with asyncio.timeout(deadline + 1), self._call_slots:
                params = await self._query_in_thread(info.flag, deadline)
        except TimeoutError:
            raise GuestTimeoutError(f"no reply to {name} within {deadline:g} s") from None
        except QmpError as error:
            raise _to_guest_error(error) from error
        if isinstance(params, GuestAgentError):
            raise params
        return info.convert(params)

    async def _query_in_thread(self, flag: int, deadline: float) -> Params | GuestAgentError:
        """Query one kind of information in a thread.

        After a cancellation, wait until libvirt has returned and the default response timeout is restored. The wait ends about
        one second after the deadline at the latest.
        """
        loop, seconds = asyncio.get_running_loop(), max(1, round(deadline))
        end = loop.time() + seconds + 1
        call = asyncio.ensure_future(
            self._daemon.pool.call_with_connection(lambda connection: self._query_blocking(connection, flag, seconds))
        )
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait({call}, timeout=max(0.0, end - loop.time()))
            raise

    def _query_blocking(self, connection: LibvirtConnection, flag: int, seconds: int) -> Params | GuestAgentError:
        """Query one kind of information. This method runs in a thread."""
        domain = connection.look_up_domain(self._uuid)
        try:
            with _response_timeout(domain, seconds):
                params: Params = domain.guestInfo(flag, 0)
        except self._daemon.api.libvirtError as error:
            if error.get_error_code() == AGENT_UNRESPONSIVE:
                return GuestTimeoutError(str(error.get_error_message()))
            raise
        return params

    def close(self) -> None:
        """Close the channel. A call in progress ends by its own timeout."""
        if not self.ended_future.done():
            self.ended_future.set_result(GuestChannelError("closed by the agent"))


@contextmanager
def _response_timeout(domain: Any, seconds: int) -> Iterator[None]:
    """Set the timeout of calls to the guest agent during a `with` block. At the end, set libvirt's default for libvirt's other clients."""
    domain.agentSetResponseTimeout(seconds, 0)
    try:
        yield
    finally:
        domain.agentSetResponseTimeout(RESTORED_TIMEOUT, 0)


def _to_guest_error(error: QmpError) -> GuestAgentError:
    match error:
        case CommandError():
            return GuestAgentCommandError(error.error_class, error.desc)
        case UnreadableReplyError():
            return UnreadableGuestReplyError(str(error))
        case ConnectPermissionError():
            return GuestChannelAccessDeniedError(str(error))
    return GuestChannelError(str(error))


def open_guest_channel(daemon: ConnectedLibvirtd, uuid: str, call_slots: asyncio.Semaphore) -> LibvirtGuestChannel:
    """Return a channel to a domain's guest agent.

    Raises:
        GuestChannelAccessDeniedError: the connection to libvirtd is read-only.
    """
    if daemon.read_only:
        raise GuestChannelAccessDeniedError("libvirt queries guest agents only over a connection that is not read-only")
    return LibvirtGuestChannel(daemon, uuid, call_slots)
