"""Framing of the QMP byte stream: bytes in, JSON values out, and a marker for each message that cannot be read. Pure.

QEMU ends every message with CR LF and escapes control characters inside strings, so a line end is a message's end. A monitor with
`pretty=on` sends a message as several lines: `{`, indented lines, `}`. By these rules, the reader also finds the end of a damaged message,
and reads the next one. They hold for QEMU 2.6 to 11.1.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

import orjson

_BLANK = b" \t\r"
_HEAD_BYTES = 64
_FIRST_KEY = re.compile(rb'\{\s*"(return|error|timestamp|event|id)"')
_NEXT_MESSAGE = re.compile(rb'\}\s*\{\s*"(return|error|timestamp|event|id)"')
"""Two messages without a line end between them. Inside a message, a comma separates two objects, and strings escape quotes."""
_ID_AT_END = re.compile(rb'"id":\s*\d+[\s}]*\Z')


class MessageKind(Enum):
    """Kind of an unreadable message, guessed from its first key and its end."""

    REPLY = auto()
    """A reply without an id: the reply to the oldest in-band command."""
    REPLY_WITH_ID = auto()
    EVENT = auto()
    UNKNOWN = auto()


class Unreadable(NamedTuple):
    """A message that cannot be read.

    Attributes:
        kind: the kind of message.
        reason: why it cannot be read, for the operator.
        oversized: whether it exceeds the size limit.
    """

    kind: MessageKind
    reason: str
    oversized: bool = False


class Frames:
    """Splits the byte stream into JSON values.

    Args:
        max_bytes: the size limit of one message. A larger message is skipped. Memory use is at most twice this limit plus one chunk.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._buffer = bytearray()  # the line so far; cut just past the limit
        self._scanned = 0  # how much of the buffer holds no line end
        # The pretty-printed message so far. A list of short lines would take 20 times the memory.
        self._lines = bytearray()
        self._lines_bytes = 0  # its length, without the limit

    def receive(self, data: bytes) -> Iterator[Any]:
        """Yield each message that these bytes complete: its JSON value, or an Unreadable. Consume the iterator to its end."""
        buffer = self._buffer
        if buffer:
            buffer += data
            end = buffer.rfind(b"\n", self._scanned) + 1
            whole = bytes(buffer[:end])
            del buffer[:end]
        else:  # the usual case: the chunk holds whole messages
            end = data.rfind(b"\n") + 1
            whole = data[:end]
            buffer += data[end:]
        del buffer[self._max + 1 :]
        self._scanned = len(buffer)
        for line in whole.split(b"\n"):
            if len(line) > self._max:
                line = line[: self._max + 1]  # noqa: PLW2901 - the same, however the bytes were cut into chunks
            text = line.strip(_BLANK)
            if not text:
                continue
            if not self._lines and text != b"{":
                yield self._parse(text, len(line))
            else:
                yield from self._take_pretty_line(text, indented=line[0] in _BLANK)

    def _take_pretty_line(self, text: bytes, *, indented: bool) -> Iterator[Any]:
        if self._lines and not indented and text[0] == 0x7B:  # {: the next message; the end of this one is missing
            yield self._unreadable(self._flush(), "the message has no end")
            if text != b"{":
                yield self._parse(text, len(text))
                return
        self._lines_bytes += len(text)
        if self._lines_bytes <= self._max:
            self._lines += text
        if not indented and text == b"}":
            size = self._lines_bytes
            yield self._parse(self._flush(), size)

    def _flush(self) -> bytes:
        text = bytes(self._lines)
        self._lines, self._lines_bytes = bytearray(), 0
        return text

    def _parse(self, text: bytes, size: int) -> Any:
        if size > self._max:
            return self._unreadable(text, f"the message is longer than {self._max} bytes", oversized=True)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return self._unreadable(text, f"not JSON: {error}")

    def _unreadable(self, text: bytes, reason: str, *, oversized: bool = False) -> Unreadable:
        return Unreadable(_kind_of(text, oversized=oversized), reason, oversized)


def _kind_of(text: bytes, *, oversized: bool) -> MessageKind:
    match = _FIRST_KEY.match(text[:_HEAD_BYTES])
    if match is None or _NEXT_MESSAGE.search(text, match.end()):
        return MessageKind.UNKNOWN
    if match[1] in (b"timestamp", b"event"):
        return MessageKind.EVENT
    # The end of an oversized message is not in the text.
    with_id = match[1] == b"id" or (not oversized and _ID_AT_END.search(text[-_HEAD_BYTES:]))
    return MessageKind.REPLY_WITH_ID if with_id else MessageKind.REPLY
