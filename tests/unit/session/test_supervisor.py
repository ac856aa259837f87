"""Lifecycle of a monitor: attached, busy, stalled, gone and attached again."""

import asyncio
import gc
from collections import Counter

import pytest

from agent.collectors import PollIntervals
from agent.model.record import Severity, Vm
from agent.qmp.client import QmpClient
from agent.qmp.protocol import Event
from agent.session.event_handler import EventHandler
from agent.session.session import Session
from agent.session.shared_types import MonitorState, PollOutcome
from tests.lab.fake_qemu import FakeQemu
from tests.lab.qmp_bytes import line
from tests.lab.recording_observer import RecordingObserver, session_context, supervised
from tests.lab.scripted_peer import connected
from tests.lab.transcript import UUID

# --- Attach ---


async def test_a_vm_is_attached_identified_and_polled(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls(2)
    (attached,) = observer.records("vm.attached")
    assert (attached.vm.host, attached.vm.uuid, attached.vm.name) == ("host1", UUID, "vm1")
    assert attached.data == {
        "monitor": str(fake.path),
        "qemu_version": "7.2.22",
        "qemu_package": fake.greeting["QMP"]["version"]["package"],
        "reattached": False,
    }
    assert observer.states() == [MonitorState.CONNECTING, MonitorState.NEGOTIATING, MonitorState.UP, MonitorState.GONE]
    assert observer.calls_of("on_status")[2].vm == attached.vm
    vm, families, samples, _ = next(call for call in observer.calls_of("on_samples") if call[1][0].name == "block")
    assert vm == attached.vm
    assert [sample.labels for sample in samples] == [("boot",), ("disk0",)]
    assert [family.name for family in families] == ["block", "block_backing", "block_timed"]


async def test_stopping_reports_detached(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
    assert observer.types("vm") == ["vm.attached", "vm.detached"]
    assert observer.records("vm.detached")[0].data == {"reason": "the agent stops watching"}
    assert observer.calls[-1][0] == "on_monitor_removed"


async def test_events_before_identification_follow_the_attached_record_in_order(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-name")
    async with supervised(observer, fake.path, context=session_context()):
        await fake.wait_for("query-name")
        for number in range(5):
            fake.emit("STOP" if number % 2 else "RESUME", at=100 + number)
        fake.emit("BALLOON_CHANGE", {"actual": 5}, at=105)
        fake.release("query-name")
        await observer.wait_for_polls()
    assert observer.types()[:7] == [
        "vm.attached",
        *["event.resume", "event.stop"] * 2,
        "event.resume",
        "event.balloon_change",
    ]
    assert [record.time_ns for record in observer.records("event")] == [n * 10**9 for n in range(100, 106)]
    assert {record.vm.uuid for record in observer.records()} == {UUID}
    balloon = next(call for call in observer.calls_of("on_samples") if call[1][0].name == "balloon")
    assert observer.calls.index(("on_status", observer.calls_of("on_status")[2])) < observer.calls.index(
        ("on_samples", balloon)
    )


async def test_of_a_flood_before_identification_the_first_are_kept_and_the_rest_counted(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-name")
    async with supervised(observer, fake.path, context=session_context()):
        await fake.wait_for("query-name")
        fake.send_raw(b"".join(line({"event": "RTC_CHANGE", "data": {"offset": n}}) for n in range(1500)))
        fake.release("query-name")
        await observer.wait_until(lambda: observer.calls_of("on_events_dropped"))
    ((vm, reason, count),) = observer.calls_of("on_events_dropped")
    assert (vm.uuid, reason, count) == (UUID, "before_attach", 1500 - 1024)
    assert [record.data["qemu"]["offset"] for record in observer.records("event.rtc_change")] == list(range(1024))


async def test_severe_events_before_identification_are_kept_and_the_drops_are_reported(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    fake.hang("query-name")
    flood = [line({"event": "RTC_CHANGE", "data": {"offset": number}}) for number in range(1300)]
    flood[1200] = line({"event": "GUEST_PANICKED", "data": {"action": "pause"}})
    async with supervised(observer, fake.path, context=session_context()):
        await fake.wait_for("query-name")
        fake.send_raw(b"".join(flood))
        fake.release("query-name")
        await observer.wait_until(lambda: observer.calls_of("on_events_dropped"))
    ((_, _, count),) = observer.calls_of("on_events_dropped")
    (attached,) = observer.records("vm.attached")
    assert count == attached.data["events_dropped"] == 1300 - 1024
    assert attached.severity is Severity.ERROR
    assert [record.data["qemu"]["offset"] for record in observer.records("event.rtc_change")] == list(range(1023))
    assert len(observer.records("event.guest_panicked")) == 1
    assert observer.types("event")[-1] == "event.guest_panicked"


@pytest.mark.parametrize("severe", [1024, 1500])
def test_a_flood_of_severe_events_is_bounded_and_in_order(severe: int) -> None:
    observer = RecordingObserver()
    handler = EventHandler(observer)
    for number in range(1000):
        handler.on_event(Event("RTC_CHANGE", {"offset": number}, None))
    for number in range(severe):
        handler.on_event(Event("GUEST_PANICKED", {"number": number}, None))
    assert handler.dropped_event_count == 1000 + severe - 1024
    handler.set_vm_and_report_buffered(Vm("host1", UUID, "vm1"))
    assert [record.data["qemu"] for record in observer.records("event")] == [{"number": n} for n in range(1024)]
    assert handler.dropped_event_count == 0


async def test_an_event_record_has_subject_severity_and_qemus_data(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    data = {
        "qom-path": "/machine/peripheral/disk0/virtio-backend",
        "device": "",
        "action": "stop",
        "operation": "write",
    }
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.emit("BLOCK_IO_ERROR", data, at=1_700_000_000.000123)
        fake.emit("X_NEW_THING")
        await observer.wait_until(lambda: observer.records("event.x_new_thing"))
    (failed,) = observer.records("event.block_io_error")
    assert (failed.subject, failed.severity, failed.time_ns) == ("disk0", Severity.CRITICAL, 1_700_000_000_000_123_000)
    assert failed.data == {"event": "BLOCK_IO_ERROR", "category": "block", "qemu": data}
    (new,) = observer.records("event.x_new_thing")
    assert new.data == {"event": "X_NEW_THING", "category": "unknown", "qemu": {}}


# --- Busy ---


async def test_a_monitor_held_by_another_client_is_busy_and_attached_when_free(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with connected(fake.path), supervised(observer, fake.path, context=session_context()):
        await observer.wait_until(lambda: len(observer.calls_of("on_status")) >= 3)  # connecting, and two attempts
        fake.drop()
        await observer.wait_for_polls()
    assert observer.types("vm") == ["vm.busy", "vm.attached", "vm.detached"]
    busy = observer.records("vm.busy")[0]
    assert "another client holds this monitor" in busy.data["reason"]
    assert (busy.severity, busy.vm.uuid, busy.vm.monitor) == (Severity.WARNING, "", str(fake.path))
    assert list(dict.fromkeys(observer.states())) == [
        *[MonitorState.CONNECTING, MonitorState.BUSY, MonitorState.NEGOTIATING],
        MonitorState.UP,
        MonitorState.GONE,
    ]


# --- Stalled ---


async def test_a_qemu_that_does_not_answer_is_stalled_and_recovers(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context()):
        await observer.wait_for_polls()
        fake.hang("query-blockstats")
        await observer.wait_until(
            lambda: any("main loop" in status.reason for status in observer.calls_of("on_status"))
        )
        asked = [request for request in fake.requests if "execute" in request]
        fake.emit("WATCHDOG", {"action": "none"})
        await fake.wait_for("query-yank", fake.count("query-yank") + 2)
        assert observer.types("event") == ["event.watchdog"]  # events are received meanwhile
        assert [request for request in fake.requests if "execute" in request] == asked  # nothing in-band meanwhile
        fake.release("query-blockstats")
        await observer.wait_for_polls(2)
    assert observer.types("vm") == ["vm.attached", "vm.stalled", "vm.recovered", "vm.detached"]
    stalled = observer.records("vm.stalled")[0]
    assert (stalled.severity, stalled.vm.uuid) == (Severity.ERROR, UUID)
    assert "query-blockstats" in stalled.data["reason"]
    assert PollOutcome.TIMEOUT in observer.outcomes("block")
    assert fake.count("qom-list") == 4  # twice: the features are discovered again


async def test_a_stopped_process_is_distinguished_from_a_hung_main_loop(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context()):
        await observer.wait_for_polls()
        fake.hang("query-yank")
        fake.hang("query-blockstats")
        await observer.wait_until(
            lambda: any("no thread" in status.reason for status in observer.calls_of("on_status"))
        )
        assert fake.count("query-yank") == 1  # probes do not pile up
        fake.release("query-yank")
        await observer.wait_until(
            lambda: any("main loop" in status.reason for status in observer.calls_of("on_status"))
        )
    assert observer.types("vm").count("vm.stalled") == 1


async def test_a_vm_that_dies_while_stalled_is_gone_without_an_error(fake: FakeQemu) -> None:
    observer, errors = RecordingObserver(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with supervised(observer, fake.path, context=session_context()):
        await observer.wait_for_polls()
        fake.hang("query-yank")
        fake.hang("query-blockstats")
        await fake.wait_for("query-yank")  # commands and a probe are in flight now
        await fake.stop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
    gc.collect()
    assert observer.types("vm") == ["vm.attached", "vm.stalled", "vm.gone"]
    assert errors == []


# --- Gone and back ---


async def test_gone_has_the_cause_and_the_next_attached_has_the_time_of_lost_events(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.emit("SHUTDOWN", {"guest": False, "reason": "host-signal"})
        fake.drop()
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
        gone, back = observer.records("vm.gone")[0], observer.records("vm.attached")[1]
        await observer.wait_for_polls()
    assert gone.data == {"reason": "QEMU closed the connection", "shutdown_reason": "host-signal"}
    assert back.data["reattached"] is True
    assert back.data["events_lost_since_timestamp_seconds"] * 1e9 == pytest.approx(gone.time_ns, abs=1000)
    assert observer.states()[:6] == [
        *[MonitorState.CONNECTING, MonitorState.NEGOTIATING, MonitorState.UP, MonitorState.GONE],
        MonitorState.NEGOTIATING,
        MonitorState.UP,
    ]


async def test_the_end_of_a_connection_is_noticed_at_once(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(
        observer, fake.path, context=session_context(intervals=PollIntervals(poll=3600, resync=3600))
    ):
        await observer.wait_for_polls(1, "migration")
        fake.drop()
        await observer.wait_until(lambda: observer.records("vm.gone"))


async def test_a_missing_qemu_is_retried_until_it_starts(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    await fake.stop()
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: MonitorState.GONE in observer.states())
        assert observer.calls_of("on_status")[-1].reason == "No such file or directory"
        await fake.start()
        await observer.wait_for_polls()
    assert observer.types("vm") == ["vm.attached", "vm.detached"]


async def test_a_protocol_violation_leads_to_a_reconnect(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.send_raw(line(fake.greeting))
        await observer.wait_until(lambda: len(observer.records("vm.attached")) == 2)
    assert "a second greeting" in observer.records("vm.detached")[0].data["reason"]
    assert observer.types("vm.gone") == []


@pytest.mark.parametrize("damage", [b"{]}\r\n", b'{"event": nan}\r\n'])
async def test_an_unreadable_message_does_not_end_the_connection(fake: FakeQemu, damage: bytes) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path):
        await observer.wait_for_polls()
        fake.send_raw(damage)
        fake.emit("GUEST_PANICKED", {"action": "pause"})
        await observer.wait_until(lambda: observer.records("event.guest_panicked"))
        await observer.wait_for_polls(2)
    skipped = Counter[str]()
    for _, reason, count in observer.calls_of("on_messages_skipped"):
        skipped[reason] += count
    assert skipped.pop("unreadable") == 1
    assert skipped.keys() <= {"stray"}, "replies of a batch that was pending belong to no command any more"
    assert observer.types("vm.attached") == ["vm.attached"]


async def test_a_monitor_without_permission_is_denied(fake: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    observer = RecordingObserver()
    monkeypatch.setattr("socket.socket.connect", refuse)  # root, who may run the tests, is never denied
    async with supervised(observer, fake.path):
        await observer.wait_until(lambda: MonitorState.DENIED in observer.states())
        assert "`sudo qmp-agent doctor` prints the commands" in observer.calls_of("on_status")[-1].reason


async def test_a_closed_connection_leaves_no_reference_cycle(fake: FakeQemu) -> None:
    """The garbage collector runs rarely, and connections come and go."""
    observer = RecordingObserver()
    gc.collect()
    gc.disable()
    try:
        async with supervised(observer, fake.path):
            for times in range(1, 6):
                await observer.wait_until(lambda: len(observer.outcomes("kvm")) >= times)  # noqa: B023 - awaited here
                fake.drop()
                await observer.wait_until(lambda: len(observer.records("vm.attached")) > times)  # noqa: B023 - awaited here
            alive = [type(item).__name__ for item in gc.get_objects() if isinstance(item, Session | QmpClient)]
    finally:
        gc.enable()
    assert len(alive) <= 2, alive
