"""Many monitors: coming, vanishing, and none that harms another."""

import asyncio
from pathlib import Path

import pytest

from agent.model.record import Record
from agent.session.api import MonitorState
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import Notes, monitor_at, terms, watching


async def test_a_monitor_that_appears_twice_is_watched_once(fake: FakeQemu) -> None:
    notes = Notes()
    async with watching(notes, fake.path, fake.path) as fleet:
        await notes.polled()
        fleet.appeared(monitor_at(fake.path))
        await notes.polled(2)
        assert len(fleet) == 1
    assert notes.kinds("vm") == ["vm.attached", "vm.detached"]
    assert fake.clients == 1


async def test_a_connection_outlives_its_vanished_address_and_is_not_made_anew(fake: FakeQemu) -> None:
    notes = Notes()
    async with watching(notes, fake.path) as fleet:
        await notes.polled()
        fleet.vanished(monitor_at(fake.path))
        fake.path.unlink()
        await notes.polled(3)
        assert len(fleet) == 1
        fake.drop()
        await notes.until(lambda: notes.all("ended"))
        assert len(fleet) == 0
    assert notes.kinds("vm") == ["vm.attached", "vm.gone"]
    assert notes.states()[-1] is MonitorState.GONE


async def test_an_address_that_vanishes_while_nobody_is_there_is_let_go_at_once(folder: Path) -> None:
    notes = Notes()
    async with watching(notes, folder / "none", settled=terms(retry_seconds=3600)) as fleet:
        await notes.until(lambda: MonitorState.GONE in notes.states())
        fleet.vanished(monitor_at(folder / "none"))
        await notes.until(lambda: notes.all("ended"))
    assert notes.kinds() == []


async def test_an_address_that_is_back_is_watched_on(fake: FakeQemu) -> None:
    notes = Notes()
    async with watching(notes, fake.path) as fleet:
        await notes.polled()
        fleet.vanished(monitor_at(fake.path))
        fleet.appeared(monitor_at(fake.path))
        fake.drop()
        await notes.until(lambda: len(notes.records("vm.attached")) == 2)
    assert len(notes.all("ended")) == 1


async def test_a_monitor_that_nobody_knows_may_vanish(folder: Path) -> None:
    notes = Notes()
    async with watching(notes) as fleet:
        fleet.vanished(monitor_at(folder / "none"))
        assert len(fleet) == 0


async def test_a_vm_that_hangs_hides_no_other(fake: FakeQemu) -> None:
    notes = Notes()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as second:
        second.hang("query-uuid")
        async with watching(notes, fake.path, second.path):
            await notes.until(lambda: MonitorState.STALLED in notes.states())
            await notes.polled(3)
    assert [record.vm.monitor for record in notes.records("vm.attached")] == [str(fake.path)]


async def test_a_bug_of_ours_met_by_one_vm_ends_its_watch_for_a_while_and_no_others(
    fake: FakeQemu, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky(Notes):
        def record(self, record: Record) -> None:
            super().record(record)
            if record.type == "qemu.vm.attached" and record.vm.monitor.endswith("vm2.qmp"):
                raise ZeroDivisionError

    notes = Picky()
    async with FakeQemu(fake.path.with_name("vm2.qmp")) as second, watching(notes, fake.path, second.path) as fleet:
        await notes.until(lambda: sum(r.vm.monitor == str(second.path) for r in notes.records("vm.attached")) >= 3)
        await notes.polled(2)
        assert len(fleet) == 2
    assert "starting it anew" in caplog.text
    assert sum(record.vm.monitor == str(fake.path) for record in notes.records("vm.attached")) == 1


async def test_a_hundred_monitors_are_met_at_once(folder: Path) -> None:
    fakes = [FakeQemu(folder / f"vm{number}.qmp") for number in range(100)]
    await asyncio.gather(*(fake.start() for fake in fakes))
    notes = Notes()
    try:
        async with watching(notes, *(fake.path for fake in fakes), settled=terms(reply_seconds=5, greeting_seconds=5)):
            await notes.until(lambda: len(notes.records("vm.attached")) == 100)
    finally:
        await asyncio.gather(*(fake.stop() for fake in fakes))
    assert {record.vm.monitor for record in notes.records("vm.detached")} == {str(fake.path) for fake in fakes}
