"""Transitions of a record's delivery state: one table for each input. Pure.

A transition is `record.state = TABLE[record.state]`. A KeyError means that the record is in a state without this transition: a bug.
"""

from typing import Final

from agent.model.record import RecordState

_Transitions = dict[RecordState, RecordState]

WRITE_STARTED: Final[_Transitions] = {RecordState.QUEUED: RecordState.WRITING}
"""A transaction of the journal starts to write the record."""

WRITE_COMMITTED: Final[_Transitions] = {
    RecordState.WRITING: RecordState.JOURNALED,
    RecordState.DONE_WHILE_WRITING: RecordState.DONE,
}
"""The transaction was committed: the record is on disk."""

WRITE_FAILED: Final[_Transitions] = {
    RecordState.WRITING: RecordState.QUEUED,
    RecordState.DONE_WHILE_WRITING: RecordState.DONE,
}
"""The transaction was rolled back: the record is not on disk."""

FINISHED: Final[_Transitions] = {
    RecordState.QUEUED: RecordState.DONE,
    RecordState.WRITING: RecordState.DONE_WHILE_WRITING,
    RecordState.JOURNALED: RecordState.DONE,
}
"""The sink acknowledged or rejected the record, or the queue dropped it."""

JOURNAL_REPLACED: Final[_Transitions] = {
    RecordState.QUEUED: RecordState.QUEUED,
    RecordState.JOURNALED: RecordState.QUEUED,
    RecordState.DONE: RecordState.DONE,
}
"""The queue uses a new journal file, which does not have the record."""

COPIED: Final[_Transitions] = {RecordState.QUEUED: RecordState.JOURNALED, RecordState.DONE: RecordState.DONE}
"""The record was copied into the new journal file."""
