"""Finds a record's `causationid`: the id of the event record or sample record that caused the record. Pure."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from agent.model.family import Sample
from agent.model.record import EncodedRecord, Record, Vm
from agent.session.shared_types import VmLifecycleChange

CausationIdLookup = Callable[[Record], str]
"""Returns the id of the record that caused the given record; empty if the cause is unknown."""

_MIGRATION_ENDED: Final = "qemu.migration.ended"
_END_EVENTS: Final = {"qemu.event.shutdown": "shutdown", "qemu.event.migration": "migration"}
"""Types of the events that cause later records, each with a short name for the kind of event."""


def no_causation_id(_record: Record) -> str:
    """Return an empty id, because the cause is unknown."""
    return ""


class PublishedSamples(NamedTuple):
    """The published samples of one poll, and the record of each sample in the same order."""

    samples: Sequence[Sample]
    records: Sequence[EncodedRecord]

    def causation_id_of_alert(self, alert: Record) -> str:
        """Return the id of the record that caused an alert; empty if the cause is unknown.

        A subject is a disk, for example. The sample of the alert's subject is the cause. If the subject has no sample, the sample of the
        whole VM is the cause.
        """
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

    def record_id_of_event(self, event: Record) -> str:
        """Return the record id of an event; empty if the event is not the newest published event.

        The agent may publish the event later, coalesced with other events of the same type.
        """
        newest, record_id = self._newest_event
        return record_id if event is newest or event == newest else ""

    def causation_id_of_lifecycle_change(self, change: VmLifecycleChange, vm: Vm) -> str:
        """Return the record id of the event that caused a lifecycle change. Forget the VM's events if the agent is no longer attached."""
        ends = self._end_events.get(vm, {})
        _, shutdown = ends.get("shutdown", ("", ""))
        status, migration = ends.get("migration", ("", ""))
        completed = migration if status == "completed" else ""
        match change:
            case VmLifecycleChange.MIGRATED_IN:
                return completed
            case VmLifecycleChange.MIGRATED_OUT:
                self._end_events.pop(vm, None)
                return completed or shutdown
            case VmLifecycleChange.GONE | VmLifecycleChange.DETACHED:
                self._end_events.pop(vm, None)
                return shutdown
        return ""

    def causation_id_of_transition(self, transition: Record) -> str:
        """Return the record id of the event that caused the end of a migration; empty if no event caused the end.

        Return an empty id for all other transitions.
        """
        if transition.type != _MIGRATION_ENDED:
            return ""
        status, migration = self._end_events.get(transition.vm, {}).get("migration", ("", ""))
        return migration if status == transition.data.get("status") else ""
