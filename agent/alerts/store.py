"""Firing alerts, and each change of their state as a record. Pure: the caller passes the time."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.model.record import Record, Severity, Vm


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Its kind, such as `write_threshold`.
        vm: The VM.
        subject: The disk or other device, by its guest-visible name; empty for the VM as a whole.
        level: The level that was exceeded, as the config has it; empty where there is none.
        severity: Its severity.
        since_ns: Since when it fires, in nanoseconds since the epoch.
        data: Further fields of its record.
        until_ns: When it is resolved without an event, in nanoseconds since the epoch; 0 is never.
        resolved_by: Events that resolve it.
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

    @property
    def fingerprint(self) -> str:
        """Its identity, which stays the same over restarts, reconnects and repetitions."""
        parts = f"{self.vm.host}\n{self.vm.uuid}\n{self.name}\n{self.subject}\n{self.level}"
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
    """All firing alerts, by fingerprint.

    Attributes:
        resolving_events: Names of events that may resolve one of them.
    """

    def __init__(self) -> None:
        self._firing: dict[str, Alert] = {}
        self.resolving_events: set[str] = set()

    def __iter__(self) -> Iterator[Alert]:
        return iter(self._firing.values())

    def __len__(self) -> int:
        return len(self._firing)

    def of_vm(self, uuid: str) -> list[Alert]:
        """Return the firing alerts of a VM."""
        return [alert for alert in self if alert.vm.uuid == uuid]

    def fire(self, alert: Alert) -> Iterator[Record]:
        """Store an alert; yield its record unless it fires already."""
        self.resolving_events |= alert.resolved_by
        known = self._firing.get(alert.fingerprint)
        if known is not None:
            self._firing[alert.fingerprint] = replace(alert, since_ns=known.since_ns)
        else:
            self._firing[alert.fingerprint] = alert
            yield alert.to_record("firing", alert.since_ns, {})

    def resolve(
        self, alerts: Iterable[Alert], time_ns: int, reason: str, more: Mapping[str, Any] | None = None
    ) -> Iterator[Record]:
        """Resolve those of the alerts that fire; yield a record for each, at the moment when it is resolved."""
        for alert in list(alerts):
            known = self._firing.pop(alert.fingerprint, None)
            if known is not None:
                yield known.to_record("resolved", time_ns, {"resolved_by": reason, **(more or {})})

    def resolve_by_event(self, vm: Vm, event: str, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts that an event of a VM resolves."""
        return self.resolve((alert for alert in self.of_vm(vm.uuid) if event in alert.resolved_by), time_ns, event)

    def resolve_vm(self, uuid: str, time_ns: int) -> Iterator[Record]:
        """Resolve all alerts of a VM that is gone."""
        return self.resolve(self.of_vm(uuid), time_ns, "vm_gone")

    def resolve_expired(self, time_ns: int) -> Iterator[Record]:
        """Resolve the alerts whose time is over."""
        return self.resolve((alert for alert in self if 0 < alert.until_ns <= time_ns), time_ns, "time")

    # Persistence.

    def to_note(self, uuid: str) -> list[dict[str, Any]]:
        """Return the firing alerts of a VM as JSON values."""
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
                "data": dict(alert.data),
            }
            for alert in self.of_vm(uuid)
        ]

    def restore(self, host: str, uuid: str, note: object) -> None:
        """Restore what `to_note` returned in an earlier run; other values are ignored."""
        for item in note if isinstance(note, list) else ():
            try:
                alert = Alert(
                    item["name"],
                    Vm(host, uuid, item["vm_name"]),
                    item["subject"],
                    item["level"],
                    Severity(item["severity"]),
                    int(item["since_ns"]),
                    dict(item["data"]),
                    int(item["until_ns"]),
                    frozenset(item["resolved_by"]),
                )
            except (KeyError, TypeError, ValueError):
                continue
            self._firing.setdefault(alert.fingerprint, alert)
            self.resolving_events |= alert.resolved_by
