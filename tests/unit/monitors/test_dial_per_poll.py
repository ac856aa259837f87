"""Polls over a monitor that the agent shares with another client: the agent connects for each poll and disconnects."""

import asyncio
import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from agent.collectors import PollIntervals
from agent.monitors import DialPerPollDiscoverer, Monitor, MonitorPriority
from agent.monitors.dial import tcp_connector, unix_connector
from agent.monitors.dial_per_poll import dial_per_poll_opener
from agent.qmp.commands import AllowList, Command, OptInQemuChange
from agent.qmp.errors import CommandNotAllowedError, MonitorBusyError, NotConnectedError, PreemptedError
from agent.session.scheduler import Schedule
from agent.session.shared_types import MonitorState
from agent.session.supervisor import NO_EVENTS
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.machine import free_port
from tests.lab.recording_observer import RecordingObserver, monitor_at, quick_context, session_context, supervised
from tests.lab.scripted_peer import TIMEOUT_SECONDS, connected

STEP_SECONDS = 1.0
"""Timeout of a step in tests whose QEMU does not reply. A busy machine exceeds it now and then."""
STATUS = [Command("query-status")]


def monitor_dialed_per_poll(path: Path, timeout: float = TIMEOUT_SECONDS) -> Monitor:
    monitors = DialPerPollDiscoverer(str(path), timeout).scan().values()
    return next(iter(monitors))


async def test_a_vm_is_polled_and_its_monitor_is_free_between_two_polls(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path))
        await observer.wait_for_polls(2)
        async with connected(fake.path) as other:
            await other.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)
        await observer.wait_for_polls(2)
    assert observer.types("vm") == ["vm.attached", "vm.detached"]
    assert observer.records("vm.attached")[0].data["events_available"] is False
    up = [status for status in observer.calls_of("on_status") if status.state is MonitorState.UP]
    assert {status.reason for status in up} == {NO_EVENTS}
    assert fake.clients > 4


async def test_without_events_run_state_jobs_and_migration_are_polled_each_time(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path))
        await observer.wait_for_polls(3, "runstate")
        await observer.wait_for_polls(2, "jobs")
        await observer.wait_for_polls(2, "migration")


async def test_polls_are_jittered_and_collectors_of_one_poll_stay_together(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: dict[str, float] = {}
    schedule_by = Schedule.schedule_by

    def record_schedule(self: Schedule, name: str, at: float) -> None:
        planned[name] = at - time.monotonic()
        schedule_by(self, name, at)

    monkeypatch.setattr(Schedule, "schedule_by", record_schedule)
    observer = RecordingObserver()
    context = session_context(
        intervals=PollIntervals(poll=600, migrations_and_jobs=600), random=lambda: 1.0
    )  # the longest jitter
    async with supervised(observer, context=context) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path))
        await observer.wait_for_polls(1, "migration")
    for name in ("block", "runstate", "jobs", "migration"):
        assert planned[name] == pytest.approx(660), name


async def test_a_poll_is_one_connection_and_sends_no_out_of_band_command(fake: FakeQemu) -> None:
    opener = dial_per_poll_opener(unix_connector(str(fake.path)), TIMEOUT_SECONDS)
    connection = await opener(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    clients_before = fake.clients
    answers = await connection.execute([Command("query-status"), Command("query-name")], deadline=TIMEOUT_SECONDS)
    assert [isinstance(answer, dict) and answer.keys() & {"status", "name"} for answer in answers] == [
        {"status"},
        {"name"},
    ]
    assert fake.clients == clients_before + 1
    assert not await connection.probe_out_of_band(deadline=TIMEOUT_SECONDS)
    assert fake.count("query-yank") == 0
    connection.close()


async def test_the_agent_disconnects_within_the_timeout_while_qemu_hangs(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-blockstats")
    async with supervised(observer, context=session_context()) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path, STEP_SECONDS))
        await fake.wait_for("query-blockstats")
        start = time.monotonic()
        async with connected(fake.path):
            assert time.monotonic() - start <= STEP_SECONDS
        await observer.wait_until(lambda: MonitorState.STALLED in observer.states())
        fake.release("query-blockstats")
        await observer.wait_for_polls()
        await observer.wait_until(lambda: observer.states()[-1] is MonitorState.UP)
    assert "vm.gone" not in observer.types("vm")


async def test_a_monitor_held_by_another_client_is_busy_and_its_vm_is_not_gone(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, context=session_context()) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path, STEP_SECONDS))
        await observer.wait_for_polls()
        async with connected(fake.path):
            await observer.wait_until(lambda: MonitorState.BUSY in observer.states())
        await observer.wait_until(lambda: observer.states()[-1] is MonitorState.UP)
        await observer.wait_for_polls()
        last = observer.calls_of("on_status")[-1]
        assert (last.state, last.reason) == (MonitorState.UP, NO_EVENTS)
    first, *changes, last_change = observer.types("vm")
    assert (first, last_change) == ("vm.attached", "vm.detached")
    assert changes == ["vm.busy", "vm.recovered"] * max(1, len(changes) // 2)


async def test_a_monitor_with_a_full_backlog_is_busy(fake: FakeQemu) -> None:
    opener = dial_per_poll_opener(unix_connector(str(fake.path)), 0.05)
    fake.busy()
    waiting = [await asyncio.open_unix_connection(fake.path) for _ in range(2)]
    with pytest.raises(MonitorBusyError):
        await opener(AllowList(), lambda _: None, deadline=0.2)
    for _, writer in waiting:
        writer.close()


async def test_a_stopped_and_continued_qemu_is_the_same_vm(start_guest: StartGuest) -> None:
    observer = RecordingObserver()
    guest = await start_guest()
    async with supervised(observer, context=quick_context(response_seconds=0.3)) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(guest.monitor, STEP_SECONDS))
        await observer.wait_for_polls()
        guest.send_signal(signal.SIGSTOP)
        await observer.wait_until(lambda: observer.states()[-1] in (MonitorState.BUSY, MonitorState.STALLED))
        guest.send_signal(signal.SIGCONT)
        await observer.wait_until(lambda: observer.states()[-1] is MonitorState.UP)
        await observer.wait_for_polls()
        await guest.kill()
        await observer.wait_until(lambda: observer.records("vm.gone"))
    assert observer.types("vm")[0] == "vm.attached"
    assert observer.types("vm").count("vm.attached") == observer.types("vm").count("vm.gone") == 1


