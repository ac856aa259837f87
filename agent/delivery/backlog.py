"""The part of a queue that is only in the journal, and the size of all rows of the queue in the journal. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.delivery.sizes import QueueContents, QueueSize, size_of
from agent.model.record import EncodedRecord


class DiskBacklog:
    """Waiting records that are only on disk: the rows after `after_row`, up to and including `last_row`.

    Row numbers rise in the order of the queue. Rows up to `_done_row` are delivered; the next commit deletes them.
    """

    def __init__(self) -> None:
        self.after_row = 0
        self.last_row = 0
        self.kept_through = 0
        """Rows up to this one stay in the journal until the next start, because they cannot be read now."""
        self.waiting = QueueSize()
        """Size of the backlog."""
        self.stored = QueueSize()
        """Size of all rows of the queue in the journal, including delivered rows that are not deleted yet."""
        self._done_row = 0
        self._deletable = QueueSize()

    def __bool__(self) -> bool:
        return self.last_row > self.after_row

    def append(self, record: EncodedRecord) -> None:
        """Add a journaled record that is removed from memory."""
        assert record.row is not None
        if not self:
            self.after_row = record.row - 1
        self.last_row = record.row
        self.waiting.add((record,))

    def take(
        self, records: Sequence[EncodedRecord], corrupt: int, last_read: int
    ) -> tuple[Sequence[EncodedRecord], int]:
        """Remove from the backlog the records that were read from its front.

        Args:
            records: intact records, in order. Records after the end of the backlog are ignored: they are in memory too.
            corrupt: how many rows had a wrong checksum.
            last_read: the last row that was read.

        Returns:
            the removed records, and how many records are missing: those that are corrupt, and those whose rows do not exist.
        """
        taken = [record for record in records if record.row is not None and record.row <= self.last_row]
        self.waiting.subtract(len(taken) + corrupt, size_of(taken))
        missing = corrupt
        if last_read <= self.after_row or last_read >= self.last_row:  # the end of the backlog
            missing += self.waiting.records
            self.after_row, self.waiting = self.last_row, QueueSize()
        else:
            self.after_row = last_read
        return taken, missing

    def skip(self) -> None:
        """Leave the backlog in the journal until the next start."""
        self.after_row = self.kept_through = self.last_row
        self.waiting = QueueSize()

    def drop(self, contents: QueueContents, last_row: int) -> None:
        """Remove the oldest rows: the journal deleted them to make room.

        Args:
            contents: summary of the deleted rows.
            last_row: the last deleted row.
        """
        self.after_row = max(self.after_row, last_row)
        self.waiting.subtract(contents.records, contents.bytes)
        self.stored.subtract(contents.records, contents.bytes)

    def reset(
        self, contents: QueueContents, last_row: int, copied: Sequence[EncodedRecord], rows: Sequence[int]
    ) -> int:
        """Start with another journal file.

        Args:
            contents: summary of the queue's rows in the file.
            last_row: the last row of the file.
            copied: in-flight records that were copied into the file.
            rows: their rows in the file.

        Returns:
            how many records of the old backlog are missing from the file.
        """
        before = self.waiting.records
        self.stored = QueueSize(contents.records, contents.bytes)
        self.waiting = QueueSize(contents.records, contents.bytes)
        self.waiting.subtract(len(copied), size_of(copied))
        self.after_row = max(rows, default=0)
        self.last_row = last_row if self.waiting.records else self.after_row
        self.kept_through = 0
        self._done_row, self._deletable = 0, QueueSize()
        return max(0, before - self.waiting.records)

    # Deleting rows.

    def mark_deletable(self, records: Sequence[EncodedRecord]) -> None:
        """Let the next commit delete the rows of delivered records."""
        if records:
            self._done_row = max(self._done_row, *(record.row or 0 for record in records))
            self._deletable.add(records)

    def deletion(self) -> "Deletion | None":
        """Return the rows that the next transaction may delete; None if there are none."""
        if not self._deletable.records:
            return None
        return Deletion(self.kept_through, self._done_row, replace(self._deletable))

    def deleted(self, deletion: "Deletion") -> None:
        """Subtract the rows of a deletion that was committed."""
        for size in (self.stored, self._deletable):
            size.subtract(deletion.size.records, deletion.size.bytes)

    def excess(self, limit: int) -> int:
        """Return by how many bytes the rows exceed a limit, without those that can be deleted; 0 or less if they do not exceed it."""
        return self.stored.bytes - self._deletable.bytes - limit


@dataclass(frozen=True, slots=True)
class Deletion:
    """Delivered rows of a queue to be deleted.

    Attributes:
        after: the row before the first.
        through: the last row.
        size: their size.
    """

    after: int
    through: int
    size: QueueSize
