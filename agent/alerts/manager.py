"""Alerts of all VMs: write thresholds, severe events and run states, in one store.

Pure: it returns the records to send and the commands to execute. With each record it returns the state that has to survive a restart.
The journal stores both in one transaction. So each alert is emitted exactly once, whenever the agent is killed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.alerts.disk_alerts import DeviceSizeLookup, DiskAlerts, PolicyLookup
from agent.alerts.event_alerts import HANDLED_EVENTS, EventAlerts
from agent.alerts.images import ImageMemory
from agent.alerts.levels import ResolvedLevel
from agent.alerts.process_state import EMPTY, VmProcessState
from agent.alerts.processes import ProcessLookup, ProcessRegistry
from agent.alerts.rules import UUID_CLASH_HELP
from agent.alerts.run_state_alerts import RunStateAlerts
from agent.alerts.store import Alert, AlertStore
from agent.alerts.threshold_tracker import ThresholdTracker
from agent.model.family import Family, Sample
from agent.model.record import Record, Severity, Vm
from agent.qmp.commands import Command

NOTE_PREFIX = "alerts/"
"""Prefix of the names of state notes; a VM's UUID follows."""

IMAGE_PREFIX = "images/"
"""Prefix of the names of image notes; the image's path follows."""

Note = tuple[str, Any]
"""The name and the JSON value of a note that survives a restart of the agent. The value None deletes the stored note."""

AWAY_SECONDS = 60.0
"""How long the alerts of a detached VM are kept. Its agent or its monitor may just be restarting."""


@dataclass(frozen=True, slots=True)
class PendingAlert:
    """An alert record to send.

    Attributes:
        record: The record.
        note: The state note to persist in one transaction with the record. It has the state right after this record, so that no alert
            counts as emitted before its record is on disk.
    """

    record: Record
    note: Note

    @property
    def uuid(self) -> str:
        """The VM's UUID."""
        return self.record.vm.uuid


