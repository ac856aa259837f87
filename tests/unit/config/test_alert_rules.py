"""The operator's own alerts and changes of alerts in the config, as rows and as the alert manager applies them."""

from typing import Any

import pytest

from agent.alerts.rules.comparison import FieldComparison, Operator
from agent.alerts.rules.rule_types import EventAlertRule, SampleAlertRule
from agent.app.builders import alert_overrides
from agent.config.alert_rules import (
    CUSTOM_ALERT_FAMILIES,
    MAX_CUSTOM_ALERTS,
    CustomAlertConfig,
    comparable_field_kinds,
    parse_comparison,
)
from agent.config.model import AlertsConfig
from agent.model.family import Sample
from agent.model.metrics.block import BLOCK
from agent.model.record import Severity
from tests.lab.alert_scenario import AlertScenario


def row(**keys: Any) -> SampleAlertRule | EventAlertRule:
    return CustomAlertConfig(name="mine", **keys).to_alert_rule()


def scenario_of(**alerts: Any) -> AlertScenario:
    """Return a scenario with an attached VM and this section `alerts` of the config."""
    config = AlertsConfig.model_validate(alerts)
    scenario = AlertScenario()
    scenario.engine.set_overrides(alert_overrides(config), [alert.to_alert_rule() for alert in config.custom])
    scenario.attach()
    return scenario


@pytest.mark.parametrize(
    ("text", "operator", "limit"),
    [
        ("read_seconds_total > 1.5", Operator.ABOVE, 1.5),
        ("read_seconds_total >= 200ms", Operator.AT_LEAST, 0.2),
        ("read_bytes_total<10GiB", Operator.BELOW, 10 * 2**30),
        ("hit_ratio <= 5%", Operator.AT_MOST, 0.05),
        ("on != true", Operator.UNEQUAL, True),
        ('state == "disk sleep"', Operator.EQUAL, "disk sleep"),
        ("reads_total increases", Operator.INCREASES, 0.0),
    ],
)
def test_a_comparison_is_parsed_by_the_kind_and_unit_of_its_field(text: str, operator: Operator, limit: Any) -> None:
    kinds = {
        "read_seconds_total": "number",
        "read_bytes_total": "number",
        "hit_ratio": "number",
        "reads_total": "number",
    }
    test = parse_comparison(text, kinds | {"on": "flag", "state": "text"}, "a field")
    assert (test.operator, test.limit) == (operator, limit)


def test_each_number_flag_and_text_of_each_family_can_be_compared() -> None:
    compared = 0
    for family in CUSTOM_ALERT_FAMILIES.values():
        for name, kind in comparable_field_kinds(family).items():
            limit = {"number": "1", "flag": "true", "text": "x"}[kind]
            result = row(sample=family.name, when=f"{name} == {limit}")
            assert isinstance(result, SampleAlertRule)
            assert result.field == name
            compared += 1
    assert compared > 300


def test_an_alert_on_samples_becomes_a_row() -> None:
    result = row(
        sample="vcpu",
        when=["state == disk-sleep", "vcpu != 0"],
        duration="5m",
        severity="critical",
        vm="db-*",
        device="1",
    )
    assert isinstance(result, SampleAlertRule)
    assert (result.field, result.value, result.where) == (
        "state",
        "disk-sleep",
        (FieldComparison(("vcpu",), Operator.UNEQUAL, "0"),),
    )
    assert (result.seconds, result.severity, result.vm, result.device) == (300.0, Severity.CRITICAL, "db-*", "1")
    assert result.help == "vcpu: state == disk-sleep and vcpu != 0."


def test_an_alert_on_an_event_that_nothing_resolves_ends_after_an_hour() -> None:
    assert row(event="SUSPEND").resolve_after_seconds == 3600.0
    assert row(event="SUSPEND", resolve_after="10m").resolve_after_seconds == 600.0
    assert row(event="SUSPEND", resolved_by=["WAKEUP"]).resolve_after_seconds is None


def test_an_own_alert_is_resolved_at_its_own_limit() -> None:
    family = CUSTOM_ALERT_FAMILIES["process"]
    alert = {"name": "deep", "sample": "process", "when": "swap_bytes > 1GiB", "resolve_at": "512MiB", "duration": "1m"}
    scenario = scenario_of(custom=[alert])

    def swapped(at: float, mib: int) -> list[tuple[str, str, str]]:
        return scenario.samples(at, family, Sample(family, (), {"swap_bytes": mib << 20}))

    assert swapped(0, 2000) == []
    assert swapped(60, 2000) == [("deep", "", "firing")]
    assert swapped(70, 600) == []
    assert swapped(80, 512) == [("deep", "", "resolved")]


def test_own_alerts_of_one_family_do_not_disturb_each_other() -> None:
    alerts = [
        {"name": name, "sample": "block", "when": "failed_reads_total increases", "vm": vm, "resolve_after": "1m"}
        for name, vm in (("mine", "vm*"), ("other", "web-*"))
    ]
    scenario = scenario_of(custom=alerts)
    for at, failed in ((0, 1), (10, 1)):
        assert scenario.samples(at, BLOCK, Sample(BLOCK, ("disk0",), {"failed_reads_total": failed})) == []
    assert scenario.samples(20, BLOCK, Sample(BLOCK, ("disk0",), {"failed_reads_total": 2})) == [
        ("mine", "disk0", "firing")
    ]
    assert scenario.tick(80) == [("mine", "disk0", "resolved")]


def test_an_own_alert_can_be_silenced_by_pattern() -> None:
    own = {"name": "vnc", "event": "VNC_CONNECTED", "severity": "info"}
    scenario = scenario_of(custom=[own], overrides=[{"alert": "vnc", "device": "10.*", "enabled": False}])
    assert scenario.event("VNC_CONNECTED", 1, client={"host": "10.0.0.1"}) == []
    assert scenario.event("VNC_CONNECTED", 1, client={"host": "192.0.2.1"}) == [("vnc", "192.0.2.1", "firing")]


def test_an_own_alert_that_ends_with_its_condition_takes_no_resolve_after() -> None:
    alert = {"name": "deep", "sample": "process", "when": "swap_bytes > 1GiB", "resolve_after": "1m"}
    with pytest.raises(ValueError, match="needs `event` or a comparison with `increases`"):
        AlertsConfig.model_validate({"custom": [alert]})


def test_the_number_of_own_alerts_is_limited() -> None:
    alerts = [{"name": f"a{number}", "event": "RESET"} for number in range(MAX_CUSTOM_ALERTS + 1)]
    AlertsConfig.model_validate({"custom": alerts[1:]})
    with pytest.raises(ValueError, match="at most 100"):
        AlertsConfig.model_validate({"custom": alerts})


def test_a_limit_in_the_config_has_the_unit_of_the_alert() -> None:
    config = AlertsConfig.model_validate(
        {
            "overrides": [
                {"alert": "snapshot_old", "limit": "7d"},
                {"alert": "balloon_pressure", "limit": "10%", "duration": "1m", "severity": "error"},
                {"alert": "*", "vm": "test-*", "enabled": False},
            ]
        }
    )
    overrides = alert_overrides(config).overrides
    assert [override.limit for override in overrides] == [7 * 86400.0, 0.1, None]
    assert (overrides[1].seconds, overrides[1].severity) == (60.0, Severity.ERROR)
    assert not overrides[2].enabled
