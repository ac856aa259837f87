"""The alert engine: evaluates the events and polls of all VMs, and stores which alerts fire. Pure.

The engine returns the records to send and the commands to execute. Each record comes with a persistent entry: a JSON value with the VM's
alerts as of this record. The journal stores the record and the entry in one transaction. So each alert is emitted exactly once, even if
the agent is killed.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.alerts.disk_alerts import (
    DeviceIdentityLookup,
    DeviceSizeLookup,
    DiskAlerts,
    PoolLookup,
    ThresholdPolicyLookup,
)
from agent.alerts.disk_lookup import DiskLookup
from agent.alerts.disk_usage import UNKNOWN_POOL
from agent.alerts.event_alerts import HANDLED_EVENTS, EventAlerts
from agent.alerts.guest_alerts import GuestAlerts
from agent.alerts.guest_policy import GuestAlertPolicy
from agent.alerts.highest_write_offsets import HighestWriteStore
from agent.alerts.persistence import AlertPersistence, EntryNameAndValue
from agent.alerts.processes import IsProcessAlive, VmProcessRegistry
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.rule_evaluator import RuleEvaluator
from agent.alerts.rules.rule_types import EventAlertRule, SampleAlertRule
from agent.alerts.run_state_alerts import RunStateAlerts
from agent.alerts.shared_uuid_alerts import SharedUuidAlerts
from agent.alerts.store import AlertStore
from agent.alerts.threshold_commands import ThresholdCommands
from agent.model.event_definition import EventCategory
from agent.model.family import Family, Sample
from agent.model.record import Record, Vm

REATTACH_SECONDS = 60.0
"""How long the agent keeps the alerts of a detached VM, because the agent may attach to the VM again. In seconds."""


@dataclass(frozen=True, slots=True)
class AlertChange:
    """An alert that fires or is resolved: the record to send, and the persistent entry to store with the record.

    Attributes:
        record: The record.
        entry: The persistent entry with the alerts of the VM or pool after this record. The journal stores the record and the entry in one
            transaction. So no alert counts as emitted before its record is on disk.
    """

    record: Record
    entry: EntryNameAndValue

    @property
    def uuid(self) -> str:
        """The VM's UUID."""
        return self.record.vm.uuid


