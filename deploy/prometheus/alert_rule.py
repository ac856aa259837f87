"""The type of a row in the tables of Prometheus alert rules."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusRule:
    """One alert rule.

    Attributes:
        alert: Its name.
        group: Its group.
        expr: Its expression in PromQL.
        hold: How long the expression has to be true, such as `5m`; empty for one evaluation.
        severity: `critical` means that a guest is stopped or that records are lost: act now. `warning` means that this is about to happen.
        summary: Its summary, a template.
        cause: Its usual causes.
        action: The instructions.
        description: Further text of the alert, a template.
        runbook: The anchor in docs/reference/alerts.md; by default that of the rule.
    """

    alert: str
    group: str
    expr: str
    severity: str
    summary: str
    cause: str
    action: str
    hold: str = ""
    description: str = ""
    runbook: str = ""
