"""Stores the firing alerts, and creates a record for each alert that fires or is resolved. Pure: the caller passes the time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.model.record import Record, Severity, Vm

AlertKey = tuple[str, str, str]
"""An alert's name, subject and level."""


CUSTOM_TYPE = "custom"
"""Last part of the record type of all custom alerts: `qemu.alert.custom`."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One firing or muted alert.

    Attributes:
        name: The kind of alert, such as `write_threshold`.
        vm: The VM.
        subject: The device, job, mountpoint or pool that the alert is about; empty for the VM as a whole.
        level: The exceeded level, as written in the config; empty if the alert has no level.
        severity: The severity.
        since_ns: When the alert began to fire, in nanoseconds since the epoch.
        data: Further fields of the alert's record.
        until_ns: When the alert is resolved even without an event, in nanoseconds since the epoch. 0 if only an event or a poll resolves
            the alert.
        resolved_by: Names of the events that resolve the alert.
        status: The run state in which the guest is stopped. The alert is resolved when the guest runs. Empty if the guest is not stopped.
        owner: Number of the VM process or of the pool that the alert belongs to.
        instance: Distinguishes processes that have the same UUID at the same time; empty for the first attached process.
        seen_ns: Time of the newest event or poll that showed the alert's condition. An older event or poll does not resolve the alert.
        custom: Whether the operator defined the alert in the config. All custom alerts have the same record type.
        muted: Whether the config mutes the alert. The condition of a muted alert is true, but the alert does not fire.
    """

    name: str
    vm: Vm
    subject: str
    level: str
    severity: Severity
    since_ns: int
    data: Mapping[str, Any]
    until_ns: int = 0
    resolved_by: frozenset[str] = frozenset()
    status: str = ""
    owner: int = 0
    instance: str = ""
    seen_ns: int = 0
    custom: bool = False
    muted: bool = False

    @property
    def key(self) -> AlertKey:
        """Identity of the alert among the alerts of one process or pool."""
        return self.name, self.subject, self.level

    @property
    def pool(self) -> str:
        """The pool that the alert is about; empty for an alert of a VM."""
        return "" if self.vm.uuid else self.subject

    @property
    def device(self) -> str:
        """The VM's device that the alert is about; empty for an alert of a pool."""
        return self.subject if self.vm.uuid else ""

    @property
    def fingerprint(self) -> str:
        """Identity of the alert for consumers of records. The identity stays the same after a restart, and when the alert fires again."""
        parts = f"{self.vm.host}\n{self.vm.uuid}\n{self.name}\n{self.subject}\n{self.level}"
        parts += f"\n{self.instance}" if self.instance else ""
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def to_record(self, state: str, time_ns: int, extra: Mapping[str, Any]) -> Record:
        """Return the record that reports that the alert fires or is resolved.

        Args:
            state: `firing` or `resolved`.
            time_ns: Time of the change, in nanoseconds since the epoch.
            extra: Fields to add to the record.
        """
        data = {
            "alert": self.name,
            "state": state,
            "fingerprint": self.fingerprint,
            "since_timestamp_seconds": self.since_ns / 1e9,
        }
        if self.level:
            data["level"] = self.level
        data |= {**self.data, **extra}
        severity = self.severity if state == "firing" else Severity.INFO
        record_type = f"qemu.alert.{CUSTOM_TYPE if self.custom else self.name}"
        return Record(record_type, self.vm, data, time_ns, self.subject, severity)


MAX_SUBJECT_ALERTS = 256
"""Maximum number of alerts of one process or pool. At this number, a new alert fires only if the alert has no subject.

A malicious QEMU may report any number of devices, jobs and nodes. The journal stores each alert's record together with all
alerts of the VM. Without a limit, storing alerts for 1,500 names took 44 s.
"""


