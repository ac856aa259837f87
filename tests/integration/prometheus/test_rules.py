"""Prometheus' alert and recording rules: they fire when they should, name a runbook, and use series that the agent exports."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.guest.api import GuestAgentState
from agent.session.api import MonitorState
from deploy.prometheus import libvirt_names
from tests.lab.machine import require
from tests.lab.markdown import anchors

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "deploy/prometheus"


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / file).read_text())["groups"] for rule in group["rules"]]


ALERTS: Final = rules("alerts.yml")


def exported_series() -> set[str]:
    """Return the series in docs/metrics.md, which is generated from the code."""
    return set(re.findall(r"^\| `(q\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))


def promtool(*arguments: str | Path) -> str:
    """Run promtool, which must succeed, and return its output."""
    require("promtool", "prometheus")
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_rule_tests_pass() -> None:
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "alerts.test.yml")


def test_the_rules_use_the_job_of_the_example_scrape_config() -> None:
    promtool("check", "config", FOLDER / "scrape.yml")
    (job,) = yaml.safe_load((FOLDER / "scrape.yml").read_text())["scrape_configs"]
    jobs = {name for rule in ALERTS for name in re.findall(r'\bjob="([^"]+)"', rule["expr"])}
    assert jobs == {job["job_name"]}


def test_each_alert_has_a_test_that_it_fires_and_one_that_it_does_not() -> None:
    tests = [
        test
        for case in yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
        for test in case["alert_rule_test"]
    ]
    for fires in (True, False):
        tested = {test["alertname"] for test in tests if bool(test["exp_alerts"]) is fires}
        assert tested == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_uses_series_that_the_agent_exports(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\b(?:qemu|qmp)_\w+", rule["expr"]))
    assert names or "up{" in rule["expr"]
    assert names <= exported_series()
    states = {state.value for state in (*MonitorState, *GuestAgentState)}
    assert set(re.findall(r'\bstate="([^"]+)"', rule["expr"])) <= states


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_severity_a_summary_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)


@pytest.mark.parametrize("dialect", libvirt_names.DIALECTS)
def test_the_generated_rules_for_exporters_names_are_up_to_date_and_valid(dialect: str) -> None:
    text = (FOLDER / f"libvirt-names-{dialect}.yml").read_text()
    assert text == libvirt_names.rules_file(dialect), "run `make generate`"
    assert set(re.findall(r"\bqemu_\w+", text)) <= exported_series()
    promtool("check", "rules", FOLDER / f"libvirt-names-{dialect}.yml")


def test_the_rules_for_tinkoffs_names_produce_its_series() -> None:
    promtool("test", "rules", FOLDER / "libvirt-names-tinkoff.test.yml")
