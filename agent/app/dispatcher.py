"""Passes events, samples and states from the sessions to delivery, the snapshot, the alerts and the agent's own metrics."""

import logging
from collections.abc import Sequence

from agent.app.alert_publisher import AlertPublisher, has_vm_ended_on_host
from agent.app.causation import CausationIds, PublishedSamples, no_causation_id
from agent.app.hang_detector import HangDetector
from agent.app.image_pool_finder import STORAGE_FAMILIES
from agent.app.io_stall_watcher import IoStallWatcher
from agent.app.latency_histogram_controller import LatencyHistogramController
from agent.app.pool_poller import PoolPoller
from agent.app.publisher import RecordPublisher
from agent.app.self_metrics import SelfMetrics
from agent.app.state_publisher import StatePublisher
from agent.exposition.snapshot import Snapshot
from agent.guest.manager import REACHABILITY_FAMILIES, GuestAgentManager
from agent.model.event_definition import EventCategory
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK_SPACE
from agent.model.metrics.block_layers import BLOCK_LAYER
from agent.model.metrics.block_stall import BLOCK_STALL
from agent.model.metrics.guest import GUEST_AGENT
from agent.model.metrics.jobs import JOB
from agent.model.metrics.migration import MIGRATION, MIGRATION_ENDED
from agent.model.metrics.runstate import RUNSTATE
from agent.model.record import Record, Vm
from agent.monitors import Monitor
from agent.session.shared_types import MonitorState, MonitorStatus, PollOutcome, VmLifecycleChange

_log = logging.getLogger("agent")

_LOG_LEVELS = {
    MonitorState.CONNECTING: logging.DEBUG,
    MonitorState.NEGOTIATING: logging.DEBUG,
    MonitorState.BUSY: logging.WARNING,
    MonitorState.DENIED: logging.WARNING,
    MonitorState.STALLED: logging.WARNING,
}

_BLOCK = EventCategory.BLOCK.value
"""The category of block events. A constant, because Python 3.11 takes 0.1 us to look up an enum member."""

_DETACHING = frozenset({VmLifecycleChange.GONE, VmLifecycleChange.DETACHED, VmLifecycleChange.MIGRATED_OUT})
"""Lifecycle changes after which the agent is no longer attached to the VM."""

_VM_STATE_FAMILIES = frozenset({RUNSTATE, MIGRATION, GUEST_AGENT, JOB})
"""Families whose samples update alerts of the VM as a whole."""


def update_snapshot_and_publish_samples(
    snapshot: Snapshot,
    publisher: RecordPublisher,
    vm: Vm,
    families: Sequence[Family],
    samples: Sequence[Sample],
    time_ns: int,
) -> PublishedSamples:
    """Update the snapshot with the samples of one poll, and publish the samples.

    Samples of on-change families are published only if their values have changed.
    """
    changed = [
        s for s in samples if not (s.family.on_change and snapshot.latest_values_of_sample_subject(vm, s) == s.values)
    ]
    snapshot.replace_samples(vm, families, samples, time_ns)
    return PublishedSamples(changed, publisher.publish_samples(vm, changed, time_ns) if changed else ())