class AlertStore:
    """All firing and muted alerts.

    Attributes:
        resolving_events: Names of the events that may resolve a firing alert.
        suppressed: How often an alert or a condition was ignored because its process had too many alerts or conditions.
        apply_override: Applies the config's overrides to an alert before the alert fires. Returns None if the config mutes the alert.
    """

    def __init__(self) -> None:
        self.suppressed = 0
        self.apply_override: Callable[[Alert], Alert | None] = lambda alert: alert
        self._firing: dict[int, dict[AlertKey, Alert]] = {}  # by owner
        self.resolving_events: set[str] = set()

    def __iter__(self) -> Iterator[Alert]:
        return (alert for alert in self.all_including_muted() if not alert.muted)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def all_including_muted(self) -> Iterator[Alert]:
        """Yield all alerts whose condition is true, including those that the config mutes."""
        return (alert for alerts in list(self._firing.values()) for alert in list(alerts.values()))

    def __contains__(self, owner: object) -> bool:
        """Return whether a process or a pool has a firing or muted alert."""
        return owner in self._firing

    def alerts_of_owner(self, owner: int) -> list[Alert]:
        """Return the firing and the muted alerts of a process or a pool."""
        return list(self._firing.get(owner, {}).values())

    def vms_at_limit(self) -> list[Vm]:
        """Return the VMs that have reached `MAX_SUBJECT_ALERTS`."""
        full = (next(iter(alerts.values())).vm for alerts in self._firing.values() if len(alerts) >= MAX_SUBJECT_ALERTS)
        return list(full)

    def find(self, owner: int, name: str, subject: str = "", level: str = "") -> Alert | None:
        """Return the firing or muted alert of a process or a pool by name, subject and level; None if not stored."""
        return self._firing.get(owner, {}).get((name, subject, level))

    def fire(self, alert: Alert) -> Iterator[Record]:
        """Store an alert that fires, and yield its record.

        If the config mutes the alert, store the alert as muted and yield nothing. If the alert is stored already, yield nothing and replace
        the stored data, unless the stored alert has a newer `seen_ns`. If the process or pool has `MAX_SUBJECT_ALERTS` alerts, ignore a new
        alert with a subject.
        """
        adjusted = self.apply_override(alert)
        alert = replace(adjusted or alert, muted=adjusted is None)
        self.resolving_events |= alert.resolved_by
        seen_ns = alert.seen_ns or alert.since_ns
        known = self.find(alert.owner, *alert.key)
        if known is None:
            if alert.subject and len(self._firing.get(alert.owner, ())) >= MAX_SUBJECT_ALERTS:
                self.suppressed += 1
                return
            self._put(replace(alert, seen_ns=seen_ns))
            if not alert.muted:
                yield alert.to_record("firing", alert.since_ns, {})
        elif seen_ns >= known.seen_ns:
            since_ns, instance, muted = known.since_ns, known.instance, known.muted
            self._put(replace(alert, since_ns=since_ns, instance=instance, seen_ns=seen_ns, muted=muted))

    def apply_overrides(self, alerts: Iterable[Alert], time_ns: int) -> Iterator[Record]:
        """Apply a new config: resolve the alerts that are muted from now on, and fire the alerts that are no longer muted."""
        for alert in list(alerts):
            adjusted = self.apply_override(replace(alert, muted=False))
            if (adjusted is None) is not alert.muted:
                changed = replace(adjusted or alert, muted=adjusted is None)
                self._put(changed)
                state = "resolved" if changed.muted else "firing"
                yield changed.to_record(state, time_ns, {"resolved_by": "silenced"} if changed.muted else {})

    def _put(self, alert: Alert) -> None:
        self._firing.setdefault(alert.owner, {})[alert.key] = alert

    def _remove(self, alert: Alert) -> Alert | None:
        alerts = self._firing.get(alert.owner, {})
        known = alerts.pop(alert.key, None)
        if not alerts:
            self._firing.pop(alert.owner, None)
        return known

    def confirm_by_poll(self, alert: Alert, time_ns: int) -> None:
        """Store that a poll at `time_ns` has shown the condition of a firing alert again."""
        known = self.find(alert.owner, *alert.key)
        if known is not None and time_ns > known.seen_ns:
            self._put(replace(known, seen_ns=time_ns))

    def cap_seen_times(self, owner: int, time_ns: int) -> None:
        """Limit `seen_ns` of a process's alerts to `time_ns`, because the clock was set back."""
        for alert in self.alerts_of_owner(owner):
            self._put(replace(alert, seen_ns=min(alert.seen_ns, time_ns)))

    def resolve(
        self, alerts: Iterable[Alert], time_ns: int, reason: str, extra: Mapping[str, Any] | None = None
    ) -> Iterator[Record]:
        """Remove alerts, and yield a record for each alert that was not muted. Ignore alerts that are not in the store.

        Args:
            alerts: The alerts.
            time_ns: When the condition ended, in nanoseconds since the epoch.
            reason: The record's field `resolved_by`: the event or the cause.
            extra: Fields to add to the records.
        """
        for alert in list(alerts):
            known = self._remove(alert)
            if known is not None and not known.muted:
                yield known.to_record("resolved", time_ns, {"resolved_by": reason, **(extra or {})})

    def resolve_by_event(self, owner: int, event: str, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts of a process whose `resolved_by` has this event.

        An alert keeps firing if its condition was seen after the event.
        """
        alerts = self.alerts_of_owner(owner)
        resolved = (alert for alert in alerts if event in alert.resolved_by and alert.seen_ns <= time_ns)
        return self.resolve(resolved, time_ns, event)

    def resolve_alerts_past_end_time(self, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts whose `until_ns` has passed at `time_ns`."""
        return self.resolve(
            (alert for alert in self.all_including_muted() if 0 < alert.until_ns <= time_ns), time_ns, "time"
        )

    def reassign(self, alerts: Iterable[Alert], vm: Vm, owner: int) -> None:
        """Move alerts to another process of the VM, such as the destination of a migration."""
        for alert in list(alerts):
            self._remove(alert)
            self._put(replace(alert, vm=vm, owner=owner))

    # Persistence.

    def state_to_store(self, owner: int) -> list[dict[str, Any]]:
        """Return the firing and muted alerts of a process for the next run of the agent, as JSON values."""
        return [
            {
                "name": alert.name,
                "vm_name": alert.vm.name,
                "subject": alert.subject,
                "level": alert.level,
                "severity": alert.severity.value,
                "since_ns": alert.since_ns,
                "until_ns": alert.until_ns,
                "resolved_by": sorted(alert.resolved_by),
                "status": alert.status,
                "instance": alert.instance,
                "seen_ns": alert.seen_ns,
                **({"custom": True} if alert.custom else {}),
                **({"muted": True} if alert.muted else {}),
                "data": dict(alert.data),
            }
            for alert in self.alerts_of_owner(owner)
        ]

    def restore(self, vm: Vm, owner: int, stored: object) -> None:
        """Restore the alerts that `state_to_store` returned in an earlier run. Ignore invalid values."""
        for fields in stored if isinstance(stored, list) else ():
            try:
                alert = Alert(
                    fields["name"],
                    replace(vm, name=fields["vm_name"]),
                    fields["subject"],
                    fields["level"],
                    Severity(fields["severity"]),
                    int(fields["since_ns"]),
                    dict(fields["data"]),
                    int(fields["until_ns"]),
                    frozenset(fields["resolved_by"]),
                    str(fields["status"]),
                    owner,
                    str(fields["instance"]),
                    int(fields["seen_ns"]),
                    custom=fields.get("custom") is True,
                    muted=fields.get("muted") is True,
                )
            except (KeyError, TypeError, ValueError):
                continue
            self._put(alert)
            self.resolving_events |= alert.resolved_by
