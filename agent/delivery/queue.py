"""Queues of records that wait for delivery. The newest records are in memory; those that do not fit there are in the journal.

A queue has three parts, oldest first: the batch in flight, the backlog that is only on disk, and the tail in memory. Memory and disk have
a limit each. A durable queue has every record journaled; another queue only those that its tail cannot hold. A queue never waits for a
disk: the journal fetches the records to write, and reports when they are written.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from agent.delivery.backlog import Deletion, DiskBacklog
from agent.delivery.drops import DROP_REPORT_TYPE, DropLedger, DropReason
from agent.delivery.memory import MemoryTail, PendingWrites
from agent.delivery.sizes import QueueContents, size_of
from agent.delivery.transitions import COPIED, FINISHED, JOURNAL_REPLACED
from agent.model.record import EncodedRecord, RecordState


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a queue may hold.

    Attributes:
        memory: bytes in memory.
        disk: bytes in the journal.
    """

    memory: int
    disk: int


class RecordQueue:
    """One queue of records; `agent.delivery.transitions` has the states of a record.

    The methods are in three groups: for the producers of records, for the sender, and for the journal.
    """

    def __init__(
        self, name: str, limits: QueueLimits, drops: DropLedger, *, durable: bool, linger_seconds: float = 0.0
    ) -> None:
        self.name = name
        self.limits = limits
        self.durable = durable
        """True if every record is journaled, not only what memory cannot hold."""
        self.linger_seconds = linger_seconds
        """How long a record may wait for others, so that they share a batch."""
        self.in_flight: Sequence[EncodedRecord] = ()
        """The batch that is being sent. Its records may be in the journal too."""
        self.sent_at = 0.0
        """Time.monotonic when the batch in flight was handed to the sink."""
        self.backlog = DiskBacklog()
        self.tail = MemoryTail()
        self.has_journal = False
        """True while the journal works. Without a journal, the queue is in memory only."""
        self.journal_hangs = False
        """True while a call to the journal's disk takes too long. Alerts do not wait for the journal meanwhile."""
        self.journaled = 0
        """Records written to the journal since the start."""
        self.dirty = asyncio.Event()
        """Set when the journal has something to write or to delete."""
        self._writes = PendingWrites()
        self._drops = drops
        self._nonempty = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._ending = asyncio.Event()

    def __len__(self) -> int:
        return len(self.in_flight) + self.backlog.waiting.records + len(self.tail)

    @property
    def memory_bytes(self) -> int:
        """Bytes of records in memory."""
        return self.tail.bytes + size_of(self.in_flight)

    def oldest_age_seconds(self) -> float:
        """Return the age of the oldest record in flight; 0 if none is in flight."""
        return max(0.0, time.time() - self.in_flight[0].time_ns / 1e9) if self.in_flight else 0.0

    def silent_seconds(self, now: float) -> float:
        """Return how long the batch in flight has waited for the sink, by time.monotonic; 0 if none is in flight."""
        return now - self.sent_at if self.in_flight else 0.0

    # For the producers of records.

    def put(self, record: EncodedRecord) -> None:
        """Append a record. Never waits."""
        self.put_all((record,))

    def put_all(self, records: Sequence[EncodedRecord]) -> None:
        """Append records, oldest first. Never waits."""
        was_empty = not self.tail
        self.tail.extend(records)
        if self.durable:
            for record in records:
                self._write_later(record)
        if self.tail.bytes > self.limits.memory:
            self._shrink_tail()
            self._update_events()
        elif was_empty:  # with earlier records, the events are set already
            self._update_events()

    def _update_events(self) -> None:
        """Wake those who wait for the queue to have records, or to be empty."""
        if self.in_flight or self.backlog or self.tail:
            self._nonempty.set()
            self._empty.clear()
        else:
            self._empty.set()

    def _write_later(self, record: EncodedRecord) -> None:
        self._writes.add(record)
        if self.has_journal:
            self.dirty.set()

    def write_all(self) -> None:
        """Have the journal write all records in memory, even if the queue is not durable: the agent is about to stop."""
        memory = (*self.in_flight, *self.tail.records)
        self._writes.replace(record for record in memory if record.state is RecordState.QUEUED)

    def _shrink_tail(self) -> None:
        """Bring the tail back under its limit: remove journaled records from memory, have others journaled, or drop some."""
        tail, limit = self.tail, self.limits.memory
        while tail.bytes > limit and tail and tail.records[0].row is not None:
            self.backlog.append(tail.popleft())
        if self.has_journal and not self.durable and not self._writes.busy and tail.bytes > limit:
            # Write the batch in flight first: otherwise it would follow the backlog after a restart.
            for record in (*self.in_flight, *tail.older_half()):
                if record.row is None:
                    self._write_later(record)
        # A journal that works gets time to catch up. One that hangs must not make the agent's memory grow.
        most = 2 * limit if self.has_journal else limit
        if tail.bytes > most:
            dropped = tail.drop_oldest(
                tail.bytes - most + limit // 16
            )  # more than needed: otherwise each new record would drop one
            self._writes.discard_dropped()
            self._dropped(DropReason.JOURNAL_UNAVAILABLE if self.durable else DropReason.QUEUE_FULL, dropped)

    def _dropped(self, reason: DropReason, records: Sequence[EncodedRecord]) -> None:
        self._drops.add_records(self.name, reason, records, time.monotonic())
        self._drops.restore_unreported(record.body for record in records if record.type == DROP_REPORT_TYPE)

    def _corrupt(self, records: int) -> None:
        self._drops.add(self.name, DropReason.CORRUPT, records, 0, 0, time.monotonic())

    # For the sender.

    def _is_held(self, record: EncodedRecord) -> bool:
        """Return whether the journal has to write a record before it is sent."""
        return record.note is not None and record.row is None and self.has_journal and not self.journal_hangs

    async def wait_nonempty(self) -> None:
        """Wait until there is a record to send."""
        while not (self.in_flight or self.backlog or (self.tail and not self._is_held(self.tail.records[0]))):
            self._nonempty.clear()
            await self._nonempty.wait()

    async def linger(self, records: int, size: int) -> None:
        """Wait `linger_seconds` for more records; stop earlier at this number of records or bytes, or if the agent stops."""
        if self.linger_seconds and len(self) < records and self.tail.bytes < size:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.linger_seconds):
                    await self._ending.wait()

    def stop_lingering(self) -> None:
        """End the wait of `linger`, and make later calls of it return at once."""
        self._ending.set()

    def take_from_memory(self, records: int, size: int) -> None:
        """Put the oldest records of the tail in flight. There must be no backlog.

        Args:
            records: how many at most.
            size: bytes of bodies at most; the first record is taken whatever its size.
        """
        assert not self.in_flight
        assert not self.backlog
        batch: list[EncodedRecord] = []
        taken = 0
        for record in islice(self.tail.records, records):
            taken += len(record.body)
            if (batch and taken > size) or self._is_held(record):
                break
            batch.append(record)
        self.tail.remove_first(batch)
        self.in_flight = batch

    def take_from_disk(self, records: Sequence[EncodedRecord], corrupt: int, last_row: int) -> None:
        """Put records in flight that were read from the backlog.

        Args:
            records: the intact records.
            corrupt: how many rows had a wrong checksum.
            last_row: the last row that was read.
        """
        assert not self.in_flight
        self.in_flight, missing = self.backlog.take(records, corrupt, last_row)
        self._corrupt(missing)
        self._update_events()

    def ack(self) -> None:
        """Remove the batch in flight: the sink has acknowledged or rejected each of its records."""
        for record in self.in_flight:
            record.state = FINISHED[record.state]
        self._delete_later([record for record in self.in_flight if record.row is not None])
        self.in_flight = ()
        self._writes.discard_done()
        self._update_events()

    def _delete_later(self, journaled: Sequence[EncodedRecord]) -> None:
        if journaled:
            self.backlog.mark_deletable(journaled)
            self.dirty.set()

    async def drained(self) -> None:
        """Wait until every record is delivered."""
        await self._empty.wait()

    def drop_remaining(self) -> None:
        """Drop the records that are neither delivered nor journaled: the agent stops."""
        lost = [record for record in (*self.in_flight, *self.tail.records) if record.row is None and not record.done]
        for record in lost:
            record.state = FINISHED[record.state]
        self._dropped(DropReason.SHUTDOWN, lost)

    # For the journal.

    def journal_opened(
        self,
        contents: QueueContents,
        last_row: int,
        copied: Sequence[EncodedRecord] = (),
        rows: Sequence[int] = (),
    ) -> None:
        """Use the contents of a newly opened journal file as the backlog.

        The records in memory follow the backlog, and are written again.

        Args:
            contents: summary of this queue's rows in the file.
            last_row: the last row of the file.
            copied: records that were in flight when the file was made, and were copied into it.
            rows: their rows in the file.
        """
        self.has_journal = True
        for record in (*self.in_flight, *self.tail.records):
            record.row, record.state = None, JOURNAL_REPLACED[record.state]
        for record, row in zip(copied, rows, strict=True):
            record.row, record.state = row, COPIED[record.state]
        self._corrupt(self.backlog.reset(contents, last_row, copied, rows))
        self._delete_later([record for record in copied if record.done])
        unwritten = (record for record in (*self.in_flight, *self.tail.records) if record.row is None)
        self._writes.replace(unwritten if self.durable else ())
        self._update_events()
        if self._writes:
            self.dirty.set()

    def set_journal_hangs(self, *, hangs: bool) -> None:
        """Note whether a call to the journal's disk takes too long. The journal is still in use: a slow disk must not cost records."""
        self.journal_hangs = hangs
        if hangs:
            self._nonempty.set()

    def journal_resumed(self) -> None:
        """Use the journal again: its file works again."""
        self.has_journal = True
        if self._writes:
            self.dirty.set()

    def skip_backlog(self) -> None:
        """Continue with the records in memory. The backlog cannot be read now; it is delivered after the next start."""
        self.backlog.skip()
        self._update_events()

    @property
    def has_writes(self) -> bool:
        """True if the journal has something to write."""
        return bool(self._writes)

    def start_write(self) -> list[EncodedRecord]:
        """Return the records to write next, in order; `write_committed` or `write_failed` must follow."""
        return self._writes.start()

    @property
    def excess_bytes(self) -> int:
        """Bytes of the backlog to be dropped; 0 if it is within its limit.

        It is more than the excess: otherwise each new record would drop one.
        """
        excess = self.backlog.excess(self.limits.disk)
        after, through = self.droppable_rows
        return excess + self.limits.disk // 50 if excess > 0 and through > after else 0

    @property
    def droppable_rows(self) -> tuple[int, int]:
        """The rows of the backlog that are not in flight: after the first, up to and including the second."""
        return max([self.backlog.after_row, *(record.row or 0 for record in self.in_flight)]), self.backlog.last_row

    def write_committed(self, rows: Sequence[int], deletion: Deletion | None) -> None:
        """Report that the journal committed a transaction.

        Args:
            rows: the rows of the records that `start_write` returned.
            deletion: the delivered rows that the transaction deleted; None if it deleted none.
        """
        written = self._writes.commit(rows)
        self.backlog.stored.add(written)
        self.journaled += len(written)
        if deletion is not None:
            self.backlog.deleted(deletion)
        self._delete_later([record for record in written if record.done])
        self._writes.discard_done()
        if self.tail.bytes > self.limits.memory:
            self._shrink_tail()
        if self._writes or self.excess_bytes:
            self.dirty.set()
        self._nonempty.set()

    def write_failed(self, *, has_journal: bool) -> None:
        """Report that the journal failed, and that its transaction was rolled back.

        Args:
            has_journal: whether the journal still works.
        """
        self._writes.fail()
        self.has_journal = has_journal
        self._nonempty.set()
        self._writes.discard_done()
        if self.tail.bytes > self.limits.memory:
            self._shrink_tail()

    def backlog_dropped(self, contents: QueueContents, last_row: int) -> None:
        """Report that the oldest records of the backlog were deleted, because the limit was reached or the disk was full.

        Args:
            contents: summary of the deleted rows.
            last_row: the last deleted row.
        """
        self.backlog.drop(contents, last_row)
        self._update_events()
        times = contents.first_ns, contents.last_ns
        self._drops.add(self.name, DropReason.QUEUE_FULL, contents.records, *times, time.monotonic())
        self._drops.restore_unreported(contents.drop_reports)
