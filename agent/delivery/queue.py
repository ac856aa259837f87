"""Queues of records that wait for delivery. Components put records in, and the sender takes batches out.

A queue has a limit for its memory and a limit for its disk space. The journal stores every record of a durable queue. The
journal stores a record of another queue only if the record does not fit into memory.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from itertools import islice

from agent.delivery.drops import DropLedger, DropReason
from agent.delivery.queue_contents import QueueContents, QueueLimits
from agent.delivery.queue_journaling import QueueJournaling
from agent.delivery.record_state_machine import FINISHED
from agent.model.record import EncodedRecord


class RecordQueue(QueueContents):
    """A queue of records. `agent.delivery.record_state_machine` defines the states of a record."""

    def __init__(
        self,
        name: str,
        limits: QueueLimits,
        drops: DropLedger,
        *,
        durable: bool,
        linger_seconds: float = 0.0,
        backlog_seconds: float = 60.0,
    ) -> None:
        """Set up an empty queue.

        Args:
            name: name of the queue in metrics, log lines and the journal.
            limits: maximum bytes in memory and on disk.
            drops: counts the dropped records.
            durable: whether every record is journaled.
            linger_seconds: how long a record may wait for more records, so that batches are larger.
            backlog_seconds: how long records in memory wait for older records, if the disk with the older records hangs or fails.
        """
        super().__init__(name, limits, drops, durable=durable)
        self.linger_seconds = linger_seconds
        self.backlog_seconds = backlog_seconds
        self.sent_at = 0.0
        """When the batch in flight was passed to the sink, by time.monotonic."""
        self.last_delivered_id = ""
        """Id of the last record that the sink has acknowledged or rejected; empty if there is no such record."""
        self.journaling = QueueJournaling(self)
        self._stopping = asyncio.Event()

    # For the producers of records.

    def put(self, record: EncodedRecord) -> None:
        """Append a record. Never waits."""
        was_empty = not self.tail.records
        self.tail.append(record)
        if self.durable:
            self.journaling.schedule_write(record)
        self._on_appended(was_empty=was_empty)

    def put_all(self, records: Sequence[EncodedRecord]) -> None:
        """Append records, oldest first. Never waits."""
        was_empty = not self.tail
        self.tail.extend(records)
        if self.durable:
            for record in records:
                self.journaling.schedule_write(record)
        self._on_appended(was_empty=was_empty)

    def _on_appended(self, *, was_empty: bool) -> None:
        """Enforce the memory limit and wake the sender, after records were appended."""
        if self.tail.bytes > self.limits.memory:
            self.journaling.enforce_memory_limit()
            self.wake_waiting_tasks()
        elif was_empty:  # if the tail was not empty, `nonempty` is already set, and `empty` cleared
            self.wake_waiting_tasks()

    # For the sender.

    def _waits_for_journal(self, record: EncodedRecord) -> bool:
        """Return whether the journal has to write a record before the record is sent."""
        journaling = self.journaling
        return (
            record.persistent_entry is not None and record.row is None and journaling.available and not journaling.hangs
        )

    async def wait_nonempty(self) -> None:
        """Wait until there is a record to send."""
        while not (self.in_flight or self.backlog or (self.tail and not self._waits_for_journal(self.tail.records[0]))):
            self.nonempty.clear()
            await self.nonempty.wait()

    async def linger(self, max_records: int, max_bytes: int) -> None:
        """Wait `linger_seconds` for more records. Return at once if a batch is full already, and early after `stop_lingering`.

        Args:
            max_records: maximum number of records in a batch.
            max_bytes: maximum bytes of a batch.
        """
        if self.linger_seconds and len(self) < max_records and self.tail.bytes < max_bytes:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.linger_seconds):
                    await self._stopping.wait()

    def stop_lingering(self) -> None:
        """End the current call of `linger`, and make later calls return immediately."""
        self._stopping.set()

    def take_from_memory(self, max_records: int, max_bytes: int) -> None:
        """Take the oldest records of the tail, and put them in flight. There must be no backlog.

        Args:
            max_records: maximum number of records.
            max_bytes: maximum bytes of the bodies. The first record is taken even if it is larger.
        """
        assert not self.in_flight
        assert not self.backlog
        batch: list[EncodedRecord] = []
        batch_bytes = 0
        for record in islice(self.tail.records, max_records):
            batch_bytes += len(record.body)
            if (batch and batch_bytes > max_bytes) or self._waits_for_journal(record):
                break
            batch.append(record)
        self.tail.remove_oldest_batch(batch)
        self.in_flight = batch

    def take_from_disk(self, records: Sequence[EncodedRecord], corrupt: int, last_read_row: int) -> None:
        """Put the records that the journal has just read in flight, and remove their rows from the backlog.

        Args:
            records: the intact records, oldest first.
            corrupt: how many rows had a wrong checksum.
            last_read_row: the last row that was read.
        """
        assert not self.in_flight
        self.in_flight, lost = self.backlog.on_read(records, corrupt, last_read_row)
        self.count_corrupt(lost)
        self.wake_waiting_tasks()

    def ack(self) -> None:
        """Remove the batch in flight, after the sink has acknowledged or rejected each of its records."""
        if self.in_flight:
            self.last_delivered_id = self.in_flight[-1].id
        self.journaling.on_delivered(self.in_flight)
        self.in_flight = ()
        self.journaling.put_back_postponed_records()
        self.wake_waiting_tasks()

    # For the shutdown of the agent, and for metrics.

    async def wait_drained(self) -> None:
        """Wait until every record is delivered or dropped, except postponed records, which stay in the journal."""
        await self.empty.wait()

    def drop_remaining(self) -> None:
        """Drop the records that are neither delivered nor journaled, because the agent stops."""
        undelivered = [
            record
            for record in self.iter_records_in_memory()
            if record.row is None and not record.is_delivered_or_dropped
        ]
        for record in undelivered:
            record.delivery_state = FINISHED[record.delivery_state]
        self.count_dropped_from_memory(DropReason.SHUTDOWN, undelivered)

    def oldest_record_age_seconds(self) -> float:
        """Return the age of the oldest record of the queue; 0 if the queue is empty."""
        oldest_ns = self.oldest_record_time_ns()
        return max(0.0, time.time() - oldest_ns / 1e9) if oldest_ns is not None else 0.0

    def oldest_record_time_ns(self) -> int | None:
        """Return the time of the oldest record of the queue, in nanoseconds since the epoch; None if the queue is empty."""
        times = [records[0].time_ns for records in (self.in_flight, self.tail.records) if records]
        if self.backlog.oldest_ns is not None:
            times.append(self.backlog.oldest_ns)
        return min(times, default=None)

    def batch_in_flight_seconds(self, now: float) -> float:
        """Return how many seconds the batch in flight has waited for the sink; 0 if no batch is in flight.

        Args:
            now: the present time, by time.monotonic.
        """
        return now - self.sent_at if self.in_flight else 0.0
