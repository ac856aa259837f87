"""Notes of the alert manager: the state that the journal stores for the next run of the agent. Pure."""

from collections.abc import Mapping
from typing import Any

from agent.alerts.conditions.derived import ConditionMemory
from agent.alerts.conditions.sample_conditions import MAX_INSTANCES
from agent.alerts.conditions.snapshot_ages import SNAPSHOT_NOTE_PREFIX, SnapshotAges
from agent.alerts.highest_writes import HighestWriteStore
from agent.alerts.process_state import VmProcessState
from agent.alerts.processes import ProcessRegistry
from agent.alerts.store import AlertStore
from agent.model.record import Vm

VM_NOTE_PREFIX = "alerts/"
"""Prefix of the names of the VMs' notes; a VM's UUID follows."""

IMAGE_NOTE_PREFIX = "images/"
"""Prefix of the names of the images' notes; an image's path follows."""

PENDING_SECONDS = 60.0
"""How long a condition has to hold before its start time is stored, so that short conditions cause no write."""

Note = tuple[str, Any]
"""The name and the JSON value of a note. The value None deletes the stored note."""


class AlertNotes:
    """Creates and restores the notes of VMs, of disk images and of snapshots."""

    def __init__(
        self,
        host: str,
        store: AlertStore,
        processes: ProcessRegistry,
        highest_writes: HighestWriteStore,
        snapshot_ages: SnapshotAges,
    ) -> None:
        self._host = host
        self._store = store
        self._processes = processes
        self._highest_writes = highest_writes
        self._snapshot_ages = snapshot_ages
        self._stored_uuids: set[str] = set()

    def restore(self, notes: Mapping[str, object], now: float) -> None:
        """Restore the notes of an earlier run. Each restored VM counts as detached at `now`, in seconds on the monotonic clock."""
        for name, note in notes.items():
            if name.startswith(IMAGE_NOTE_PREFIX):
                self._highest_writes.restore(name.removeprefix(IMAGE_NOTE_PREFIX), note)
            elif name.startswith(VM_NOTE_PREFIX):
                self._restore_vm(name.removeprefix(VM_NOTE_PREFIX), note, now)
            elif name.startswith(SNAPSHOT_NOTE_PREFIX):
                self._snapshot_ages.restore(name.removeprefix(SNAPSHOT_NOTE_PREFIX), note)

    def _restore_vm(self, uuid: str, note: object, now: float) -> None:
        self._stored_uuids.add(uuid)
        processes = note.get("processes") if isinstance(note, dict) else None
        for process in processes if isinstance(processes, list) else ():
            if not isinstance(process, dict):
                continue
            monitor, pid, instance = (process.get(key) for key in ("monitor", "pid", "instance"))
            vm = Vm(self._host, uuid, uuid, str(monitor or ""))
            state = self._processes.add(vm, pid if type(pid) is int else None, instance=str(instance or ""))
            state.gone_at = now
            # With a pid, the agent later recognises the process. Another process of the VM may not have started its guest yet.
            state.run.has_started = state.pid is not None and process.get("has_started") is True
            disks = process.get("disks")
            state.restored_disks = disks if isinstance(disks, dict) else {}
            state.conditions.pending = _read_pending(process.get("pending"))
            state.conditions.stored = dict(state.conditions.pending)
            self._store.restore(vm, state.owner, process.get("firing"))

    def note_of_vm(self, uuid: str) -> Note:
        """Return a VM's note; its value is None if the VM has no state to store."""
        processes = [self._process_fields(state) for state in self._processes.processes_with_uuid(uuid)]
        kinds = ("disks", "firing", "has_started", "pending")
        has_state = any(process.get(kind) for process in processes for kind in kinds)
        for state in self._processes.processes_with_uuid(uuid):
            state.is_start_stored = state.run.has_started
        (self._stored_uuids.add if has_state else self._stored_uuids.discard)(uuid)
        return VM_NOTE_PREFIX + uuid, {"processes": processes} if has_state else None

    def _process_fields(self, state: VmProcessState) -> dict[str, Any]:
        disks = dict(state.restored_disks)
        disks |= {device: tracker.to_note() for device, tracker in state.trackers.items() if tracker.has_state}
        identity = {"monitor": state.vm.monitor, "pid": state.pid, "instance": state.instance}
        has_started = state.run.has_started and state.pid is not None
        fields: dict[str, Any] = {
            **identity,
            "has_started": has_started,
            "disks": disks,
            "firing": self._store.to_note(state.owner),
        }
        state.conditions.stored = dict(state.conditions.pending)
        if state.conditions.stored:
            fields["pending"] = [[*key, since_ns] for key, since_ns in state.conditions.stored.items()]
        return fields

    def notes_due(self, now_ns: int = 0) -> list[Note]:
        """Return the notes to store now.

        A note is due for an image that grew. It is due for a VM that is gone, has started, has a new snapshot, or has a condition that has
        held for `PENDING_SECONDS` at `now_ns` (nanoseconds since the epoch).
        """
        changed = {
            state.vm.uuid
            for state in self._processes
            if (state.run.has_started and not state.is_start_stored)
            or ((state.conditions.pending or state.conditions.stored) and _is_pending_due(state.conditions, now_ns))
        }
        uuids = sorted(changed.union(uuid for uuid in self._stored_uuids if uuid not in self._processes))
        images = [(IMAGE_NOTE_PREFIX + path, note) for path, note in self._highest_writes.notes_due()]
        return [*(self.note_of_vm(uuid) for uuid in uuids), *images, *self._snapshot_ages.notes_due()]


def _is_pending_due(conditions: ConditionMemory, now_ns: int) -> bool:
    """Return whether to store the note again.

    It is stored again if a condition that has held for `PENDING_SECONDS` is not in it, or if a condition in it has ended.
    """
    if not conditions.stored.keys() <= conditions.pending.keys():
        return True
    lasting_ns = now_ns - int(PENDING_SECONDS * 1e9)
    return any(
        since_ns <= lasting_ns and conditions.stored.get(key) != since_ns
        for key, since_ns in conditions.pending.items()
    )


def _read_pending(note: object) -> dict[tuple[str, str, str], int]:
    """Return when each condition in a note began to hold. Invalid values are ignored."""
    pending: dict[tuple[str, str, str], int] = {}
    for entry in note[:MAX_INSTANCES] if isinstance(note, list) else ():
        match entry:
            case [str(alert), str(subject), str(level), int(since_ns)]:
                pending[alert, subject, level] = since_ns
    return pending
