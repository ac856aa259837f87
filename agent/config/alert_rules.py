"""Sections of the config that change the agent's alerts and add custom alerts.

The validators look up each name in the tables of alerts, events and samples. So a misspelled name is an error, instead of
an alert that never fires.
"""

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.rules.comparison import NUMERIC, ComparedValue, FieldComparison, Operator
from agent.alerts.rules.derived_samples import BALLOON_MEMORY, DISK_CHAIN
from agent.alerts.rules.overrides import AlertOverride
from agent.alerts.rules.rule_types import EventAlertRule, EventMatch, LimitUnit, SampleAlertRule
from agent.common.config_types import ConfigSection, PositiveSeconds, Seconds
from agent.common.durations_and_sizes import parse_bytes, parse_seconds
from agent.model.family import Family, FieldKind
from agent.model.metrics import FAMILIES
from agent.model.qmp_event_fields import EVENT_FIELDS
from agent.model.record import Severity

MAX_CUSTOM_ALERTS: Final = 100
"""Maximum number of custom alerts."""
DEFAULT_RESOLVE_AFTER_SECONDS: Final = 3600.0
"""Default of `resolve_after` in seconds, for a custom alert on an event without `resolved_by`, and for a custom alert on an increase."""

CUSTOM_ALERT_FAMILIES: Final = {
    family.name: family for family in (*FAMILIES, DISK_CHAIN, BALLOON_MEMORY) if not family.per_host
}
"""Families of samples that custom alerts can use, by name. Families about the host or a pool are left out."""

_COMPARABLE_KINDS: Final = {
    FieldKind.COUNTER: "number",
    FieldKind.GAUGE: "number",
    FieldKind.FLAG: "flag",
    FieldKind.STATE: "text",
    FieldKind.NAME: "text",
    FieldKind.TEXT: "text",
}
_COMPARISON: Final = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(>=|<=|==|!=|>|<|increases\b)\s*(.*?)\s*")

SeverityName = Literal["debug", "info", "warning", "error", "critical"]


def _wrap_in_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


TextOrTexts = Annotated[list[str], BeforeValidator(_wrap_in_list)]
"""A text, or a list of texts."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most similar to a name. Return the alphabetically first known name if no name is similar."""
    names = sorted(known)
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), names[0] if names else "")


def require_known_name(name: str, known: Iterable[str], what: str) -> str:
    """Return the name if the name is known.

    Raises:
        ValueError: the name is unknown. The text contains the most similar known name.
    """
    names = list(known)
    if name in names:
        return name
    raise ValueError(f"should be {what}, such as {nearest_name(name, names)}")


