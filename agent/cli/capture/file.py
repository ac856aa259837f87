"""The capture file: a header, then one line for each message in order, without secrets.

    {"qmp-agent-capture": 1, "agent": "0.1.0", "time": "2026-11-21T09:14:02Z", "monitor": "/run/qemu/web-3.qmp"}
    {"seconds": 0.004, "from": "qemu", "message": {"QMP": ...}}
    {"seconds": 0.031, "from": "agent", "message": {"execute": "query-status"}}

`seconds` count from the header. The last line is `{"seconds": 61.2, "from": "qemu", "message": null}` if QEMU closed the connection.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from agent import __version__
from agent.cli.capture import CaptureError

FORMAT = 1
REMOVED = "(removed)"

_SECRET = re.compile(
    r"passw(or)?d|passphrase|secret|psk|token|credential|cookie|private.?key|^(auth|key)$", re.IGNORECASE
)
"""Keys whose texts are or may be secrets, such as QEMU's password, key-secret, tls-creds, cookie and password-secret."""

_INSIDE = (
    (re.compile(r"(?<=://)[^/@\s\"]+(?=@)"), REMOVED),  # the user and the password of a URL
    (
        re.compile(
            r"""((?:passw(?:or)?d|passphrase|secret|psk|token|cookie)["']?\s*[=:]\s*["']?)[^"',;&\s}]+""", re.IGNORECASE
        ),
        rf"\g<1>{REMOVED}",
    ),
)
"""Secrets inside texts: in URLs, and in options such as `json:{...}` or `a=b,c=d`."""

Side = Literal["agent", "qemu"]


@dataclass(frozen=True, slots=True)
class CaptureLine:
    """One message with its time. If the message is None, this side closed the connection."""

    seconds: float
    side: Side
    message: dict[str, Any] | None


def without_secrets(value: Any, key: str = "") -> Any:
    """Return a message with its secrets removed: texts under secret keys, and secrets inside other texts."""
    match value:
        case dict():
            return {name: without_secrets(inner, name) for name, inner in value.items()}
        case list():
            return [without_secrets(inner, key) for inner in value]
        case str() if _SECRET.search(key):
            return REMOVED
        case str():
            for pattern, text in _INSIDE:
                value = pattern.sub(text, value)
    return value


class CaptureWriter:
    """Writes a capture file that only its owner can read.

    Args:
        path: the file.
        monitor: the monitor's address, for the header.
        max_bytes: the maximum size of the file.

    Attributes:
        lines: the number of messages in the file.
        full: whether a message did not fit.

    Raises:
        CaptureError: the file cannot be created; an existing file is not replaced.
    """

    def __init__(self, path: Path, monitor: str, max_bytes: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)  # unbuffered, so that a kill loses nothing
        self._left = max_bytes
        self._start = time.monotonic()
        self.lines = 0
        self.full = False
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._put({"qmp-agent-capture": FORMAT, "agent": __version__, "time": now, "monitor": without_secrets(monitor)})

    def put(self, side: Side, message: dict[str, Any] | None) -> None:
        """Write a message with the present time, if it fits."""
        seconds = round(time.monotonic() - self._start, 6)
        self._put({"seconds": seconds, "from": side, "message": without_secrets(message)})
        self.lines += not self.full

    def _put(self, value: dict[str, Any]) -> None:
        text = orjson.dumps(value) + b"\n"
        self.full = self.full or len(text) > self._left
        if not self.full:
            self._left -= len(text)
            self._file.write(text)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> list[CaptureLine]:
    """Return the messages of a capture file, without an incomplete last line.

    Raises:
        CaptureError: the file cannot be read or is not a capture file.
    """
    try:
        header, *lines = _values(path.read_bytes())
        if header["qmp-agent-capture"] != FORMAT:
            raise CaptureError(f"{path}: unsupported format; this version reads format {FORMAT}")
        return [_line(line) for line in lines]
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CaptureError(f"{path}: not a capture file of `qmp-agent record`") from error


def _line(value: Any) -> CaptureLine:
    message = value["message"]
    if not (message is None or (isinstance(message, dict) and isinstance(message.get("id"), int | str | None))):
        raise TypeError
    return CaptureLine(float(value["seconds"]), value["from"], message)


def _values(text: bytes) -> Iterator[Any]:
    *whole, _ = text.split(b"\n")
    return map(orjson.loads, whole)
