"""The allow-list of guest agent commands, and the only code that encodes requests to a guest agent.

A guest agent runs as root in its guest, and many of its commands change the guest or run programs. So the list is fixed: neither a
config nor a bug can make the agent send another command. Only `guest-sync-delimited` has an argument, a number.

The collectors in `agent.collectors.guest` send these commands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType

from agent.qga.errors import GuestAgentCommandNotAllowedError

GuestRequest = NewType("GuestRequest", bytes)
"""Bytes for a guest agent. mypy checks that only this module creates a GuestRequest, and that clients write nothing else."""


@dataclass(frozen=True, slots=True)
class GuestCommandRow:
    """One row of the table of guest agent commands.

    Attributes:
        name: the command's name in qemu-ga; a trailing `*` matches every command with that prefix.
        sent: whether the agent sends the command.
        reason: the purpose of the command, or why the agent does not send it.
        since: the release of qemu-ga that added the command; empty for 2.6 and older.
    """

    name: str
    sent: bool
    reason: str
    since: str = ""


_YES, _NO = True, False

COMMAND_ROWS = (
    GuestCommandRow("guest-sync-delimited", _YES, "Marks the beginning of the next reply."),
    GuestCommandRow("guest-info", _YES, "The version, and the commands that the guest permits."),
    GuestCommandRow("guest-get-fsinfo", _YES, "File systems."),
    GuestCommandRow("guest-get-load", _YES, "Load average.", "10.0"),
    GuestCommandRow("guest-get-cpustats", _YES, "CPU time by state.", "7.1"),
    GuestCommandRow("guest-get-diskstats", _YES, "I/O statistics as the guest counts them.", "7.1"),
    GuestCommandRow("guest-get-osinfo", _YES, "Operating system and kernel.", "2.10"),
    GuestCommandRow("guest-get-host-name", _YES, "Host name.", "2.10"),
    GuestCommandRow("guest-get-timezone", _YES, "Time zone.", "2.10"),
    GuestCommandRow("guest-get-users", _YES, "Number of users that are logged in.", "2.10"),
    GuestCommandRow("guest-get-time", _YES, "The guest's clock, to compare with the host's."),
    GuestCommandRow("guest-network-get-interfaces", _YES, "Addresses and traffic of interfaces."),
    GuestCommandRow("guest-fsfreeze-status", _YES, "Whether the file systems are frozen."),
    GuestCommandRow("guest-ping", _NO, "guest-sync-delimited also shows that the guest agent responds."),
    GuestCommandRow(
        "guest-sync",
        _NO,
        "After a truncated reply, the reply to this command cannot be recognised. guest-sync-delimited marks its "
        "reply with 0xFF.",
    ),
    GuestCommandRow("guest-get-devices", _NO, "Drivers of a Windows guest; QEMU lists the devices."),
    GuestCommandRow("guest-get-disks", _NO, "Disks without sizes; QEMU lists them."),
    GuestCommandRow("guest-get-vcpus", _NO, "QEMU and guest-get-cpustats list the vCPUs."),
    GuestCommandRow(
        "guest-get-memory-block*", _NO, "Lists thousands of blocks; the balloon driver reports the guest's memory."
    ),
    GuestCommandRow("guest-network-get-route", _NO, "Lists routes, which only the guest's administrator needs."),
    GuestCommandRow("guest-ssh-*", _NO, "Keys of users."),
    GuestCommandRow("guest-exec*", _NO, "Runs programs in the guest."),
    GuestCommandRow("guest-file-*", _NO, "Reads and writes files of the guest."),
    GuestCommandRow("guest-fsfreeze-freeze*", _NO, "Changes the guest."),
    GuestCommandRow("guest-fsfreeze-thaw", _NO, "Changes the guest."),
    GuestCommandRow("guest-fstrim", _NO, "Changes the guest's storage."),
    GuestCommandRow("guest-set-*", _NO, "Changes the guest."),
    GuestCommandRow("guest-shutdown", _NO, "Changes the guest."),
    GuestCommandRow("guest-suspend-*", _NO, "Changes the guest."),
)
"""Every command of qemu-ga 2.6 to 11.1."""

GUEST_READS = frozenset(row.name for row in COMMAND_ROWS if row.sent and row.name != "guest-sync-delimited")
"""Commands without arguments that the agent can send."""

_ENCODED: Mapping[str, GuestRequest] = {
    name: GuestRequest(b'{"execute":"%b"}\n' % name.encode()) for name in sorted(GUEST_READS)
}

MAX_SYNC_NUMBER = 2**31 - 1


def encode_command(name: str) -> GuestRequest:
    """Return the bytes of a command without arguments.

    Raises:
        GuestAgentCommandNotAllowedError: the command is not on the allow-list.
    """
    request = _ENCODED.get(name)
    if request is None:
        raise GuestAgentCommandNotAllowedError(f"{name} is not on the allow-list")
    return request


def encode_synchronization(number: int) -> GuestRequest:
    """Return the bytes of a synchronization: 0xFF, which resets the guest agent's parser, and guest-sync-delimited with a number.

    Raises:
        GuestAgentCommandNotAllowedError: the number is out of range.
    """
    if type(number) is not int or not 0 <= number <= MAX_SYNC_NUMBER:
        raise GuestAgentCommandNotAllowedError("the number of a synchronization is out of range")
    return GuestRequest(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":%d}}\n' % number)
