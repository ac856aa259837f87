"""The QMP client of the demo and the tests for their own guests. It can send any command, so no part of the agent may use it."""

import asyncio
import itertools
import json
import socket
from collections import deque
from typing import Any, Final

from agent.qmp.errors import ProtocolError
from agent.qmp.frames import Frames

_MAX_EVENTS: Final = 1000
_MAX_REPLY_BYTES: Final = 4 << 20
_READ_BYTES: Final = 1 << 16


class GuestError(Exception):
    """QEMU did not start, did not answer, or rejected a command."""


class ControlClient:
    """A client of one QMP monitor. It matches replies to commands by id and keeps the latest events.

    Attributes:
        events: events that `event` has not returned yet, oldest first.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._greeted = asyncio.Event()
        self._closed = False
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, connected: socket.socket) -> "ControlClient":
        """Take over a connected socket and wait without a timeout until QEMU accepts commands on it.

        Raises:
            GuestError: QEMU closes the connection instead.
        """
        client = cls(*await asyncio.open_unix_connection(sock=connected))
        try:
            await client._wait_for_greeting()
            await client.command("qmp_capabilities")
        except BaseException:
            await client.close()
            raise
        return client

    async def command(self, name: str, /, **arguments: Any) -> Any:
        """Execute a command. Underscores in argument names become hyphens.

        Returns:
            The `return` value of the reply.

        Raises:
            GuestError: QEMU answers with an error or closes the connection.
        """
        number = next(self._ids)
        request: dict[str, Any] = {"execute": name, "id": number}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        if self._closed:
            raise GuestError(f"{name}: QEMU closed its monitor")
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps(request).encode())
            reply = await future
        except ConnectionError as error:
            raise GuestError(f"{name}: QEMU closed its monitor") from error
        finally:
            del self._pending[number]
        if "error" in reply:
            raise GuestError(f"{name}: {reply['error']['class']}: {reply['error']['desc']}")
        return reply["return"]

    async def event(self, name: str) -> dict[str, Any]:
        """Remove and return the oldest event of this name; wait for one if there is none.

        Raises:
            GuestError: the connection ends before one arrives.
        """
        async with self._changed:
            while True:
                for event in self.events:
                    if event["event"] == name:
                        self.events.remove(event)
                        return event
                if self._closed:
                    raise GuestError(f"QEMU closed its monitor before an event {name}")
                await self._changed.wait()

    async def close(self) -> None:
        """Close the connection. Waiting commands and events end with a GuestError."""
        self._writer.close()
        self._reader.feed_eof()
        await self._task

    async def _wait_for_greeting(self) -> None:
        await self._greeted.wait()
        if self._closed:
            raise GuestError("QEMU closed its monitor without a greeting")

    async def _read(self) -> None:
        frames = Frames(_MAX_REPLY_BYTES)
        try:
            while data := await self._reader.read(_READ_BYTES):
                for message in frames.receive(data):
                    if isinstance(message, dict):
                        await self._dispatch(message)
        except (OSError, ProtocolError):
            pass  # as if QEMU had closed the connection
        self._closed = True
        self._greeted.set()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionError())
        async with self._changed:
            self._changed.notify_all()

    async def _dispatch(self, message: dict[str, Any]) -> None:
        """Handle a message by its kind. Anything else, such as a reply without a waiting command, is ignored."""
        if "event" in message:
            async with self._changed:
                self.events.append(message)
                self._changed.notify_all()
        elif "QMP" in message:
            self._greeted.set()
        elif "return" in message or "error" in message:
            number = message.get("id")
            future = self._pending.get(number) if isinstance(number, int) else None
            if future is not None and not future.done():
                future.set_result(message)
