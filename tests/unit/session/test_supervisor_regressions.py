"""Regression tests of the supervisor, one for each bug found."""

import pytest

from agent.collectors import ALL_COLLECTORS
from agent.collectors.base import Collector, PollIntervals, at_poll_interval, no_commands_to_send
from agent.host.types import KernelFilesToRead
from agent.session.shared_types import CollectorsByNameAndEvent, MonitorState
from tests.lab.fake_qemu import FakeQemu
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.lab.transcript import UUID


async def test_a_vm_that_stalls_during_identification_has_its_name_once_up(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-uuid")
    async with supervised(observer, fake.path, context=session_context()):
        await observer.wait_until(lambda: MonitorState.STALLED in observer.states())
        fake.release("query-uuid")
        await observer.wait_for_polls()
        up = observer.calls_of("on_status")[-1]
        assert (up.state, up.vm and up.vm.uuid) == (MonitorState.UP, UUID)


async def test_events_are_lost_since_the_last_session_not_since_a_failed_attempt(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.hang("query-uuid")
        fake.drop()
        await fake.wait_for("query-uuid", 2)
        first = observer.records("vm.gone")[0].time_ns
        fake.drop()  # a failed attempt
        await observer.wait_until(lambda: observer.states().count(MonitorState.GONE) == 2)
        fake.release("query-uuid")
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
    assert observer.records("vm.attached")[1].data["events_lost_since_timestamp_seconds"] * 1e9 == pytest.approx(
        first, abs=1e6
    )


async def test_a_monitor_without_an_earlier_session_is_not_reattached(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-uuid")
    async with supervised(observer, fake.path):
        await fake.wait_for("query-uuid")
        fake.drop()
        await observer.wait_until(lambda: MonitorState.GONE in observer.states())
        fake.release("query-uuid")
        await observer.wait_until(lambda: observer.records("vm.attached"))
    assert observer.records("vm.attached")[0].data["reattached"] is False
    assert "events_lost_since_timestamp_seconds" not in observer.records("vm.attached")[0].data


async def test_host_collectors_are_polled_while_qemu_stalls_during_a_resync(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    clock = Collector(
        "clock",
        (),
        no_commands_to_send,
        lambda _: (),
        at_poll_interval,
        files=lambda _: (KernelFilesToRead("/proc", ("uptime",)),),
    )
    context = session_context(collectors=CollectorsByNameAndEvent((*ALL_COLLECTORS, clock)), intervals=PollIntervals())
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls(collector="clock")
        fake.hang("query-migrate-capabilities")
        await observer.wait_until(lambda: MonitorState.STALLED in observer.states())
        await observer.wait_for_polls(3, collector="clock")
        assert observer.states()[-1] is MonitorState.STALLED
