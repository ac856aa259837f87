"""Alerts of all VMs: write thresholds, events, jobs and run states, in one store. Pure.

The manager returns the records to send and the commands to execute. With each record it returns a note of the state right after the record.
The journal stores the record and the note in one transaction. So each alert is emitted exactly once, even if the agent is killed.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.alerts.disk_alerts import DeviceIdentityLookup, DeviceSizeLookup, DiskAlerts, PolicyLookup, PoolLookup
from agent.alerts.disk_usage import UNKNOWN_POOL
from agent.alerts.event_alerts import HANDLED_EVENTS, EventAlerts
from agent.alerts.guest_alerts import GuestAlerts
from agent.alerts.guest_policy import GuestAlertPolicy
from agent.alerts.highest_writes import HighestWriteStore
from agent.alerts.levels import ResolvedLevel
from agent.alerts.notes import AlertNotes, Note
from agent.alerts.pool_usage import MAX_GROWERS, Grower, PoolUsage
from agent.alerts.process_state import EMPTY_SET, VmProcessState
from agent.alerts.processes import IsProcessAlive, ProcessRegistry
from agent.alerts.run_state_alerts import RunStateAlerts
from agent.alerts.shared_uuid_alerts import SharedUuidAlerts
from agent.alerts.store import AlertStore
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm
from agent.qmp.commands import Command

AWAY_SECONDS = 60.0
"""How long the alerts of a detached VM are kept, because the agent or the VM's monitor may just be restarting."""


