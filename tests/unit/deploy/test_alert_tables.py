"""The tables of alerts: a cause has an alert of the agent or a Prometheus rule, never both, and each alert has instructions."""

import re
from pathlib import Path

import pytest

from agent.alerts.catalogue import ALERT_CATALOGUE
from agent.alerts.rules.comparison import Operator
from agent.alerts.rules.sample_rules import SAMPLE_ALERT_RULES
from agent.model.metrics import FAMILIES
from deploy.prometheus.alert_rule import PrometheusRule
from deploy.prometheus.alert_rules import FORWARD_RULES, PROMETHEUS_RULES
from deploy.prometheus.guest_rules import GUEST_RULES
from tests.lab.markdown import anchors

ROOT = Path(__file__).parents[3]

_OVER_TIME = re.compile(r"\b(?:rate|increase|predict_linear|resets|max_over_time)\(")
_RATES_OF_THE_AGENT = re.compile(r"_(?:time_to_full|remaining|age)_seconds\b")
"""Series in which the agent itself has a rate over time, or the age of a value."""

rules = pytest.mark.parametrize("rule", PROMETHEUS_RULES, ids=lambda rule: str(rule.alert))


def cause(rule: PrometheusRule) -> str:
    """Return the name that an alert of the agent for the same cause would have."""
    words = re.findall(r"[A-Z]+[a-z]*", rule.alert.removeprefix("Qemu"))
    return "_".join(word.lower() for word in words)


def test_instructions_have_no_links_because_the_page_shows_them_as_text() -> None:
    texts = [text for info in ALERT_CATALOGUE.values() for text in (info.runbook.cause, info.runbook.action)]
    assert texts
    assert [text for text in texts if "](" in text] == []


@rules
def test_a_rule_does_not_repeat_an_alert_of_the_agent(rule: PrometheusRule) -> None:
    assert "qemu_alert_firing" not in rule.expr
    assert cause(rule) not in ALERT_CATALOGUE
    assert cause(rule).removeprefix("guest_") not in ALERT_CATALOGUE


@pytest.mark.parametrize("rule", GUEST_RULES, ids=lambda rule: str(rule.alert))
def test_a_rule_about_guests_is_about_a_rate_over_time(rule: PrometheusRule) -> None:
    assert _OVER_TIME.search(rule.expr) or _RATES_OF_THE_AGENT.search(rule.expr)


@rules
def test_a_rule_does_not_use_the_condition_of_an_alert_of_the_agent(rule: PrometheusRule) -> None:
    exported = {family: {field.name for field in family.exported_fields()} for family in FAMILIES}
    compared = 0
    for row in SAMPLE_ALERT_RULES:
        if row.field not in exported.get(row.family, ()):
            continue
        series = f"qemu_{row.family.name}_{row.field}"
        condition = f'{series}{{{row.field}="{row.value}"}}' if isinstance(row.value, str) else series
        if isinstance(row.value, str) and row.operator is not Operator.EQUAL:
            condition = series
        assert condition not in rule.expr, row.alert
        compared += 1
    assert compared > 8


def test_only_the_rules_that_forward_use_the_agents_alerts() -> None:
    assert len(FORWARD_RULES) == 2
    assert all(rule.expr.startswith("qemu_alert_firing{") for rule in FORWARD_RULES)
    names = [rule.alert for rule in (*PROMETHEUS_RULES, *FORWARD_RULES)]
    assert len(names) == len(set(names))


def test_the_page_has_instructions_for_each_alert() -> None:
    known = anchors(ROOT / "docs/reference/alerts.md")
    assert ALERT_CATALOGUE.keys() <= known
    assert {rule.alert.lower() for rule in (*PROMETHEUS_RULES, *FORWARD_RULES)} <= known
    for rule in PROMETHEUS_RULES:
        assert rule.cause.endswith("."), rule.alert
        assert rule.action.endswith("."), rule.alert
        assert rule.severity in {"critical", "warning"}
