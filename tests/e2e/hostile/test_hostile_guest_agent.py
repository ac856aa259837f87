"""Hostile guest agents: whatever a guest sends, or does not send, its VM and the others are polled as before, and memory is bounded."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.lab.fake_guest_agent import FakeGuestAgent, reply
from tests.lab.fake_qemu import FakeQemu
from tests.lab.guest_channel import set_channel
from tests.lab.hostile_host import HostileHost, hostile_host, resident_memory

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID: Final = "eeeeeeee-1111-4111-8111-111111111111"
POLLS: Final = 20
"""Polls of the hostile guest's VM during each test."""
MAX_GROWTH_BYTES: Final = 40 << 20

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostileHost]:
    folder = Path(tmp_path_factory.mktemp("w"))
    intervals = dict.fromkeys(
        ("filesystems", "load", "cpu", "disks", "network", "users", "os", "clock", "freeze"), "200ms"
    )
    channels = [{"socket": f"{folder}/{{monitor}}.qga"}]
    guest_agent = {
        "enabled": True,
        "channels": channels,
        "timeout": "500ms",
        "max_retry_delay": "1s",
        "intervals": intervals,
    }
    async with hostile_host(folder, response_timeout="20s", guest_agent=guest_agent) as running:
        yield running


@contextlib.asynccontextmanager
async def hostile_vm(host: HostileHost) -> AsyncIterator[FakeQemu]:
    """Run a VM whose guest has opened the channel, until it was polled as often as a harmless one."""
    fake = FakeQemu(host.monitor)
    fake.replies["query-uuid"] = {"UUID": UUID}
    set_channel(fake, connected=True)
    memory = resident_memory(host.agent)
    async with host.assert_undisturbed(), fake:
        yield fake
        await fake.wait_for("query-blockstats", fake.count("query-blockstats") + POLLS)
        assert fake.clients == 1
        assert resident_memory(host.agent) - memory < MAX_GROWTH_BYTES
        await host.assert_no_injection("<script>", "forged")


@contextlib.asynccontextmanager
async def guest_that(host: HostileHost, talk: Talk) -> AsyncIterator[None]:
    """Serve each client of the hostile guest's channel with `talk`, one after the other."""
    running: dict[asyncio.StreamWriter, asyncio.Future[None]] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running[writer] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(ConnectionError, RuntimeError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        running.pop(writer).set_result(None)

    path = host.monitor.with_suffix(".qga")
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        ended = list(running.values())
        for writer in list(running):
            writer.transport.abort()
        await asyncio.gather(*ended)
        path.unlink()


async def never_answers(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass


async def answers_a_byte_at_a_time(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    for number in b"\xff" + reply({"return": {}}) * 100:
        writer.write(bytes((number,)))
        await writer.drain()  # raises once the agent has disconnected
        await asyncio.sleep(0.1)


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    for _ in range(1600):  # 100 MB
        writer.write(b'{"return": "' + b"x" * 65536)
        await writer.drain()


async def floods_without_being_asked(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"\xff" * 65536)
        await writer.drain()


async def disconnects_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def answers_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request a second later, when the agent has given up."""
    while line := await reader.readline():
        request = json.loads(line.removeprefix(b"\xff"))
        await asyncio.sleep(1)
        number = request.get("arguments", {}).get("id")
        writer.write(b"\xff" + reply({"return": number}) if number is not None else reply({"return": [1] * 100}))


@pytest.mark.parametrize(
    "talk",
    [
        never_answers,
        answers_a_byte_at_a_time,
        floods,
        floods_without_being_asked,
        disconnects_at_once,
        answers_late,
    ],
    ids=lambda talk: talk.__name__,
)
async def test_a_guest_agent_costs_its_vm_and_the_others_no_poll(host: HostileHost, talk: Talk) -> None:
    mark = host.agent.mark()
    async with guest_that(host, talk), hostile_vm(host):
        await host.agent.wait_for_record("sample.guest_agent_session", vm=UUID, since=mark, state="unresponsive")


HOSTILE_VALUES: Final[tuple[Any, ...]] = (
    [
        {
            "name": "<script>\n\x1b[31m" * 100,
            "mountpoint": 'x"} 1\nforged 1',
            "type": "\u202e",
            "total-bytes": 9,
            "used-bytes": 3,
        }
    ],
    [
        {"name": f"d{number}", "mountpoint": f"/{number}", "type": "x", "total-bytes": 9, "used-bytes": 1}
        for number in range(2000)
    ],
    [{"total-bytes": 2**200, "used-bytes": -1, "name": [], "mountpoint": {}}],
    {"pretty-name": "<script>" * 1000, "kernel-release": "\n" * 1000, "host-name": "forged\n"},
    [
        {
            "name": "lo\n",
            "hardware-address": "\x1b",
            "statistics": {"rx-bytes": -(2**63)},
            "ip-addresses": [{"ip-address": "::1%\n"}],
        }
    ],
    10**400,
    "frozen\nforged",
    [[[[[[]]]]]],
)


async def test_lies_of_a_guest_agent_have_no_effect_beyond_its_vm(host: HostileHost) -> None:
    async with FakeGuestAgent(host.monitor.with_suffix(".qga")) as guest, hostile_vm(host) as fake:
        for value in HOSTILE_VALUES:
            guest.replies |= {name: {"return": value} for name in guest.replies if name != "guest-info"}
            mark = host.agent.mark()
            set_channel(fake, connected=False)
            await host.agent.wait_for_record("sample.guest_agent_session", vm=UUID, since=mark, state="absent")
            seen = guest.count("guest-get-users")
            set_channel(fake, connected=True)
            await guest.wait_for("guest-get-users", seen + 1)
            await host.assert_no_injection("<script>", "forged")
        series = (await host.agent.metrics()).names_of(UUID)
        assert len(series) < 1000


async def test_a_guest_that_reboots_again_and_again_is_queried_again(host: HostileHost) -> None:
    async with FakeGuestAgent(host.monitor.with_suffix(".qga")) as guest, hostile_vm(host) as fake:
        for _ in range(5):
            mark = host.agent.mark()
            set_channel(fake, connected=False)
            await host.agent.wait_for_record("sample.guest_agent_session", vm=UUID, since=mark, state="absent")
            set_channel(fake, connected=True)
            await host.agent.wait_for_record("sample.guest_agent_session", vm=UUID, since=mark, state="up")
        assert guest.clients >= 5
