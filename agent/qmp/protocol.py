"""The QMP protocol: bytes in, messages out. Pure: no socket, no clock, no asyncio.

A `Connection` holds the state of one connection. `receive` takes the bytes that arrived and yields the messages that they complete; `send`
and `probe` return bytes to write. `receive` raises ProtocolError only; any other exception is a bug. The messages do not depend on how the
bytes are cut into chunks.

Facts about QEMU 2.6 to 11.1: in-band replies arrive in the order of the commands; an out-of-band reply has its id; an event can arrive
between any two messages, also before the greeting.

A message that cannot be read does not end a negotiated connection. The command whose reply it is fails. If that command is unclear,
every pending command fails. A marker command then shows where the next replies begin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

from agent.qmp import commands
from agent.qmp.commands import AllowList, Command, Request
from agent.qmp.errors import CommandError, ProtocolError, QmpError, StalledError, UnreadableReplyError
from agent.qmp.frames import Frames, MessageKind, Unreadable

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Default size limit of a message. query-blockstats takes about 1.5 KB per disk, query-qmp-schema 250 KB (QEMU 11.1)."""


class ConnectionState(Enum):
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
        oob: whether QEMU offers out-of-band execution (always, on a socket, since QEMU 4.0).
    """

    version: tuple[int, int, int]
    package: str
    oob: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """The negotiation ended: commands can be sent, and events arrive."""


class Reply(NamedTuple):
    """The reply to the oldest pending in-band command: its value, or the error of QEMU or of the protocol."""

    value: Any
    error: QmpError | None = None


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """The reply to an out-of-band probe. An error counts as a reply, because QEMU's monitor thread sent it."""

    number: int


class Event(NamedTuple):
    """An event.

    Attributes:
        name: its name in QEMU, such as STOP.
        data: its data, complete.
        time_ns: when QEMU created it, in nanoseconds since the epoch by the host's clock; None without a valid timestamp.
    """

    name: str
    data: dict[str, Any]
    time_ns: int | None


Message = Greeting | Ready | Reply | ProbeReply | Event


