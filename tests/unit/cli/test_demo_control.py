"""The demo's QMP client matches each reply to its command, and ignores other messages of QEMU."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent.cli.demo.guest_qmp_client import GuestError, GuestQmpClient
from tests.lab.waiting import until

GREETING = {"QMP": {"version": {"qemu": {"major": 9, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
EVENT = {"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}
TIMEOUT_SECONDS = 60.0


class FakeMonitor:
    """A scripted QMP monitor at one end of a socket pair.

    Attributes:
        client: the socket for the client.
        answer: returns the messages that the monitor sends for a request.
    """

    def __init__(self) -> None:
        self.client, self._server = socket.socketpair()
        self.answer: Callable[[dict[str, Any]], list[Any]] = lambda request: [{"return": {}, "id": request.get("id")}]

    async def serve(self, *opening: Any) -> None:
        """Send the opening messages. Then answer requests until the client closes the connection."""
        self._server.setblocking(False)  # noqa: FBT003 - the standard library's signature
        reader, writer = await asyncio.open_unix_connection(sock=self._server)
        writer.writelines(json.dumps(message).encode() + b"\r\n" for message in opening)
        text = ""
        while data := await reader.read(4096):
            text += data.decode()
            while text:
                request, end = json.JSONDecoder().raw_decode(text)
                text = text[end:].lstrip()
                writer.writelines(json.dumps(message).encode() + b"\r\n" for message in self.answer(request))
        writer.close()


@pytest.fixture
async def monitor() -> AsyncIterator[FakeMonitor]:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        yield FakeMonitor()


async def opened(monitor: FakeMonitor, *opening: Any) -> tuple[GuestQmpClient, asyncio.Task[None]]:
    serving = asyncio.create_task(monitor.serve(*opening))
    return await GuestQmpClient.from_connected_socket(monitor.client), serving


async def test_an_event_before_the_greeting_is_kept(monitor: FakeMonitor) -> None:
    client, serving = await opened(monitor, EVENT, GREETING)
    assert (await client.wait_for_event("RESUME"))["event"] == "RESUME"
    assert await client.command("query-status") == {}
    await client.close()
    await serving


OWN = "the command's own id"


@pytest.mark.parametrize("stray", [GREETING, {}, {"id": "other", "return": 1}, {"return": 2}, {"id": OWN}, [], 5])
async def test_a_message_that_is_no_reply_to_the_command_is_ignored(monitor: FakeMonitor, stray: Any) -> None:
    client, serving = await opened(monitor, GREETING)

    def answer(request: dict[str, Any]) -> list[Any]:
        own = {"id": request["id"]}
        return [own if stray == {"id": OWN} else stray, EVENT, {"return": {"running": True}} | own]

    monitor.answer = answer
    assert await client.command("query-status") == {"running": True}
    await client.close()
    await serving


async def test_a_cancelled_command_leaves_no_reply_to_the_next(monitor: FakeMonitor) -> None:
    client, serving = await opened(monitor, GREETING)
    held: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> list[Any]:
        held.append({"return": request["execute"], "id": request.get("id")})
        return [] if len(held) == 1 else held

    monitor.answer = answer
    first = asyncio.create_task(client.command("query-name"))
    await until(lambda: held, TIMEOUT_SECONDS)
    first.cancel()
    assert await client.command("query-uuid") == "query-uuid"
    await client.close()
    await serving


async def test_an_error_and_the_end_of_the_connection_are_reported(monitor: FakeMonitor) -> None:
    client, serving = await opened(monitor, GREETING)
    monitor.answer = lambda request: [{"error": {"class": "GenericError", "desc": "no"}, "id": request.get("id")}]
    with pytest.raises(GuestError, match="query-name: GenericError: no"):
        await client.command("query-name")
    await client.close()
    await serving
    with pytest.raises(GuestError, match="query-name: QEMU closed its monitor"):
        await client.command("query-name")
    with pytest.raises(GuestError, match="before the event STOP"):
        await client.wait_for_event("STOP")


async def test_an_unreadable_reply_fails_its_command(monitor: FakeMonitor) -> None:
    client, serving = await opened(monitor, GREETING)
    monitor.answer = lambda _: [float("nan")]
    with pytest.raises(GuestError, match="query-name: not JSON"):
        await client.command("query-name")
    await client.close()
    await serving


async def test_a_hangup_instead_of_the_greeting_is_reported(monitor: FakeMonitor) -> None:
    monitor._server.close()
    with pytest.raises(GuestError, match="without a greeting"):
        await GuestQmpClient.from_connected_socket(monitor.client)
