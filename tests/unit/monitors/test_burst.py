"""A socket that somebody else needs back: the agent is there only while it asks, and says what that costs."""

import asyncio
import dataclasses
import signal
import time
from pathlib import Path

import pytest

from agent.collectors import Intervals
from agent.monitors import BurstDiscoverer, Monitor, MonitorPriority
from agent.monitors.burst import burst_connection
from agent.monitors.dial import unix
from agent.qmp.commands import AllowList, Change, Command
from agent.qmp.errors import BusyError, CommandRefusedError, NotConnectedError, PreemptedError
from agent.session.api import MonitorState
from agent.session.scheduler import Schedule
from agent.session.supervisor import UNHEARD
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.recording_observer import RecordingObserver, monitor_at, quick_settings, supervised
from tests.lab.scripted_peer import TIMEOUT_SECONDS, connected

HOLD = 0.2


def visited(path: Path, hold: float = HOLD) -> Monitor:
    found = BurstDiscoverer(str(path), hold).scan().values()
    return next(iter(found))


async def test_a_vm_is_watched_in_visits_and_between_them_its_monitor_is_free(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(visited(fake.path))
        await observer.wait_for_polls(2)
        async with connected(fake.path) as other:
            await other.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)
        await observer.wait_for_polls(2)
    assert observer.types("vm") == ["vm.attached", "vm.detached"]
    assert observer.records("vm.attached")[0].data["events_available"] is False
    up = [status for status in observer.calls_of("on_status") if status.state is MonitorState.UP]
    assert {status.reason for status in up} == {UNHEARD}
    assert fake.clients > 4


