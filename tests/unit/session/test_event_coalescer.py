"""Coalescing of repeated events: the first event is reported at once, later events are counted, and no event is lost."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.collectors import PollIntervals
from agent.exposition.snapshot import Snapshot
from agent.model.record import RecordEncoder, Severity
from agent.qmp.protocol import Event
from agent.session.event_coalescer import MAX_WINDOWS, WINDOW_SECONDS, CoalescedEvent, EventCoalescer
from tests.lab.fake_qemu import FakeQemu
from tests.lab.fixtures import StartGuest
from tests.lab.qmp_bytes import line
from tests.lab.record_validation import schema_violations
from tests.lab.recording_observer import RecordingObserver, quick_context, session_context, supervised
from tests.lab.snapshots import status, vm

FAILED = {"device": "", "node-name": "n", "operation": "write", "action": "report", "reason": "x"}


def event(number: int = 0) -> Event:
    return Event("BLOCK_IO_ERROR", {"number": number}, number)


def reported(groups: Any) -> list[tuple[int, int, int]]:
    """Return count, first time and last time of each reported group."""
    return [(group.count, group.first_ns, group.last_ns) for group in groups]


def test_the_first_event_is_reported_at_once_and_the_rest_of_the_second_as_one() -> None:
    coalescer = EventCoalescer()
    assert reported(coalescer.add(("a",), event(), 5, 10.0)) == [(1, 5, 5)]
    for number in range(6, 1000):
        assert reported(coalescer.add(("a",), event(number), number, 10.5)) == []
    assert reported(coalescer.pop_due(10.9)) == []
    assert coalescer.next_due_at() == 10 + WINDOW_SECONDS
    (group,) = coalescer.pop_due(11)
    assert (group.count, group.first_ns, group.last_ns, group.event.data["number"]) == (994, 6, 999, 999)


def test_repeated_events_are_reported_each_second_until_they_stop() -> None:
    coalescer = EventCoalescer()
    list(coalescer.add(("a",), event(), 1, 0.0))
    list(coalescer.add(("a",), event(), 2, 0.5))
    assert reported(coalescer.pop_due(1.0)) == [(1, 2, 2)]
    assert reported(coalescer.add(("a",), event(), 3, 1.5)) == []
    assert reported(coalescer.pop_due(2.0)) == [(1, 3, 3)]
    assert reported(coalescer.pop_due(3.0)) == []
    assert coalescer.next_due_at() == float("inf")
    assert reported(coalescer.add(("a",), event(), 4, 3.1)) == [(1, 4, 4)]


def test_events_of_another_key_are_reported_at_once() -> None:
    coalescer = EventCoalescer()
    list(coalescer.add(("a",), event(), 1, 0.0))
    list(coalescer.add(("a",), event(), 2, 0.1))
    assert reported(coalescer.add(("b",), event(), 3, 0.2)) == [(1, 3, 3)]


def test_past_the_maximum_of_windows_the_oldest_is_reported_early() -> None:
    coalescer = EventCoalescer()
    list(coalescer.add(("first",), event(), 1, 0.0))
    list(coalescer.add(("first",), event(), 2, 0.0))
    for number in range(MAX_WINDOWS - 1):
        list(coalescer.add((number,), event(), 3, 0.0))
    assert reported(coalescer.add(("one more",), event(), 4, 0.0)) == [(1, 2, 2), (1, 4, 4)]


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2), st.booleans()), max_size=60))
def test_every_event_is_counted_exactly_once(steps: list[tuple[int, float, bool]]) -> None:
    coalescer, now, groups = EventCoalescer(), 0.0, list[CoalescedEvent]()
    for key, wait, check_due in steps:
        now += wait
        if check_due:
            groups += coalescer.pop_due(now)
        groups += coalescer.add((key,), event(), 1, now)
    groups += coalescer.flush()
    assert sum(group.count for group in groups) == len(steps)
    assert list(coalescer.flush()) == []


# --- In a session ---


def count(observer: RecordingObserver) -> int:
    return sum(record.data.get("count", 1) for record in observer.records("event.block_io_error"))


async def test_a_flood_is_read_at_once_and_reported_in_few_records_with_exact_counts(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    total = 20_000
    context = session_context(intervals=PollIntervals())
    async with supervised(observer, fake.path, context=context):
        await observer.wait_for_polls()
        start = time.monotonic()
        fake.send_raw(line({"event": "BLOCK_IO_ERROR", "data": FAILED}))
        fake.send_raw(line({"event": "BLOCK_IO_ERROR", "data": FAILED}) * (total - 2))
        fake.send_raw(line({"event": "BLOCK_IO_ERROR", "data": FAILED | {"action": "stop", "nospace": True}}))
        fake.emit("RESUME")
        await observer.wait_until(lambda: observer.records("event.resume"))
        early = observer.records("event.block_io_error")
        assert "count" not in early[0].data
        last = next(
            record for record in reversed(early) if "count" not in record.data
        )  # a window may have ended meanwhile
        assert last.severity is Severity.CRITICAL, "another kind of error is reported at once too"
        await observer.wait_until(lambda: count(observer) == total)
        seconds = time.monotonic() - start
    records = observer.records("event.block_io_error")
    assert len(records) <= 3 + seconds / WINDOW_SECONDS
    for record in records:
        assert schema_violations(RecordEncoder()(record).body) == []
    snapshot = Snapshot()
    snapshot.update_monitor_status(status(vm()))
    for record in records:
        snapshot.count_event(type(record)(record.type, vm(), record.data, record.time_ns))
    assert next(view.events["BLOCK_IO_ERROR"] for _, view in snapshot.one_view_per_uuid()) == total


async def test_held_events_are_reported_before_the_vm_is_gone(fake: FakeQemu) -> None:
    observer = RecordingObserver()
    async with supervised(observer, fake.path, context=session_context(intervals=PollIntervals())):
        await observer.wait_for_polls()
        fake.send_raw(line({"event": "BLOCK_IO_ERROR", "data": FAILED}) * 7)
        fake.emit("RESUME")
        await observer.wait_until(lambda: observer.records("event.resume"))
        fake.drop()
        await observer.wait_until(lambda: observer.records("vm.gone"))
        assert count(observer) == 7
    types = observer.types()
    assert (
        types.index("vm.gone") > [i for i, record_type in enumerate(types) if record_type == "event.block_io_error"][-1]
    )


async def test_a_real_failing_disk_gives_a_few_records_a_second(start_guest: StartGuest) -> None:
    fault = {"event": "write_aio", "iotype": "write", "errno": 5, "once": False}
    guest = await start_guest(kind="writer", faults=(fault,), disk_options="werror=ignore", pause_seconds=0)
    version = (await guest.command("query-version"))["qemu"]
    if (version["major"], version["minor"]) >= (9, 2):
        pytest.skip("QEMU throttles these events itself from 9.2 on")
    observer = RecordingObserver()

    def enough() -> bool:
        return count(observer) >= 100 and any(
            record.data.get("count", 1) > 1 for record in observer.records("event.block")
        )

    async with supervised(observer, guest.monitor, context=quick_context(intervals=PollIntervals())):
        start = time.monotonic()
        await observer.wait_until(enough)
        seconds = time.monotonic() - start
    assert len(observer.records("event.block_io_error")) <= 4 + 2 * seconds
