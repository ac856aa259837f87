"""A VM that can be reached in several ways is watched once, by the best of them."""

import asyncio
import dataclasses
from pathlib import Path

from agent.monitors import Monitor, MonitorPriority
from agent.session.api import MonitorState
from agent.session.ownership import OwnershipClaim, OwnershipRegistry
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.recording_observer import RecordingObserver, monitor_at, quick_context, supervised


def claim(
    uuid: str = "a", pid: int | None = None, priority: MonitorPriority = MonitorPriority.DEDICATED
) -> OwnershipClaim:
    return OwnershipClaim(uuid, pid, priority, "m", lambda: None)


def ranked(path: Path, priority: MonitorPriority) -> Monitor:
    return dataclasses.replace(monitor_at(path), priority=priority)


async def test_one_process_is_one_vm_whatever_it_says_it_is() -> None:
    assert claim("a", 5).same_vm(claim("b", 5))
    assert not claim("a", 5).same_vm(claim("a", 6, MonitorPriority.BURST))


async def test_where_a_process_is_not_known_one_uuid_is_one_vm_unless_it_may_be_a_migration() -> None:
    assert claim("a", 5).same_vm(claim("a", None, MonitorPriority.MANAGER))
    assert not claim("a", 5).same_vm(claim("b", None, MonitorPriority.MANAGER))
    assert not claim("a").same_vm(claim("a"))


async def test_a_worse_way_makes_way_before_the_better_one_holds() -> None:
    claims, told = OwnershipRegistry(), asyncio.Event()
    worse = OwnershipClaim("a", 5, MonitorPriority.BURST, "worse", told.set)
    better = claim(pid=5)
    assert await claims.take(worse) is None
    taking = asyncio.create_task(claims.take(better))
    await told.wait()
    assert not taking.done()
    claims.release(worse)
    assert await taking is None
    assert await claims.take(claim(pid=5)) is better
    assert await claims.take(claim(pid=6)) is None


async def test_a_vm_with_two_monitors_is_watched_once_and_goes_on_when_the_first_is_lost(
    start_guest: StartGuest, folder: Path
) -> None:
    observer = RecordingObserver()
    second = folder / "second.qmp"
    guest = await start_guest(extra=["-qmp", f"unix:{second},server=on,wait=off"])
    async with supervised(observer, guest.monitor, second) as fleet:
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        await observer.wait_for_polls(3)
        (attached,) = observer.records("vm.attached")
        spare = next(status for status in observer.calls_of("on_status") if status.state is MonitorState.STANDBY)
        assert spare.monitor.name != attached.vm.monitor
        assert attached.vm.monitor in spare.reason
        reader, writer = await asyncio.open_unix_connection(spare.monitor.name)
        assert b"QMP" in await reader.readline(), "a monitor that is not needed is not held"
        writer.close()
        await writer.wait_closed()
        assert len(fleet) == 2


async def test_a_spare_monitor_takes_over_when_the_better_one_is_lost(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as worse, supervised(observer, fake.path) as fleet:
        await observer.wait_for_polls()
        fleet.on_monitor_added(ranked(worse.path, MonitorPriority.BURST))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        fleet.on_monitor_removed(monitor_at(fake.path))
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        assert observer.records("vm.attached")[1].vm.monitor == str(worse.path)
    assert observer.types("vm") == ["vm.attached", "vm.gone", "vm.attached", "vm.detached"]


async def test_a_better_monitor_that_comes_later_is_taken_and_the_worse_one_left(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as better, supervised(observer) as fleet:
        fleet.on_monitor_added(ranked(fake.path, MonitorPriority.MANAGER))
        await observer.wait_for_polls()
        fleet.on_monitor_added(monitor_at(better.path))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        await observer.wait_for_polls(2)
    assert observer.types("vm") == ["vm.attached", "vm.detached", "vm.attached", "vm.detached"]
    left = observer.records("vm")[1]
    assert (left.vm.monitor, left.data["reason"]) == (str(fake.path), "a better way to this VM was found")


async def test_a_spare_that_called_us_is_kept_and_tells_no_event_twice(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as spare, supervised(observer, fake.path) as fleet:
        await observer.wait_for_polls()
        calling = dataclasses.replace(monitor_at(spare.path), priority=MonitorPriority.MANAGER, inbound=True)
        fleet.on_monitor_added(calling)
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        spare.emit("STOP")
        spare.emit("RESUME")
        await observer.wait_for_polls(2)
        assert observer.types("event") == []
        fleet.on_monitor_removed(calling)
        fleet.on_monitor_removed(monitor_at(fake.path))
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        await observer.wait_for_polls()
        assert observer.types("event") == []
        assert spare.clients == 1
        spare.emit("STOP")
        await observer.wait_until(lambda: observer.types("event"))


async def test_a_spare_that_is_lost_itself_is_let_go(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with (
        FakeQemu(fake.path.with_name("vm2.qmp")) as spare,
        supervised(observer, fake.path, context=quick_context()) as fleet,
    ):
        await observer.wait_for_polls()
        fleet.on_monitor_added(ranked(spare.path, MonitorPriority.MANAGER))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        fleet.on_monitor_removed(ranked(spare.path, MonitorPriority.MANAGER))
        await observer.wait_until(lambda: observer.calls_of("on_monitor_removed"))
        assert len(fleet) == 1
