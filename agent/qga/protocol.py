r"""The guest agent's protocol without I/O: parses received bytes into replies. Pure: no socket, no clock, no asyncio.

The protocol of qemu-ga 2.6 to 11.1 is JSON like QMP, but without a greeting, events and ids. The guest agent executes one command at a
time, and a reply ends with a line feed. A reply may be missing, or may arrive after the client stopped waiting. So the client synchronizes
at connect and after each timeout. The client sends the byte 0xFF, which resets the guest agent's parser, and then the command
`guest-sync-delimited` with a number.
The guest agent first reports the byte 0xFF as an error. Then the guest agent sends 0xFF and the number. The client discards all
earlier bytes.

The guest's administrator can make the guest agent send anything. `receive` raises only GuestFloodError; any other exception is a bug.
"""

from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

import orjson

from agent.qga import commands
from agent.qga.commands import GuestRequest
from agent.qga.errors import GuestAgentCommandError, GuestAgentError, GuestFloodError, UnreadableGuestReplyError

MAX_REPLY_BYTES = 256 * 1024
"""Maximum size of a reply in bytes. guest-get-fsinfo takes about 0.5 KB for each file system."""

MAX_SURPLUS_BYTES = 1024 * 1024
"""Maximum number of bytes that a guest may send after a request in addition to the reply, such as late replies to earlier requests."""

_SYNC_MARK = b"\xff"
_MAX_SYNC_REPLY_BYTES = 256
"""Maximum number of bytes to keep of an incomplete line during a synchronization. The reply to a synchronization has about 30 bytes."""


class SyncState(Enum):
    """State of the synchronization of one connection."""

    LOST = auto()
    """The client does not know which request the next reply answers. Received bytes are discarded until a new synchronization."""
    SYNCHRONIZING = auto()
    """The reply to a synchronization is expected."""
    READY = auto()
    """A command can be sent."""
    WAITING = auto()
    """The reply to a command is expected."""


class Synchronized(NamedTuple):
    """The synchronization succeeded. Commands can be sent."""


class GuestReply(NamedTuple):
    """The reply to the pending command: a value, or the error that the guest agent returned. A reply that cannot be parsed is an error."""

    value: Any
    error: GuestAgentError | None = None


class GuestAgentProtocol:
    """The protocol state of one connection to a guest agent.

    Attributes:
        state: state of the synchronization.
        discarded_bytes: total number of received bytes that were not part of an expected reply.
    """

    def __init__(self, first_number: int = 0) -> None:
        """Create the state of a new connection.

        Args:
            first_number: the first synchronization uses the number after `first_number`. A random number differs from the
                numbers of earlier clients.
        """
        self.state = SyncState.LOST
        self.discarded_bytes = 0
        self._number = first_number
        self._buffer = bytearray()
        self._scanned = 0  # number of bytes at the start of the buffer that contain no line feed
        self._received = 0  # bytes received since the last request

    def start_synchronization(self) -> GuestRequest:
        """Return the bytes of a new synchronization. The reply to a pending command is no longer expected."""
        self._number = (self._number + 1) % commands.MAX_SYNC_NUMBER
        request = commands.encode_synchronization(self._number)
        self._discard_buffer(SyncState.SYNCHRONIZING)
        self._received = 0
        return request

    def start_command(self, name: str) -> GuestRequest:
        """Return the bytes of a command, and expect its reply. The state must be READY.

        Raises:
            GuestAgentCommandNotAllowedError: the command is not on the allow-list.
        """
        assert self.state is SyncState.READY
        request = commands.encode_command(name)
        self.state = SyncState.WAITING
        self._received = 0
        return request

    def abandon_reply(self) -> None:
        """Expect no reply from now on. The caller has to call `start_synchronization` before the next command."""
        self._discard_buffer(SyncState.LOST)

    def _discard_buffer(self, state: SyncState) -> None:
        self.discarded_bytes += len(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        self.state = state

    def receive(self, data: bytes) -> Iterator[Synchronized | GuestReply]:
        """Parse received bytes, and yield the replies that are complete. The caller must consume the iterator to its end.

        Raises:
            GuestFloodError: the guest sent too much since the last request. Close the connection.
        """
        self._received += len(data)
        if self._received > MAX_REPLY_BYTES + MAX_SURPLUS_BYTES:
            self.abandon_reply()
            raise GuestFloodError(f"the guest sent more than {MAX_SURPLUS_BYTES} bytes beyond its reply")
        self._buffer += data
        while self.state is not SyncState.LOST:
            end = self._buffer.find(b"\n", self._scanned)
            if end < 0:
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._scanned = 0
            yield from self._parse_line(line)
        yield from self._limit_buffer()

    def _parse_line(self, line: bytes) -> Iterator[Synchronized | GuestReply]:
        _, mark, text = line[-_MAX_SYNC_REPLY_BYTES:].rpartition(_SYNC_MARK)
        if self.state is SyncState.SYNCHRONIZING and mark and _is_sync_reply(text, self._number):
            self.state = SyncState.READY
            yield Synchronized()
        elif self.state is SyncState.WAITING and len(line) > MAX_REPLY_BYTES:
            yield self._fail_oversized()
        elif self.state is SyncState.WAITING and _SYNC_MARK not in line and line.strip():
            yield self._parse_reply(line)
        else:  # the error about 0xFF, a late reply to an earlier request, or invalid data
            self.discarded_bytes += len(line) + 1
            if self.state is SyncState.READY and line.strip():
                self.abandon_reply()

    def _parse_reply(self, line: bytes) -> GuestReply:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return self._fail_unreadable(f"the reply is not JSON: {error}")
        match value:
            case {"return": result}:
                self.state = SyncState.READY
                return GuestReply(result)
            case {"error": {"class": str(error_class), "desc": str(desc)}}:
                self.state = SyncState.READY
                return GuestReply(None, GuestAgentCommandError(error_class, desc))
        return self._fail_unreadable("the reply has neither a return value nor an error")

    def _fail_unreadable(self, reason: str) -> GuestReply:
        """Return an error reply, because the received bytes cannot be parsed.

        The next command needs a synchronization, because the rest of the received reply may still arrive.
        """
        self.abandon_reply()
        return GuestReply(None, UnreadableGuestReplyError(reason))

    def _fail_oversized(self) -> GuestReply:
        return self._fail_unreadable(f"the reply is longer than {MAX_REPLY_BYTES} bytes")

    def _limit_buffer(self) -> Iterator[GuestReply]:
        """Discard the bytes of an incomplete line that cannot be part of an expected reply."""
        size = len(self._buffer)
        if self.state is SyncState.WAITING and size > MAX_REPLY_BYTES:
            yield self._fail_oversized()
        elif self.state is SyncState.LOST or (self.state is SyncState.READY and self._buffer.strip()):
            self.abandon_reply()
        elif self.state is SyncState.SYNCHRONIZING and size > _MAX_SYNC_REPLY_BYTES:
            self.discarded_bytes += size - _MAX_SYNC_REPLY_BYTES
            del self._buffer[: size - _MAX_SYNC_REPLY_BYTES]
        self._scanned = len(self._buffer)


def _is_sync_reply(text: bytes, number: int) -> bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and type(value.get("return")) is int and value["return"] == number
