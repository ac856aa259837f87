"""The catalogue of the agent's alerts: each alert once, with its texts, its condition and what the config can change. Pure.

It is built from the tables of rules. The config's checks, the schemas of records and docs/reference/alerts.md follow from it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.alerts import rules
from agent.alerts.conditions.event_alert_table import EVENT_ALERT_ROWS
from agent.alerts.conditions.rows import EventAlertRow, LimitUnit, Runbook, SampleAlertRow
from agent.alerts.conditions.sample_alert_table import SAMPLE_ALERT_ROWS
from agent.alerts.pool_alerts import POOL_ALERT_TEXTS, UNRESPONSIVE_HELP
from agent.alerts.runbooks import RUNBOOKS


@dataclass(frozen=True, slots=True)
class AlertInfo:
    """Description of one alert.

    Attributes:
        name: The alert's name.
        help: Its meaning.
        condition: Its condition in Markdown.
        severity: Its severity, in words.
        runbook: Its causes, and what to do.
        limit: The default limit; None if there is no limit, or if `alerts.overrides` cannot change it.
        unit: The unit of the limit.
        seconds: How long the condition has to hold; None if there is no duration, or if `alerts.overrides` cannot change it.
        setting: The config key with the alert's limits, if `alerts.overrides` does not contain them.
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


_OTHERS = (
    _make_info(
        "write_threshold",
        _WRITE_THRESHOLD_HELP,
        "bytes in use of a disk, or its highest written offset, above a level",
        "warning; critical at the highest level",
        "alerts.disks",
    ),
    _make_info(
        "pool_filling",
        POOL_ALERT_TEXTS["pool_filling"],
        "space, inodes, metadata or time until full of a pool beyond a level",
        "warning; critical at the highest level of a kind",
        "alerts.pools",
    ),
    _make_info(
        "pool_unresponsive",
        UNRESPONSIVE_HELP,
        "storage does not answer within its deadline",
        "error; critical at the level `guests stand still`",
    ),
    _make_info(
        "postcopy_paused", rules.POSTCOPY_HELP, "migration status `postcopy-paused` or a recovery of it", "critical"
    ),
    _make_info(
        "postcopy_recovery_failed",
        rules.RECOVERY_FAILED_HELP,
        "migration status after a recovery: `postcopy-paused` again, `failed` or `cancelled`",
        "critical",
    ),
    _make_info("uuid_clash", rules.UUID_CLASH_HELP, "several guests with one UUID run at the same time", "error"),
    _make_info(
        "guest_agent_lost",
        rules.GUEST_AGENT_LOST_HELP,
        "channel of the guest agent closed after it was open, or no response to queries, while the guest runs",
        "warning",
        seconds=rules.GUEST_AGENT_LOST_SECONDS,
    ),
    _make_info(
        "guest_filesystem_space",
        rules.GUEST_FILESYSTEM_HELP,
        "bytes in use of a file system in the guest above a level",
        "warning; critical at the highest level",
        "alerts.guest_filesystems",
    ),
    _make_info(
        "guest_frozen",
        rules.GUEST_FROZEN_HELP,
        "`guest_freeze.frozen == true`",
        "error",
        "alerts.guests.max_frozen_time",
    ),
    _make_info(
        "guest_clock_offset",
        rules.GUEST_CLOCK_HELP,
        "`guest_clock.offset_seconds` beyond its uncertainty, in two polls in a row",
        "warning",
        "alerts.guests.max_clock_offset",
    ),
)


def _infos_of_rules() -> Iterator[AlertInfo]:
    """Yield the alerts of run states and events that are rows of `agent.alerts.rules`."""
    events = {
        rule.alert: [each for each in rules.EVENT_RULES if each.alert == rule.alert] for rule in rules.EVENT_RULES
    }
    states = {rule.alert: rule for rule in rules.RUN_STATE_RULES}
    for name in dict.fromkeys((*events, *states)):
        if name in {row.alert for row in SAMPLE_ALERT_ROWS}:
            continue
        rule = events[name][0] if name in events else states[name]
        conditions = [f"event `{events[name][0].event}`"] if name in events else []
        conditions += [f"run state `{states[name].status}`"] if name in states else []
        seconds = states[name].seconds or None if name in states else None
        yield _make_info(name, rule.help, " or ".join(conditions), rule.severity.label, seconds=seconds)


def _info_of_row(row: SampleAlertRow | EventAlertRow) -> AlertInfo:
    seconds = row.seconds if isinstance(row, SampleAlertRow) and row.lasts is None else row.seconds or None
    runbook = RUNBOOKS.get(row.alert, row.runbook)
    also = [f"event `{rule.event}`" for rule in rules.EVENT_RULES if rule.alert == row.alert]
    condition = " or ".join((*also, row.condition))
    if isinstance(row, EventAlertRow) and row.resolved_by:
        condition += ", resolved by " + " or ".join(map(str, row.resolved_by))
    return AlertInfo(row.alert, row.help, condition, row.severity.label, runbook, row.limit, row.unit, seconds)


_TABLES: tuple[SampleAlertRow | EventAlertRow, ...] = (*SAMPLE_ALERT_ROWS, *EVENT_ALERT_ROWS)

ALERT_CATALOGUE: Final[Mapping[str, AlertInfo]] = {
    info.name: info for info in (*_OTHERS[:3], *_infos_of_rules(), *_OTHERS[3:], *map(_info_of_row, _TABLES))
}
"""Every alert of the agent by name."""
