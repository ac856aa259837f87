"""The dashboards' JSON: what links lead to is there, and every panel says in what it counts."""

import json
import re
from typing import Any

import pytest

from dashboards import DASHBOARDS

MADE = {one.uid: json.loads(one.json()) for one in DASHBOARDS}
SHOWN = [
    pytest.param(panel, id=f"{uid}: {panel['title']}")
    for uid, made in MADE.items()
    for panel in made["panels"]
    if panel["type"] != "row"
]


@pytest.mark.parametrize("uid", MADE)
def test_a_link_leads_to_a_dashboard_and_a_variable_that_are_there(uid: str) -> None:
    links = re.findall(r"/d/([a-z-]+)\?var-(\w+)=", json.dumps(MADE[uid]))
    for to, variable in links:
        assert variable in [one["name"] for one in MADE[to]["templating"]["list"]]
    assert links or uid in ("qemu-vm", "qmp-agent")


@pytest.mark.parametrize("panel", SHOWN)
def test_a_panel_has_a_unit_a_source_and_a_place_in_the_row(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "table":
        of_columns = [one for rule in panel["fieldConfig"]["overrides"] for one in rule["properties"]]
        assert [one["value"] for one in of_columns if one["id"] == "unit"]
    else:
        assert defaults["unit"]
        assert defaults["thresholds"]["steps"][0]["color"] == "green"
    assert panel["datasource"]["uid"] == "${source}"
    assert all(target["datasource"]["uid"] == "${source}" for target in panel["targets"])
    references = [target["refId"] for target in panel["targets"]]
    assert all(references)
    assert len(set(references)) == len(references)
    assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


@pytest.mark.parametrize("uid", MADE)
def test_each_panel_has_a_number_of_its_own(uid: str) -> None:
    numbers = [panel["id"] for panel in MADE[uid]["panels"]]
    assert sorted(set(numbers)) == sorted(numbers) == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("uid", MADE)
def test_what_a_query_chooses_by_is_a_variable(uid: str) -> None:
    known = {one["name"] for one in MADE[uid]["templating"]["list"]} | {"__rate_interval", "__range"}
    asked = {
        name
        for _, query in next(d for d in DASHBOARDS if d.uid == uid).queries()
        for name in re.findall(r"\$(\w+)", query)
    }
    assert asked <= known