class SessionReportDispatcher:
    """Receives what all sessions with QEMU report: implements `SessionObserver`."""

    def __init__(
        self,
        publisher: RecordPublisher,
        snapshot: Snapshot,
        alerts: AlertPublisher,
        storage: PoolPoller,
        metrics: SelfMetrics,
        hang_detector: HangDetector,
        guests: GuestAgentManager,
        io_stalls: IoStallWatcher,
        states: StatePublisher | None = None,
        histograms: LatencyHistogramController | None = None,
    ) -> None:
        self._publisher = publisher
        self._snapshot = snapshot
        self._alerts = alerts
        self._storage = storage
        self._metrics = metrics
        self._hang_detector = hang_detector
        self._guests = guests
        self._io_stalls = io_stalls
        self._causes = CausationIds()
        self._states = states
        self._histograms = histograms or LatencyHistogramController((), publisher)

    def on_event(self, record: Record) -> None:
        """Publish an event and update the snapshot."""
        event = record
        if record.data["category"] == _BLOCK and record.subject:
            record = record._replace(subject=self._alerts.engine.disk_lookup.stable_disk_name_of_event(record))
        self._causes.on_event_published(event, self._publisher.publish(record))
        self._snapshot.count_event(record)

    def on_event_before_coalescing(self, event: Record) -> None:
        """Update the alerts with an event as soon as the event is read. `on_event` receives coalesced events later, as one record."""
        self._alerts.on_event(event, self._causes.record_id_of_event)
        if event.type == "qemu.event.device_deleted":
            self._histograms.on_unplugged(event)

    def on_lifecycle(self, change: VmLifecycleChange, record: Record) -> None:
        """Publish a lifecycle change and update the alerts."""
        causation_id = self._causes.causation_id_of_lifecycle_change(change, record.vm)
        record_id = self._publisher.publish(record._replace(causation_id=causation_id))
        if change in _DETACHING:
            self._storage.on_detached(record.vm)
            self._io_stalls.on_detached(record.vm)
        self._histograms.on_lifecycle(change, record)
        with self._alerts.setting_causation_id_of_alerts(lambda _alert: record_id):
            self._alerts.on_lifecycle(change, record)
        if self._states is not None and change in _DETACHING:
            self._states.on_vm_detached(record.vm, permanently=has_vm_ended_on_host(change, record))

    def on_transition_between_polls(self, record: Record) -> None:
        """Publish the record of a transition, such as the end of a migration."""
        self._publisher.publish(record._replace(causation_id=self._causes.causation_id_of_transition(record)))
        if self._states is not None and record.type == f"qemu.{MIGRATION_ENDED.name}":
            self._states.on_migration_ended(record)

    def on_samples(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        """Publish samples, and update the snapshot, the alerts and the session with the guest agent."""
        published = update_snapshot_and_publish_samples(self._snapshot, self._publisher, vm, families, samples, time_ns)
        if not STORAGE_FAMILIES.isdisjoint(families):
            self._storage.on_samples(vm, families, samples)
        if not REACHABILITY_FAMILIES.isdisjoint(families):
            self._guests.update_reachability_from_samples(vm, families, samples)
        # A fast path: for most polls, the context manager `setting_causation_id_of_alerts` would take longer than the update.
        self._alerts.causation_id_of_alert = published.causation_id_of_alert
        try:
            self._update_alerts(vm, families, samples, time_ns)
        finally:
            self._alerts.causation_id_of_alert = no_causation_id
        stalls = self._io_stalls.on_samples(vm, families, samples, time_ns)
        if stalls is not None:
            self._on_stalls(vm, stalls, time_ns)

    def _on_stalls(self, vm: Vm, stalls: Sequence[Sample], time_ns: int) -> None:
        """Publish the samples of stalled disks, and update the alerts about stalls."""
        published = update_snapshot_and_publish_samples(
            self._snapshot, self._publisher, vm, (BLOCK_STALL,), stalls, time_ns
        )
        with self._alerts.setting_causation_id_of_alerts(published.causation_id_of_alert):
            self._alerts.on_samples_for_alert_rules(vm, (BLOCK_STALL,), stalls, time_ns)

    def _update_alerts(self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int) -> None:
        if families[0].name.startswith("block"):
            if self._histograms.is_allowed_by_config:
                self._histograms.on_samples(vm, families, samples)
            spaces = self._alerts.on_block_samples(vm, families, samples, time_ns)
            self._update_space(vm, spaces, time_ns)
        if not _VM_STATE_FAMILIES.isdisjoint(families):
            self._update_alerts_of_state(vm, families, samples, time_ns)
        self._alerts.on_samples_for_alert_rules(vm, families, samples, time_ns)

    def _update_space(self, vm: Vm, spaces: Sequence[Sample], time_ns: int) -> None:
        """Store a VM's samples of the family `block_space` in the snapshot, and update the alerts about disk space.

        Do nothing if `spaces` and the snapshot's limits are the same objects as in the last call, and no alert rule uses `block_space`.
        """
        view, limits = self._snapshot.view_of(vm), self._snapshot.limits
        has_conditions = BLOCK_SPACE in self._alerts.engine.rules.samples.families
        if (
            view is not None
            and view.space_samples is spaces
            and view.space_samples_limits is limits
            and not has_conditions
        ):
            return
        stored = spaces
        # Without current samples of the image files, the allocated bytes may be outdated.
        if not self._snapshot.vm_has_samples_of_family(vm, BLOCK_LAYER):
            stored = [space for space in spaces if space.values["measure"] != "allocated"]
        self._snapshot.replace_samples(vm, (BLOCK_SPACE,), stored, time_ns)
        if view is not None:
            is_complete = not view.dropped_subjects.get(BLOCK_SPACE.name)
            view.space_samples, view.space_samples_limits = (spaces, limits) if is_complete else (None, None)
        self._alerts.on_samples_for_alert_rules(vm, (BLOCK_SPACE,), stored, time_ns)

    def _update_alerts_of_state(
        self, vm: Vm, families: Sequence[Family], samples: Sequence[Sample], time_ns: int
    ) -> None:
        if RUNSTATE in families:
            self._alerts.on_run_state(vm, samples, time_ns)
        if MIGRATION in families:
            self._alerts.on_migration(vm, samples, time_ns)
        if GUEST_AGENT in families:
            self._alerts.on_guest_channel(vm, samples, time_ns)
        if JOB in families:
            self._alerts.on_jobs(vm, samples, time_ns)

    def on_poll_failed(self, vm: Vm, families: Sequence[Family], time_ns: int) -> None:
        """Remove the VM's values of `families` from the snapshot. Alerts keep firing, because the causes of the alerts may still exist."""
        if (view := self._snapshot.view_of(vm)) is not None:
            view.space_samples = (
                None  # store the `block_space` samples again, because they may depend on these families
            )
        self._snapshot.replace_samples(vm, families, (), time_ns)

    def on_monitor_status(self, status: MonitorStatus) -> None:
        """Update the snapshot and log the new state of a monitor."""
        self._snapshot.update_monitor_status(status)
        if status.vm is not None:
            self._update_guest_session(status.vm, status)
            if self._states is not None:
                self._states.on_vm_changed(status.vm)
        name = f"{status.vm.name} at {status.monitor.name}" if status.vm else status.monitor.name
        level = _LOG_LEVELS.get(status.state, logging.INFO)
        if status.state is MonitorState.CONNECTING and status.reason:  # the VM was never identified
            level = logging.WARNING
        _log.log(level, "%s: %s%s", name, status.state.value, f": {status.reason}" if status.reason else "")

    def _update_guest_session(self, vm: Vm, status: MonitorStatus) -> None:
        if status.state in (MonitorState.UP, MonitorState.STALLED):
            is_up, open_channel = status.state is MonitorState.UP, status.monitor.open_guest_channel
            self._guests.on_qemu_responsiveness_changed(vm, responsive=is_up, open_channel=open_channel)
        elif not self._snapshot.is_vm_attached(vm):
            self._guests.on_vm_detached(vm)

    def on_monitor_removed(self, monitor: Monitor) -> None:
        """Remove a monitor from the snapshot."""
        self._snapshot.remove_monitor(monitor.key)

    def on_agent_refused_incoming_connection(self, address: str, reason: str) -> None:
        """Count a connection that the agent refused at a `listen` address."""
        self._metrics.connections_refused.labels(address, reason).inc()

    def on_response_time(self, seconds: float) -> None:
        """Add one of QEMU's response times, in seconds, to the histogram."""
        self._metrics.response_seconds.observe(seconds)

    def on_collector_run(self, collector: str, outcome: PollOutcome) -> None:
        """Count a run of a collector, and record that sessions make progress."""
        self._hang_detector.on_collector_run()
        self._metrics.collector_runs[collector, outcome] += 1

    def on_messages_skipped(self, vm: Vm, reason: str, messages: int) -> None:
        """Count and log messages from QEMU that the session skipped."""
        _log.warning("%s: %d messages skipped: %s", vm.name, messages, reason)
        self._metrics.messages_skipped.labels(reason).inc(messages)

    def on_events_dropped(self, vm: Vm, reason: str, events: int) -> None:
        """Count and log events that the session dropped before they became records."""
        _log.warning("%s: %d events dropped: %s", vm.name, events, reason)
        self._metrics.events_dropped.labels(reason).inc(events)
