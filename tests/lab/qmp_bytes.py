"""QMP messages as bytes, and protocol objects (agent.qmp.protocol) that receive them."""

import json
from collections.abc import Sequence
from typing import Any

from agent.qmp.commands import AllowList, Command
from agent.qmp.protocol import Message, QmpProtocol

HELLO = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"}, "capabilities": ["oob"]}}
DONE: dict[str, Any] = {"return": {}}
STATUS = Command("query-status")


def line(message: object, *, indent: int | None = None) -> bytes:
    """Return a message as QEMU sends it. With an indent, return it as a `pretty=on` monitor sends it."""
    return json.dumps(message, indent=indent).replace("\n", "\r\n").encode() + b"\r\n"


def ready(*, oob: bool = True, bound: int = 1 << 20) -> QmpProtocol:
    """Return a connection that has completed the negotiation."""
    connection = QmpProtocol(AllowList(), bound)
    hello = {"QMP": HELLO["QMP"] | {"capabilities": ["oob"] if oob else []}}
    assert len(list(connection.receive(line(hello) + line(DONE)))) == 2
    return connection


def receive(connection: QmpProtocol, *messages: object) -> list[Message]:
    """Pass messages to a connection as bytes, and return the messages that it yields."""
    return list(connection.receive(b"".join(line(message) for message in messages)))


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut bytes into chunks of these sizes. A last chunk has all remaining bytes."""
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]
