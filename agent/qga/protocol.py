r"""The guest agent's protocol: bytes in, replies out. Pure: no socket, no clock, no asyncio.

VmFacts about qemu-ga 2.6 to 11.1: it speaks JSON like QMP, but sends no greeting, no events and no ids. It executes one command at a time,
and a reply ends with a line feed. A reply may never arrive, or may arrive after the client stopped waiting. So the client synchronizes at
connect and after each timeout: it sends the byte 0xFF, which resets the guest agent's parser, and `guest-sync-delimited` with a number.
The guest agent replies with an error to the byte, then with 0xFF and the number. Everything up to this reply is discarded.

The guest's administrator can make the guest agent send anything. `receive` raises GuestFloodError only; any other exception is a bug.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

import orjson

from agent.qga import commands
from agent.qga.commands import GuestRequest
from agent.qga.errors import GuestAgentError, GuestCommandError, GuestFloodError, UnreadableGuestReplyError

MAX_REPLY_BYTES = 256 * 1024
"""Size limit of a reply. guest-get-fsinfo takes about 0.5 KB for each file system."""

MAX_SURPLUS_BYTES = 1024 * 1024
"""Maximum number of bytes beyond a reply after one request, such as late replies. A guest that sends more is disconnected."""

_MARK = b"\xff"
_SYNC_BYTES = 256
"""Bytes of an incomplete line that are kept while the reply to a synchronization is due; it has about 30."""


class SyncState(Enum):
    """Progress of one connection."""

    LOST = auto()
    """It is unknown which reply the next bytes belong to: `sync` comes next. Bytes are discarded."""
    SYNCHRONIZING = auto()
    READY = auto()
    WAITING = auto()
    """The reply to a command is due."""


class Synchronized(NamedTuple):
    """The synchronization ended: commands can be sent."""


class GuestReply(NamedTuple):
    """The reply to the pending command: its value, or the error of the guest agent or of the protocol."""

    value: Any
    error: GuestAgentError | None = None


class GuestConnection:
    """The state of one connection to a guest agent.

    Attributes:
        state: its progress.
        discarded_bytes: total number of bytes that belonged to no reply that was due.
    """

    def __init__(self, first_number: int = 0) -> None:
        """Create the state of a new connection.

        Args:
            first_number: number of the first synchronization. A random one is not confused with that of an earlier client.
        """
        self.state = SyncState.LOST
        self.discarded_bytes = 0
        self._number = first_number
        self._buffer = bytearray()
        self._scanned = 0  # how much of the buffer holds no line end
        self._received = 0  # bytes since the last request

    def sync(self) -> GuestRequest:
        """Return the request of a new synchronization; a pending command is given up."""
        self._number = (self._number + 1) % commands.MAX_SYNC_NUMBER
        request = commands.synchronization(self._number)
        self._reset(SyncState.SYNCHRONIZING)
        self._received = 0
        return request

    def send(self, name: str) -> GuestRequest:
        """Return the request of a command. The state must be READY.

        Raises:
            GuestCommandRefusedError: the command is not on the allow-list.
        """
        assert self.state is SyncState.READY
        request = commands.encode(name)
        self.state = SyncState.WAITING
        self._received = 0
        return request

    def abandon(self) -> None:
        """Give up the reply that is due. `sync` comes next."""
        self._reset(SyncState.LOST)

    def _reset(self, state: SyncState) -> None:
        self.discarded_bytes += len(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        self.state = state

    def receive(self, data: bytes) -> Iterator[Synchronized | GuestReply]:
        """Yield what these bytes complete. Consume the iterator to its end.

        Raises:
            GuestFloodError: the guest sent too much since the last request. The connection cannot be used again.
        """
        self._received += len(data)
        if self._received > MAX_REPLY_BYTES + MAX_SURPLUS_BYTES:
            self.abandon()
            raise GuestFloodError(f"the guest sent more than {MAX_SURPLUS_BYTES} bytes beyond its reply")
        self._buffer += data
        while self.state is not SyncState.LOST:
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0:
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            yield from self._take_line(line)
        yield from self._limit_buffer()

    def _take_line(self, line: bytes) -> Iterator[Synchronized | GuestReply]:
        _, mark, text = line[-_SYNC_BYTES:].rpartition(_MARK)
        if self.state is SyncState.SYNCHRONIZING and mark and _is_number(text, self._number):
            self.state = SyncState.READY
            yield Synchronized()
        elif self.state is SyncState.WAITING and len(line) > MAX_REPLY_BYTES:
            yield self._oversized()
        elif self.state is SyncState.WAITING and _MARK not in line and line.strip():
            yield self._read(line)
        else:  # the error that follows 0xFF, a late reply to an earlier request, or junk
            self.discarded_bytes += len(line) + 1
            if self.state is SyncState.READY and line.strip():
                self.abandon()

    def _read(self, line: bytes) -> GuestReply:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return self._unreadable(f"not JSON: {error}")
        match value:
            case {"return": result}:
                self.state = SyncState.READY
                return GuestReply(result)
            case {"error": {"class": str(error_class), "desc": str(desc)}}:
                self.state = SyncState.READY
                return GuestReply(None, GuestCommandError(error_class, desc))
        return self._unreadable("neither a return value nor an error")

    def _unreadable(self, reason: str) -> GuestReply:
        """Return the error of a reply that cannot be read. The next reply may be this command's, so a synchronization is due."""
        self.abandon()
        return GuestReply(None, UnreadableGuestReplyError(reason))

    def _oversized(self) -> GuestReply:
        return self._unreadable(f"longer than {MAX_REPLY_BYTES} bytes")

    def _limit_buffer(self) -> Iterator[GuestReply]:
        """Drop the part of an incomplete line that no reply needs."""
        size = len(self._buffer)
        if self.state is SyncState.WAITING and size > MAX_REPLY_BYTES:
            yield self._oversized()
        elif self.state is SyncState.LOST or (self.state is SyncState.READY and self._buffer.strip()):
            self.abandon()
        elif self.state is SyncState.SYNCHRONIZING and size > _SYNC_BYTES:
            self.discarded_bytes += size - _SYNC_BYTES
            del self._buffer[: size - _SYNC_BYTES]
        self._scanned = len(self._buffer)


def _is_number(text: bytes, number: int) -> bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and type(value.get("return")) is int and value["return"] == number