class AlertManager:
    """All alerts of one agent.

    Attributes:
        store: The firing alerts.
    """

    def __init__(
        self,
        host: str,
        policy_of: PolicyLookup,
        size_of: DeviceSizeLookup = lambda _vm, _path: None,
        is_alive: ProcessLookup = lambda _pid: False,
    ) -> None:
        self.store = AlertStore()
        self._host = host
        self._images = ImageMemory()
        self._disks = DiskAlerts(self.store, self._images, policy_of, size_of)
        self._run_states = RunStateAlerts(self.store)
        self._events = EventAlerts(self.store, self._disks, self._run_states)
        self._processes = ProcessRegistry(is_alive)
        self._persisted: set[str] = set()

    def set_policy(self, policy_of: PolicyLookup) -> None:
        """Use another policy. It applies to each disk from the disk's next poll; a poll is due now."""
        self._disks.set_policy(policy_of, self._processes)

    # Persistence.

    def restore(self, notes: Mapping[str, object], now: float) -> None:
        """Restore the notes of an earlier run. A VM that is not attached within `AWAY_SECONDS` counts as gone."""
        for name, note in notes.items():
            if name.startswith(IMAGE_PREFIX):
                self._images.restore(name.removeprefix(IMAGE_PREFIX), note)
            elif name.startswith(NOTE_PREFIX):
                self._restore_vm(name.removeprefix(NOTE_PREFIX), note, now)

    def _restore_vm(self, uuid: str, note: object, now: float) -> None:
        self._persisted.add(uuid)
        processes = note.get("processes") if isinstance(note, dict) else None
        for process in processes if isinstance(processes, list) else ():
            if not isinstance(process, dict):
                continue
            monitor, pid, instance = (process.get(key) for key in ("monitor", "pid", "instance"))
            vm = Vm(self._host, uuid, uuid, str(monitor or ""))
            state = self._processes.add(vm, pid if type(pid) is int else None, instance=str(instance or ""))
            state.gone_at = now
            disks = process.get("disks")
            state.restored_disks = disks if isinstance(disks, dict) else {}
            self.store.restore(vm, state.owner, process.get("firing"))

    def state_note(self, uuid: str) -> Note:
        """Return a VM's state note; its value is None if there is no state."""
        processes = [self._process_note(state) for state in self._processes.of_uuid(uuid)]
        has_state = any(process["disks"] or process["firing"] for process in processes)
        (self._persisted.add if has_state else self._persisted.discard)(uuid)
        return NOTE_PREFIX + uuid, {"processes": processes} if has_state else None

    def _process_note(self, state: VmProcessState) -> dict[str, Any]:
        disks = dict(state.restored_disks)
        disks |= {device: tracker.to_note() for device, tracker in state.trackers.items() if tracker.has_state}
        about = {"monitor": state.vm.monitor, "pid": state.pid, "instance": state.instance}
        return {**about, "disks": disks, "firing": self.store.to_note(state.owner)}

    def notes_due(self) -> list[Note]:
        """Return the notes to persist now: those of images that grew, and those of VMs that are gone."""
        stale = sorted(uuid for uuid in self._persisted if uuid not in self._processes)
        images = [(IMAGE_PREFIX + path, note) for path, note in self._images.notes_due()]
        return [*(self.state_note(uuid) for uuid in stale), *images]

    # Lifecycle.

    def on_attached(self, vm: Vm, time_ns: int = 0, pid: int | None = None) -> list[PendingAlert]:
        """Handle a VM that is attached; `pid` is its process, None if unknown."""
        state = self._processes.attach(vm, pid)
        self._expect_changes(state)
        if state.restored_disks and state.is_active:
            self._restore_disks(state, state.restored_disks)
            state.restored_disks = {}
        return self._with_notes(self._switch_primary(vm.uuid, time_ns))

    def on_gone(self, vm: Vm, now: float, *, for_good: bool, time_ns: int = 0) -> list[PendingAlert]:
        """Handle a VM that is detached. Unless it is `for_good`, keep its alerts for `AWAY_SECONDS`."""
        state = self._processes.attached(vm)
        if state is None:
            return []
        state.gone_at, state.gone_for_good = (now - AWAY_SECONDS if for_good else now), for_good
        return self._with_notes(self._switch_primary(vm.uuid, time_ns))

    def _switch_primary(self, uuid: str, time_ns: int) -> Iterator[Record]:
        """Make another process the primary of a UUID if it has to take over."""
        successor = self._processes.successor(uuid)
        if successor is None:
            return
        primary = self._processes.of_uuid(uuid)[0]
        alerts = self.store.of_owner(primary.owner)
        has_ended = self._processes.has_ended(primary, successor)
        inherits = not successor.is_active  # a VM that runs beside the primary has its own disks
        kept = [
            alert
            for alert in alerts
            if inherits
            and _survives(alert, primary, has_ended=has_ended)
            and self.store.find(successor.owner, *alert.key) is None
        ]
        ended = [alert for alert in alerts if alert not in kept]
        reason = "vm_gone" if primary.gone_at is not None else "migrated"
        self._processes.make_primary(successor)
        if inherits:
            self._restore_disks(successor, primary.disk_notes())
        primary.trackers, primary.restored_disks = {}, {}
        self.store.reassign(kept, successor.vm, successor.owner)
        self._expect_changes(successor)
        successor.refreshes |= {"block", "nodes"} if primary.gone_at is None else EMPTY
        yield from self.store.resolve(ended, time_ns, reason)
        if has_ended:
            self._processes.remove(primary)

    def _expect_changes(self, state: VmProcessState) -> None:
        """Allow polls to resolve older alerts: the events that resolve them may have been missed while the VM was detached.

        Until the guest is polled as running, it counts as stopped since the newest evidence of its alerts.
        """
        seen_ns = (alert.seen_ns for alert in self.store.of_owner(state.owner))
        state.run.stopped_ns = max([state.run.stopped_ns, *seen_ns])

    def _restore_disks(self, state: VmProcessState, notes: Mapping[str, Any]) -> None:
        for device, note in notes.items():
            state.trackers[device] = tracker = ThresholdTracker(self._disks.policy_of(state.vm, device))
            tracker.restore(note)

    def tick(self, now: float, now_ns: int) -> list[PendingAlert]:
        """Fire and resolve the alerts that depend on time. Call it about once a second.

        Args:
            now: Monotonic time in seconds.
            now_ns: Nanoseconds since the epoch.
        """
        return self._with_notes(self._on_tick(now, now_ns))

    def _on_tick(self, now: float, now_ns: int) -> Iterator[Record]:
        yield from self.store.resolve_expired(now_ns)
        for state in self._processes:
            if state.gone_at is None:
                # Most VMs run and have no alert.
                if not state.run.running or state.io_errors_ns or state.owner in self.store:
                    yield from self._run_states.on_tick(state, now_ns)
            elif now - state.gone_at >= AWAY_SECONDS:
                self._processes.remove(state)
                yield from self.store.resolve(self.store.of_owner(state.owner), now_ns, "vm_gone")
        clashing = {alert.vm.uuid for alert in self.store if alert.name == "uuid_clash"}
        for uuid in clashing.union(self._processes.shared_uuids()):
            yield from self._check_clash(uuid, now_ns)

    def _check_clash(self, uuid: str, now_ns: int) -> Iterator[Record]:
        """Fire or resolve the alert that several running VMs share this UUID."""
        states = self._processes.of_uuid(uuid)
        clashing = self._processes.clashes(uuid)
        for state in states[1:]:
            state.is_active = state in clashing
        if clashing:
            primary = states[0]
            monitors = ", ".join(sorted(state.vm.monitor for state in clashing))
            data = {"help": UUID_CLASH_HELP, "monitors": monitors}
            alert = primary.alert("uuid_clash", "", Severity.ERROR, now_ns, data)
            if self.store.find(primary.owner, "uuid_clash") is None:
                yield from self.store.fire(alert)
        elif len(states) < 2 or self._processes.is_unique(uuid):
            over = (self.store.find(state.owner, "uuid_clash") for state in states)
            yield from self.store.resolve((alert for alert in over if alert is not None), now_ns, "uuid_unique")
        if len(self._processes.running(uuid)) > 1:
            for state in states:
                state.refreshes |= {"runstate"}

    # Events and samples.

    def on_event(self, event: Record, name: str, now_ns: int) -> list[PendingAlert]:
        """Handle an event as soon as it is read; `name` is its name in QEMU."""
        if name not in HANDLED_EVENTS and name not in self.store.resolving_events:
            return []  # the fast path of most events, and of all events in a flood
        state = self._processes.attached(event.vm)
        if state is None:
            return []
        if event.time_ns > now_ns:  # from a host whose clock is ahead
            event = event._replace(time_ns=now_ns)
        records = self._with_notes(self._events.on_event(state, event, name, now_ns))
        return records + self._with_notes(self._switch_primary(event.vm.uuid, event.time_ns))

    def on_run_state(self, vm: Vm, time_ns: int, *, running: bool, status: str = "") -> list[PendingAlert]:
        """Handle a poll of the run state; its query was sent at `time_ns`."""
        state = self._processes.attached(vm)
        if state is None:
            return []
        records = self._with_notes(self._run_states.on_poll(state, status, time_ns, running=running))
        return records + self._with_notes(self._switch_primary(vm.uuid, time_ns))

    def on_migration(self, vm: Vm, status: str, time_ns: int) -> list[PendingAlert]:
        """Handle a migration status that was polled at `time_ns`."""
        state = self._processes.attached(vm)
        return self._with_notes(self._run_states.on_migration(state, status, time_ns)) if state is not None else []

    def on_jobs(self, vm: Vm, samples: Iterable[Sample], time_ns: int, now_ns: int) -> list[PendingAlert]:
        """Handle a poll of the jobs with the samples of all jobs."""
        state = self._processes.attached(vm)
        return self._with_notes(self._events.on_jobs(state, samples, time_ns, now_ns)) if state is not None else []

    def on_samples(
        self, vm: Vm, samples: Sequence[Sample], now: float, time_ns: int, *, families: Collection[Family] = ()
    ) -> tuple[list[PendingAlert], list[Sample]]:
        """Handle a poll of disks with all samples of these families.

        Returns:
            The alert records to send, and the VM's space samples: the same list object as before if nothing changed.
        """
        state = self._processes.attached(vm)
        if state is None:
            return [], []
        disks = self._disks.on_samples(state, samples, families, now, time_ns) if state.is_active else ()
        pending = self._with_notes(disks)
        pending += self._with_notes(self._run_states.on_devices(state, samples, families, time_ns))
        return pending, self._disks.space(state) if state.is_active else []

    def _with_notes(self, records: Iterable[Record]) -> list[PendingAlert]:
        return [PendingAlert(record, self.state_note(record.vm.uuid)) for record in records]

    # Queries and commands.

    def _active(self, vm: Vm) -> VmProcessState | None:
        """Return the process that is attached as this VM, if its disks are evaluated."""
        state = self._processes.attached(vm)
        return state if state is not None and state.is_active else None

    def levels(self, vm: Vm, device: str) -> tuple[ResolvedLevel, ...]:
        """Return the levels of a VM's disk, the lowest first; none if the policy is off or the disk is not thin."""
        state = self._active(vm)
        tracker = state.trackers.get(device) if state is not None else None
        return tracker.levels if tracker is not None else ()

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the collectors that have to run now, and clear the set."""
        state = self._processes.attached(vm)
        if state is None:
            return EMPTY
        due, state.refreshes = state.refreshes, EMPTY
        return due

    def pending_commands(self, vm: Vm) -> list[tuple[str, Command]]:
        """Return the commands that set thresholds now, each with its disk. From now on, `state_note` shows these thresholds as set."""
        state = self._active(vm)
        return self._disks.pending_commands(state) if state is not None else []

    def on_command_done(self, vm: Vm, device: str, *, done: bool) -> None:
        """Handle the outcome of the command that set the threshold; `done` says whether QEMU confirmed it."""
        state = self._active(vm)
        if state is not None:
            self._disks.on_command_done(state, device, done=done)


def _survives(alert: Alert, before: VmProcessState, *, has_ended: bool) -> bool:
    """Return whether an alert of a process becomes an alert of the process that succeeds it."""
    if alert.name == "write_threshold":
        return True  # the disks are as full as before
    if has_ended:
        return False
    if before.gone_at is not None:
        return True  # it may be the same process on another monitor: its run state decides
    return not alert.status  # the stopped guest is gone, or it runs in another process now
