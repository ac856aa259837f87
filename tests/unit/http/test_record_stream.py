"""The record broadcaster: each subscriber gets the records that match, and a slow subscriber delays no other."""

import pytest

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
ENCODE = RecordEncoder()


def record(
    kind: str = "event.stop", name: str = "vm1", uuid: str = UUID, severity: Severity = Severity.INFO
) -> EncodedRecord:
    return ENCODE(Record(f"qemu.{kind}", Vm("host1", uuid, name), {}, 0, severity=severity))


async def received_records(subscriber: Subscriber, *records: EncodedRecord) -> list[EncodedRecord]:
    """Publish records, and return those that a subscriber receives."""
    broadcaster, last = RecordBroadcaster(), record("vm.gone", severity=Severity.CRITICAL)
    with broadcaster.subscribe(subscriber):
        for encoded in (*records, last):
            broadcaster.publish(encoded)
        records_received = []
        while not subscriber._queue.empty():
            records_received.append(await subscriber.get())
    return [encoded for encoded in records_received if encoded is not last]


async def test_a_subscriber_receives_all_records_in_order() -> None:
    records = [record(), record("sample.block"), record(name="vm2", uuid="")]
    assert await received_records(Subscriber(), *records) == records


async def test_a_subscriber_may_filter_by_vm_name_or_uuid() -> None:
    mine, other = record(), record(name="vm2", uuid="2" * 36)
    assert await received_records(Subscriber(vm="vm1"), mine, other) == [mine]
    assert await received_records(Subscriber(vm=UUID), mine, other) == [mine]
    assert await received_records(Subscriber(vm="vm"), mine, other) == []


async def test_a_subscriber_may_filter_by_type_prefixes() -> None:
    stop, block, other = record("event.stop"), record("event.block_io_error"), record("sample.block")
    assert await received_records(Subscriber(types=("qemu.event.",)), stop, block, other) == [stop, block]
    assert await received_records(Subscriber(types=("qemu.event.block",)), stop, block, other) == [block]
    assert await received_records(Subscriber(types=("event",)), stop, block, other) == []
    assert await received_records(Subscriber(types=("qemu.event.stop", "qemu.sample.")), stop, block, other) == [
        stop,
        other,
    ]


async def test_a_subscriber_may_filter_by_lowest_severity() -> None:
    records = {severity: record(severity=severity) for severity in Severity}
    for lowest in Severity:
        expected = [records[severity] for severity in Severity if severity >= lowest]
        assert await received_records(Subscriber(severity=lowest), *records.values()) == expected


async def test_records_that_a_slow_subscriber_misses_are_counted_and_delay_no_other() -> None:
    broadcaster, slow, quick = RecordBroadcaster(), Subscriber(), Subscriber()
    with broadcaster.subscribe(slow), broadcaster.subscribe(quick):
        for number in range(QUEUE_RECORDS + 7):
            broadcaster.publish(record())
            if number % 2:
                await quick.get()
                await quick.get()
    assert (slow.missed, quick.missed) == (7, 0)
    assert slow._queue.qsize() == QUEUE_RECORDS


async def test_records_that_do_not_match_are_not_missed() -> None:
    broadcaster, subscriber = RecordBroadcaster(), Subscriber(vm="vm2")
    with broadcaster.subscribe(subscriber):
        for _ in range(QUEUE_RECORDS + 7):
            broadcaster.publish(record())
    assert subscriber.missed == 0


async def test_subscribers_are_limited_until_one_leaves() -> None:
    broadcaster = RecordBroadcaster()
    with broadcaster.subscribe(Subscriber()):
        others = [broadcaster.subscribe(Subscriber()) for _ in range(MAX_STREAMS - 1)]
        for other in others:
            other.__enter__()
        with (
            pytest.raises(TooManySubscribersError, match=f"all {MAX_STREAMS} streams are in use"),
            broadcaster.subscribe(Subscriber()),
        ):
            pass
        others.pop().__exit__(None, None, None)
        with broadcaster.subscribe(Subscriber()):
            pass


async def test_a_subscriber_that_left_receives_nothing() -> None:
    broadcaster, subscriber = RecordBroadcaster(), Subscriber()
    with broadcaster.subscribe(subscriber):
        pass
    broadcaster.publish(record())
    assert subscriber._queue.empty()


async def received_recent_records(broadcaster: RecordBroadcaster, *, after: str = "") -> list[EncodedRecord]:
    """Return the recent records that a new subscriber receives."""
    with broadcaster.subscribe(subscriber := Subscriber(), recent=True, after=after):
        return [await subscriber.get() for _ in range(subscriber._queue.qsize())]


async def test_a_new_subscriber_may_receive_recent_records_except_samples() -> None:
    broadcaster, stop, sample, resume = RecordBroadcaster(), record(), record("sample.block"), record("event.resume")
    for encoded in (stop, sample, resume):
        broadcaster.publish(encoded)
    assert await received_recent_records(broadcaster) == [stop, resume]
    with broadcaster.subscribe(subscriber := Subscriber()):
        assert subscriber._queue.empty()


async def test_a_reconnecting_subscriber_receives_what_it_missed_or_all_recent_records() -> None:
    broadcaster, records = RecordBroadcaster(), [record() for _ in range(3)]
    for encoded in records:
        broadcaster.publish(encoded)
    assert await received_recent_records(broadcaster, after=records[1].id) == records[2:]
    assert await received_recent_records(broadcaster, after=records[2].id) == []
    assert await received_recent_records(broadcaster, after="0000000000-7") == records


async def test_recent_records_are_bounded_in_number_and_bytes() -> None:
    broadcaster, records = RecordBroadcaster(), [record() for _ in range(RECENT_RECORDS + 5)]
    for encoded in records:
        broadcaster.publish(encoded)
    assert await received_recent_records(broadcaster) == records[5:]
    broadcaster = RecordBroadcaster(recent_bytes=3 * len(records[-1].body))
    for encoded in records:
        broadcaster.publish(encoded)
    assert await received_recent_records(broadcaster) == records[-3:]
