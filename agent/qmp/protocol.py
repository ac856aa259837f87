"""The QMP protocol: bytes in, messages out. Pure: no socket, no clock, no asyncio.

A `QmpProtocol` holds the state of one connection. `receive` takes received bytes and yields the messages that the bytes complete. `send`,
`negotiate`, `next_reply_sync_request` and `next_oob_probe` return bytes to write. `receive` raises only ProtocolError; any other exception
is a bug. The messages do not depend on how the bytes are split into chunks.

Facts about QEMU 2.6 to 11.1: in-band replies arrive in the order of the commands. An out-of-band reply has the id of its request. An event
can arrive between any two messages, and even before the greeting.

An unreadable message does not end a negotiated connection. The oldest pending command fails if the message is clearly a reply. All pending
commands fail if the message's kind is unknown. The protocol is then out of sync: the agent does not know which command the next reply
belongs to. So the agent sends a marker before the next batch of commands. A marker is a command with an id. The replies after the marker's
reply belong to the next batch, so the protocol is in sync again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from agent.qmp import commands
from agent.qmp.commands import AllowList, Command, Request
from agent.qmp.errors import (
    AmbiguousReplyError,
    CommandError,
    ProtocolError,
    QmpError,
    StalledError,
    UnreadableReplyError,
)
from agent.qmp.frames import FrameSplitter, UnreadableMessage, UnreadableMessageKind

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Default size limit of a message, in bytes. query-blockstats returns about 1.5 KB per disk, query-qmp-schema 250 KB (QEMU 11.1)."""

MAX_COMMANDS_IN_FLIGHT = 7
"""Maximum number of commands in QEMU at once. QEMU reads nothing from the monitor while eight in-band requests wait, not even out-of-band
probes (monitor/qmp.c, 4.0 to 11.1)."""


class HandshakeState(Enum):
    """Progress of the handshake."""

    GREETING = auto()
    NEGOTIATING = auto()
    READY = auto()


@dataclass(frozen=True, slots=True)
class Greeting:
    """QEMU's first message.

    Attributes:
        version: major, minor, micro; zeros if QEMU sent none.
        package: the distribution's version text, or empty.
        oob: whether QEMU offers out-of-band execution. QEMU 4.0 and newer always do so on a socket.
    """

    version: tuple[int, int, int]
    package: str
    oob: bool


UNKNOWN_VERSION = (0, 0, 0)


def greeting_from_version(version: Any, *, oob: bool) -> Greeting:
    """Return a greeting with the given version, an object from QEMU's greeting or from the reply to query-version."""
    version = version if isinstance(version, dict) else {}
    numbers = version.get("qemu")
    numbers = numbers if isinstance(numbers, dict) else {}
    major, minor, micro = (n if type(n := numbers.get(k)) is int else 0 for k in ("major", "minor", "micro"))
    package = version.get("package")
    return Greeting((major, minor, micro), package if isinstance(package, str) else "", oob)


@dataclass(frozen=True, slots=True)
class NegotiationAccepted:
    """QEMU accepted the negotiation. Commands can be sent now."""


class Reply(NamedTuple):
    """The reply to the oldest pending in-band command.

    Attributes:
        value: the value that QEMU returned; None if there is an error.
        error: QEMU's error, or UnreadableReplyError if the reply cannot be read; None if the command succeeded.
    """

    value: Any
    error: QmpError | None = None


@dataclass(frozen=True, slots=True)
class OobProbeReply:
    """The reply to the out-of-band probe with this number. An error also counts, because it shows that QEMU's monitor thread runs."""

    number: int


class Event(NamedTuple):
    """An event of QEMU.

    Attributes:
        name: the event's name, such as STOP.
        data: all data of the event.
        time_ns: QEMU's timestamp, in nanoseconds since the epoch by the host's clock; None if there is no valid timestamp.
    """

    name: str
    data: dict[str, Any]
    time_ns: int | None


class SkippedQmpMessages(NamedTuple):
    """Total numbers of skipped messages, by reason.

    Attributes:
        unreadable: messages within the size limit that could not be read.
        oversized: messages that exceeded the size limit.
        stray: replies that belong to no command.
    """

    unreadable: int = 0
    oversized: int = 0
    stray: int = 0


Message = Greeting | NegotiationAccepted | Reply | OobProbeReply | Event


