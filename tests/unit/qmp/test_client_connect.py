"""Connecting to monitors that are busy, stalled or absent."""

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest

from agent.qmp.errors import MonitorBusyError, NotConnectedError, ProtocolError, StalledError
from tests.lab.fake_qemu import FakeQemu
from tests.lab.qmp_bytes import HELLO, line
from tests.lab.scripted_peer import QUIET_SECONDS, TIMEOUT_SECONDS, connected, scripted_peer


@pytest.fixture
def listener(folder: Path) -> socket.socket:
    """A listening socket that accepts no connection."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(os.fspath(folder / "vm1.qmp"))
    sock.listen(0)
    return sock


async def test_a_monitor_that_accepts_without_a_greeting_is_busy(listener: socket.socket, folder: Path) -> None:
    with listener, pytest.raises(MonitorBusyError, match=r"no greeting within 0.05 s"):
        async with connected(folder / "vm1.qmp", deadline=QUIET_SECONDS):
            pass


async def test_a_monitor_whose_backlog_is_full_is_busy(listener: socket.socket, folder: Path) -> None:
    with listener, contextlib.ExitStack() as others:
        with contextlib.suppress(BlockingIOError):
            while True:
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)  # noqa: FBT003 - the standard library's signature
                other.connect(os.fspath(folder / "vm1.qmp"))
        with pytest.raises(MonitorBusyError, match="backlog is full"):
            async with connected(folder / "vm1.qmp"):
                pass


async def test_a_monitor_is_busy_until_its_other_client_disconnects(fake: FakeQemu) -> None:
    async with connected(fake.path):
        with pytest.raises(MonitorBusyError):
            async with connected(fake.path, deadline=QUIET_SECONDS):
                pass
    async with connected(fake.path) as client:
        assert client.greeting is not None
        assert client.greeting.version == (7, 2, 22)


async def test_a_socket_without_a_listener_is_not_connected(fake: FakeQemu, folder: Path) -> None:
    await fake.stop(leave_socket=True)
    for path, why in ((fake.path, "refused"), (folder / "none", "No such file"), (folder / ("x" * 200), "too long")):
        with pytest.raises(NotConnectedError, match=why) as caught:
            async with connected(path):
                pass
        assert not isinstance(caught.value, MonitorBusyError)


async def test_a_peer_that_disconnects_before_its_greeting_is_not_connected(folder: Path) -> None:
    async def talk(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        pass

    async with scripted_peer(folder, talk) as path:
        with pytest.raises(NotConnectedError):
            async with connected(path):
                pass


async def test_a_peer_that_does_not_speak_qmp_is_a_protocol_error(folder: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read()

    async with scripted_peer(folder, talk) as path:
        with pytest.raises(ProtocolError, match="not JSON"):
            async with connected(path):
                pass


async def test_a_monitor_that_greets_but_does_not_negotiate_is_stalled(folder: Path) -> None:
    negotiated = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO))
        assert await reader.readuntil(b"}}") == b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}'
        negotiated.set()
        await reader.read()

    async with scripted_peer(folder, talk) as path:
        with pytest.raises(StalledError, match="negotiation"):
            async with connected(path, deadline=2.0):
                pass
    assert negotiated.is_set()


async def test_a_timeout_closes_the_connection(folder: Path) -> None:
    disconnected = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        disconnected.set()

    async with scripted_peer(folder, talk) as path:
        with pytest.raises(MonitorBusyError):
            async with connected(path, deadline=QUIET_SECONDS):
                pass
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await disconnected.wait()
