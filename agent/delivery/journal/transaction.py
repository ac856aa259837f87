"""One transaction of the journal: its changes, and the reports to the queues after the commit."""

from collections.abc import Sequence

from agent.delivery.disk_backlog import RowDeletion
from agent.delivery.journal import statements
from agent.delivery.queue import RecordQueue
from agent.delivery.sizes import RowsSummary


class BacklogTrim:
    """The deletion of the oldest rows of a queue's backlog, which makes room for other records."""

    def __init__(self, queue: RecordQueue, size: int) -> None:
        """Set up the deletion.

        Args:
            queue: the queue.
            size: minimum number of bytes to delete.
        """
        self._queue = queue
        self._deleted = RowsSummary()
        self._last_row: list[int] = []
        after_row, self._through_row = queue.journaling.droppable_row_range
        self.change = statements.delete_oldest_rows(
            queue.name, size, after_row, self._through_row, self._deleted, self._last_row
        )

    def report_committed(self) -> None:
        """Report the deleted rows to the queue."""
        self._queue.journaling.on_trimmed(self._deleted, self._last_row[0] if self._last_row else self._through_row)


class Transaction:
    """The changes of one transaction, for all queues. First add changes, then commit `changes`, then call `report_committed`."""

    def __init__(self, queues: Sequence[RecordQueue]) -> None:
        self.changes: list[statements.JournalChange] = []
        self._queues = queues
        self._deletions = dict[str, RowDeletion]()
        self._rows: dict[str, list[int]] = {queue.name: [] for queue in queues}
        self._trims: list[BacklogTrim] = []

    def delete_all_rows_after(self, row: int) -> None:
        """Delete the rows of all queues after a row. Call this before all other changes."""
        assert not self.changes
        self.changes.append(statements.delete_all_rows_after(row))

    @property
    def last_inserted_row(self) -> int:
        """Number of the last inserted row; 0 if no row was inserted. Valid after the commit."""
        return max((row for rows in self._rows.values() for row in rows), default=0)

    def delete_delivered(self) -> None:
        """Delete the rows of delivered records."""
        for queue in self._queues:
            deletion = queue.backlog.next_deletion()
            if deletion is not None:
                self._deletions[queue.name] = deletion
                self.changes.append(statements.delete_row_range(queue.name, deletion.after_row, deletion.last_row))

    def insert_waiting_records(self) -> None:
        """Insert the records that wait for the journal. Call `on_journal_failed` of each queue's `journaling` if the transaction fails."""
        for queue in self._queues:
            if records := queue.journaling.take_records_for_transaction():
                self.changes.append(statements.insert_records(queue.name, records, self._rows[queue.name]))

    def trim_backlog(self, queue: RecordQueue, size: int) -> None:
        """Delete at least `size` bytes of the oldest rows of a queue's backlog."""
        trim = BacklogTrim(queue, size)
        self._trims.append(trim)
        self.changes.append(trim.change)

    def report_committed(self) -> None:
        """Report to the queues which rows were inserted and deleted."""
        for trim in self._trims:
            trim.report_committed()
        for queue in self._queues:
            queue.journaling.on_committed(self._rows[queue.name], self._deletions.get(queue.name))
