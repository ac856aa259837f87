"""Ownership: the agent watches a VM that several monitors lead to over the best monitor only."""

import asyncio
import dataclasses
from pathlib import Path

from agent.monitors import Monitor, MonitorPriority
from agent.session.ownership import OwnershipClaim, OwnershipRegistry
from agent.session.shared_types import MonitorState
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.recording_observer import RecordingObserver, monitor_at, quick_context, session_context, supervised


def claim(
    uuid: str = "a", pid: int | None = None, priority: MonitorPriority = MonitorPriority.DEDICATED
) -> OwnershipClaim:
    return OwnershipClaim(uuid, pid, priority, "m", lambda: None)


def monitor_with_priority(path: Path, priority: MonitorPriority) -> Monitor:
    return dataclasses.replace(monitor_at(path), priority=priority)


async def test_one_process_is_one_vm_whatever_its_uuid() -> None:
    assert claim("a", 5).is_same_vm(claim("b", 5))
    assert not claim("a", 5).is_same_vm(claim("a", 6, MonitorPriority.SHARED))


async def test_without_a_pid_one_uuid_is_one_vm_unless_it_may_be_a_migration() -> None:
    assert claim("a", 5).is_same_vm(claim("a", None, MonitorPriority.MANAGER))
    assert not claim("a", 5).is_same_vm(claim("b", None, MonitorPriority.MANAGER))
    assert not claim("a").is_same_vm(claim("a"))


async def test_a_worse_monitor_is_preempted_before_the_better_one_holds_the_claim() -> None:
    claims, preempted = OwnershipRegistry(), asyncio.Event()
    worse = OwnershipClaim("a", 5, MonitorPriority.SHARED, "worse", preempted.set)
    better = claim(pid=5)
    assert await claims.acquire(worse) is None
    acquiring = asyncio.create_task(claims.acquire(better))
    await preempted.wait()
    assert not acquiring.done()
    claims.release(worse)
    assert await acquiring is None
    assert await claims.acquire(claim(pid=5)) is better
    assert await claims.acquire(claim(pid=6)) is None


async def test_a_vm_with_two_monitors_is_watched_over_one_and_the_other_is_not_held(
    start_guest: StartGuest, folder: Path
) -> None:
    observer = RecordingObserver()
    second = folder / "second.qmp"
    guest = await start_guest(extra=["-qmp", f"unix:{second},server=on,wait=off"])
    async with supervised(observer, guest.monitor, second, context=quick_context()) as group:
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        await observer.wait_for_polls(3)
        (attached,) = observer.records("vm.attached")
        standby = next(status for status in observer.calls_of("on_status") if status.state is MonitorState.STANDBY)
        assert standby.monitor.name != attached.vm.monitor
        assert attached.vm.monitor in standby.reason
        reader, writer = await asyncio.open_unix_connection(standby.monitor.name)
        assert b"QMP" in await reader.readline(), "a standby monitor is not held"
        writer.close()
        await writer.wait_closed()
        assert len(group) == 2


async def test_a_standby_monitor_takes_over_when_the_better_one_is_lost(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as worse, supervised(observer, fake.path) as group:
        await observer.wait_for_polls()
        group.on_monitor_added(monitor_with_priority(worse.path, MonitorPriority.SHARED))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        group.on_monitor_removed(monitor_at(fake.path))
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        assert observer.records("vm.attached")[1].vm.monitor == str(worse.path)
    assert observer.types("vm") == ["vm.attached", "vm.gone", "vm.attached", "vm.detached"]


async def test_a_better_monitor_that_appears_later_replaces_the_worse_one(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as better, supervised(observer) as group:
        group.on_monitor_added(monitor_with_priority(fake.path, MonitorPriority.MANAGER))
        await observer.wait_for_polls()
        group.on_monitor_added(monitor_at(better.path))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        await observer.wait_for_polls(2)
    assert observer.types("vm") == ["vm.attached", "vm.detached", "vm.attached", "vm.detached"]
    detached = observer.records("vm")[1]
    assert (detached.vm.monitor, detached.data["reason"]) == (
        str(fake.path),
        "a preferred monitor of this VM is available",
    )


async def test_an_inbound_standby_connection_is_kept_and_reports_no_event_twice(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as standby, supervised(observer, fake.path) as group:
        await observer.wait_for_polls()
        inbound = dataclasses.replace(monitor_at(standby.path), priority=MonitorPriority.MANAGER, inbound=True)
        group.on_monitor_added(inbound)
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        standby.emit("STOP")
        standby.emit("RESUME")
        await observer.wait_for_polls(2)
        assert observer.types("event") == []
        group.on_monitor_removed(inbound)
        group.on_monitor_removed(monitor_at(fake.path))
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        await observer.wait_for_polls()
        assert observer.types("event") == []
        assert standby.clients == 1
        standby.emit("STOP")
        await observer.wait_until(lambda: observer.types("event"))


async def test_a_standby_monitor_that_is_removed_ends(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with (
        FakeQemu(fake.path.with_name("vm2.qmp")) as standby,
        supervised(observer, fake.path, context=session_context()) as group,
    ):
        await observer.wait_for_polls()
        group.on_monitor_added(monitor_with_priority(standby.path, MonitorPriority.MANAGER))
        await observer.wait_until(lambda: MonitorState.STANDBY in observer.states())
        group.on_monitor_removed(monitor_with_priority(standby.path, MonitorPriority.MANAGER))
        await observer.wait_until(lambda: observer.calls_of("on_monitor_removed"))
        assert len(group) == 1