async def test_a_connection_ends_when_another_qemu_takes_the_address(start_guest: StartGuest) -> None:
    observer = RecordingObserver()
    guest = await start_guest("a")
    opener = dial_per_poll_opener(unix_connector(str(guest.monitor)), TIMEOUT_SECONDS)
    connection = await opener(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    await guest.stop()
    second = await start_guest("b", extra=["-qmp", f"unix:{guest.monitor},server=on,wait=off"])
    with pytest.raises(NotConnectedError, match="another process"):
        await connection.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)
    assert connection.ended_future.done()
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(guest.monitor))
        await observer.wait_for_polls()
    assert observer.records("vm.attached")[0].vm.uuid == second.uuid


async def test_a_tcp_connection_ends_when_another_vm_takes_the_address(start_guest: StartGuest) -> None:
    """The process at the other end of a TCP connection is unknown, so the VM's UUID identifies it."""
    port = free_port()
    extra = ["-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off"]
    guest = await start_guest("a", extra=extra)
    connection = await dial_per_poll_opener(tcp_connector("127.0.0.1", port), TIMEOUT_SECONDS)(
        AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS
    )
    status: list[Any] = await connection.execute(STATUS, deadline=TIMEOUT_SECONDS)
    assert status[0]["status"] == "running"
    await guest.stop()
    restarted = await start_guest("a", identity=guest.uuid, extra=extra)
    assert await connection.execute(STATUS, deadline=TIMEOUT_SECONDS), "the VM has restarted"
    await restarted.stop()
    await start_guest("b", extra=extra)
    with pytest.raises(NotConnectedError, match="another VM"):
        await connection.execute(STATUS, deadline=TIMEOUT_SECONDS)
    assert connection.ended_future.done()


async def test_a_running_poll_is_preempted(fake: FakeQemu) -> None:
    opener = dial_per_poll_opener(unix_connector(str(fake.path)), TIMEOUT_SECONDS)
    connection = await opener(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    fake.hang("query-status")
    execution = asyncio.create_task(connection.execute([Command("query-status")], deadline=TIMEOUT_SECONDS))
    await fake.wait_for("query-status")
    connection.close_for_preferred_monitor()
    with pytest.raises(PreemptedError):
        await execution
    async with connected(fake.path):
        pass
    with pytest.raises(PreemptedError):
        await connection.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)


def count_unreadable_messages(observer: RecordingObserver) -> int:
    """Return the number of messages that were reported as unreadable."""
    calls = observer.calls_of("on_messages_skipped")
    return sum(messages for _, reason, messages in calls if reason == "unreadable")


@pytest.mark.parametrize("reply", [b'{"return": {"mbps": nan}}\r\n', b'{"return": {"status": "active"}\r\n'])
async def test_an_unreadable_reply_fails_only_its_own_collector(fake: FakeQemu, reply: bytes) -> None:
    observer = RecordingObserver()
    fake.replies["query-migrate"] = reply
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path))
        await observer.wait_for_polls(5)
        await observer.wait_for_polls(2, "runstate")
        await observer.wait_until(lambda: observer.calls_of("on_status")[-1].degraded)
        degraded = observer.calls_of("on_status")[-1].degraded
        assert fake.count("query-migrate") < fake.count("query-blockstats")
        await observer.wait_until(lambda: count_unreadable_messages(observer) == fake.count("query-migrate"))
    assert [name for name, _ in degraded] == ["migration"]
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_a_refused_command_does_not_end_the_connection(fake: FakeQemu) -> None:
    opener = dial_per_poll_opener(unix_connector(str(fake.path)), TIMEOUT_SECONDS)
    connection = await opener(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    with pytest.raises(CommandNotAllowedError):
        await connection.execute([Command("quit")], deadline=TIMEOUT_SECONDS)
    assert not connection.ended_future.done()
    connection.close()


async def test_migration_events_are_not_enabled_without_events(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, context=session_context(*OptInQemuChange)) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path))
        await observer.wait_for_polls(2)
    assert fake.count("migrate-set-capabilities") == 0


async def test_a_dedicated_monitor_is_preferred_to_a_shared_one(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("own.qmp")) as own, supervised(observer) as fleet:
        fleet.on_monitor_added(monitor_dialed_per_poll(fake.path))
        await observer.wait_for_polls()
        fleet.on_monitor_added(dataclasses.replace(monitor_at(own.path), priority=MonitorPriority.DEDICATED))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        clients_before = fake.clients
        await observer.wait_for_polls(5)
        assert fake.clients == clients_before
    assert observer.types("vm") == ["vm.attached", "vm.detached", "vm.attached", "vm.detached"]
