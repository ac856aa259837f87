"""Supervision of many monitors that appear, disappear and fail independently."""

import asyncio
from pathlib import Path

import pytest

from agent.model.record import Record
from agent.session.shared_types import MonitorState, VmLifecycleChange
from tests.lab.fake_qemu import FakeQemu
from tests.lab.qmp_bytes import line
from tests.lab.recording_observer import RecordingObserver, monitor_at, session_context, supervised


async def test_a_monitor_that_is_added_twice_is_supervised_once(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, fake.path) as group:
        await observer.wait_for_polls()
        group.on_monitor_added(monitor_at(fake.path))
        await observer.wait_for_polls(2)
        assert len(group) == 1
    assert observer.types("vm") == ["vm.attached", "vm.detached"]
    assert fake.clients == 1


async def test_a_connection_outlives_its_removed_address_and_is_not_reopened(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path) as group:
        await observer.wait_for_polls()
        group.on_monitor_removed(monitor_at(fake.path))
        fake.path.unlink()
        await observer.wait_for_polls(3)
        assert len(group) == 1
        fake.drop()
        await observer.wait_until(lambda: observer.calls_of("on_monitor_removed"))
        assert len(group) == 0
    assert observer.types("vm") == ["vm.attached", "vm.gone"]
    assert observer.states()[-1] is MonitorState.GONE


async def test_a_vm_whose_connection_was_lost_is_gone_when_its_monitor_is_removed(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path) as group:
        await observer.wait_for_polls()
        group.on_monitor_removed(monitor_at(fake.path))
        fake.send_raw(line(fake.greeting))
        await observer.wait_until(lambda: observer.calls_of("on_monitor_removed"))
    assert observer.types("vm") == ["vm.attached", "vm.detached", "vm.gone"]
    assert observer.records("vm.gone")[0].data == {"reason": f"its monitor {fake.path} no longer exists"}


async def test_an_address_removed_without_a_connection_ends_at_once(folder: Path) -> None:
    observer = RecordingObserver()
    async with supervised(observer, folder / "none", context=session_context(max_retry_seconds=3600)) as group:
        await observer.wait_until(lambda: MonitorState.GONE in observer.states())
        group.on_monitor_removed(monitor_at(folder / "none"))
        await observer.wait_until(lambda: observer.calls_of("on_monitor_removed"))
    assert observer.types() == []


async def test_an_address_that_is_back_stays_supervised(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path) as group:
        await observer.wait_for_polls()
        group.on_monitor_removed(monitor_at(fake.path))
        group.on_monitor_added(monitor_at(fake.path))
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
    assert len(observer.calls_of("on_monitor_removed")) == 1


async def test_the_removal_of_an_unknown_monitor_is_ignored(folder: Path) -> None:
    observer = RecordingObserver()
    async with supervised(observer) as group:
        group.on_monitor_removed(monitor_at(folder / "none"))
        assert len(group) == 0


async def test_a_hung_vm_does_not_affect_another(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as second:
        second.hang("query-uuid")
        async with supervised(observer, fake.path, second.path, context=session_context()):
            await observer.wait_until(lambda: MonitorState.STALLED in observer.states())
            await observer.wait_for_polls(3)
    assert [record.vm.monitor for record in observer.records("vm.attached")] == [str(fake.path)]


async def test_an_exception_restarts_the_supervision_of_one_vm_only(
    fake: FakeQemu, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingObserver(RecordingObserver):
        def on_lifecycle(self, change: VmLifecycleChange, record: Record) -> None:
            super().on_lifecycle(change, record)
            if change is VmLifecycleChange.ATTACHED and record.vm.monitor.endswith("vm2.qmp"):
                raise ZeroDivisionError

    observer = FailingObserver()
    async with (
        FakeQemu(fake.path.with_name("vm2.qmp")) as second,
        supervised(observer, fake.path, second.path) as group,
    ):
        await observer.wait_until(
            lambda: sum(r.vm.monitor == str(second.path) for r in observer.records("vm.attached")) >= 3
        )
        await observer.wait_for_polls(2)
        assert len(group) == 2
    assert "internal error; the agent will connect again" in caplog.text
    assert sum(record.vm.monitor == str(fake.path) for record in observer.records("vm.attached")) == 1


async def test_a_hundred_monitors_are_attached_at_once(folder: Path) -> None:
    fakes = [FakeQemu(folder / f"vm{number}.qmp") for number in range(100)]
    await asyncio.gather(*(fake.start() for fake in fakes))
    observer = RecordingObserver()
    try:
        async with supervised(observer, *(fake.path for fake in fakes), context=session_context()):
            await observer.wait_until(lambda: len(observer.records("vm.attached")) == 100)
    finally:
        await asyncio.gather(*(fake.stop() for fake in fakes))
    assert {record.vm.monitor for record in observer.records("vm.detached")} == {str(fake.path) for fake in fakes}
