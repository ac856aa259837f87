"""Another client of a guest agent, such as a manager. It can send any command."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, Self

_TIMEOUT_SECONDS = 300.0


class GuestAgentProbe:
    """A connection to a channel. As an async context manager it is connected and synchronized while the block runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=1 << 20)
        self._writer.write(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":7}}\n')
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await self._reader.readuntil(b'\xff{"return": 7}\n')
        return self

    async def execute(self, command: str) -> Any:
        """Execute a command and return its value."""
        self._writer.write(json.dumps({"execute": command}).encode() + b"\n")
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return json.loads(await self._reader.readline())["return"]

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
