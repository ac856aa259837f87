"""The client, once connected: a deadline on every step, and always reading."""

import asyncio
import gc
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent.qmp.client import FLOOD_BYTES, REST_TURNS
from agent.qmp.commands import Command
from agent.qmp.errors import CommandError, CommandRefusedError, NotConnectedError, ProtocolError, QmpError, StalledError
from agent.qmp.protocol import Event
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, line
from tests.lab.scripted_peer import QUIET_SECONDS, TIMEOUT_SECONDS, connected, scripted_peer

NAME = Command("query-name")


# --- Asking ---


async def test_answers_come_in_order_and_errors_are_answers(fake: FakeQemu) -> None:
    fake.replies["query-name"] = FakeError("DeviceNotFound", "gone")
    async with connected(fake.path) as client:
        status, name, again = await client.execute([STATUS, NAME, STATUS], deadline=TIMEOUT_SECONDS)
        assert status == again == fake.transcript.answer("query-status", {})["return"]
        assert isinstance(name, CommandError)
        assert name.error_class == "DeviceNotFound"
        assert [request.get("id") for request in fake.requests] == [None] * 4


async def test_a_refused_question_is_not_sent_and_the_connection_lives_on(fake: FakeQemu) -> None:
    async with connected(fake.path) as client:
        with pytest.raises(CommandRefusedError):
            await client.execute([STATUS, Command("stop")], deadline=TIMEOUT_SECONDS)
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
    assert [request["execute"] for request in fake.requests] == ["qmp_capabilities", "query-status"]


