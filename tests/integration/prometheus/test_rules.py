"""Prometheus' rules: each alert fires when it should and not otherwise and says what to do, all on series that the agent has."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.session.api import MonitorState
from deploy.prometheus import libvirt_names
from tests.lab.machine import require

ROOT: Final = Path(__file__).parents[3]
FOLDER: Final = ROOT / "deploy/prometheus"


def rules(file: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / file).read_text())["groups"] for rule in group["rules"]]


ALERTS: Final = rules("alerts.yml")


def series_of_the_agent() -> set[str]:
    """Return the names that docs/metrics.md has, which is made from the code."""
    return set(re.findall(r"^\| `(q\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and GitLab make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def promtool(*arguments: str | Path) -> str:
    """Run promtool and return what it says; it has to be content."""
    require("promtool", "prometheus")
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "alerts.test.yml")


def test_the_job_that_the_rules_ask_for_is_the_one_that_is_shown() -> None:
    promtool("check", "config", FOLDER / "scrape.yml")
    (job,) = yaml.safe_load((FOLDER / "scrape.yml").read_text())["scrape_configs"]
    named = {name for rule in ALERTS for name in re.findall(r'\bjob="([^"]+)"', rule["expr"])}
    assert named == {job["job_name"]}


def test_each_alert_is_tested_for_firing_and_for_being_quiet() -> None:
    tests = [
        test
        for case in yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]
        for test in case["alert_rule_test"]
    ]
    for wanted in (True, False):
        assert {test["alertname"] for test in tests if bool(test["exp_alerts"]) is wanted} == {
            rule["alert"] for rule in ALERTS
        }


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_series_that_the_agent_has(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"\b(?:qemu|qmp)_\w+", rule["expr"]))
    assert names or "up{" in rule["expr"]
    assert names <= series_of_the_agent()
    assert set(re.findall(r'\bstate="([^"]+)"', rule["expr"])) <= {state.value for state in MonitorState}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_severity_a_summary_and_a_place_that_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)


@pytest.mark.parametrize("dialect", libvirt_names.DIALECTS)
def test_the_rules_for_exporters_names_are_what_their_table_makes_today_of_series_that_the_agent_has(
    dialect: str,
) -> None:
    text = (FOLDER / f"libvirt-names-{dialect}.yml").read_text()
    assert text == libvirt_names.build(dialect), "run `make generate`"
    assert set(re.findall(r"\bqemu_\w+", text)) <= series_of_the_agent()
    promtool("check", "rules", FOLDER / f"libvirt-names-{dialect}.yml")


def test_the_rules_for_tinkoffs_names_make_its_series() -> None:
    promtool("test", "rules", FOLDER / "libvirt-names-tinkoff.test.yml")
