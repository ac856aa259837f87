"""The book of alerts: what is firing, since when; and each change of it as a record. Pure: time is given."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.model.record import Record, Severity, Vm


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: what kind, such as write_threshold.
        vm: whose.
        subject: the disk or the like, by its guest-visible name; empty for the VM as a whole.
        level: which rung of a ladder, as it was written; empty where there is none.
        severity: how severe.
        since_ns: since when it fires, nanoseconds since the epoch.
        until_ns: when it ends by itself; 0 is never.
        ends_with: events that end it.
        data: what else is to be told.
    """

    name: str
    vm: Vm
    subject: str
    level: str
    severity: Severity
    since_ns: int
    data: Mapping[str, Any]
    until_ns: int = 0
    ends_with: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        """What tells it from every other: the same over restarts, reconnects and repetitions."""
        parts = f"{self.vm.host}\n{self.vm.uuid}\n{self.name}\n{self.subject}\n{self.level}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def record(self, state: str, time_ns: int, more: Mapping[str, Any]) -> Record:
        """Return the record that tells a state of it."""
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
    """All that fires, by fingerprint."""

    def __init__(self) -> None:
        self._firing: dict[str, Alert] = {}
        self.ending_events: set[str] = set()
        """Events that may end one of them."""

    def __iter__(self) -> Iterator[Alert]:
        return iter(self._firing.values())

    def __len__(self) -> int:
        return len(self._firing)

    def fire(self, alert: Alert) -> Record | None:
        """Take an alert; return the record that tells it, or None where it fires already."""
        self.ending_events |= alert.ends_with
        known = self._firing.get(alert.fingerprint)
        if known is not None:
            self._firing[alert.fingerprint] = replace(alert, since_ns=known.since_ns)
            return None
        self._firing[alert.fingerprint] = alert
        return alert.record("firing", alert.since_ns, {})

    def resolve(self, alert: Alert, time_ns: int, reason: str, more: Mapping[str, Any] | None = None) -> Record | None:
        """End an alert; return the record that tells it, or None where it does not fire."""
        known = self._firing.pop(alert.fingerprint, None)
        return known.record("resolved", time_ns, {"resolved_by": reason, **(more or {})}) if known is not None else None

    def resolve_by_event(self, vm: Vm, event: str, time_ns: int) -> Iterator[Record]:
        """Resolve what an event of a VM ends."""
        return self.resolve_all((a for a in self if a.vm.uuid == vm.uuid and event in a.ends_with), time_ns, event)

    def resolve_vm(self, uuid: str, time_ns: int) -> Iterator[Record]:
        """Resolve all of a VM that is gone."""
        return self.resolve_all((alert for alert in self if alert.vm.uuid == uuid), time_ns, "vm_gone")

    def resolve_expired(self, time_ns: int) -> Iterator[Record]:
        """Resolve what ends by itself."""
        return self.resolve_all((alert for alert in self if 0 < alert.until_ns <= time_ns), time_ns, "time")

    def resolve_all(self, alerts: Iterable[Alert], time_ns: int, reason: str) -> Iterator[Record]:
        """End alerts for one reason; yield the records that tell it, each as its alert is ended."""
        for alert in list(alerts):
            record = self.resolve(alert, time_ns, reason)
            if record is not None:
                yield record

    # Over restarts.

    def to_note(self, uuid: str) -> list[dict[str, Any]]:
        """Return what fires of a VM, as JSON can say it."""
        return [
            {
                "name": a.name,
                "vmname": a.vm.name,
                "subject": a.subject,
                "level": a.level,
                "severity": a.severity.value,
                "since_ns": a.since_ns,
                "until_ns": a.until_ns,
                "ends_with": sorted(a.ends_with),
                "data": dict(a.data),
            }
            for a in self
            if a.vm.uuid == uuid
        ]

    def restore(self, host: str, uuid: str, kept: object) -> None:
        """Take what `to_note` returned in an earlier run; what does not fit is ignored."""
        for item in kept if isinstance(kept, list) else ():
            try:
                alert = Alert(
                    item["name"],
                    Vm(host, uuid, item["vmname"]),
                    item["subject"],
                    item["level"],
                    Severity(item["severity"]),
                    int(item["since_ns"]),
                    dict(item["data"]),
                    int(item["until_ns"]),
                    frozenset(item["ends_with"]),
                )
            except (KeyError, TypeError, ValueError):
                continue
            self._firing.setdefault(alert.fingerprint, alert)
            self.ending_events |= alert.ends_with
