"""The parts of a queue that are in memory: its tail, and the records that the journal has yet to write. Pure."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice

from agent.delivery.sizes import size_of
from agent.delivery.transitions import FINISHED, WRITE_COMMITTED, WRITE_FAILED, WRITE_STARTED
from agent.model.record import EncodedRecord, RecordState

WRITE_RECORDS = 20_000
"""Records in one transaction: some 0.2 s, so that a read never waits long; and as many as one turn of a busy loop accepts."""


class MemoryTail:
    """The newest records of a queue, oldest first."""

    def __init__(self) -> None:
        self.records: deque[EncodedRecord] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.records)

    def append(self, record: EncodedRecord) -> None:
        """Add the newest record."""
        self.records.append(record)
        self.bytes += record.size

    def popleft(self) -> EncodedRecord:
        """Remove and return the oldest record."""
        record = self.records.popleft()
        self.bytes -= record.size
        return record

    def remove_first(self, records: Sequence[EncodedRecord]) -> None:
        """Remove the oldest records, which are these."""
        for _ in records:
            self.records.popleft()
        self.bytes -= size_of(records)

    def older_half(self) -> Iterable[EncodedRecord]:
        """Iterate over the older half of the records, rounded up."""
        return islice(self.records, len(self.records) // 2 + 1)

    def drop_oldest(self, size: int) -> list[EncodedRecord]:
        """Remove, finish and return the oldest records that are in memory only.

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
    """Records in memory that the journal has yet to write, in order; and the transaction that is being written."""

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
        """Let these records wait instead of those that did."""
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
        """Finish the transaction and return its records, which are in these rows now."""
        for record, row in zip(self._writing, rows, strict=True):
            record.row, record.state = row, WRITE_COMMITTED[record.state]
        written, self._writing = self._writing, []
        return written

    def fail(self) -> None:
        """Finish the transaction, which failed; its records wait again, before all others."""
        for record in self._writing:
            record.state = WRITE_FAILED[record.state]
        self._waiting.extendleft(record for record in reversed(self._writing) if not record.done)
        self._writing = []

    def discard_done(self) -> None:
        """Forget the oldest records as far as they are done."""
        while self._waiting and self._waiting[0].done:
            self._waiting.popleft()

    def discard_dropped(self) -> None:
        """Forget all records that are done."""
        self._waiting = deque(record for record in self._waiting if not record.done)
