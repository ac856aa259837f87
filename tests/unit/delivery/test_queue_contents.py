"""Parts of a queue by themselves: batches, ages, drops, and the rows that are deleted from the journal."""

import logging
from collections.abc import Iterable

import orjson
import pytest

from agent.delivery.disk_backlog import DiskBacklog
from agent.delivery.drops import LOG_INTERVAL_SECONDS, DropLedger, DropReason
from agent.delivery.memory_tail import MemoryTail
from agent.delivery.queue import RecordQueue
from agent.delivery.queue_contents import QueueLimits
from agent.delivery.sizes import RowsSummary
from agent.model.record import EncodedRecord, RecordDeliveryState
from tests.lab.scripted_sink import START_NS, RecordSource


def memory_queue(records: Iterable[EncodedRecord]) -> RecordQueue:
    queue = RecordQueue("samples", QueueLimits(1 << 20, 1 << 20), DropLedger(), durable=False)
    queue.put_all(list(records))
    return queue


def journaled(count: int) -> list[EncodedRecord]:
    records = list(RecordSource().take(count))
    for row, record in enumerate(records, 1):
        record.row, record.delivery_state = row, RecordDeliveryState.JOURNALED
    return records


# --- Batches in flight ---


def test_a_batch_is_filled_up_to_its_limit_of_bytes() -> None:
    records = list(RecordSource().take(4))
    queue = memory_queue(records)
    queue.take_from_memory(10, sum(len(record.body) for record in records[:2]))
    assert queue.in_flight == records[:2]
    queue.ack()
    queue.take_from_memory(10, 1)
    assert queue.in_flight == records[2:3], "the first record is taken even if it is larger"


def test_the_last_delivered_record_is_the_newest_of_the_acknowledged_batch() -> None:
    queue = memory_queue(records := list(RecordSource().take(3)))
    queue.ack()
    assert queue.last_delivered_id == ""
    queue.take_from_memory(2, 1 << 20)
    assert queue.last_delivered_id == ""
    queue.ack()
    queue.ack()
    assert queue.last_delivered_id == records[1].id


def test_the_oldest_waiting_record_is_in_flight_or_on_disk_or_first_in_memory() -> None:
    queue = memory_queue(RecordSource().take(3))
    assert queue.oldest_record_time_ns() == START_NS
    queue.take_from_memory(1, 1 << 20)
    assert queue.oldest_record_time_ns() == START_NS
    queue.ack()
    assert queue.oldest_record_time_ns() == START_NS + 1
    queue.backlog.append(journaled(1)[0])
    assert queue.oldest_record_time_ns() == START_NS
    assert memory_queue([]).oldest_record_time_ns() is None


def test_the_oldest_record_of_a_backlog_is_known_without_reading_it() -> None:
    backlog, records = DiskBacklog(), journaled(5)
    for record in records[:4]:
        backlog.append(record)
    assert backlog.oldest_ns == records[0].time_ns
    backlog.on_read(records[:2], 0, last_read_row=2)
    assert backlog.oldest_ns == records[1].time_ns, "the next one is not older"
    deleted = RowsSummary()
    deleted.add_records_of_type(
        records[2].type, 1, records[2].bytes_with_overhead, records[2].time_ns, records[2].time_ns
    )
    backlog.on_trimmed(deleted, last_row=3)
    assert backlog.oldest_ns == records[2].time_ns
    backlog.on_read(records[3:4], 0, last_read_row=4)
    backlog.append(records[4])
    assert backlog.oldest_ns == records[4].time_ns


def test_postponed_records_are_the_oldest_until_they_are_delivered() -> None:
    backlog, records = DiskBacklog(), journaled(4)
    for record in records[:2]:
        backlog.append(record)
    backlog.postpone_all_records()
    backlog.append(records[2])
    backlog.append(records[3])
    backlog.on_read(records[2:], 0, last_read_row=4)
    assert backlog.oldest_ns == records[0].time_ns
    assert backlog.put_back_postponed_records()
    assert backlog.oldest_ns == records[0].time_ns
    backlog.on_read(records[:2], 0, last_read_row=4)
    assert backlog.oldest_ns is None


def test_the_oldest_record_of_a_new_journal_file_follows_those_in_flight() -> None:
    backlog, records = DiskBacklog(), journaled(3)
    stored = RowsSummary()
    stored.add_records_of_type(
        records[0].type, 3, sum(record.bytes_with_overhead for record in records), START_NS, START_NS + 2
    )
    backlog.reset_to_journal_rows(stored, 3, [], [])
    assert backlog.oldest_ns == START_NS
    backlog.reset_to_journal_rows(stored, 3, records[:2], [1, 2])
    assert backlog.oldest_ns == records[1].time_ns


def test_only_a_batch_in_flight_waits_for_the_sink() -> None:
    queue = memory_queue(RecordSource().take(1))
    queue.sent_at = 5.0
    assert queue.batch_in_flight_seconds(7.0) == 0.0
    queue.take_from_memory(1, 1 << 20)
    assert queue.batch_in_flight_seconds(7.0) == 2.0


def test_the_age_of_the_oldest_record_is_never_negative() -> None:
    queue = memory_queue(RecordSource().take(1))
    queue.tail.records[0].time_ns = 0
    assert queue.oldest_record_age_seconds() > 1e9, "it is in memory"
    queue.take_from_memory(1, 1 << 20)
    assert queue.oldest_record_age_seconds() > 1e9
    queue.in_flight[0].time_ns = 1 << 62
    assert queue.oldest_record_age_seconds() == 0.0, "the clock was set back"
    queue.ack()
    assert queue.oldest_record_age_seconds() == 0.0, "no record waits"


