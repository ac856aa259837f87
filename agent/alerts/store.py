"""Firing alerts, and each change of their state as a record. Pure: the caller passes the time."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.model.record import Record, Severity, Vm

AlertKey = tuple[str, str, str]
"""An alert's name, its subject and its level."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Its kind, such as `write_threshold`.
        vm: The VM.
        subject: The disk or other device, by its guest-visible name; empty for the VM as a whole.
        level: The exceeded level, as written in the config; empty if there is none.
        severity: Its severity.
        since_ns: When it began to fire, in nanoseconds since the epoch.
        data: Further fields of its record.
        until_ns: When it is resolved without an event, in nanoseconds since the epoch; 0 means never.
        resolved_by: Events that resolve it.
        status: The run state in which the guest is stopped: the alert is resolved when the guest runs. Empty if the guest may run.
        owner: Number of the process that it belongs to.
        instance: Distinguishes processes with one UUID that run at the same time; empty for the first of them.
        seen_ns: Time of the newest evidence of it; older evidence does not resolve it.
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

    @property
    def key(self) -> AlertKey:
        """Its identity among the alerts of its process."""
        return self.name, self.subject, self.level

    @property
    def fingerprint(self) -> str:
        """Its identity for consumers. It stays the same across restarts, reconnects and repetitions."""
        parts = f"{self.vm.host}\n{self.vm.uuid}\n{self.name}\n{self.subject}\n{self.level}"
        parts += f"\n{self.instance}" if self.instance else ""
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def to_record(self, state: str, time_ns: int, more: Mapping[str, Any]) -> Record:
        """Return the record of a change of its state."""
        data = {
            "alert": self.name,
            "state": state,
            "fingerprint": self.fingerprint,
            "since_timestamp_seconds": self.since_ns / 1e9,
        }
        if self.level:
            data["level"] = self.level
        data |= {**self.data, **more}
        severity = self.severity if state == "firing" else Severity.INFO
        return Record(f"qemu.alert.{self.name}", self.vm, data, time_ns, self.subject, severity)


class AlertStore:
    """All firing alerts.

    Attributes:
        resolving_events: Names of events that may resolve one of them.
    """

    def __init__(self) -> None:
        self._firing: dict[int, dict[AlertKey, Alert]] = {}  # by owner
        self.resolving_events: set[str] = set()

    def __iter__(self) -> Iterator[Alert]:
        return (alert for alerts in list(self._firing.values()) for alert in list(alerts.values()))

    def __len__(self) -> int:
        return sum(map(len, self._firing.values()))

    def __contains__(self, owner: object) -> bool:
        """Return whether a process has a firing alert."""
        return owner in self._firing

    def of_owner(self, owner: int) -> list[Alert]:
        """Return the firing alerts of a process."""
        return list(self._firing.get(owner, {}).values())

    def find(self, owner: int, name: str, subject: str = "", level: str = "") -> Alert | None:
        """Return a firing alert; None if it does not fire."""
        return self._firing.get(owner, {}).get((name, subject, level))

    def fire(self, alert: Alert) -> Iterator[Record]:
        """Store an alert; yield its record unless it fires already. If it does, newer evidence updates its data."""
        self.resolving_events |= alert.resolved_by
        seen_ns = alert.seen_ns or alert.since_ns
        known = self.find(alert.owner, *alert.key)
        if known is None:
            self._put(replace(alert, seen_ns=seen_ns))
            yield alert.to_record("firing", alert.since_ns, {})
        elif seen_ns >= known.seen_ns:
            self._put(replace(alert, since_ns=known.since_ns, instance=known.instance, seen_ns=seen_ns))

    def _put(self, alert: Alert) -> None:
        self._firing.setdefault(alert.owner, {})[alert.key] = alert

    def _pop(self, alert: Alert) -> Alert | None:
        alerts = self._firing.get(alert.owner, {})
        known = alerts.pop(alert.key, None)
        if not alerts:
            self._firing.pop(alert.owner, None)
        return known

    def confirm(self, alert: Alert, time_ns: int) -> None:
        """Record that a firing alert's condition still holds at this time."""
        known = self.find(alert.owner, *alert.key)
        if known is not None and time_ns > known.seen_ns:
            self._put(replace(known, seen_ns=time_ns))

    def set_back(self, owner: int, time_ns: int) -> None:
        """Limit the times of the evidence of a process's alerts to `time_ns`, because the clock was set back."""
        for alert in self.of_owner(owner):
            self._put(replace(alert, seen_ns=min(alert.seen_ns, time_ns)))

    def resolve(
        self, alerts: Iterable[Alert], time_ns: int, reason: str, more: Mapping[str, Any] | None = None
    ) -> Iterator[Record]:
        """Resolve the alerts that fire; yield a record for each as soon as it is resolved."""
        for alert in list(alerts):
            known = self._pop(alert)
            if known is not None:
                yield known.to_record("resolved", time_ns, {"resolved_by": reason, **(more or {})})

    def resolve_by_event(self, owner: int, event: str, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts of a process that an event resolves, except those with newer evidence."""
        resolved = (a for a in self.of_owner(owner) if event in a.resolved_by and a.seen_ns <= time_ns)
        return self.resolve(resolved, time_ns, event)

    def resolve_expired(self, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts whose time is over."""
        return self.resolve((alert for alert in self if 0 < alert.until_ns <= time_ns), time_ns, "time")

    def reassign(self, alerts: Iterable[Alert], vm: Vm, owner: int) -> None:
        """Move alerts to another process, such as the destination of a migration."""
        for alert in list(alerts):
            self._pop(alert)
            self._put(replace(alert, vm=vm, owner=owner))

    # Persistence.

    def to_note(self, owner: int) -> list[dict[str, Any]]:
        """Return the firing alerts of a process as JSON values."""
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
                "data": dict(alert.data),
            }
            for alert in self.of_owner(owner)
        ]

    def restore(self, vm: Vm, owner: int, note: object) -> None:
        """Restore a note that `to_note` returned in an earlier run; other values are ignored."""
        for item in note if isinstance(note, list) else ():
            try:
                alert = Alert(
                    item["name"],
                    replace(vm, name=item["vm_name"]),
                    item["subject"],
                    item["level"],
                    Severity(item["severity"]),
                    int(item["since_ns"]),
                    dict(item["data"]),
                    int(item["until_ns"]),
                    frozenset(item["resolved_by"]),
                    str(item["status"]),
                    owner,
                    str(item["instance"]),
                    int(item["seen_ns"]),
                )
            except (KeyError, TypeError, ValueError):
                continue
            self._put(alert)
            self.resolving_events |= alert.resolved_by
