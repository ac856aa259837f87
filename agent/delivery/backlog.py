"""The part of a queue that is only in the journal, and the size of all rows that the queue has in the journal. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.delivery.sizes import QueueSize, RowsSummary, total_bytes
from agent.model.record import EncodedRecord


class DiskBacklog:
    """Waiting records that are only on disk: the rows after `after_row`, up to and including `last_row`.

    Row numbers rise in the order of the queue.
    """

    def __init__(self) -> None:
        self.after_row = 0
        self.last_row = 0
        self.postponed_through_row = 0
        """Rows up to and including this one are not deleted, because some of them are postponed."""
        self.waiting = QueueSize()
        """Size of the backlog."""
        self.stored = QueueSize()
        """Size of all rows of the queue in the journal, including delivered rows that are not deleted yet."""
        self._delivered_through_row = 0
        """Rows up to and including this one are delivered. The next transaction deletes them."""
        self._deletable = QueueSize()
        """Size of the delivered rows that are not deleted yet."""
        self._postponed_after_row = 0
        self._postponed = QueueSize()

    def __bool__(self) -> bool:
        return self.last_row > self.after_row

    def append(self, record: EncodedRecord) -> None:
        """Add a journaled record, which the caller removes from memory."""
        assert record.row is not None
        if not self:
            self.after_row = record.row - 1
        self.last_row = record.row
        self.waiting.add((record,))

    def take(
        self, records: Sequence[EncodedRecord], corrupt: int, last_read_row: int
    ) -> tuple[Sequence[EncodedRecord], int]:
        """Remove records from the front of the backlog, after they were read from the journal.

        Args:
            records: the intact records, oldest first. Records after the end of the backlog are ignored, because they are in memory too.
            corrupt: how many rows had a wrong checksum.
            last_read_row: the last row that was read.

        Returns:
            the removed records, and the number of lost records: corrupt rows and rows that no longer exist.
        """
        taken = [record for record in records if record.row is not None and record.row <= self.last_row]
        self.waiting.subtract(len(taken) + corrupt, total_bytes(taken))
        lost = corrupt
        if last_read_row <= self.after_row or last_read_row >= self.last_row:  # the end of the backlog
            lost += self.waiting.records
            self.after_row, self.waiting = self.last_row, QueueSize()
        else:
            self.after_row = last_read_row
        return taken, lost

    @property
    def postponed_records(self) -> int:
        """Number of postponed records."""
        return self._postponed.records

    def postpone(self) -> None:
        """Leave the backlog in the journal until `resume`, or until the next start."""
        if not self._postponed.records:
            self._postponed_after_row = self.after_row
        self._postponed.records += self.waiting.records
        self._postponed.bytes += self.waiting.bytes
        self.after_row = self.postponed_through_row = self.last_row
        self.waiting = QueueSize()

    def resume(self) -> bool:
        """Put the postponed records back at the front of the backlog.

        A deletion covers all rows up to the last delivered one. So this has to wait until no delivered row is left to be deleted.

        Returns:
            whether there was something to put back, and it was possible.
        """
        if not self._postponed.records or self._deletable.records:
            return False
        self.last_row = self.last_row if self else self.postponed_through_row
        self.after_row, self.postponed_through_row, self._delivered_through_row = self._postponed_after_row, 0, 0
        self.waiting.records += self._postponed.records
        self.waiting.bytes += self._postponed.bytes
        self._postponed = QueueSize()
        return True

    def on_trimmed(self, deleted: RowsSummary, last_row: int) -> None:
        """Remove the oldest rows from the backlog: the journal deleted them to make room.

        Args:
            deleted: summary of the deleted rows.
            last_row: the last deleted row.
        """
        self.after_row = max(self.after_row, last_row)
        self.waiting.subtract(deleted.records, deleted.bytes)
        self.stored.subtract(deleted.records, deleted.bytes)

    def reset(
        self, stored: RowsSummary, last_row: int, copied: Sequence[EncodedRecord], copied_rows: Sequence[int]
    ) -> int:
        """Replace the backlog by the rows of another journal file.

        Args:
            stored: summary of the queue's rows in the file.
            last_row: the last row of the file.
            copied: records in flight that were copied into the file. They are not part of the backlog.
            copied_rows: the rows of `copied` in the file.

        Returns:
            how many records of the old backlog the file lacks.
        """
        old_records = self.waiting.records + self._postponed.records
        self.stored = QueueSize(stored.records, stored.bytes)
        self.waiting = QueueSize(stored.records, stored.bytes)
        self.waiting.subtract(len(copied), total_bytes(copied))
        self.after_row = max(copied_rows, default=0)
        self.last_row = last_row if self.waiting.records else self.after_row
        self.postponed_through_row, self._postponed = 0, QueueSize()
        self._delivered_through_row, self._deletable = 0, QueueSize()
        return max(0, old_records - self.waiting.records)

    # Deleting rows.

    def mark_deletable(self, records: Sequence[EncodedRecord]) -> None:
        """Let the next commit delete the rows of delivered records."""
        if records:
            self._delivered_through_row = max(self._delivered_through_row, *(record.row or 0 for record in records))
            self._deletable.add(records)

    def next_deletion(self) -> "Deletion | None":
        """Return the delivered rows that the next transaction should delete; None if there are none."""
        if not self._deletable.records:
            return None
        return Deletion(self.postponed_through_row, self._delivered_through_row, replace(self._deletable))

    def on_deleted(self, deletion: "Deletion") -> None:
        """Subtract the size of delivered rows, after a transaction deleted them."""
        for size in (self.stored, self._deletable):
            size.subtract(deletion.size.records, deletion.size.bytes)

    def bytes_over(self, limit: int) -> int:
        """Return how many bytes the queue's rows are over a limit; 0 or negative if they are within it. Delivered rows do not count."""
        return self.stored.bytes - self._deletable.bytes - limit


@dataclass(frozen=True, slots=True)
class Deletion:
    """Delivered rows of a queue that a transaction deletes.

    Attributes:
        after_row: the row before the first deleted row.
        last_row: the last deleted row.
        size: size of the deleted rows.
    """

    after_row: int
    last_row: int
    size: QueueSize
