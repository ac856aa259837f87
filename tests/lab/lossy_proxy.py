"""A TCP proxy in front of a server.

It can discard the server's responses and end all connections, so that the client misses acknowledgements.
"""

import asyncio
import contextlib
from typing import Final, Self

_CHUNK_BYTES: Final = 1 << 16


class LossyProxy:
    """A proxy on a port of 127.0.0.1. As an async context manager, it runs while the `with` block runs.

    Attributes:
        discards_responses: whether the proxy discards what the server sends.
    """

    def __init__(self, port: int, server_port: int) -> None:
        """Set up a proxy.

        Args:
            port: the port on which the proxy listens.
            server_port: the port of the server, on 127.0.0.1 too.
        """
        self.discards_responses = False
        self._ports = port, server_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._ports[0])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.end_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def end_connections(self) -> None:
        """Abort the connections on both sides. Clients can connect again."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._ports[1])
        self._writers |= {to_client, to_server}
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await asyncio.gather(
                self._forward(from_client, to_server, of_server=False),
                self._forward(from_server, to_client, of_server=True),
            )
        finally:
            for writer in (to_client, to_server):
                writer.transport.abort()
                self._writers.discard(writer)
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, of_server: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                if not (of_server and self.discards_responses):
                    writer.write(data)
                    await writer.drain()
        writer.transport.abort()