# --- The tail in memory ---


def test_the_oldest_records_are_dropped_but_not_those_that_the_journal_has_or_writes() -> None:
    records = list(RecordSource().take(6))
    records[0].delivery_state, records[1].delivery_state = RecordDeliveryState.JOURNALED, RecordDeliveryState.WRITING
    tail = MemoryTail()
    tail.extend(records)
    assert tail.drop_oldest(records[2].bytes_with_overhead + 1) == records[2:4]
    assert list(tail.records) == [*records[:2], *records[4:]]
    assert tail.bytes == sum(record.bytes_with_overhead for record in tail.records)
    assert [record.is_delivered_or_dropped for record in records] == [False, False, True, True, False, False]
    assert tail.drop_oldest(0) == []


# --- Rows in the journal ---


def test_delivered_rows_do_not_count_against_the_limit() -> None:
    backlog, records = DiskBacklog(), journaled(3)
    backlog.stored_size.add_records(records)
    assert backlog.bytes_over_limit(100) == sum(record.bytes_with_overhead for record in records) - 100
    backlog.schedule_deletion(records[1:])
    backlog.schedule_deletion(records[:1])
    assert backlog.bytes_over_limit(100) == -100
    deletion = backlog.next_deletion()
    assert deletion is not None
    assert (deletion.after_row, deletion.last_row, deletion.size.records) == (0, 3, 3)
    backlog.on_delivered_rows_deleted(deletion)
    assert (backlog.stored_size.records, backlog.stored_size.bytes, backlog.has_deletions) == (0, 0, False)


def test_a_backlog_that_has_advanced_does_not_go_back_when_older_rows_are_deleted() -> None:
    backlog = DiskBacklog()
    for record in journaled(5):
        backlog.append(record)
    backlog.on_read(journaled(5)[:3], 0, last_read_row=3)
    backlog.on_trimmed(RowsSummary(), last_row=2)
    assert (backlog.after_row, backlog.last_row, backlog.size.records) == (3, 5, 2)


@pytest.mark.parametrize(("stored", "lost"), [(2, 3), (5, 0), (7, 0)])
def test_records_of_the_backlog_that_a_new_journal_file_lacks_are_counted(stored: int, lost: int) -> None:
    backlog = DiskBacklog()
    for record in journaled(5):
        backlog.append(record)
    assert backlog.reset_to_journal_rows(RowsSummary(records=stored), 9, [], []) == lost


# --- Drops ---


def test_a_flood_of_drops_is_logged_once_per_interval_with_its_sum(caplog: pytest.LogCaptureFixture) -> None:
    ledger = DropLedger()
    with caplog.at_level(logging.WARNING):
        for now, records in ((0.0, 1), (LOG_INTERVAL_SECONDS - 1, 2), (LOG_INTERVAL_SECONDS, 3)):
            ledger.add("events", DropReason.QUEUE_FULL, records, 1, 1, now)
    assert [record.args for record in caplog.records] == [("events", 1, "queue_full"), ("events", 5, "queue_full")]
    assert ledger.totals == {("events", "queue_full"): 6}


def test_drops_of_several_queues_and_reasons_are_logged_separately(caplog: pytest.LogCaptureFixture) -> None:
    ledger = DropLedger()
    with caplog.at_level(logging.WARNING):
        ledger.add("events", DropReason.REJECTED, 1, 1, 1, 0.0)
        ledger.add("samples", DropReason.QUEUE_FULL, 1000, 1, 1, 1.0)
        ledger.add("events", DropReason.REJECTED, 2, 1, 1, LOG_INTERVAL_SECONDS)
    assert [record.args for record in caplog.records[1:]] == [
        ("samples", 1000, "queue_full"),
        ("events", 2, "rejected"),
    ]


def test_no_drop_is_no_report() -> None:
    ledger = DropLedger()
    ledger.add("events", DropReason.CORRUPT, 0, 0, 0, 0.0)
    assert (ledger.totals, ledger.has_unreported) == ({}, False)


def test_drops_whose_report_was_dropped_are_reported_again_with_their_times() -> None:
    ledger = DropLedger()
    ledger.add("events", DropReason.QUEUE_FULL, 4, START_NS, START_NS + 10**9, 0.0)
    (report,) = ledger.pop_unreported()
    bodies = [b"{", b"[]", b'{"data": 5}', b'{"data": {"reason": "x"}}', orjson.dumps({"data": report.data()})]
    ledger.on_reports_dropped(bodies)
    (again,) = ledger.pop_unreported()
    assert (again.queue, again.reason, again.records) == ("events", "queue_full", 4)
    assert (again.first_ns / 1e9, again.last_ns / 1e9) == (START_NS / 1e9, START_NS / 1e9 + 1)
    assert ledger.pop_unreported() == []


@pytest.mark.parametrize("entry", [None, 5, {"a": 1}, [5], [{"unknown": 1}], [None]])
def test_a_damaged_entry_of_drops_is_ignored(entry: object) -> None:
    ledger = DropLedger()
    ledger.restore_stored_drops(entry)
    assert not ledger.has_unreported
