"""Two lists of a queue's records in memory: the newest records, and the records that the journal has not written yet. Pure."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from agent.delivery.record_state_machine import FINISHED, WRITE_COMMITTED, WRITE_FAILED, WRITE_STARTED
from agent.delivery.sizes import total_bytes_with_overhead
from agent.model.record import RECORD_OVERHEAD_BYTES, EncodedRecord, RecordDeliveryState

MAX_TRANSACTION_RECORDS = 20_000
"""Maximum number of records in one transaction. A transaction of this size takes about 0.2 s, and reads of the journal wait for its end."""


class MemoryTail:
    """The newest records of a queue, which are in memory; oldest first."""

    def __init__(self) -> None:
        self.records: deque[EncodedRecord] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.records)

    def extend(self, records: Sequence[EncodedRecord]) -> None:
        """Append new records to the tail. The records are in order, oldest first."""
        self.records.extend(records)
        self.bytes += total_bytes_with_overhead(records)

    def append(self, record: EncodedRecord) -> None:
        """Add the newest record."""
        self.records.append(record)
        self.bytes += len(record.body) + RECORD_OVERHEAD_BYTES

    def popleft(self) -> EncodedRecord:
        """Remove and return the oldest record."""
        record = self.records.popleft()
        self.bytes -= record.bytes_with_overhead
        return record

    def remove_oldest_batch(self, records: Sequence[EncodedRecord]) -> None:
        """Remove the oldest records.

        Args:
            records: the records to remove, oldest first.
        """
        for _ in records:
            self.records.popleft()
        self.bytes -= total_bytes_with_overhead(records)

    def iter_oldest_half(self) -> Iterable[EncodedRecord]:
        """Iterate over the older half of the records and one more record, oldest first."""
        return islice(self.records, len(self.records) // 2 + 1)

    def drop_oldest(self, size: int) -> list[EncodedRecord]:
        """Remove the oldest records that are only in memory, set their state to done, and return them.

        Args:
            size: number of bytes to free, rounded up to whole records.
        """
        kept = []
        while self.records and self.records[0].delivery_state is not RecordDeliveryState.QUEUED:
            kept.append(self.records.popleft())
        dropped = []
        while size > 0 and self.records:
            record = self.popleft()
            record.delivery_state = FINISHED[record.delivery_state]
            dropped.append(record)
            size -= record.bytes_with_overhead
        self.records.extendleft(reversed(kept))
        return dropped


class PendingJournalWrites:
    """Records in memory that the journal has not written yet: waiting records, and the records of the current transaction."""

    def __init__(self) -> None:
        self._waiting: deque[EncodedRecord] = deque()
        self._writing: list[EncodedRecord] = []

    @property
    def has_waiting(self) -> bool:
        """True if records wait for a transaction."""
        return bool(self._waiting)

    @property
    def has_open_transaction(self) -> bool:
        """True if a transaction has started and not ended."""
        return bool(self._writing)

    @property
    def has_unwritten_records(self) -> bool:
        """True if records wait for a transaction, or if a transaction has started and not ended."""
        return bool(self._waiting or self._writing)

    def add(self, record: EncodedRecord) -> None:
        """Add the newest record."""
        self._waiting.append(record)

    def replace_waiting_records(self, records: Iterable[EncodedRecord]) -> None:
        """Replace the waiting records by other records, oldest first."""
        self._waiting = deque(records)

    def take_records_for_transaction(self) -> list[EncodedRecord]:
        """Start a transaction and return its records: the oldest waiting records.

        Call `on_transaction_committed` or `on_transaction_failed` at the end of the transaction.
        """
        assert not self._writing
        while self._waiting and len(self._writing) < MAX_TRANSACTION_RECORDS:
            record = self._waiting.popleft()
            if not record.is_delivered_or_dropped:
                record.delivery_state = WRITE_STARTED[record.delivery_state]
                self._writing.append(record)
        return list(self._writing)

    def on_transaction_committed(self, rows: Sequence[int]) -> list[EncodedRecord]:
        """Finish the transaction after it was committed, and return its records.

        Args:
            rows: the journal's row of each record of the transaction, in the same order.
        """
        for record, row in zip(self._writing, rows, strict=True):
            record.row, record.delivery_state = row, WRITE_COMMITTED[record.delivery_state]
        written, self._writing = self._writing, []
        return written

    def on_transaction_failed(self) -> None:
        """Finish the transaction after it failed. Its records wait again, before all other waiting records."""
        for record in self._writing:
            record.delivery_state = WRITE_FAILED[record.delivery_state]
        self._waiting.extendleft(record for record in reversed(self._writing) if not record.is_delivered_or_dropped)
        self._writing = []

    def remove_leading_delivered_or_dropped(self) -> None:
        """Remove the delivered or dropped records at the front of the waiting records. Stop at the first undelivered record."""
        while self._waiting and self._waiting[0].is_delivered_or_dropped:
            self._waiting.popleft()

    def remove_all_delivered_or_dropped(self) -> None:
        """Remove all waiting records that are delivered or dropped."""
        self._waiting = deque(record for record in self._waiting if not record.is_delivered_or_dropped)