class _UnreadableError(Exception):
    """A message cannot be read."""

    def __init__(self, kind: UnreadableMessageKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class QmpProtocol:
    """The state of one QMP connection.

    Attributes:
        state: the progress of the handshake.
        oob: whether QEMU offers out-of-band execution.
        skipped: total numbers of skipped messages. The object is replaced when a message is skipped.
        out_of_sync: True while the agent does not know which command the next reply belongs to, until the newest marker's reply.
    """

    def __init__(self, allow: AllowList, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.state = HandshakeState.GREETING
        self.oob = False
        self.skipped = SkippedQmpMessages()
        self.out_of_sync = False
        self._allow = allow
        self._frames = FrameSplitter(max_message_bytes)
        self._pending: list[Command] = []
        self._last_id = 0
        self._probe = 0
        """Id of the pending probe; 0 if none is pending."""
        self._markers: list[int] = []  # ids of the markers without a reply
        self._marker_is_in_flight = False  # True if QEMU cannot have replied to the newest marker yet
        self._unreadable_replies = 0  # upper bound of unreadable replies since the last marker's reply
        self._requests_in_qemu = 0  # upper bound of the number of requests in QEMU, with markers, while out of sync

    @property
    def pending_command_count(self) -> int:
        """Number of in-band commands without a reply, not counting markers."""
        return len(self._pending)

    @property
    def oldest_pending_command(self) -> str:
        """Name of the oldest command without a reply, which QEMU is executing; empty if no reply is due."""
        return self._pending[0].name if self._pending else ""

    def receive(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that these bytes complete. Consume the iterator to its end.

        Raises:
            ProtocolError: the bytes are not QMP. All earlier messages were yielded. Close the connection.
        """
        for value in self._frames.receive(data):
            try:
                message = self._to_message(value)
            except _UnreadableError as error:
                yield from self._fail_affected_commands(error.kind, str(error))
                continue
            if message is not None:
                yield message

    def negotiate(self) -> Request:
        """Return the bytes of the command that answers the greeting.

        The command enables out-of-band execution if QEMU offers it.
        """
        assert self.state is HandshakeState.NEGOTIATING
        return commands.negotiation_request(oob=self.oob)

    def send(self, batch: Sequence[Command]) -> Request:
        """Return the bytes of in-band commands for one write. The replies arrive in the order of the commands.

        Args:
            batch: at most `MAX_COMMANDS_IN_FLIGHT` commands. While `out_of_sync`, send markers instead.

        Raises:
            CommandNotAllowedError: one of the commands is not on the allow-list, so nothing may be written.
            StalledError: an earlier reply is still due.
        """
        assert self.state is HandshakeState.READY
        assert len(batch) <= MAX_COMMANDS_IN_FLIGHT
        if self._pending:
            raise StalledError(
                f"{len(self._pending)} replies are still due, the first to {self.oldest_pending_command}"
            )
        assert not self.out_of_sync
        data = self._allow.encode_all(batch)
        self._pending.extend(batch)
        return data

    def check_allowed(self, batch: Sequence[Command]) -> None:
        """Check that all commands are on the allow-list.

        Raises:
            CommandNotAllowedError: a command is not on the allow-list.
        """
        self._allow.encode_all(batch)

    def next_reply_sync_request(self) -> Request | None:
        """Return the bytes of a marker; None if no marker is due.

        A marker is due while `out_of_sync`. No marker is due while another marker is in flight, or while QEMU may still hold
        `MAX_COMMANDS_IN_FLIGHT` requests.
        """
        if not self.out_of_sync or self._marker_is_in_flight or self._requests_in_qemu >= MAX_COMMANDS_IN_FLIGHT:
            return None
        self._last_id += 1
        self._markers.append(self._last_id)
        self._marker_is_in_flight = True
        self._requests_in_qemu += 1
        return commands.reply_sync_request(self._last_id)

    def next_oob_probe(self) -> tuple[int, Request]:
        """Return the number and the bytes of an out-of-band probe. QEMU must have offered out-of-band execution."""
        assert self.oob
        self._last_id += 1
        self._probe = self._last_id
        return self._probe, commands.probe_request(self._probe)

    def _fail_affected_commands(self, kind: UnreadableMessageKind, reason: str) -> Iterator[Reply | OobProbeReply]:
        """Yield an error reply for each command whose reply the unreadable message may be.

        The unreadable message also counts as the probe's reply if a probe is pending.

        Args:
            kind: the message's kind, guessed from its text.
            reason: why the message cannot be read.

        Raises:
            ProtocolError: the message arrived during the handshake, or no reply can be read because too many messages were unreadable.
        """
        if self.state is not HandshakeState.READY:
            raise ProtocolError(reason)
        kind = self._correct_kind(kind)
        if self._probe and kind is not UnreadableMessageKind.EVENT:
            number, self._probe = self._probe, 0
            yield OobProbeReply(number)
        failed = self._count_affected(kind)
        if failed and kind is UnreadableMessageKind.UNKNOWN:
            self.out_of_sync, self._requests_in_qemu = True, failed
        if kind is UnreadableMessageKind.UNKNOWN:
            self._marker_is_in_flight = False  # the message may have been the reply to the marker
        if self.out_of_sync:
            self._unreadable_replies += 1
        error_type = UnreadableReplyError if failed == 1 else AmbiguousReplyError
        for _ in range(failed):
            command = self._pending.pop(0)
            yield Reply(None, error_type(f"unreadable reply to {command.name}: {reason}"))
        if self._unreadable_replies >= self._requests_in_qemu >= MAX_COMMANDS_IN_FLIGHT:
            raise ProtocolError(f"no reply can be read: {reason}")

    def _correct_kind(self, kind: UnreadableMessageKind) -> UnreadableMessageKind:
        """Correct the guessed kind of an unreadable message, given which requests are pending."""
        if kind is UnreadableMessageKind.EVENT:
            return kind
        if self.out_of_sync:  # the message is the reply to the marker or to an earlier batch
            return UnreadableMessageKind.UNKNOWN
        # No probe and no marker is pending, so the `id` is part of the reply's value.
        if kind is UnreadableMessageKind.REPLY_WITH_ID and not self._probe:
            return UnreadableMessageKind.REPLY
        # The message is the reply to a command, or the probe's reply without an id.
        if kind is UnreadableMessageKind.REPLY and self._probe:
            return UnreadableMessageKind.UNKNOWN
        return kind

    def _count_affected(self, kind: UnreadableMessageKind) -> int:
        """Return how many of the oldest pending commands fail because of an unreadable message of this kind."""
        if kind is UnreadableMessageKind.UNKNOWN:
            return len(self._pending)
        return min(1, len(self._pending)) if kind is UnreadableMessageKind.REPLY else 0

    def _to_message(self, value: Any) -> Message | None:
        """Convert a JSON value to a message. Return None for a reply that no command waits for.

        Raises:
            _UnreadableError: the value is not a message.
            ProtocolError: the message is not permitted in the current state.
        """
        if type(value) is dict:
            if "event" in value:
                return self._accept_event(value)
            if "return" in value or "error" in value:
                return self._accept_reply(value)
            if "QMP" in value:
                return self._accept_greeting(value["QMP"])
            raise self._count_malformed(
                UnreadableMessageKind.UNKNOWN, "a message that is neither greeting, reply, error nor event"
            )
        if not isinstance(value, UnreadableMessage):
            raise self._count_malformed(UnreadableMessageKind.UNKNOWN, "a message that is not an object")
        self._count_skipped("oversized" if value.oversized else "unreadable")
        raise _UnreadableError(value.kind, value.reason)

    def _count_malformed(self, kind: UnreadableMessageKind, reason: str) -> _UnreadableError:
        """Count a malformed message, and return the exception to raise."""
        self._count_skipped("unreadable")
        return _UnreadableError(kind, reason)

    def _count_skipped(self, reason: str) -> None:
        self.skipped = self.skipped._replace(**{reason: getattr(self.skipped, reason) + 1})

    def _accept_greeting(self, body: Any) -> Greeting:
        if self.state is not HandshakeState.GREETING:
            raise ProtocolError("a second greeting")
        if not isinstance(body, dict):
            raise ProtocolError("a greeting that is not an object")
        offered = body.get("capabilities")
        self.oob = isinstance(offered, list) and "oob" in offered
        self.state = HandshakeState.NEGOTIATING
        return greeting_from_version(body.get("version"), oob=self.oob)

    def _accept_reply(self, value: dict[str, Any]) -> Message | None:
        error: CommandError | None = None
        if "return" not in value:
            body = value["error"]
            if not isinstance(body, dict):
                kind = UnreadableMessageKind.REPLY_WITH_ID if "id" in value else UnreadableMessageKind.REPLY
                raise self._count_malformed(kind, "an error that is not an object")
            error = CommandError(str(body.get("class", "GenericError")), str(body.get("desc", "")))
        if self.state is HandshakeState.NEGOTIATING:
            if error is not None:
                raise ProtocolError(f"QEMU refused the negotiation: {error}")
            self.state = HandshakeState.READY
            return NegotiationAccepted()
        if "id" in value:
            return self._accept_reply_with_id(value["id"])
        if self.out_of_sync:
            self._count_skipped("stray")
            self._requests_in_qemu = max(self._requests_in_qemu - 1, len(self._markers))
            return None
        if not self._pending:
            raise ProtocolError("a reply without a command")
        del self._pending[0]
        return Reply(value.get("return"), error)

    def _accept_reply_with_id(self, number: Any) -> OobProbeReply | None:
        if type(number) is not int or not 0 < number <= self._last_id:
            self._count_skipped("stray")
            return None
        if number in self._markers:
            self._accept_marker(number)
            return None
        if number == self._probe:
            self._probe = 0
        return OobProbeReply(number)

    def _accept_marker(self, number: int) -> None:
        """Handle the reply to a marker. All replies to commands before the marker have arrived or are lost.

        The reply to the newest marker brings the protocol in sync: the next reply belongs to the next command.
        """
        self._markers = [marker for marker in self._markers if marker > number]
        self._requests_in_qemu = len(self._markers)
        self.out_of_sync = bool(self._markers)
        self._unreadable_replies = 0

    def _accept_event(self, value: dict[str, Any]) -> Event:
        name, data, stamp = value["event"], value.get("data", {}), value.get("timestamp")
        if not isinstance(name, str) or not isinstance(data, dict):
            raise self._count_malformed(
                UnreadableMessageKind.EVENT, "an event without a name, or with data that is not an object"
            )
        time_ns = None
        if isinstance(stamp, dict):
            seconds, micros = stamp.get("seconds"), stamp.get("microseconds")
            if type(seconds) is int and type(micros) is int and 0 <= seconds < 1 << 33 and 0 <= micros < 1_000_000:
                time_ns = seconds * 1_000_000_000 + micros * 1000
        return Event(name, data, time_ns)
