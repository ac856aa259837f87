"""A scripted server at a Unix socket, for behaviour that FakeQemu does not have."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from agent.monitors.dial import unix_connector
from agent.qmp.client import QmpClient
from agent.qmp.commands import AllowList
from agent.qmp.protocol import Event

QUIET_SECONDS = 0.05
"""Time to wait before a test concludes that nothing arrives."""
TIMEOUT_SECONDS = 300.0
"""Timeout for what must arrive, on any machine."""


@contextlib.asynccontextmanager
async def connected(
    path: Path, on_event: Callable[[Event], None] = lambda _: None, deadline: float = TIMEOUT_SECONDS
) -> AsyncIterator[QmpClient]:
    """Connect a client to the monitor at a path. The client is closed at the end of the block."""
    client = await QmpClient.open(unix_connector(str(path)), AllowList(), on_event, deadline=deadline)
    with contextlib.closing(client):
        yield client


@contextlib.asynccontextmanager
async def scripted_peer(
    folder: Path, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[Path]:
    """Run a server while the `with` block runs. It calls `talk` for each client, and then closes the connection."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
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
            await asyncio.gather(*running)
