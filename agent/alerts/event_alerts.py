"""Fires and resolves alerts when QEMU's events arrive. Pure: the module returns records."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agent.alerts.disk_alerts import DiskAlerts
from agent.alerts.disk_threshold_types import DetectedBy
from agent.alerts.failure_rules import FAILURE_EVENT_RULES, HOUR, FailureEventRule
from agent.alerts.rules.process_state import VmProcessState
from agent.alerts.run_state_alerts import RunStateAlerts
from agent.alerts.store import AlertStore
from agent.model.family import Sample
from agent.model.record import Record, sanitize

RUN_STATE_EVENTS = frozenset({"RESUME", "STOP", "RESET"})
"""Events that report a change of the run state."""
_RULES_BY_EVENT = {
    event: [rule for rule in FAILURE_EVENT_RULES if rule.event == event]
    for event in {rule.event for rule in FAILURE_EVENT_RULES}
}
HANDLED_EVENTS = frozenset({"BLOCK_WRITE_THRESHOLD", "MIGRATION", *RUN_STATE_EVENTS, *_RULES_BY_EVENT})
"""Events that may fire an alert of `EventAlerts` or change the run state.

`AlertStore.resolving_events` has the events that may resolve an alert.
"""

_JOB_FAILED = next(rule for rule in FAILURE_EVENT_RULES if rule.alert == "job_failed")

MAX_FAILED_JOBS = 256
"""Maximum number of failed jobs to remember until the next poll of the jobs. That poll does not report a remembered job again."""


class EventAlerts:
    """Fires and resolves the alerts on events, and the alerts of failed jobs, for all VMs."""

    def __init__(self, store: AlertStore, disks: DiskAlerts, run_states: RunStateAlerts) -> None:
        self._store = store
        self._disks = disks
        self._run_states = run_states

    def on_event(self, state: VmProcessState, event: Record, name: str, now_ns: int) -> Iterator[Record]:
        """Handle an event; `name` is the event's name in QEMU."""
        data = event.data["qemu"]
        if name in RUN_STATE_EVENTS:
            yield from self._run_states.on_event(state, name, event.time_ns)
        yield from self._store.resolve_by_event(state.owner, name, event.time_ns)
        for rule in _RULES_BY_EVENT.get(name, ()):
            if rule.when(data):
                yield from self._apply_rule(state, rule, event, data, now_ns)
        if name == "MIGRATION":
            yield from self._run_states.on_migration(state, str(data.get("status")), event.time_ns)
        if name == "BLOCK_WRITE_THRESHOLD" and state.is_active:
            yield from self._disks.on_threshold_event(state, event, data, now_ns)

    def _apply_rule(
        self, state: VmProcessState, rule: FailureEventRule, event: Record, data: Mapping[str, Any], now_ns: int
    ) -> Iterator[Record]:
        """Fire a rule's alert. If the event stopped the guest and the guest has certainly run since the event, do nothing."""
        if rule.status and state.run.has_run_since(event.time_ns):
            return
        device, located = self._disks.device_of_event(state, event.subject, data)
        if rule.status == "io-error":
            if not located:
                self._run_states.on_unlocated_io_error(state, event.time_ns, is_full=rule.alert == "disk_full")
                return
            how = DetectedBy.ENOSPC if rule.alert == "disk_full" else DetectedBy.EVENT
            yield from self._run_states.fire_io_error(state, rule.alert, device, event.time_ns, how)
            return
        yield from self._fire_rule(state, rule, event, device, data, now_ns)

    def _fire_rule(
        self,
        state: VmProcessState,
        rule: FailureEventRule,
        event: Record,
        device: str,
        data: Mapping[str, Any],
        now_ns: int,
    ) -> Iterator[Record]:
        until_ns = now_ns + int(rule.resolve_after_seconds * 1e9) if rule.resolve_after_seconds is not None else 0
        fields: dict[str, Any] = {"help": rule.help, "event": rule.event}
        fields |= {key: sanitize(data[key]) for key in rule.copied_fields if isinstance(data.get(key), str)}
        if rule.alert == "image_corrupted":
            fields |= self._disks.image_fields(state, data)
        if rule.alert == "job_failed" and len(state.failed_jobs) < MAX_FAILED_JOBS:
            state.failed_jobs |= {event.subject}
        attributes = {"until_ns": until_ns, "resolved_by": rule.resolved_by, "status": rule.status}
        yield from self._store.fire(
            state.build_alert(rule.alert, device, rule.severity, event.time_ns, fields, **attributes)
        )

    def on_jobs(self, state: VmProcessState, samples: Iterable[Sample], time_ns: int, now_ns: int) -> Iterator[Record]:
        """Handle a poll of the jobs; fire an alert for each failed job whose failure was not reported yet."""
        failed = {sample.subject: sample for sample in samples if sample.values.get("error")}
        known, state.failed_jobs = state.failed_jobs, frozenset(failed)
        for job in sorted(failed.keys() - known):
            values = failed[job].values
            fields = {"help": _JOB_FAILED.help, "event": _JOB_FAILED.event, "error": sanitize(str(values["error"]))}
            fields |= {"type": failed[job].labels[1]}
            until_ns = now_ns + int(HOUR * 1e9)
            rule = _JOB_FAILED
            yield from self._store.fire(
                state.build_alert(rule.alert, job, rule.severity, time_ns, fields, until_ns=until_ns)
            )
