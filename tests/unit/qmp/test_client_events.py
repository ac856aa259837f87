"""The client and events: order, delays, callbacks that fail, and floods."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import uvloop

from agent.monitors.dial import unix_connector
from agent.qmp.client import QmpClient
from agent.qmp.commands import AllowList, Command
from agent.qmp.errors import (
    NotConnectedError,
    QmpError,
    StalledError,
)
from agent.qmp.flood_pause import FLOOD_BYTES, PAUSE_TURNS
from agent.qmp.protocol import Event
from tests.lab.fake_qemu import FakeQemu
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, line
from tests.lab.scripted_peer import QUIET_SECONDS, TIMEOUT_SECONDS, connected, scripted_peer

NAME = Command("query-name")


async def test_fifty_thousand_events_at_once_are_received_in_order(folder: Path) -> None:
    count = 50_000
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO) + line(DONE))
        await reader.readuntil(b"}}")
        writer.write(b"".join(line({"event": "X", "data": {"n": n}}) for n in range(count)))
        await writer.drain()
        sent.set()
        await reader.readuntil(b"}")
        writer.write(line({"return": "still here"}))
        await reader.read()

    numbers: list[int] = []
    async with (
        scripted_peer(folder, talk) as path,
        connected(path, lambda event: numbers.append(event.data["n"])) as client,
    ):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await sent.wait()
        assert await client.execute([STATUS], deadline=TIMEOUT_SECONDS) == ["still here"]
        assert numbers == list(range(count))


async def test_events_between_replies_are_passed_on_at_once(fake: FakeQemu) -> None:
    received: list[str] = []
    fake.hang("query-status")
    async with connected(fake.path, lambda event: received.append(event.name)) as client:
        with pytest.raises(StalledError):
            await client.execute([STATUS], deadline=QUIET_SECONDS)
        fake.emit("STOP")
        fake.release("query-status")
        await client.wait_idle()
        assert received == ["STOP"]


async def test_a_failing_event_callback_ends_its_own_connection_only(fake: FakeQemu) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)

    def fail(_: Event) -> None:
        raise ValueError("a bug")

    async with connected(fake.path, fail) as client:
        fake.emit("STOP")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert isinstance(await client.ended_future, NotConnectedError)


async def test_a_flood_is_received_in_order_while_other_tasks_run(folder: Path) -> None:
    sent_lines = [line({"event": "STOP", "data": {"n": number}}) for number in range(40_000)]

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO) + line(DONE))
        for at in range(0, len(sent_lines), 1000):
            writer.write(b"".join(sent_lines[at : at + 1000]))
            await writer.drain()

    received: list[int] = []
    turns, received_bytes = 0, dict[int, int]()

    def on_event(event: Event) -> None:
        received.append(event.data["n"])
        received_bytes[turns] = received_bytes.get(turns, 0) + len(sent_lines[event.data["n"]])

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    async with (
        asyncio.timeout(4 * TIMEOUT_SECONDS),
        scripted_peer(folder, talk) as path,
        connected(path, on_event) as client,
    ):
        assert "closed the connection" in str(await client.ended_future)
    counting.cancel()
    assert received == list(range(40_000))
    floods = [(turn, later) for turn, later in pairwise(received_bytes) if received_bytes[turn] >= FLOOD_BYTES]
    assert len(floods) > 3
    assert all(later - turn >= PAUSE_TURNS for turn, later in floods)


async def test_a_command_during_a_flood_from_a_closed_peer_loses_no_event(folder: Path) -> None:
    sent_lines = [line({"event": "STOP", "data": {"n": number, "pad": "x" * 200}}) for number in range(1300)]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO))
        await reader.read(500)
        writer.write(line(DONE) + b"".join(sent_lines))
        await writer.drain()
        writer.write(line({"event": "SHUTDOWN"}))

    received, first_event_received = list[str](), asyncio.Event()

    def on_event(event: Event) -> None:
        received.append(event.name)
        first_event_received.set()

    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        scripted_peer(folder, talk) as path,
        connected(path, on_event) as client,
    ):
        await first_event_received.wait()
        for _ in range(PAUSE_TURNS // 2):
            await asyncio.sleep(0)
        with pytest.raises(QmpError):
            await client.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)
    assert (len(received), received[-1]) == (1301, "SHUTDOWN")


async def run_command_at_closed_peer(path: Path) -> list[str]:
    """Let a peer send SHUTDOWN and close, and send it a command before anything is read. Return the names of the received events."""
    received = list[str]()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        opening = asyncio.create_task(
            QmpClient.open(unix_connector(str(path)), AllowList(), lambda event: received.append(event.name))
        )
        peer, _ = await loop.sock_accept(listener)
        with peer:
            await loop.sock_sendall(peer, line(HELLO))
            await loop.sock_recv(peer, 500)
            await loop.sock_sendall(peer, line(DONE))
            client = await opening
            peer.send(line({"event": "SHUTDOWN"}))
    with contextlib.closing(client), pytest.raises(NotConnectedError):
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
    return received


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_command_to_a_peer_that_has_closed_loses_no_event(
    folder: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(run_command_at_closed_peer(folder / "peer")) == ["SHUTDOWN"]


async def test_commands_are_answered_during_a_flood(folder: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO) + line(DONE))
        while not reader.at_eof():
            writer.write(line({"event": "STOP", "data": {"pad": "x" * 1000}}) * 1000)
            await writer.drain()
            if reader._buffer.count(b"query-status"):  # type: ignore[attr-defined]  # inspected without waiting
                writer.write(line({"return": {}}))
                await reader.read(1 << 16)

    async with asyncio.timeout(TIMEOUT_SECONDS), scripted_peer(folder, talk) as path, connected(path) as client:
        for _ in range(3):
            assert await client.execute([Command("query-status")], deadline=TIMEOUT_SECONDS) == [{}]
