"""The records of a queue. The newest records are in memory. Records that do not fit into memory are in the journal."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from agent.delivery.disk_backlog import DiskBacklog
from agent.delivery.drops import DROP_REPORT_TYPE, DropLedger, DropReason
from agent.delivery.memory_tail import MemoryTail
from agent.delivery.sizes import RowsSummary, total_bytes_with_overhead
from agent.model.record import EncodedRecord


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of the size of a queue.

    Attributes:
        memory: maximum bytes in memory.
        disk: maximum bytes in the journal.
    """

    memory: int
    disk: int


class QueueContents:
    """The records of a queue, oldest first: the batch in flight, then the backlog on disk, then the tail in memory."""

    def __init__(self, name: str, limits: QueueLimits, drops: DropLedger, *, durable: bool) -> None:
        self.name = name
        self.limits = limits
        self.durable = durable
        """True if the journal stores every record; False if it stores only the records that do not fit into memory."""
        self.in_flight: Sequence[EncodedRecord] = ()
        """The batch that the sink is sending. Its records may also be in the journal."""
        self.backlog = DiskBacklog()
        self.tail = MemoryTail()
        self.nonempty = asyncio.Event()
        """Set when the sender should check whether it can send a record."""
        self.empty = asyncio.Event()
        """Set while the queue has no record, except postponed records, which stay in the journal."""
        self.empty.set()
        self._drops = drops

    def __len__(self) -> int:
        return len(self.in_flight) + self.backlog.size.records + self.backlog.postponed_record_count + len(self.tail)

    def iter_records_in_memory(self) -> Iterator[EncodedRecord]:
        """Iterate over the records that are in memory, oldest first: the batch in flight and the tail."""
        return chain(self.in_flight, self.tail.records)

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the records of the queue take."""
        return self.tail.bytes + total_bytes_with_overhead(self.in_flight)

    def wake_waiting_tasks(self) -> None:
        """Set `nonempty` and clear `empty` if the queue has records; otherwise set `empty`. Called after records were added or removed."""
        if self.in_flight or self.backlog or self.tail:
            self.nonempty.set()
            self.empty.clear()
        else:
            self.empty.set()

    def count_dropped_from_memory(self, reason: DropReason, records: Sequence[EncodedRecord]) -> None:
        """Count records that were dropped from memory.

        Some of these records may be drop reports. The drops in these reports become unreported again.
        """
        self._drops.add_records(self.name, reason, records, time.monotonic())
        self._drops.on_reports_dropped(record.body for record in records if record.type == DROP_REPORT_TYPE)

    def count_corrupt(self, records: int) -> None:
        """Count records that cannot be read from the journal."""
        self._drops.add(self.name, DropReason.CORRUPT, records, 0, 0, time.monotonic())

    def count_dropped_from_disk(self, deleted: RowsSummary) -> None:
        """Count records that the journal deleted to make room.

        Some of these records may be drop reports. The drops in these reports become unreported again.
        """
        times = deleted.first_ns, deleted.last_ns
        self._drops.add(self.name, DropReason.QUEUE_FULL, deleted.records, *times, time.monotonic())
        self._drops.on_reports_dropped(deleted.drop_reports)
