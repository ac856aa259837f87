"""QMP as bytes in, messages out. Pure: no socket, no clock, no asyncio.

`Connection` holds one connection's state: `receive` takes whatever arrived and returns the messages that are now whole, `ask` and
`probe` return the bytes to send. If `receive` raises anything but ProtocolError, that is a bug. Whatever way the bytes are cut into
chunks, the messages are the same.

Facts, from QEMU 7.2 to 11.1: each message ends with a newline, and a newline never stands inside a JSON string; monitors with
`pretty=on` spread one message over lines; in-band replies come in the order of the requests; an out-of-band reply carries its id;
an event may stand between any two messages, even before the greeting.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

import orjson

from agent.qmp import commands
from agent.qmp.commands import AllowList, Command, Request
from agent.qmp.errors import CommandError, ProtocolError, StalledError

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""A message past this ends the connection. query-blockstats takes about 1.5 KB a disk, query-qmp-schema 250 KB (QEMU 11.1)."""

_MAX_DEPTH = 128
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)')
"""A string, or the rest of a line that opens one and does not close it: so that no hostile line takes more than one pass."""


class ConnectionState(Enum):
    """How far a connection has come."""

    GREETING = auto()
    NEGOTIATING = auto()
    READY = auto()


@dataclass(frozen=True, slots=True)
class Greeting:
    """QEMU's first message.

    Attributes:
        version: major, minor, micro; zeros where QEMU gave none.
        package: the distribution's version text, or empty.
        oob: whether out-of-band execution is offered (always, on a socket, from QEMU 4.0).
    """

    version: tuple[int, int, int]
    package: str
    oob: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """Negotiation has ended: commands may be sent, events come."""


class Reply(NamedTuple):
    """The answer to the oldest in-band question that was still open: its value, or QEMU's error."""

    ask: Command
    value: Any
    error: CommandError | None = None


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """The answer to an out-of-band probe; an error counts as an answer, since something answered."""

    number: int


class Event(NamedTuple):
    """Something that QEMU says unasked.

    Attributes:
        name: QEMU's name of it, such as STOP.
        data: its own data, whole.
        time_ns: when QEMU built it, nanoseconds since the epoch by the host's clock, or None where QEMU had no time to give.
    """

    name: str
    data: dict[str, Any]
    time_ns: int | None


Message = Greeting | Ready | Reply | ProbeReply | Event


