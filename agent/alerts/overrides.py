"""The config's overrides of alerts: it can turn alerts off, mute them, or change their severity, limit and duration. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from agent.alerts.conditions.rows import ConditionRow
from agent.alerts.store import Alert
from agent.common.vm_patterns import matches_vm
from agent.model.record import Severity, Vm


@dataclass(frozen=True, slots=True)
class AlertOverride:
    """One override of some alerts by the config.

    Attributes:
        alert: Pattern of the alerts' names.
        vm: Pattern of the names or UUIDs of the VMs.
        device: Pattern of the alerts' subjects: disks, jobs, pools.
        enabled: Whether the alerts may fire.
        severity: Their severity; None for the default.
        limit: Their limit; None for the default.
        seconds: How long their condition has to hold; None for the default.
    """

    alert: str
    vm: str = "*"
    device: str = "*"
    enabled: bool = True
    severity: Severity | None = None
    limit: float | None = None
    seconds: float | None = None


class AlertOverrides:
    """The config's overrides of alerts. The first one that matches an alert applies."""

    def __init__(self, overrides: Iterable[AlertOverride] = ()) -> None:
        self.overrides: Sequence[AlertOverride] = tuple(overrides)
        self._by_alert = lru_cache(maxsize=512)(self._overrides_of)

    def _overrides_of(self, alert: str) -> tuple[AlertOverride, ...]:
        return tuple(override for override in self.overrides if fnmatchcase(alert, override.alert))

    def find(self, alert: str, vm: Vm, subject: str) -> AlertOverride | None:
        """Return the override that applies to an alert; None if there is none."""
        if not self.overrides:
            return None
        return next(
            (
                override
                for override in self._by_alert(alert)
                if fnmatchcase(subject, override.device) and matches_vm(override.vm, vm.name, vm.uuid)
            ),
            None,
        )

    def limit_of(self, row: ConditionRow, vm: Vm, subject: str) -> float:
        """Return the limit of a row for a subject of a VM."""
        override = self.find(row.alert, vm, subject)
        return override.limit if override is not None and override.limit is not None else row.limit or 0.0

    def seconds_of(self, alert: str, vm: Vm, subject: str, default: float) -> float:
        """Return how long the condition of an alert has to hold. It is `default` unless the config changes it."""
        override = self.find(alert, vm, subject)
        return override.seconds if override is not None and override.seconds is not None else default

    def adjust(self, alert: Alert) -> Alert | None:
        """Return an alert with the severity that the config sets; None if the config turns the alert off."""
        override = self.find(alert.name, alert.vm, alert.subject)
        if override is None:
            return alert
        if not override.enabled:
            return None
        return replace(alert, severity=override.severity) if override.severity is not None else alert
