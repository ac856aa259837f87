"""Deletions from the journal: delivered records, and records that are dropped to make room."""

from collections.abc import Mapping

from agent.delivery.backlog import Deletion
from agent.delivery.journal import statements
from agent.delivery.queue import RecordQueue
from agent.delivery.sizes import QueueContents


def delete_changes(deletions: Mapping[str, Deletion]) -> list[statements.Change]:
    """Return the changes that delete delivered rows, by queue."""
    return [statements.delete(name, deletion.after, deletion.through) for name, deletion in deletions.items()]


class Surplus:
    """The oldest records of a queue's backlog, which one transaction drops to make room."""

    def __init__(self, queue: RecordQueue, size: int) -> None:
        self._queue = queue
        self._dropped = QueueContents()
        self._last_row: list[int] = []
        after, self._through = queue.droppable_rows
        self.change = statements.drop_oldest(queue.name, size, after, self._through, self._dropped, self._last_row)

    def report(self) -> None:
        """Report the drops to the queue, after the transaction was committed."""
        self._queue.backlog_dropped(self._dropped, self._last_row[0] if self._last_row else self._through)
