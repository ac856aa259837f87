"""Persistent entries of alerts: named JSON values in the journal, from which the next run of the agent restores the alerts. Pure."""

from collections.abc import Mapping
from typing import Any

from agent.alerts.highest_write_offsets import HighestWriteStore
from agent.alerts.processes import VmProcessRegistry
from agent.alerts.rules.derived_samples import VmRuleState
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.rules.sample_rule_evaluator import MAX_RULE_SUBJECTS
from agent.alerts.rules.snapshot_ages import SNAPSHOT_ENTRY_PREFIX, ExternalSnapshotAges
from agent.alerts.store import AlertStore
from agent.model.record import Vm

VM_ENTRY_PREFIX = "alerts/"
"""Prefix of the name of a VM's entry. The VM's UUID follows."""

IMAGE_ENTRY_PREFIX = "images/"
"""Prefix of the name of an image's entry. The image's path follows."""

PENDING_SECONDS = 60.0
"""How long a condition has to hold before the journal stores when the condition began, in seconds."""

EntryNameAndValue = tuple[str, Any]
"""The name and the JSON value of a persistent entry. The value None deletes the stored entry."""


class AlertPersistence:
    """Creates and restores the persistent entries of VMs, disk images and snapshots."""

    def __init__(
        self,
        host: str,
        store: AlertStore,
        processes: VmProcessRegistry,
        highest_writes: HighestWriteStore,
        snapshot_ages: ExternalSnapshotAges,
    ) -> None:
        self._host = host
        self._store = store
        self._processes = processes
        self._highest_writes = highest_writes
        self._snapshot_ages = snapshot_ages
        self._stored_uuids: set[str] = set()

    def restore(self, entries: Mapping[str, object], now: float) -> None:
        """Restore the entries of an earlier run. Each restored VM counts as detached since `now`, in seconds on the monotonic clock."""
        for name, value in entries.items():
            if name.startswith(IMAGE_ENTRY_PREFIX):
                self._highest_writes.restore(name.removeprefix(IMAGE_ENTRY_PREFIX), value)
            elif name.startswith(VM_ENTRY_PREFIX):
                self._restore_vm(name.removeprefix(VM_ENTRY_PREFIX), value, now)
            elif name.startswith(SNAPSHOT_ENTRY_PREFIX):
                self._snapshot_ages.restore(name.removeprefix(SNAPSHOT_ENTRY_PREFIX), value)

    def _restore_vm(self, uuid: str, value: object, now: float) -> None:
        self._stored_uuids.add(uuid)
        processes = value.get("processes") if isinstance(value, dict) else None
        for process in processes if isinstance(processes, list) else ():
            if not isinstance(process, dict):
                continue
            monitor, pid, instance = (process.get(key) for key in ("monitor", "pid", "instance"))
            vm = Vm(self._host, uuid, uuid, str(monitor or ""))
            state = self._processes.add(vm, pid if type(pid) is int else None, instance=str(instance or ""))
            state.detached_at = now
            # Without a pid, the agent could confuse this process with a new process whose guest has not started yet.
            state.run.has_started = state.pid is not None and process.get("has_started") is True
            disks = process.get("disks")
            state.restored_disks = disks if isinstance(disks, dict) else {}
            state.rule_state.pending = _read_pending(process.get("pending"))
            state.rule_state.stored = dict(state.rule_state.pending)
            self._store.restore(vm, state.owner, process.get("firing"))

    def entry_of_vm(self, uuid: str) -> EntryNameAndValue:
        """Return a VM's entry; its value is None if the VM has no state to store."""
        processes = [self._process_fields(state) for state in self._processes.processes_with_uuid(uuid)]
        kinds = ("disks", "firing", "has_started", "pending")
        has_state = any(process.get(kind) for process in processes for kind in kinds)
        for state in self._processes.processes_with_uuid(uuid):
            state.is_start_stored = state.run.has_started
        (self._stored_uuids.add if has_state else self._stored_uuids.discard)(uuid)
        return VM_ENTRY_PREFIX + uuid, {"processes": processes} if has_state else None

    def _process_fields(self, state: VmProcessState) -> dict[str, Any]:
        disks = dict(state.restored_disks)
        disks |= {device: tracker.state_to_store() for device, tracker in state.trackers.items() if tracker.has_state}
        identity = {"monitor": state.vm.monitor, "pid": state.pid, "instance": state.instance}
        has_started = state.run.has_started and state.pid is not None
        fields: dict[str, Any] = {
            **identity,
            "has_started": has_started,
            "disks": disks,
            "firing": self._store.state_to_store(state.owner),
        }
        state.rule_state.stored = dict(state.rule_state.pending)
        if state.rule_state.stored:
            fields["pending"] = [[*key, since_ns] for key, since_ns in state.rule_state.stored.items()]
        return fields

    def entries_to_store(self, now_ns: int = 0) -> list[EntryNameAndValue]:
        """Return the entries to store or to delete now.

        The entry of a VM is due if the guest has started or if the VM was removed. The VM's entry is also due if an alert's condition has
        held for `PENDING_SECONDS`, or if a stored condition has ended.

        The entry of an image is due if the guest has written much to the image. The entry of snapshots is due if the snapshots of a VM have
        changed.

        Args:
            now_ns: The current time in nanoseconds since the epoch.
        """
        changed = {
            state.vm.uuid
            for state in self._processes
            if (state.run.has_started and not state.is_start_stored)
            or ((state.rule_state.pending or state.rule_state.stored) and _is_pending_due(state.rule_state, now_ns))
        }
        uuids = sorted(changed.union(uuid for uuid in self._stored_uuids if uuid not in self._processes))
        images = [(IMAGE_ENTRY_PREFIX + path, value) for path, value in self._highest_writes.entries_to_store()]
        return [*(self.entry_of_vm(uuid) for uuid in uuids), *images, *self._snapshot_ages.entries_to_store()]


def _is_pending_due(rule_state: VmRuleState, now_ns: int) -> bool:
    """Return whether the VM's stored entry is out of date.

    The entry is out of date if a condition has held for `PENDING_SECONDS` and is missing, or if a condition in the entry has ended.
    """
    if not rule_state.stored.keys() <= rule_state.pending.keys():
        return True
    lasting_ns = now_ns - int(PENDING_SECONDS * 1e9)
    return any(
        since_ns <= lasting_ns and rule_state.stored.get(key) != since_ns
        for key, since_ns in rule_state.pending.items()
    )


def _read_pending(value: object) -> dict[tuple[str, str, str], int]:
    """Return when each condition in a VM's entry began to hold. Ignore invalid values."""
    pending: dict[tuple[str, str, str], int] = {}
    for entry in value[:MAX_RULE_SUBJECTS] if isinstance(value, list) else ():
        match entry:
            case [str(alert), str(subject), str(level), int(since_ns)]:
                pending[alert, subject, level] = since_ns
    return pending
