"""The demonstration's own line to a QEMU: a QMP client of the fewest lines, with none of the agent's caution."""

import asyncio
import json
import socket
from collections import deque
from typing import Any, Final

_EVENTS_KEPT: Final = 1000
_LONGEST_REPLY_BYTES: Final = 4 << 20


class GuestError(Exception):
    """QEMU did not start, did not answer, or refused a command; the message has its own words."""


class Control:
    """One client of one QMP monitor, which asks one thing at a time and remembers the last events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._reader = reader
        self._writer = writer
        self._replies: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._news = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, connected: socket.socket) -> "Control":
        """Take over a connected socket and wait until QEMU answers on it, however long it takes.

        Raises:
            GuestError: if QEMU hangs up instead.
        """
        control = cls(*await asyncio.open_unix_connection(sock=connected, limit=_LONGEST_REPLY_BYTES))
        try:
            await control._negotiate()
        except BaseException:
            await control.close()
            raise
        return control

    async def command(self, name: str, /, **arguments: Any) -> Any:
        """Ask, and return the answer's `return` value; underscores in the arguments' names stand for hyphens.

        Raises:
            GuestError: if QEMU answers with an error, or closes the monitor.
        """
        request: dict[str, Any] = {"execute": name}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        async with self._turn:
            self._writer.write(json.dumps(request).encode())
            reply = await self._replies.get()
        if reply is None:
            self._replies.put_nowait(None)  # for whoever asks next
            raise GuestError(f"{name}: it closed its monitor")
        if "error" in reply:
            raise GuestError(f"{name}: {reply['error']['class']}: {reply['error']['desc']}")
        return reply["return"]

    async def event(self, name: str) -> dict[str, Any]:
        """Take the oldest event of that name that nobody has taken yet, waiting for one if need be.

        Raises:
            GuestError: if the monitor is closed before one comes.
        """
        async with self._news:
            while True:
                for event in self.events:
                    if event["event"] == name:
                        self.events.remove(event)
                        return event
                if self._reader.at_eof():
                    raise GuestError(f"it closed its monitor before an event {name}")
                await self._news.wait()

    async def close(self) -> None:
        """Hang up; waiting for an answer or an event ends with a GuestError."""
        self._writer.close()
        self._reader.feed_eof()
        if self._task is not None:
            await self._task

    async def _negotiate(self) -> None:
        if await self._receive() is None:
            raise GuestError("it closed its monitor without a greeting")
        self._task = asyncio.create_task(self._read())
        await self.command("qmp_capabilities")

    async def _read(self) -> None:
        message: dict[str, Any] | None = {}
        while message is not None:
            message = await self._receive()
            if message is None or "event" not in message:
                self._replies.put_nowait(message)
            async with self._news:
                if message is not None and "event" in message:
                    self.events.append(message)
                self._news.notify_all()

    async def _receive(self) -> dict[str, Any] | None:
        try:
            line = await self._reader.readline()
        except OSError:
            line = b""
        message: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
        return message
