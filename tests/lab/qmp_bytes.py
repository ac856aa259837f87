"""Messages of a QMP connection as bytes, and connections to feed them to."""

import json
from collections.abc import Sequence
from typing import Any

from agent.qmp.commands import AllowList, Command
from agent.qmp.protocol import Connection, Message

HELLO = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"}, "capabilities": ["oob"]}}
DONE: dict[str, Any] = {"return": {}}
STATUS = Command("query-status")


def line(message: object, *, indent: int | None = None) -> bytes:
    """Return a message as QEMU sends it; with an indent, as a `pretty=on` monitor sends it."""
    return json.dumps(message, indent=indent).replace("\n", "\r\n").encode() + b"\r\n"


def ready(*, oob: bool = True, bound: int = 1 << 20) -> Connection:
    """Return a connection after negotiation."""
    connection = Connection(AllowList(), bound)
    hello = {"QMP": HELLO["QMP"] | {"capabilities": ["oob"] if oob else []}}
    assert len(list(connection.receive(line(hello) + line(DONE)))) == 2
    return connection


def receive(connection: Connection, *messages: object) -> list[Message]:
    """Feed messages to a connection and return the messages that it yields."""
    return list(connection.receive(b"".join(line(message) for message in messages)))


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut bytes into chunks of these sizes, and the rest into one more."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]
