"""The interface between a queue and the journal: which records to write, which rows to delete, and the results.

A queue never waits for a disk. The journal fetches the records to write, and reports the result later.
"""

import asyncio
from collections.abc import Sequence

from agent.delivery.disk_backlog import RowDeletion
from agent.delivery.drops import DropReason
from agent.delivery.memory_tail import PendingJournalWrites
from agent.delivery.queue_contents import QueueContents
from agent.delivery.record_state_machine import COPIED, FINISHED, JOURNAL_REPLACED
from agent.delivery.sizes import RowsSummary
from agent.model.record import EncodedRecord, RecordDeliveryState

SLOW_JOURNAL_FACTOR = 4
"""A durable queue may use this multiple of its memory limit before it drops records, while the journal works but is slow.

The queue of samples may use twice its limit. All queues together may use three times `buffer_memory`.
"""


# 16 public methods: eight methods serve the journal's transactions, and share the pending writes with the others.
class QueueJournaling:
    """Moves the records of one queue between memory and the journal, within the limits of both."""

    def __init__(self, queue: QueueContents) -> None:
        self.available = False
        """True while the journal works. While False, all new records stay in memory."""
        self.opening = queue.durable
        """True until the first attempt to open the journal's file has ended. Always False for a queue that is not durable."""
        self.hangs = False
        """True while an operation on the journal's disk takes too long. During this time, alerts are sent before they are journaled."""
        self.written_records = 0
        """Number of records written to the journal since the start."""
        self.dirty = asyncio.Event()
        """Set when the journal has records to write or rows to delete."""
        self._queue = queue
        self._pending = PendingJournalWrites()

    # For the queue.

    def schedule_write(self, record: EncodedRecord) -> None:
        """Schedule a record to be written by the journal."""
        self._pending.add(record)
        if self.available:
            self.dirty.set()

    def on_delivered(self, records: Sequence[EncodedRecord]) -> None:
        """Mark records as done, because the sink acknowledged or rejected them. Schedule the deletion of their rows."""
        for record in records:
            record.delivery_state = FINISHED[record.delivery_state]
        self._schedule_deletion([record for record in records if record.row is not None])
        self._pending.remove_leading_delivered_or_dropped()

    def put_back_postponed_records(self) -> None:
        """Put the records that `postpone_unreadable_backlog` left on disk back at the front of the backlog.

        Do nothing while the journal hangs or fails. Also do nothing while the queue has a batch in flight, records in a transaction, or
        delivered rows to delete.
        """
        if self.hangs or not self.available or self._queue.in_flight or self._pending.has_open_transaction:
            return
        if self._queue.backlog.put_back_postponed_records():
            self._queue.wake_waiting_tasks()

    def _schedule_deletion(self, journaled: Sequence[EncodedRecord]) -> None:
        if journaled:
            self._queue.backlog.schedule_deletion(journaled)
            self.dirty.set()

    def enforce_memory_limit(self) -> None:
        """Free memory if the tail, which has the newest records, exceeds the memory limit.

        First remove journaled records from memory. Then schedule older records to be journaled. Last, drop the oldest records.
        """
        queue, tail, limit = self._queue, self._queue.tail, self._queue.limits.memory
        while tail.bytes > limit and tail and tail.records[0].row is not None:
            queue.backlog.append(tail.popleft())
        if self.available and not queue.durable and not self._pending.has_unwritten_records and tail.bytes > limit:
            # Write the batch in flight first, so that the rows in the journal have the order of the queue.
            for record in (*queue.in_flight, *tail.iter_oldest_half()):
                if record.row is None:
                    self.schedule_write(record)
        # Give a working journal time to write. The memory of the agent must not grow while the journal fails.
        factor = SLOW_JOURNAL_FACTOR if queue.durable else 2
        limit_before_drop = factor * limit if self.available or self.opening else limit
        if tail.bytes > limit_before_drop:
            # Drop more records than needed, so that the next record does not cause another drop.
            dropped = tail.drop_oldest(tail.bytes - limit_before_drop + limit // 16)
            self._pending.remove_all_delivered_or_dropped()
            queue.count_dropped_from_memory(
                DropReason.JOURNAL_UNAVAILABLE if queue.durable else DropReason.QUEUE_FULL, dropped
            )

    # For the journal: its file.

    def on_opened(
        self,
        stored: RowsSummary,
        last_row: int,
        copied: Sequence[EncodedRecord] = (),
        copied_rows: Sequence[int] = (),
    ) -> None:
        """Use the rows of a newly opened journal file as the backlog. The backlog precedes the records in memory.

        A durable queue also writes the records in memory to the new file.

        Args:
            stored: summary of this queue's rows in the file.
            last_row: the last row of the file.
            copied: records in flight that were copied into the file when it was created.
            copied_rows: the rows of `copied` in the file.
        """
        queue = self._queue
        self.available, self.opening = True, False
        for record in queue.iter_records_in_memory():
            record.row, record.delivery_state = None, JOURNAL_REPLACED[record.delivery_state]
        for record, row in zip(copied, copied_rows, strict=True):
            record.row, record.delivery_state = row, COPIED[record.delivery_state]
        queue.count_corrupt(queue.backlog.reset_to_journal_rows(stored, last_row, copied, copied_rows))
        self._schedule_deletion([record for record in copied if record.is_delivered_or_dropped])
        unwritten = (record for record in queue.iter_records_in_memory() if record.row is None)
        self._pending.replace_waiting_records(unwritten if queue.durable else ())
        queue.wake_waiting_tasks()
        if self._pending.has_waiting:
            self.dirty.set()

    def on_journal_works_again(self) -> None:
        """Use the journal again, because its file works again."""
        self.available = True
        self.put_back_postponed_records()
        if self._pending.has_waiting:
            self.dirty.set()

    def on_disk_hang_changed(self, *, hangs: bool) -> None:
        """Handle the start or the end of a hang of the journal's disk.

        The queue still uses the journal, because a slow disk must not cause dropped records.

        Args:
            hangs: whether the current operation on the disk takes too long.
        """
        self.hangs = hangs
        if hangs:
            self._queue.nonempty.set()
        else:
            self.put_back_postponed_records()

    def postpone_unreadable_backlog(self) -> None:
        """Leave the backlog on disk until the disk works again. Continue with the records in memory."""
        self._queue.backlog.postpone_all_records()
        self._queue.wake_waiting_tasks()

    # For the journal: its transactions.

    @property
    def has_waiting_writes(self) -> bool:
        """True if the journal has records to write."""
        return self._pending.has_waiting

    def schedule_all_writes(self) -> None:
        """Schedule all records in memory to be written, even if the queue is not durable, because the agent is about to stop."""
        in_memory = self._queue.iter_records_in_memory()
        self._pending.replace_waiting_records(
            record for record in in_memory if record.delivery_state is RecordDeliveryState.QUEUED
        )

    def take_records_for_transaction(self) -> list[EncodedRecord]:
        """Return the records of the next transaction, oldest first. `on_committed` or `on_journal_failed` must follow."""
        return self._pending.take_records_for_transaction()

    @property
    def backlog_bytes_to_drop(self) -> int:
        """Number of bytes of the backlog that the journal should drop; 0 within the disk limit, or if no row may be dropped.

        The number is the excess plus 2 % of the limit, so that the next record does not cause another drop.
        """
        limit = self._queue.limits.disk
        excess = self._queue.backlog.bytes_over_limit(limit)
        after_row, last_row = self.droppable_row_range
        return excess + limit // 50 if excess > 0 and last_row > after_row else 0

    @property
    def droppable_row_range(self) -> tuple[int, int]:
        """Range of backlog rows that may be deleted: the row before the range, and the last row. Rows in flight are left out."""
        backlog = self._queue.backlog
        return max([backlog.after_row, *(record.row or 0 for record in self._queue.in_flight)]), backlog.last_row

    def on_committed(self, rows: Sequence[int], deletion: RowDeletion | None) -> None:
        """Handle a transaction that the journal committed.

        Args:
            rows: the rows of the records that `take_records_for_transaction` returned, in the same order.
            deletion: the delivered rows that the transaction deleted; None if it deleted none.
        """
        written = self._pending.on_transaction_committed(rows)
        self._queue.backlog.stored_size.add_records(written)
        self.written_records += len(written)
        if deletion is not None:
            self._queue.backlog.on_delivered_rows_deleted(deletion)
        self._schedule_deletion([record for record in written if record.is_delivered_or_dropped])
        self._pending.remove_leading_delivered_or_dropped()
        self._enforce_limit_if_exceeded()
        self.put_back_postponed_records()
        if self._pending.has_waiting or self._queue.backlog.has_deletions or self.backlog_bytes_to_drop:
            self.dirty.set()
        self._queue.nonempty.set()

    def on_journal_failed(self, *, available: bool) -> None:
        """Handle a failure of the journal. Records of a transaction that was rolled back wait for the next transaction.

        Args:
            available: whether the journal still works.
        """
        self._pending.on_transaction_failed()
        self.available, self.opening = available, False
        self._queue.nonempty.set()
        self._pending.remove_leading_delivered_or_dropped()
        self._enforce_limit_if_exceeded()

    def on_trimmed(self, deleted: RowsSummary, last_row: int) -> None:
        """Handle the deletion of the oldest rows of the backlog, because the disk limit was reached or the disk was full.

        Args:
            deleted: summary of the deleted rows.
            last_row: the last deleted row.
        """
        self._queue.backlog.on_trimmed(deleted, last_row)
        self._queue.wake_waiting_tasks()
        self._queue.count_dropped_from_disk(deleted)

    def _enforce_limit_if_exceeded(self) -> None:
        if self._queue.tail.bytes > self._queue.limits.memory:
            self.enforce_memory_limit()
