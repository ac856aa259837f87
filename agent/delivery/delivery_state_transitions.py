"""Transitions of a record's delivery state: one table for each input. Pure.

A transition is `record.state = TABLE[record.state]`. A KeyError means that the record is in a state without this transition: a bug.
"""

from typing import Final

from agent.model.record import DeliveryState

_Transitions = dict[DeliveryState, DeliveryState]

WRITE_STARTED: Final[_Transitions] = {DeliveryState.QUEUED: DeliveryState.WRITING}
"""A transaction of the journal starts to write the record."""

WRITE_COMMITTED: Final[_Transitions] = {
    DeliveryState.WRITING: DeliveryState.JOURNALED,
    DeliveryState.DONE_WHILE_WRITING: DeliveryState.DONE,
}
"""The transaction was committed: the record is on disk."""

WRITE_FAILED: Final[_Transitions] = {
    DeliveryState.WRITING: DeliveryState.QUEUED,
    DeliveryState.DONE_WHILE_WRITING: DeliveryState.DONE,
}
"""The transaction was rolled back: the record is not on disk."""

FINISHED: Final[_Transitions] = {
    DeliveryState.QUEUED: DeliveryState.DONE,
    DeliveryState.WRITING: DeliveryState.DONE_WHILE_WRITING,
    DeliveryState.JOURNALED: DeliveryState.DONE,
}
"""The sink acknowledged or rejected the record, or the queue dropped it."""

JOURNAL_REPLACED: Final[_Transitions] = {
    DeliveryState.QUEUED: DeliveryState.QUEUED,
    DeliveryState.JOURNALED: DeliveryState.QUEUED,
    DeliveryState.DONE: DeliveryState.DONE,
}
"""The queue uses a new journal file, which does not have the record."""

COPIED: Final[_Transitions] = {DeliveryState.QUEUED: DeliveryState.JOURNALED, DeliveryState.DONE: DeliveryState.DONE}
"""The record was copied into the new journal file."""
