"""QMP client of the demo and the tests for their own guests. The client can send any command, so the agent must not use this module."""

import asyncio
import itertools
import json
import socket
from collections import deque
from typing import Any, Final

from agent.qmp.frames import FrameSplitter, UnreadableMessage

_MAX_EVENTS: Final = 1000
_MAX_REPLY_BYTES: Final = 4 << 20
_READ_BYTES: Final = 1 << 16


class GuestError(Exception):
    """QEMU did not start, did not answer, or rejected a command."""


class GuestQmpClient:
    """A client of one QMP monitor that matches replies to commands by id, and stores events.

    Attributes:
        events: the last events that `wait_for_event` has not returned yet, oldest first.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=_MAX_EVENTS)
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._greeted = asyncio.Event()
        self._closed = False
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def from_connected_socket(cls, connected: socket.socket) -> "GuestQmpClient":
        """Create a client on a connected socket, and wait without a timeout until QEMU accepts commands.

        Raises:
            GuestError: QEMU closes the connection before it accepts commands.
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
            # Only block_set_io_throttle has arguments with underscores.
            separator = "_" if name == "block_set_io_throttle" else "-"
            request["arguments"] = {key.replace("_", separator): value for key, value in arguments.items()}
        if self._closed:
            raise GuestError(f"{name}: QEMU closed its monitor")
        future = self._pending[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps(request).encode())
            return await future
        except GuestError as error:
            raise GuestError(f"{name}: {error}") from error
        finally:
            del self._pending[number]

    async def wait_for_event(self, name: str) -> dict[str, Any]:
        """Return the oldest event of this name, and remove it from `events`. If `events` has none, wait for the event.

        Raises:
            GuestError: the connection ends before the event arrives.
        """
        async with self._changed:
            while True:
                for event in self.events:
                    if event["event"] == name:
                        self.events.remove(event)
                        return event
                if self._closed:
                    raise GuestError(f"QEMU closed its monitor before the event {name} arrived")
                await self._changed.wait()

    async def close(self) -> None:
        """Close the connection. Calls that wait for a reply or an event raise a GuestError."""
        self._writer.close()
        self._reader.feed_eof()
        await self._task

    async def _wait_for_greeting(self) -> None:
        await self._greeted.wait()
        if self._closed:
            raise GuestError("QEMU closed its monitor without a greeting")

    async def _read(self) -> None:
        frames = FrameSplitter(_MAX_REPLY_BYTES)
        try:
            while data := await self._reader.read(_READ_BYTES):
                for message in frames.receive(data):
                    if isinstance(message, UnreadableMessage):
                        self._fail_pending(message.reason)
                    elif isinstance(message, dict):
                        await self._dispatch(message)
        except OSError:
            pass  # handled like a connection that QEMU closes
        self._closed = True
        self._greeted.set()
        self._fail_pending("QEMU closed its monitor")
        async with self._changed:
            self._changed.notify_all()

    async def _dispatch(self, message: dict[str, Any]) -> None:
        """Handle an event, a greeting or a reply. Ignore other messages, and replies without a pending command."""
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
                if "error" in message:
                    future.set_exception(GuestError(f"{message['error']['class']}: {message['error']['desc']}"))
                else:
                    future.set_result(message["return"])

    def _fail_pending(self, reason: str) -> None:
        """Raise a GuestError in each call of `command` that waits for a reply."""
        for future in self._pending.values():
            if not future.done():
                future.set_exception(GuestError(reason))