async def test_after_a_late_reply_nothing_is_asked_until_it_has_come(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client:
        with pytest.raises(StalledError, match=r"no reply to query-status within 0.05 s"):
            await client.execute([STATUS, NAME], deadline=QUIET_SECONDS)
        with pytest.raises(StalledError, match="2 replies are still due"):
            await client.execute([NAME], deadline=TIMEOUT_SECONDS)
        settled = asyncio.ensure_future(client.wait_idle())
        assert client.replies_due == 2
        assert not settled.done()
        fake.release("query-status")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await settled
        assert client.replies_due == 0
        assert await client.execute([NAME], deadline=TIMEOUT_SECONDS) == [{"name": "vm1"}]
        assert fake.count("query-name") == 2


async def test_settled_returns_at_once_where_nothing_is_due(fake: FakeQemu) -> None:
    async with connected(fake.path) as client:
        await client.wait_idle()
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
        await client.wait_idle()


async def test_bytes_are_counted_both_ways(fake: FakeQemu) -> None:
    async with connected(fake.path) as client:
        read, written = client.bytes_read, client.bytes_written
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
        assert client.bytes_written == written + len(b'{"execute":"query-status"}')
        assert client.bytes_read > read > len(line(fake.greeting))


# --- Probing ---


async def test_a_probe_is_answered_while_the_main_loop_hangs(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client:
        assert client.can_probe
        with pytest.raises(StalledError):
            await client.execute([STATUS], deadline=QUIET_SECONDS)
        assert await client.probe(deadline=TIMEOUT_SECONDS)
        assert await client.probe(deadline=TIMEOUT_SECONDS)
        assert client.replies_due == 1
        assert fake.count("query-yank") == 2


async def test_an_unanswered_probe_is_waited_for_again_and_not_sent_again(fake: FakeQemu) -> None:
    fake.hang("query-yank")
    async with connected(fake.path) as client:
        assert not await client.probe(deadline=QUIET_SECONDS)
        assert not await client.probe(deadline=QUIET_SECONDS)
        assert fake.count("query-yank") == 1
        fake.release("query-yank")
        assert await client.probe(deadline=TIMEOUT_SECONDS)


async def test_a_probe_that_was_answered_late_says_nothing_of_now(fake: FakeQemu) -> None:
    fake.hang("query-yank")
    async with connected(fake.path) as client:
        assert not await client.probe(deadline=QUIET_SECONDS)
        fake.release("query-yank")
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)  # read in any case after the late answer
        await fake.wait_for("query-status")
        fake.hang("query-yank")
        assert not await client.probe(deadline=QUIET_SECONDS)
        assert fake.count("query-yank") == 2


async def test_a_qemu_without_out_of_band_is_not_probed(fake: FakeQemu) -> None:
    fake.greeting = {
        "QMP": {"version": {"qemu": {"major": 2, "minor": 6, "micro": 0}, "package": ""}, "capabilities": []}
    }
    async with connected(fake.path) as client:
        assert not client.can_probe
        assert not await client.probe(deadline=TIMEOUT_SECONDS)
        assert await client.execute([NAME], deadline=TIMEOUT_SECONDS) == [{"name": "vm1"}]
    assert fake.requests[0] == {"execute": "qmp_capabilities"}
    assert fake.count("query-yank") == 0


# --- The end of a connection ---


async def fails(waiting: Coroutine[Any, Any, Any]) -> QmpError:
    """Return the error that a call ends with."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        with pytest.raises(QmpError) as caught:
            await waiting
    return caught.value


async def test_a_connection_lost_in_the_middle_of_a_round_ends_all_that_waits(fake: FakeQemu) -> None:
    fake.hang("query-name")
    fake.hang("query-yank")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(fails(client.execute([STATUS, NAME], deadline=TIMEOUT_SECONDS)))
        await fake.wait_for("query-name")
        waiting = [
            asking,
            tasks.create_task(fails(client.wait_idle())),
            tasks.create_task(fails(client.probe(deadline=TIMEOUT_SECONDS))),
        ]
        await fake.wait_for("query-yank")
        fake.drop()
        errors = [await task for task in waiting]
        assert {type(error) for error in errors} == {NotConnectedError}
        assert await client.ended is errors[0]
        assert not await client.probe(deadline=TIMEOUT_SECONDS)
        assert await fails(client.execute([STATUS], deadline=TIMEOUT_SECONDS)) is errors[0]


async def test_garbage_ends_the_connection_and_all_that_waits(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(fails(client.execute([STATUS], deadline=TIMEOUT_SECONDS)))
        await fake.wait_for("query-status")
        fake.send_raw(b"\x00\xff\r\n")
        assert isinstance(await asking, ProtocolError)
        assert isinstance(await client.ended, ProtocolError)


async def test_closing_wakes_whoever_waits(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(fails(client.execute([STATUS], deadline=TIMEOUT_SECONDS)))
        await fake.wait_for("query-status")
        client.close()
        assert "closed by us" in str(await asking)
        client.close()


async def test_an_end_that_nobody_waits_for_is_no_complaint_of_asyncios(fake: FakeQemu) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    fake.hang("query-status")
    async with connected(fake.path) as client:
        with pytest.raises(StalledError):
            await client.execute([STATUS], deadline=QUIET_SECONDS)
        assert not await client.probe(deadline=0)
        fake.drop()
        await client.ended
    del client
    gc.collect()
    assert complaints == []


# --- Events ---


async def test_a_burst_of_fifty_thousand_events_is_read_whole_and_in_order(folder: Path) -> None:
    burst = 50_000
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO) + line(DONE))
        await reader.readuntil(b"}}")
        writer.write(b"".join(line({"event": "X", "data": {"n": n}}) for n in range(burst)))
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
        assert numbers == list(range(burst))


async def test_events_between_replies_are_heard_at_once_and_out_of_the_answers(fake: FakeQemu) -> None:
    heard: list[str] = []
    fake.hang("query-status")
    async with connected(fake.path, lambda event: heard.append(event.name)) as client:
        with pytest.raises(StalledError):
            await client.execute([STATUS], deadline=QUIET_SECONDS)
        fake.emit("STOP")
        fake.release("query-status")
        await client.wait_idle()
        assert heard == ["STOP"]


async def test_a_listener_that_fails_ends_its_connection_and_nobody_elses(fake: FakeQemu) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)

    def fail(_: Event) -> None:
        raise ValueError("a bug of ours")

    async with connected(fake.path, fail) as client:
        fake.emit("STOP")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert isinstance(await client.ended, NotConnectedError)


# --- Floods ---


async def test_all_of_a_flood_is_heard_in_order_and_others_get_their_turns(folder: Path) -> None:
    said = [line({"event": "STOP", "data": {"n": number}}) for number in range(40_000)]

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO) + line(DONE))
        for at in range(0, len(said), 1000):
            writer.write(b"".join(said[at : at + 1000]))
            await writer.drain()

    heard: list[int] = []
    turns, heard_bytes = 0, dict[int, int]()

    def hear(event: Event) -> None:
        heard.append(event.data["n"])
        heard_bytes[turns] = heard_bytes.get(turns, 0) + len(said[event.data["n"]])

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    async with (
        asyncio.timeout(4 * TIMEOUT_SECONDS),
        scripted_peer(folder, talk) as path,
        connected(path, hear) as client,
    ):
        assert "closed the connection" in str(await client.ended)
    counting.cancel()
    assert heard == list(range(40_000))
    floods = [(turn, later) for turn, later in pairwise(heard_bytes) if heard_bytes[turn] >= FLOOD_BYTES]
    assert len(floods) > 3
    assert all(later - turn >= REST_TURNS for turn, later in floods)


async def test_what_is_asked_amid_a_flood_of_one_who_has_ended_costs_nothing_of_what_it_said(folder: Path) -> None:
    said = [line({"event": "STOP", "data": {"n": number, "pad": "x" * 200}}) for number in range(1300)]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO))
        await reader.read(500)
        writer.write(line(DONE) + b"".join(said))
        await writer.drain()
        writer.write(line({"event": "SHUTDOWN"}))

    heard, begun = list[str](), asyncio.Event()

    def hear(event: Event) -> None:
        heard.append(event.name)
        begun.set()

    async with asyncio.timeout(TIMEOUT_SECONDS), scripted_peer(folder, talk) as path, connected(path, hear) as client:
        await begun.wait()
        for _ in range(REST_TURNS // 2):
            await asyncio.sleep(0)
        with pytest.raises(QmpError):
            await client.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)
    assert (len(heard), heard[-1]) == (1301, "SHUTDOWN")


async def test_amid_a_flood_questions_are_answered(folder: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line(HELLO) + line(DONE))
        while not reader.at_eof():
            writer.write(line({"event": "STOP", "data": {"pad": "x" * 1000}}) * 1000)
            await writer.drain()
            if reader._buffer.count(b"query-status"):  # type: ignore[attr-defined]  # looked at, not waited for
                writer.write(line({"return": {}}))
                await reader.read(1 << 16)

    async with asyncio.timeout(TIMEOUT_SECONDS), scripted_peer(folder, talk) as path, connected(path) as client:
        for _ in range(3):
            assert await client.execute([Command("query-status")], deadline=TIMEOUT_SECONDS) == [{}]