class Connection:
    """One QMP connection's state."""

    def __init__(self, allow: AllowList, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.state = ConnectionState.GREETING
        self.oob = False
        self.strays = 0
        """Replies nobody waits for, dropped as the protocol demands."""
        self._allow = allow
        self._frames = Frames(max_message_bytes)
        self._open: list[Command] = []
        self._probe_number = 0

    @property
    def replies_due(self) -> int:
        """How many in-band questions are still open."""
        return len(self._open)

    def receive(self, data: bytes) -> Iterator[Message]:
        """Take bytes as they came and yield the messages that they complete; to be run to its end.

        Raises:
            ProtocolError: after the good messages before it: these bytes cannot come from a QMP server, or are more than we keep.
                The connection must be closed.
        """
        for value in self._frames.receive(data):
            message = self._understand(value)
            if message is not None:
                yield message

    def negotiate(self) -> Request:
        """Return the bytes that answer a greeting, asking for `oob` where it was offered."""
        assert self.state is ConnectionState.NEGOTIATING
        return commands.negotiation(oob=self.oob)

    def ask(self, asks: Sequence[Command]) -> Request:
        """Return the bytes of in-band questions for one write; replies come in this order.

        Raises:
            CommandRefusedError: one of them is not on the allow-list; none is sent.
            StalledError: an earlier question is still open.
        """
        assert self.state is ConnectionState.READY
        if self._open:
            raise StalledError(f"{len(self._open)} replies are still due, first {self._open[0].name}")
        data = self._allow.encode_all(asks)
        self._open.extend(asks)
        return data

    def probe(self) -> tuple[int, Request]:
        """Return the number and the bytes of an out-of-band probe; only where `oob` is true."""
        assert self.oob
        self._probe_number += 1
        return self._probe_number, commands.probe(self._probe_number)

    def _understand(self, value: Any) -> Message | None:
        if not isinstance(value, dict):
            raise ProtocolError("a message that is not an object")
        if "event" in value:
            return _event(value)
        if "QMP" in value:
            return self._greeting(value["QMP"])
        if "return" in value or "error" in value:
            return self._answer(value)
        raise ProtocolError("a message that is neither greeting, reply, error nor event")

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

    def _answer(self, value: dict[str, Any]) -> Message | None:
        error = None
        if "return" not in value:
            body = value["error"]
            if not isinstance(body, dict):
                raise ProtocolError("an error that is not an object")
            error = CommandError(str(body.get("class", "GenericError")), str(body.get("desc", "")))
        if self.state is ConnectionState.NEGOTIATING:
            if error is not None:
                raise ProtocolError(f"negotiation was refused: {error}")
            self.state = ConnectionState.READY
            return Ready()
        if "id" in value:
            number = value["id"]
            if type(number) is int and 0 < number <= self._probe_number:
                return ProbeReply(number)
            self.strays += 1
            return None
        if not self._open:
            raise ProtocolError("a reply to nothing")
        return Reply(self._open.pop(0), value.get("return"), error)


def _event(value: dict[str, Any]) -> Event:
    name, data, stamp = value["event"], value.get("data", {}), value.get("timestamp")
    if not isinstance(name, str) or not isinstance(data, dict):
        raise ProtocolError("an event without a name, or with data that is not an object")
    time_ns = None
    if isinstance(stamp, dict):
        seconds, micros = stamp.get("seconds"), stamp.get("microseconds")
        if type(seconds) is int and type(micros) is int and 0 <= seconds < 1 << 33 and 0 <= micros < 1_000_000:
            time_ns = seconds * 1_000_000_000 + micros * 1000
    return Event(name, data, time_ns)


class Frames:
    """Cuts the byte stream into JSON values, a line or (pretty-printed) a balanced run of lines each."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._buffer = bytearray()
        self._seen = 0  # how much of the buffer is known to hold no line end
        self._lines: list[bytes] = []  # a pretty-printed message so far
        self._lines_bytes = 0
        self._depth = 0

    def receive(self, data: bytes) -> Iterator[Any]:
        """Take bytes as they came and yield the values that they complete; to be run to its end.

        Raises:
            ProtocolError: what came is not JSON, or longer than was said.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            end = buffer.rfind(b"\n", self._seen) + 1
            whole = bytes(buffer[:end])
            del buffer[:end]
        else:  # as most often: what came is whole messages
            end = data.rfind(b"\n") + 1
            whole = data[:end]
            buffer += data[end:]
        self._seen = len(buffer)
        for line in whole.split(b"\n"):
            self._check(len(line))
            text = line.strip(b" \t\r")
            if text and (message := self._line(text)) is not None:
                yield _parse(message)
        self._check(len(buffer))

    def _check(self, pending: int) -> None:
        if pending + self._lines_bytes > self._max:
            raise ProtocolError(f"a message longer than {self._max} bytes")

    def _line(self, text: bytes) -> bytes | None:
        """Return the message that this line ends, or None where it goes on."""
        if (
            not self._lines and text[0] == 0x7B and text[-1] == 0x7D
        ):  # { ... }: the whole message, as QEMU sends it by default
            return text
        bare = _STRING.sub(b"", text)
        self._depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
        self._lines.append(text)
        self._lines_bytes += len(text)
        if 0 < self._depth <= _MAX_DEPTH:
            return None
        whole = b"".join(self._lines)
        self._lines, self._lines_bytes, self._depth = [], 0, 0
        return whole


def _parse(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"not JSON: {error}") from None
