"""The types of alert rules. A rule defines one alert: its condition, severity, texts and default limit. Pure.

To add an alert, add a rule to `sample_rules` or `event_rules`. The record, the metric, the schema, docs/reference/alerts.md
and the config's check of alert names are derived from the rule.
"""

from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from agent.alerts.rules.comparison import ComparedValue, FieldComparison, Operator
from agent.common.vm_patterns import matches_vm
from agent.model.family import Family, Sample
from agent.model.record import Severity, Vm


class LimitUnit(StrEnum):
    """The unit of an alert's limit. The config can write a limit with this unit, such as `10m`, `5GiB` or `5%`."""

    NUMBER = "number"
    SECONDS = "seconds"
    BYTES = "bytes"
    RATIO = "ratio"


@dataclass(frozen=True, slots=True)
class Runbook:
    """Instructions for an alert.

    Attributes:
        cause: The usual causes.
        action: What to do.
    """

    cause: str
    action: str


NO_RUNBOOK = Runbook("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """The fields that the rules on samples and the rules on events share.

    Attributes:
        alert: The alert's name.
        severity: The alert's severity.
        help: The alert's meaning, one sentence.
        runbook: Instructions for the operator.
        limit: The default limit. None if the config cannot change the limit.
        unit: The unit of the limit.
        seconds: How long the condition has to hold before the alert fires, in seconds. For a rule that counts events, the length of the
            time window in seconds.
        resolve_after_seconds: How long the alert fires after the condition was last true, in seconds.
            None if the end of the condition resolves the alert.
        custom: Whether the operator defined the rule in the config.
        vm: Pattern of the names or UUIDs of the VMs.
        device: Pattern of the subjects, such as disks or jobs.
    """

    alert: str
    severity: Severity
    help: str
    runbook: Runbook = NO_RUNBOOK
    limit: float | None = None
    unit: LimitUnit = LimitUnit.NUMBER
    seconds: float = 0.0
    resolve_after_seconds: float | None = None
    custom: bool = False
    vm: str = "*"
    device: str = "*"

    def applies_to(self, vm: Vm, subject: str) -> bool:
        """Return whether the rule applies to this subject of this VM."""
        return (self.device == "*" or fnmatchcase(subject, self.device)) and (
            self.vm == "*" or matches_vm(self.vm, vm.name, vm.uuid)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAlertRule(AlertRule):
    """An alert rule on the samples of a family. Each subject, such as a disk or a job, has its own alert.

    Attributes:
        family: The family.
        field: Name of the compared field, or of one of the family's labels.
        operator: How the field is compared.
        value: What the field is compared with if `limit` is None. The operator `INCREASES` does not use this value.
        where: Further comparisons of the sample's fields and labels, which all have to be true.
        hysteresis: How far the field has to be from the limit to resolve the alert, in the unit of the limit.
        resolve_at: The limit at which a firing alert is resolved; None if `hysteresis` determines that limit.
        unless: Name of an alert that reports the same cause more precisely. The rule fires no alert while that alert fires for the VM.
        unless_pool: Name of a pool alert that reports the same cause more precisely. The rule fires no alert for a disk while that alert
            fires for a pool with an image of the disk.
        distinguishing_label: The label that distinguishes the alerts of one subject; empty if each subject has at most one alert.
        copied_fields: Further fields to copy into the alert's record.
        resolved_when_false: Whether the alert is resolved by a sample for which the condition is false.
    """

    family: Family
    field: str
    operator: Operator
    value: ComparedValue = 0.0
    where: tuple[FieldComparison, ...] = ()
    hysteresis: float = 0.0
    resolve_at: float | None = None
    unless: str = ""
    unless_pool: str = ""
    distinguishing_label: str = ""
    copied_fields: tuple[str, ...] = ()
    resolved_when_false: bool = True

    def matches_labels(self, sample: Sample) -> bool:
        """Return whether a sample's labels pass the comparisons in `where`. Comparisons of other fields are ignored."""
        labels = dict(zip(self.family.labels, sample.labels, strict=True))
        return all(test.check(labels) is not False for test in self.where if test.path[0] in labels)

    def key_of(self, sample: Sample) -> tuple[str, str]:
        """Return the key of the sample's alert: the subject, and a text that distinguishes several alerts of one subject.

        The text is the value of `distinguishing_label`, or empty without that label. For a custom alert, the text has the values of all
        labels after the first.
        """
        if self.custom:
            return sample.subject, " ".join(sample.labels[1:])
        return sample.subject, sample.labels[
            sample.family.labels.index(self.distinguishing_label)
        ] if self.distinguishing_label else ""

    @property
    def condition_markdown(self) -> str:
        """The condition in Markdown, such as "`job.progress_per_second == 0` while `status == running`"."""
        test = FieldComparison((f"{self.family.name}.{self.field}",), self.operator, self.value)
        what = f"`{test.path[0]} {self.operator} limit`" if self.limit is not None else f"`{test}`"
        tests = " and ".join(f"`{test}`" for test in self.where)
        return f"{what} while {tests}" if tests else what


@dataclass(frozen=True, slots=True)
class EventMatch:
    """Selects the events with a name and with certain data.

    Attributes:
        event: The event's name in QEMU.
        where: Comparisons of the event's data, which all have to be true.
    """

    event: str
    where: tuple[FieldComparison, ...] = ()

    def __str__(self) -> str:
        return f"`{self.event}`" + "".join(f" with `{test}`" for test in self.where)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventAlertRule(AlertRule):
    """An alert rule on an event. Each subject of the event has its own alert.

    A rule with a `limit` fires the alert when that number of events has arrived within `seconds`. A rule without a `limit` fires the alert
    `seconds` after the event, unless an event in `resolved_by` arrives first.

    Attributes:
        match: The events.
        resolved_by: Events about the same subject that resolve the alert.
        copied_fields: Names of the fields of the event to copy into the alert's record.
    """

    match: EventMatch
    resolved_by: tuple[EventMatch, ...] = ()
    copied_fields: tuple[str, ...] = ()

    @property
    def condition_markdown(self) -> str:
        """The condition in Markdown."""
        return f"event {self.match}"
