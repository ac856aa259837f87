"""The dashboards' JSON: links lead to existing dashboards, and every panel has a unit."""

import json
import re
from typing import Any

import pytest

from dashboards import DASHBOARDS

BY_UID = {dashboard.uid: json.loads(dashboard.json()) for dashboard in DASHBOARDS}
PANELS = [
    pytest.param(panel, id=f"{uid}: {panel['title']}")
    for uid, dashboard in BY_UID.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]


@pytest.mark.parametrize("uid", BY_UID)
def test_a_link_leads_to_an_existing_dashboard_and_variable(uid: str) -> None:
    links = re.findall(r"/d/([a-z-]+)\?var-(\w+)=", json.dumps(BY_UID[uid]))
    for target, variable in links:
        assert variable in [entry["name"] for entry in BY_UID[target]["templating"]["list"]]
    assert links or uid in ("qemu-vm", "qmp-agent", "qemu-kubevirt")


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_a_unit_a_data_source_and_a_valid_position(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "table":
        properties = [entry for rule in panel["fieldConfig"]["overrides"] for entry in rule["properties"]]
        assert [entry["value"] for entry in properties if entry["id"] == "unit"]
    else:
        assert defaults["unit"]
        assert defaults["thresholds"]["steps"][0]["color"] == "green"
    assert panel["datasource"]["uid"] == "${datasource}"
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    references = [target["refId"] for target in panel["targets"]]
    assert all(references)
    assert len(set(references)) == len(references)
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_describes_each_of_its_series(panel: dict[str, Any]) -> None:
    assert panel["description"]
    series = {
        name for target in panel["targets"] for name in re.findall(r"\b(?:qemu|qmp_agent)_[a-z0-9_]+", target["expr"])
    }
    for name in series - {"qemu_version"}:  # a label
        assert re.search(rf"^{name}: \w.{{15,}}", panel["description"], re.MULTILINE), name


@pytest.mark.parametrize("uid", BY_UID)
def test_panel_ids_are_unique_and_consecutive(uid: str) -> None:
    numbers = [panel["id"] for panel in BY_UID[uid]["panels"]]
    assert sorted(set(numbers)) == sorted(numbers) == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("uid", BY_UID)
def test_queries_use_defined_variables_only(uid: str) -> None:
    defined = {entry["name"] for entry in BY_UID[uid]["templating"]["list"]} | {"__rate_interval", "__range"}
    used = {
        name
        for _, query in next(dashboard for dashboard in DASHBOARDS if dashboard.uid == uid).queries()
        for name in re.findall(r"\$(\w+)", query)
    }
    assert used <= defined