@dataclass(frozen=True, slots=True)
class PendingAlert:
    """An alert record to send.

    Attributes:
        record: The record.
        note: The VM's note right after this record, to store in one transaction with the record. So no alert counts as emitted before its
            record is on disk.
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
        notes: The state to store for the next run of the agent.
    """

    def __init__(
        self,
        host: str,
        policy_lookup: PolicyLookup,
        size_lookup: DeviceSizeLookup = lambda _vm, _path: None,
        is_alive: IsProcessAlive = lambda _pid: False,
        pool_lookup: PoolLookup = lambda _vm, _device, _path: UNKNOWN_POOL,
        identity_lookup: DeviceIdentityLookup = lambda _vm, _path: "",
    ) -> None:
        """Create a manager without alerts.

        Args:
            host: This host's name.
            policy_lookup: Returns the threshold policy of a VM's disk.
            size_lookup: Returns the size of a block device of the host.
            is_alive: Returns whether the QEMU process with a pid is alive.
            pool_lookup: Returns the pool of the image of a VM's disk.
            identity_lookup: Returns what identifies a block device of the host.
        """
        highest_writes = HighestWriteStore()
        self.store = AlertStore()
        self._processes = ProcessRegistry(is_alive)
        self._disks = DiskAlerts(self.store, highest_writes, policy_lookup, size_lookup, pool_lookup, identity_lookup)
        self._run_states = RunStateAlerts(self.store)
        self._events = EventAlerts(self.store, self._disks, self._run_states)
        self._guests = GuestAlerts(self.store)
        self._shared_uuids = SharedUuidAlerts(self.store, self._processes, self._disks, self._run_states)
        self.notes = AlertNotes(host, self.store, self._processes, highest_writes)

    def set_policy(self, policy_lookup: PolicyLookup) -> None:
        """Use another threshold policy. The policy applies to each disk from its next poll, and this poll is due now."""
        self._disks.set_policy(policy_lookup, self._processes)

    def set_guest_policy(self, policy: GuestAlertPolicy) -> None:
        """Use other limits inside guests, from the next poll of each guest agent."""
        self._guests.policy = policy

    # Lifecycle.

    def on_attached(self, vm: Vm, time_ns: int = 0, pid: int | None = None) -> list[PendingAlert]:
        """Handle a VM that was attached.

        Args:
            vm: The VM.
            time_ns: When the VM was attached, in nanoseconds since the epoch.
            pid: The VM's process; None if unknown.
        """
        state = self._processes.attach(vm, pid)
        self._run_states.on_attached(state)
        if state.restored_disks and state.is_active:
            self._disks.restore_disks(state, state.restored_disks)
            state.restored_disks = {}
        return self._with_notes(self._shared_uuids.switch_primary(vm.uuid, time_ns))

    def on_gone(self, vm: Vm, now: float, *, for_good: bool, time_ns: int = 0) -> list[PendingAlert]:
        """Handle a VM that was detached.

        Args:
            vm: The VM.
            now: The current time on the monotonic clock, in seconds.
            for_good: Whether the guest shut down or migrated away. Otherwise, the VM's alerts are kept for `AWAY_SECONDS`.
            time_ns: When the VM was detached, in nanoseconds since the epoch.
        """
        state = self._processes.find_attached(vm)
        if state is None:
            return []
        state.gone_at, state.gone_for_good = (now - AWAY_SECONDS if for_good else now), for_good
        return self._with_notes(self._shared_uuids.switch_primary(vm.uuid, time_ns))

    def tick(self, now: float, now_ns: int) -> list[PendingAlert]:
        """Fire and resolve the alerts that depend on time. Call it about once a second.

        Args:
            now: The current time on the monotonic clock, in seconds.
            now_ns: The current time in nanoseconds since the epoch.
        """
        return self._with_notes(self._on_tick(now, now_ns))

    def _on_tick(self, now: float, now_ns: int) -> Iterator[Record]:
        yield from self.store.resolve_expired(now_ns)
        for state in self._processes:
            if state.gone_at is None:
                # Most guests run and have no alert. Skip them, because this loop runs for all VMs.
                if not state.run.running or state.io_errors_ns or state.owner in self.store:
                    yield from self._run_states.on_tick(state, now_ns)
                yield from self._guests.on_tick(state, now_ns)
            elif now - state.gone_at >= AWAY_SECONDS:
                self._processes.remove(state)
                yield from self.store.resolve(self.store.of_owner(state.owner), now_ns, "vm_gone")
        yield from self._shared_uuids.check_clashes(now_ns)

    # Events and samples.

    def on_event(self, event: Record, name: str, now_ns: int) -> list[PendingAlert]:
        """Handle an event as soon as it is read.

        Args:
            event: The event's record.
            name: The event's name in QEMU.
            now_ns: The current time in nanoseconds since the epoch.
        """
        if name not in HANDLED_EVENTS and name not in self.store.resolving_events:
            return []  # a fast path, because most events change no alert
        state = self._processes.find_attached(event.vm)
        if state is None:
            return []
        if event.time_ns > now_ns:  # from a host whose clock is ahead
            event = event._replace(time_ns=now_ns)
        pending = self._with_notes(self._events.on_event(state, event, name, now_ns))
        return pending + self._with_notes(self._shared_uuids.switch_primary(event.vm.uuid, event.time_ns))

    def on_run_state(self, vm: Vm, time_ns: int, *, running: bool, status: str = "") -> list[PendingAlert]:
        """Handle a poll of the run state.

        Args:
            vm: The VM.
            time_ns: When the query was sent, in nanoseconds since the epoch.
            running: Whether the guest runs.
            status: QEMU's RunState.
        """
        state = self._processes.find_attached(vm)
        if state is None:
            return []
        pending = self._with_notes(self._run_states.on_poll(state, status, time_ns, running=running))
        return pending + self._with_notes(self._shared_uuids.switch_primary(vm.uuid, time_ns))

    def on_migration(self, vm: Vm, status: str, time_ns: int) -> list[PendingAlert]:
        """Handle a poll of the migration; `time_ns` is when the query was sent, in nanoseconds since the epoch."""
        state = self._processes.find_attached(vm)
        return self._with_notes(self._run_states.on_migration(state, status, time_ns)) if state is not None else []

    def on_jobs(self, vm: Vm, samples: Iterable[Sample], time_ns: int, now_ns: int) -> list[PendingAlert]:
        """Handle a poll of the jobs.

        Args:
            vm: The VM.
            samples: The samples of all jobs.
            time_ns: When the query was sent, in nanoseconds since the epoch.
            now_ns: The current time in nanoseconds since the epoch.
        """
        state = self._processes.find_attached(vm)
        return self._with_notes(self._events.on_jobs(state, samples, time_ns, now_ns)) if state is not None else []

    def on_guest_channel(self, vm: Vm, time_ns: int, *, connected: bool) -> list[PendingAlert]:
        """Handle a poll of the guest agent's channel; `connected` says whether the guest has opened it."""
        state = self._processes.find_attached(vm)
        if state is None:
            return []
        return self._with_notes(self._guests.on_channel(state, time_ns, connected=connected))

    def on_guest_samples(
        self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> list[PendingAlert]:
        """Handle all samples of these families, as the guest agent reported them."""
        state = self._processes.find_attached(vm)
        return self._with_notes(self._guests.on_samples(state, families, samples, time_ns)) if state is not None else []

    def on_guest_disabled(self, vm: Vm, time_ns: int) -> list[PendingAlert]:
        """Handle a VM whose guest agent is no longer queried."""
        state = self._processes.find_attached(vm)
        return self._with_notes(self._guests.on_disabled(state, time_ns)) if state is not None else []

    def on_samples(
        self, vm: Vm, samples: Sequence[Sample], now: float, time_ns: int, *, families: Collection[Family] = ()
    ) -> tuple[list[PendingAlert], list[Sample]]:
        """Handle a poll of disks.

        Args:
            vm: The VM.
            samples: All samples of the families.
            now: The current time on the monotonic clock, in seconds.
            time_ns: When the query was sent, in nanoseconds since the epoch.
            families: The polled families.

        Returns:
            The alert records to send, and the VM's space samples. If no space sample has changed, the list is the same object as before.
        """
        state = self._processes.find_attached(vm)
        if state is None:
            return [], []
        records = self._disks.on_samples(state, samples, families, now, time_ns) if state.is_active else ()
        pending = self._with_notes(records)
        pending += self._with_notes(self._run_states.on_devices(state, samples, families, time_ns))
        return pending, self._disks.space_samples(state) if state.is_active else []

    def _with_notes(self, records: Iterable[Record]) -> list[PendingAlert]:
        return [PendingAlert(record, self.notes.note_of_vm(record.vm.uuid)) for record in records]

    # Queries and commands.

    def _active_process(self, vm: Vm) -> VmProcessState | None:
        """Return the process that is attached as this VM, if the agent evaluates its disks."""
        state = self._processes.find_attached(vm)
        return state if state is not None and state.is_active else None

    def levels(self, vm: Vm, device: str) -> tuple[ResolvedLevel, ...]:
        """Return the levels of a VM's disk, the lowest first; none if the policy is off or the disk is not thin."""
        state = self._active_process(vm)
        tracker = state.trackers.get(device) if state is not None else None
        return tracker.levels if tracker is not None else ()

    def growers(self, pool: PoolUsage) -> list[Grower]:
        """Return the disks on a pool that grow, the fastest first."""
        growers = []
        for vm, device, layer in pool.images:
            state = self._active_process(vm) if layer == "storage" else None
            tracker = state.trackers.get(device) if state is not None else None
            if tracker is not None and (rate := tracker.usage.growth_rate):
                growers.append(Grower(vm.name, device, rate))
        return sorted(growers, key=lambda grower: -grower.rate)[:MAX_GROWERS]

    def subject_of(self, event: Record) -> str:
        """Return the subject of an event about a disk: the disk's stable name, or QEMU's name for it if the disk is unknown."""
        state = self._processes.find_attached(event.vm)
        if state is None:
            return event.subject
        device, is_certain = self._disks.device_of(state, event.subject, event.data["qemu"])
        return device if is_certain else event.subject

    def refreshes_due(self, vm: Vm) -> frozenset[str]:
        """Return the names of the collectors that have to run now, and clear the set."""
        state = self._processes.find_attached(vm)
        if state is None:
            return EMPTY_SET
        due, state.refreshes = state.refreshes, EMPTY_SET
        return due

    def pending_commands(self, vm: Vm) -> list[tuple[str, Command]]:
        """Return the commands that set thresholds now, each with its device. From now on, the VM's note shows the thresholds as set."""
        state = self._active_process(vm)
        return self._disks.pending_commands(state) if state is not None else []

    def on_command_done(self, vm: Vm, device: str, *, done: bool) -> None:
        """Handle the outcome of the command that set a disk's threshold; `done` says whether QEMU confirmed it."""
        state = self._active_process(vm)
        if state is not None:
            self._disks.on_command_done(state, device, done=done)
