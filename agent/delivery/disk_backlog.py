"""The backlog of a queue: the waiting records that are only in the journal. Pure.

The module also tracks the size of the queue's rows in the journal, and which of these rows can be deleted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agent.delivery.sizes import QueueSize, RowsSummary, total_bytes_with_overhead
from agent.model.record import EncodedRecord


class DiskBacklog:
    """Waiting records of a queue that are only on disk: the rows after `after_row`, up to and including `last_row`.

    A row is a row of the journal's table of records. Row numbers rise in the order of the queue. Postponed rows are the rows of records
    that the queue skips until the disk works again.
    """

    def __init__(self) -> None:
        self.after_row = 0
        self.last_row = 0
        self.size = QueueSize()
        """Size of the backlog."""
        self.stored_size = QueueSize()
        """Size of all rows of the queue in the journal, including delivered rows that are not deleted yet."""
        self._deletions: dict[int, RowDeletion] = {}
        """Delivered rows that are not deleted yet, by `RowDeletion.after_row`. No entry covers postponed rows, which must stay."""
        self._postponed_rows: list[tuple[int, int]] = []
        """Ranges of postponed rows, in rising order: the row before the range, and the last row of the range."""
        self._postponed = QueueSize()
        self._oldest_ns = 0

    def __bool__(self) -> bool:
        return self.last_row > self.after_row

    @property
    def oldest_ns(self) -> int | None:
        """Time of the oldest record, postponed or not, in nanoseconds since the epoch; None if there is no record.

        The time of the next record is unknown until the record is read. Until then, the value is the time of the last removed record.
        """
        return self._oldest_ns if self.size.records or self._postponed.records else None

    def append(self, record: EncodedRecord) -> None:
        """Add a journaled record. The caller removes the record from memory."""
        assert record.row is not None
        if not self:
            self.after_row = record.row - 1
        if self.oldest_ns is None:
            self._oldest_ns = record.time_ns
        self.last_row = record.row
        self.size.add_records((record,))

    def on_read(
        self, records: Sequence[EncodedRecord], corrupt: int, last_read_row: int
    ) -> tuple[Sequence[EncodedRecord], int]:
        """Remove records from the front of the backlog, after they were read from the journal.

        Args:
            records: the intact records, oldest first. Records after the end of the backlog are ignored, because they are also in memory.
            corrupt: how many rows had a wrong checksum.
            last_read_row: the last row that was read.

        Returns:
            the removed records, and the number of lost records. A record is lost if its row is corrupt or no longer exists.
        """
        taken = [record for record in records if record.row is not None and record.row <= self.last_row]
        self.size.subtract(len(taken) + corrupt, total_bytes_with_overhead(taken))
        if taken and not self._postponed.records:
            self._oldest_ns = taken[-1].time_ns
        lost = corrupt
        if last_read_row <= self.after_row or last_read_row >= self.last_row:  # the end of the backlog
            lost += self.size.records
            self.after_row, self.size = self.last_row, QueueSize()
        else:
            self.after_row = last_read_row
        return taken, lost

    @property
    def postponed_record_count(self) -> int:
        """Number of records that `postpone_all_records` has left on disk."""
        return self._postponed.records

    def postpone_all_records(self) -> None:
        """Postpone all records of the backlog.

        The records stay in the journal until `put_back_postponed_records` or the next start of the agent.
        """
        if not self:
            return
        self._postponed_rows.append((self.after_row, self.last_row))
        self._postponed.records += self.size.records
        self._postponed.bytes += self.size.bytes
        self.after_row = self.last_row
        self.size = QueueSize()

    def put_back_postponed_records(self) -> bool:
        """Put the postponed records back at the front of the backlog.

        Do nothing until all delivered rows are deleted, because the backlog has to be one range of undelivered rows.

        Returns:
            True if records were put back.
        """
        if not self._postponed_rows or self._deletions:
            return False
        if not self:
            self.last_row = self._postponed_rows[-1][1]
        self.after_row = self._postponed_rows[0][0]
        self.size.records += self._postponed.records
        self.size.bytes += self._postponed.bytes
        self._postponed_rows, self._postponed = [], QueueSize()
        return True

    def on_trimmed(self, deleted: RowsSummary, last_row: int) -> None:
        """Remove the oldest rows from the backlog, after the journal has deleted them to make room.

        Args:
            deleted: summary of the deleted rows.
            last_row: the last deleted row.
        """
        self.after_row = max(self.after_row, last_row)
        if deleted.records and not self._postponed.records:
            self._oldest_ns = deleted.last_ns
        self.size.subtract(deleted.records, deleted.bytes)
        self.stored_size.subtract(deleted.records, deleted.bytes)

    def reset_to_journal_rows(
        self, stored: RowsSummary, last_row: int, copied: Sequence[EncodedRecord], copied_rows: Sequence[int]
    ) -> int:
        """Replace the backlog by the rows of a newly opened journal file.

        Args:
            stored: summary of the queue's rows in the file.
            last_row: the last row of the file.
            copied: records in flight that were copied into the file. These records are not part of the backlog.
            copied_rows: the rows of `copied` in the file.

        Returns:
            number of records of the old backlog that are not in the file.
        """
        old_records = self.size.records + self._postponed.records
        self.stored_size = QueueSize(stored.records, stored.bytes)
        self.size = QueueSize(stored.records, stored.bytes)
        self.size.subtract(len(copied), total_bytes_with_overhead(copied))
        self.after_row = max(copied_rows, default=0)
        self.last_row = last_row if self.size.records else self.after_row
        self._oldest_ns = copied[-1].time_ns if copied else stored.first_ns
        self._postponed_rows, self._postponed = [], QueueSize()
        self._deletions = {}
        return max(0, old_records - self.size.records)

    # Deleting rows.

    def schedule_deletion(self, records: Sequence[EncodedRecord]) -> None:
        """Schedule the deletion of the rows of delivered records. The journal's next transactions delete the rows."""
        by_row_before: dict[int, list[EncodedRecord]] = {}
        if self._postponed_rows:
            for record in records:
                by_row_before.setdefault(self._last_postponed_before(record.row or 0), []).append(record)
        elif records:
            by_row_before[0] = list(records)
        for after_row, group in by_row_before.items():
            deletion = self._deletions.setdefault(after_row, RowDeletion(after_row))
            deletion.last_row = max(deletion.last_row, *(record.row or 0 for record in group))
            deletion.size.add_records(group)

    def _last_postponed_before(self, row: int) -> int:
        """Return the last postponed row that precedes a delivered row; 0 if there is none."""
        return max((last_row for _, last_row in self._postponed_rows if last_row < row), default=0)

    @property
    def has_deletions(self) -> bool:
        """True if there are delivered rows to delete."""
        return bool(self._deletions)

    def next_deletion(self) -> "RowDeletion | None":
        """Return the delivered rows that the next transaction should delete; None if no delivered row is left."""
        return next((replace(deletion, size=replace(deletion.size)) for deletion in self._deletions.values()), None)

    def on_delivered_rows_deleted(self, deletion: "RowDeletion") -> None:
        """Subtract the size of delivered rows, after a transaction has deleted them."""
        remaining = self._deletions[deletion.after_row].size
        for size in (self.stored_size, remaining):
            size.subtract(deletion.size.records, deletion.size.bytes)
        if not remaining.records:
            del self._deletions[deletion.after_row]

    def bytes_over_limit(self, limit: int) -> int:
        """Return by how many bytes the undelivered rows of the queue exceed a limit; 0 or negative within the limit."""
        return self.stored_size.bytes - sum(deletion.size.bytes for deletion in self._deletions.values()) - limit


@dataclass(slots=True)
class RowDeletion:
    """Delivered rows of a queue that one transaction of the journal deletes.

    Attributes:
        after_row: the row before the first row to delete.
        last_row: the last row to delete.
        size: number and bytes of the rows to delete.
    """

    after_row: int
    last_row: int = 0
    size: QueueSize = field(default_factory=QueueSize)
