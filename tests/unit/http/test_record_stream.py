"""Looking on: everybody sees what they asked for, and nobody holds anybody up."""

import pytest

from agent.http import record_stream as module
from agent.http.record_stream import (
    MAX_STREAMS,
    QUEUE_RECORDS,
    RECENT_RECORDS,
    RecordBroadcaster,
    Subscriber,
    TooManySubscribersError,
)
from agent.model.record import EncodedRecord, Record, RecordEncoder, Severity, Vm

UUID = "5bd1a5a4-5c0f-4d54-9d0b-7f2f4ad4d2e1"
STAMP = RecordEncoder()


def record(
    kind: str = "event.stop", name: str = "vm1", uuid: str = UUID, severity: Severity = Severity.INFO
) -> EncodedRecord:
    return STAMP(Record(f"qemu.{kind}", Vm("host1", uuid, name), {}, 0, severity=severity))


async def seen(onlooker: Subscriber, *records: EncodedRecord) -> list[EncodedRecord]:
    """Return what an onlooker gets of these records."""
    live, last = RecordBroadcaster(), record("vm.gone", severity=Severity.CRITICAL)
    with live.subscribe(onlooker):
        for stamped in (*records, last):
            live.publish(stamped)
        got = []
        while not onlooker._queue.empty():
            got.append(await onlooker.get())
    return [stamped for stamped in got if stamped is not last]


async def test_an_onlooker_sees_all_in_order() -> None:
    records = [record(), record("sample.block"), record(name="vm2", uuid="")]
    assert await seen(Subscriber(), *records) == records


async def test_an_onlooker_may_want_one_vm_by_name_or_uuid() -> None:
    mine, other = record(), record(name="vm2", uuid="2" * 36)
    assert await seen(Subscriber(vm="vm1"), mine, other) == [mine]
    assert await seen(Subscriber(vm=UUID), mine, other) == [mine]
    assert await seen(Subscriber(vm="vm"), mine, other) == []


async def test_an_onlooker_may_want_types_that_begin_so() -> None:
    stop, block, other = record("event.stop"), record("event.block_io_error"), record("sample.block")
    assert await seen(Subscriber(types=("qemu.event.",)), stop, block, other) == [stop, block]
    assert await seen(Subscriber(types=("qemu.event.block",)), stop, block, other) == [block]
    assert await seen(Subscriber(types=("event",)), stop, block, other) == []
    assert await seen(Subscriber(types=("qemu.event.stop", "qemu.sample.")), stop, block, other) == [stop, other]


async def test_an_onlooker_may_want_a_severity_and_worse() -> None:
    records = {severity: record(severity=severity) for severity in Severity}
    for least in Severity:
        wanted = [records[severity] for severity in Severity if severity >= least]
        assert await seen(Subscriber(severity=least), *records.values()) == wanted


async def test_what_an_onlooker_is_too_slow_for_is_counted_and_holds_nobody_up() -> None:
    live, slow, quick = RecordBroadcaster(), Subscriber(), Subscriber()
    with live.subscribe(slow), live.subscribe(quick):
        for number in range(QUEUE_RECORDS + 7):
            live.publish(record())
            if number % 2:
                await quick.get()
                await quick.get()
    assert (slow.missed, quick.missed) == (7, 0)
    assert slow._queue.qsize() == QUEUE_RECORDS


async def test_what_an_onlooker_does_not_want_it_cannot_miss() -> None:
    live, onlooker = RecordBroadcaster(), Subscriber(vm="vm2")
    with live.subscribe(onlooker):
        for _ in range(QUEUE_RECORDS + 7):
            live.publish(record())
    assert onlooker.missed == 0


async def test_there_is_room_for_so_many_and_again_when_one_leaves() -> None:
    live = RecordBroadcaster()
    with live.subscribe(Subscriber()):
        others = [live.subscribe(Subscriber()) for _ in range(MAX_STREAMS - 1)]
        for other in others:
            other.__enter__()
        with (
            pytest.raises(TooManySubscribersError, match=f"{MAX_STREAMS} are looking on already"),
            live.subscribe(Subscriber()),
        ):
            pass
        others.pop().__exit__(None, None, None)
        with live.subscribe(Subscriber()):
            pass


async def test_one_who_left_gets_nothing_more() -> None:
    live, onlooker = RecordBroadcaster(), Subscriber()
    with live.subscribe(onlooker):
        pass
    live.publish(record())
    assert onlooker._queue.empty()


async def told(live: RecordBroadcaster, *, after: str = "") -> list[EncodedRecord]:
    """Return what one who comes now is shown of what happened of late."""
    with live.subscribe(onlooker := Subscriber(), recent=True, after=after):
        return [await onlooker.get() for _ in range(onlooker._queue.qsize())]


async def test_one_who_comes_late_may_see_what_happened_but_for_samples() -> None:
    live, stop, sample, resume = RecordBroadcaster(), record(), record("sample.block"), record("event.resume")
    for stamped in (stop, sample, resume):
        live.publish(stamped)
    assert await told(live) == [stop, resume]
    with live.subscribe(onlooker := Subscriber()):
        assert onlooker._queue.empty()


async def test_one_who_comes_back_sees_what_came_since_and_all_where_that_is_not_known() -> None:
    live, records = RecordBroadcaster(), [record() for _ in range(3)]
    for stamped in records:
        live.publish(stamped)
    assert await told(live, after=records[1].id) == records[2:]
    assert await told(live, after=records[2].id) == []
    assert await told(live, after="0000000000-7") == records


async def test_what_is_kept_for_those_who_come_late_is_bounded_in_count_and_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live, records = RecordBroadcaster(), [record() for _ in range(RECENT_RECORDS + 5)]
    for stamped in records:
        live.publish(stamped)
    assert await told(live) == records[5:]
    monkeypatch.setattr(module, "RECENT_BYTES", 3 * len(records[-1].body))
    live.publish(last := record())
    assert await told(live) == [*records[-2:], last]
