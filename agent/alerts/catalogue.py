"""The catalogue of built-in alerts: the texts and the condition of each alert, and what the config can change. Pure.

The catalogue is built from the tables of alert rules. The config's checks, the record schemas and docs/reference/alerts.md are derived
from the catalogue.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.alerts import failure_rules
from agent.alerts.pool_alerts import POOL_ALERT_TEXTS, UNRESPONSIVE_HELP
from agent.alerts.rules.event_rules import EVENT_ALERT_RULES
from agent.alerts.rules.rule_types import EventAlertRule, LimitUnit, Runbook, SampleAlertRule
from agent.alerts.rules.sample_rules import SAMPLE_ALERT_RULES
from agent.alerts.runbooks import RUNBOOKS


@dataclass(frozen=True, slots=True)
class AlertInfo:
    """Description of one alert.

    Attributes:
        name: The alert's name.
        help: The alert's meaning, one sentence.
        condition: When the alert fires, in Markdown.
        severity: The alert's severity as text. The severity of some alerts depends on the exceeded level.
        runbook: Usual causes, and what to do.
        limit: The default limit. None if the alert has no limit, or if `alerts.overrides` cannot change the limit.
        unit: The unit of the limit.
        seconds: How long the condition has to hold, in seconds. None if `alerts.overrides` cannot change this time.
        setting: The config key that has the alert's limits, such as `alerts.disks`; empty if only `alerts.overrides` can have limits.
    """

    name: str
    help: str
    condition: str
    severity: str
    runbook: Runbook
    limit: float | None = None
    unit: LimitUnit = LimitUnit.NUMBER
    seconds: float | None = None
    setting: str = ""


_WRITE_THRESHOLD_HELP = "A thin disk exceeded an alert level."


def _make_info(
    name: str, text: str, condition: str, severity: str, setting: str = "", seconds: float | None = None
) -> AlertInfo:
    return AlertInfo(name, text, condition, severity, RUNBOOKS[name], seconds=seconds, setting=setting)


_ALERTS_WITHOUT_RULE = (
    _make_info(
        "write_threshold",
        _WRITE_THRESHOLD_HELP,
        "bytes in use of a disk, or its highest written offset, above a level",
        "warning; critical at the highest of several levels",
        "alerts.disks",
    ),
    _make_info(
        "pool_filling",
        POOL_ALERT_TEXTS["pool_filling"],
        "used space, inodes or metadata of a pool above a level, or time until the pool is full below a level",
        "warning; critical at the highest of several levels of one kind",
        "alerts.pools",
    ),
    _make_info(
        "pool_unresponsive",
        UNRESPONSIVE_HELP,
        "storage does not answer within its deadline",
        "error; critical at the level `guests stand still`",
    ),
    _make_info(
        "postcopy_paused",
        failure_rules.POSTCOPY_HELP,
        "migration status `postcopy-paused`, or an attempt to recover",
        "critical",
    ),
    _make_info(
        "postcopy_recovery_failed",
        failure_rules.RECOVERY_FAILED_HELP,
        "migration status after a recovery: `postcopy-paused` again, `failed` or `cancelled`",
        "critical",
    ),
    _make_info(
        "uuid_clash", failure_rules.UUID_CLASH_HELP, "several guests with one UUID run at the same time", "error"
    ),
    _make_info(
        "guest_agent_lost",
        failure_rules.GUEST_AGENT_LOST_HELP,
        "the guest runs, and its guest agent has closed its channel or does not respond to queries",
        "warning",
        seconds=failure_rules.GUEST_AGENT_LOST_SECONDS,
    ),
    _make_info(
        "guest_filesystem_space",
        failure_rules.GUEST_FILESYSTEM_HELP,
        "bytes in use of a file system in the guest above a level",
        "warning; critical at the highest level",
        "alerts.guest_filesystems",
    ),
    _make_info(
        "guest_frozen",
        failure_rules.GUEST_FROZEN_HELP,
        "`guest_freeze.frozen == true`",
        "error",
        "alerts.guests.max_frozen_time",
    ),
    _make_info(
        "guest_clock_offset",
        failure_rules.GUEST_CLOCK_HELP,
        "absolute value of `guest_clock.offset_seconds`, minus its uncertainty, above the limit in two consecutive polls",
        "warning",
        "alerts.guests.max_clock_offset",
    ),
)


def _infos_of_rules() -> Iterator[AlertInfo]:
    """Yield the alerts of the rules in `agent.alerts.failure_rules`, except for alerts that also have a rule on samples."""
    events = {
        rule.alert: [each for each in failure_rules.FAILURE_EVENT_RULES if each.alert == rule.alert]
        for rule in failure_rules.FAILURE_EVENT_RULES
    }
    states = {rule.alert: rule for rule in failure_rules.RUN_STATE_RULES}
    for name in dict.fromkeys((*events, *states)):
        if name in {sample_rule.alert for sample_rule in SAMPLE_ALERT_RULES}:
            continue
        rule = events[name][0] if name in events else states[name]
        conditions = [f"event `{events[name][0].event}`"] if name in events else []
        conditions += [f"run state `{states[name].status}`"] if name in states else []
        seconds = states[name].seconds or None if name in states else None
        yield _make_info(name, rule.help, " or ".join(conditions), rule.severity.label, seconds=seconds)


def _info_of_table_rule(rule: SampleAlertRule | EventAlertRule) -> AlertInfo:
    seconds = (
        rule.seconds
        if isinstance(rule, SampleAlertRule) and rule.resolve_after_seconds is None
        else rule.seconds or None
    )
    runbook = RUNBOOKS.get(rule.alert, rule.runbook)
    also = [f"event `{other.event}`" for other in failure_rules.FAILURE_EVENT_RULES if other.alert == rule.alert]
    condition = " or ".join((*also, rule.condition_markdown))
    if isinstance(rule, EventAlertRule) and rule.resolved_by:
        condition += ", resolved by " + " or ".join(map(str, rule.resolved_by))
    return AlertInfo(rule.alert, rule.help, condition, rule.severity.label, runbook, rule.limit, rule.unit, seconds)


_TABLE_RULES: tuple[SampleAlertRule | EventAlertRule, ...] = (*SAMPLE_ALERT_RULES, *EVENT_ALERT_RULES)

ALERT_CATALOGUE: Final[Mapping[str, AlertInfo]] = {
    info.name: info
    for info in (
        *_ALERTS_WITHOUT_RULE[:3],
        *_infos_of_rules(),
        *_ALERTS_WITHOUT_RULE[3:],
        *map(_info_of_table_rule, _TABLE_RULES),
    )
}
"""Every built-in alert by name."""
