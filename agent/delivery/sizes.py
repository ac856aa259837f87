"""Sizes of queues and of batches, in records and bytes. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.model.record import RECORD_OVERHEAD_BYTES, EncodedRecord


def total_bytes_with_overhead(records: Sequence[EncodedRecord]) -> int:
    """Return the bytes of records that count towards a queue's limit: the bodies, and an overhead for each record."""
    return sum([len(record.body) for record in records]) + RECORD_OVERHEAD_BYTES * len(records)


@dataclass(slots=True)
class QueueSize:
    """A number of records and their bytes."""

    records: int = 0
    bytes: int = 0

    def add_records(self, records: Sequence[EncodedRecord]) -> None:
        """Add records."""
        self.records += len(records)
        self.bytes += total_bytes_with_overhead(records)

    def subtract(self, records: int, size: int) -> None:
        """Subtract a number of records and a number of bytes. A result below 0 becomes 0."""
        self.records = max(0, self.records - records)
        self.bytes = max(0, self.bytes - size)


Body = bytes
"""The body of a record. `RowsSummary` cannot use `bytes` as a type, because it has a field of that name."""


@dataclass(slots=True)
class RowsSummary:
    """A summary of rows of one queue in the journal: all of the queue's rows, or the rows that a transaction deleted.

    Attributes:
        records: number of records.
        bytes: bytes of the records that count towards the queue's limit: the bodies, and an overhead for each record.
        first_ns: time of the oldest record, nanoseconds since the epoch.
        last_ns: time of the newest record, nanoseconds since the epoch.
        types: number of records by type.
        drop_reports: bodies of the drop reports among the deleted records; empty for rows that were not deleted.
    """

    records: int = 0
    bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    types: dict[str, int] = field(default_factory=dict)
    drop_reports: list[Body] = field(default_factory=list)

    def add_records_of_type(self, record_type: str, records: int, size: int, first_ns: int, last_ns: int) -> None:
        """Add records of one type."""
        self.types[record_type] = self.types.get(record_type, 0) + records
        self.records += records
        self.bytes += size
        self.first_ns = min(self.first_ns or first_ns, first_ns)
        self.last_ns = max(self.last_ns, last_ns)
