"""Limits of the endpoint's connections: their number, the header's size and time, the idle time, and unread responses."""

import asyncio
import contextlib
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.app.self_metrics import HttpEndpointMetrics, SelfMetrics
from agent.http.connection_limits import ConnectionLimits
from tests.lab.endpoint import RunningEndpoint
from tests.lab.scripted_peer import TIMEOUT_SECONDS
from tests.lab.waiting import until


async def wait_until_closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await reader.read()
    return True


async def test_a_client_that_sends_its_header_byte_by_byte_is_disconnected(folder: Path) -> None:
    limits = ConnectionLimits(header_seconds=0.2)
    async with (
        RunningEndpoint(folder, limits=limits).open() as endpoint,
        endpoint.raw_connection() as (silent, _),
        endpoint.raw_connection() as (reader, writer),
    ):
        header, sent = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000, 0

        async def drip() -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionError):
                for byte in header:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    sent += 1
                    await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert await wait_until_closed(silent)
        assert await wait_until_closed(reader)
        assert sent < len(header)
        dripping.cancel()
        assert await endpoint.get() == 200


async def test_a_kept_alive_connection_is_served_and_closed_when_idle(folder: Path) -> None:
    # After a pause of this process, the timers of its event loop run before the data is read.
    limits = ConnectionLimits(header_seconds=1.0, idle_seconds=TIMEOUT_SECONDS)
    async with RunningEndpoint(folder, limits=limits).open() as endpoint, endpoint.raw_connection() as (reader, writer):
        for _ in range(5):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(TIMEOUT_SECONDS):
                assert b"200" in await reader.readuntil(b"\r\n")
                await reader.readuntil(b"ok\n")
            await asyncio.sleep(0.3)  # longer than header_seconds in total


async def test_an_idle_connection_is_closed(folder: Path) -> None:
    limits = ConnectionLimits(idle_seconds=0.2)
    async with RunningEndpoint(folder, limits=limits).open() as endpoint, endpoint.raw_connection() as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await wait_until_closed(reader)


@pytest.mark.parametrize(
    "header",
    [
        b"X: " + b"x" * 9000 + b"\r\n",
        b"".join(b"X-%d: x\r\n" % n for n in range(100)),
        b"X: x\r\n" * 20_000,
        b"\x00\xff" * 5000,
        b"Content-Length: 1000000000000\r\n",
    ],
)
async def test_an_oversized_header_is_refused(folder: Path, header: bytes) -> None:
    async with RunningEndpoint(folder).open() as endpoint, endpoint.raw_connection() as (reader, writer):
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n")
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                line = await reader.readline()
                assert line == b"" or line.split()[1] in (b"400", b"404", b"431")
        assert await endpoint.get() == 200


async def test_excess_connections_are_refused_until_one_ends(folder: Path) -> None:
    async with RunningEndpoint(folder, limits=ConnectionLimits(connections=10)).open() as endpoint:
        async with AsyncExitStack() as connections, endpoint.raw_connection() as (first, _):
            for _ in range(9):
                await connections.enter_async_context(endpoint.raw_connection())
            await until(lambda: endpoint.endpoint.open_connections == 10, TIMEOUT_SECONDS)
            async with endpoint.raw_connection() as (excess, _):
                assert await wait_until_closed(excess)
            metrics = SelfMetrics()
            metrics.register(HttpEndpointMetrics(endpoint.endpoint))
            assert b"qmp_agent_http_connections_refused_total 1.0" in metrics.render()
            assert not first.at_eof()
        await until(lambda: endpoint.endpoint.open_connections < 10, TIMEOUT_SECONDS)
        assert await endpoint.get() == 200


async def test_a_client_that_does_not_read_its_responses_is_disconnected(folder: Path) -> None:
    async with RunningEndpoint(folder, limits=ConnectionLimits(read_seconds=0.3)).open() as endpoint:
        with socket.socket() as client:
            client.setblocking(False)  # noqa: FBT003 - the standard library's signature
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (endpoint.host, endpoint.port))
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while True:
                        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        await until(lambda: not endpoint.endpoint.open_connections, TIMEOUT_SECONDS)
        assert await endpoint.get() == 200
