"""Alerts about guests that stopped because of an error. A pause by an operator fires no alert. Pure: the module returns records.

A RESUME event, or a later poll of a running guest, resolves the alerts of a stopped guest. A reset, a stop or an older poll resolves no
alert.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from agent.alerts.disk_space_values import disk_space_values
from agent.alerts.disk_threshold_types import DetectedBy
from agent.alerts.failure_rules import (
    FAILURE_EVENT_RULES,
    MIGRATION_FAILED,
    POSTCOPY_HELP,
    POSTCOPY_PAUSED,
    POSTCOPY_RECOVERING,
    RECOVERY_FAILED_HELP,
    RUN_STATE_RULES,
    RunStateRule,
)
from agent.alerts.rules.overrides import AlertOverrides
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.store import Alert, AlertStore
from agent.model.family import Family, Sample
from agent.model.metrics.block import BLOCK_DEVICE
from agent.model.record import Record, Severity

IO_STATUS_NS = 2_000_000_000
"""How long the agent waits until query-block shows which disk failed, in nanoseconds. Then the alert fires without a disk."""

_IO_ERROR_RULES = {rule.alert: rule for rule in FAILURE_EVENT_RULES if rule.status == "io-error"}
"""Rules of I/O errors that stop the guest, by alert."""
_ALERT_OF_IO_STATUS = {"nospace": "disk_full", "failed": "io_error_stop"}
"""Alert for each `io-status` of a device whose request failed."""
_DELAYED_ALERTS = frozenset(rule.alert for rule in RUN_STATE_RULES if rule.seconds)
"""Names of the alerts that fire only after the guest has been in a run state for some time."""
_ENTERED_FROM_RUNNING = frozenset({"io-error", "guest-panicked", "internal-error", "watchdog", "paused", "suspended"})
"""Run states that a guest can only enter while it runs."""
_STATUSES_WITH_EVENT = frozenset(rule.status for rule in FAILURE_EVENT_RULES if rule.status)
"""Run states that QEMU also reports by an event."""


class RunStateAlerts:
    """Alerts that depend on the run state or the migration of a process, for all VMs.

    Attributes:
        overrides: The config's overrides of alerts.
    """

    def __init__(self, store: AlertStore) -> None:
        self.overrides = AlertOverrides()
        self._store = store

    def _alerts_of_stop(self, state: VmProcessState) -> list[Alert]:
        """Return the firing alerts whose cause has stopped the guest."""
        return [alert for alert in self._store.alerts_of_owner(state.owner) if alert.status]

    def on_attached(self, state: VmProcessState) -> None:
        """Let the next poll of a running guest resolve the alerts, because the agent may have missed the RESUME event.

        The newest `seen_ns` of the guest's alerts counts as the time when the guest stopped, unless a later stop is known.
        """
        seen_ns = (alert.seen_ns for alert in self._store.alerts_of_owner(state.owner))
        state.run.stopped_ns = max([state.run.stopped_ns, *seen_ns])

    def on_event(self, state: VmProcessState, name: str, time_ns: int) -> Iterator[Record]:
        """Handle the event STOP, RESUME or RESET."""
        state.run.on_event(name, time_ns)
        if name == "RESUME":
            yield from self._resolve_stop(state, time_ns, name)

    def _resolve_stop(self, state: VmProcessState, time_ns: int, reason: str) -> Iterator[Record]:
        """Resolve the alerts of a stopped guest, because the guest runs again.

        An alert whose cause was seen after the guest resumed keeps firing.
        """
        if state.run.has_run_since(state.unlocated_io_error_ns):
            state.unlocated_io_error_ns = 0
        ended = [
            alert
            for alert in self._alerts_of_stop(state)
            if (alert.seen_ns <= time_ns if reason == "RESUME" else state.run.has_run_since(alert.seen_ns))
        ]
        yield from self._store.resolve(ended, time_ns, reason)

    def on_poll(self, state: VmProcessState, status: str, time_ns: int, *, running: bool) -> Iterator[Record]:
        """Handle a poll of the run state; `time_ns` is when the query was sent, in nanoseconds since the epoch."""
        if state.run.cap_times_after_clock_setback(time_ns):
            self._store.cap_seen_times(state.owner, time_ns)
        if not state.run.on_poll(status, time_ns, running=running):
            return  # a newer event is known
        is_first, state.has_run_state = not state.has_run_state, True
        if running:
            yield from self._resolve_stop(state, time_ns, "running")
            return
        alerts = self._alerts_of_stop(state)
        ended = [alert for alert in alerts if _has_ended(alert, status) and alert.seen_ns <= time_ns]
        yield from self._store.resolve(ended, time_ns, "migrated" if status == "postmigrate" else "run_state")
        for alert in self._alerts_of_stop(state):
            self._store.confirm_by_poll(alert, time_ns)
        if not any(alert.status == status for alert in alerts):
            yield from self._fire_polled_state(state, status, time_ns, is_first=is_first)

    def _fire_polled_state(
        self, state: VmProcessState, status: str, time_ns: int, *, is_first: bool
    ) -> Iterator[Record]:
        """Fire the alert of a polled run state that no event has fired."""
        if status == "io-error":
            if not state.unlocated_io_error_ns:  # otherwise an event has reported the error and its cause
                state.unlocated_io_error_ns, state.is_unlocated_error_enospc = time_ns, False
            state.collectors_to_poll |= {"drives"}
            if state.layers:
                yield from self._locate_io_error(state)
            return
        for rule in RUN_STATE_RULES:
            if rule.status == status and not rule.seconds:
                missed = is_first or status in _STATUSES_WITH_EVENT
                yield from self._fire_for_rule(state, rule, time_ns, DetectedBy.MISSED if missed else DetectedBy.LEVEL)

    def _fire_for_rule(
        self, state: VmProcessState, rule: RunStateRule, time_ns: int, detected_by: DetectedBy
    ) -> Iterator[Record]:
        data = {"help": rule.help, "status": rule.status, "detected_by": detected_by.value}
        yield from self._store.fire(state.build_alert(rule.alert, "", rule.severity, time_ns, data, status=rule.status))

    # I/O errors.

    def on_unlocated_io_error(self, state: VmProcessState, time_ns: int, *, is_full: bool) -> None:
        """Handle an I/O error that stopped the guest on an unknown disk. A later query-block shows the failed disk by its `io-status`.

        Args:
            state: The process.
            time_ns: When the error happened, in nanoseconds since the epoch.
            is_full: Whether the cause was a lack of space.
        """
        if not state.unlocated_io_error_ns or time_ns < state.unlocated_io_error_ns:
            state.unlocated_io_error_ns = time_ns
        state.is_unlocated_error_enospc = is_full
        state.collectors_to_poll |= {"drives"}

    def on_io_status_poll(
        self, state: VmProcessState, samples: Sequence[Sample], families: Collection[Family], time_ns: int
    ) -> Iterator[Record]:
        """Handle a poll of devices. Update the alerts of I/O errors by each disk's `io-status` in query-block."""
        if BLOCK_DEVICE in families:
            devices = (sample for sample in samples if sample.family is BLOCK_DEVICE)
            state.io_status = {device.subject: str(device.values.get("io_status", "")) for device in devices}
            state.io_status_ns = time_ns
        is_due = BLOCK_DEVICE in families or state.unlocated_io_error_ns
        if is_due and (state.layers or not state.is_active):  # the layers have the disk's path and figures
            yield from self._locate_io_error(state)

    def _locate_io_error(self, state: VmProcessState) -> Iterator[Record]:
        """Fire an alert for each disk that `io-status` shows as failed, and resolve the alert that names no disk."""
        unlocated = [alert for alert in self._alerts_of_stop(state) if alert.status == "io-error" and not alert.subject]
        since_ns = state.unlocated_io_error_ns or max((alert.since_ns for alert in unlocated), default=0)
        if not since_ns or state.io_status_ns < max(state.run.last_ran_ns, since_ns):
            return  # `io-status` was polled before the error, or a later RESUME has cleared `io-status`
        failed = {
            device: _ALERT_OF_IO_STATUS[io_status]
            for device, io_status in state.io_status.items()
            if io_status in _ALERT_OF_IO_STATUS
        }
        if not failed:
            return
        state.unlocated_io_error_ns = 0
        yield from self._store.resolve(unlocated, state.io_status_ns, "located")
        how = DetectedBy.ENOSPC if state.is_unlocated_error_enospc else DetectedBy.MISSED
        for device, alert in failed.items():
            yield from self.fire_io_error(state, alert, device, since_ns, how)

    def fire_io_error(
        self, state: VmProcessState, name: str, device: str, time_ns: int, detected_by: DetectedBy, **data: Any
    ) -> Iterator[Record]:
        """Fire the alert of an I/O error that stopped the guest.

        Args:
            state: The process.
            name: The alert's name: `disk_full` or `io_error_stop`.
            device: The disk; empty if unknown.
            time_ns: When the error happened or was polled, in nanoseconds since the epoch.
            detected_by: How the error was detected.
            data: Further fields of the alert's record.
        """
        rule, tracker = _IO_ERROR_RULES[name], state.trackers.get(device)
        figures = disk_space_values(tracker.usage) if tracker is not None else {}
        data = {"help": rule.help, "event": rule.event, "detected_by": detected_by.value} | figures | data
        yield from self._store.fire(state.build_alert(name, device, rule.severity, time_ns, data, status=rule.status))

    # Time and migrations.

    def on_tick(self, state: VmProcessState, now_ns: int) -> Iterator[Record]:
        """Fire the alerts that are due. Request a poll of the run state while an alert of a stopped guest fires."""
        if state.unlocated_io_error_ns and now_ns - state.unlocated_io_error_ns >= IO_STATUS_NS:
            yield from self._locate_io_error(state)
        if state.unlocated_io_error_ns and now_ns - state.unlocated_io_error_ns >= IO_STATUS_NS:
            name = "disk_full" if state.is_unlocated_error_enospc else "io_error_stop"
            yield from self.fire_io_error(state, name, "", state.unlocated_io_error_ns, DetectedBy.MISSED)
            state.unlocated_io_error_ns = 0
        for rule in RUN_STATE_RULES if state.run.running is False else ():
            if self._is_due(state, rule, now_ns):
                yield from self._fire_for_rule(state, rule, now_ns, DetectedBy.LEVEL)
        if self._alerts_of_stop(state):
            state.collectors_to_poll |= {"runstate"}

    def _is_due(self, state: VmProcessState, rule: RunStateRule, now_ns: int) -> bool:
        """Return whether the guest has been in the rule's run state for too long.

        Return False if another alert reports why the guest is stopped.
        """
        if not rule.seconds or state.run.status != rule.status or (rule.after_reset and not state.run.has_started):
            return False
        seconds = self.overrides.min_duration_seconds_of_alert(rule.alert, state.vm, "", rule.seconds)
        return now_ns - state.run.since_ns >= seconds * 1e9 and not self._alerts_of_stop(state)

    def on_migration(self, state: VmProcessState, status: str, time_ns: int) -> Iterator[Record]:
        """Handle a migration status from an event or a poll."""
        if time_ns < state.migration_ns:
            return
        state.migration_ns = time_ns
        paused = self._store.find(state.owner, "postcopy_paused")
        failed = self._store.find(state.owner, "postcopy_recovery_failed")
        is_paused = status == POSTCOPY_PAUSED or status in POSTCOPY_RECOVERING
        was_recovering = paused is not None and paused.data["status"] in POSTCOPY_RECOVERING
        has_failed = status in MIGRATION_FAILED and (paused is not None or failed is not None)
        if is_paused:
            yield from self._fire_postcopy(state, "postcopy_paused", POSTCOPY_HELP, status, time_ns)
        elif paused is not None:
            yield from self._store.resolve([paused], time_ns, "migration")
        if has_failed or (status == POSTCOPY_PAUSED and was_recovering):
            yield from self._fire_postcopy(state, "postcopy_recovery_failed", RECOVERY_FAILED_HELP, status, time_ns)
        elif failed is not None and not is_paused:
            yield from self._store.resolve([failed], time_ns, "migration")

    def _fire_postcopy(
        self, state: VmProcessState, name: str, text: str, status: str, time_ns: int
    ) -> Iterator[Record]:
        data = {"help": text, "status": status}
        yield from self._store.fire(state.build_alert(name, "", Severity.CRITICAL, time_ns, data))


def _has_ended(alert: Alert, status: str) -> bool:
    """Return whether the run state of a stopped guest shows that the cause of the alert has ended."""
    if alert.status == status:
        return False
    return status == "postmigrate" or status in _ENTERED_FROM_RUNNING or alert.name in _DELAYED_ALERTS
