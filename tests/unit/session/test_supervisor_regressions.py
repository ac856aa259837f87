"""What went wrong once between a monitor and what is told of it."""

import pytest

from agent.collectors import ALL
from agent.collectors.base import Collector, Intervals, each_poll, nothing
from agent.host.types import File
from agent.session.api import CollectorIndex, MonitorState
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import Notes, terms, watching
from tests.lab.transcript import UUID


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.session.session.PROBE_SECONDS", 0.05)


async def test_a_vm_that_stalls_while_it_is_met_has_its_name_once_it_is_up(fake: FakeQemu) -> None:
    notes = Notes()
    fake.hang("query-uuid")
    async with watching(notes, fake.path):
        await notes.until(lambda: MonitorState.STALLED in notes.states())
        fake.release("query-uuid")
        await notes.polled()
        up = notes.all("status")[-1]
        assert (up.state, up.vm and up.vm.uuid) == (MonitorState.UP, UUID)


async def test_events_are_lost_since_the_vm_was_last_heard_not_since_an_attempt_that_failed(fake: FakeQemu) -> None:
    notes = Notes()
    async with watching(notes, fake.path):
        await notes.polled()
        fake.hang("query-uuid")
        fake.drop()
        await fake.asked("query-uuid", 2)
        first = notes.records("vm.gone")[0].time_ns
        fake.drop()  # an attempt that gets no further
        await notes.until(lambda: notes.states().count(MonitorState.GONE) == 2)
        fake.release("query-uuid")
        await notes.until(lambda: len(notes.records("vm.attached")) == 2)
    assert notes.records("vm.attached")[1].data["events_lost_since_timestamp_seconds"] * 1e9 == pytest.approx(
        first, abs=1e6
    )


async def test_a_monitor_that_was_never_met_is_not_reattached(fake: FakeQemu) -> None:
    notes = Notes()
    fake.hang("query-uuid")
    async with watching(notes, fake.path):
        await fake.asked("query-uuid")
        fake.drop()
        await notes.until(lambda: MonitorState.GONE in notes.states())
        fake.release("query-uuid")
        await notes.until(lambda: notes.records("vm.attached"))
    assert notes.records("vm.attached")[0].data["reattached"] is False
    assert "events_lost_since_timestamp_seconds" not in notes.records("vm.attached")[0].data


async def test_the_kernel_is_asked_on_while_qemu_stalls_in_the_middle_of_a_resync(fake: FakeQemu) -> None:
    notes = Notes()
    clock = Collector("clock", (), nothing, lambda _: (), each_poll, files=lambda _: (File("/proc/uptime"),))
    quick = Intervals(poll=0.06, resync=0.3)
    async with watching(notes, fake.path, settled=terms(menu=CollectorIndex((*ALL, clock)), intervals=quick)):
        await notes.polled(collector="clock")
        fake.hang("query-migrate-capabilities")
        await notes.until(lambda: MonitorState.STALLED in notes.states())
        await notes.polled(3, collector="clock")
        assert notes.states()[-1] is MonitorState.STALLED
