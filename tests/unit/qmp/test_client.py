"""The client after the handshake: commands with deadlines, probes and the end of a connection."""

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import orjson
import pytest

from agent.qmp.client import MAX_WRITE_BUFFER_BYTES
from agent.qmp.commands import Command
from agent.qmp.errors import (
    AmbiguousReplyError,
    CommandError,
    CommandNotAllowedError,
    NotConnectedError,
    PeerNotReadingError,
    QmpError,
    StalledError,
    UnreadableReplyError,
)
from agent.qmp.protocol import MAX_COMMANDS_IN_FLIGHT
from tests.lab.fake_qemu import FakeError, FakeQemu
from tests.lab.qmp_bytes import DONE, HELLO, STATUS, line
from tests.lab.scripted_peer import QUIET_SECONDS, TIMEOUT_SECONDS, connected, scripted_peer

NAME = Command("query-name")


# --- Commands ---


async def test_results_arrive_in_order_and_errors_are_results(fake: FakeQemu) -> None:
    fake.replies["query-name"] = FakeError("DeviceNotFound", "gone")
    async with connected(fake.path) as client:
        status, name, again = await client.execute([STATUS, NAME, STATUS], deadline=TIMEOUT_SECONDS)
        assert status == again == fake.transcript.answer("query-status", {})["return"]
        assert isinstance(name, CommandError)
        assert name.error_class == "DeviceNotFound"
        assert [request.get("id") for request in fake.requests] == [None] * 4


async def test_a_refused_command_is_not_sent_and_the_connection_stays_up(fake: FakeQemu) -> None:
    async with connected(fake.path) as client:
        with pytest.raises(CommandNotAllowedError):
            await client.execute([STATUS, Command("stop")], deadline=TIMEOUT_SECONDS)
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
    assert [request["execute"] for request in fake.requests] == ["qmp_capabilities", "query-status"]


async def test_no_command_is_sent_until_an_overdue_reply_arrives(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client:
        with pytest.raises(StalledError, match=r"no reply to query-status within 0.05 s"):
            await client.execute([STATUS, NAME], deadline=QUIET_SECONDS)
        with pytest.raises(StalledError, match="2 replies are still due"):
            await client.execute([NAME], deadline=TIMEOUT_SECONDS)
        idle = asyncio.ensure_future(client.wait_idle())
        assert client.pending_command_count == 2
        assert not idle.done()
        fake.release("query-status")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await idle
        assert client.pending_command_count == 0
        assert await client.execute([NAME], deadline=TIMEOUT_SECONDS) == [{"name": "vm1"}]
        assert fake.count("query-name") == 2


async def test_wait_idle_returns_at_once_if_no_reply_is_due(fake: FakeQemu) -> None:
    async with connected(fake.path) as client:
        await client.wait_idle()
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
        await client.wait_idle()


async def test_bytes_are_counted_in_both_directions(fake: FakeQemu) -> None:
    async with connected(fake.path) as client:
        read, written = client.bytes_read, client.bytes_written
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)
        assert client.bytes_written == written + len(b'{"execute":"query-status"}')
        assert client.bytes_read > read > len(line(fake.greeting))


# --- Probes ---


