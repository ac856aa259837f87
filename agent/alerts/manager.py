"""Alerts of all VMs: write thresholds and severe events, in one store. Pure: it returns the records to send and the commands to execute.

Each record comes with the state that has to outlive the agent, to be written in one transaction with it. Wherever the agent is killed,
each alert is therefore emitted exactly once.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agent.alerts.active_instances import ActiveInstances
from agent.alerts.disk_alerts import DeviceSizeLookup, DiskAlerts, PolicyLookup
from agent.alerts.levels import ResolvedLevel
from agent.alerts.rules import RULES
from agent.alerts.space_metrics import space_figures
from agent.alerts.store import Alert, AlertStore
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.alerts.threshold_types import DetectedBy
from agent.alerts.vm_state import EMPTY, VmAlertState
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm
from agent.qmp.commands import Command

NOTE_PREFIX = "alerts/"
"""Prefix of the names of state notes; a VM's UUID follows."""

AWAY_SECONDS = 60.0
"""How long the alerts of a detached VM are kept. Its agent or its monitor may just be restarting."""

_RULES_BY_EVENT = {event: [rule for rule in RULES if rule.event == event] for event in {rule.event for rule in RULES}}
_HANDLED_EVENTS = {"RESUME", "STOP", "BLOCK_WRITE_THRESHOLD", *_RULES_BY_EVENT}
"""Events that may fire an alert or change the run state. Those that resolve one are in the store."""


@dataclass(frozen=True, slots=True)
class PendingAlert:
    """An alert record to send.

    Attributes:
        record: The record.
        note: The state note to persist in one transaction with it, as of the moment of this record. Each of several records has a note
            of its own, so that no alert counts as emitted before it is on disk.
    """

    record: Record
    note: tuple[str, Any]

    @property
    def uuid(self) -> str:
        """The VM's UUID."""
        return self.record.vm.uuid


