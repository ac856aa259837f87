"""Generator of docs/reference/alerts.md: each alert of the agent and each Prometheus rule, with its meaning, its causes and what to do.

`python -m tools.alerts_reference` writes the document to standard output.
"""

import sys
from typing import Final

from agent.alerts.alertmanager_request import AGENT_LOST, AGENT_RUNNING
from agent.alerts.catalogue import ALERT_CATALOGUE, AlertInfo
from agent.alerts.rules.rule_types import LimitUnit, Runbook
from agent.common.durations_and_sizes import format_bytes
from deploy.prometheus.alert_rule import PrometheusRule
from deploy.prometheus.alert_rules import FORWARD_RULES, PROMETHEUS_RULES

_NOTE: Final = "<!-- Generated from the code by `make generate`; a test fails if it is out of date. -->\n"

_INTRO: Final = """# Alerts

An alert is either an alert of the agent or a Prometheus rule, never both.
The agent has an alert for each event and each state, and detects it within a poll.
Prometheus has a rule for each rate over time, and for the agent itself.

- The agent emits each alert as a record `qemu.alert.NAME` with `state: firing` or `resolved`, and as the series `qemu_alert_firing`.
  `alerts.alertmanager` in its config sends alerts to Alertmanager.
- `deploy/prometheus/alerts.yml` has the rules. Use a job named `qmp-agent`, as in `deploy/prometheus/scrape.yml`.
- `deploy/prometheus/agent-alerts.yml` forwards the agent's alerts. Load it only if the agent does not send them to Alertmanager itself.

**critical** means that a guest is stopped or that records are lost: act now.
**warning** and **error** mean that this is about to happen, or that a function of the VM does not work: act today.

[Change alerts, and add your own](../how-to/alerts.md) describes the config.

"""


def alerts_document() -> str:
    """Return the text of docs/reference/alerts.md."""
    return "\n".join(
        (
            _NOTE,
            _INTRO + _agent_table(),
            _rules_table(),
            "## Instructions for the agent's alerts\n",
            *map(_agent_section, ALERT_CATALOGUE.values()),
            _watchdog_section(),
            "## Instructions for the Prometheus rules\n",
            *map(_rule_section, (*PROMETHEUS_RULES, *FORWARD_RULES)),
        )
    )


def _agent_table() -> str:
    rows = "".join(
        f"| [`{info.name}`](#{info.name}) | {_cell(info.condition)} | {info.severity} | {_limit(info)} | {_duration(info)} |\n"
        for info in ALERT_CATALOGUE.values()
    )
    return (
        f"## The agent's alerts\n\n| alert | condition | severity | limit | duration |\n|---|---|---|---|---|\n{rows}"
    )


def _limit(info: AlertInfo) -> str:
    if info.setting:
        return f"`{info.setting}`"
    if info.limit is None:
        return ""
    match info.unit:
        case LimitUnit.SECONDS:
            return _seconds(info.limit)
        case LimitUnit.BYTES:
            return format_bytes(info.limit)
        case LimitUnit.RATIO:
            return f"{info.limit:.0%}"
        case _:
            return f"{info.limit:g}"


def _duration(info: AlertInfo) -> str:
    return "" if info.seconds is None else _seconds(info.seconds)


def _seconds(seconds: float) -> str:
    unit, size = next((unit for unit in (("d", 86400), ("h", 3600), ("m", 60)) if not seconds % unit[1]), ("s", 1))
    return f"{seconds / size:g}{unit}" if seconds else "0s"


def _rules_table() -> str:
    rows = "".join(
        f"| [{rule.alert}](#{rule.alert.lower()}) | `{_cell(' '.join(rule.expr.split()))}` | {rule.severity} | {rule.hold} |\n"
        for rule in (*PROMETHEUS_RULES, *FORWARD_RULES)
    )
    return f"## Prometheus rules\n\n| rule | expression | severity | duration |\n|---|---|---|---|\n{rows}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _agent_section(info: AlertInfo) -> str:
    return _section(info.name, info.help, info.runbook)


def _rule_section(rule: PrometheusRule) -> str:
    meaning = f"`{rule.summary}`" if "{{" in rule.summary else rule.summary
    return _section(rule.alert, f"Summary: {meaning}", Runbook(rule.cause, rule.action))


def _section(name: str, meaning: str, runbook: Runbook) -> str:
    return f"### {name}\n\n{meaning}\n\n**Cause:** {runbook.cause}\n\n**What to do:** {runbook.action}\n"


def _watchdog_section() -> str:
    runbook = Runbook(
        "The agent or its host has ended, or the network to Alertmanager is down. The state of the host's VMs is unknown.",
        f"Check the host and `systemctl status qmp-agent`. [Alertmanager](../how-to/alertmanager.md#the-watchdog) "
        f"describes `{AGENT_RUNNING}`, which mutes this alert while the agent runs.",
    )
    return _section(
        AGENT_LOST,
        "The agent of a host no longer sends alerts. This alert needs `alerts.alertmanager.watchdog`.",
        runbook,
    )


if __name__ == "__main__":
    sys.stdout.write(alerts_document())
