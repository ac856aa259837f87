"""Framing of the QMP byte stream: splits bytes into messages, each a JSON value or an `UnreadableMessage`. Pure.

QEMU ends every message with CR LF and escapes control characters inside strings. So each line is a message. Only a monitor with
`pretty=on` sends a message as several lines: `{`, indented lines, `}`. Both rules hold for QEMU 2.6 to 11.1. So the splitter finds the end
of a damaged message, and can read the next message.
"""

import re
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

import orjson

_BLANK = b" \t\r"
_HEAD_BYTES = 64
_FIRST_KEY = re.compile(rb'\{\s*"(return|error|timestamp|event|id)"')
_MESSAGE_BOUNDARY = re.compile(rb'\}\s*\{\s*"(return|error|timestamp|event|id)"')
"""Matches the end of a message and the start of another message on the same line. Inside one message, a comma separates two objects."""
_ID_AT_END = re.compile(rb'"id":\s*\d+[\s}]*\Z')


class UnreadableMessageKind(Enum):
    """Kind of an unreadable message, guessed from the first key and the end of its text."""

    REPLY = auto()
    """A reply without an id, which belongs to the oldest in-band command."""
    REPLY_WITH_ID = auto()
    """A reply to a probe or a marker."""
    EVENT = auto()
    UNKNOWN = auto()
    """The text contains several messages, or does not begin like a message from QEMU."""


class UnreadableMessage(NamedTuple):
    """A message that cannot be read.

    Attributes:
        kind: the kind of message.
        reason: why the message cannot be read, for the operator.
        oversized: whether the message exceeds the size limit.
    """

    kind: UnreadableMessageKind
    reason: str
    oversized: bool = False


class FrameSplitter:
    """Splits the byte stream into JSON values.

    Args:
        max_bytes: the size limit of one message. A larger message is skipped. Memory use is at most twice this limit plus one chunk.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()  # a line whose end has not arrived, cut to one byte more than the limit
        self._scanned = 0  # number of bytes at the start of the buffer that contain no line end
        # The lines of a pretty-printed message whose end has not arrived, in one buffer. A list of short lines would take 20 times the
        # memory.
        self._lines = bytearray()
        self._lines_bytes = 0  # total length of these lines, which may exceed the limit

    def receive(self, data: bytes) -> Iterator[Any]:
        """Yield a JSON value or an UnreadableMessage for each message that these bytes complete. Consume the iterator to its end."""
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
        del buffer[self._max_bytes + 1 :]
        self._scanned = len(buffer)
        # Usually, the chunk is one message. A slice is then faster than `split`, which compares byte by byte.
        for line in (whole[:-1],) if whole.find(b"\n") == len(whole) - 1 else whole.split(b"\n"):
            if len(line) > self._max_bytes:
                line = line[: self._max_bytes + 1]  # noqa: PLW2901 - the same text as if the line had arrived in several chunks
            text = line.strip(_BLANK)
            if not text:
                continue
            if not self._lines and text != b"{":
                yield self._parse_message(text, len(line))
            else:
                yield from self._add_pretty_line(text, indented=line[0] in _BLANK)

    def _add_pretty_line(self, text: bytes, *, indented: bool) -> Iterator[Any]:
        """Add a line to the pretty-printed message. Yield the message if this line ends the message or begins the next one."""
        # `{` without indentation begins the next message, so the end of this message is missing.
        if self._lines and not indented and text[0] == 0x7B:
            yield self._make_unreadable(self._pop_pretty_message(), "the message has no end")
            if text != b"{":
                yield self._parse_message(text, len(text))
                return
        self._lines_bytes += len(text)
        if self._lines_bytes <= self._max_bytes:
            self._lines += text
        if not indented and text == b"}":
            size = self._lines_bytes
            yield self._parse_message(self._pop_pretty_message(), size)

    def _pop_pretty_message(self) -> bytes:
        """Return the lines of the pretty-printed message, and begin a new message."""
        text = bytes(self._lines)
        self._lines, self._lines_bytes = bytearray(), 0
        return text

    def _parse_message(self, text: bytes, size: int) -> Any:
        if size > self._max_bytes:
            return self._make_unreadable(text, f"the message is longer than {self._max_bytes} bytes", oversized=True)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return self._make_unreadable(text, f"not JSON: {error}")

    def _make_unreadable(self, text: bytes, reason: str, *, oversized: bool = False) -> UnreadableMessage:
        return UnreadableMessage(_guess_kind(text, oversized=oversized), reason, oversized)


def _guess_kind(text: bytes, *, oversized: bool) -> UnreadableMessageKind:
    match = _FIRST_KEY.match(text[:_HEAD_BYTES])
    if match is None or _MESSAGE_BOUNDARY.search(text, match.end()):
        return UnreadableMessageKind.UNKNOWN
    if match[1] in (b"timestamp", b"event"):
        return UnreadableMessageKind.EVENT
    # The end of an oversized message is not in the text.
    with_id = match[1] == b"id" or (not oversized and _ID_AT_END.search(text[-_HEAD_BYTES:]))
    return UnreadableMessageKind.REPLY_WITH_ID if with_id else UnreadableMessageKind.REPLY