class AlertManager:
    """All alerts of one agent.

    Attributes:
        store: The firing alerts.
    """

    def __init__(self, host: str, policy_of: PolicyLookup, size_of: DeviceSizeLookup = lambda _vm, _path: None) -> None:
        self.store = AlertStore()
        self._host = host
        self._disks = DiskAlerts(self.store, policy_of, size_of)
        self._vms: dict[str, VmAlertState] = {}
        self._instances = ActiveInstances()
        self._persisted: set[str] = set()

    def set_policy(self, policy_of: PolicyLookup) -> None:
        """Use another policy. It applies to each disk at its next poll, which is due now."""
        self._disks.set_policy(policy_of, self._vms.values())

    # Persistence.

    def restore(self, notes: dict[str, object], now: float) -> None:
        """Restore the state notes of an earlier run. A VM that is not attached in time counts as gone."""
        for name, note in notes.items():
            uuid = name.removeprefix(NOTE_PREFIX)
            self._persisted.add(uuid)
            if isinstance(note, dict):
                disks = note.get("disks")
                restored = disks if isinstance(disks, dict) else {}
                self._vms[uuid] = VmAlertState(Vm(self._host, uuid, uuid), restored_disks=restored, gone_at=now)
                self.store.restore(self._host, uuid, note.get("firing"))

    def state_note(self, uuid: str) -> tuple[str, Any]:
        """Return the name and the value of a VM's state note; the value is JSON, or None where there is no state."""
        state = self._vms.get(uuid)
        disks = dict(state.restored_disks) if state is not None else {}
        if state is not None:
            disks |= {device: tracker.to_note() for device, tracker in state.trackers.items() if tracker.has_state}
        firing = self.store.to_note(uuid)
        (self._persisted.add if disks or firing else self._persisted.discard)(uuid)
        return NOTE_PREFIX + uuid, {"disks": disks, "firing": firing} if disks or firing else None

    def stale_notes(self) -> list[str]:
        """Return the UUIDs of VMs that are gone and still have a note on disk; `state_note` then returns None for them."""
        return sorted(self._persisted - self._vms.keys())

    # Lifecycle.

    def on_attached(self, vm: Vm, time_ns: int = 0) -> list[PendingAlert]:
        """Process that a VM is attached. Another attached instance with its UUID stays active until it is gone or stops."""
        self._instances.add(vm)
        state = self._vms.get(vm.uuid)
        ended: list[Alert] = []
        if state is not None and state.gone_for_good:
            # A new process: alerts of the old one are over, but its disks are as full as before.
            ended = [alert for alert in self.store.of_vm(vm.uuid) if alert.name != "write_threshold"]
        self._switch_active(vm.uuid)
        return self._with_notes(self.store.resolve(ended, time_ns, "vm_gone"))

    def on_gone(self, vm: Vm, now: float, *, for_good: bool) -> None:
        """Process that a VM is detached. Unless `for_good`, its alerts are kept for `AWAY_SECONDS`."""
        self._instances.remove(vm)
        state = self._vms.get(vm.uuid)
        if state is not None and state.vm == vm and not self._switch_active(vm.uuid):
            state.gone_at, state.gone_for_good = (now - AWAY_SECONDS if for_good else now), for_good

    def on_run_state(self, vm: Vm, time_ns: int, *, running: bool, status: str = "") -> list[PendingAlert]:
        """Process a poll of the run state. The first one after attaching shows what began or ended while the agent was away."""
        self._instances.set_running(vm, running=running)
        self._switch_active(vm.uuid)
        state = self._active(vm)
        if state is None or state.has_run_state:
            return []
        state.has_run_state = True
        return self._with_notes(self._on_first_run_state(state, time_ns, running=running, status=status))

    def _on_first_run_state(self, state: VmAlertState, time_ns: int, *, running: bool, status: str) -> Iterator[Record]:
        ended = [alert for alert in self.store if running and alert.fingerprint in state.unconfirmed]
        yield from self.store.resolve(ended, time_ns, "running")
        if any("RESUME" in alert.resolved_by for alert in self.store.of_vm(state.vm.uuid)):
            return
        for rule in RULES:
            if rule.status and rule.status == status:
                more = {"help": rule.help, "event": rule.event, "detected_by": DetectedBy.MISSED.value}
                yield from self.store.fire(
                    Alert(rule.alert, state.vm, "", "", rule.severity, time_ns, more, resolved_by=rule.resolved_by)
                )

    def _switch_active(self, uuid: str) -> bool:
        """Make another instance of a UUID active where that is due; return whether one became active."""
        state = self._vms.get(uuid)
        is_attached = state is not None and state.gone_at is None
        vm = self._instances.successor(uuid, state.vm if state is not None and is_attached else None)
        if vm is None:
            return False
        restored = state.restored_disks if state is not None else {}
        if state is not None:
            restored |= {device: tracker.to_note() for device, tracker in state.trackers.items()}
        self._vms[uuid] = successor = VmAlertState(vm)
        for device, note in restored.items():
            successor.trackers[device] = tracker = ThresholdTracker(self._disks.policy_of(vm, device))
            tracker.restore(note)
        if is_attached:
            successor.refreshes |= {"block", "nodes"}
        else:
            paused_by = (alert for alert in self.store.of_vm(uuid) if "RESUME" in alert.resolved_by)
            successor.unconfirmed = frozenset(alert.fingerprint for alert in paused_by) or EMPTY
        return True

    def tick(self, now: float, now_ns: int) -> list[PendingAlert]:
        """Resolve what ends by time. Call it about once a second.

        Args:
            now: Monotonic time in seconds.
            now_ns: Nanoseconds since the epoch.
        """
        return self._with_notes(self._resolve_by_time(now, now_ns))

    def _resolve_by_time(self, now: float, now_ns: int) -> Iterator[Record]:
        yield from self.store.resolve_expired(now_ns)
        for uuid, state in list(self._vms.items()):
            if state.gone_at is not None and now - state.gone_at >= AWAY_SECONDS:
                del self._vms[uuid]
                yield from self.store.resolve_vm(uuid, now_ns)

    # Events and samples.

    def on_event(self, event: Record, name: str, now_ns: int) -> list[PendingAlert]:
        """Process an event; `name` is QEMU's name of it."""
        if name not in _HANDLED_EVENTS and name not in self.store.resolving_events:
            return []  # most events, and in a flood all of them
        return self._with_notes(self._on_handled_event(event, name, now_ns))

    def _on_handled_event(self, event: Record, name: str, now_ns: int) -> Iterator[Record]:
        if name in ("RESUME", "STOP"):
            self._instances.set_running(event.vm, running=name == "RESUME")
            self._switch_active(event.vm.uuid)
        yield from self.store.resolve_by_event(event.vm, name, event.time_ns)
        yield from self._fire_rules(event, name, now_ns)
        state = self._active(event.vm)
        if name == "BLOCK_WRITE_THRESHOLD" and state is not None:
            yield from self._disks.on_threshold_event(state, event, event.data["qemu"], now_ns)

    def _fire_rules(self, event: Record, name: str, now_ns: int) -> Iterator[Record]:
        data, state = event.data["qemu"], self._vms.get(event.vm.uuid)
        for rule in _RULES_BY_EVENT.get(name, ()):
            if not rule.when(data):
                continue
            until_ns = now_ns + int(rule.seconds * 1e9) if rule.seconds is not None else 0
            subject, _, tracker = state.locate(event.subject) if state is not None else (event.subject, "", None)
            tracker = tracker or (state.trackers.get(event.subject) if state is not None else None)
            more = {"help": rule.help, "event": name}
            if rule.alert == "disk_full" and tracker is not None:
                more |= {"detected_by": DetectedBy.ENOSPC.value} | space_figures(tracker)
            # A guest that was not stopped by the event is not resumed either: an operator's pause and resume resolves nothing.
            resolved_by = rule.resolved_by - {"RESUME"} if data.get("action") == "run" else rule.resolved_by
            alert = Alert(rule.alert, event.vm, subject, "", rule.severity, event.time_ns, more, until_ns, resolved_by)
            if state is not None:
                state.unconfirmed -= {alert.fingerprint}
            yield from self.store.fire(alert)

    def on_samples(
        self, vm: Vm, samples: Sequence[Sample], now: float, time_ns: int, *, families: Collection[Family] = ()
    ) -> tuple[list[PendingAlert], list[Sample]]:
        """Process a poll, which has all samples of these families.

        Returns:
            The alert records to send, and the VM's space samples: the same list as before where nothing changed.
        """
        state = self._active(vm)
        if state is None:
            return [], []
        pending = self._with_notes(self._disks.on_samples(state, samples, families, now, time_ns))
        return pending, self._disks.space(state)

    def _with_notes(self, records: Iterable[Record]) -> list[PendingAlert]:
        return [PendingAlert(record, self.state_note(record.vm.uuid)) for record in records]

    # Queries and commands.

    def _active(self, vm: Vm) -> VmAlertState | None:
        """Return the state of a VM if it is the active instance of its UUID."""
        state = self._vms.get(vm.uuid)
        return state if state is not None and (state.vm is vm or state.vm == vm) else None

    def levels(self, vm: Vm, device: str) -> tuple[ResolvedLevel, ...]:
        """Return the levels of a VM's disk, the lowest first; none where the policy is off or the disk is not thin."""
        state = self._active(vm)
        tracker = state.trackers.get(device) if state is not None else None
        return tracker.levels if tracker is not None else ()

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the collectors that have to run now, and clear them."""
        state = self._active(vm)
        if state is None:
            return EMPTY
        due, state.refreshes = state.refreshes, EMPTY
        return due

    def pending_commands(self, vm: Vm) -> list[tuple[str, Command]]:
        """Return the commands that set thresholds now, each with its disk. `state_note` then has these thresholds as set."""
        state = self._active(vm)
        return self._disks.pending_commands(state) if state is not None else []

    def on_command_done(self, vm: Vm, device: str, *, done: bool) -> None:
        """Process a command's outcome: whether QEMU confirmed it."""
        state = self._active(vm)
        if state is not None:
            self._disks.on_command_done(state, device, done=done)