class _UnreadableError(Exception):
    """A message that cannot be read."""

    def __init__(self, kind: MessageKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Connection:
    """The state of one QMP connection.

    Attributes:
        state: the progress of the handshake.
        oob: whether QEMU offers out-of-band execution.
        stray_replies: how many replies arrived that belong to no command; they are dropped.
        unreadable_messages: how many messages could not be read, without the oversized ones.
        oversized_messages: how many messages exceeded the size limit.
    """

    def __init__(self, allow: AllowList, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.state = ConnectionState.GREETING
        self.oob = False
        self.stray_replies = 0
        self.unreadable_messages = 0
        self.oversized_messages = 0
        self._allow = allow
        self._frames = Frames(max_message_bytes)
        self._pending: list[Command] = []
        self._last_id = 0
        self._probe = 0
        """Id of the pending probe; 0 if none is pending."""
        self._out_of_step = False
        """True while replies cannot be assigned to commands: until the reply to a marker arrives."""
        self._marker = 0

    @property
    def replies_due(self) -> int:
        """Number of in-band commands without a reply."""
        return len(self._pending)

    @property
    def oldest_pending(self) -> str:
        """Name of the command whose reply is due next, the one that QEMU is executing; empty if no reply is due."""
        return self._pending[0].name if self._pending else ""

    def receive(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that these bytes complete. Consume the iterator to its end.

        Raises:
            ProtocolError: the bytes are not QMP; the messages before them were yielded. Close the connection.
        """
        for value in self._frames.receive(data):
            try:
                message = self._read(value)
            except _UnreadableError as error:
                yield from self._recover(error.kind, str(error))
                continue
            if message is not None:
                yield message

    def negotiate(self) -> Request:
        """Return the bytes that answer a greeting; they enable `oob` if QEMU offered it."""
        assert self.state is ConnectionState.NEGOTIATING
        return commands.negotiation(oob=self.oob)

    def send(self, batch: Sequence[Command]) -> Request:
        """Return the bytes of in-band commands for one write; the replies arrive in this order.

        Raises:
            CommandRefusedError: one of them is not on the allow-list; none is sent.
            StalledError: an earlier reply is still due.
        """
        assert self.state is ConnectionState.READY
        if self._pending:
            raise StalledError(f"{len(self._pending)} replies are still due, first {self.oldest_pending}")
        data = self._allow.encode_all(batch)
        self._pending.extend(batch)
        if self._out_of_step and not self._marker:
            self._last_id += 1
            self._marker = self._last_id
            data = commands.with_marker(self._marker, data)
        return data

    def probe(self) -> tuple[int, Request]:
        """Return the number and the bytes of an out-of-band probe. Requires `oob`."""
        assert self.oob
        self._last_id += 1
        self._probe = self._last_id
        return self._probe, commands.probe(self._probe)

    def _recover(self, kind: MessageKind, reason: str) -> Iterator[Reply | ProbeReply]:
        """Yield the replies whose commands fail because of a message that cannot be read.

        The message can also be the reply to a pending probe. It then counts as this reply, because QEMU's monitor thread sent it.

        Raises:
            ProtocolError: the handshake has not ended: the peer does not speak QMP.
        """
        if self.state is not ConnectionState.READY:
            raise ProtocolError(reason)
        kind = self._resolve(kind)
        if self._probe and kind is not MessageKind.EVENT:
            number, self._probe = self._probe, 0
            yield ProbeReply(number)
        failed = self._count_failed(kind)
        if failed and kind is MessageKind.UNKNOWN:
            self._out_of_step, self._marker = True, 0
        for _ in range(failed):
            command = self._pending.pop(0)
            yield Reply(None, UnreadableReplyError(f"unreadable reply to {command.name}: {reason}"))

    def _resolve(self, kind: MessageKind) -> MessageKind:
        """Correct the guessed kind of an unreadable message by the requests that are pending."""
        if kind is MessageKind.EVENT:
            return kind
        if self._out_of_step:  # it is the reply to the marker or to an earlier batch
            return MessageKind.UNKNOWN
        if kind is MessageKind.REPLY_WITH_ID and not self._probe:  # the `id` is part of the reply's value
            return MessageKind.REPLY
        if (
            kind is MessageKind.REPLY and self._probe
        ):  # it is the reply to a command, or the reply to the probe with its id lost
            return MessageKind.UNKNOWN
        return kind

    def _count_failed(self, kind: MessageKind) -> int:
        """Return how many pending commands to fail: those whose reply may be this unreadable message, or lost because of it."""
        if kind is MessageKind.UNKNOWN:
            return len(self._pending)
        return min(1, len(self._pending)) if kind is MessageKind.REPLY else 0

    def _read(self, value: Any) -> Message | None:
        """Return the message of a JSON value; None if it is dropped."""
        if type(value) is dict:
            if "event" in value:
                return self._event(value)
            if "return" in value or "error" in value:
                return self._reply(value)
            if "QMP" in value:
                return self._greeting(value["QMP"])
            raise self._malformed(MessageKind.UNKNOWN, "a message that is neither greeting, reply, error nor event")
        if not isinstance(value, Unreadable):
            raise self._malformed(MessageKind.UNKNOWN, "a message that is not an object")
        if value.oversized:
            self.oversized_messages += 1
        else:
            self.unreadable_messages += 1
        raise _UnreadableError(value.kind, value.reason)

    def _malformed(self, kind: MessageKind, reason: str) -> _UnreadableError:
        self.unreadable_messages += 1
        return _UnreadableError(kind, reason)

    def _greeting(self, body: Any) -> Greeting:
        if self.state is not ConnectionState.GREETING:
            raise ProtocolError("a second greeting")
        if not isinstance(body, dict):
            raise ProtocolError("a greeting that is not an object")
        offered = body.get("capabilities")
        self.oob = isinstance(offered, list) and "oob" in offered
        self.state = ConnectionState.NEGOTIATING
        version = body.get("version")
        version = version if isinstance(version, dict) else {}
        numbers = version.get("qemu")
        numbers = numbers if isinstance(numbers, dict) else {}
        major, minor, micro = (n if type(n := numbers.get(k)) is int else 0 for k in ("major", "minor", "micro"))
        package = version.get("package")
        return Greeting((major, minor, micro), package if isinstance(package, str) else "", self.oob)

    def _reply(self, value: dict[str, Any]) -> Message | None:
        error: CommandError | None = None
        if "return" not in value:
            body = value["error"]
            if not isinstance(body, dict):
                kind = MessageKind.REPLY_WITH_ID if "id" in value else MessageKind.REPLY
                raise self._malformed(kind, "an error that is not an object")
            error = CommandError(str(body.get("class", "GenericError")), str(body.get("desc", "")))
        if self.state is ConnectionState.NEGOTIATING:
            if error is not None:
                raise ProtocolError(f"QEMU refused the negotiation: {error}")
            self.state = ConnectionState.READY
            return Ready()
        if "id" in value:
            return self._reply_with_id(value["id"])
        if self._out_of_step:
            self.stray_replies += 1
            return None
        if not self._pending:
            raise ProtocolError("a reply without a command")
        del self._pending[0]
        return Reply(value.get("return"), error)

    def _reply_with_id(self, number: Any) -> ProbeReply | None:
        if type(number) is int and 0 < number <= self._last_id:
            if number != self._marker:
                if number == self._probe:
                    self._probe = 0
                return ProbeReply(number)
            self._out_of_step, self._marker = False, 0
        else:
            self.stray_replies += 1
        return None

    def _event(self, value: dict[str, Any]) -> Event:
        name, data, stamp = value["event"], value.get("data", {}), value.get("timestamp")
        if not isinstance(name, str) or not isinstance(data, dict):
            raise self._malformed(MessageKind.EVENT, "an event without a name, or with data that is not an object")
        time_ns = None
        if isinstance(stamp, dict):
            seconds, micros = stamp.get("seconds"), stamp.get("microseconds")
            if type(seconds) is int and type(micros) is int and 0 <= seconds < 1 << 33 and 0 <= micros < 1_000_000:
                time_ns = seconds * 1_000_000_000 + micros * 1000
        return Event(name, data, time_ns)
