"""The interface between a queue and the journal: which records to write, which rows to delete, and the results.

A queue never waits for a disk. The journal fetches the records to write, and reports the result later.
"""

import asyncio
from collections.abc import Sequence

from agent.delivery.delivery_state_transitions import COPIED, FINISHED, JOURNAL_REPLACED
from agent.delivery.disk_backlog import RowDeletion
from agent.delivery.drops import DropReason
from agent.delivery.memory_tail import PendingWrites
from agent.delivery.queue_state import QueueState
from agent.delivery.sizes import RowsSummary
from agent.model.record import DeliveryState, EncodedRecord

SLOW_JOURNAL_FACTOR = 4
"""A durable queue may use this multiple of its memory limit before it drops records, while the journal works but is slow.

The queue of samples may use twice its limit. All queues together may use three times `buffer_memory`.
"""


# 16 public methods: eight methods serve the journal's transactions, and share the pending writes with the others.
class QueueJournaling:
    """Moves the records of one queue between memory and the journal, within the limits of both."""

    def __init__(self, queue: QueueState) -> None:
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
        self._pending = PendingWrites()

    # For the queue.

    def write_later(self, record: EncodedRecord) -> None:
        """Schedule a record to be written by the journal."""
        self._pending.add(record)
        if self.available:
            self.dirty.set()

    def on_delivered(self, records: Sequence[EncodedRecord]) -> None:
        """Mark records as done, because the sink acknowledged or rejected them. Schedule the deletion of their rows."""
        for record in records:
            record.delivery_state = FINISHED[record.delivery_state]
        self._delete_later([record for record in records if record.row is not None])
        self._pending.discard_oldest_done()

    def resume_backlog(self) -> None:
        """Put the records that `postpone_backlog` left on disk back at the front of the backlog.

        Do nothing while the journal hangs or fails. Also do nothing while the queue has a batch in flight, records in a transaction, or
        delivered rows to delete.
        """
        if self.hangs or not self.available or self._queue.in_flight or self._pending.in_transaction:
            return
        if self._queue.backlog.resume():
            self._queue.wake_waiting_tasks()

    def _delete_later(self, journaled: Sequence[EncodedRecord]) -> None:
        if journaled:
            self._queue.backlog.schedule_deletion(journaled)
            self.dirty.set()

    def shrink_tail(self) -> None:
        """Free memory if the tail, which has the newest records, exceeds the memory limit.

        First remove journaled records from memory. Then schedule older records to be journaled. Last, drop the oldest records.
        """
        queue, tail, limit = self._queue, self._queue.tail, self._queue.limits.memory
        while tail.bytes > limit and tail and tail.records[0].row is not None:
            queue.backlog.append(tail.popleft())
        if self.available and not queue.durable and not self._pending.busy and tail.bytes > limit:
            # Write the batch in flight first, so that the rows in the journal have the order of the queue.
            for record in (*queue.in_flight, *tail.oldest_records()):
                if record.row is None:
                    self.write_later(record)
        # Give a working journal time to write. The memory of the agent must not grow while the journal fails.
        factor = SLOW_JOURNAL_FACTOR if queue.durable else 2
        limit_before_drop = factor * limit if self.available or self.opening else limit
        if tail.bytes > limit_before_drop:
            # Drop more records than needed, so that the next record does not cause another drop.
            dropped = tail.drop_oldest(tail.bytes - limit_before_drop + limit // 16)
            self._pending.discard_all_done()
            queue.count_dropped(DropReason.JOURNAL_UNAVAILABLE if queue.durable else DropReason.QUEUE_FULL, dropped)

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
        for record in queue.records_in_memory():
            record.row, record.delivery_state = None, JOURNAL_REPLACED[record.delivery_state]
        for record, row in zip(copied, copied_rows, strict=True):
            record.row, record.delivery_state = row, COPIED[record.delivery_state]
        queue.count_corrupt(queue.backlog.reset(stored, last_row, copied, copied_rows))
        self._delete_later([record for record in copied if record.done])
        unwritten = (record for record in queue.records_in_memory() if record.row is None)
        self._pending.replace_waiting(unwritten if queue.durable else ())
        queue.wake_waiting_tasks()
        if self._pending.has_waiting:
            self.dirty.set()

    def on_resumed(self) -> None:
        """Use the journal again, because its file works again."""
        self.available = True
        self.resume_backlog()
        if self._pending.has_waiting:
            self.dirty.set()

    def on_hang(self, *, hangs: bool) -> None:
        """Handle the start or the end of a hang of the journal's disk.

        The queue still uses the journal, because a slow disk must not cause dropped records.

        Args:
            hangs: whether the current operation on the disk takes too long.
        """
        self.hangs = hangs
        if hangs:
            self._queue.nonempty.set()
        else:
            self.resume_backlog()

    def postpone_backlog(self) -> None:
        """Leave the backlog on disk until the disk works again. Continue with the records in memory."""
        self._queue.backlog.postpone()
        self._queue.wake_waiting_tasks()

    # For the journal: its transactions.

    @property
    def has_waiting_writes(self) -> bool:
        """True if the journal has records to write."""
        return self._pending.has_waiting

    def write_all_later(self) -> None:
        """Schedule all records in memory to be written, even if the queue is not durable, because the agent is about to stop."""
        in_memory = self._queue.records_in_memory()
        self._pending.replace_waiting(record for record in in_memory if record.delivery_state is DeliveryState.QUEUED)

    def start_write(self) -> list[EncodedRecord]:
        """Return the records of the next transaction, oldest first. `on_committed` or `on_rolled_back` must follow."""
        return self._pending.start_transaction()

    @property
    def backlog_bytes_to_drop(self) -> int:
        """Number of bytes of the backlog that the journal should drop; 0 within the disk limit, or if no row may be dropped.

        The number is the excess and 2 % of the limit, so that the next record does not cause another drop.
        """
        limit = self._queue.limits.disk
        excess = self._queue.backlog.bytes_over_limit(limit)
        after_row, last_row = self.droppable_rows
        return excess + limit // 50 if excess > 0 and last_row > after_row else 0

    @property
    def droppable_rows(self) -> tuple[int, int]:
        """Range of backlog rows that may be deleted: the row before the range, and the last row. Rows in flight are left out."""
        backlog = self._queue.backlog
        return max([backlog.after_row, *(record.row or 0 for record in self._queue.in_flight)]), backlog.last_row

    def on_committed(self, rows: Sequence[int], deletion: RowDeletion | None) -> None:
        """Handle a transaction that the journal committed.

        Args:
            rows: the rows of the records that `start_write` returned.
            deletion: the delivered rows that the transaction deleted; None if it deleted none.
        """
        written = self._pending.commit_transaction(rows)
        self._queue.backlog.stored_size.add(written)
        self.written_records += len(written)
        if deletion is not None:
            self._queue.backlog.on_deleted(deletion)
        self._delete_later([record for record in written if record.done])
        self._pending.discard_oldest_done()
        self._shrink_tail_if_full()
        self.resume_backlog()
        if self._pending.has_waiting or self._queue.backlog.has_deletions or self.backlog_bytes_to_drop:
            self.dirty.set()
        self._queue.nonempty.set()

    def on_rolled_back(self, *, available: bool) -> None:
        """Handle a failure of the journal. Records of a transaction that was rolled back wait for the next transaction.

        Args:
            available: whether the journal still works.
        """
        self._pending.fail_transaction()
        self.available, self.opening = available, False
        self._queue.nonempty.set()
        self._pending.discard_oldest_done()
        self._shrink_tail_if_full()

    def on_trimmed(self, deleted: RowsSummary, last_row: int) -> None:
        """Handle the deletion of the oldest rows of the backlog, because the disk limit was reached or the disk was full.

        Args:
            deleted: summary of the deleted rows.
            last_row: the last deleted row.
        """
        self._queue.backlog.on_trimmed(deleted, last_row)
        self._queue.wake_waiting_tasks()
        self._queue.count_deleted(deleted)

    def _shrink_tail_if_full(self) -> None:
        if self._queue.tail.bytes > self._queue.limits.memory:
            self.shrink_tail()
