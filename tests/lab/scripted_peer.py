"""The other end of a connection, for what FakeQemu does not do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from agent.monitors.dial import unix
from agent.qmp.client import Client
from agent.qmp.commands import AllowList
from agent.qmp.protocol import Event

QUIET_SECONDS = 0.05
"""Seconds after which what never comes has not come."""
TIMEOUT_SECONDS = 5.0
"""Seconds in which what comes has come, on any machine."""


@contextlib.asynccontextmanager
async def connected(
    path: Path, on_event: Callable[[Event], None] = lambda _: None, deadline: float = TIMEOUT_SECONDS
) -> AsyncIterator[Client]:
    """A client of the monitor at a path, closed with the block."""
    client = await Client.open(unix(str(path)), AllowList(), on_event, deadline=deadline)
    with contextlib.closing(client):
        yield client


@contextlib.asynccontextmanager
async def scripted_peer(
    folder: Path, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[Path]:
    """A server that talks to each client as it is told, and hangs up."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        with contextlib.suppress(OSError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, folder / "peer")
    try:
        yield folder / "peer"
    finally:
        server.close()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await asyncio.gather(*talks)
