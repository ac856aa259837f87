"""The parts of a queue that are in memory: its tail, and the records that the journal has not written yet. Pure."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from agent.delivery.sizes import size_of
from agent.delivery.transitions import FINISHED, WRITE_COMMITTED, WRITE_FAILED, WRITE_STARTED
from agent.model.record import EncodedRecord, RecordState

WRITE_RECORDS = 20_000
"""Limit of records in one transaction. It takes about 0.2 s, so reads never wait long. A busy event loop accepts as many in one turn."""


class MemoryTail:
    """The newest records of a queue, oldest first."""

    def __init__(self) -> None:
        self.records: deque[EncodedRecord] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.records)

    def extend(self, records: Sequence[EncodedRecord]) -> None:
        """Add the newest records, oldest first."""
        self.records.extend(records)
        self.bytes += size_of(records)

    def popleft(self) -> EncodedRecord:
        """Remove and return the oldest record."""
        record = self.records.popleft()
        self.bytes -= record.size
        return record

    def remove_first(self, records: Sequence[EncodedRecord]) -> None:
        """Remove these records, which are the oldest."""
        for _ in records:
            self.records.popleft()
        self.bytes -= size_of(records)

    def older_half(self) -> Iterable[EncodedRecord]:
        """Iterate over the older half of the records, rounded up."""
        return islice(self.records, len(self.records) // 2 + 1)

    def drop_oldest(self, size: int) -> list[EncodedRecord]:
        """Remove the oldest records that are in memory only; mark them as done, and return them.

        Args:
            size: how many bytes to free, at least.
        """
        kept = []
        while self.records and self.records[0].state is not RecordState.QUEUED:
            kept.append(self.records.popleft())
        dropped = []
        while size > 0 and self.records:
            record = self.popleft()
            record.state = FINISHED[record.state]
            dropped.append(record)
            size -= record.size
        self.records.extendleft(reversed(kept))
        return dropped


class PendingWrites:
    """Records in memory that the journal has not written yet, in order; and the records of the transaction that is under way."""

    def __init__(self) -> None:
        self._waiting: deque[EncodedRecord] = deque()
        self._writing: list[EncodedRecord] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def busy(self) -> bool:
        """True if records wait or are being written."""
        return bool(self._waiting or self._writing)

    def add(self, record: EncodedRecord) -> None:
        """Add the newest record."""
        self._waiting.append(record)

    def replace(self, records: Iterable[EncodedRecord]) -> None:
        """Replace the waiting records by these."""
        self._waiting = deque(records)

    def start(self) -> list[EncodedRecord]:
        """Start a transaction and return its records; `commit` or `fail` must follow."""
        assert not self._writing
        while self._waiting and len(self._writing) < WRITE_RECORDS:
            record = self._waiting.popleft()
            if not record.done:
                record.state = WRITE_STARTED[record.state]
                self._writing.append(record)
        return list(self._writing)

    def commit(self, rows: Sequence[int]) -> list[EncodedRecord]:
        """Finish the transaction: store in each record its row, and return the records."""
        for record, row in zip(self._writing, rows, strict=True):
            record.row, record.state = row, WRITE_COMMITTED[record.state]
        written, self._writing = self._writing, []
        return written

    def fail(self) -> None:
        """Finish a transaction that failed: its records wait again, before all others."""
        for record in self._writing:
            record.state = WRITE_FAILED[record.state]
        self._waiting.extendleft(record for record in reversed(self._writing) if not record.done)
        self._writing = []

    def discard_done(self) -> None:
        """Remove the oldest records, up to the first that is not done."""
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft()

    def discard_dropped(self) -> None:
        """Remove all records that are done."""
        self._waiting = deque(record for record in self._waiting if not record.done)
