"""The overrides in the config that mute alerts, or change their severity, limit or duration. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from agent.alerts.rules.rule_types import AlertRule
from agent.alerts.store import Alert
from agent.common.vm_patterns import matches_vm
from agent.model.record import Severity, Vm


@dataclass(frozen=True, slots=True)
class AlertOverride:
    """One entry of `alerts.overrides` in the config.

    Attributes:
        alert: Pattern of the alerts' names.
        vm: Pattern of the names or UUIDs of the VMs.
        device: Pattern of the alerts' subjects: disks, jobs, pools.
        enabled: Whether the alerts may fire. False mutes the alerts.
        severity: The severity of the alerts; None for the default.
        limit: The limit of the alerts, in the unit of the alert; None for the default.
        seconds: How long the condition has to hold, in seconds; None for the default.
    """

    alert: str
    vm: str = "*"
    device: str = "*"
    enabled: bool = True
    severity: Severity | None = None
    limit: float | None = None
    seconds: float | None = None


class AlertOverrides:
    """All overrides of the config. The first override that matches an alert applies."""

    def __init__(self, overrides: Iterable[AlertOverride] = ()) -> None:
        self.overrides: Sequence[AlertOverride] = tuple(overrides)
        self._by_alert = lru_cache(maxsize=512)(self._overrides_of)

    def _overrides_of(self, alert: str) -> tuple[AlertOverride, ...]:
        return tuple(override for override in self.overrides if fnmatchcase(alert, override.alert))

    def find(self, alert: str, vm: Vm, subject: str) -> AlertOverride | None:
        """Return the override that applies to an alert; None if no override applies."""
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

    def limit_of_rule(self, rule: AlertRule, vm: Vm, subject: str) -> float:
        """Return the limit of an alert rule for a subject of a VM: the override's limit, or the rule's default limit."""
        override = self.find(rule.alert, vm, subject)
        return override.limit if override is not None and override.limit is not None else rule.limit or 0.0

    def min_duration_seconds_of_alert(self, alert: str, vm: Vm, subject: str, default: float) -> float:
        """Return how long the condition of an alert has to hold, in seconds. Return `default` if no override changes this time."""
        override = self.find(alert, vm, subject)
        return override.seconds if override is not None and override.seconds is not None else default

    def override_severity_or_mute(self, alert: Alert) -> Alert | None:
        """Return an alert with the severity that the config sets; None if the config mutes the alert."""
        override = self.find(alert.name, alert.vm, alert.subject)
        if override is None:
            return alert
        if not override.enabled:
            return None
        return replace(alert, severity=override.severity) if override.severity is not None else alert