def parse_alert_limit(text: str, unit: str) -> float:
    """Return a limit as a number in base units: seconds, bytes or a ratio.

    Args:
        text: the limit, such as `50ms`, `10GiB` or `80%`.
        unit: a `LimitUnit`, or the last part of a field's name, such as `bytes`.

    Raises:
        ValueError: the text is not a number, a duration, a size or a percentage that fits the unit.
    """
    try:
        return float(text)
    except ValueError:
        pass
    if unit == LimitUnit.SECONDS:
        return parse_seconds(text)
    if unit == LimitUnit.BYTES:
        return float(parse_bytes(text))
    if unit == LimitUnit.RATIO and (match := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", text)):
        return float(match[1]) / 100
    raise ValueError("should be a number")


def parse_comparison(text: str, kinds: dict[str, str], what: str) -> FieldComparison:
    """Parse a comparison such as `read_latency_seconds > 50ms` or `nospace == true`.

    Args:
        text: the comparison.
        kinds: the kind (flag, number or text) of each field that the comparison may name.
        what: description of these fields in errors, such as `a field of block`.

    Raises:
        ValueError: the text is not a comparison, the field is unknown, or the field's kind does not fit.
    """
    match = _COMPARISON.fullmatch(text)
    if match is None or (match[2] == Operator.INCREASES) is bool(match[3]):
        raise ValueError(
            'should be a comparison such as "size_bytes > 10GiB", "status == paused" or "oom_kills_total increases"'
        )
    name, operator = match[1], Operator(match[2])
    kind = kinds[require_known_name(name, kinds, what)]
    if kind != "number" and operator in {*NUMERIC, Operator.INCREASES}:
        raise ValueError(f"should compare {name} with == or !=, because this field is not a number")
    value: ComparedValue = match[3].strip("\"'")
    if operator is Operator.INCREASES:
        value = 0.0
    elif kind == "number":
        value = parse_alert_limit(match[3], re.split(r"[_-]", name.removesuffix("_total"))[-1])
    elif kind == "flag":
        if value not in {"true", "false"}:
            raise ValueError(f"should compare {name} with true or false")
        value = value == "true"
    return FieldComparison(tuple(name.split(".")), operator, value)


def comparable_field_kinds(family: Family) -> dict[str, str]:
    """Return the kind (flag, number or text) of each field and label of a family that a comparison may name."""
    return {
        field.name: _COMPARABLE_KINDS[field.kind] for field in family.fields if field.kind in _COMPARABLE_KINDS
    } | dict.fromkeys(family.labels, "text")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise ValueError("should be at most 64 lower-case letters, digits and underscores, and begin with a letter")
    if name in ALERT_CATALOGUE or name == "custom":
        raise ValueError("should be a name that none of the agent's own alerts has")
    return name


class CustomAlertConfig(ConfigSection):
    """An alert of your own, on an event or on samples."""

    name: Annotated[str, AfterValidator(_check_name)]
    """Name of the alert in records, metrics and Alertmanager."""
    event: str | None = None
    """QEMU's name of the event, such as VNC_CONNECTED."""
    sample: Annotated[str | None, Field(validate_default=True)] = None
    """Family of the samples, as in docs/reference/metrics.md, such as block."""
    when: Annotated[TextOrTexts, Field(validate_default=True)] = []
    """Comparisons of fields, which all have to be true. An alert on samples needs at least one comparison.

    The first comparison has the alert's limit.
    """
    resolve_at: str | float | None = None
    """Limit at which a firing alert on samples is resolved; by default, the limit of the first comparison."""
    resolved_by: TextOrTexts = []
    """Events that resolve an alert on an event. An event about another device does not resolve it."""
    duration: Seconds = 0.0
    """How long the condition has to hold; with `count`, the time in which events are counted."""
    count: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Number of events within `duration` at which the alert fires; by default, it fires at the first event."""
    resolve_after: PositiveSeconds | None = None
    """How long the alert fires after the last such event or increase.

    By default, until an event in `resolved_by`; without `resolved_by`, an hour, or `duration` if that is longer.
    """
    severity: SeverityName = "warning"
    """Severity: debug, info, warning, error or critical."""
    vm: str = "*"
    """Name or UUID of the VMs; * and ? are wildcards."""
    device: str = "*"
    """Ids of the disks, jobs or other parts of a VM that the alert applies to; * and ? are wildcards."""
    text: str = ""
    """Text of the alert, one sentence; by default the condition."""

    @field_validator("event")
    @classmethod
    def _check_event(cls, value: str | None) -> str | None:
        return value if value is None else require_known_name(value, EVENT_FIELDS, "an event of QEMU")

    @field_validator("sample")
    @classmethod
    def _check_sample(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "event" in info.data and (value is None) is (info.data["event"] is None):
            raise ValueError("is required without `event`" if value is None else "should be absent beside `event`")
        return value if value is None else require_known_name(value, CUSTOM_ALERT_FAMILIES, "a family of samples")

    @field_validator("when")
    @classmethod
    def _check_when(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if "event" not in info.data or "sample" not in info.data:
            return value  # the error of `event` or `sample` is reported instead
        if info.data["sample"] is not None and not value:
            raise ValueError("should have a comparison")
        kinds, what = _comparable_fields(info.data)
        tests = [parse_comparison(text, kinds, what) for text in value]
        if any(test.operator is Operator.INCREASES for test in (tests[1:] if info.data["sample"] else tests)):
            raise ValueError("should have `increases` only in the first comparison of an alert on samples")
        return value

    @field_validator("resolve_at")
    @classmethod
    def _check_resolve_at(cls, value: str | float | None, info: ValidationInfo) -> str | float | None:
        if value is not None and info.data.get("sample") and info.data.get("when"):
            first = parse_comparison(info.data["when"][0], *_comparable_fields(info.data))
            if first.operator not in NUMERIC:
                raise ValueError("should be absent, because the first comparison has no limit that a value can pass")
            parse_alert_limit(str(value), _unit_of(first))
        elif value is not None and info.data.get("event"):
            raise ValueError("should be absent: use `resolved_by` or `resolve_after` for an alert on an event")
        return value

    @field_validator("resolved_by")
    @classmethod
    def _check_resolved_by(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if value and info.data.get("sample"):
            raise ValueError("should be absent: use `resolve_at` for an alert on samples")
        return [require_known_name(name, EVENT_FIELDS, "an event of QEMU") for name in value]

    @field_validator("count")
    @classmethod
    def _check_count(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and (info.data.get("sample") or not info.data.get("duration")):
            raise ValueError("needs `event` and `duration`")
        return value

    @field_validator("resolve_after")
    @classmethod
    def _check_resolve_after(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("sample") and info.data.get("when"):
            first = parse_comparison(info.data["when"][0], *_comparable_fields(info.data))
            if first.operator is not Operator.INCREASES:
                raise ValueError(
                    "needs `event` or a comparison with `increases`: another alert on samples ends with its condition"
                )
        return value

    def to_alert_rule(self) -> SampleAlertRule | EventAlertRule:
        """Return the alert in the form of the agent's own alerts, which the alert engine evaluates."""
        tests = tuple(parse_comparison(text, *_comparable_fields(self.model_dump())) for text in self.when)
        common: dict[str, Any] = {"alert": self.name, "severity": Severity[self.severity.upper()], "custom": True}
        common |= {"vm": self.vm, "device": self.device, "seconds": self.duration}
        common["help"] = self.text or f"{self.event or self.sample}: {' and '.join(map(str, tests)) or 'event'}."
        if self.event is not None:
            resolved_by = tuple(EventMatch(name) for name in self.resolved_by)
            limit = float(self.count) if self.count is not None else None
            seconds = self.resolve_after or (None if resolved_by else max(DEFAULT_RESOLVE_AFTER_SECONDS, self.duration))
            match = EventMatch(self.event, tests)
            copied_fields = tuple(name for name in EVENT_FIELDS[self.event] if "." not in name)
            return EventAlertRule(
                match=match,
                resolved_by=resolved_by,
                limit=limit,
                resolve_after_seconds=seconds,
                copied_fields=copied_fields,
                **common,
            )
        family, first = CUSTOM_ALERT_FAMILIES[str(self.sample)], tests[0]
        increases = first.operator is Operator.INCREASES
        return SampleAlertRule(
            family=family,
            field=first.path[0],
            operator=first.operator,
            value=first.limit,
            where=tests[1:],
            resolve_at=parse_alert_limit(str(self.resolve_at), _unit_of(first))
            if self.resolve_at is not None
            else None,
            resolve_after_seconds=self.resolve_after or DEFAULT_RESOLVE_AFTER_SECONDS if increases else None,
            **common,
        )


def _comparable_fields(data: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return the kind of each field that a custom alert may compare, and a description of these fields for errors."""
    if data["event"] is not None:
        return dict(EVENT_FIELDS[data["event"]]), f"a field of {data['event']}"
    return comparable_field_kinds(CUSTOM_ALERT_FAMILIES[data["sample"]]), f"a field of {data['sample']}"


def _unit_of(test: FieldComparison) -> str:
    return re.split(r"[_-]", test.path[-1].removesuffix("_total"))[-1]


class AlertOverrideConfig(ConfigSection):
    """A change to some alerts: off, or another severity, limit or duration."""

    alert: str
    """Name of the alerts, as in docs/reference/alerts.md; * and ? are wildcards."""
    vm: str = "*"
    """Name or UUID of the VMs; * and ? are wildcards."""
    device: str = "*"
    """Ids of the disks, jobs or other parts of a VM, or names of the pools; * and ? are wildcards."""
    enabled: bool = True
    """False turns these alerts off, and resolves those that fire."""
    severity: SeverityName | None = None
    """Severity of these alerts; by default, the severity in docs/reference/alerts.md."""
    limit: str | float | None = None
    """Limit of these alerts; by default, the limit in docs/reference/alerts.md."""
    duration: Seconds | None = None
    """How long the alert's condition has to hold; by default, the duration in docs/reference/alerts.md."""

    @field_validator("limit", "duration")
    @classmethod
    def _check_change(cls, value: str | float | None, info: ValidationInfo) -> str | float | None:
        name = info.data.get("alert", "")
        alert = ALERT_CATALOGUE.get(name)
        if value is None or (alert is None and not re.search(r"[*?]", name)):
            return value  # the error of the key `alert` is reported instead
        default = None if alert is None else alert.limit if info.field_name == "limit" else alert.seconds
        if alert is None or default is None:
            setting = f": see {alert.setting}" if alert is not None and alert.setting else ""
            raise ValueError(f"should be absent, because {name} has no {info.field_name} to change here{setting}")
        if info.field_name == "limit":
            parse_alert_limit(str(value), alert.unit)
        return value

    def to_override(self) -> AlertOverride:
        """Return the change as an `AlertOverride`."""
        info = ALERT_CATALOGUE.get(self.alert)
        limit = parse_alert_limit(str(self.limit), info.unit) if info is not None and self.limit is not None else None
        severity = Severity[self.severity.upper()] if self.severity is not None else None
        return AlertOverride(self.alert, self.vm, self.device, self.enabled, severity, limit, self.duration)


def check_override_names(overrides: list[AlertOverrideConfig], custom: Iterable[str]) -> None:
    """Check that each override names one of the agent's own alerts or a custom alert.

    Raises:
        ValueError: an override names an unknown alert. The text contains the most similar known name.
    """
    names = [*ALERT_CATALOGUE, *custom]
    for number, override in enumerate(overrides):
        if not any(fnmatchcase(name, override.alert) for name in names):
            raise ValueError(
                f"overrides[{number}].alert should be the name of an alert, such as {nearest_name(override.alert, names)}, "
                f"not {override.alert!r}"
            )
