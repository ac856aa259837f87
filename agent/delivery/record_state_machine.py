"""Transitions of a record's delivery state: one table for each input. Pure.

A transition is `record.delivery_state = TABLE[record.delivery_state]`. A KeyError is a bug: the record's state has no such transition.
"""

from typing import Final

from agent.model.record import RecordDeliveryState

_Transitions = dict[RecordDeliveryState, RecordDeliveryState]

WRITE_STARTED: Final[_Transitions] = {RecordDeliveryState.QUEUED: RecordDeliveryState.WRITING}
"""A transaction of the journal starts to write the record."""

WRITE_COMMITTED: Final[_Transitions] = {
    RecordDeliveryState.WRITING: RecordDeliveryState.JOURNALED,
    RecordDeliveryState.DONE_WHILE_WRITING: RecordDeliveryState.DONE,
}
"""The transaction was committed: the record is on disk."""

WRITE_FAILED: Final[_Transitions] = {
    RecordDeliveryState.WRITING: RecordDeliveryState.QUEUED,
    RecordDeliveryState.DONE_WHILE_WRITING: RecordDeliveryState.DONE,
}
"""The transaction was rolled back: the record is not on disk."""

FINISHED: Final[_Transitions] = {
    RecordDeliveryState.QUEUED: RecordDeliveryState.DONE,
    RecordDeliveryState.WRITING: RecordDeliveryState.DONE_WHILE_WRITING,
    RecordDeliveryState.JOURNALED: RecordDeliveryState.DONE,
}
"""The sink acknowledged or rejected the record, or the queue dropped it."""

JOURNAL_REPLACED: Final[_Transitions] = {
    RecordDeliveryState.QUEUED: RecordDeliveryState.QUEUED,
    RecordDeliveryState.JOURNALED: RecordDeliveryState.QUEUED,
    RecordDeliveryState.DONE: RecordDeliveryState.DONE,
}
"""The queue uses a new journal file, which does not have the record."""

COPIED: Final[_Transitions] = {
    RecordDeliveryState.QUEUED: RecordDeliveryState.JOURNALED,
    RecordDeliveryState.DONE: RecordDeliveryState.DONE,
}
"""The record was copied into the new journal file."""