class AlertEngine:
    """Fires and resolves the alerts of all VMs.

    Attributes:
        store: The firing alerts.
        rules: Evaluates the alert rules on samples and events, built-in and custom, with the config's overrides.
        disk_lookup: Looks up names, levels and growth of disks.
        threshold_commands: The commands that set write thresholds.
        persistence: Creates and restores the persistent entries.
    """

    def __init__(
        self,
        host: str,
        policy_lookup: ThresholdPolicyLookup,
        size_lookup: DeviceSizeLookup = lambda _vm, _path: None,
        is_alive: IsProcessAlive = lambda _pid: False,
        pool_lookup: PoolLookup = lambda _vm, _device, _path: UNKNOWN_POOL,
        identity_lookup: DeviceIdentityLookup = lambda _vm, _path: "",
    ) -> None:
        """Create an engine without alerts.

        Args:
            host: This host's name.
            policy_lookup: Returns the threshold policy of a VM's disk.
            size_lookup: Returns the size of a block device of the host.
            is_alive: Returns whether the QEMU process with a pid is alive.
            pool_lookup: Returns the pool of a disk image.
            identity_lookup: Returns the identity of a block device of the host.
        """
        highest_writes = HighestWriteStore()
        self.store = AlertStore()
        self._processes = VmProcessRegistry(is_alive)
        self._disks = DiskAlerts(self.store, highest_writes, policy_lookup, size_lookup, pool_lookup, identity_lookup)
        self._run_states = RunStateAlerts(self.store)
        self._events = EventAlerts(self.store, self._disks, self._run_states)
        self._guests = GuestAlerts(self.store)
        self._shared_uuids = SharedUuidAlerts(self.store, self._processes, self._disks, self._run_states)
        self.rules = RuleEvaluator(self.store)
        self.disk_lookup = DiskLookup(self._processes, self._disks)
        self.threshold_commands = ThresholdCommands(self._processes, self._disks)
        self.persistence = AlertPersistence(host, self.store, self._processes, highest_writes, self.rules.samples.ages)

    def set_threshold_policy(self, policy_lookup: ThresholdPolicyLookup) -> None:
        """Replace the threshold policy, and schedule a poll of all disks now. The policy applies to each disk from that poll on."""
        self._disks.set_threshold_policy(policy_lookup, self._processes)

    def set_guest_policy(self, policy: GuestAlertPolicy) -> None:
        """Replace the limits for values that guest agents report. The limits apply from the next query of each guest agent on."""
        self._guests.policy = policy

    def set_overrides(self, overrides: AlertOverrides, custom: Sequence[SampleAlertRule | EventAlertRule]) -> None:
        """Replace the config's overrides of alerts and the custom alerts."""
        self.rules.configure(overrides, custom)
        self._run_states.overrides = self._guests.overrides = overrides

    # Lifecycle.

    def on_attached(self, vm: Vm, time_ns: int = 0, pid: int | None = None) -> list[AlertChange]:
        """Handle a VM that the agent has attached to.

        Args:
            vm: The VM.
            time_ns: When the agent attached, in nanoseconds since the epoch.
            pid: The VM's process; None if unknown.
        """
        state = self._processes.attach(vm, pid)
        self._run_states.on_attached(state)
        if state.restored_disks and state.is_active:
            self._disks.restore_disks(state, state.restored_disks)
            state.restored_disks = {}
        return self._to_changes(self._shared_uuids.switch_primary(vm.uuid, time_ns))

    def on_detached(self, vm: Vm, now: float, *, permanently: bool, time_ns: int = 0) -> list[AlertChange]:
        """Handle a VM that the agent has detached from.

        Args:
            vm: The VM.
            now: The current time on the monotonic clock, in seconds.
            permanently: Whether the guest shut down or migrated away. Otherwise, the VM's alerts are kept for `REATTACH_SECONDS`.
            time_ns: When the agent detached, in nanoseconds since the epoch.
        """
        state = self._processes.find_attached_process_of_vm(vm)
        if state is None:
            return []
        state.detached_at, state.ended_permanently = (now - REATTACH_SECONDS if permanently else now), permanently
        return self._to_changes(self._shared_uuids.switch_primary(vm.uuid, time_ns))

    def tick(self, now: float, now_ns: int) -> list[AlertChange]:
        """Fire and resolve the alerts that depend on time. Call this about once a second.

        Args:
            now: The current time on the monotonic clock, in seconds.
            now_ns: The current time in nanoseconds since the epoch.
        """
        return self._to_changes(self._on_tick(now, now_ns))

    def _on_tick(self, now: float, now_ns: int) -> Iterator[Record]:
        yield from self.store.resolve_alerts_past_end_time(now_ns)
        for state in self._processes:
            if state.detached_at is None:
                # Skip guests that run and have no alert, because most guests do, and this loop runs for all VMs.
                if not state.run.running or state.unlocated_io_error_ns or state.owner in self.store:
                    yield from self._run_states.on_tick(state, now_ns)
                yield from self._guests.on_tick(state, now_ns)
            elif now - state.detached_at >= REATTACH_SECONDS:
                self._processes.remove(state)
                yield from self.store.resolve(self.store.alerts_of_owner(state.owner), now_ns, "vm_gone")
        yield from self._shared_uuids.check_clashes(now_ns)
        yield from self.rules.on_tick(now_ns)

    # Events and samples.

    def on_event(self, event: Record, name: str, now_ns: int) -> list[AlertChange]:
        """Handle an event as soon as the event is read.

        Args:
            event: The event's record.
            name: The event's name in QEMU.
            now_ns: The current time in nanoseconds since the epoch.
        """
        event_rules = self.rules.events
        if (
            name not in HANDLED_EVENTS
            and name not in self.store.resolving_events
            and name not in event_rules.event_names
        ):
            return []  # a fast path: most events change no alert
        state = self._processes.find_attached_process_of_vm(event.vm)
        if state is None:
            return []
        if event.time_ns > now_ns:  # the clock of the host that sent the event is ahead
            event = event._replace(time_ns=now_ns)
        changes = self._to_changes(self._events.on_event(state, event, name, now_ns))
        if name in event_rules.event_names:
            is_disk = event.data["category"] == EventCategory.BLOCK
            subject = self.disk_lookup.stable_disk_name_of_event(event) if is_disk else event.subject
            changes += self._to_changes(event_rules.on_event(state, event, name, subject, now_ns))
        return changes + self._to_changes(self._shared_uuids.switch_primary(event.vm.uuid, event.time_ns))

    def on_run_state(self, vm: Vm, time_ns: int, *, running: bool, status: str = "") -> list[AlertChange]:
        """Handle a poll of the run state.

        Args:
            vm: The VM.
            time_ns: When the query was sent, in nanoseconds since the epoch.
            running: Whether the guest runs.
            status: QEMU's run state, such as `paused`.
        """
        state = self._processes.find_attached_process_of_vm(vm)
        if state is None:
            return []
        changes = self._to_changes(self._run_states.on_poll(state, status, time_ns, running=running))
        return changes + self._to_changes(self._shared_uuids.switch_primary(vm.uuid, time_ns))

    def on_migration(self, vm: Vm, status: str, time_ns: int) -> list[AlertChange]:
        """Handle a poll of the migration; `time_ns` is when the query was sent, in nanoseconds since the epoch."""
        state = self._processes.find_attached_process_of_vm(vm)
        return self._to_changes(self._run_states.on_migration(state, status, time_ns)) if state is not None else []

    def on_jobs(self, vm: Vm, samples: Iterable[Sample], time_ns: int, now_ns: int) -> list[AlertChange]:
        """Handle a poll of the jobs.

        Args:
            vm: The VM.
            samples: The samples of all jobs.
            time_ns: When the query was sent, in nanoseconds since the epoch.
            now_ns: The current time in nanoseconds since the epoch.
        """
        state = self._processes.find_attached_process_of_vm(vm)
        return self._to_changes(self._events.on_jobs(state, samples, time_ns, now_ns)) if state is not None else []

    def on_samples_for_alert_rules(
        self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> list[AlertChange]:
        """Handle a poll of families that have alert rules.

        Args:
            vm: The VM.
            families: The polled families. At least one family has an alert rule.
            samples: All samples of the families.
            time_ns: When the query was sent, in nanoseconds since the epoch.
        """
        state = self._processes.find_attached_process_of_vm(vm)
        if state is None:
            return []
        return self._to_changes(self.rules.on_samples(state, families, samples, time_ns))

    def on_guest_channel(self, vm: Vm, time_ns: int, *, connected: bool) -> list[AlertChange]:
        """Handle a poll of the guest agent's channel; `connected` is whether the guest has opened the channel."""
        state = self._processes.find_attached_process_of_vm(vm)
        if state is None:
            return []
        return self._to_changes(self._guests.on_channel(state, time_ns, connected=connected))

    def on_guest_samples(
        self, vm: Vm, families: Collection[Family], samples: Sequence[Sample], time_ns: int
    ) -> list[AlertChange]:
        """Handle a query of a guest agent. `samples` are all samples of `families`."""
        state = self._processes.find_attached_process_of_vm(vm)
        return self._to_changes(self._guests.on_samples(state, families, samples, time_ns)) if state is not None else []

    def on_guest_queries_disabled(self, vm: Vm, time_ns: int) -> list[AlertChange]:
        """Resolve the alerts of a guest agent that is no longer queried."""
        state = self._processes.find_attached_process_of_vm(vm)
        return self._to_changes(self._guests.on_disabled(state, time_ns)) if state is not None else []

    def on_disk_samples(
        self, vm: Vm, samples: Sequence[Sample], now: float, time_ns: int, *, families: Collection[Family] = ()
    ) -> tuple[list[AlertChange], list[Sample]]:
        """Handle a poll of disks.

        Args:
            vm: The VM.
            samples: All samples of the families.
            now: The current time on the monotonic clock, in seconds.
            time_ns: When the query was sent, in nanoseconds since the epoch.
            families: The polled families.

        Returns:
            The alert records to send, and the VM's `block_space` samples. If no sample has changed, the list is the same object as before.
        """
        state = self._processes.find_attached_process_of_vm(vm)
        if state is None:
            return [], []
        records = self._disks.on_samples(state, samples, families, now, time_ns) if state.is_active else ()
        changes = self._to_changes(records)
        changes += self._to_changes(self._run_states.on_io_status_poll(state, samples, families, time_ns))
        return changes, self._disks.space_samples(state) if state.is_active else []

    def _to_changes(self, records: Iterable[Record]) -> list[AlertChange]:
        return [AlertChange(record, self.persistence.entry_of_vm(record.vm.uuid)) for record in records]
