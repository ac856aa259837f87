"""Transitions of a record's delivery state: one table for each input. Pure.

A transition is `record.state = TABLE[record.state]`. A state that is missing from the table raises KeyError: that is a bug.
"""

from typing import Final

from agent.model.record import RecordState

_Table = dict[RecordState, RecordState]

WRITE_STARTED: Final[_Table] = {RecordState.QUEUED: RecordState.WRITING}
"""The journal takes the record into a transaction."""

WRITE_COMMITTED: Final[_Table] = {
    RecordState.WRITING: RecordState.JOURNALED,
    RecordState.DONE_WHILE_WRITING: RecordState.DONE,
}
"""The transaction is on disk."""

WRITE_FAILED: Final[_Table] = {
    RecordState.WRITING: RecordState.QUEUED,
    RecordState.DONE_WHILE_WRITING: RecordState.DONE,
}
"""The transaction is not on disk."""

FINISHED: Final[_Table] = {
    RecordState.QUEUED: RecordState.DONE,
    RecordState.WRITING: RecordState.DONE_WHILE_WRITING,
    RecordState.JOURNALED: RecordState.DONE,
}
"""The sink acknowledged or rejected the record, or the queue dropped it."""

JOURNAL_REPLACED: Final[_Table] = {
    RecordState.QUEUED: RecordState.QUEUED,
    RecordState.JOURNALED: RecordState.QUEUED,
    RecordState.DONE: RecordState.DONE,
}
"""A new journal file is in use, which does not have the record."""

COPIED: Final[_Table] = {RecordState.QUEUED: RecordState.JOURNALED, RecordState.DONE: RecordState.DONE}
"""The record was copied into the new journal file."""
