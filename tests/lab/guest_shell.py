"""A shell in a Linux guest that runs the guest agent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

_TIMEOUT_SECONDS = 300.0


class GuestShell:
    """Executes commands in the guest. Open it with `guest_shell`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0

    async def run(self, command: str) -> str:
        """Execute a command in the guest and return its output."""
        self._number += 1
        end = f"END-{self._number}"
        self._writer.write(f"{command}\necho {end}\n".encode())
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            text = await self._reader.readuntil(end.encode() + b"\n")
        return text.decode().removesuffix(f"{end}\n")


@contextlib.asynccontextmanager
async def guest_shell(folder: Path, name: str) -> AsyncIterator[GuestShell]:
    """Connect to the shell of a guest that has booted."""
    reader, writer = await asyncio.open_unix_connection(folder / f"{name}.shell")
    try:
        yield GuestShell(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
