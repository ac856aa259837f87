"""A scripted guest agent at a Unix socket, for behaviour that a real guest agent does not show on demand.

By default it behaves like qemu-ga behind QEMU's channel: it serves one client at a time, executes one command after the other, and
replies to the byte 0xFF with an error. Its default replies were captured from a real qemu-ga, see `guest_transcript.py`.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.lab.guest_transcript import load

Answer = Callable[[dict[str, Any]], bytes | None]
"""Returns the reply to a request as bytes; None for no reply."""


class FakeGuestAgent:
    """A guest agent at a Unix socket. As an async context manager it listens while the `with` block runs.

    Attributes:
        path: the socket.
        replies: values or errors by command; may change at any time. Each is a whole reply, with `return` or `error`.
        requests: every request of every client, oldest first.
        silent: whether it sends no replies.
        clients: the number of clients that it has served.
        raw: bytes that are sent instead of the reply to a command, by command.
    """

    def __init__(self, path: Path, *, release: str = "7.2") -> None:
        self.path = path
        self.replies: dict[str, dict[str, Any]] = load(release)
        self.requests: list[dict[str, Any]] = []
        self.raw: dict[str, bytes] = {}
        self.silent = False
        self.clients = 0
        self._server: asyncio.Server | None = None
        self._turn = asyncio.Lock()
        self._writers: set[asyncio.StreamWriter] = set()
        self._received = asyncio.Condition()

    async def __aenter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, os.fspath(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        self.path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()

    def send_raw(self, data: bytes) -> None:
        """Send all clients these bytes."""
        for writer in self._writers:
            writer.write(data)

    def count(self, command: str) -> int:
        """Return how many times a command was received."""
        return sum(request.get("execute") == command for request in self.requests)

    async def wait_for(self, command: str, times: int = 1) -> None:
        """Wait until a command was received this many times in total."""
        async with self._received:
            await self._received.wait_for(lambda: self.count(command) >= times)

    async def record_request(self, line: bytes) -> dict[str, Any]:
        """Store a request of a client, as received, and return it without the bytes before it."""
        request: dict[str, Any] = json.loads(line.split(b"\xff")[-1])
        async with self._received:
            self.requests.append(request)
            self._received.notify_all()
        return request

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            async with self._turn:  # QEMU's channel has one client; other clients wait
                self.clients += 1
                with contextlib.suppress(ConnectionError, asyncio.LimitOverrunError):
                    await self._talk(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = await self.record_request(line)
            if self.silent:
                continue
            if b"\xff" in line:
                writer.write(reply({"error": {"class": "GenericError", "desc": "JSON parse error, stray 'xff'"}}))
            name = request["execute"]
            if name in self.raw:
                writer.write(self.raw[name])
            elif name == "guest-sync-delimited":
                writer.write(b"\xff" + reply({"return": request["arguments"]["id"]}))
            else:
                missing = {"error": {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}}
                writer.write(reply(self.replies.get(name, missing)))
            await writer.drain()


def reply(message: dict[str, Any]) -> bytes:
    """Return a reply as qemu-ga sends it."""
    return json.dumps(message).encode() + b"\n"
