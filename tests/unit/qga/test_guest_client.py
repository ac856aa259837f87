"""The guest agent client: deadlines, synchronization, floods, and whom it talks to."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.monitors.dial import unix_connector
from agent.qga.client import GuestAgentClient, PeerCheck
from agent.qga.errors import (
    GuestAgentCommandError,
    GuestChannelAccessDeniedError,
    GuestChannelError,
    GuestFloodError,
    GuestTimeoutError,
    UnreadableGuestReplyError,
)
from tests.lab.fake_guest_agent import FakeGuestAgent, reply
from tests.lab.scripted_peer import TIMEOUT_SECONDS, scripted_peer

SHORT = 0.05
"""A deadline that the test wants to expire."""


@pytest.fixture
async def guest(folder: Path) -> AsyncIterator[FakeGuestAgent]:
    async with FakeGuestAgent(folder / "vm1.qga") as running:
        yield running


@contextlib.asynccontextmanager
async def connected(path: Path, check: PeerCheck = lambda _pid: "") -> AsyncIterator[GuestAgentClient]:
    client = await GuestAgentClient.open(unix_connector(str(path)), deadline=TIMEOUT_SECONDS, check_peer=check)
    with contextlib.closing(client):
        yield client


async def test_the_first_command_synchronizes_and_the_next_does_not(guest: FakeGuestAgent) -> None:
    async with connected(guest.path) as client:
        info = await client.execute("guest-info", deadline=TIMEOUT_SECONDS)
        assert info["version"].startswith("7.2")
        assert await client.execute("guest-fsfreeze-status", deadline=TIMEOUT_SECONDS) == "thawed"
    names = [request["execute"] for request in guest.requests]
    assert names == ["guest-sync-delimited", "guest-info", "guest-fsfreeze-status"]


async def test_an_error_of_the_guest_agent_is_raised(guest: FakeGuestAgent) -> None:
    async with connected(guest.path) as client:
        with pytest.raises(GuestAgentCommandError, match="CommandNotFound"):
            await client.execute("guest-get-load", deadline=TIMEOUT_SECONDS)
        assert client.is_synchronized


async def test_after_a_timeout_the_late_reply_is_not_taken_for_the_next(guest: FakeGuestAgent) -> None:
    async with connected(guest.path) as client:
        guest.raw["guest-get-fsinfo"] = b""
        await client.execute("guest-info", deadline=TIMEOUT_SECONDS)
        with pytest.raises(GuestTimeoutError, match="guest-get-fsinfo"):
            await client.execute("guest-get-fsinfo", deadline=SHORT)
        guest.send_raw(reply({"return": "late"}))
        assert await client.execute("guest-fsfreeze-status", deadline=TIMEOUT_SECONDS) == "thawed"
    assert guest.count("guest-sync-delimited") == 2


async def test_a_silent_guest_times_out_again_and_again(guest: FakeGuestAgent) -> None:
    guest.silent = True
    async with connected(guest.path) as client:
        for _ in range(3):
            with pytest.raises(GuestTimeoutError):
                await client.execute("guest-info", deadline=SHORT)
        guest.silent = False
        assert await client.execute("guest-fsfreeze-status", deadline=TIMEOUT_SECONDS) == "thawed"


async def test_a_cancelled_command_leaves_the_connection_usable(guest: FakeGuestAgent) -> None:
    async with connected(guest.path) as client:
        guest.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT):
                await client.execute("guest-info", deadline=TIMEOUT_SECONDS)
        guest.silent = False
        assert await client.execute("guest-fsfreeze-status", deadline=TIMEOUT_SECONDS) == "thawed"


async def test_the_deadline_is_for_the_whole_reply(folder: Path) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(SHORT / 20)

    async with scripted_peer(folder, trickle) as path, connected(path) as client:
        with pytest.raises(GuestTimeoutError):
            await client.execute("guest-info", deadline=SHORT)


@pytest.mark.parametrize("piece", [b"x" * 65536, b"\n" * 65536, b'{"return": {}}\n' * 4096])
async def test_a_guest_that_floods_is_disconnected(folder: Path, piece: bytes) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        with contextlib.suppress(ConnectionError):
            while sent < 100 << 20:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)

    async with scripted_peer(folder, flood) as path, connected(path) as client:
        with pytest.raises(GuestFloodError):
            await client.execute("guest-info", deadline=TIMEOUT_SECONDS)
        with pytest.raises(GuestFloodError):
            await client.execute("guest-info", deadline=TIMEOUT_SECONDS)
    assert sent < 8 << 20


async def test_data_right_after_the_synchronization_fails_the_command(folder: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads((await reader.readline()).removeprefix(b"\xff"))
        writer.write(b"\xff" + reply({"return": request["arguments"]["id"]}) + b"more\n")
        await reader.readline()

    async with scripted_peer(folder, talk) as path, connected(path) as client:
        with pytest.raises(UnreadableGuestReplyError, match="unrequested data"):
            await client.execute("guest-info", deadline=TIMEOUT_SECONDS)


async def test_the_end_of_the_channel_ends_the_command(guest: FakeGuestAgent) -> None:
    async with connected(guest.path) as client:
        guest.silent = True
        command = asyncio.ensure_future(client.execute("guest-info", deadline=TIMEOUT_SECONDS))
        await guest.wait_for("guest-sync-delimited")
        guest.drop()
        with pytest.raises(GuestChannelError, match="closed the channel"):
            await command
        with pytest.raises(GuestChannelError):
            await client.execute("guest-info", deadline=TIMEOUT_SECONDS)


async def test_nothing_is_sent_to_a_process_that_the_check_rejects(guest: FakeGuestAgent) -> None:
    pids = []

    def reject(pid: int | None) -> str:
        pids.append(pid)
        return "another process listens there"

    with pytest.raises(GuestChannelAccessDeniedError, match="another process"):
        async with connected(guest.path, reject):
            raise AssertionError
    assert pids == [os.getpid()]
    assert guest.requests == []


async def test_a_missing_socket_is_an_error(folder: Path) -> None:
    with pytest.raises(GuestChannelError, match="No such file"):
        async with connected(folder / "none"):
            raise AssertionError
