"""Finds a record's `causationid`: the id of the event record or sample record that caused the record. Pure."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agent.model.family import Sample
from agent.model.record import EncodedRecord, Record, Vm
from agent.session.shared_types import VmChange

CausationIdLookup = Callable[[Record], str]
"""Returns the id of the record that caused this record; empty if the cause is unknown."""

_MIGRATION_ENDED: Final = "qemu.migration.ended"
_END_EVENTS: Final = {"qemu.event.shutdown": "shutdown", "qemu.event.migration": "migration"}
"""Types of the events that cause later records."""


def no_causation_id(_record: Record) -> str:
    """Return an empty id, because the cause is unknown."""
    return ""


class PublishedSamples(NamedTuple):
    """The samples of one poll that were published, and their records in the same order."""

    samples: Sequence[Sample]
    records: Sequence[EncodedRecord]

    def cause_of(self, alert: Record) -> str:
        """Return the record id of the sample of an alert's subject. If there is none, return the id of the sample of the whole VM."""
        ids: dict[str, str] = {}
        for sample, record in zip(self.samples, self.records, strict=True):
            ids.setdefault(sample.subject, record.id)
        return ids.get(alert.subject) or ids.get("", "")


class CausationIds:
    """The record ids of published events that can cause other records."""

    def __init__(self) -> None:
        self._newest_event: tuple[Record | None, str] = None, ""
        # By VM and kind of event: status and record id of the newest event.
        self._end_events: dict[Vm, dict[str, tuple[str, str]]] = {}

    def on_event_published(self, event: Record, record_id: str) -> None:
        """Store the record id of a published event."""
        self._newest_event = event, record_id
        if (kind := _END_EVENTS.get(event.type)) is not None:
            status = str(event.data["qemu"].get("status", ""))
            self._end_events.setdefault(event.vm, {})[kind] = status, record_id

    def id_of_event(self, event: Record) -> str:
        """Return the record id of an event; empty if the agent has not published the event yet, because it coalesces such events."""
        newest, record_id = self._newest_event
        return record_id if event is newest or event == newest else ""

    def cause_of_lifecycle_change(self, change: VmChange, vm: Vm) -> str:
        """Return the record id of the event that caused a lifecycle change. After the last change of a VM, discard the VM's ids."""
        ends = self._end_events.get(vm, {})
        _, shutdown = ends.get("shutdown", ("", ""))
        status, migration = ends.get("migration", ("", ""))
        completed = migration if status == "completed" else ""
        match change:
            case VmChange.MIGRATED_IN:
                return completed
            case VmChange.MIGRATED_OUT:
                self._end_events.pop(vm, None)
                return completed or shutdown
            case VmChange.GONE | VmChange.DETACHED:
                self._end_events.pop(vm, None)
                return shutdown
        return ""

    def cause_of_transition(self, transition: Record) -> str:
        """Return the record id of the event that reported the same end of a migration; empty if there is no such event."""
        if transition.type != _MIGRATION_ENDED:
            return ""
        status, migration = self._end_events.get(transition.vm, {}).get("migration", ("", ""))
        return migration if status == transition.data.get("status") else ""
