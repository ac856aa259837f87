"""Reads and writes capture files: a header line, and then a line of JSON for each QMP message, without secrets.

    {"qmp-agent-capture": 1, "agent": "0.1.0", "time": "2026-11-21T09:14:02Z", "monitor": "/run/qemu/web-3.qmp"}
    {"seconds": 0.004, "from": "qemu", "message": {"QMP": ...}}
    {"seconds": 0.031, "from": "agent", "message": {"execute": "query-status"}}

`seconds` is the time since the header. If QEMU closed the connection, the last line is
`{"seconds": 61.2, "from": "qemu", "message": null}`.
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

FORMAT_VERSION = 1
REMOVED = "(removed)"
"""Text that replaces a secret."""

_SECRET_KEY = re.compile(
    r"passw(or)?d|passphrase|secret|psk|token|credential|cookie|private.?key|^(auth|key)$", re.IGNORECASE
)
"""Pattern of keys whose values may be secrets, such as QEMU's `password`, `key-secret` and `cookie`."""

_SECRETS_IN_TEXT = (
    (re.compile(r"(?<=://)[^/@\s\"]+(?=@)"), REMOVED),  # the user and the password of a URL
    (
        re.compile(
            r"""((?:passw(?:or)?d|passphrase|secret|psk|token|cookie)["']?\s*[=:]\s*["']?)[^"',;&\s}]+""", re.IGNORECASE
        ),
        rf"\g<1>{REMOVED}",
    ),
)
"""Patterns that match secrets inside texts such as URLs, `json:{...}` and `a=b,c=d`, each with its replacement."""

Sender = Literal["agent", "qemu"]


@dataclass(frozen=True, slots=True)
class CaptureLine:
    """A message, its sender, and its time in seconds since the header. The message is None if the sender closed the connection."""

    seconds: float
    sender: Sender
    message: dict[str, Any] | None


def remove_secrets(value: Any, key: str = "") -> Any:
    """Return a copy of a message in which `REMOVED` replaces secrets: all texts below secret keys, and secrets inside other texts.

    Args:
        value: the message or a part of it.
        key: the key of this part, or the secret key above this part.
    """
    match value:
        case dict():
            is_secret = _SECRET_KEY.search(key) is not None
            return {name: remove_secrets(inner, key if is_secret else name) for name, inner in value.items()}
        case list():
            return [remove_secrets(inner, key) for inner in value]
        case str() if _SECRET_KEY.search(key):
            return REMOVED
        case str():
            for pattern, text in _SECRETS_IN_TEXT:
                value = pattern.sub(text, value)
    return value


class CaptureWriter:
    """Writes a capture file that only its owner can read.

    Args:
        path: the file.
        monitor: the monitor's address, for the header.
        max_bytes: the maximum size of the file in bytes.

    Attributes:
        message_count: the number of messages in the file.
        is_full: whether the file has reached its maximum size, so that a message was dropped.

    Raises:
        CaptureError: the file exists or cannot be created.
    """

    def __init__(self, path: Path, monitor: str, max_bytes: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CaptureError(f"{path}: {error.strerror}") from error
        # Unbuffered, so that no message is lost if the process is killed.
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._bytes_left = max_bytes
        self._start = time.monotonic()
        self.message_count = 0
        self.is_full = False
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._write_line(
            {"qmp-agent-capture": FORMAT_VERSION, "agent": __version__, "time": now, "monitor": remove_secrets(monitor)}
        )

    def write_message(self, side: Sender, message: dict[str, Any] | None) -> None:
        """Write a message with the current time. Drop the message if the file would exceed its maximum size."""
        seconds = round(time.monotonic() - self._start, 6)
        self._write_line({"seconds": seconds, "from": side, "message": remove_secrets(message)})
        self.message_count += not self.is_full

    def _write_line(self, value: dict[str, Any]) -> None:
        text = orjson.dumps(value) + b"\n"
        self.is_full = self.is_full or len(text) > self._bytes_left
        if not self.is_full:
            self._bytes_left -= len(text)
            self._file.write(text)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_capture(path: Path) -> list[CaptureLine]:
    """Return the messages of a capture file. An incomplete last line is ignored.

    Raises:
        CaptureError: the file cannot be read or is not a capture file.
    """
    try:
        header, *lines = _parse_json_lines(path.read_bytes())
        if header["qmp-agent-capture"] != FORMAT_VERSION:
            raise CaptureError(f"{path}: unsupported format; this version reads format {FORMAT_VERSION}")
        return [_parse_line(line) for line in lines]
    except OSError as error:
        raise CaptureError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CaptureError(f"{path}: not a capture file of `qmp-agent capture`") from error


def _parse_line(value: Any) -> CaptureLine:
    message = value["message"]
    if not (message is None or (isinstance(message, dict) and isinstance(message.get("id"), int | str | None))):
        raise TypeError
    return CaptureLine(float(value["seconds"]), value["from"], message)


def _parse_json_lines(text: bytes) -> Iterator[Any]:
    *whole, _ = text.split(b"\n")
    return map(orjson.loads, whole)