async def test_what_no_event_tells_is_asked_at_each_poll(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(visited(fake.path))
        await observer.wait_for_polls(3, "runstate")
        await observer.wait_for_polls(2, "jobs")
        await observer.wait_for_polls(2, "migration")


async def test_visits_are_not_always_as_far_apart_and_what_is_asked_together_stays_so(
    fake: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: dict[str, float] = {}
    plan = Schedule.plan

    def planning(self: Schedule, name: str, at: float) -> None:
        planned[name] = at - time.monotonic()
        plan(self, name, at)

    monkeypatch.setattr(Schedule, "plan", planning)
    monkeypatch.setattr("agent.session.session.random", lambda: 1.0)  # the longest wait
    observer = RecordingObserver()
    settings = quick_settings(intervals=Intervals(poll=600, migration=600))
    async with supervised(observer, settings=settings) as fleet:
        fleet.on_monitor_added(visited(fake.path))
        await observer.wait_for_polls(1, "migration")
    for name in ("block", "runstate", "jobs", "migration"):
        assert planned[name] == pytest.approx(660, abs=TIMEOUT_SECONDS), name


async def test_a_look_is_one_write_and_no_out_of_band_one(fake: FakeQemu) -> None:
    open_ = burst_connection(unix(str(fake.path)), HOLD)
    link = await open_(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    before = fake.clients
    answers = await link.execute([Command("query-status"), Command("query-name")], deadline=TIMEOUT_SECONDS)
    assert [isinstance(answer, dict) and answer.keys() & {"status", "name"} for answer in answers] == [
        {"status"},
        {"name"},
    ]
    assert fake.clients == before + 1
    assert not await link.probe(deadline=TIMEOUT_SECONDS)
    assert fake.count("query-yank") == 0
    link.close()


async def test_a_visit_ends_in_time_whatever_qemu_does(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-blockstats")
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(visited(fake.path))
        await fake.wait_for("query-blockstats")
        begin = time.monotonic()
        async with connected(fake.path):
            assert time.monotonic() - begin < TIMEOUT_SECONDS
        await observer.wait_until(lambda: MonitorState.STALLED in observer.states())
        fake.release("query-blockstats")
        await observer.wait_for_polls()
        await observer.wait_until(lambda: observer.states()[-1] is MonitorState.UP)
    assert "vm.gone" not in observer.types("vm")


async def test_while_somebody_else_stays_it_is_busy_and_no_vm_is_taken_for_dead(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, settings=quick_settings(reply_seconds=0.3)) as fleet:
        fleet.on_monitor_added(visited(fake.path, 0.05))
        await observer.wait_for_polls()
        async with connected(fake.path):
            await observer.wait_until(lambda: MonitorState.BUSY in observer.states())
        await observer.wait_until(lambda: observer.states()[-1] is MonitorState.UP)
        await observer.wait_for_polls()
        last = observer.calls_of("on_status")[-1]
        assert (last.state, last.reason) == (MonitorState.UP, UNHEARD)
    assert observer.types("vm") == ["vm.attached", "vm.busy", "vm.recovered", "vm.detached"]


async def test_a_queue_that_is_full_is_busy_too(fake: FakeQemu) -> None:
    open_ = burst_connection(unix(str(fake.path)), 0.05)
    fake.busy()
    waiting = [await asyncio.open_unix_connection(fake.path) for _ in range(2)]
    with pytest.raises(BusyError):
        await open_(AllowList(), lambda _: None, deadline=0.2)
    for _, writer in waiting:
        writer.close()


async def test_a_qemu_that_stops_and_goes_on_is_the_same_vm(start_guest: StartGuest) -> None:
    observer = RecordingObserver()
    guest = await start_guest()
    async with supervised(observer, settings=quick_settings(reply_seconds=0.3)) as fleet:
        fleet.on_monitor_added(visited(guest.monitor))
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


async def test_another_qemu_at_the_same_address_is_another(start_guest: StartGuest) -> None:
    observer = RecordingObserver()
    guest = await start_guest("a")
    open_ = burst_connection(unix(str(guest.monitor)), HOLD)
    link = await open_(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    await guest.stop()
    second = await start_guest("b", extra=["-qmp", f"unix:{guest.monitor},server=on,wait=off"])
    with pytest.raises(NotConnectedError, match="another process"):
        await link.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)
    assert link.ended.done()
    async with supervised(observer) as fleet:
        fleet.on_monitor_added(visited(guest.monitor))
        await observer.wait_for_polls()
    assert observer.records("vm.attached")[0].vm.uuid == second.uuid


async def test_a_visit_that_is_under_way_makes_way(fake: FakeQemu) -> None:
    open_ = burst_connection(unix(str(fake.path)), TIMEOUT_SECONDS)
    link = await open_(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    fake.hang("query-status")
    asking = asyncio.create_task(link.execute([Command("query-status")], deadline=TIMEOUT_SECONDS))
    await fake.wait_for("query-status")
    link.preempt()
    with pytest.raises(PreemptedError):
        await asking
    async with connected(fake.path):
        pass
    with pytest.raises(PreemptedError):
        await link.execute([Command("query-status")], deadline=TIMEOUT_SECONDS)


async def test_what_is_not_allowed_is_refused_and_ends_nothing(fake: FakeQemu) -> None:
    open_ = burst_connection(unix(str(fake.path)), HOLD)
    link = await open_(AllowList(), lambda _: None, deadline=TIMEOUT_SECONDS)
    with pytest.raises(CommandRefusedError):
        await link.execute([Command("quit")], deadline=TIMEOUT_SECONDS)
    assert not link.ended.done()
    link.close()


async def test_nothing_is_changed_whose_event_nobody_would_hear(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, settings=quick_settings(*Change)) as fleet:
        fleet.on_monitor_added(visited(fake.path))
        await observer.wait_for_polls(2)
    assert fake.count("migrate-set-capabilities") == 0


async def test_a_monitor_of_ones_own_is_better_than_visits(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("own.qmp")) as own, supervised(observer) as fleet:
        fleet.on_monitor_added(visited(fake.path))
        await observer.wait_for_polls()
        fleet.on_monitor_added(dataclasses.replace(monitor_at(own.path), priority=MonitorPriority.DEDICATED))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        before = fake.clients
        await observer.wait_for_polls(5)
        assert fake.clients == before
    assert observer.types("vm") == ["vm.attached", "vm.detached", "vm.attached", "vm.detached"]