async def test_a_probe_succeeds_while_the_main_loop_hangs(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client:
        assert client.can_probe
        with pytest.raises(StalledError):
            await client.execute([STATUS], deadline=QUIET_SECONDS)
        assert await client.probe_out_of_band(deadline=TIMEOUT_SECONDS)
        assert await client.probe_out_of_band(deadline=TIMEOUT_SECONDS)
        assert client.pending_command_count == 1
        assert fake.count("query-yank") == 2


async def test_a_pending_probe_is_awaited_again_and_not_sent_again(fake: FakeQemu) -> None:
    fake.hang("query-yank")
    async with connected(fake.path) as client:
        assert not await client.probe_out_of_band(deadline=QUIET_SECONDS)
        assert not await client.probe_out_of_band(deadline=QUIET_SECONDS)
        assert fake.count("query-yank") == 1
        fake.release("query-yank")
        assert await client.probe_out_of_band(deadline=TIMEOUT_SECONDS)


async def test_a_late_probe_reply_does_not_count_for_the_next_probe(fake: FakeQemu) -> None:
    fake.hang("query-yank")
    async with connected(fake.path) as client:
        assert not await client.probe_out_of_band(deadline=QUIET_SECONDS)
        fake.release("query-yank")
        await client.execute([STATUS], deadline=TIMEOUT_SECONDS)  # its reply arrives after the late probe reply
        await fake.wait_for("query-status")
        fake.hang("query-yank")
        assert not await client.probe_out_of_band(deadline=QUIET_SECONDS)
        assert fake.count("query-yank") == 2


async def test_a_qemu_without_out_of_band_execution_is_not_probed(fake: FakeQemu) -> None:
    fake.greeting = {
        "QMP": {"version": {"qemu": {"major": 2, "minor": 6, "micro": 0}, "package": ""}, "capabilities": []}
    }
    async with connected(fake.path) as client:
        assert not client.can_probe
        assert not await client.probe_out_of_band(deadline=TIMEOUT_SECONDS)
        assert await client.execute([NAME], deadline=TIMEOUT_SECONDS) == [{"name": "vm1"}]
    assert fake.requests[0] == {"execute": "qmp_capabilities"}
    assert fake.count("query-yank") == 0


# --- End of a connection ---


async def error_of(waiting: Coroutine[Any, Any, Any]) -> QmpError:
    """Return the error that a call raises."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        with pytest.raises(QmpError) as caught:
            await waiting
    return caught.value


async def test_a_lost_connection_fails_every_waiter(fake: FakeQemu) -> None:
    fake.hang("query-name")
    fake.hang("query-yank")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        executing = tasks.create_task(error_of(client.execute([STATUS, NAME], deadline=TIMEOUT_SECONDS)))
        await fake.wait_for("query-name")
        waiting = [
            executing,
            tasks.create_task(error_of(client.wait_idle())),
            tasks.create_task(error_of(client.probe_out_of_band(deadline=TIMEOUT_SECONDS))),
        ]
        await fake.wait_for("query-yank")
        fake.drop()
        errors = [await task for task in waiting]
        assert {type(error) for error in errors} == {NotConnectedError}
        assert await client.ended_future is errors[0]
        assert not await client.probe_out_of_band(deadline=TIMEOUT_SECONDS)
        assert await error_of(client.execute([STATUS], deadline=TIMEOUT_SECONDS)) is errors[0]


async def test_an_unreadable_reply_fails_its_command_and_the_connection_stays_up(fake: FakeQemu) -> None:
    events: list[str] = []
    fake.hang("query-status")
    async with connected(fake.path, lambda event: events.append(event.name)) as client, asyncio.TaskGroup() as tasks:
        executing = tasks.create_task(client.execute([STATUS], deadline=TIMEOUT_SECONDS))
        await fake.wait_for("query-status")
        fake.send_raw(b'{"return": {"status": "running", "running": true,}}\r\n')
        (result,) = await executing
        assert isinstance(result, UnreadableReplyError)
        assert (
            client.skipped_invalid_message_counts.unreadable,
            client.skipped_invalid_message_counts.oversized,
            client.pending_command_count,
        ) == (1, 0, 0)
        fake.emit("STOP")
        assert not client.ended_future.done()
        assert await client.probe_out_of_band(deadline=TIMEOUT_SECONDS)
        assert events == ["STOP"]


async def test_noise_fails_the_batch_and_the_next_batch_gets_its_own_replies(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        executing = tasks.create_task(client.execute([STATUS, NAME], deadline=TIMEOUT_SECONDS))
        await fake.wait_for("query-status")
        fake.send_raw(b"\x00\xff\r\n")
        assert [type(result) for result in await executing] == [AmbiguousReplyError] * 2
        fake.release("query-status")
        assert await client.execute([NAME], deadline=TIMEOUT_SECONDS) == [{"name": "vm1"}]
        assert client.skipped_invalid_message_counts == (1, 0, 2)
        assert client.skipped_invalid_message_counts is client.skipped_invalid_message_counts, (
            "cheap to compare at each poll"
        )


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(line(HELLO))
    await reader.readuntil(b"}}")
    writer.write(line(DONE))


async def read_soon(reader: asyncio.StreamReader, seconds: float | None) -> bytes:
    """Return what has arrived within this time; nothing at the end of the stream too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await reader.read(1 << 16)
    return b""


@pytest.mark.parametrize("count", [1, MAX_COMMANDS_IN_FLIGHT, 3 * MAX_COMMANDS_IN_FLIGHT])
async def test_qemu_never_holds_more_commands_than_it_accepts(folder: Path, count: int) -> None:
    """The peer answers one command at a time, the first batch with noise, and counts the commands that wait."""
    most = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        await greet(reader, writer)
        waiting, noisy = b"", True
        while True:
            waiting += await read_soon(reader, QUIET_SECONDS if waiting else None)
            most = max(most, waiting.count(b'"execute"'))
            if not waiting:
                return
            if noisy:
                noisy = False
                writer.write(b"5\r\n")
                continue
            request, brace, waiting = waiting.partition(b"}")
            number = orjson.loads(request + brace).get("id")
            writer.write(line({"return": {}} | ({"id": number} if number is not None else {})))

    async with scripted_peer(folder, talk) as path, connected(path) as client:
        first = await client.execute([STATUS] * count, deadline=TIMEOUT_SECONDS)
        assert any(isinstance(result, UnreadableReplyError) for result in first)
        assert await client.execute([STATUS] * count, deadline=TIMEOUT_SECONDS) == [{}] * count
    assert 0 < most <= MAX_COMMANDS_IN_FLIGHT


async def test_a_stall_before_the_markers_reply_ends_when_it_arrives(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        executing = tasks.create_task(client.execute([STATUS, NAME], deadline=TIMEOUT_SECONDS))
        await fake.wait_for("query-status")
        fake.send_raw(b"\x00\xff\r\n")
        await executing
        for _ in range(2):
            with pytest.raises(StalledError, match=r"no reply to query-status within 0.05 s"):
                await client.execute([NAME], deadline=QUIET_SECONDS)
        idle = asyncio.ensure_future(client.wait_idle())
        fake.release("query-status")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await idle
        assert await client.execute([NAME], deadline=TIMEOUT_SECONDS) == [{"name": "vm1"}]


async def test_a_peer_that_replies_without_reading_is_disconnected(folder: Path) -> None:
    sent = asyncio.Event()
    error: BaseException | None = None

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as a transport that only writes
        while await sent.wait() and error is None:
            sent.clear()
            writer.write(line({"return": []}))

    long = Command("qom-list", {"path": "/" + "x" * 8192})
    async with scripted_peer(folder, talk) as path, connected(path) as client:
        while error is None:
            executing = asyncio.ensure_future(client.execute([long], deadline=TIMEOUT_SECONDS))
            await asyncio.sleep(0)
            sent.set()
            await asyncio.wait({executing})
            error = executing.exception()
            assert client.bytes_written < 100 * MAX_WRITE_BUFFER_BYTES
        assert isinstance(error, PeerNotReadingError)
        sent.set()


async def test_a_stall_names_the_command_that_hangs(fake: FakeQemu) -> None:
    fake.hang("query-name")
    async with connected(fake.path) as client:
        with pytest.raises(StalledError, match=r"no reply to query-name within 0.05 s"):
            await client.execute([STATUS, NAME, STATUS], deadline=QUIET_SECONDS)


async def test_close_fails_every_waiter(fake: FakeQemu) -> None:
    fake.hang("query-status")
    async with connected(fake.path) as client, asyncio.TaskGroup() as tasks:
        executing = tasks.create_task(error_of(client.execute([STATUS], deadline=TIMEOUT_SECONDS)))
        await fake.wait_for("query-status")
        client.close()
        assert "closed by the agent" in str(await executing)
        client.close()


async def test_an_end_without_a_waiter_is_not_logged_by_asyncio(fake: FakeQemu) -> None:
    logged: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    fake.hang("query-status")
    async with connected(fake.path) as client:
        with pytest.raises(StalledError):
            await client.execute([STATUS], deadline=QUIET_SECONDS)
        assert not await client.probe_out_of_band(deadline=0)
        fake.drop()
        await client.ended_future
    del client
    gc.collect()
    assert logged == []
