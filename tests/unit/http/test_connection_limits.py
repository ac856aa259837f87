"""What one visitor may take of the endpoint: time, connections, room for headers and for answers that are not read."""

import asyncio
import contextlib
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from agent.app.self_metrics import SelfMetrics
from agent.cli.demo.guest import until
from agent.http import connection_limits
from tests.lab.endpoint import RunningEndpoint
from tests.lab.scripted_peer import TIMEOUT_SECONDS


async def closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the other end has hung up."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await reader.read()
    return True


async def test_one_who_sends_its_header_byte_by_byte_is_hung_up_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "HEADER_SECONDS", 0.2)
    async with RunningEndpoint(folder).open() as door, door.raw() as (silent, _), door.raw() as (reader, writer):

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        begin = time.monotonic()
        assert await closed(silent)
        assert await closed(reader)
        assert time.monotonic() - begin < 2
        dripping.cancel()
        assert await door.get() == 200


async def test_one_who_asks_again_and_again_on_a_connection_is_served_and_hung_up_on_when_idle(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(connection_limits, "IDLE_SECONDS", 0.3)
    async with RunningEndpoint(folder).open() as door, door.raw() as (reader, writer):
        for _ in range(5):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(TIMEOUT_SECONDS):
                assert b"200" in await reader.readuntil(b"\r\n")
                await reader.readuntil(b"ok\n")
            await asyncio.sleep(0.1)  # longer than a header may take, in all
        assert await closed(reader)


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
async def test_a_header_that_is_too_large_is_refused(folder: Path, header: bytes) -> None:
    async with RunningEndpoint(folder).open() as door, door.raw() as (reader, writer):
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n")
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                line = await reader.readline()
                assert line == b"" or line.split()[1] in (b"400", b"404", b"431")
        assert await door.get() == 200


async def test_there_is_room_for_so_many_connections_and_a_slot_is_free_again_when_one_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "MAX_CONNECTIONS", 10)
    async with RunningEndpoint(folder).open() as door:
        async with AsyncExitStack() as most, door.raw() as (first, _):
            for _ in range(9):
                await most.enter_async_context(door.raw())
            await until(lambda: len(door.guards) == 10, TIMEOUT_SECONDS)
            async with door.raw() as (over, _):
                assert await closed(over)
            metrics = SelfMetrics()
            metrics.read_endpoint(door.endpoint.refused_connections)
            assert b"qmp_agent_http_connections_refused_total 1.0" in metrics.render()
            assert not first.at_eof()
        await until(lambda: len(door.guards) < 10, TIMEOUT_SECONDS)
        assert await door.get() == 200


async def test_one_who_does_not_read_its_answers_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "READ_SECONDS", 0.3)
    async with RunningEndpoint(folder).open() as door:
        with socket.socket() as deaf:
            deaf.setblocking(False)  # noqa: FBT003 - the standard library's signature
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, (door.host, door.port))
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while True:
                        await loop.sock_sendall(deaf, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        await until(lambda: not door.guards, TIMEOUT_SECONDS)
        assert await door.get() == 200
