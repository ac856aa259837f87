"""Finds the value of a record's attribute `causationid`: the id of the record of the event or sample that caused it. Pure."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agent.model.family import Sample
from agent.model.record import EncodedRecord, Record, Vm
from agent.session.api import VmChange

CausationIdLookup = Callable[[Record], str]
"""Returns the id of the record that caused this record; empty if the cause is unknown."""

_MIGRATION_ENDED: Final = "qemu.migration.ended"
_END_EVENTS: Final = {"qemu.event.shutdown": "shutdown", "qemu.event.migration": "migration"}
"""Types of the events that cause later records."""


def no_cause(_record: Record) -> str:
    """Return an empty id, because the cause is unknown."""
    return ""


class PublishedSamples(NamedTuple):
    """The samples of one poll that were published, and their records in the same order."""

    samples: Sequence[Sample]
    records: Sequence[EncodedRecord]

    def cause_of(self, alert: Record) -> str:
        """Return the id of the sample of an alert's subject. Without such a sample, return the id of the sample of the whole VM."""
        ids: dict[str, str] = {}
        for sample, record in zip(self.samples, self.records, strict=True):
            ids.setdefault(sample.subject, record.id)
        return ids.get(alert.subject) or ids.get("", "")


class CausationIds:
    """Ids of the published events that can cause other records."""

    def __init__(self) -> None:
        self._newest: tuple[Record | None, str] = None, ""
        # By VM and kind of event: status and record id of the newest event.
        self._ends: dict[Vm, dict[str, tuple[str, str]]] = {}

    def on_published(self, event: Record, record_id: str) -> None:
        """Store the id of a published event."""
        self._newest = event, record_id
        if (kind := _END_EVENTS.get(event.type)) is not None:
            status = str(event.data["qemu"].get("status", ""))
            self._ends.setdefault(event.vm, {})[kind] = status, record_id

    def id_of_event(self, event: Record) -> str:
        """Return the id of an event's record. Return an empty text if the event is not published yet, because it is being coalesced."""
        newest, record_id = self._newest
        return record_id if event is newest or event == newest else ""

    def cause_of_lifecycle_change(self, change: VmChange, vm: Vm) -> str:
        """Return the id of the event that caused a lifecycle change. After the last change of a VM, discard the VM's events."""
        ends = self._ends.get(vm, {})
        _, shutdown = ends.get("shutdown", ("", ""))
        status, migration = ends.get("migration", ("", ""))
        completed = migration if status == "completed" else ""
        match change:
            case VmChange.MIGRATED_IN:
                return completed
            case VmChange.MIGRATED_OUT:
                self._ends.pop(vm, None)
                return completed or shutdown
            case VmChange.GONE | VmChange.DETACHED:
                self._ends.pop(vm, None)
                return shutdown
        return ""

    def cause_of_transition(self, transition: Record) -> str:
        """Return the id of the event that reported the same end of a migration; empty if there is no such event."""
        if transition.type != _MIGRATION_ENDED:
            return ""
        status, migration = self._ends.get(transition.vm, {}).get("migration", ("", ""))
        return migration if status == transition.data.get("status") else ""
